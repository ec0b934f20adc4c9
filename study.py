"""Run a whole study: `python study.py micro` takes params/micro.yaml from missing bases to its report.

The order of work and nothing else: each stage is a notebook that papermill runs in a process of its own,
and it finds for itself what is finished. Every base is a chain (generate, finetune, evaluate); chains run
side by side. Anything here may be killed at any moment: the same command goes on from there.
"""

import argparse
import ast
import concurrent.futures
import contextlib
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import nbformat
import papermill
import psutil

from lib import bases, config, errors, files, paths, store
from lib.children import ENVIRONMENT, watched_command
from lib.errors import BadParameter, StudyError

CHAIN = {"01_generate": "written", "02_finetune": "trained", "03_evaluate": "evaluated"}
DID = {"00_pretrain": "built", **CHAIN, "04_analysis": "analysed"}
DONE = re.compile(r"^DONE [^:\n]+: (\d+) made, (\d+) found finished$", re.MULTILINE)
GIGABYTES_PER_JOB = 2


# --- what is to be done -----------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One notebook of a study, for one base or for all of them."""

    study: str
    stage: str
    label: str = ""
    results: str = ""  # of an analysis: a folder in the published format

    @property
    def output(self) -> Path:
        return paths.executed(self.study) / f"{'-'.join(filter(None, (self.stage, self.label)))}.ipynb"

    @property
    def log(self) -> Path:
        return self.output.parent / "logs" / f"{self.output.stem}.log"

    def arguments(self) -> list[str]:
        """What papermill is told. The study by name too: its file need not say its own."""
        cell = ["-p", "size", self.label] if self.label else []
        cell += ["-p", "animal", "all", "-p", "seed", "all"] if self.stage in CHAIN else []
        cell += ["-p", "study", self.study] if self.stage != "00_pretrain" else []
        cell += ["-p", "results", self.results] if self.results else []
        files = [str(paths.notebook(self.stage)), str(self.output)]
        return [*files, "-f", str(paths.params_file(self.study)), *cell, "--no-progress-bar"]

    def retry(self) -> str:
        """The same as a command for a person, from the folder where the study was started."""
        words = [sys.executable, "-m", "papermill", *self.arguments()]
        shown = [os.path.relpath(word) if os.path.isabs(word) else word for word in words]
        return f"OMP_NUM_THREADS=1 {shlex.join(shown)}"


@dataclass(frozen=True)
class Asked:
    """What a study's file asks for, defaults of the notebooks where it is silent."""

    study: str
    bases: tuple[config.Base, ...]
    recipe: str
    measure: str

    def chain(self, base: config.Base) -> list[Step]:
        """The stages of one base, itself first where it neither came with the project nor was built."""
        folder = bases.base_folder(base.label, self.recipe)
        missing = base.family.name == "micro" and not (folder / store.MANIFEST).exists()
        stages = ["00_pretrain"] * missing + list(CHAIN)
        return [Step(self.study, stage, base.label) for stage in stages]


def read_study(study: str) -> Asked:
    """Check the study's file before any work."""
    if not paths.params_file(study).is_file():
        known = sorted(path.stem for path in paths.params_file(study).parent.glob("*.yaml"))
        raise BadParameter(
            f"no study {study!r}: there is no params/{study}.yaml; studies here: {', '.join(known)}"
            f"{config.suggest(study, known)}"
        )
    values = (
        notebook_defaults("01_generate") | notebook_defaults("04_analysis") | config.study_overrides(study)
    )
    config.expand_animals("all", str(values["animals"]))
    config.expand_seeds("all", str(values["seeds"]))
    # The largest first: the others fill the cores beside it.
    bases = sorted(config.expand_sizes(str(values["sizes"])), key=lambda base: -base.size.params)
    return Asked(study, tuple(bases), str(values["recipe"]), str(values["measure"]))


