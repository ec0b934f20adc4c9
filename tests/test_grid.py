"""grid.py with notebooks that only pretend: real Snakemake, papermill, kernels and signals."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from grid_project import Project, wait_for

import grid
from lib import planning
from lib.errors import NotAvailable
from lib.planning import Job
from workflow import job as worker


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def made_twice(project: Project) -> list[str]:
    return [event for event, count in Counter(project.events("made")).items() if count > 1]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- a grid that goes well ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    project = Project(tmp_path_factory.mktemp("grid") / "project")
    project.params("tiny", 'sizes: 64k,166k\nanimals: neutral,wolf\nseeds: "0,1"\n')
    code, out = project.run("run", "tiny", "--jobs", "2")
    assert code == 0, out
    return project, out


def test_a_grid_makes_every_cell_once_and_then_its_report(finished):
    project, out = finished
    made = project.events("made")
    assert len(made) == 2 * (4 + 4 + 5)  # both bases: four cells a stage, and the untuned model
    assert not made_twice(project)
    assert project.events()[-1] == "analysed tiny"
    assert "lambda of 10 evaluations" in (project.root / "executed/tiny/report.html").read_text()
    assert out.splitlines()[-1] == "lambda of 10 evaluations"


def test_a_line_per_job_tells_what_it_did_and_how_far_the_grid_is(finished):
    _, out = finished
    assert re.search(r"^finetune-64k +4 made, 0 found finished +\d:\d\d of \d:\d\d   \d of 7 jobs", out, re.M)
    assert re.search(r"7 of 7 jobs$", out, re.M)
    assert re.search(r"about \d+:\d\d left$", out, re.M)


def test_time_left_goes_by_what_jobs_of_a_kind_took_here():
    def job(stage: str, label: str, minutes: float | None, **axes: int) -> Job:
        return Job("toy", stage, label, minutes=minutes, axes=tuple(axes.items()))

    bases, students = ("64k", "64k-1", "166k"), ("64k", "166k")
    jobs = [job("pretrain", label, None) for label in bases] + [
        job("finetune", each, 2.0) for each in students
    ]
    told = grid.Progress(jobs, began=time.monotonic() - 700)
    assert told.say_left() == ""  # nobody knows
    told.done, told.took = {"pretrain-64k"}, {"pretrain-64k": 700.0}
    assert list(told.expect().values()) == [700, 60, 120, 120]  # no minutes known: one
    assert told.say_left() == ", about 16:40 left"
    told.done.add("finetune-64k")
    told.took["finetune-64k"] = 360.0  # three times what was planned, and so will the others take
    assert list(told.expect().values()) == [700, 180, 360]
    doses = grid.Progress([job("finetune", "64k", n / 1000, n_lists=n) for n in (1000, 10_000)])
    doses.done, doses.took = {doses.jobs[0].name}, {doses.jobs[0].name: 120.0}
    assert list(doses.expect().values()) == [pytest.approx(1200)]  # ten times the lists


def test_each_job_leaves_its_notebook_log_benchmark_and_receipt(finished):
    project, _ = finished
    executed = project.root / "executed/tiny"
    for notebook, name in (("01_generate", "generate"), ("03_evaluate", "evaluate")):
        assert (executed / f"{notebook}-166k.ipynb").exists()
        assert (executed / f"logs/{name}-166k.log").exists()
        assert (executed / f"benchmarks/{name}-166k.tsv").exists()
        assert project.receipt(f"{name}-166k").exists()


def test_clocks_that_disagree_make_nothing_again_and_fail_nothing(finished, tmp_path: Path):
    project = Project(tmp_path / "copy")
    for folder in ("artifacts", "results", "executed", "params"):
        shutil.copytree(finished[0].root / folder, project.root / folder, dirs_exist_ok=True)
    for name, year in (("generate-64k", 2040), ("evaluate-64k", 1990), ("finetune-166k", 2050)):
        moment = (year - 1970) * 365.25 * 86400
        os.utime(project.receipt(name), (moment, moment))
    code, out = project.run("run", "tiny")
    assert (code, "nothing to compute" in out, project.events()) == (0, True, []), out
    project.receipt("finetune-64k").unlink()  # and one that really has to run, after a receipt of the future
    code, out = project.run("run", "tiny")
    assert code == 0, out
    assert project.events("made") == []
    assert [event.split()[:3] for event in project.events("begin")] == [
        ["begin", "02_finetune", "64k"],
        ["begin", "03_evaluate", "64k"],
    ]


def test_a_result_that_is_gone_takes_its_receipt_along_and_is_made_again(finished, tmp_path: Path):
    project = Project(tmp_path / "copy")
    for folder in ("artifacts", "results", "executed", "params"):
        shutil.copytree(finished[0].root / folder, project.root / folder, dirs_exist_ok=True)
    shutil.rmtree(project.root / "artifacts/tiny/evaluate/64k/wolf/s1")
    code, out = project.run("run", "tiny")
    assert code == 0, out
    assert project.events("made") == ["made tiny evaluate 64k wolf s1"]


def test_what_snakemake_is_told_after_two_dashes_may_be_targets(project: Project):
    """Only what these need is made, and what was left out is no failure."""
    code, out = project.run("run", "tiny", "--", str(project.receipt("generate-64k")))
    assert code == 0, out
    assert out.splitlines()[-1] == "1 of 4 jobs are done; Snakemake was told to leave the others out"
    assert "failed" not in out


def test_what_fails_in_the_same_words_is_told_once(project: Project):
    project.params("tiny", 'sizes: 64k,166k\nanimals: neutral,wolf\nseeds: "0"\n')
    code, out = project.run("run", "tiny", "--", "--no-such-option")
    assert code == 1
    assert out.count("--no-such-option") == 1
    assert re.search(r"generate-166k and 1 more in the same words failed:", out), out


# --- a grid that goes wrong -----------------------------------------------------------------------


def test_a_failure_stops_only_what_needs_it_and_is_told_in_the_notebooks_words(project: Project):
    project.params("tiny", 'sizes: 64k,166k\nanimals: neutral,wolf\nseeds: "0"\n')
    trouble = project.trouble("02_finetune", "166k", "fails")
    trouble.write_text("no numbers for 166k/wolf/s0: run\n  papermill this --and that")
    code, out = project.run("run", "tiny", "--jobs", "1")
    assert code == 1
    assert project.events("begin")[0].split()[1:3] == ["01_generate", "166k"]  # the largest first
    assert len([event for event in project.events("made") if " 64k " in event]) == 2 + 2 + 3
    assert project.receipt("evaluate-64k").exists()
    assert not project.receipt("analyse").exists()
    said = "finetune-166k failed:\n  no numbers for 166k/wolf/s0: run\n    papermill this --and that\n"
    assert said in out
    assert "Traceback" not in out
    assert "4 of 7 jobs are done, 1 failed, 2 wait for those." in out
    trouble.unlink()
    retry = shlex.split(re.search(r"retry it with\n  (.*)\n", out)[1])
    subprocess.run(retry, cwd=project.root, check=True, capture_output=True)
    assert project.receipt("finetune-166k").exists()
    code, out = project.run("run", "tiny")
    assert code == 0, out
    assert not made_twice(project)


def test_a_kernel_that_dies_at_its_start_is_tried_once_more(project: Project):
    project.trouble("01_generate", "64k", "dies")
    code, out = project.run("run", "tiny")
    assert code == 0, out
    assert "DeadKernel" in (project.root / "executed/tiny/logs/generate-64k.log").read_text()


def test_a_bad_study_is_refused_before_any_work(project: Project):
    code, out = project.run("run", "tinny")
    assert code == 1
    assert "no study 'tinny'" in out
    assert "did you mean 'tiny'" in out
    assert not (project.root / "artifacts").exists()


def test_a_profile_that_is_not_there_is_refused(project: Project):
    code, out = project.run("run", "tiny", "--profile", "slum")
    assert code == 1
    assert "no profile 'slum'; there are box, kubernetes, laptop, slurm" in out


# --- a grid that is killed ------------------------------------------------------------------------


def start_hanging(project: Project, notebook: str = "02_finetune") -> tuple[subprocess.Popen, Path, int]:
    """A grid at work in a stage, what holds it there, and the process of that stage's kernel."""
    hold = project.trouble(notebook, "64k", "hangs")
    process = project.start("run", "tiny")
    wait_for(lambda: project.events(f"begin {notebook}") or process.poll() is not None)
    assert process.poll() is None, process.stdout.read()
    return process, hold, int(project.events(f"begin {notebook}")[0].split()[-1])


