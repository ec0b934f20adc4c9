"""Runs and what vouches for them: manifests written last, resuming, the hash chain between stages.

Ground layer. A folder is done when its manifest says so and its files agree, never because it exists.
Must not know what a stage computes, nor spell a path. Files themselves are written and read by lib.files.
"""

import contextlib
import dataclasses
import datetime
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from lib.errors import BrokenLineage, ConfigMismatch, DamagedFile, MissingInput
from lib.files import (
    REPAIR,
    as_read_back,
    hash_file,
    hash_folder,
    hash_object,
    hash_read,
    read_json,
    read_jsonl,
    storage_errors,
    sync,
    write_json,
)
from lib.provenance import code_version, hardware, package_versions

SCHEMA = "subliminal-scaling/manifest/1"
MANIFEST = "manifest.json"
BEGUN = "begun.json"

# --- manifests --------------------------------------------------------------------------------


def config_record(config: Any) -> dict:
    """Every field of a stage's config, but those at the value that means nothing was set."""
    values = {field.name: (getattr(config, field.name), field) for field in dataclasses.fields(config)}
    return as_read_back(
        {name: value for name, (value, field) in values.items() if value != field.metadata.get("unset", ...)}
    )


def identity_record(config: Any) -> dict:
    """The fields that can change a result; knobs such as the device are left out."""
    named = {field.name for field in dataclasses.fields(config) if field.metadata.get("identity", True)}
    return {name: value for name, value in config_record(config).items() if name in named}


@dataclass(frozen=True)
class Manifest:
    """What a finished run is and how it came to be. `identity` is what downstream stages pin:
    stage, config, inputs and outputs, not when, where or with which code they were made."""

    schema: str
    stage: str
    config: dict
    knobs: dict
    inputs: dict[str, str]
    outputs: dict[str, str]
    counts: dict
    identity: str
    code: dict
    packages: dict
    hardware: dict
    started: str
    finished: str
    seconds: float

    @property
    def title(self) -> str:
        """`finetune 166k/wolf/s0 of study micro`."""
        return _title(self.stage, self.config)

    def expected_identity(self) -> str:
        """The identity recomputed from what the manifest says."""
        return _identity(self.stage, self.config, self.inputs, self.outputs)


def _identity(stage: str, config: dict, inputs: dict, outputs: dict) -> str:
    return hash_object({"stage": stage, "config": config, "inputs": inputs, "outputs": outputs})


