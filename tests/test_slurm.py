"""The grid on a real SLURM of two nodes on this host: a node drained, jobs killed, the tables of a laptop."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import slurm_host
from slurm_host import Slurm, wait_for

from lib import files

REPO = Path(__file__).resolve().parent.parent
OBSTACLE = slurm_host.find_obstacle()
pytestmark = pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)
# No accounting database, so squeue is asked; and often, since these jobs take seconds and not hours.
QUICK = (
    *("--slurm-status-command", "squeue", "--slurm-no-account"),
    *("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"),
)
SNAKEFILE = """
rule all:
    input: expand("{letter}.txt", letter=list("abc"))
rule write:
    output: "{letter}.txt"
    resources: runtime=5, mem_mb=100
    shell: "echo $SLURM_JOB_ID $SLURMD_NODENAME > {output}"
"""


@pytest.fixture
def cluster() -> Iterator[Slurm]:
    with slurm_host.slurm() as started:
        yield started


def test_snakemake_runs_its_jobs_on_a_slurm_with_one_node_drained(cluster: Slurm, tmp_path: Path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    cluster.drain("n1")
    words = [sys.executable, "-m", "snakemake", "--executor", "slurm", "--jobs", "3", *QUICK]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr + cluster.log()
    told = [(tmp_path / f"{letter}.txt").read_text().split() for letter in "abc"]
    assert {node for _, node in told} == {"n2"}
    assert {job for job, _ in told} == {job for job, *_ in cluster.jobs("COMPLETED")}


# --- the smoke grid -----------------------------------------------------------------------------


def start_grid(root: Path, *words: str) -> subprocess.Popen:
    """`grid.py run smoke` into a root of its own; what it says goes to a file there."""
    root.mkdir()
    with open(root / "said.txt", "w") as said:
        return subprocess.Popen(
            [sys.executable, "grid.py", "run", "smoke", *words],
            cwd=REPO,
            env=os.environ | {"SUBLIMINAL_ROOT": str(root)},
            stdout=said,
            stderr=said,
        )


def read_tables(root: Path) -> dict[str, bytes]:
    """Every table, but for lineage.json: it says when the analysis ran, and on what."""
    return {path.name: path.read_bytes() for path in sorted((root / "results/smoke/tables").glob("*.csv"))}


def read_seals(root: Path) -> dict[str, str]:
    """What vouches for each evaluation: all of it but the seconds, the code, packages and hardware."""
    found = sorted((root / "results/smoke/64k").rglob("s0.json"))
    return {path.relative_to(root).as_posix(): files.read_json(path)["lineage"]["content"] for path in found}


def read_numbers(root: Path) -> dict[str, bytes]:
    found = sorted((root / "artifacts/smoke/generate").rglob("manifest.json"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def find_kernels(root: Path) -> list[psutil.Process]:
    """The kernels of notebooks that write into a root."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "ipykernel_launcher" in " ".join(process.cmdline()):
                found += [process] * (process.environ().get("SUBLIMINAL_ROOT") == str(root))
    return found


class Watched:
    """A grid on the cluster, and what to wait for."""

    def __init__(self, cluster: Slurm, root: Path):
        self.cluster, self.root = cluster, root
        self.process = start_grid(root, "--profile", "slurm", "--", *QUICK)

    def wait(self, what: str, holds, seconds: float = 600) -> None:
        """Until it holds; a grid that ends before says so at once."""

        def ended_or_holds() -> bool:
            told = (self.root / "said.txt").read_text()
            assert self.process.poll() is None, f"the grid ended before {what}:\n{told}\n{self.cluster.log()}"
            return bool(holds())

        wait_for(what, ended_or_holds, seconds)

    def wait_for_work(self, stage: str) -> tuple[str, str]:
        """Until a stage is at work inside of its first cell: the id of its job, and its node."""
        begun = self.root / f"artifacts/smoke/{stage}/64k"
        self.wait(f"{stage} is at work", lambda: list(begun.rglob("begun.json")) and find_kernels(self.root))
        ((job, _, node),) = self.cluster.jobs("RUNNING")
        return job, node


def test_the_smoke_grid_with_a_node_drained_and_jobs_killed_has_the_laptops_tables(
    cluster: Slurm, tmp_path: Path
):
    laptop = start_grid(tmp_path / "laptop", "--profile", "laptop", "--jobs", "1")
    grid = Watched(cluster, tmp_path / "cluster")
    try:
        # The node of the first job is drained under it: the job ends in peace, and the next goes elsewhere.
        first, drained = grid.wait_for_work("generate")
        cluster.drain(drained)
        second, other = grid.wait_for_work("finetune")
        assert (first, "COMPLETED", drained) in cluster.jobs()
        assert other != drained
        assert cluster.node_state(drained) == "drained"
        numbers = read_numbers(grid.root)
        # A kernel is killed as if memory had run out, then a whole job is cancelled; both are tried again.
        for kernel in find_kernels(grid.root):
            kernel.send_signal(signal.SIGKILL)
        grid.wait(
            "the job with the killed kernel has failed", lambda: (second, "FAILED", other) in cluster.jobs()
        )
        third, _ = grid.wait_for_work("evaluate")
        cluster.cancel(third)
        cluster.resume(drained)
        assert grid.process.wait(600) == 0, (grid.root / "said.txt").read_text() + cluster.log()
        assert laptop.wait(600) == 0, (tmp_path / "laptop/said.txt").read_text()
    finally:
        for process in (grid.process, laptop):
            process.terminate()
            process.wait(90)
    assert [state for _, state, _ in cluster.jobs("CANCELLED")] == ["CANCELLED"]
    assert read_numbers(grid.root) == numbers  # made once
    assert len(read_seals(grid.root)) == 5
    assert read_seals(grid.root) == read_seals(tmp_path / "laptop")
    assert {"transfer.csv", "cells.csv"} <= read_tables(grid.root).keys()
    assert read_tables(grid.root) == read_tables(tmp_path / "laptop")