def notebook_defaults(stage: str) -> dict[str, Any]:
    """The values of a notebook's parameters cell, the only place where defaults stand."""
    found = papermill.inspect_notebook(str(paths.notebook(stage)))
    return {name: ast.literal_eval(each["default"]) for name, each in found.items()}


# --- doing it ---------------------------------------------------------------------------------


@dataclass
class Work:
    """A study at work: what runs, what failed, how much was made."""

    lock: IO[str]
    jobs: int
    began: float = field(default_factory=time.monotonic)
    made: int = 0
    found: int = 0
    silent: int = 0  # stages that did not say what they did
    failed: list[Step] = field(default_factory=list)
    running: set[subprocess.Popen] = field(default_factory=set)
    stopped: bool = False
    guard: threading.Lock = field(default_factory=threading.Lock)

    def run(self, chains: list[list[Step]]) -> None:
        """Work off chains, `jobs` at a time; a failure ends its own chain only."""
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            try:
                for ended in [pool.submit(self.run_chain, chain) for chain in chains]:
                    ended.result()
            except BaseException:
                self.stop()
                raise

    def run_chain(self, chain: list[Step]) -> None:
        all(self.run_step(step) for step in chain)  # stops at the first that fails

    def run_step(self, step: Step) -> bool:
        """Run one notebook and tell in a line how it went."""
        began = time.monotonic()
        step.log.parent.mkdir(parents=True, exist_ok=True)
        step.output.unlink(missing_ok=True)  # an error of the last time must not pass for today's
        with open(step.log, "wb") as log, self.guard:
            if self.stopped:
                return False
            process = subprocess.Popen(
                watched_command("papermill", step.arguments()),
                cwd=paths.CODE,
                env=os.environ | ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the study alone, and that ends them all
                pass_fds=(self.lock.fileno(),),
            )
            self.running.add(process)
        code = process.wait()
        with self.guard:
            self.running.discard(process)
            if self.stopped:
                return False
            what, now = self.note(step, code), time.monotonic()
            took = f"{clock(now - began)} of {clock(now - self.began)}"
            print(f"{step.stage:<12} {step.label:<7} {what:<32} {took:>15}", flush=True)
        return code == 0

    def note(self, step: Step, code: int) -> str:
        """Count what a stage did, from the line that its last cell prints."""
        if code:
            self.failed.append(step)
            return "FAILED"
        done = DONE.search("".join(output.get("text", "") for output in read_outputs(step.output)))
        if step.stage == "04_analysis":
            return "tables and figures written"
        if done is None:
            self.silent += 1
            return "done"
        made, found = map(int, done.groups())
        self.made += made
        self.found += found
        parts = [f"{made} {DID[step.stage]}"] * (made > 0) + [f"{found} found finished"] * (found > 0)
        return ", ".join(parts) or "nothing was asked for"

    def stop(self) -> None:
        """End every notebook with its kernel, at once; what they had finished stays."""
        with self.guard:
            self.stopped = True
            for process in self.running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    root = psutil.Process(process.pid)
                    for each in (*root.children(recursive=True), root):
                        with contextlib.suppress(psutil.NoSuchProcess):
                            each.kill()


@contextlib.contextmanager
def locked(study: str) -> Iterator[IO[str]]:
    """Only one run of a study at a time; its notebooks hold the lock too."""
    path = paths.executed(study) / ".lock"
    with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115
    with file:
        for attempt in range(50):  # what a killed run left needs a moment to end
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 49:
                    raise StudyError(
                        f"study {study} is being run already; wait for that run or end it"
                    ) from None
                time.sleep(0.1)
        yield file


def default_jobs(bases: Iterable[config.Base]) -> int:
    """One chain per core, as far as free memory goes; a published model has the machine for itself."""
    if any(base.family.name != "micro" for base in bases):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().available // (GIGABYTES_PER_JOB * 2**30)))


# --- telling about it -------------------------------------------------------------------------