def _title(stage: str, config: Mapping) -> str:
    cell = [str(config[name]) for name in ("size", "animal") if name in config]
    cell += [f"s{config['seed']}"] if "seed" in config else []
    study = f" of study {config['study']}" if "study" in config else ""
    return f"{stage} {'/'.join(cell)}".rstrip() + study


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished run, or None; one that was edited by hand is refused."""
    path = Path(folder) / MANIFEST
    if not os.path.lexists(path):
        return None
    record = read_json(path)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise DamagedFile(f"{path} is not a manifest of schema {SCHEMA!r}; {REPAIR}")
    content = record.pop("content", None)
    names = {field.name for field in dataclasses.fields(Manifest)}
    if set(record) != names:
        odd = ", ".join(sorted(names ^ set(record)))
        raise DamagedFile(f"{path} lacks fields or has unknown ones ({odd}); {REPAIR}")
    manifest = Manifest(**record)
    if manifest.identity != manifest.expected_identity() or content != hash_object(record):
        raise BrokenLineage(
            f"{path} was changed after it was written: its hashes do not match what it says; "
            f"restore it, or delete {folder} and run the {manifest.stage} stage again"
        )
    return manifest


def load_finished(folder: Path, missing: str) -> Manifest:
    """The manifest of an upstream run, its files verified; `missing` tells how to make it where it is not."""
    manifest = read_manifest(folder)
    if manifest is None:
        begun = " (it was begun, but is not finished)" if os.path.lexists(Path(folder) / BEGUN) else ""
        raise MissingInput(missing + begun)
    _check_outputs(Path(folder), manifest)
    return manifest


def _check_outputs(folder: Path, manifest: Manifest) -> None:
    for name, recorded in manifest.outputs.items():
        path = folder / name
        if not path.is_file():
            problem = "is missing"
        elif hash_file(path) != recorded:
            problem = f"is not what its manifest says{_find_damage(path)}"
        else:
            continue
        raise DamagedFile(f"{path} {problem}; delete {folder} and run the {manifest.stage} stage again")


def _find_damage(path: Path) -> str:
    """Where a file that was changed is broken, line and column; nothing where it still can be read."""
    readers = {".json": read_json, ".jsonl": read_jsonl}
    try:
        readers.get(path.suffix, hash_file)(path)
    except DamagedFile as error:
        return f" ({str(error).removesuffix(f'; {REPAIR}')})"
    return ""


# --- runs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One stage at work in its folder. `state` is `finished` (nothing to do), `resumed` or `fresh`."""

    folder: Path
    state: str
    config: Any
    inputs: dict[str, str]
    manifest: Manifest | None = None
    begun: dict = dataclasses.field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether this very run has written `name`, now or before it was interrupted.

        Files that lay in the folder when the run began do not count, unless it has rewritten them.
        """
        path, found = self.folder / name, self.begun.get("found", {})
        return path.is_file() and (name not in found or found[name] != hash_file(path))

    def start_clock(self) -> None:
        """Count seconds from now: a run is opened with all others of its stage and waits for its turn."""
        self.begun["attempt"] = time.time()
        write_json(self.folder / BEGUN, self.begun)

    def finish(self, outputs: Iterable[str], counts: Mapping) -> Manifest:
        """Hash the outputs and write the manifest, last of all."""
        names = [PurePath(name).as_posix() for name in outputs]
        record = {
            "stage": self.config.stage,
            "config": identity_record(self.config),
            "inputs": self.inputs,
            "outputs": hash_folder(self.folder, names),
        }
        for name in names:  # other libraries' savers do not sync
            with storage_errors(self.folder / name):
                sync(self.folder / name)
        knobs = {name: v for name, v in config_record(self.config).items() if name not in record["config"]}
        manifest = Manifest(
            schema=SCHEMA,
            **record,
            knobs=knobs,
            counts=as_read_back(counts),
            identity=_identity(**record),
            code=code_version(),
            packages=package_versions(),
            hardware=hardware(),
            started=self.begun["started"],
            finished=_now(),
            seconds=round(self.begun["seconds"] + time.time() - self.begun["attempt"], 1),
        )
        document = dataclasses.asdict(manifest)
        write_json(self.folder / MANIFEST, {**document, "content": hash_object(document)})
        with contextlib.suppress(OSError):  # with a manifest beside it nobody reads it
            (self.folder / BEGUN).unlink()
        return manifest


def open_run(folder: Path, config: Any, inputs: Mapping[str, str]) -> Run:
    """Find a run finished, resume it or begin it; refuse a folder that holds another one."""
    folder, inputs = Path(folder), dict(inputs)
    asked = {"stage": config.stage, "config": identity_record(config), "inputs": inputs}
    manifest = read_manifest(folder)
    if manifest is not None:
        _check_same(folder, dataclasses.asdict(manifest), asked)
        _check_outputs(folder, manifest)
        return Run(folder, "finished", config, inputs, manifest)
    begun = _read_begun(folder)
    if begun is not None:
        _check_same(folder, begun, asked)
        state, begun = "resumed", {**begun, "seconds": _seconds_so_far(folder, begun), "attempt": time.time()}
    else:
        found = hash_folder(folder) if folder.is_dir() else {}
        state = "fresh"
        begun = {**asked, "found": found, "started": _now(), "seconds": 0.0, "attempt": time.time()}
    write_json(folder / BEGUN, begun)  # a folder that cannot be written stops here, before any work
    return Run(folder, state, config, inputs, begun=begun)


def _read_begun(folder: Path) -> dict | None:
    path = folder / BEGUN
    if not os.path.lexists(path):
        return None
    begun = read_json(path)
    names = {"stage", "config", "inputs", "found", "started", "seconds", "attempt"}
    if not isinstance(begun, dict) or set(begun) != names:
        raise DamagedFile(f"{path} does not say what was begun here; delete {folder} and run its stage again")
    return begun


def _seconds_so_far(folder: Path, begun: Mapping) -> float:
    """Seconds of the attempts before: a killed one is counted up to the last file it wrote."""
    last = begun["attempt"]
    for each in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process may be renaming its temporary file
            last = max(last, each.stat().st_mtime)
    return round(begun["seconds"] + last - begun["attempt"], 1)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _check_same(folder: Path, there: Mapping, asked: Mapping) -> None:
    """Refuse when the run in the folder has another stage, config or inputs than the one asked for."""
    title = _title(there["stage"], there["config"])
    old, new = ({"stage": each["stage"], **each["config"]} for each in (there, asked))
    fields = _differences(old, new)
    if fields:
        raise ConfigMismatch(
            f"{folder} holds {title} with other settings: {'; '.join(fields)}. Ask for those settings, give "
            "the run another study name, or delete the folder to replace it"
        )
    old, new = ({name: value[:12] for name, value in each["inputs"].items()} for each in (there, asked))
    changed = _differences(old, new)
    if changed:
        raise BrokenLineage(
            f"{folder} holds {title}, made from other inputs than those there now: {'; '.join(changed)}. "
            "Give the run another study name, or delete the folder to make it from the inputs there now"
        )


def _differences(there: Mapping, asked: Mapping) -> list[str]:
    """`epochs: 3 there, 10 asked` for every field that differs."""
    names = [name for name in {**there, **asked} if there.get(name, ...) != asked.get(name, ...)]
    return [f"{name}: {_show(there, name)} there, {_show(asked, name)} asked" for name in names]


def _show(record: Mapping, name: str) -> str:
    return repr(record[name]) if name in record else "none"


# --- lineage ----------------------------------------------------------------------------------


def check_chain(manifest: Manifest, upstream: Mapping[str, Path]) -> None:
    """Refuse a run whose inputs have changed since; upstream folders that are not here are passed over."""
    check_inputs(manifest.title, manifest.inputs, upstream)


def check_inputs(title: str, inputs: Mapping[str, str], upstream: Mapping[str, Path]) -> None:
    """As check_chain, for any record of inputs; `title` names the result in the message."""
    for name, identity in inputs.items():
        source = read_manifest(upstream[name]) if name in upstream else None
        if source is not None and source.identity != identity:
            raise BrokenLineage(
                f"{title} was made from another {source.title} than the one in {upstream[name]} now: "
                f"{name} was {identity[:12]}, is {source.identity[:12]}; delete that result and run its stage"
            )


# --- sealed documents --------------------------------------------------------------------------


CIRCUMSTANCES = ("seconds", "code", "packages", "hardware")


def seal(document: Mapping) -> dict:
    """A copy whose lineage carries the hash of all else, for results that travel without a manifest.

    Seconds, code, packages and hardware stay out of the hash, as they do out of a manifest's identity: two
    runs that give the same result have the same seal.
    """
    lineage = {name: value for name, value in document.get("lineage", {}).items() if name != "content"}
    return {**document, "lineage": {**lineage, "content": hash_object(find_essence(document))}}


def find_essence(document: Mapping) -> dict:
    """What a seal vouches for."""
    lineage = document.get("lineage", {}).items()
    essence = {name: value for name, value in lineage if name not in (*CIRCUMSTANCES, "content")}
    return {**document, "lineage": essence}


def check_seal(document: Mapping, path: Path) -> None:
    """Refuse a sealed document that was changed after it was written."""
    lineage = document.get("lineage") if isinstance(document, Mapping) else None
    if not isinstance(lineage, Mapping) or "content" not in lineage:
        raise DamagedFile(f"{path} has no lineage.content, so nothing vouches for it; {REPAIR}")
    with contextlib.suppress(TypeError, ValueError):  # not as read from a file: only the long way knows it
        if hash_read(find_essence(document)) == lineage["content"]:
            return
    if seal(document)["lineage"]["content"] != lineage["content"]:
        raise DamagedFile(f"{path} was changed after it was written: its hash does not match; {REPAIR}")
