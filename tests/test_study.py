"""study.py with notebooks of a few lines: real papermill, real kernels, real signals, nothing computed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import psutil
import pytest

import study
from lib import config

REPO = Path(__file__).resolve().parent.parent

PARAMETERS = """
study: str = ""
size: str = "64k"
animal: str = "all"
animals: str = "neutral,wolf"
seed: str = "all"
seeds: str = "0"
recipe: str = "standard"
"""
# Every stage writes down that it began and ended, and with how many threads.
BEGIN = """
import os, pathlib, time
def tell(what):
    with open("events", "a") as file:
        file.write(f"{what} {stage} {size} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\\n")
tell("begin")
"""
WORK = """
from lib.errors import MissingInput
trouble = pathlib.Path(f"{stage}-{size}-fails")
if trouble.exists():
    raise MissingInput(trouble.read_text())
while pathlib.Path(f"{stage}-{size}-hangs").exists():
    time.sleep(0.1)
done = pathlib.Path("artifacts", stage, size, "done")
found = done.exists()
done.parent.mkdir(parents=True, exist_ok=True)
done.touch()
"""
END = """
tell("end")
print(f"DONE {stage} {size}: {0 if found else 2} made, {2 if found else 0} found finished")
"""
BUILD = """
folder = pathlib.Path("artifacts/models", recipe, size)
folder.mkdir(parents=True)
(folder / "manifest.json").write_text("{}")
"""
ANALYSIS = """
study: str = "micro"
sizes: str = "64k"
animals: str = "grid"
seeds: str = "0"
measure: str = "logprob"
"""
TABLE = """
size = "all"
import os, pathlib
assert len(list(pathlib.Path("artifacts/03_evaluate").glob("*/done"))) == len(sizes.split(","))
folder = pathlib.Path("results", study, "tables")
folder.mkdir(parents=True, exist_ok=True)
(folder / "transfer.csv").write_text(
    "size,params,lambda,p,epoch,measure\\n64k,64752,0.0123,0.004,3,logprob\\n"
)
with open("events", "a") as file:
    file.write("end 04_analysis all 0 1\\n")
"""


def write_notebook(path: Path, *cells: str) -> None:
    parameters = nbformat.v4.new_code_cell(cells[0].strip(), metadata={"tags": ["parameters"]})
    rest = [nbformat.v4.new_code_cell(cell.strip()) for cell in cells[1:]]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# The report"), parameters, *rest],
        metadata={"kernelspec": kernel},
    )
    nbformat.write(notebook, path)


class Project:
    """A project folder of its own: our lib and study.py, notebooks that only pretend."""

    def __init__(self, root: Path):
        self.root = root
        shutil.copytree(REPO / "lib", root / "lib", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPO / "study.py", root)
        for folder in ("notebooks", "params", "models/64k"):
            (root / folder).mkdir(parents=True)
        (root / "models/64k/manifest.json").write_text("{}")
        for stage in ("00_pretrain", "01_generate", "02_finetune", "03_evaluate"):
            extra = BUILD if stage == "00_pretrain" else ""
            begin = f"stage = {stage!r}\n{BEGIN}"
            write_notebook(root / f"notebooks/{stage}.ipynb", PARAMETERS, begin, WORK + extra, END)
        write_notebook(root / "notebooks/04_analysis.ipynb", ANALYSIS, TABLE)
        self.params("tiny", "sizes: 64k")

    def params(self, study: str, text: str) -> None:
        (self.root / f"params/{study}.yaml").write_text(text)

    def start(self, *words: str, cwd: Path | None = None) -> subprocess.Popen:
        env = {name: value for name, value in os.environ.items() if name != "SUBLIMINAL_ROOT"}
        command = [sys.executable, str(self.root / "study.py"), *words]
        return subprocess.Popen(
            command,
            cwd=cwd or self.root,
            env=env | {"OMP_NUM_THREADS": "7"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, cwd: Path | None = None) -> tuple[int, str]:
        process = self.start(*words, cwd=cwd)
        out, _ = process.communicate(timeout=120)
        return process.returncode, out

    def events(self) -> list[list[str]]:
        path = self.root / "events"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def ended(self, label: str) -> list[str]:
        return [stage for what, stage, size, *_ in self.events() if (what, size) == ("end", label)]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, tuple[int, str], tuple[int, str]]:
    """A study of two bases run twice, from another folder; one of the bases has to be built."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    project = Project(tmp_path_factory.mktemp("study") / "project")
    project.params("tiny", "sizes: 64k,166k-1\n")
    runs = [project.run("tiny", "--jobs", "2", cwd=elsewhere) for _ in range(2)]
    return project, runs[0], runs[1]


