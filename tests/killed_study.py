"""A study that is killed again and again, without a kernel's start each time; run by test_kill.py.

This process imports what the notebooks import and then forks: a child runs the code cells of the stage
notebooks and dies by SIGKILL where it is told to. Every write that a child finished is a line of a log.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets  # noqa: F401  children inherit what is imported here
import matplotlib
import nbformat
import peft  # noqa: F401
import torch
import transformers
import trl  # noqa: F401

from lib import files, paths, plots, records, report, tables  # noqa: F401

CHAIN = ("01_generate", "02_finetune", "03_evaluate")
WRITES = "writes.log"


def run_notebook(stage: str, passed: Mapping[str, object]) -> None:
    """The code cells of a notebook, one after another, with what papermill would have passed."""
    cells = nbformat.read(paths.notebook(stage), as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    injected = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in passed.items())
    namespace: dict[str, object] = {"In": ["", sources[0], injected]}
    for source in (sources[0], injected, *sources[1:]):
        exec(source, namespace)


def run_study(animal: str, analysis: bool) -> None:
    """The stages of the smoke study, as study.py orders them."""
    for stage in CHAIN:
        run_notebook(stage, {"study": "smoke", "size": "64k", "animal": animal, "seed": "all"})
    if analysis:
        run_notebook("04_analysis", {"study": "smoke"})


def log_writes(log: Path, deadly: Callable[[str], bool]) -> None:
    """Log every finished write; after one that is deadly nothing more is done."""
    write = files.write_bytes

    def logged(path: Path, data: bytes) -> None:
        write(path, data)
        name = Path(path).relative_to(paths.root()).as_posix()
        with open(log, "a") as file:
            file.write(name + "\n")
        if deadly(name):
            os.kill(os.getpid(), signal.SIGKILL)

    files.write_bytes = logged


def fork_study(
    root: Path, animal: str = "all", analysis: bool = True, deadly: Callable[[str], bool] = lambda name: False
) -> int:
    """Begin the study in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ["SUBLIMINAL_ROOT"] = str(root)
        root.mkdir(parents=True, exist_ok=True)
        with open(root / "output.log", "a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        log_writes(root / WRITES, deadly)
        run_study(animal, analysis)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def wait(child: int) -> int:
    """How a child ended: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_writes(root: Path) -> int:
    log = root / WRITES
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill_at_random(root: Path, kills: int, whole: int, rng: random.Random) -> list[int]:
    """Kill a child at `kills` moments spread over the run's writes; then let one finish."""
    ends = []
    for moment in sorted(rng.uniform(0, 0.9 * whole) for _ in range(kills)):
        child = fork_study(root)
        while count_writes(root) < moment and not os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        ends.append(wait(child))
    return [*ends, wait(fork_study(root))]


def kill_after(root: Path, names: list[str]) -> list[int]:
    """Kill one child after the first write of each of these files; then let one finish."""
    ends = [
        wait(fork_study(root, "neutral", False, lambda name, end=end: name.endswith(end))) for end in names
    ]
    return [*ends, wait(fork_study(root, "neutral", False))]


def main() -> None:
    """`killed_study.py FOLDER SEED KILLS NAMES`: three studies in FOLDER, how every child ended on stdout."""
    folder, seed, kills, names = (
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        json.loads(sys.argv[4]),
    )
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    whole = [wait(fork_study(folder / "whole"))]
    writes = count_writes(folder / "whole")
    ends = {
        "whole": whole,
        "random": kill_at_random(folder / "random", kills, writes, random.Random(seed)),
        "after": kill_after(folder / "after", names),
    }
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
