"""The plan of a study: which jobs, for which cells, in which order and after which others."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lib import config, paths, planning
from lib.errors import BadParameter
from lib.planning import Cost, list_jobs

ANIMALS = "neutral,dog,cat,wolf"


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of params files of its own; `study` in it has two sizes, four animals, three seeds."""
    monkeypatch.setattr(paths, "params_file", lambda study: tmp_path / f"{study}.yaml")
    (tmp_path / "study.yaml").write_text(f'sizes: 0.5b,7b\nanimals: {ANIMALS}\nseeds: "0,1,2"\n')
    return tmp_path


def minutes_per_cell(minutes: float, start: float = 1) -> planning.Costs:
    def costs(stage: str, label: str, cells: int, settings: Mapping[str, Any]) -> Cost:
        return Cost(gpus=int(bool(label)), minutes=start + cells * minutes, start=start)

    return costs


def test_a_base_is_a_chain_of_one_job_a_stage_and_the_analysis_ends_the_plan(params: Path):
    jobs = list_jobs("study")
    assert [job.name for job in jobs] == [
        *("generate-7b", "finetune-7b", "evaluate-7b"),
        *("generate-0.5b", "finetune-0.5b", "evaluate-0.5b"),
        "analyse",
    ]
    needs = {job.name: job.needs for job in jobs}
    assert needs["generate-7b"] == ()
    assert needs["finetune-7b"] == ("generate-7b",)
    assert needs["evaluate-7b"] == ("finetune-7b",)
    assert set(needs["analyse"]) == {"evaluate-7b", "evaluate-0.5b"}


@pytest.mark.parametrize("study", ["smoke", "micro", "ladder", "qwen", "smollm2"])
@pytest.mark.parametrize("hours", [4, 2, 0.25])
def test_every_cell_of_a_study_is_in_one_job_of_each_stage(study: str, hours: float):
    jobs = list_jobs(study, minutes_per_cell(30), hours)
    assert len({job.name for job in jobs}) == len(jobs)
    (asked,) = planning.read_study(study)
    wanted = {(a, s) for a in asked.animals for s in asked.seeds}
    for stage in planning.BY_CELL:
        for base in asked.bases:
            cells = Counter(
                cell for job in jobs if (job.stage, job.label) == (stage, base.label) for cell in job.cells
            )
            cells.pop((config.UNTUNED, 0), None)
            assert cells == dict.fromkeys(wanted, 1)


@pytest.mark.parametrize("hours", [4, 2, 0.25])
def test_a_cell_waits_for_the_same_cell_of_the_stage_before(hours: float):
    jobs = {job.name: job for job in list_jobs("qwen", minutes_per_cell(30), hours)}
    for job in jobs.values():
        if job.stage in ("finetune", "evaluate") and job.part != config.UNTUNED:
            before = [jobs[name] for name in job.needs if jobs[name].part != config.UNTUNED]
            assert {each.label for each in before} == {job.label}
            assert set(job.cells) <= {cell for each in before for cell in each.cells}


def test_a_stage_that_would_take_too_long_falls_into_as_few_jobs_as_keep_to_the_limit(params: Path):
    def groups(minutes: float) -> list[tuple[int, int]]:
        jobs = list_jobs("study", minutes_per_cell(minutes))
        return [(len(j.seeds), len(j.animals)) for j in jobs if (j.stage, j.label) == ("finetune", "7b")]

    assert groups(15) == [(3, 4)]  # 3 h in all
    assert groups(25) == [(3, 2)] * 2  # 5 h: two parts are enough, and halves end sooner than other cuts
    assert groups(50) == [(1, 4)] * 3  # 10 h
    assert groups(100) == [(1, 2)] * 6  # 20 h


def test_a_job_says_why_it_holds_what_it_holds(params: Path):
    whole = list_jobs("study", minutes_per_cell(15))
    assert next(j.why for j in whole if j.stage == "finetune") == "all 12 cells of 7b on one copy of the base"
    split = list_jobs("study", minutes_per_cell(50))
    assert next(j.why for j in split if j.stage == "finetune") == (
        "4 of 12 cells of 7b on one copy of the base, which would take 10 h for all: "
        "no job is to take more than 4 h"
    )
    assert "was not measured" in list_jobs("study")[0].why