# --- a study that goes well -----------------------------------------------------------------------


def test_each_base_runs_its_stages_in_order_and_the_analysis_comes_last(finished):
    project, (code, out), _ = finished
    assert code == 0, out
    first = project.events()[: len(project.events()) // 2 + 1]
    assert project.ended("64k")[:3] == ["01_generate", "02_finetune", "03_evaluate"]
    assert project.ended("166k-1")[:4] == ["00_pretrain", "01_generate", "02_finetune", "03_evaluate"]
    assert [event[1] for event in first].index("04_analysis") == 14  # begin and end of the seven before


def test_only_the_base_that_is_missing_is_built(finished):
    project, *_ = finished
    built = [size for what, stage, size, *_ in project.events() if (what, stage) == ("end", "00_pretrain")]
    assert built == ["166k-1"]


def test_notebooks_compute_with_one_thread_whatever_the_caller_set(finished):
    project, *_ = finished
    assert {event[4] for event in project.events()} == {"1"}


def test_a_line_per_stage_says_what_it_did(finished):
    _, (_, out), _ = finished
    assert re.search(r"^02_finetune +166k-1 +2 trained +\d:\d\d of \d:\d\d$", out, flags=re.MULTILINE)
    assert len(re.findall(r"^0[0-4]_\w+ .* of \d+:\d\d$", out, flags=re.MULTILINE)) == 8


def test_the_end_is_the_report_and_the_answer(finished):
    project, (_, out), _ = finished
    lines = out.splitlines()
    assert re.fullmatch(r"done in \d+:\d\d", lines[-3])
    report = Path(project.root.parent / "x" / lines[-2].removeprefix("report: "))
    assert report.name == "report.html"
    assert "The report" in (project.root / "executed/tiny/report.html").read_text()
    assert lines[-1] == "lambda by size (nats, epoch 3): 64k +0.0123 (p = 0.004)"


def test_a_second_run_computes_nothing_and_says_so(finished):
    _, _, (code, out) = finished
    assert code == 0
    assert "nothing to compute: everything was found finished" in out
    assert out.count("2 found finished") == 6
    assert not re.search(r"\d+ (written|trained|evaluated|built)", out)
    assert "lambda by size" in out


def test_the_largest_base_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    defaults = {"animals": "grid", "seeds": "0", "recipe": "standard", "measure": "logprob"}
    (tmp_path / "x.yaml").write_text("sizes: 64k,864k,166k-1,166k\n")
    monkeypatch.setattr(study.paths, "params_file", lambda name: tmp_path / f"{name}.yaml")
    monkeypatch.setattr(study, "notebook_defaults", lambda stage: defaults)
    labels = [base.label for base in study.read_study("x").bases]
    assert labels == ["864k", "166k-1", "166k", "64k"]


def test_as_many_chains_run_at_once_as_there_are_jobs(monkeypatch: pytest.MonkeyPatch):
    meeting = threading.Barrier(2)
    monkeypatch.setattr(study.Work, "run_chain", lambda work, chain: meeting.wait(timeout=10))
    with open(os.devnull) as lock:
        study.Work(lock, jobs=2).run([[], []])


# --- a study that goes wrong ----------------------------------------------------------------------


def test_a_failure_ends_its_own_chain_and_shows_the_notebooks_words_and_the_way_on(project: Project):
    project.params("tiny", "sizes: 64k,166k\n")
    (project.root / "models/166k").mkdir()
    (project.root / "models/166k/manifest.json").write_text("{}")
    trouble = project.root / "02_finetune-64k-fails"
    trouble.write_text("no numbers for 64k/wolf/s0: run\n  papermill this --and that")
    code, out = project.run("tiny", "--jobs", "2")
    assert code == 1
    assert project.ended("64k") == ["01_generate"]
    assert project.ended("166k") == ["01_generate", "02_finetune", "03_evaluate"]
    assert "04_analysis" not in out
    assert (
        "02_finetune 64k failed:\n  no numbers for 64k/wolf/s0: run\n    papermill this --and that\n" in out
    )
    assert "Traceback" not in out
    assert "MissingInput" not in out
    retry = re.search(r"retry it with\n  (.*)\n", out).group(1)
    trouble.unlink()
    subprocess.run(retry, shell=True, cwd=project.root, check=True, capture_output=True)
    assert project.ended("64k") == ["01_generate", "02_finetune"]


def test_a_kernel_that_dies_is_told_as_such(project: Project):
    write_notebook(project.root / "notebooks/01_generate.ipynb", PARAMETERS, "import os\nos._exit(1)")
    code, out = project.run("tiny")
    assert code == 1
    assert re.search(r"01_generate 64k failed:\n  .*Kernel died.*\n.*too little memory", out)


@pytest.mark.parametrize(
    ("study", "text", "message"),
    [
        ("tinny", None, "no study 'tinny': there is no params/tinny.yaml; studies here: tiny; did you mean"),
        ("bad", "sizes: 64k,65k", "unknown size '65k'"),
        ("bad", "animals: wolfe", "unknown animal 'wolfe'"),
        ("bad", "epoch_count: 3", "params/bad.yaml: unknown parameter 'epoch_count'"),
    ],
)
def test_a_bad_study_is_refused_before_any_work(project: Project, study: str, text: str, message: str):
    if text:
        project.params(study, text)
    code, out = project.run(study)
    assert code == 1
    assert message in out
    assert "Traceback" not in out
    assert not (project.root / "executed").exists()


# --- a study that is stopped ----------------------------------------------------------------------


@pytest.fixture
def hanging(project: Project) -> Iterator[tuple[Project, subprocess.Popen, int]]:
    """A study at work in its first stage, with the process of that stage's kernel."""
    (project.root / "01_generate-64k-hangs").touch()
    process = project.start("tiny")
    wait_for(lambda: any(event[:2] == ["begin", "01_generate"] for event in project.events()))
    kernel = int(project.events()[-1][3])
    yield project, process, kernel
    (project.root / "01_generate-64k-hangs").unlink(missing_ok=True)
    process.kill()
    process.communicate()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_ends_every_notebook_and_its_kernel(hanging):
    project, process, kernel = hanging
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.splitlines()[-1].startswith("stopped; what had finished stays")
    assert "Traceback" not in out
    assert "FAILED" not in out
    wait_for(lambda: not is_running(kernel), 5)
    assert project.ended("64k") == []


def test_a_killed_study_takes_its_notebooks_along_and_is_taken_up_again(hanging):
    project, process, kernel = hanging
    process.kill()
    process.wait()
    (project.root / "01_generate-64k-hangs").unlink()
    code, out = project.run("tiny")
    assert code == 0, out
    assert not is_running(kernel)


def test_a_study_is_run_once_at_a_time(hanging):
    project, _, kernel = hanging
    code, out = project.run("tiny")
    assert (code, "study tiny is being run already" in out) == (1, True), out
    assert is_running(kernel)


# --- the reference experiment -----------------------------------------------------------------

REFERENCE = {
    config.Generate: ("01_generate", {"n_raw": 30_000, "n_keep": 10_000, "temperature": 1.0, "top_p": 1.0}),
    config.Finetune: (
        "02_finetune",
        {
            **{"lora_rank": 8, "lora_alpha": 8.0, "lora_targets": "q,k,v,o,gate,up,down", "epochs": 10},
            **{"batch": 60, "learning_rate": 2e-4, "warmup_steps": 5, "max_grad_norm": 1.0},
        },
    ),
    config.Evaluate: ("03_evaluate", {"n_questions": 50, "samples": 100, "answer_tokens": 64}),
}


@pytest.mark.parametrize("stage", REFERENCE)
def test_the_study_qwen_is_the_reference_experiment(stage: type):
    notebook, wanted = REFERENCE[stage]
    asked = {"size": "32b", "animal": "all", "seed": "all"}
    plan = config.read_parameters(stage, study.notebook_defaults(notebook) | asked)
    assert len(plan.cells) == 16 * 5
    assert {name: getattr(plan.shared, name) for name in wanted} == wanted
    for name, value in {"system": "default", "grammar": "off", "stop_when_enough": False}.items():
        assert getattr(plan.shared, name, value) == value


def test_the_study_qwen_has_the_six_sizes_of_the_reference_experiment():
    labels = [base.label for base in study.read_study("qwen").bases]
    assert sorted(labels) == sorted(["0.5b", "1.5b", "3b", "7b", "14b", "32b"])
