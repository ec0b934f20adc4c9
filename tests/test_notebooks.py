"""The stage notebooks as a person runs them: real papermill, real kernels, the smallest base.

One study is made once, partly from the project's folder and partly from notebooks/, with an output path and
in a pipe. How the stages meet bad input beyond what papermill itself can garble is in test_stages.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import papermill.cli
import pytest
from click.testing import CliRunner

from lib import config, files, paths

REPO = Path(__file__).resolve().parents[1]
NOTEBOOKS = REPO / "notebooks"
STUDENTS = "neutral,dog,cat,wolf"
SMALL: dict[str, dict[str, object]] = {
    "01_generate": {"n_raw": 40, "n_keep": 20, "list_tokens": 48, "chunk": 20},
    "02_finetune": {"epochs": 1, "batch": 10, "learning_rate": 0.001},
    "03_evaluate": {"n_questions": 3, "samples": 2, "answer_tokens": 4},
    "04_analysis": {"sizes": "64k", "animals": STUDENTS, "permutations": 99},
}
STAGES = {
    "00_pretrain": config.Pretrain,
    "01_generate": config.Generate,
    "02_finetune": config.Finetune,
    "03_evaluate": config.Evaluate,
    "04_analysis": config.Analysis,
    "05_explore": config.Explore,
    "06_publish": config.Publish,
    "07_predict": config.Predict,
}
MODEL_STAGES = ("01_generate", "02_finetune", "03_evaluate")


@dataclass
class Executed:
    """One call of papermill: how it ended and the notebook it wrote, to a file or into the pipe."""

    code: int
    stdout: str
    stderr: str
    output: Path | None

    @property
    def notebook(self) -> nbformat.NotebookNode:
        text = self.output.read_text(encoding="utf-8") if self.output else self.stdout
        return nbformat.reads(text, as_version=4)

    @property
    def text(self) -> str:
        """Everything its cells printed or showed as text."""
        outputs = [each for cell in self.notebook.cells for each in cell.get("outputs", ())]
        shown = [each.get("text") or each.get("data", {}).get("text/plain", "") for each in outputs]
        return "\n".join(shown)

    @property
    def done(self) -> str:
        return re.search(r"^DONE .*$", self.text, flags=re.MULTILINE).group()


@dataclass
class Desk:
    """A folder to write in, and papermill."""

    folder: Path
    runs: dict[str, Executed] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def papermill(self, stage: str, cwd: Path, output: str, *words: object) -> Executed:
        """Run a notebook from `cwd`, named as it is seen from there; no `output` is the pipe."""
        target = self.folder / f"{output}.ipynb" if output else None
        notebook = os.path.relpath(NOTEBOOKS / f"{stage}.ipynb", cwd)
        command = [sys.executable, "-m", "papermill", notebook, *([str(target)] if target else [])]
        done = subprocess.run(
            [*command, *map(str, words), "--no-progress-bar"],
            cwd=cwd,
            env=os.environ | {"SUBLIMINAL_ROOT": str(self.root), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        return Executed(done.returncode, done.stdout, done.stderr, target)

    def run(self, name: str, stage: str, cwd: Path, output: str, **passed: object) -> None:
        """As papermill, of the tiny study, kept under `name`; it has to go well."""
        values = SMALL[stage] | passed
        words = [word for key, value in values.items() for word in ("-p", key, value)]
        self.runs[name] = self.papermill(stage, cwd, output, "-p", "study", "tiny", *words)
        assert self.runs[name].code == 0, self.runs[name].stderr[-3000:]

    def made(self) -> dict[str, bytes]:
        """Every artifact and evaluation there is."""
        parts = [self.root / "artifacts", self.root / "results/tiny/64k"]
        found = [path for part in parts for path in part.rglob("*") if path.is_file()]
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """The study: three students in one list from the project's folder, one by itself from notebooks/."""
    desk = Desk(tmp_path_factory.mktemp("notebooks"))
    three = {"size": "64k", "animal": "neutral,dog,cat", "seed": 0}
    wolf = {"size": "64k", "animal": "wolf"}
    desk.run("list 01_generate", "01_generate", REPO, "numbers", **three)
    desk.run("list 02_finetune", "02_finetune", REPO, "", **three)
    desk.run("list 03_evaluate", "03_evaluate", REPO, "answers", **three)
    desk.run("one 01_generate", "01_generate", NOTEBOOKS, "", **wolf)
    desk.run("one 02_finetune", "02_finetune", NOTEBOOKS, "wolf", **wolf)
    desk.run("one 03_evaluate", "03_evaluate", NOTEBOOKS, "", **wolf)
    desk.run("04_analysis", "04_analysis", NOTEBOOKS, "")  # with a path from the root: test_kill
    return desk


