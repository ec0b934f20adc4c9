"""The explorer as a page of its own: `python explore.py micro` serves it here and opens the browser.

One page and one address to ask: everything else is refused, foreign hosts and foreign origins too, for what
a study answered is nobody else's business. Title and opening words are those of notebooks/05_explore.ipynb.
"""

import argparse
import base64
import hashlib
import html
import json
import re
import signal
import socketserver
import sys
import threading
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lib import paths
from lib.errors import StudyError
from lib.explore import PAGE, Explorer, encode_reply, read_script, read_style

HOST = "127.0.0.1"
PORTS = 50  # that are tried, one after another
LONGEST = 1 << 20  # bytes of a question
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

# --- the page -------------------------------------------------------------------------------------


def read_prose() -> str:
    """The first words of the notebook."""
    document = json.loads(paths.notebook("05_explore").read_text(encoding="utf-8"))
    return "".join(document["cells"][0]["source"])


def write_prose(markdown: str) -> str:
    """The title, and paragraphs with `code` in them: no other markup is used there."""
    title, _, rest = markdown.partition("\n")
    paragraphs = [part.strip() for part in rest.split("\n\n") if part.strip()]
    lines = [f"<h1>{html.escape(title.lstrip('# '))}</h1>", *(f"<p>{html.escape(p)}</p>" for p in paragraphs)]
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", "\n".join(lines))


def build_page() -> tuple[bytes, str]:
    """The page and its policy: its own script and style, and questions to where it is from."""
    prose, script, style = read_prose(), read_script(PAGE), read_style()
    title = html.escape(prose.partition("\n")[0].lstrip("# "))
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header class="sx-prose">
{write_prose(prose)}
</header>
<main id="explorer" class="sx"><noscript>The explorer needs JavaScript.</noscript></main>
<script>{script}</script>
</body>
</html>
"""
    policy = (
        f"default-src 'none'; script-src '{hash_source(script)}'; style-src '{hash_source(style)}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.encode("utf-8"), policy


def hash_source(text: str) -> str:
    """The name by which a policy allows exactly this script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


# --- the server -----------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves this machine alone."""

    daemon_threads = True

    def __init__(self, port: int, explorer: Explorer) -> None:
        self.explorer = explorer
        self.page, self.policy = build_page()
        super().__init__((HOST, port), Handler)
        names = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}
        self.hosts, self.origins = names, {f"http://{name}" for name in names}

    def server_bind(self) -> None:
        """Without asking a name server for this machine, which takes seconds where there is none."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """GET / is the page, POST /ask a question; nothing else is there."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "explorer", ""
    timeout = 60
    server: Server

    def do_GET(self) -> None:
        if self.is_foreign():
            return
        if self.path != "/":
            self.refuse(404, "there is one page here: /")
            return
        self.reply(200, "text/html; charset=utf-8", self.server.page)

    def do_POST(self) -> None:
        if self.is_foreign():
            return
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
        length = self.headers.get("Content-Length", "")
        if self.path != "/ask":
            self.refuse(404, "questions go to /ask")
        elif kind != "application/json":
            self.refuse(415, "a question is application/json")
        elif not re.fullmatch("[0-9]{1,9}", length):
            self.refuse(411, "a question says how long it is")
        elif int(length) > LONGEST:
            self.refuse(413, f"a question has at most {LONGEST:,} bytes")
        else:
            self.answer(self.rfile.read(int(length)))

    def answer(self, body: bytes) -> None:
        try:
            query = json.loads(body)
        except (ValueError, RecursionError):
            self.refuse(400, "the question is no JSON")
            return
        reply = encode_reply(self.server.explorer.ask(query))
        self.reply(200, "application/json", reply.encode("ascii"))

    def is_foreign(self) -> bool:
        """Refuse whoever reached this by another name (DNS rebinding) or from another page."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        if host not in self.server.hosts:
            self.refuse(421, f"this is {sorted(self.server.hosts)[0]}, not {host[:80]!r}")
            return True
        if self.command == "POST" and (
            (origin is not None and origin not in self.server.origins) or site not in ("none", "same-origin")
        ):
            self.refuse(403, "questions from other pages are not answered")
            return True
        return False

    def refuse(self, code: int, word: str) -> None:
        self.close_connection = True  # what else it sent was not read
        self.reply(code, "text/plain; charset=utf-8", word.encode("utf-8", "backslashreplace"))

    def reply(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """One line at the start is enough."""


def open_server(port: int, explorer: Explorer) -> Server:
    """At the port that was asked for, or at the next one that is free."""
    for at in range(port, min(port + PORTS, 65_536)):
        try:
            return Server(at, explorer)
        except OSError as error:
            problem = error
    raise StudyError(
        f"no port from {port} to {at} can be used ({problem.strerror}): choose another with --port"
    )


# --- the command ----------------------------------------------------------------------------------


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def serve(server: Server, browser: bool) -> None:
    """Answer until somebody ends it."""
    address = f"http://{HOST}:{server.server_port}/"
    print(f"explorer of study {server.explorer.study}: {address} (Ctrl-C ends it)", flush=True)
    if browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    try:
        server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        print("\nended; marks are kept", flush=True)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would only print a stack
        server.server_close()
        server.explorer.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument(
        "study", nargs="?", default="", help="a study of results/; others can be chosen on the page"
    )
    parser.add_argument("--results", default="", help="a folder of evaluations anywhere, published ones too")
    parser.add_argument(
        "--repeats", type=int, default=5, help="of a published folder: answers to each question (5)"
    )
    parser.add_argument("--port", type=int, default=8765, help="or the next one that is free (%(default)s)")
    parser.add_argument("--no-browser", action="store_true", help="only say where it is")
    asked = parser.parse_args()
    if not 0 <= asked.port < 65_536:
        parser.error(f"--port must be between 0 and 65535, got {asked.port}")
    if asked.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {asked.repeats}")
    for each in (signal.SIGTERM, signal.SIGINT):  # a shell's background job starts with SIGINT ignored
        signal.signal(each, interrupt)
    try:
        server = open_server(asked.port, Explorer(asked.study, asked.results, asked.repeats))
        if server.server_port != asked.port and asked.port:
            print(f"port {asked.port} is taken", flush=True)
        serve(server, not asked.no_browser)
    except StudyError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
