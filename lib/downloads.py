"""Files of one repository of the Hugging Face Hub in its usual cache, every one checked after its download.

Models layer. Takes safetensors and what a tokenizer needs, never code. Knows nothing of sizes and stages:
lib.bases says what is wanted and keeps the record of it.
"""

import contextlib
import fnmatch
import hashlib
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import files
from lib.errors import BadParameter, DamagedFile, MissingInput, NotAvailable, StorageFailed, StudyError
from lib.progress import Progress

WANTED = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
    *("merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("chat_template.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
    *("LICENSE", "LICENSE.*"),
)
NEEDED = ("config.json", "tokenizer_config.json")
MAY_NAME_CODE = ("config.json", "tokenizer_config.json")
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack")
CONNECTIONS = 4  # files at a time
TRIES, PAUSE = 4, 1.0  # of a file whose connection breaks; seconds before the second try, doubled each time
LEFTOVER_AGE = 3600.0  # seconds after which a half-written file of the cache belongs to nobody
MB = 10**6


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub describes it: LFS files by sha256, small ones by the sha1 that git gives a blob."""

    name: str
    size: int
    sha256: str = ""
    blob: str = ""


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository and those of its files that are wanted."""

    source: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def folder(self) -> Path:
        """Where the cache keeps this commit."""
        return _storage(self.source) / "snapshots" / self.commit

    def path(self, name: str) -> Path:
        """Where the cache keeps a file of it."""
        return self.folder / name


# --- what there is ------------------------------------------------------------------------------


def resolve(source: str, revision: str) -> Snapshot:
    """The commit that a branch, tag or commit means now, and its files: from the Hub, or where it cannot be
    reached from a cache that was filled elsewhere."""
    _hush()
    from huggingface_hub import HfApi, constants

    asked = {"revision": revision, "files_metadata": True, "timeout": constants.HF_HUB_ETAG_TIMEOUT}
    try:
        found = _repeat(lambda: HfApi().model_info(source, **asked))
    except _errors() as error:
        cached = _find_cached(source, revision) if _is_unreachable(error) else None
        if cached is None:
            raise explain(error, source, revision) from error
        print(f"the Hub cannot be reached: taking {source} from the cache as it is", flush=True)
        return cached
    names = [each.rfilename for each in found.siblings]
    listed = (
        RemoteFile(each.rfilename, each.size, each.lfs.sha256 if each.lfs else "", each.blob_id or "")
        for each in sorted(found.siblings, key=lambda each: each.rfilename)
        if _is_wanted(each.rfilename)
    )
    return _checked(Snapshot(source, found.sha, tuple(listed)), names)


def _is_wanted(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in WANTED)


def _checked(snapshot: Snapshot, names: Iterable[str]) -> Snapshot:
    """Refuse a repository without safetensors, or without what a chat model needs beside them."""
    there = [each.name for each in snapshot.files]
    if not any(name.endswith(".safetensors") for name in there):
        other = [name for name in names if any(fnmatch.fnmatchcase(name, each) for each in OTHER_WEIGHTS)]
        has = f"has its weights only as {', '.join(other[:3])}" if other else "holds no weights"
        raise NotAvailable(
            f"{snapshot.source} at {snapshot.commit[:12]} {has}; only safetensors are loaded, since other "
            "formats can run code. Choose a revision that has them with -p revision"
        )
    missing = [name for name in NEEDED if name not in there]
    if missing:
        raise NotAvailable(
            f"{snapshot.source} at {snapshot.commit[:12]} lacks {', '.join(missing)}: it is no chat model "
            "that transformers can load; choose another revision with -p revision"
        )
    return snapshot


