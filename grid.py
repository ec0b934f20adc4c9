"""A study's whole grid on Snakemake: `python grid.py plan|run|status STUDY [--profile laptop] [--gpus 8]`.

`plan` shows what would be done and what it takes, `run` does it, `status` tells from another shell how far it
is. lib.planning lists the jobs, workflow/Snakefile runs them, receipts say which are done. Anything may be
killed at any moment: the same command goes on from there.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from lib import files, forecast, paths, planning, receipts, resources
from lib.children import watched_command
from lib.errors import BadParameter, StudyError
from lib.planning import Job
from lib.terminal import clock, guarded, heed_signals, locked
from workflow import job as worker

PROFILES = paths.CODE / "workflow" / "profiles"
POLL = 0.5  # seconds between two looks at the receipts
GIGABYTES_PER_JOB = 2
ROOM = 10**6  # bytes without which not even a reason can be left
KEPT = "had finished"


# --- what is to be done -----------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """A study, how its jobs are cut and where they run."""

    study: str
    profile: str
    gpus: int
    group_hours: float
    cores: int | None = None  # jobs at a time on one machine; None: as many as it carries
    extra: tuple[str, ...] = ()  # for Snakemake

    def list_jobs(self) -> list[Job]:
        return planning.list_jobs(self.study, resources.read_costs(self.study), self.group_hours)

    @property
    def local(self) -> bool:
        """Whether its jobs run on this machine."""
        return self.settings.get("executor", "local") == "local"

    @property
    def settings(self) -> dict[str, Any]:
        return yaml.safe_load((PROFILES / self.profile / "config.yaml").read_text(encoding="utf-8"))

    @property
    def folder(self) -> Path:
        """Where Snakemake keeps its own things and the receipts of the study lie."""
        return paths.root() / "artifacts" / self.study / ".grid"


def ask_grid(
    study: str,
    *,
    profile: str = "",
    gpus: int = 0,
    group_hours: float = 0,
    jobs: int | None = None,
    extra: Sequence[str] = (),
) -> Grid:
    """What was asked; where it was not, as the study was run before, or what suits it and this machine."""
    known = sorted(path.parent.name for path in PROFILES.glob("*/config.yaml"))
    before = read_last(study)
    profile = profile or str(before.get("profile", "laptop"))
    if profile not in known:
        raise BadParameter(f"no profile {profile!r}; there are {', '.join(known)}")
    if before and gpus in (0, before.get("gpus")):
        group_hours = group_hours or float(before.get("group_hours", 0))
    gpus = gpus or int(before.get("gpus", 0)) or max(1, len(worker.list_gpus()))
    if not group_hours:
        group_hours, _ = forecast.find_group_hours(study, gpus, forecast.count_cores())
    return Grid(study, profile, gpus, group_hours, jobs, tuple(extra))


def last_path(study: str) -> Path:
    return paths.root() / "artifacts" / study / ".grid" / "grid.json"


def read_last(study: str) -> dict[str, Any]:
    """How the grid was run the last time: other numbers would group its jobs in another way."""
    try:
        last = files.read_json(last_path(study))
    except (OSError, StudyError):
        return {}
    return last if isinstance(last, dict) else {}


# --- doing it ---------------------------------------------------------------------------------


@dataclass
class Progress:
    """What is done of a plan, told in a line per job."""

    jobs: Sequence[Job]
    began: float = field(default_factory=time.monotonic)
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)  # seconds of each job that this run did

    def look(self) -> None:
        """Tell what has ended since the last look."""
        for job in self.jobs:
            if job.name in self.done:
                continue
            if job.receipt.exists():
                self.done.add(job.name)
                self.failed.pop(job.name, None)
                receipt = receipts.read_receipt(job) or {}
                self.took[job.name] = float(receipt.get("seconds", 0))
                self.tell(job, str(receipt.get("said", "")), self.took[job.name])
            elif job.name not in self.failed and (why := read_failure(job)):
                self.failed[job.name] = why["error"]
                self.tell(job, "FAILED", 0)

    def tell(self, job: Job, what: str, seconds: float) -> None:
        took = f"{clock(seconds)} of {clock(time.monotonic() - self.began)}"
        overall = f"{len(self.done)} of {len(self.jobs)} jobs{self.say_left()}"
        print(f"{job.name:<28} {what:<36} {took:>15}   {overall}", flush=True)

    def say_left(self) -> str:
        """Time left at the pace so far; nothing at first."""
        left, made = sum(self.expect().values()), sum(self.took.values())
        if not made or not left:
            return ""
        return f", about {clock((time.monotonic() - self.began) * left / made)} left"

    def expect(self) -> dict[str, float]:
        """Seconds of every job to come: as its kind took here, else as was measured, at the pace here."""
        alike: dict[Hashable, list[float]] = {}
        known = []  # seconds taken and planned
        for job in self.jobs:
            if seconds := self.took.get(job.name):
                alike.setdefault(find_kind(job), []).append(seconds)
                known += [(seconds, 60 * job.minutes)] if job.minutes else []
        pace = sum(took for took, _ in known) / sum(planned for _, planned in known) if known else 1.0
        means = {kind: sum(each) / len(each) for kind, each in alike.items()}
        ended = self.done | set(self.failed)
        to_come = [job for job in self.jobs if job.name not in ended]
        return {job.name: means.get(find_kind(job), 60 * pace * (job.minutes or 1.0)) for job in to_come}


def find_kind(job: Job) -> Hashable:
    """What jobs that take about as long share: stage, size, number of cells and point of a study's axes."""
    return job.stage, job.label.partition("-")[0], len(job.cells), job.axes


