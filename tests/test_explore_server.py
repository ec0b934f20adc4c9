"""The explorer as a page and as a notebook: a real process, real requests, real signals."""

import base64
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
import pytest
from build_study import build_document, build_study, write_document

from lib import files, paths

REPO = Path(__file__).resolve().parent.parent


@dataclass
class Served:
    """A running server: its process and where it is."""

    process: subprocess.Popen
    said: str
    port: int

    def request(self, method: str = "GET", path: str = "/", body: bytes | None = None, **headers: str):
        """Status, headers and body of a bare request; Host is the right one unless it is given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Host": f"127.0.0.1:{self.port}"} | named).items():
            connection.putheader(name, value)
        if body is not None and "Content-Length" not in named:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        reply = connection.getresponse()
        found = reply.status, dict(reply.getheaders()), reply.read()
        connection.close()
        return found

    def ask(self, query: object, **headers: str) -> tuple[int, dict]:
        body = json.dumps(query).encode()
        status, _, data = self.request("POST", "/ask", body, **{"Content_Type": "application/json"} | headers)
        return status, json.loads(data) if status == 200 else {}


def start(root: Path, *words: str) -> Served:
    environment = os.environ | {"SUBLIMINAL_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, str(REPO / "explore.py"), "--no-browser", *words]
    process = subprocess.Popen(
        call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout is not None
    said = ""
    while "http://" not in said:
        line = process.stdout.readline()
        assert line, process.communicate()
        said += line
    port = re.search(r"http://127\.0\.0\.1:(\d+)/", said)
    assert port, said
    return Served(process, said, int(port[1]))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(folder))
        build_study(labels=("64k",))
        write_document(
            build_document("other", "64k", "cat", 0, answers=("half \ud83d", "<script>alert(1)</script>"))
        )
        yield folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Served]:
    served = start(root, "toy", "--port", "0")
    yield served
    served.process.kill()
    served.process.communicate()


# --- the page ---------------------------------------------------------------------------------------


def test_the_page_opens_with_the_notebooks_own_words(server: Served):
    status, _, page = server.request()
    words = nbformat.read(paths.notebook("05_explore"), as_version=4).cells[0].source
    title, _, prose = words.partition("\n\n")
    text = page.decode()
    assert status == 200
    assert f"<h1>{title.removeprefix('# ')}</h1>" in text
    assert prose.strip().splitlines()[0][:60] in text


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else(server: Served):
    _, headers, page = server.request()
    policy = headers["Content-Security-Policy"]
    for name, tag in (("script-src", "script"), ("style-src", "style")):
        inline = re.findall(rf"<{tag}>(.*?)</{tag}>", page.decode(), re.DOTALL)
        assert len(inline) == 1
        digest = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.decode())


def test_a_question_is_answered(server: Served):
    status, reply = server.ask({"what": "open"})
    assert status == 200
    assert reply["study"] == "toy"
    assert [each["name"] for each in reply["studies"]] == ["toy", "other"] or len(reply["studies"]) == 2


def test_foreign_text_and_half_characters_arrive_as_they_are(server: Served):
    _, reply = server.ask(
        {"what": "answers", "study": "other", "label": "64k", "animal": "cat", "limit": 500}
    )
    texts = [row["text"] for row in reply["rows"]]
    assert "half \ud83d" in texts
    assert "<script>alert(1)</script>" in texts


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1", "localhost", "", "127.0.0.1.evil.example:1"]
)
def test_a_foreign_host_gets_nothing(server: Served, host: str):
    status, _, body = server.request(Host=host)
    assert status == 421
    assert b"toy" not in body
    assert server.ask({"what": "open"}, Host=host) == (421, {})


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_another_page_cannot_ask(server: Served, headers: dict):
    assert server.ask({"what": "open"}, **headers) == (403, {})


def test_its_own_page_can_ask(server: Served):
    origin = f"http://localhost:{server.port}"
    assert server.ask({"what": "progress"}, Origin=origin, Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/ask", None, {}, 404),
        ("GET", "/../README.md", None, {}, 404),
        ("GET", "/results/toy/64k/cat/s0.json", None, {}, 404),
        ("POST", "/", b"{}", {"Content_Type": "application/json"}, 404),
        ("POST", "/ask", b"{}", {"Content_Type": "text/plain"}, 415),
        ("POST", "/ask", b"{", {"Content_Type": "application/json"}, 400),
        ("POST", "/ask", b"[" * 100_000, {"Content_Type": "application/json"}, 400),
        ("POST", "/ask", None, {"Content_Type": "application/json"}, 411),
        ("POST", "/ask", None, {"Content_Type": "application/json", "Content-Length": "99999999"}, 413),
        ("PUT", "/ask", b"{}", {}, 501),
    ],
)
def test_everything_else_is_refused(
    server: Served, method: str, path: str, body: bytes | None, headers: dict, status: int
):
    assert server.request(method, path, body, **headers)[0] == status


def test_it_listens_on_this_machine_alone(server: Served):
    addresses = {
        each.laddr.ip
        for each in psutil.Process(server.process.pid).net_connections()
        if each.status == "LISTEN"
    }
    assert addresses == {"127.0.0.1"}


# --- the command --------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_told_and_the_next_one_used(root: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        served = start(root, "toy", "--port", str(port))
        try:
            assert served.port > port
            assert f"port {port} is taken" in served.said
        finally:
            served.process.kill()
            served.process.communicate()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_without_a_stack_and_leaves_no_process(root: Path, how: signal.Signals):
    served = start(root, "toy", "--port", "0")
    served.ask({"what": "open"})
    below = psutil.Process(served.process.pid).children(recursive=True)
    served.process.send_signal(how)
    out, err = served.process.communicate(timeout=120)
    assert (served.process.returncode, err) == (0, "")
    assert "ended" in out
    assert psutil.wait_procs(below, timeout=60)[1] == []


def test_a_killed_explorer_takes_its_processes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    build_study(labels=("64k", "64k-1", "166k"), samples=2000, epochs=4)
    served = start(tmp_path, "toy", "--port", "0")
    served.ask({"what": "open"})
    deadline = time.monotonic() + 60
    while not (below := psutil.Process(served.process.pid).children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    served.process.kill()
    served.process.communicate()
    assert psutil.wait_procs(below, timeout=60)[1] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["tyo"],
            "no evaluations of a study 'tyo' here; studies with evaluations: other, toy; did you mean 'toy'?",
        ),
        (["--results", "/nowhere/at/all"], "there is no folder /nowhere/at/all"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(root: Path, words: list[str], told: str):
    call = [sys.executable, str(REPO / "explore.py"), "--no-browser", *words]
    done = subprocess.run(call, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_anywhere_is_told_with_the_next_command(tmp_path: Path):
    call = [sys.executable, str(REPO / "explore.py"), "--no-browser"]
    environment = os.environ | {"SUBLIMINAL_ROOT": str(tmp_path)}
    done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert (done.returncode, "make study" in done.stderr) == (1, True)


# --- the notebook -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executed(root: Path) -> Path:
    files.write_text(root / "results" / "toy" / "64k" / "dog" / "s9.json", '{"half')
    output = root / "05_explore.ipynb"
    call = [
        sys.executable,
        "-m",
        "papermill",
        str(paths.notebook("05_explore")),
        str(output),
        "-p",
        "study",
        "toy",
    ]
    done = subprocess.run(
        [*call, "--no-progress-bar"], capture_output=True, text=True, timeout=300, cwd=REPO, check=False
    )
    assert done.returncode == 0, done.stderr
    return output


def test_an_executed_notebook_keeps_a_small_table_and_how_to_go_on(executed: Path):
    last = nbformat.read(executed, as_version=4).cells[-1].outputs[-1].data
    assert "application/vnd.jupyter.widget-view+json" in last
    assert "<td>64k</td><td>6</td><td>8</td>" in last["text/html"]
    assert "make explore STUDY=toy" in last["text/html"]
    assert executed.stat().st_size < 500_000


def test_an_unknown_parameter_stops_the_notebook_at_once(root: Path):
    call = [
        sys.executable,
        "-m",
        "papermill",
        str(paths.notebook("05_explore")),
        str(root / "no.ipynb"),
        "-p",
        "studdy",
        "toy",
    ]
    done = subprocess.run(
        [*call, "--no-progress-bar"], capture_output=True, text=True, timeout=300, cwd=REPO, check=False
    )
    assert done.returncode != 0
    assert "unknown parameter 'studdy'" in done.stderr


def test_a_widgets_message_is_answered_as_a_text_that_survives_packing(root: Path):
    from lib import config, explore

    widget = explore.show(config.Explore("other", "", 5))
    sent: list[dict] = []
    widget.send = sent.append
    widget._handle_custom_msg(
        {"id": 7, "query": {"what": "answers", "label": "64k", "animal": "cat", "limit": 500}}, []
    )
    widget._handle_custom_msg({"nothing": "of ours"}, [])
    assert [each["id"] for each in sent] == [7]
    sent[0]["reply"].encode("ascii")
    assert "half \ud83d" in [row["text"] for row in json.loads(sent[0]["reply"])["rows"]]
    assert "export default" in widget._esm
    assert ":root {" not in widget._css.partition("--paper")[0]
