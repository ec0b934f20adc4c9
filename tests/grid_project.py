"""A project folder whose notebooks only pretend: the real lib, plan, Snakemake, papermill and kernels.

Each notebook has the parameters of the real one, writes real manifests and notes what it made in `events`.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat

REPO = Path(__file__).resolve().parent.parent
CONFIGS = {"01_generate": "Generate", "02_finetune": "Finetune", "03_evaluate": "Evaluate"}
PROBE = "threads"
# A stage that `fails` says so in the words of a file; one that `hangs` waits until its file is gone; one that
# `dies` loses its kernel, once.
WORK = """
import dataclasses, os, pathlib, time
from lib import config, files, paths, store
from lib.errors import MissingInput
plan = config.read_parameters(config.CONFIG, globals())
trouble = lambda what: pathlib.Path(f"NOTEBOOK-{size}-{what}")
if trouble("dies").exists():
    trouble("dies").unlink()
    os._exit(1)
if trouble("fails").exists():
    raise MissingInput(trouble("fails").read_text())
def tell(what):
    with open("events", "a") as file:
        file.write(f"{what}\\n")
tell(f"begin NOTEBOOK {size} {os.getpid()}")
tell(f"PROBE {os.environ['OMP_NUM_THREADS']}")
made = 0
stages = ["generate", "finetune", "evaluate"]
stage = plan.shared.stage
before = stages[stages.index(stage) - 1] if stage != "generate" else None
untuned = [dataclasses.replace(plan.shared, animal="untuned", seed=0)] if stage == "evaluate" else []
for cell in dict.fromkeys((*plan.cells, *untuned)):
    inputs = {}
    if before and cell.animal != "untuned":
        folder = paths.artifact(cell.study, before, cell.size, cell.animal, cell.seed)
        folder = paths.lists_read(vars(cell)) if stage == "finetune" else folder
        inputs = {before: store.load_finished(folder, "upstream is missing").identity}
    folder = paths.artifact(cell.study, stage, cell.size, cell.animal, cell.seed)
    run = store.open_run(folder, cell, inputs)
    if run.state == "finished":
        continue
    while trouble("hangs").exists():
        time.sleep(0.05)
    files.write_text(run.folder / "made.txt", f"{cell.animal} {cell.seed}")
    if cell.stage == "evaluate":
        files.write_json(paths.evaluation(cell.study, cell.size, cell.animal, cell.seed), {})
    run.finish(["made.txt"], {})
    tell(f"made {cell.study} {cell.stage} {cell.size} {cell.animal} s{cell.seed}")
    made += 1
print(f"DONE NOTEBOOK {size}: {made} made, {len(plan.cells) - made} found finished")
"""
TABLE = """
from lib import config, files, paths
plan = config.read_parameters(config.Analysis, globals())
found = sorted(path.as_posix() for path in paths.results(study).glob("*/*/s*.json"))
files.write_text(paths.tables(study) / "transfer.csv", "\\n".join(found))
with open("events", "a") as file:
    file.write(f"analysed {study}\\n")
print(f"lambda of {len(found)} evaluations")
"""


def write_notebook(path: Path, notebook: str, cell: str) -> None:
    """The real notebook's parameters, and one cell."""
    real = nbformat.read(REPO / f"notebooks/{notebook}.ipynb", as_version=4)
    real.cells = [*real.cells[:2], nbformat.v4.new_code_cell(cell.strip())]
    nbformat.write(real, path)


class Project:
    def __init__(self, root: Path):
        self.root = root
        for folder in ("lib", "workflow"):
            shutil.copytree(REPO / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("study.py", "grid.py"):
            shutil.copy(REPO / name, root)
        for folder in ("notebooks", "params", "benchmarks", "models/64k", "models/166k"):
            (root / folder).mkdir(parents=True)
        shutil.copy(REPO / "benchmarks/resources.csv", root / "benchmarks")
        for label in ("64k", "166k"):
            (root / f"models/{label}/manifest.json").write_text("{}")
        for notebook, name in CONFIGS.items():
            cell = WORK.replace("NOTEBOOK", notebook).replace("CONFIG", name).replace("PROBE", PROBE)
            write_notebook(root / f"notebooks/{notebook}.ipynb", notebook, cell)
        shutil.copy(REPO / "notebooks/00_pretrain.ipynb", root / "notebooks")
        write_notebook(root / "notebooks/04_analysis.ipynb", "04_analysis", TABLE)
        self.params("tiny", 'sizes: 64k\nanimals: neutral,wolf\nseeds: "0"\n')

    def params(self, study: str, text: str) -> None:
        (self.root / f"params/{study}.yaml").write_text(text)

    def trouble(self, notebook: str, label: str, what: str) -> Path:
        """The file that makes a stage of a base fail, hang or die."""
        path = self.root / f"{notebook}-{label}-{what}"
        path.touch()
        return path

    def replace(self, notebook: str, cell: str) -> None:
        """Let a notebook do something else than it pretends."""
        write_notebook(self.root / f"notebooks/{notebook}.ipynb", notebook, cell)

    def start(self, *words: str, program: str = "grid.py", cwd: Path | None = None) -> subprocess.Popen:
        env = {name: value for name, value in os.environ.items() if name != "SUBLIMINAL_ROOT"}
        return subprocess.Popen(
            [sys.executable, str(self.root / program), *words],
            cwd=cwd or self.root,
            env=env | {"OMP_NUM_THREADS": "7"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, program: str = "grid.py", cwd: Path | None = None) -> tuple[int, str]:
        process = self.start(*words, program=program, cwd=cwd)
        out, _ = process.communicate(timeout=240)
        return process.returncode, out

    def events(self, what: str = "") -> list[str]:
        path = self.root / "events"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(what)]

    def receipt(self, name: str, study: str = "tiny") -> Path:
        return self.root / f"artifacts/{study}/.grid/{name}.json"


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
