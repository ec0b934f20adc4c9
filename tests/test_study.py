"""study.py with notebooks that only pretend: the grid of one machine, and the analysis alone."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
from grid_project import PROBE, Project, wait_for

from lib import config, planning


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, tuple[int, str], tuple[int, str]]:
    """A study of two bases run twice, the first time from another folder."""
    project = Project(tmp_path_factory.mktemp("study") / "project")
    project.params("tiny", 'sizes: 64k,166k\nanimals: neutral,wolf\nseeds: "0"\n')
    first = project.run("tiny", "--jobs", "2", program="study.py", cwd=tmp_path_factory.mktemp("elsewhere"))
    return project, first, project.run("tiny", program="study.py")


# --- a study that goes well -----------------------------------------------------------------------


def test_the_end_is_the_report_and_the_answer(finished):
    project, (code, out), _ = finished
    assert code == 0, out
    lines = out.splitlines()
    assert re.fullmatch(r"done in \d+:\d\d", lines[-3])
    assert lines[-2].startswith("report: ") and lines[-2].endswith("executed/tiny/report.html")
    assert lines[-1] == "lambda of 6 evaluations"
    assert "lambda of 6 evaluations" in (project.root / "executed/tiny/report.html").read_text()


def test_a_second_run_computes_nothing_and_says_so(finished):
    project, _, (code, out) = finished
    assert code == 0
    assert "nothing to compute: everything was found finished" in out
    assert out.splitlines()[-1] == "lambda of 6 evaluations"
    assert project.events("analysed") == ["analysed tiny"]


def test_notebooks_compute_with_one_thread_whatever_the_caller_set(finished):
    project, *_ = finished
    assert {event.split()[-1] for event in project.events(PROBE)} == {"1"}


def test_a_setting_that_was_changed_is_not_done_yet(project: Project):
    assert project.run("tiny", program="study.py")[0] == 0
    project.params("tiny", 'sizes: 64k\nanimals: neutral,wolf\nseeds: "0"\nsamples: 7\n')
    code, out = project.run("tiny", program="study.py")
    assert code == 1
    assert "evaluate-64k failed:" in out
    assert (
        "samples" in out.split("evaluate-64k failed:")[1]
    )  # the notebook names what differs, and what to do
    begun = [event.split()[1] for event in project.events("begin")]
    assert begun.count("01_generate") == 1


def test_a_report_is_made_again_from_the_evaluations_that_are_there(finished, tmp_path: Path):
    project, *_ = finished
    before = len(project.events("analysed"))
    code, out = project.run("tiny", "--report-only", program="study.py")
    assert code == 0, out
    assert out.splitlines()[-1] == "lambda of 6 evaluations"
    assert len(project.events("analysed")) == before + 1
    assert project.run("tiny", program="study.py")[1].count("nothing to compute") == 1


# --- a study that goes wrong ----------------------------------------------------------------------


def test_a_kernel_that_dies_is_told_as_such(project: Project):
    project.replace("01_generate", "import os\nos._exit(1)")
    code, out = project.run("tiny", program="study.py")
    assert code == 1
    assert re.search(r"generate-64k failed:\n  .*Kernel died.*\n.*too little memory", out), out


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
    code, out = project.run(study, program="study.py")
    assert code == 1
    assert message in out
    assert "Traceback" not in out
    assert not (project.root / "executed").exists()


def test_an_analysis_that_fails_is_told_in_its_own_words(project: Project):
    project.replace("04_analysis", "from lib.errors import MissingInput\nraise MissingInput('no evaluation')")
    code, out = project.run("tiny", "--report-only", program="study.py")
    assert code == 1
    assert "analyse failed:\n  no evaluation\nits log is" in out
    assert "Traceback" not in out


def test_ctrl_c_says_how_to_go_on(project: Project):
    project.trouble("01_generate", "64k", "hangs")
    process: subprocess.Popen = project.start("tiny", program="study.py")
    wait_for(lambda: project.events("begin 01_generate"))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 130
    assert out.splitlines()[-1].startswith("stopped; what had finished stays")
    assert "Traceback" not in out


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
    plan = config.read_parameters(stage, planning.read_defaults(notebook) | asked)
    assert len(plan.cells) == 16 * 5
    assert {name: getattr(plan.shared, name) for name in wanted} == wanted
    for name, value in {"system": "default", "grammar": "off", "stop_when_enough": False}.items():
        assert getattr(plan.shared, name, value) == value


def test_the_study_qwen_has_the_six_sizes_of_the_reference_experiment():
    (asked,) = planning.read_study("qwen")
    labels = [base.label for base in asked.bases]
    assert sorted(labels) == sorted(["0.5b", "1.5b", "3b", "7b", "14b", "32b"])