def clock(seconds: float) -> str:
    """`65` as `1:05`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def read_outputs(executed: Path) -> list[dict]:
    """All outputs of a notebook that papermill wrote; none where it could not."""
    try:
        cells = nbformat.read(executed, as_version=4).cells
    except (OSError, ValueError, AttributeError, nbformat.ValidationError):
        return []
    return [output for cell in cells for output in cell.get("outputs", ())]


def find_error(step: Step) -> str:
    """What the notebook itself said: our own messages in full, of others type and text, no stack."""
    for output in read_outputs(step.output):
        if output.output_type == "error":
            ours = isinstance(getattr(errors, output.ename, None), type)
            return output.evalue if ours else f"{output.ename}: {output.evalue}"
    lines = [line for line in step.log.read_text(errors="replace").splitlines() if line.strip()]
    hint = "\n(too little memory does that: try fewer jobs at once)" if "DeadKernel" in "".join(lines) else ""
    return (lines[-1] if lines else "papermill ended without a word") + hint


def tell_failures(failed: list[Step]) -> None:
    for step in failed:
        print(f"\n{step.stage} {step.label} failed:\n  " + find_error(step).replace("\n", "\n  "))
        print(f"retry it with\n  {step.retry()}\nits log is {os.path.relpath(step.log)}")
    print("\nWhat had finished stays; the study goes on from there when it is run again.")


def tell_answer(asked: Asked, work: Work) -> None:
    """Export the report and say what it says."""
    import pandas as pd  # here, since a failure above should not wait for it

    from lib import report

    page = paths.executed(asked.study) / "report.html"
    report.export_report(Step(asked.study, "04_analysis").output, page)
    nothing = work.found and not work.made and not work.silent
    total = f"done in {clock(time.monotonic() - work.began)}"
    print("nothing to compute: everything was found finished" if nothing else total)
    print(f"report: {os.path.relpath(page)}")
    for slides in sorted(page.parent.glob("summary.*")):
        print(f"for slides: {os.path.relpath(slides)}")
    print(report.answer_line(pd.read_csv(paths.tables(asked.study) / "transfer.csv"), asked.measure))


# --- the command ------------------------------------------------------------------------------


def run_study(study: str, jobs: int | None, report_only: bool, results: str = "") -> int:
    """The chains, then the analysis; 1 where anything failed."""
    asked = read_study(study)
    with locked(study) as lock:
        jobs = jobs or default_jobs(asked.bases)
        work = Work(lock, jobs)
        print(f"study {study}: {len(asked.bases)} base models, {jobs} at a time", flush=True)
        work.run([] if report_only else [asked.chain(base) for base in asked.bases])
        if not work.failed:
            work.run([[Step(study, "04_analysis", results=results)]])
        if work.failed:
            tell_failures(work.failed)
            return 1
        tell_answer(asked, work)
    return 0


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def guarded(work: Callable[[], int], kept: str) -> int:
    """The exit code of a command; what a person can mend, or has stopped, is told without a stack."""
    try:
        return work()
    except StudyError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; what {kept} stays, and the same command goes on from there", file=sys.stderr)
        return 130


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument(
        "study", nargs="?", default="micro", help="a file of params/, without .yaml (%(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, help="chains at a time; without it one per core, published models one by one"
    )
    parser.add_argument("--report-only", action="store_true", help="analyse the evaluations that are there")
    parser.add_argument("--results", default="", help="a folder of published evaluations, to be reported on")
    asked = parser.parse_args()
    if asked.jobs is not None and asked.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {asked.jobs}")
    for each in (signal.SIGTERM, signal.SIGINT):  # a shell's background job starts with SIGINT ignored
        signal.signal(each, interrupt)
    folder = os.path.abspath(os.path.expanduser(asked.results)) if asked.results else ""
    only = asked.report_only or bool(folder)
    return guarded(lambda: run_study(asked.study, asked.jobs, only, folder), "had finished")


if __name__ == "__main__":
    sys.exit(main())