def _find_cached(source: str, revision: str) -> Snapshot | None:
    """What the cache holds of a revision, where it is whole; its blobs are named by their hashes."""
    ref = _storage(source) / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    folder = _storage(source) / "snapshots" / commit
    found = []
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        if _is_wanted(path.name) and path.is_file():
            name = Path(os.readlink(path)).name if path.is_symlink() else ""
            sha256, blob = (name, "") if len(name) == 64 else ("", name)
            found.append(RemoteFile(path.name, path.stat().st_size, sha256, blob))
    names = {each.name for each in found}
    index = folder / "model.safetensors.index.json"
    shards = set(files.read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    whole = names >= shards and names >= set(NEEDED)
    return _checked(Snapshot(source, commit, tuple(found)), names) if whole else None


def find_broken(folder: Path, wanted: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Files that are not there or have another size: a look, no reading of gigabytes."""
    return [each for each in wanted if _size(folder / each.name) != each.size]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


# --- fetching -----------------------------------------------------------------------------------


def fetch(snapshot: Snapshot) -> dict[str, str]:
    """Have every file in the cache, whole; returns the sha256 of each.

    Small files come first, so that a repository that brings code of its own is refused before its weights
    are paid for. What is there already is checked, not fetched; a file that is damaged is fetched once more.
    """
    _hush()
    small = [each for each in snapshot.files if not each.name.endswith(".safetensors")]
    weights = [each for each in snapshot.files if each.name.endswith(".safetensors")]
    found = _fetch_checked(snapshot, small)
    for name in MAY_NAME_CODE:
        _refuse_code(snapshot, name)
    return found | _fetch_checked(snapshot, weights)


def _fetch_checked(snapshot: Snapshot, wanted: Sequence[RemoteFile]) -> dict[str, str]:
    _download(snapshot, wanted)
    found = _hash(snapshot, wanted)
    damaged = [each for each in wanted if not found[each.name].agrees]
    for each in damaged:
        print(f"{each.name} is not what the Hub says: fetching it once more", flush=True)
        drop(snapshot.path(each.name))
    if damaged:
        _download(snapshot, damaged)
        found |= _hash(snapshot, damaged)
    for each in damaged:
        if not found[each.name].agrees:
            drop(snapshot.path(each.name))
            raise DamagedFile(
                f"{each.name} of {snapshot.source} came damaged twice: its {found[each.name].kind} should be "
                f"{found[each.name].expected} and is {found[each.name].got}. It was removed; run the same "
                "command again, and if it stays damaged, look at the mirror (HF_ENDPOINT) or proxy in use"
            )
    return {name: checked.sha256 for name, checked in found.items()}


def _refuse_code(snapshot: Snapshot, name: str) -> None:
    """A model that needs code of its own repository is refused: that code would run here."""
    document = files.read_json(snapshot.path(name)) if snapshot.path(name).is_file() else {}
    if isinstance(document, dict) and document.get("auto_map"):
        raise NotAvailable(
            f"{snapshot.source} at {snapshot.commit[:12]} wants to run its own code ({name} has auto_map: "
            f"{json.dumps(document['auto_map'])[:120]}); that is never done here. Choose another revision"
        )


def drop(path: Path) -> None:
    """Remove a file of the cache: its name and the blob behind it."""
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    for each in (path, blob.resolve(), blob):
        with contextlib.suppress(FileNotFoundError):
            each.unlink()


@dataclass(frozen=True)
class _Checked:
    """What a file's bytes are, and what the Hub says they should be."""

    sha256: str
    kind: str
    expected: str
    got: str

    @property
    def agrees(self) -> bool:
        return self.got == self.expected


def _hash(snapshot: Snapshot, wanted: Sequence[RemoteFile]) -> dict[str, _Checked]:
    """Read every file through, several at a time: hashing lets other threads run."""
    total = sum(each.size for each in wanted)
    with Progress("MB checked", _mb(total)) as progress, ThreadPoolExecutor(CONNECTIONS) as pool:
        found = {}
        checks = pool.map(lambda each: _check(snapshot.path(each.name), each), wanted)
        for each, checked in zip(wanted, checks, strict=True):
            found[each.name] = checked
            if total > 1000 * MB:
                progress.advance(each.name, each.size // MB)
    return found


def _check(path: Path, wanted: RemoteFile) -> _Checked:
    sha256 = files.hash_file(path)
    if wanted.sha256:
        return _Checked(sha256, "sha256", wanted.sha256, sha256)
    if wanted.blob:
        data = path.read_bytes()  # no LFS file: small
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        return _Checked(sha256, "git sha1", wanted.blob, blob)
    size = path.stat().st_size
    return _Checked(sha256, "size", str(wanted.size), str(size))


def _download(snapshot: Snapshot, wanted: Sequence[RemoteFile]) -> None:
    """Fetch what the cache lacks, some files at a time, and tell how far it is."""
    for each in find_broken(snapshot.folder, wanted):
        drop(snapshot.path(each.name))  # of the wrong size: the cache would take it for whole
    missing = find_broken(snapshot.folder, wanted)
    if not missing:
        return
    _sweep(snapshot.source)
    total = sum(each.size for each in missing)
    _check_disk(snapshot.source, total)
    fetcher = _Fetcher(snapshot, missing)
    with Progress("MB fetched", _mb(total)) as progress, fetcher:
        while fetcher.wait(1.0):
            done = min(_mb(fetcher.bytes_here()), _mb(total))
            if total > 20 * MB:
                progress.advance(snapshot.source, done - progress.done)
        if total > 20 * MB and progress.done < progress.total:
            progress.advance(snapshot.source, progress.total - progress.done)
    if fetcher.error is not None:
        with files.storage_errors(snapshot.folder, total):
            raise fetcher.error
    left = find_broken(snapshot.folder, missing)
    if left:
        raise DamagedFile(
            f"{left[0].name} of {snapshot.source} came with {max(_size(snapshot.path(left[0].name)), 0):,} "
            f"bytes and should have {left[0].size:,}; run the same command again"
        )


class _Fetcher:
    """Downloads in threads that die with the process: an interrupt stops at once, not after a file."""

    def __init__(self, snapshot: Snapshot, wanted: Sequence[RemoteFile]) -> None:
        self.snapshot, self.wanted = snapshot, wanted
        self.error: Exception | None = None
        self.waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        for each in wanted:
            self.waiting.put(each)
        self.stop = threading.Event()
        count = min(CONNECTIONS, len(wanted))
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def __enter__(self) -> "_Fetcher":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()

    def wait(self, seconds: float) -> bool:
        """Wait a little; False once all threads have ended."""
        end = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
        return any(thread.is_alive() for thread in self.threads)

    def bytes_here(self) -> int:
        """Bytes of the wanted files in the cache, whole or half-written."""
        blobs = _storage(self.snapshot.source) / "blobs"
        return sum(
            max((_size(path) for path in blobs.glob(f"{each.sha256 or each.blob}*")), default=0)
            for each in self.wanted
        )

    def _work(self) -> None:
        from huggingface_hub import hf_hub_download

        source, commit = self.snapshot.source, self.snapshot.commit
        while not self.stop.is_set():
            try:
                each = self.waiting.get_nowait()
            except queue.Empty:
                return
            try:
                _repeat(lambda name=each.name: hf_hub_download(source, name, revision=commit))
            except Exception as error:  # whatever it is, it belongs to the caller's thread
                known = isinstance(error, _errors())
                self.error = explain(error, source, commit) if known else error
                self.stop.set()


def _check_disk(source: str, needed: int) -> None:
    cache = _storage(source)
    standing = next(each for each in (cache, *cache.parents) if each.exists())
    free = shutil.disk_usage(standing).free
    if needed > free:
        raise StorageFailed(
            f"{source} needs {needed / 1e9:.1f} GB more in {cache.parent} and {free / 1e9:.1f} GB are free "
            "there; make room, or set HF_HOME to a larger disk. Nothing was fetched"
        )


def _sweep(source: str) -> None:
    """Remove half-written files that killed downloads left: no later download goes on with them."""
    for left in (_storage(source) / "blobs").glob("*.incomplete"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFTOVER_AGE:
                left.unlink()


# --- the client ---------------------------------------------------------------------------------


def _storage(source: str) -> Path:
    """The folder of a model in the client's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{source.replace('/', '--')}"


def _hush() -> None:
    """No bars of the client's own, which fill a notebook, and no warnings with signed addresses in them."""
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
        disable_progress_bars()


def _errors() -> tuple[type[Exception], ...]:
    """What the client raises: its own errors, and those of the HTTP library that it is built on."""
    from huggingface_hub import errors

    return (
        errors.HfHubHTTPError.__bases__[0],
        errors.HfHubHTTPError,
        errors.EntryNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.FileMetadataError,
        ConnectionError,
        TimeoutError,
    )


def _repeat(call: Any) -> Any:
    """The call's result, tried again where the connection broke or the Hub stumbled."""
    for number in range(TRIES):
        try:
            return call()
        except _errors() as error:
            if number == TRIES - 1 or not _may_pass(error):
                raise
        except OSError as error:  # a file that came short: the client says so in an OSError without number
            if error.errno is not None:
                raise
            if number == TRIES - 1:
                raise DamagedFile(
                    "a file of the Hub came short several times; run the same command again"
                ) from None
        time.sleep(PAUSE * 2**number)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it: the client wraps a failed connection."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _status(error: BaseException) -> int | None:
    for each in _causes(error):
        response = getattr(each, "response", None)
        if response is not None:
            return response.status_code
    return None


def _is_offline(error: BaseException) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    return any(isinstance(each, OfflineModeIsEnabled) for each in _causes(error))


def _may_pass(error: BaseException) -> bool:
    """Whether another try may help; what the client wraps as a missing entry it has tried again itself."""
    from huggingface_hub.errors import EntryNotFoundError

    return not _is_offline(error) and not isinstance(error, EntryNotFoundError) and _is_passing(error)


def _is_passing(error: BaseException) -> bool:
    status = _status(error)
    return status is None or status == 429 or status >= 500


def _is_unreachable(error: BaseException) -> bool:
    return _is_offline(error) or _is_passing(error)


def explain(error: BaseException, source: str, revision: str) -> StudyError:
    """What the client's error means and what to do; addresses and headers of requests stay out of it."""
    from huggingface_hub import constants, errors

    chain = tuple(_causes(error))
    status, hub = _status(error), constants.ENDPOINT
    what = f"{source} at {revision[:40]}"

    def has(kind: type) -> bool:
        return any(isinstance(each, kind) for each in chain)

    if _is_offline(error):
        return MissingInput(
            f"{what} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids fetching. "
            "Unset it and run again, or copy the cache of a machine that has it and point HF_HOME to it"
        )
    if has(errors.GatedRepoError):
        return NotAvailable(
            f"{what} is gated: accept its licence at {hub}/{source}, then log in with `hf auth login` or set "
            "HF_TOKEN, and run again"
        )
    if has(errors.RevisionNotFoundError):
        return BadParameter(
            f"{source} has no revision {revision!r}; -p revision takes a branch, a tag or a commit of "
            f"{hub}/{source}"
        )
    if has(errors.RepositoryNotFoundError) or status in (401, 403, 404):
        return NotAvailable(
            f"{hub} has no {source} for you (it answers {status}): if it is private or gated, log in with "
            "`hf auth login` or set HF_TOKEN; if HF_ENDPOINT names a mirror, the mirror may lack it"
        )
    if status is not None:
        return NotAvailable(
            f"{hub} answers {status} for {what}; what was fetched is kept: run the same command again later"
        )
    if has(errors.FileMetadataError):
        return NotAvailable(
            f"{hub} answers for {what} without size or hash of a file: a proxy or mirror in between "
            "(HF_ENDPOINT) changes what the Hub says; go around it and run again"
        )
    slow = any("Timeout" in type(each).__name__ for each in chain)
    patience = "give it longer with HF_HUB_DOWNLOAD_TIMEOUT=60 and HF_HUB_ETAG_TIMEOUT=60, " if slow else ""
    return NotAvailable(
        f"cannot fetch {what}: {hub} {'is too slow' if slow else 'cannot be reached, or broke off'} "
        f"({type(chain[-1]).__name__}). What was fetched is kept: {patience}run the same command again; or "
        "set HF_ENDPOINT to a mirror; or copy the cache of a machine that has it and point HF_HOME to it"
    )


def _mb(count: int) -> int:
    return max(1, round(count / MB))