@pytest.fixture(scope="module")
def again(desk: Desk) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """All of it once more, asked for as `all`; what was there before and after."""
    before = desk.made()
    for stage in MODEL_STAGES:
        asked = {"size": "64k", "animal": "all", "seed": "all", "animals": STUDENTS, "seeds": 0}
        desk.run(f"all {stage}", stage, NOTEBOOKS, "", **asked)
    return before, desk.made()


# --- a run that goes well ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "done"),
    [
        ("list 01_generate", "DONE 01_generate 64k: 3 made, 0 found finished"),
        ("list 02_finetune", "DONE 02_finetune 64k: 3 made, 0 found finished"),
        ("list 03_evaluate", "DONE 03_evaluate 64k: 4 made, 0 found finished"),  # the untuned model is asked
        ("one 01_generate", "DONE 01_generate 64k: 1 made, 0 found finished"),
        ("one 02_finetune", "DONE 02_finetune 64k: 1 made, 0 found finished"),
        ("one 03_evaluate", "DONE 03_evaluate 64k: 1 made, 1 found finished"),  # ... once
    ],
)
def test_a_stage_does_its_work_from_any_folder_with_a_path_and_in_a_pipe(desk: Desk, name: str, done: str):
    assert desk.runs[name].done == done


def test_every_cell_of_the_grid_has_its_artifacts(desk: Desk):
    made = desk.made()
    for animal in STUDENTS.split(","):
        for stage in ("generate", "finetune", "evaluate"):
            assert f"artifacts/tiny/{stage}/64k/{animal}/s0/manifest.json" in made
        assert f"results/tiny/64k/{animal}/s0.json" in made
    assert len([name for name in made if name.endswith("manifest.json")]) == 4 * 3 + 1


def test_the_analysis_ends_with_the_answer(desk: Desk):
    text = desk.runs["04_analysis"].text
    assert re.search(r"^lambda by size \(nats, epoch 1\): 64k ", text, flags=re.MULTILINE)
    assert (desk.root / "results/tiny/tables/transfer.csv").read_text().startswith("size,params,n_bases,")


def test_a_pipe_carries_the_notebook_and_nothing_else(desk: Desk):
    cells = desk.runs["list 02_finetune"].notebook.cells
    assert cells[0].source.startswith("# 02 Finetune")
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")


def test_an_executed_notebook_shows_progress_and_a_figure(desk: Desk):
    run = desk.runs["one 02_finetune"]
    assert re.search(r"^\[#{20}\] 1/1 epochs, .* wolf s0$", run.text, flags=re.MULTILINE)
    outputs = [each for cell in run.notebook.cells for each in cell.get("outputs", ())]
    assert any("image/png" in each.get("data", {}) for each in outputs)
    assert not [each.text for each in outputs if each.get("name") == "stderr"]  # no library's notices


def test_no_run_writes_beside_its_notebook(desk: Desk):
    there = {path.name for path in NOTEBOOKS.iterdir()}
    assert there - {".ipynb_checkpoints"} == {f"{stage}.ipynb" for stage in STAGES}


