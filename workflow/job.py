"""Run one job of a study's plan, as Snakemake does: `python workflow/job.py qwen finetune-7b`.

papermill runs the notebook into executed/<study>/, its words go to a log, and the receipt comes last. A job
that another process is at work on is waited for; one that is done costs nothing.
"""

import argparse
import contextlib
import fcntl
import itertools
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

CODE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CODE))

from lib import files, paths, planning, receipts, resources  # noqa: E402
from lib.children import ENVIRONMENT, watched_command  # noqa: E402
from lib.errors import BadParameter, NotAvailable, StudyError  # noqa: E402
from lib.planning import Job  # noqa: E402

SCHEDULER = "SUBLIMINAL_SCHEDULER"  # the process that a job on this machine must not outlive
GIVEN = ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")  # who starts jobs here has given them their GPUs
LONG_AGO = 946_684_800  # the year 2000
STARTS = 3  # of a kernel that does not come up
GONE = ("DeadKernel", "Kernel didn't respond")  # how papermill says that it did not
DONE = re.compile(r"^DONE [^:\n]+: (.+)$", re.MULTILINE)


def log_path(job: Job) -> Path:
    return paths.executed(job.study) / "logs" / f"{job.name}.log"


def clear_log(job: Job) -> None:
    """Begin the log anew: what the last attempt said must not pass for today's."""
    with files.storage_errors(log_path(job)):
        log_path(job).parent.mkdir(parents=True, exist_ok=True)
        log_path(job).write_text("")


def executed_path(job: Job) -> Path:
    return paths.executed(job.study) / f"{job.stem}.ipynb"


def write_points(study: str) -> None:
    """A params file for each point of a study with further axes, so that all else finds it by its name."""
    import yaml

    for point in planning.read_study(study):
        if not point.axes:
            continue
        path = paths.point_file(point.study)
        if (own := paths.params_file(point.study)) != path and own.exists():
            raise BadParameter(
                f"{own} is a study of its own and has the name of a point of {study}; rename one"
            )
        head = f"# Point {dict(point.axes)} of params/{study}.yaml, written for its jobs: change that one.\n"
        text = head + yaml.safe_dump(point.overrides, sort_keys=False)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            files.write_text(path, text)


# --- GPUs -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def hold_gpus(wanted: int) -> Iterator[tuple[dict[str, str], list[IO]]]:
    """GPUs of this machine for one job alone, or with `wanted` 0 a part of one: what to set for it, and the
    locks that keep them.

    Whoever starts jobs on a cluster has given them theirs already; where there are no GPUs, none is set.
    """
    known = [] if any(name in os.environ for name in GIVEN) else list_gpus()
    if not known:
        yield {}, []
        return
    if wanted > len(known):
        raise NotAvailable(f"this job takes {wanted} GPUs and this machine has {len(known)}")
    with contextlib.ExitStack() as stack:
        pool = Path(tempfile.gettempdir()) / f"subliminal-gpus-{os.getuid()}"
        pool.mkdir(exist_ok=True)

        def open_lock(name: str) -> IO:
            return stack.enter_context(open(pool / f"{name}.lock", "a"))

        held = take_gpus(known, wanted, open_lock) if wanted else share_gpu(known, open_lock)
        yield {"CUDA_VISIBLE_DEVICES": ",".join(held)}, [lock for locks in held.values() for lock in locks]


def take_gpus(known: list[str], wanted: int, open_lock: Callable[[str], IO]) -> dict[str, list[IO]]:
    """So many GPUs that nobody else is at work on, as soon as they are free."""
    locks = {gpu: open_lock(gpu) for gpu in known}
    queue = open_lock("queue")
    fcntl.flock(queue, fcntl.LOCK_EX)  # one at a time, or two could hold half each for ever
    held: dict[str, list[IO]] = {}
    while len(held) < wanted:
        for gpu, lock in locks.items():
            if gpu not in held and len(held) < wanted and try_lock(lock):
                held[gpu] = [lock]
        time.sleep(0 if len(held) == wanted else 0.5)
    fcntl.flock(queue, fcntl.LOCK_UN)
    return held


def share_gpu(known: list[str], open_lock: Callable[[str], IO]) -> dict[str, list[IO]]:
    """The GPU that the fewest share, of those that no job has for itself.

    Of the micro ladder, which needs none but is faster on one: many of its jobs fit side by side. Whoever
    wants a GPU alone waits until no such job is on it.
    """
    locks = {gpu: open_lock(gpu) for gpu in known}
    while True:
        free = [gpu for gpu, lock in locks.items() if try_lock(lock, fcntl.LOCK_SH)]
        for seat in itertools.count() if free else ():
            for gpu in free:
                if try_lock(place := open_lock(f"{gpu}-seat-{seat}")):
                    for other in set(free) - {gpu}:
                        fcntl.flock(locks[other], fcntl.LOCK_UN)
                    return {gpu: [locks[gpu], place]}
        time.sleep(0.5)