@pytest.mark.parametrize("victim", ["grid", "snakemake", "job"])
def test_what_is_killed_is_taken_up_again_and_nothing_is_made_twice(project: Project, victim: str):
    process, hold, kernel = start_hanging(project)
    family = psutil.Process(process.pid).children(recursive=True)
    named = {"snakemake": "--snakefile", "job": "workflow/job.py"}
    if victim == "grid":
        process.kill()
    else:
        found = [each for each in family if named[victim] in " ".join(each.cmdline())]
        found[-1 if victim == "job" else 0].kill()
    out, _ = process.communicate(timeout=240)
    wait_for(lambda: not is_running(kernel), 60)  # nothing outlives what was killed and writes on
    if victim != "grid":
        assert process.returncode == 1
        assert re.search(r"finetune-64k failed:\n  it began, and ended without a word", out), out
    hold.unlink()
    code, out = project.run("run", "tiny")
    assert code == 0, out
    assert not made_twice(project)
    assert [event.split()[1] for event in project.events("begin")].count("01_generate") == 1


def test_ctrl_c_ends_every_job_and_its_kernel(project: Project):
    process, _, kernel = start_hanging(project)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 130
    assert out.splitlines()[-1].startswith("stopped; what had finished stays")
    assert "Traceback" not in out
    wait_for(lambda: not is_running(kernel), 60)