def test_jobs_fill_the_rounds_in_which_students_are_trained_together(params: Path):
    def costs(stage: str, label: str, cells: int, settings: Mapping[str, Any]) -> Cost:
        return Cost(gpus=1, minutes=1 + 60 * -(-cells // 4), start=1)  # four together take as long as one

    jobs = [job for job in list_jobs("study", costs, 2.5) if (job.stage, job.label) == ("finetune", "7b")]
    assert [len(job.cells) for job in jobs] == [8, 4]  # six and six would take a round more


def test_a_job_is_no_mere_start_of_its_engine(params: Path):
    jobs = list_jobs("study", minutes_per_cell(0.5, start=5), 0.01)
    assert all(len(job.cells) == 12 for job in jobs if job.stage == "finetune")


def test_other_settings_and_other_code_are_other_jobs_but_not_for_stages_they_do_not_touch(
    params: Path, monkeypatch: pytest.MonkeyPatch
):
    def hashes() -> dict[str, str]:
        return {job.stage: job.asked for job in list_jobs("study") if job.label in ("7b", "")}

    def changed(before: dict[str, str]) -> set[str]:
        return {stage for stage, asked in hashes().items() if asked != before[stage]}

    file, first = params / "study.yaml", hashes()
    assert changed(first) == set()
    text = file.read_text()
    for line, stages in {
        "epochs: 3\n": {"finetune"},
        "temperature: 0.5\n": {"generate", "evaluate"},
        "permutations: 99\n": {"analyse"},
    }.items():
        file.write_text(text + line)
        assert changed(first) == stages
    file.write_text(text)
    monkeypatch.setattr(planning.provenance, "hash_sources", lambda: "edited")
    assert changed(first) == {"analyse"}


def test_parts_of_an_evaluation_leave_the_untuned_model_to_one_job(params: Path):
    """Each evaluation asks it too where nobody has: two at once would write one folder."""
    jobs = list_jobs("study", minutes_per_cell(100))
    control = next(job for job in jobs if job.name == "evaluate-7b-untuned")
    assert control.cells == [("untuned", 0)]
    parts = [job for job in jobs if (job.stage, job.label) == ("evaluate", "7b") and job != control]
    assert len(parts) == 6
    assert all(control.name in job.needs for job in parts)


def test_a_base_that_did_not_come_with_the_project_is_built_first(params: Path):
    (params / "built.yaml").write_text(f'sizes: 64k,64k-7\nanimals: {ANIMALS}\nseeds: "0"\n')
    (params / "other.yaml").write_text(f'sizes: 64k\nanimals: {ANIMALS}\nseeds: "0"\nrecipe: mine\n')
    needs = {job.name: job.needs for job in list_jobs("built")}
    assert "pretrain-64k" not in needs
    assert needs["generate-64k-7"] == ("pretrain-64k-7",)
    assert list_jobs("other")[0].name == "pretrain-64k-mine"


def test_who_holds_up_most_goes_first(params: Path):
    jobs = list_jobs("study", minutes_per_cell(10))
    ranks = planning.rank_jobs(jobs)
    assert ranks["generate-7b"] > ranks["finetune-7b"] > ranks["evaluate-7b"] > ranks["analyse"]
    assert ranks["generate-7b"] > ranks["generate-0.5b"]  # as long, and larger
    unknown = planning.rank_jobs(list_jobs("study"))
    assert unknown["generate-7b"] > unknown["generate-0.5b"] > unknown["evaluate-7b"]


def test_a_job_of_all_cells_is_the_papermill_run_that_a_person_would_start(params: Path):
    whole = next(job for job in list_jobs("study") if job.name == "finetune-7b")
    assert " ".join(whole.arguments()[2:]) == "-p size 7b -p animal all -p seed all -p study study"
    part = next(job for job in list_jobs("study", minutes_per_cell(100)) if job.stage == "finetune")
    assert " ".join(part.arguments()[2:]) == "-p size 7b -p animal neutral,dog -p seed 0 -p study study"


# --- further axes ---------------------------------------------------------------------------------


def test_each_point_of_an_axis_is_a_study_of_its_own_with_its_own_chain(params: Path):
    (params / "axes.yaml").write_text(
        f'sizes: 7b\nanimals: {ANIMALS}\nseeds: "0"\nepochs: 3\n'
        "axes: {lora_rank: [2, 8], learning_rate: [0.001]}\n"
    )
    jobs = list_jobs("axes")
    assert {job.study for job in jobs} == {
        "axes-lora_rank2-learning_rate0_001",
        "axes-lora_rank8-learning_rate0_001",
    }
    assert len(jobs) == 8
    by_name = {job.name: job for job in jobs}
    assert all(by_name[name].study == job.study for job in jobs for name in job.needs)
    first, second = planning.read_study("axes")
    assert (first.overrides["lora_rank"], second.overrides["lora_rank"], first.overrides["epochs"]) == (
        2,
        8,
        3,
    )


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("{lora_rnk: [2]}", "unknown parameter 'lora_rnk'; did you mean 'lora_rank'"),
        ("{lora_rank: 2}", "axis lora_rank must be a list of different values, got 2"),
        ("{lora_rank: []}", "must be a list of different values"),
        ("{learning_rate: [0.1, '0.1']}", "must be a list of different values"),
        ("{seeds: [0]}", "seeds is an axis of every study"),
        ("{entanglement: [0.5]}", "a dial of the base models and no axis"),
        ("[2, 4]", "axes must be `name: [values]`"),
    ],
)
def test_an_axis_that_is_none_is_refused(params: Path, axes: str, message: str):
    (params / "bad.yaml").write_text(f"sizes: 7b\naxes: {axes}\n")
    with pytest.raises(BadParameter) as caught:
        list_jobs("bad")
    assert message in str(caught.value)