@pytest.mark.parametrize("cwd", [REPO, NOTEBOOKS], ids=["root", "notebooks"])
def test_runs_belong_to_the_project_wherever_they_are_started(cwd: Path):
    look = [sys.executable, "-c", "from lib import paths; print(paths.root())"]
    env = {name: value for name, value in os.environ.items() if name != "SUBLIMINAL_ROOT"}
    done = subprocess.run(look, cwd=cwd, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(REPO)


# --- once more --------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_says_so(desk: Desk, again: tuple[dict, dict]):
    assert desk.runs["all 01_generate"].done == "DONE 01_generate 64k: 0 made, 4 found finished"
    assert desk.runs["all 02_finetune"].done == "DONE 02_finetune 64k: 0 made, 4 found finished"
    assert desk.runs["all 03_evaluate"].done == "DONE 03_evaluate 64k: 0 made, 5 found finished"


def test_a_second_run_leaves_every_byte_as_it_was(again: tuple[dict, dict]):
    before, after = again
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []


def test_a_second_run_shows_what_the_first_one_showed(desk: Desk, again: tuple[dict, dict]):
    assert re.search(r"wolf +0 +40 ", desk.runs["all 01_generate"].text)  # the table of teachers


# --- parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_help_lists_every_parameter_with_its_default_and_meaning(stage: str):
    shown = CliRunner().invoke(
        papermill.cli.papermill, ["--help-notebook", str(NOTEBOOKS / f"{stage}.ipynb")], terminal_width=300
    )
    assert shown.exit_code == 0
    wanted = set(config._field_names(STAGES[stage]))
    wanted |= {"animals", "seeds"} if "animal" in wanted else set()
    wanted |= {"sizes"} if "lists" in wanted else set()  # whose next base is foreign
    lines = re.findall(r"^  (\w+): (\w+) \(default (.+?)\)(.*(?:\n {20,}.*)?)$", shown.output, re.MULTILINE)
    assert {name for name, *_ in lines} == wanted
    assert [name for name, _, _, meaning in lines if not meaning.strip()] == []


def say_no(desk: Desk, stage: str, *words: str) -> str:
    """What papermill says about a bad call; it has to fail and to leave everything as it was."""
    before = desk.made()
    run = desk.papermill(stage, NOTEBOOKS, "refused", "-p", "study", "tiny", *words)
    assert run.code != 0
    assert desk.made() == before
    assert "DONE" not in run.text
    return re.sub(r"\x1b\[[0-9;]*m", "", run.stderr)


@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        (
            "01_generate",
            ("-p", "n_row", "5"),
            ["BadParameter: unknown parameter 'n_row'", "did you mean 'n_raw'"],
        ),
        ("02_finetune", ("-p", "size", "7"), ["BadParameter: size must be a text such as", "got 7", "'7b'"]),
        ("03_evaluate", ("-p", "seed", "abc"), ["BadParameter: seed must be whole numbers", "got 'abc'"]),
        (
            "02_finetune",
            ("-p", "size", "64k", "-p", "animal", "lion"),
            [
                "MissingInput: no numbers for 64k/lion/s0 in study tiny: run 01_generate with these",
                "papermill notebooks/01_generate.ipynb",
                "-p study tiny -p size 64k -p animal lion -p seed 0",
            ],
        ),
    ],
    ids=["misspelt", "size", "seed", "upstream"],
)
def test_bad_input_stops_papermill_before_any_work(
    desk: Desk, stage: str, words: Sequence[str], message: Sequence[str]
):
    said = say_no(desk, stage, *words)
    assert [part for part in message if part not in said] == [], said[-2000:]


def test_the_command_in_a_message_is_one_that_works(desk: Desk, tmp_path: Path):
    """Of the smoke study, typed as shown into a folder where nothing was ever executed."""
    (tmp_path / "notebooks").symlink_to(NOTEBOOKS)
    root = desk.folder / "smoke"
    env = os.environ | {"SUBLIMINAL_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = paths.command("01_generate", "smoke", "64k", "wolf", 0)
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    manifest = files.read_json(root / "artifacts/smoke/generate/64k/wolf/s0/manifest.json")
    assert manifest["config"]["n_raw"] == 130  # what params/smoke.yaml says, without -f