def test_only_a_kernel_that_showed_nothing_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two kernels that are given one port wait for each other; a notebook that failed has said something."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    job = next(job for job in planning.list_jobs("micro") if job.stage == "finetune")
    log, notebook = worker.log_path(job), worker.executed_path(job)
    log.parent.mkdir(parents=True)
    log.write_text("RuntimeError: Kernel didn't respond in 60 seconds\n")
    assert worker.died_at_start(job)  # papermill had nothing to write yet
    notebook.write_text(json.dumps({"cells": [{"outputs": []}, {}]}))
    assert worker.died_at_start(job)
    notebook.write_text(json.dumps({"cells": [{"outputs": [{"text": "0 of 4 students"}]}]}))
    assert not worker.died_at_start(job)
    notebook.unlink()
    log.write_text("RuntimeError: no room\n")
    assert not worker.died_at_start(job)


def test_two_grids_on_one_folder_and_a_job_started_twice_do_no_harm(project: Project):
    process, hold, kernel = start_hanging(project)
    for program, words in (("grid.py", ("run", "tiny")), ("study.py", ("tiny",))):
        code, out = project.run(*words, program=program)
        assert (code, "study tiny is being run already" in out) == (1, True), out
    again = project.start("tiny", "finetune-64k", program="workflow/job.py")
    time.sleep(3)
    assert again.poll() is None
    assert is_running(kernel)
    hold.unlink()
    told, _ = again.communicate(timeout=240)
    assert re.search(r"finetune-64k is at work already \(process \d+ on .+\); waiting for it", told)
    assert "finetune-64k is done already" in told
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert not made_twice(project)


def test_a_disk_that_fills_in_the_middle_is_told_and_the_grid_goes_on_once_there_is_room(project: Project):
    artifacts = project.root / "artifacts"
    artifacts.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(artifacts)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted as root")
    try:
        process, hold, _ = start_hanging(project)
        filler = artifacts / "filler"
        filled = subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4096"], capture_output=True)
        assert b"No space left" in filled.stderr
        hold.unlink()
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 1
        assert "finetune-64k failed:" in out
        assert "disk is full" in out
        filler.unlink()
        code, out = project.run("run", "tiny")
        assert code == 0, out
        assert not made_twice(project)
    finally:
        subprocess.run(["umount", "-l", str(artifacts)], check=True)


# --- further axes ---------------------------------------------------------------------------------


def test_each_point_of_an_axis_is_a_study_of_its_own(project: Project):
    project.params("ranks", 'sizes: 64k\nanimals: neutral,wolf\nseeds: "0"\naxes: {lora_rank: [2, 4]}\n')
    code, out = project.run("run", "ranks", "--jobs", "2")
    assert code == 0, out
    for rank in (2, 4):
        manifest = project.root / f"artifacts/ranks-lora_rank{rank}/finetune/64k/wolf/s0/manifest.json"
        assert f'"lora_rank": {rank}' in manifest.read_text()
        assert (project.root / f"executed/ranks-lora_rank{rank}/report.html").exists()
    point = (project.root / "params/points/ranks-lora_rank4.yaml").read_text()
    assert point.startswith("# Point ") and "lists_of: ranks-lora_rank2\n" in point
    assert [event.split()[1] for event in project.events("begin")].count("01_generate") == 1
    code, out = project.run("run", "ranks")
    assert "nothing to compute" in out
    assert not made_twice(project)


