"""Receipts: what says that a job of the grid is done, and where one stands.

Ground layer. A receipt names the identity of all that its job made and of the receipts it started from:
content decides, and no clock. It vouches for no file: the notebooks check theirs when they read them.
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lib import config, files, paths, store
from lib.errors import MissingInput, StudyError
from lib.planning import Job

SCHEMA = "subliminal-scaling/receipt/1"
LOST = "lost in training"  # a student that diverged is finished, and nobody can ask it
STATES = ("done", "running", "failed", "open")


def describe_results(job: Job) -> dict[str, str]:
    """The identity of each result of a job; what is not there is named in the error."""
    if job.stage == "analyse":
        tables = {path.name: path for path in sorted(paths.tables(job.study).glob("*.csv"))}
        page = paths.executed(job.study) / "report.html"
        if "transfer.csv" not in tables or not page.is_file():
            missing = page if "transfer.csv" in tables else paths.tables(job.study) / "transfer.csv"
            raise MissingInput(f"{job.name} left no {missing}")
        return {name: files.hash_file(path) for name, path in tables.items()}
    return {name: _find_identity(job, name, folder) for name, folder in list_folders(job).items()}


def list_folders(job: Job) -> dict[str, Path]:
    """The folders with a manifest that a job fills, by `animal/seed`."""
    if job.stage == "pretrain":
        return {job.label: paths.built_base(job.part or "standard", job.label)}
    cells = dict.fromkeys(job.cells)
    if job.stage == "evaluate" and not job.part:  # a base's only evaluation asks its untuned model too
        cells |= {(config.UNTUNED, 0): None}
    return {
        f"{animal}/s{seed}": paths.artifact(job.study, job.stage, job.label, animal, seed)
        for animal, seed in cells
    }


def _find_identity(job: Job, name: str, folder: Path) -> str:
    manifest = store.read_manifest(folder)
    if manifest is None and job.stage == "evaluate":
        student = store.read_manifest(_student_folder(job, name))
        if student is not None and "diverged" in student.counts:
            return f"{LOST}: {student.identity}"
    if manifest is None:
        raise MissingInput(f"{job.name} left no finished {name} in {folder}")
    if job.stage == "evaluate" and not files.has_document(
        paths.evaluation(job.study, job.label, *_split_cell(name))
    ):
        raise MissingInput(f"{job.name}: the evaluation of {name} is gone from results/")
    return manifest.identity


def _student_folder(job: Job, name: str) -> Path:
    return paths.artifact(job.trainer or job.study, "finetune", job.label, *_split_cell(name))


def _split_cell(name: str) -> tuple[str, int]:
    animal, _, seed = name.partition("/s")
    return animal, int(seed)


# --- receipts -------------------------------------------------------------------------------------


def write_receipt(job: Job, needs: Sequence[Job], **told: Any) -> dict[str, Any]:
    """Say that a job is done, last of all; refused where anything it should have made is missing.

    `told` is for people (how long it took, what it said) and no part of what the receipt vouches for.
    """
    results = describe_results(job)
    receipt = {
        "schema": SCHEMA,
        "job": job.name,
        "asked": job.asked,
        "results": results,
        "needs": {need.name: _read_content(need) for need in needs},
        "content": files.hash_object(results),
        **told,
    }
    files.write_json(job.receipt, receipt)
    with contextlib.suppress(OSError):
        failure_path(job).unlink()
    return receipt


def _read_content(job: Job) -> str:
    """What a job's receipt vouches for; empty where there is none or it cannot be read."""
    receipt = read_receipt(job)
    return str(receipt["content"]) if receipt else ""


def read_receipt(job: Job) -> dict[str, Any] | None:
    """A job's receipt, or None: one that was cut short is none."""
    try:
        receipt = files.read_json(job.receipt)
    except (OSError, StudyError):
        return None
    whole = isinstance(receipt, dict) and {"schema", "job", "asked", "results", "needs", "content"} <= set(
        receipt
    )
    return receipt if whole and receipt["schema"] == SCHEMA and receipt["job"] == job.name else None


def is_done(job: Job, jobs: Mapping[str, Job]) -> bool:
    """Whether there is a receipt of these settings, what it names, and the receipts that it started from."""
    receipt = read_receipt(job)
    if receipt is None or receipt["asked"] != job.asked:
        return False
    if {name: _read_content(jobs[name]) for name in job.needs} != receipt["needs"]:
        return False
    try:
        return describe_results(job) == receipt["results"]
    except StudyError:
        return False


def sweep(jobs: Sequence[Job]) -> list[str]:
    """Take away every receipt that no longer holds; the names of their jobs, which then run again."""
    known = {job.name: job for job in jobs}
    stale = []
    for job in jobs:
        if job.receipt.exists() and not is_done(job, known):
            job.receipt.unlink(missing_ok=True)
            stale.append(job.name)
    return stale


# --- work -----------------------------------------------------------------------------------------


def failure_path(job: Job) -> Path:
    """Why a job failed the last time it ran."""
    return job.receipt.with_suffix(".failed")


def lock_path(job: Job) -> Path:
    return job.receipt.with_suffix(".lock")


@contextlib.contextmanager
def locked(job: Job) -> Iterator[IO[str]]:
    """The right to work on a job; waits, saying so, while another process has it. Death gives it back."""
    path = lock_path(job)
    with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{job.name} is at work already ({_read_owner(path)}); waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield file


def _read_owner(path: Path) -> str:
    return path.read_text(errors="replace").strip() or "by whom is not said"


def is_running(job: Job) -> bool:
    """Whether a process has the job's lock."""
    try:
        with open(lock_path(job), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def find_state(job: Job, jobs: Mapping[str, Job]) -> str:
    """One of STATES; a job that failed and is being tried again is running."""
    if is_done(job, jobs):
        return "done"
    if is_running(job):
        return "running"
    return "failed" if failure_path(job).exists() else "open"