def read_failure(job: Job) -> dict[str, str] | None:
    """Why a job failed, as it wrote it down."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(receipts.failure_path(job).read_text(encoding="utf-8"))
    return None


def keep_table(grid: Grid) -> None:
    """The table of resources as it is now, for jobs of this run: another one would cut the plan otherwise."""
    files.write_text(table_path(grid), resources.table_path().read_text(encoding="utf-8"))


def table_path(grid: Grid) -> Path:
    return grid.folder / "resources.csv"


def run_grid(grid: Grid) -> int:
    """Every job that is not done; 1 where any failed."""
    worker.write_points(grid.study)
    jobs = grid.list_jobs()
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(locked(grid.study))
        for point in {job.study for job in jobs} - {grid.study}:
            stack.enter_context(locked(point))
        keep_table(grid)
        files.write_json(
            last_path(grid.study),
            {"gpus": grid.gpus, "group_hours": grid.group_hours, "profile": grid.profile},
        )
        receipts.sweep(jobs)
        for job in jobs:
            receipts.failure_path(job).unlink(missing_ok=True)
        done = {job.name for job in jobs if job.receipt.exists()}
        print(
            f"study {grid.study}: {len(jobs)} jobs, {len(done)} done already, on {say_where(grid)}",
            flush=True,
        )
        progress = Progress(jobs, done=set(done))
        code = run_snakemake(grid, progress, lock.fileno()) if len(done) < len(jobs) else 0
    missing = [job for job in jobs if job.name not in progress.done]
    if missing and not code:  # by targets, --omit-from and the like
        print(
            f"{len(progress.done)} of {len(jobs)} jobs are done; Snakemake was told to leave the others out"
        )
        return 0
    if missing:
        tell_missing(grid, missing, progress)
        return 1
    if code:
        print(f"Snakemake ended with {code} though every job is done; its log is {show(log_path(grid))}")
        return 1
    tell_answer(grid, jobs, nothing=len(done) == len(jobs), seconds=time.monotonic() - progress.began)
    return 0


def say_where(grid: Grid) -> str:
    where = f"profile {grid.profile}, planned for {grid.gpus} GPU{'s' * (grid.gpus > 1)}"
    return f"{where}, {count_cores(grid)} at a time" if grid.local else where


def count_cores(grid: Grid) -> int:
    """Jobs at a time on one machine: one per core as far as memory goes, and at least one per GPU."""
    if grid.cores:
        return grid.cores
    memory = psutil.virtual_memory().available // (GIGABYTES_PER_JOB * 2**30)
    return max(1, len(worker.list_gpus()), min(forecast.count_cores(), memory))


def run_snakemake(grid: Grid, progress: Progress, lock: int) -> int:
    """Snakemake over the plan until it ends; the grid's lock is its own as well."""
    log = log_path(grid)
    with files.storage_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        grid.folder.mkdir(parents=True, exist_ok=True)
        file = open(log, "wb")  # noqa: SIM115
    with file:
        process = subprocess.Popen(
            list_words(grid),
            cwd=paths.CODE,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C reaches the grid alone, and that ends them all
            pass_fds=(lock,),
        )
        try:
            while process.poll() is None:
                progress.look()
                time.sleep(POLL)
        except BaseException:
            stop(process, grid.local)
            raise
    progress.look()
    return process.returncode