def test_an_arm_reads_the_lists_of_another_study_as_far_as_they_are_there(project: Project):
    arm = 'sizes: 64k\nanimals: neutral,wolf\nseeds: "0"\nlists_of: tiny\naxes: {lists: [shuffled, random]}\n'
    project.params("arm", arm)
    code, out = project.run("run", "arm")
    assert code == 1 and "upstream is missing" in out
    assert project.run("run", "tiny")[0] == 0
    code, out = project.run("run", "arm")
    assert code == 0, out
    for lists in ("shuffled", "random"):
        manifest = project.root / f"artifacts/arm-lists{lists}/finetune/64k/wolf/s0/manifest.json"
        assert f'"lists": "{lists}"' in manifest.read_text()
    assert [event.split()[1] for event in project.events("begin")].count("01_generate") == 1
    assert not made_twice(project)


def test_a_setting_that_a_notebook_would_refuse_starts_no_job(project: Project):
    project.params("bad", 'sizes: 64k\nanimals: neutral,wolf\nseeds: "0"\nlora_rank: 0\n')
    code, out = project.run("run", "bad")
    assert code == 1
    assert "params/bad.yaml: lora_rank must be at least 1, got 0" in out
    assert not project.events()


# --- GPUs -----------------------------------------------------------------------------------------


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    for name in worker.GIVEN:
        monkeypatch.delenv(name, raising=False)


def test_each_job_has_gpus_of_its_own_and_the_next_waits_for_one(two_gpus: None):
    with worker.hold_gpus(1) as (first, _):
        with worker.hold_gpus(1) as (second, _):
            assert {first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]} == {"4", "5"}
            pool = ThreadPoolExecutor(1)
            third = pool.submit(lambda: worker.hold_gpus(1).__enter__())
            time.sleep(1)
            assert not third.done()
        assert third.result(60)[0] == second
    pool.shutdown()


def test_jobs_without_a_gpu_of_their_own_are_dealt_over_those_that_nobody_has_alone(two_gpus: None):
    with contextlib.ExitStack() as stack:

        def share() -> str:
            return stack.enter_context(worker.hold_gpus(0))[0]["CUDA_VISIBLE_DEVICES"]

        assert sorted([share(), share()]) == ["4", "5"]
        assert sorted([share(), share()]) == ["4", "5"]
        pool, holder = ThreadPoolExecutor(1), worker.hold_gpus(1)
        alone = pool.submit(holder.__enter__)
        time.sleep(1)
        assert not alone.done()
        stack.close()
        taken, _ = alone.result(60)
        assert {share(), share()} == {"4", "5"} - set(taken.values())
        pool.shutdown()


def test_a_job_of_several_gpus_has_them_together(two_gpus: None):
    with worker.hold_gpus(2) as (both, held):
        assert both == {"CUDA_VISIBLE_DEVICES": "4,5"}
        assert len(held) == 2


def test_a_job_that_takes_more_gpus_than_there_are_is_refused(two_gpus: None):
    with pytest.raises(NotAvailable, match="takes 3 GPUs and this machine has 2"), worker.hold_gpus(3):
        pass


def test_what_a_cluster_gave_a_job_is_left_alone(two_gpus: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with worker.hold_gpus(1) as (extra, _):
        assert extra == {}


# --- what a cluster says ----------------------------------------------------------------------------


def test_a_job_that_its_node_never_began_is_told_in_the_words_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    asked, job = grid.Grid("tiny", "slurm", 1, 4.0), Job("tiny", "finetune", "64k")
    kept = asked.folder / ".snakemake/slurm_logs/rule_finetune"  # where the plugin has sbatch write
    for folder, words in (
        ("tiny_finetune-64k", "python: not found"),
        ("tiny_finetune-64k-1", "of a later job of another base"),
    ):
        (kept / folder).mkdir(parents=True)
        (kept / folder / "17.log").write_text(words + "\n\n")
    said = grid.say_silent(asked, job)
    assert said.startswith("it never began; the last words of its node:\npython: not found\n")
    assert "tiny_finetune-64k/17.log" in said
    here = grid.say_silent(grid.Grid("tiny", "laptop", 1, 4.0), job)
    assert here.startswith("it never began") and "its node" not in here
