"""A small Hugging Face Hub for tests: a real HTTP server that answers as huggingface_hub asks.

Repositories with commits, LFS in one part or many, downloads with redirects to a storage of another origin,
collections, creation limits. It can be told to misbehave (`trouble`) and remembers every request (`seen`).
Content lives in memory; nothing here knows the project.
"""

import base64
import collections
import hashlib
import json
import re
import secrets
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

TOKEN = "hf_PlantedTokenOfTheTests0123456789"
USER = "maker"
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".npz")
LFS_SIZE = 10 * 2**20  # from here on every file is LFS, whatever its name
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
WRITES = ("create", "settings", "batch", "put", "complete", "verify", "commit", "collect", "delete")
DATE = "2025-01-01T00:00:00.000Z"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    """The name git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Entry:
    """One file of a commit."""

    data: bytes
    lfs: bool

    @property
    def pointer(self) -> bytes:
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
            sha256(self.data).encode(),
            len(self.data),
        )

    @property
    def oid(self) -> str:
        return git_sha1(self.pointer if self.lfs else self.data)


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    oid: str
    title: str
    files: dict[str, Entry]


@dataclass
class Repo:
    """A repository; its last commit is `main`, `tags` name others."""

    kind: str
    id: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, title: str, files: dict[str, Entry]) -> Commit:
        self.commits.append(Commit(secrets.token_hex(20), title, files))
        return self.commits[-1]

    def find(self, revision: str) -> Commit | None:
        oid = self.tags.get(revision, revision)
        if revision in ("main", "refs/heads/main"):
            return self.commits[-1]
        return next((each for each in self.commits if each.oid == oid), None)


@dataclass(frozen=True)
class Seen:
    """One request as it came in and what was answered; status 0 is a connection that was cut."""

    what: str
    method: str
    path: str
    status: int
    received: int
    authorised: bool
    storage: bool


@dataclass
class Trouble:
    """What the next `times` requests of the kind `what` whose path matches `path` meet.

    `kind`: `429` and `500` and other numbers are answered instead; `cut` breaks the connection in the middle
    of the request's body (or of the answer's, where the request has none); `short` closes it politely there,
    which huggingface_hub takes up again by itself, as it does not with `cut`; `lost` does the work and breaks
    the connection before the answer; `slow` waits `seconds` first; `hang` waits until the server is closed.
    """

    what: str
    kind: str
    times: int = 1
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "trouble"
    seconds: float = 0.0
    met: int = 0


class Refusal(Exception):
    """An answer other than the one that was hoped for."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class HubServer:
    """The Hub and its storage, on two ports of this machine."""

    def __init__(self, token: str = TOKEN, user: str = USER, chunk: int = 0, page: int = 1000) -> None:
        self.token, self.user = token, user
        self.chunk, self.page = (
            chunk,
            page,
        )  # bytes of a part of a large upload (0: one part); entries of a page
        self.creation_limit: int | None = None  # repositories per `creation_window` seconds
        self.creation_window = 86400.0
        self.limit_message = "You have been rate-limited; you can retry this action in about 4 hours."
        self.limit_headers: dict[str, str] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.corrupted: set[str] = set()
        self.seen: list[Seen] = []
        self.created: list[str] = []
        self.created_at: list[float] = []
        self.troubles: list[Trouble] = []
        self.lock = threading.RLock()
        self.news = threading.Condition(self.lock)
        self.closed = threading.Event()
        self.hub, self.store = self._listen(storage=False), self._listen(storage=True)

    def _listen(self, storage: bool) -> ThreadingHTTPServer:
        handler = type("Handler", (Handler,), {"server_of": self, "storage": storage})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed.set()
        for server in (self.hub, self.store):
            server.shutdown()
            server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.hub.server_address[1]}"

    @property
    def storage(self) -> str:
        return f"http://127.0.0.1:{self.store.server_address[1]}"

    def environment(self, home: object) -> dict[str, str]:
        """What a process that is to use this Hub needs in its environment; `home` keeps its cache."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    # --- what a test puts in and looks at ---

    def add_repo(
        self, repo: str, files: dict[str, bytes], kind: str = "model", private: bool = False
    ) -> Commit:
        """A repository with these files, as if somebody had published it."""
        made = self.repos[kind, repo] = Repo(kind, repo, private)
        return made.commit("as it was", {name: self._entry(name, data) for name, data in files.items()})

    def add_commit(self, repo: str, files: dict[str, bytes], kind: str = "model", tag: str = "") -> Commit:
        """One more commit, which replaces these files."""
        there = self.repos[kind, repo]
        new = {name: self._entry(name, data) for name, data in files.items()}
        commit = there.commit("a change", {**there.commits[-1].files, **new})
        if tag:
            there.tags[tag] = commit.oid
        return commit

    def _entry(self, name: str, data: bytes) -> Entry:
        lfs = self.is_lfs(name, len(data))
        if lfs:
            self.blobs[sha256(data)] = data
        return Entry(data, lfs)

    def is_lfs(self, name: str, size: int) -> bool:
        return size > 0 and (name.endswith(LFS_SUFFIXES) or size > LFS_SIZE)

    def corrupt(self, repo: str, name: str, kind: str = "model") -> None:
        """From now on this file is sent with other bytes of the same length; its metadata stay right."""
        self.corrupted.add(f"{kind} {repo} {name}")
        self.corrupted.add(sha256(self.repos[kind, repo].commits[-1].files[name].data))

    def heal(self) -> None:
        """Send every file as it is again."""
        self.corrupted.clear()

    def trouble(self, what: str, kind: str | int, times: int = 1, **options: Any) -> Trouble:
        """Misbehave; `what` is a kind of request as `seen` names it, or `any`."""
        with self.lock:
            self.troubles.append(Trouble(what, str(kind), times, **options))
            return self.troubles[-1]

    def wait_until_met(self, trouble: Trouble, timeout: float = 60.0) -> None:
        """Block until this trouble was met as often as it is to be."""
        with self.news:
            assert self.news.wait_for(lambda: trouble.met == trouble.times, timeout), "nobody met the trouble"

    def files(self, repo: str, kind: str = "model") -> dict[str, str]:
        """sha256 of every file there is now."""
        return {name: sha256(entry.data) for name, entry in self.repos[kind, repo].commits[-1].files.items()}

    def read(self, repo: str, name: str, kind: str = "model") -> bytes:
        return self.repos[kind, repo].commits[-1].files[name].data

    def writes(self, since: int = 0) -> list[Seen]:
        """Requests that change something, or prepare to."""
        return [each for each in self.seen[since:] if each.what in WRITES]

    def wait_for(self, what: str, count: int = 1, timeout: float = 60.0) -> None:
        """Block until so many requests of this kind were answered."""

        def there() -> bool:
            return sum(each.what == what for each in self.seen) >= count

        with self.news:
            assert self.news.wait_for(there, timeout), f"no {count} requests {what!r} within {timeout} s"


REPO = r"(?P<repo>[^/]+/[^/]+)"
API = rf"/api/(?P<kinds>models|datasets)/{REPO}"
FILE = rf"/(?:(?P<kinds>datasets)/)?{REPO}/resolve/(?P<rev>[^/]+)/(?P<name>.+)"
BLOB = r"/blob/(?P<oid>[0-9a-f]{64})"
SLUG = r"/api/collections/(?P<slug>[^/]+/[^/]+)"
ROUTES: tuple[tuple[str, str, str], ...] = (
    ("whoami", "GET", r"/api/whoami-v2"),
    ("create", "POST", r"/api/repos/create"),
    ("delete", "DELETE", r"/api/repos/delete"),
    ("yaml", "POST", r"/api/validate-yaml"),
    ("collections", "GET", r"/api/collections"),
    ("collect", "POST", r"/api/collections"),
    ("collect", "POST", rf"{SLUG}/items"),
    ("collect", "PATCH", SLUG),
    ("collections", "GET", SLUG),
    ("settings", "PUT", rf"{API}/settings"),
    ("preupload", "POST", rf"{API}/preupload/(?P<rev>[^/]+)"),
    ("commit", "POST", rf"{API}/commit/(?P<rev>[^/]+)"),
    ("paths", "POST", rf"{API}/paths-info/(?P<rev>[^/]+)"),
    ("tree", "GET", rf"{API}/tree/(?P<rev>[^/]+)(?:/(?P<name>.+))?"),
    ("refs", "GET", rf"{API}/refs"),
    ("info", "GET", rf"{API}/revision/(?P<rev>[^/]+)"),
    ("info", "GET", API),
    ("batch", "POST", rf"/(?:(?P<kinds>datasets)/)?{REPO}\.git/info/lfs/objects/batch"),
    ("complete", "POST", r"/lfs/complete/(?P<oid>[0-9a-f]{64})"),
    ("verify", "POST", r"/lfs/verify"),
    ("resolve", "GET", FILE),
    ("resolve", "HEAD", FILE),
)
STORAGE_ROUTES: tuple[tuple[str, str, str], ...] = (
    ("put", "PUT", rf"{BLOB}(?:/(?P<part>\d+))?"),
    ("get", "GET", BLOB),
    ("get", "HEAD", BLOB),
)


class Cut(Exception):
    """The connection is to be broken now."""


class Handler(BaseHTTPRequestHandler):
    """One connection; methods `do_<kind of request>` answer."""

    protocol_version = "HTTP/1.1"
    server_of: HubServer
    storage: bool
    timeout = 60
    wbufsize = -1  # an answer leaves as one piece: head and body apart would cost 40 ms each time
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        return None

    @property
    def hub(self) -> HubServer:
        return self.server_of

    def do_GET(self) -> None:
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.asked = unquote(url.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.status, self.body, self.sent = 0, b"", False
        what, found = self.route(url.path)
        trouble = self.next_trouble(what)
        try:
            self.work(what, found, trouble)
        except (Cut, ConnectionError, TimeoutError):
            self.status = 0
            self.break_off()
        with self.hub.news:
            path = f"{self.asked}?{url.query}" if url.query else self.asked
            self.hub.seen.append(
                Seen(
                    what,
                    self.command,
                    path,
                    self.status,
                    len(self.body),
                    "Authorization" in self.headers,
                    self.storage,
                )
            )
            self.hub.news.notify_all()

    def work(self, what: str, found: dict[str, str], trouble: Trouble | None) -> None:
        """Read, think and answer, or whatever trouble there is to be."""
        kind = trouble.kind if trouble else ""
        if kind in ("slow", "hang"):
            self.hub.closed.wait(trouble.seconds if kind == "slow" else None)
        self.halve, self.polite, self.lose = kind in ("cut", "short"), kind == "short", kind == "lost"
        self.read_body(half=self.halve)
        try:
            if kind.isdigit():
                raise Refusal(int(kind), trouble.message, **trouble.headers)
            self.check_token()
            with self.hub.lock:
                answer = getattr(self, f"answer_{what}")(**{name: v for name, v in found.items() if v})
            if answer is not None:
                self.send(200, answer)
        except Refusal as refusal:
            self.send(refusal.status, {"error": refusal.message}, refusal.headers)

    def route(self, path: str) -> tuple[str, dict[str, str]]:
        for what, method, pattern in STORAGE_ROUTES if self.storage else ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                return what, {name: unquote(value or "") for name, value in found.groupdict().items()}
        return "unknown", {}

    def next_trouble(self, what: str) -> Trouble | None:
        with self.hub.lock:
            for each in self.hub.troubles:
                wanted = each.what in (what, "any") and re.search(each.path, self.asked)
                if wanted and each.met < each.times:
                    each.met += 1
                    self.hub.news.notify_all()
                    return each
        return None

    # --- bytes in, bytes out ---

    def read_body(self, half: bool) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
                if half:
                    raise Cut
            self.rfile.readline()
            return
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length // 2 if half else length)
        if half and length:
            raise Cut

    def send(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        if self.lose:
            raise Cut
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.status = status
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        headers |= {"X-Request-Id": f"request-{len(self.hub.seen)}"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if self.halve else data)
        if self.halve:
            raise Cut

    halve = lose = polite = False

    def break_off(self) -> None:
        """Reset the connection instead of closing it politely."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.wfile.flush()
        if not self.polite:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.rfile.close()
        self.wfile = open("/dev/null", "wb")  # noqa: SIM115  # the base class flushes it once more

    # --- who asks, and what for ---

    def check_token(self) -> None:
        given = self.headers.get("Authorization")
        if given is not None and given != f"Bearer {self.hub.token}":
            raise Refusal(401, "Invalid credentials in Authorization header")

    @property
    def known(self) -> bool:
        return "Authorization" in self.headers

    def need_token(self) -> None:
        if not self.known:
            raise Refusal(401, "Invalid username or password.")

    def payload(self) -> dict:
        return json.loads(self.body)

    def repo(self, kinds: str, repo: str) -> Repo:
        found = self.hub.repos.get((KINDS[kinds], repo))
        if found is None or (found.private and not self.known):
            raise Refusal(404 if self.known else 401, "Repository not found", "RepoNotFound")
        return found

    def commit_of(self, kinds: str, repo: str, rev: str) -> tuple[Repo, Commit]:
        there = self.repo(kinds, repo)
        commit = there.find(rev)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return there, commit

    def own(self, namespace: str) -> None:
        self.need_token()
        if namespace != self.hub.user:
            raise Refusal(403, f"You don't have the rights to write under the namespace {namespace!r}")

    def answer_unknown(self) -> None:
        raise Refusal(404, f"no such route: {self.command} {self.asked}")

    def answer_whoami(self) -> dict:
        self.need_token()
        auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
        return {"type": "user", "id": "1", "name": self.hub.user, "orgs": [], "auth": auth}

    # --- repositories ---

    def answer_create(self) -> dict:
        asked = self.payload()
        self.own(asked.get("organization") or self.hub.user)
        kind, name = asked.get("type") or "model", f"{self.hub.user}/{asked['name']}"
        url = f"{self.hub.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.hub.repos:
            self.send(409, {"error": f"You already created this {kind} repo", "url": url})
            return None
        limit, since = self.hub.creation_limit, time.monotonic() - self.hub.creation_window
        if limit is not None and sum(at > since for at in self.hub.created_at) >= limit:
            raise Refusal(429, self.hub.limit_message, **self.hub.limit_headers)
        if not re.fullmatch(r"[\w.-]{1,96}", asked["name"]) or re.search(
            r"--|\.\.|^[-.]|[-.]$", asked["name"]
        ):
            raise Refusal(400, f"Invalid repo name: {name}")
        made = self.hub.repos[kind, name] = Repo(kind, name, asked.get("visibility") == "private")
        made.commit("initial commit", {".gitattributes": Entry(b"*.safetensors filter=lfs\n", False)})
        self.hub.created.append(f"{kind} {name}")
        self.hub.created_at.append(time.monotonic())
        return {"url": url, "id": secrets.token_hex(12), "name": name}

    def answer_delete(self) -> dict:
        asked = self.payload()
        self.own(asked.get("organization") or self.hub.user)
        self.hub.repos.pop((asked.get("type") or "model", f"{self.hub.user}/{asked['name']}"))
        return {}

    def answer_settings(self, kinds: str, repo: str) -> dict:
        self.own(repo.partition("/")[0])
        asked = self.payload()
        private = asked["visibility"] == "private" if "visibility" in asked else asked["private"]
        self.repo(kinds, repo).private = private
        return {"private": private}

    def answer_info(self, kinds: str, repo: str, rev: str = "main") -> dict:
        there, commit = self.commit_of(kinds, repo, rev)
        siblings = [{"rfilename": name} for name in commit.files]
        if self.query.get("blobs"):
            siblings = [
                {"rfilename": name, "size": len(entry.data), "blobId": entry.oid}
                | ({"lfs": self.lfs(entry, "sha256")} if entry.lfs else {})
                for name, entry in commit.files.items()
            ]
        names = {"_id": "1", "id": there.id, "author": there.id.partition("/")[0], "sha": commit.oid}
        times = {"lastModified": DATE, "createdAt": DATE, "private": there.private, "gated": False}
        return (
            names | times | {"disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
        )

    def lfs(self, entry: Entry, oid: str) -> dict:
        return {oid: sha256(entry.data), "size": len(entry.data), "pointerSize": len(entry.pointer)}

    def file_info(self, name: str, entry: Entry) -> dict:
        plain = {"type": "file", "oid": entry.oid, "size": len(entry.data), "path": name}
        return plain | ({"lfs": self.lfs(entry, "oid")} if entry.lfs else {}) | self.last_commit()

    def last_commit(self) -> dict:
        if self.query.get("expand") not in ("True", "true", "1"):
            return {}
        return {"lastCommit": {"id": "0" * 40, "title": "a commit", "date": DATE}}

    def folders(self, commit: Commit) -> dict[str, str]:
        """Every folder of a commit and a name for its content."""
        found: dict[str, list[str]] = collections.defaultdict(list)
        for name in commit.files:
            parts = name.split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                found["/".join(parts[:depth])].append(commit.files[name].oid)
        return {name: git_sha1("".join(oids).encode()) for name, oids in found.items()}

    def answer_tree(self, kinds: str, repo: str, rev: str, name: str = "") -> None:
        _, commit = self.commit_of(kinds, repo, rev)
        folders = self.folders(commit)
        if name and name not in folders:
            raise Refusal(404, f"{name} does not exist on {rev!r}", "EntryNotFound")
        rows = [{"type": "directory", "oid": oid, "size": 0, "path": path} for path, oid in folders.items()]
        rows += [self.file_info(path, entry) for path, entry in commit.files.items()]
        opening = f"{name}/" if name else ""
        deep = self.query.get("recursive") in ("True", "true", "1")
        rows = [row for row in rows if row["path"].startswith(opening) and row["path"] != name]
        rows = [row for row in rows if deep or "/" not in row["path"][len(opening) :]]
        start = int(self.query.get("cursor", 0))
        more = {}
        if start + self.hub.page < len(rows):
            query = f"recursive={deep}&cursor={start + self.hub.page}"
            more = {"Link": f'<{self.hub.endpoint}{quote(self.asked)}?{query}>; rel="next"'}
        self.send(200, rows[start : start + self.hub.page], more)

    def answer_paths(self, kinds: str, repo: str, rev: str) -> list:
        _, commit = self.commit_of(kinds, repo, rev)
        if "json" in self.headers.get("Content-Type", ""):
            wanted = self.payload()["paths"]
        else:
            form = parse_qs(self.body.decode())
            wanted = form.get("paths", [])
            self.query |= {"expand": form.get("expand", ["false"])[-1]}
        folders = self.folders(commit)
        found = [self.file_info(name, commit.files[name]) for name in wanted if name in commit.files]
        found += [{"type": "directory", "oid": folders[n], "path": n} for n in wanted if n in folders]
        return found

    def answer_refs(self, kinds: str, repo: str) -> dict:
        there = self.repo(kinds, repo)
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": there.commits[-1].oid}
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in there.tags.items()]
        return {"branches": [main], "converts": [], "tags": tags}

    # --- uploads ---

    def answer_yaml(self) -> dict:
        content = self.payload()["content"]
        block = re.match(r"---\n(.*?\n)---\n", content, re.DOTALL)
        try:
            meta = yaml.safe_load(block.group(1)) if block else {}
            problem = "" if isinstance(meta, dict) else "the metadata is no mapping"
        except yaml.YAMLError as error:
            problem = str(error)
        if problem:
            self.send(400, {"error": "bad metadata", "errors": [{"message": problem}], "warnings": []})
            return None
        warnings = [] if block else [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": warnings}

    def answer_preupload(self, kinds: str, repo: str, rev: str) -> dict:
        self.need_token()
        _, commit = self.commit_of(kinds, repo, rev)
        files = []
        for each in self.payload()["files"]:
            name, there = each["path"], commit.files.get(each["path"])
            mode = "lfs" if self.hub.is_lfs(name, each["size"]) else "regular"
            row = {"path": name, "uploadMode": mode, "shouldIgnore": False}
            # For LFS files the Hub tells the sha256 of what is there.
            oid = {"oid": sha256(there.data) if there.lfs else there.oid} if there else {}
            files.append(row | oid)
        return {"files": files, "commitOid": commit.oid}

    def answer_batch(self, repo: str, kinds: str = "models") -> dict:
        self.need_token()
        self.repo(kinds, repo)
        return {"transfer": "basic", "objects": [self.upload(each) for each in self.payload()["objects"]]}

    def upload(self, each: dict) -> dict:
        oid, size = each["oid"], each["size"]
        if oid in self.hub.blobs:
            return {"oid": oid, "size": size}
        verify = {"href": f"{self.hub.endpoint}/lfs/verify", "header": {}}
        target = {"href": f"{self.hub.storage}/blob/{oid}"}
        if self.hub.chunk and size > self.hub.chunk:
            count = -(-size // self.hub.chunk)
            parts = {f"{n:05d}": f"{self.hub.storage}/blob/{oid}/{n}" for n in range(1, count + 1)}
            target = {
                "href": f"{self.hub.endpoint}/lfs/complete/{oid}",
                "header": {"chunk_size": str(self.hub.chunk)} | parts,
            }
        return {"oid": oid, "size": size, "actions": {"upload": target, "verify": verify}}

    def answer_put(self, oid: str, part: str = "") -> None:
        if part:
            self.hub.parts[oid, int(part)] = self.body
        elif sha256(self.body) != oid:
            raise Refusal(400, "the content is not what was announced")
        else:
            self.hub.blobs[oid] = self.body
        self.send(200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def answer_complete(self, oid: str) -> dict:
        numbers = [part["partNumber"] for part in self.payload()["parts"]]
        data = b"".join(self.hub.parts[oid, number] for number in numbers)
        if sha256(data) != oid:
            raise Refusal(400, "the parts are not what was announced")
        self.hub.blobs[oid] = data
        return {"success": True}

    def answer_verify(self) -> dict:
        asked = self.payload()
        if len(self.hub.blobs.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(404, "no such object")
        return {"success": True}

    def answer_commit(self, kinds: str, repo: str, rev: str) -> dict:
        self.own(repo.partition("/")[0])
        there, parent = self.commit_of(kinds, repo, rev)
        rows = [json.loads(line) for line in self.body.splitlines()]
        header = rows[0]["value"]
        if header.get("parentCommit", parent.oid) != parent.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for row in rows[1:]:
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = Entry(base64.b64decode(value["content"]), False)
            elif row["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise Refusal(400, f"LFS object {value['oid']} was never uploaded")
                files[value["path"]] = Entry(self.hub.blobs[value["oid"]], True)
            elif row["key"] == "deletedFile":
                del files[value["path"]]
            elif row["key"] == "deletedFolder":
                files = {n: e for n, e in files.items() if not n.startswith(value["path"].rstrip("/") + "/")}
        made = there.commit(header["summary"], files)
        url = f"{self.hub.endpoint}/{repo}/commit/{made.oid}"
        return {"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""}

    # --- downloads ---

    def answer_resolve(self, repo: str, rev: str, name: str, kinds: str = "models") -> None:
        there, commit = self.commit_of(kinds, repo, rev)
        commit_header = {"X-Repo-Commit": commit.oid}
        entry = commit.files.get(name)
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", **commit_header)
        linked = {"Accept-Ranges": "bytes", "Cache-Control": "no-cache"}
        if entry.lfs:
            linked |= {"X-Linked-Etag": f'"{sha256(entry.data)}"', "X-Linked-Size": str(len(entry.data))}
            self.hub.blobs[sha256(entry.data)] = entry.data
            target = {"Location": f"{self.hub.storage}/blob/{sha256(entry.data)}"}
            self.send(302, b"", commit_header | linked | target)
            return
        data = self.spoil(f"{there.kind} {there.id} {name}", entry.data)
        self.send_file(data, commit_header | linked | {"ETag": f'"{entry.oid}"'})

    def answer_get(self, oid: str) -> None:
        data = self.hub.blobs.get(oid)
        if data is None:
            raise Refusal(404, "no such object")
        self.send_file(self.spoil(oid, data), {"ETag": f'"{oid}"'})

    def spoil(self, key: str, data: bytes) -> bytes:
        return bytes(byte ^ 1 for byte in data) if key in self.hub.corrupted else data

    def send_file(self, data: bytes, headers: dict[str, str]) -> None:
        headers = {"Content-Type": "application/octet-stream"} | headers
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self.send_length(200, data, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        headers |= {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self.send_length(206, data[first : last + 1], headers)

    def send_length(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send(status, data, headers)

    # --- collections ---

    def answer_collections(self, slug: str = "") -> Any:
        if slug:
            found = self.hub.collections.get(slug)
            if found is None or (found["private"] and not self.known):
                raise Refusal(404, "Collection not found")
            return found
        owner = self.query.get("owner")
        rows = [each for each in self.hub.collections.values() if each["owner"] == owner]
        seen = [each for each in rows if self.known or not each["private"]]
        # As the Hub does it: a list of collections shows no more than four items of each, and no position.
        listed = [{name: each[name] for name in each if name != "position"} for each in seen]
        return [{**each, "items": each["items"][:4]} for each in listed]

    def answer_collect(self, slug: str = "") -> Any:
        asked = self.payload()
        self.own(asked["namespace"] if not slug else slug.partition("/")[0])
        if self.command == "PATCH":
            self.hub.collections[slug] |= asked
            return {"data": self.hub.collections[slug]}
        if not slug:
            return self.create_collection(asked)
        there = self.hub.collections.get(slug)
        if there is None:
            raise Refusal(404, "Collection not found")
        item = asked["item"]
        if (item["type"], item["id"]) not in self.hub.repos:
            raise Refusal(404, "no such item")
        if any((each["type"], each["id"]) == (item["type"], item["id"]) for each in there["items"]):
            raise Refusal(409, "Item already in collection")
        there["items"].append({"_id": secrets.token_hex(12), **item, "position": len(there["items"])})
        return there

    def create_collection(self, asked: dict) -> Any:
        owner, title = asked["namespace"], asked["title"]
        words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        for slug, each in self.hub.collections.items():
            if each["owner"] == owner and each["title"] == title:
                self.send(409, {"error": "This collection already exists", "slug": slug})
                return None
        slug = f"{owner}/{words}-{secrets.token_hex(12)}"
        plain = {
            "slug": slug,
            "title": title,
            "owner": owner,
            "items": [],
            "lastUpdated": DATE,
            "position": 0,
        }
        plain |= {"private": asked.get("private", False), "theme": "green", "upvotes": 0}
        self.hub.collections[slug] = plain | {"description": asked.get("description", "")}
        return self.hub.collections[slug]