def list_words(grid: Grid) -> list[str]:
    """Snakemake's command line: its profile, and what is known of this machine only now."""
    words = ["--snakefile", str(paths.CODE / "workflow" / "Snakefile"), "--directory", str(grid.folder)]
    config = [f"study={grid.study}", f"group_hours={grid.group_hours:g}", f"table={table_path(grid)}"]
    if grid.local:
        here = {"gpu": len(worker.list_gpus()), "mem_mb": psutil.virtual_memory().total // 10**6}
        words += ["--cores", str(count_cores(grid))]
        words += ["--resources", *(f"{name}={count}" for name, count in here.items())]
        config += [f"machine_gpus={here['gpu']}", f"machine_mem_mb={here['mem_mb']}"]
    # An option of one word comes last: others take all that follows, and `extra` may begin with a target.
    words += ["--config", *config, "--profile", str(PROFILES / grid.profile)]
    # Jobs on this machine end with their Snakemake; those of a cluster are the cluster's and go on.
    scheduler = worker.SCHEDULER if grid.local else ""
    return watched_command("snakemake", [*words, *grid.extra], scheduler)


def stop(process: subprocess.Popen, local: bool) -> None:
    """End Snakemake and its jobs; those of a cluster it cancels by itself, which takes a moment."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        if not local:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for each in (*root.children(recursive=True), root):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


# --- telling about it -------------------------------------------------------------------------


def log_path(grid: Grid) -> Path:
    """What Snakemake said."""
    return paths.executed(grid.study) / "logs" / "snakemake.log"


def show(path: Path) -> str:
    return os.path.relpath(path)


def tell_missing(grid: Grid, missing: Sequence[Job], progress: Progress) -> None:
    """What failed, in the notebook's words, and how to go on; what only waits for that is counted."""
    names = {job.name for job in missing}
    failed = [job for job in missing if not names & set(job.needs)]
    alike: dict[str, list[Job]] = {}
    for job in failed:
        note = read_failure(job) or {}
        error = note.get("error") or worker.find_told(job) or say_silent(grid, job)
        alike.setdefault(error, []).append(job)
    for error, (job, *others) in alike.items():
        more = f" and {len(others)} more in the same words" if others else ""
        print(f"\n{job.name}{more} failed:\n  " + error.replace("\n", "\n  "))
        print(f"retry it with\n  {retry_words(grid, job)}\nits log is {show(worker.log_path(job))}")
    waiting = len(missing) - len(failed)
    print(f"\n{len(progress.done)} of {len(progress.jobs)} jobs are done, {len(failed)} failed", end="")
    print(f", {waiting} wait for those. " if waiting else ". ", end="")
    print("What had finished stays; the same command goes on from there.")


def say_silent(grid: Grid, job: Job) -> str:
    """Of a job that left no reason: it was killed, its machine or the disk's last room was lost."""
    if shutil.disk_usage(paths.root()).free < ROOM:
        return f"the disk is full: {shutil.disk_usage(paths.root()).free:,} bytes free at {paths.root()}"
    began = worker.log_path(job).exists()
    what = "it began, and ended without a word, as what is killed does" if began else "it never began"
    told, who = (find_cluster_log(grid, job), "its node") if not grid.local else (None, "")
    told, who = (told, who) if told else (log_path(grid), "Snakemake")
    lines = [line for line in read_tail(told) if line.strip()]
    last = f"; the last words of {who}:\n{lines[-1].strip()}" if lines else ""
    return f"{what}{last}\n(all of them are in {show(told)})"


def find_cluster_log(grid: Grid, job: Job) -> Path | None:
    """What a cluster kept of the last attempt at a job, before the job wrote a log of its own."""
    kept = [
        path
        for path in (grid.folder / ".snakemake").glob("*_logs/**/*.log")
        if path.parts[-2].endswith(f"_{job.name}")  # study and job, as the Snakefile names its outputs
    ]
    return max(kept, key=lambda path: path.stat().st_mtime, default=None)


def read_tail(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").splitlines()[-20:]
    return []


def retry_words(grid: Grid, job: Job) -> str:
    program = show(paths.CODE / "workflow" / "job.py")
    cut = f"--group-hours {grid.group_hours:g} --table {show(table_path(grid))}"
    return f"{show(Path(sys.executable))} {program} {grid.study} {cut} {job.name}"


def tell_answer(grid: Grid, jobs: Sequence[Job], nothing: bool, seconds: float) -> None:
    """The report of each analysis, and the line that it ends with."""
    print("nothing to compute: everything was found finished" if nothing else f"done in {clock(seconds)}")
    for job in jobs:
        if job.stage == "analyse":
            tell_report(job, str((receipts.read_receipt(job) or {}).get("said", "")))


def tell_report(job: Job, said: str) -> None:
    """Where an analysis left its report, and its answer."""
    page = paths.executed(job.study) / "report.html"
    print(f"report: {show(page)}")
    for slides in sorted(page.parent.glob("summary.*")):
        print(f"for slides: {show(slides)}")
    print(said)


# --- the command ------------------------------------------------------------------------------


def do(what: str, grid: Grid) -> int:
    if what == "run":
        return run_grid(grid)
    jobs = grid.list_jobs()
    print(forecast.say_plan(jobs, grid.gpus) if what == "plan" else forecast.say_status(jobs, grid.gpus))
    return 0


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("what", choices=("plan", "run", "status"))
    parser.add_argument(
        "study", nargs="?", default="micro", help="a file of params/, without .yaml (%(default)s)"
    )
    parser.add_argument("--profile", default="", help="a folder of workflow/profiles (as before, or laptop)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to plan for (as before, or those here)")
    parser.add_argument(
        "--group-hours",
        type=float,
        default=0,
        help="hours that one job may take (as before, or what ends first)",
    )
    parser.add_argument("--jobs", type=int, help="jobs at a time on one machine; else one per core and GPU")
    words = sys.argv[1:]
    own, extra = words, []
    if "--" in words:  # the rest is Snakemake's
        own, extra = words[: words.index("--")], words[words.index("--") + 1 :]
    asked = parser.parse_args(own)
    asked.extra = extra
    for name in ("gpus", "group_hours", "jobs"):
        if (getattr(asked, name) or 0) < 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {getattr(asked, name)}")
    return asked


def main() -> int:
    asked = read_arguments()
    heed_signals()
    how = {name: getattr(asked, name) for name in ("profile", "gpus", "group_hours", "jobs", "extra")}
    return guarded(lambda: do(asked.what, ask_grid(asked.study, **how)), KEPT)


if __name__ == "__main__":
    sys.exit(main())