def list_gpus() -> list[str]:
    """The GPUs that this process may use, by number or name."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [each.strip() for each in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if each.strip()]
    try:
        shown = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        str(i)
        for i, line in enumerate(filter(lambda line: line.startswith("GPU "), shown.stdout.splitlines()))
    ]


def try_lock(file: IO, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- the notebook ---------------------------------------------------------------------------------


def run_notebook(job: Job, extra: dict[str, str], keep: list[IO]) -> int:
    """papermill in a process of its own, with the locks that must not be given back before it ends."""
    output, log = executed_path(job), log_path(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)  # an error of the last time must not pass for today's
    words = [str(paths.notebook(job.notebook)), str(output), *job.arguments(), "--no-progress-bar"]
    with files.storage_errors(log), open(log, "ab") as file:
        process = subprocess.Popen(
            watched_command("papermill", words),
            cwd=paths.CODE,
            env=os.environ | ENVIRONMENT | extra,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            pass_fds=[each.fileno() for each in keep],
        )
        return process.wait()


def died_at_start(job: Job) -> bool:
    """Whether the kernel never came up or was gone before a cell had shown anything: a machine out of
    breath, or two kernels that were given the same port, and no error."""
    gone = any(words in read_log(job) for words in GONE)
    return gone and not any(output for output in read_outputs(executed_path(job)))


def read_log(job: Job) -> str:
    with contextlib.suppress(OSError):
        return log_path(job).read_text(errors="replace")
    return ""


def read_outputs(executed: Path) -> list[dict]:
    """All outputs of a notebook that papermill wrote; none where it could not."""
    with contextlib.suppress(OSError, StudyError, TypeError, KeyError, AttributeError):
        return [output for cell in files.read_json(executed)["cells"] for output in cell.get("outputs", ())]
    return []


def find_words(job: Job) -> str:
    """What the notebook's last cell says it did; an analysis says its answer."""
    shown = "".join("".join(output.get("text", "")) for output in read_outputs(executed_path(job)))
    done = DONE.search(shown)
    return done[1] if done else (shown.strip().splitlines() or [""])[-1]


def find_told(job: Job) -> str:
    """The error that the notebook itself told: our own messages in full, of others type and text."""
    from lib import errors

    for output in read_outputs(executed_path(job)):
        if output.get("output_type") == "error":
            ours = isinstance(getattr(errors, output["ename"], None), type)
            return output["evalue"] if ours else f"{output['ename']}: {output['evalue']}"
    return ""


def find_error(job: Job) -> str:
    """What the notebook said, or where it could not say anything the last line of papermill."""
    if told := find_told(job):
        return told
    lines = [line for line in read_log(job).splitlines() if line.strip()]
    hint = "\n(too little memory does that: try fewer jobs at once)" if "DeadKernel" in "".join(lines) else ""
    return (lines[-1] if lines else "papermill ended without a word") + hint


# --- the job --------------------------------------------------------------------------------------


def run_job(job: Job, jobs: dict[str, Job], retry: str) -> int:
    """The notebook and its receipt; 1 where it failed, with the reason beside the receipt's place."""
    needs = [jobs[name] for name in job.needs]
    with receipts.locked(job) as lock:
        forget_times(needs)
        if receipts.is_done(job, jobs):
            print(f"{job.name} is done already")
            return 0
        began = time.monotonic()
        receipts.failure_path(job).unlink(missing_ok=True)
        clear_log(job)
        try:
            at_work = hold_gpus(job.gpus) if job.label else contextlib.nullcontext(({}, []))
            with at_work as (extra, held):
                for start in range(1, STARTS + 1):
                    code = run_notebook(job, extra, [lock, *held])
                    if not code or start == STARTS or not died_at_start(job):
                        break
                    print(f"{job.name}: its kernel did not come up; once more", flush=True)
            if code:
                return note_failure(job, find_error(job), retry)
            if job.stage == "analyse":
                export_report(job)
            told = {"seconds": round(time.monotonic() - began, 1), "said": find_words(job)}
            receipts.write_receipt(job, needs, **told)
        except StudyError as error:
            return note_failure(job, str(error), retry)
    return 0


def forget_times(needs: list[Job]) -> None:
    """Put the receipts that a job starts from into the past: Snakemake fails a job that is older than those.

    It compares times of several machines, whose clocks disagree, and content has decided already.
    """
    for need in needs:
        with contextlib.suppress(OSError):
            os.utime(need.receipt, (LONG_AGO, LONG_AGO))


def export_report(job: Job) -> None:
    from lib import report  # seconds to import, and only one job needs it

    report.export_report(executed_path(job), paths.executed(job.study) / "report.html")


def note_failure(job: Job, error: str, retry: str) -> int:
    """Keep the reason for the summary; a disk that takes not even that is told on the screen."""
    print(f"{job.name} failed:\n{error}", file=sys.stderr, flush=True)
    with contextlib.suppress(StudyError):
        files.write_json(
            receipts.failure_path(job),
            {"job": job.name, "error": error, "retry": retry, "log": str(log_path(job))},
        )
    return 1


def watch_scheduler() -> None:
    """End with the scheduler that started this on its own machine: its successor starts the job anew."""
    scheduler = int(os.environ.get(SCHEDULER) or 0)

    def watch() -> None:
        import psutil

        while psutil.pid_exists(scheduler) and psutil.Process(scheduler).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        os._exit(1)

    if scheduler:
        threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("study", help="a file of params/, without .yaml")
    parser.add_argument("name", help="a job, as `python grid.py plan STUDY` names it")
    parser.add_argument("--group-hours", type=float, default=planning.GROUP_HOURS, help="the longest job")
    parser.add_argument(
        "--table", type=Path, default=resources.table_path(), help="what jobs cost, as planned"
    )
    asked = parser.parse_args()
    watch_scheduler()
    try:
        costs = resources.read_costs(asked.study, table=asked.table)
        listed = planning.list_jobs(asked.study, costs, asked.group_hours)
        jobs = {job.name: job for job in listed}
        if asked.name not in jobs:
            raise StudyError(f"study {asked.study} has no job {asked.name!r}; it has {', '.join(jobs)}")
        write_points(asked.study)
        here = [sys.executable, os.path.abspath(__file__), *sys.argv[1:]]
        return run_job(jobs[asked.name], jobs, shlex.join(here))
    except StudyError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
