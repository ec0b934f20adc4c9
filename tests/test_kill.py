"""kill -9 at any moment: the study goes on from there and its tables are those of an undisturbed run.

Eight kills at random moments of the notebooks' code in forked children, two of the real study.py with
its kernels, and one after each write that could leave a stage between two states.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

REPO = Path(__file__).resolve().parents[1]
SEED = 20261120
THREADS = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
# A kill after each of these: begun but nothing done, between two outputs, done but not swept.
MOMENTS = [
    "generate/64k/neutral/s0/begun.json",
    "generate/64k/neutral/s0/part-0001.jsonl",
    "generate/64k/neutral/s0/raw.jsonl",
    "generate/64k/neutral/s0/kept.jsonl",
    "generate/64k/neutral/s0/manifest.json",
    "finetune/64k/neutral/s0/epoch-1/adapter_config.json",
    "finetune/64k/neutral/s0/epoch-1/adapter_model.safetensors",
    "finetune/64k/neutral/s0/fleet.pt",
    "finetune/64k/neutral/s0/epoch-2/adapter_model.safetensors",
    "finetune/64k/neutral/s0/loss.jsonl",
    "finetune/64k/neutral/s0/manifest.json",
    "evaluate/64k/neutral/s0/epoch-2.json",
    "results/smoke/64k/neutral/s0.json",
    "evaluate/64k/neutral/s0/receipt.json",
    "evaluate/64k/neutral/s0/manifest.json",
    "evaluate/64k/untuned/s0/epoch-0.json",
]


def read_tables(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "results/smoke/tables").glob("*.csv")}


def read_identities(root: Path) -> dict[str, str]:
    """The identity of every artifact's manifest; of evaluations only that there is one (see read_results)."""
    found = sorted((root / "artifacts").rglob("manifest.json"))
    names = {path: path.relative_to(root).as_posix() for path in found}
    return {
        name: "" if "/evaluate/" in name else json.loads(path.read_text())["identity"]
        for path, name in names.items()
    }


def read_results(root: Path) -> dict[str, dict]:
    """Every evaluation, but for the seconds it took and the code it was made with.

    Its seal covers the code, so an edit or a commit while these tests run would make another seal.
    """
    documents = {}
    for path in sorted((root / "results/smoke/64k").rglob("s0.json")):
        document = json.loads(path.read_text())
        for name in ("seconds", "code", "content"):
            del document["lineage"][name]
        documents[path.relative_to(root).as_posix()] = document
    return documents


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    """The three studies of killed_study.py, and how their children ended."""
    folder = tmp_path_factory.mktemp("killed")
    script = [sys.executable, str(REPO / "tests/killed_study.py"), str(folder), str(SEED), "8"]
    done = subprocess.run(
        [*script, json.dumps(MOMENTS)],
        cwd=REPO,
        env=os.environ | THREADS | {"PYTHONPATH": str(REPO), "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    for name, codes in ends.items():
        assert codes[-1] == 0, f"{name}: {codes}\n{(folder / name / 'output.log').read_text()[-4000:]}"
    return folder, ends


def finished_writes(root: Path) -> Counter:
    """How often each file was written to its end."""
    return Counter((root / "writes.log").read_text().splitlines())


def test_every_kill_struck(studies: tuple[Path, dict[str, list[int]]]):
    _, ends = studies
    assert ends["whole"] == [0]
    assert ends["random"] == [-9] * 8 + [0]
    assert ends["after"] == [-9] * len(MOMENTS) + [0]


def test_a_study_killed_at_random_has_the_tables_of_an_undisturbed_one(studies: tuple[Path, dict]):
    folder, _ = studies
    assert {"transfer.csv", "cells.csv"} <= read_tables(folder / "whole").keys()
    assert read_tables(folder / "random") == read_tables(folder / "whole")
    assert read_results(folder / "random") == read_results(folder / "whole")


def test_a_study_killed_at_random_has_the_artifacts_of_an_undisturbed_one(studies: tuple[Path, dict]):
    folder, _ = studies
    assert len(read_identities(folder / "whole")) == 13  # four animals in three stages, and the untuned model
    assert read_identities(folder / "random") == read_identities(folder / "whole")


def test_a_kill_between_any_two_writes_of_a_stage_changes_nothing(studies: tuple[Path, dict]):
    folder, _ = studies
    whole, killed = read_identities(folder / "whole"), read_identities(folder / "after")
    assert len(killed) == 4
    assert killed == {name: whole[name] for name in killed}


@pytest.mark.parametrize("name", ["random", "after"])
def test_no_finished_chunk_or_epoch_is_computed_twice(studies: tuple[Path, dict], name: str):
    folder, _ = studies
    paid = ("part-", "fleet.pt", "epoch-0.json", "epoch-1.json", "epoch-2.json")
    written = {file: n for file, n in finished_writes(folder / name).items() if any(p in file for p in paid)}
    undisturbed = finished_writes(folder / "whole")
    assert len(written) == {"random": 8 + 4 + 9, "after": 2 + 1 + 3}[name]  # chunks, students, asked epochs
    epochs = {file: 2 if file.endswith("fleet.pt") else 1 for file in written}  # one state after each epoch
    assert written == epochs
    assert written.keys() <= undisturbed.keys()


def test_what_a_finished_study_leaves_is_swept(studies: tuple[Path, dict]):
    """But for what a kill between the manifest and the sweep left, which nobody reads."""
    folder, _ = studies
    left = [path for path in (folder / "whole/artifacts").rglob("*") if "part-" in path.name]
    assert left == []
    assert not list((folder / "whole/artifacts").rglob("checkpoints"))


# --- the real thing ---------------------------------------------------------------------------------


def start_study(root: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "study.py", "smoke"],
        cwd=REPO,
        env=os.environ | THREADS | {"SUBLIMINAL_ROOT": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_all(process: subprocess.Popen) -> None:
    """The study, its notebooks and their kernels, none with time for a last word."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in family:
        each.kill()
    psutil.wait_procs(family, timeout=60)
    process.communicate()


def finished(root: Path) -> dict[Path, int]:
    """Manifests and finished chunks and epochs, with the moment they were written."""
    patterns = ("manifest.json", "part-*.jsonl", "complete.json", "epoch-*.json")
    found = [path for pattern in patterns for path in (root / "artifacts").rglob(pattern)]
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def killed_for_real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """study.py killed at a random moment of a stage's work, twice, then run to its end."""
    root, rng = tmp_path_factory.mktemp("real"), random.Random(SEED)
    paid: dict[Path, int] = {}
    for stage in ("finetune", "evaluate"):
        process = start_study(root)
        deadline = time.monotonic() + 300
        try:
            while not list((root / "artifacts/smoke" / stage).glob("64k/neutral/s0/begun.json")):
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < deadline, f"{stage} never began"
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 1.5))
            assert process.poll() is None, "the study ended before it was killed"
        finally:
            kill_all(process)
        before = finished(root)
        time.sleep(0.3)
        assert finished(root) == before, "something outlived the kill and still writes"
        paid = before | paid
    process = start_study(root)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    for path, moment in paid.items():
        assert not path.exists() or path.stat().st_mtime_ns == moment, f"{path} was made again"
    return root, output


def test_study_py_killed_twice_gives_the_undisturbed_tables(
    studies: tuple[Path, dict], killed_for_real: tuple[Path, str]
):
    root, output = killed_for_real
    whole = studies[0] / "whole"
    assert "lambda by size" in output
    assert read_tables(root) == read_tables(whole)
    assert read_results(root) == read_results(whole)
    assert read_identities(root) == read_identities(whole)
