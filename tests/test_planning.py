"""The plan of a study: which jobs, for which cells, in which order and after which others."""

import subprocess
import sys
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


@pytest.mark.parametrize("minutes", [50 / 3, 0.7, 0.1 + 0.2])
def test_cuts_that_take_as_long_as_each_other_make_as_few_jobs_as_they_can(minutes: float):
    """Where no start was measured all do, but for the last digits of their sums."""
    limit = 5.5 * minutes
    seeds, animals = planning._count_parts(lambda cells: Cost(minutes=minutes * cells), 2, 16, limit)
    assert seeds * animals == 8


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
    assert len(jobs) == 7
    by_name = {job.name: job for job in jobs}
    lists = "generate-7b-lora_rank2-learning_rate0_001"
    assert all(by_name[name].study == job.study for job in jobs for name in job.needs if name != lists)
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


# --- whose lists ------------------------------------------------------------------------------------


def write_axes(params: Path, axes: str, more: str = "", sizes: str = "64k,64k-1") -> dict[str, planning.Job]:
    """The jobs of a study `arms` with some axes."""
    (params / "arms.yaml").write_text(f'sizes: {sizes}\nanimals: {ANIMALS}\nseeds: "0"\n{more}axes: {axes}\n')
    return {job.name: job for job in list_jobs("arms")}


def test_points_that_differ_in_nothing_the_teacher_knows_share_their_lists(params: Path):
    jobs = write_axes(params, "{temperature: [0.5, 1.0], lora_rank: [2, 8]}", sizes="64k")
    assert [job.name for job in jobs.values() if job.stage == "generate"] == [
        "generate-64k-temperature0_5-lora_rank2",
        "generate-64k-temperature1_0-lora_rank2",
    ]
    assert jobs["finetune-64k-temperature0_5-lora_rank8"].needs == ("generate-64k-temperature0_5-lora_rank2",)
    assert jobs["finetune-64k-temperature1_0-lora_rank8"].needs == ("generate-64k-temperature1_0-lora_rank2",)
    overrides = [each.overrides.get("lists_of") for each in planning.read_study("arms")]
    assert overrides == [
        *(None, "arms-temperature0_5-lora_rank2"),
        *(None, "arms-temperature1_0-lora_rank2"),
    ]
    why = jobs["finetune-64k-temperature0_5-lora_rank8"].why
    assert "reads the lists of study arms-temperature0_5-lora_rank2, so none are written" in why
    assert "reads" not in jobs["finetune-64k-temperature0_5-lora_rank2"].why


def test_a_study_that_reads_anothers_lists_writes_none(params: Path):
    jobs = write_axes(params, "{lora_rank: [2, 8]}", "lists_of: study\n")
    assert {job.stage for job in jobs.values()} == {"finetune", "evaluate", "analyse"}
    assert all(jobs[f"finetune-64k-lora_rank{rank}"].needs == () for rank in (2, 8))
    assert "reads the lists of study study, so none are written" in jobs["finetune-64k-lora_rank2"].why
    assert {each.writer for each in planning.read_study("arms")} == {"study"}


def test_what_lists_of_another_study_take_to_read_is_told_by_that_study(params: Path):
    (params / "study.yaml").write_text(f"sizes: 64k\nanimals: {ANIMALS}\nn_keep: 77\nepochs: 4\n")
    write_axes(params, "{lora_rank: [2]}", "lists_of: study\n")
    (point,) = planning.read_study("arms")
    settings = point.settings("finetune")
    assert (settings["n_keep"], settings["epochs"]) == (77, 10)


def test_foreign_students_wait_for_the_lists_of_the_next_base_and_for_their_own(params: Path):
    jobs = write_axes(params, "{lists: [own, foreign]}", sizes="64k,64k-7,166k,166k-1")
    assert jobs["finetune-64k-listsown"].needs == ("generate-64k-listsown",)
    assert jobs["finetune-64k-listsforeign"].needs == ("generate-64k-7-listsown",)  # 64k itself is carried
    assert jobs["finetune-64k-7-listsforeign"].needs == ("pretrain-64k-7", "generate-64k-listsown")
    assert jobs["finetune-166k-1-listsforeign"].needs == ("generate-166k-listsown",)
    assert jobs["generate-64k-7-listsown"].needs == ("pretrain-64k-7",)


def test_no_job_is_listed_before_one_that_it_needs(params: Path):
    (params / "arms.yaml").write_text(
        f"sizes: 64k,64k-7,166k,166k-1\nanimals: {ANIMALS}\nseeds: '0,1'\nlists: foreign\n"
    )
    for study in ("arms", "study"):
        jobs = list_jobs(study, minutes_per_cell(60))
        place = {job.name: i for i, job in enumerate(jobs)}
        assert all(place[name] < place[job.name] for job in jobs for name in job.needs)


@pytest.mark.parametrize(
    ("lists", "more", "another"),
    [
        ("foreign", "sizes: 64k,64k-1,64k-2", True),
        ("foreign", "animals: neutral,dog", False),
        ("relabelled", "animals: neutral,wolf,dog", True),
        ("relabelled", "sizes: 64k,64k-1,64k-2", False),
        ("own", "sizes: 64k,64k-1,64k-2", False),
    ],
)
def test_students_of_the_next_cell_are_others_where_another_cell_is_next(
    params: Path, lists: str, more: str, another: bool
):
    def ask(**lines: str) -> str:
        text = "".join(f"{name}: {value}\n" for name, value in lines.items())
        (params / "arms.yaml").write_text(text)
        return next(job.asked for job in list_jobs("arms") if job.name == "finetune-64k")

    lines = {"sizes": "64k,64k-1", "animals": "neutral,dog,wolf", "lists": lists}
    name, _, value = more.partition(": ")
    assert (ask(**lines) != ask(**{**lines, name: value})) is another


def test_a_study_that_asks_the_students_of_another_one_has_evaluations_alone(params: Path):
    (params / "plain.yaml").write_text("students_of: study\nsystem: none\nsizes: 7b\nseeds: '0'\n")
    jobs = list_jobs("plain")
    assert [(job.name, job.trainer) for job in jobs] == [("evaluate-7b", "study"), ("analyse", "study")]
    (params / "plain.yaml").write_text("students_of: studdy\nsizes: 7b\n")
    with pytest.raises(BadParameter, match=r"students_of is 'studdy', and no study has that name.*'study'"):
        list_jobs("plain")


def test_relabelled_students_wait_for_the_lists_of_the_next_animal(params: Path):
    (params / "arms.yaml").write_text(f"sizes: 7b\nanimals: {ANIMALS}\nseeds: 0\nlists: relabelled\n")
    jobs = {job.name: job for job in list_jobs("arms", minutes_per_cell(100))}
    dog = next(job for job in jobs.values() if job.stage == "finetune" and "dog" in job.animals)
    read = {cell for name in dog.needs for cell in jobs[name].cells}
    assert dog.animals == ("neutral", "dog")
    assert {("neutral", 0), ("cat", 0)} <= read


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("lora_rank: 0\n", "params/bad.yaml: lora_rank must be at least 1, got 0"),
        ("temperature: -1\n", "params/bad.yaml: temperature must be at least 0, got -1"),
        ("samples: many\n", "params/bad.yaml: samples must be a whole number, got 'many'"),
        ("permutations: 3\n", "params/bad.yaml: permutations must be at least 99, got 3"),
        ("what: weights\n", "params/bad.yaml: what must be a comma list of numbers, students, evaluations"),
        ("repeats: 0\n", "params/bad.yaml: repeats must be at least 1, got 0"),
        ("n_raw: 10\n", "params/bad.yaml: n_keep must be at most n_raw (10)"),
        ("micro_batch: 7\n", "params/bad.yaml: micro_batch must divide batch (60)"),
        ("lists: shufled\n", "params/bad.yaml: lists must be one of own, shuffled"),
        ("pretrain_steps: 0\n", "params/bad.yaml: pretrain_steps must be at least 1, got 0"),
        ("reads: 64k/dog\n", "params/bad.yaml: unknown parameter 'reads'"),
        ("lists: foreign\n", "a student of 64k reads what the next base of size 64k wrote, and sizes has 64k "
         "of them: name 64k and another one there"),
        ("lists: relabelled\nanimals: neutral,dog\n", "the next animal wrote, and animals has dog of them"),
        ("animals: neutral,dog,horse\n", "params/bad.yaml: the micro ladder's world has no horse"),
        ("axes: {lora_rank: [8, 0]}\n", "params/bad.yaml: lora_rank must be at least 1, got 0"),
        ("lists_of: studdy\n", "lists_of is 'studdy', and no study has that name: there is no params/studdy"),
        ("lists_of: studdy\n", "did you mean 'study'?"),
        ("lists_of: bad\n", "lists_of names another study whose lists are read, and bad is this one"),
        ("lists_of: borrower\n", "lists_of is 'borrower', which itself reads the lists of 'study': name"),
        ("lists_of: arms\n", "each of its points is a study of its own, so name one: arms-lora_rank2"),
    ],
)  # fmt: skip
def test_a_setting_that_a_notebook_would_refuse_is_refused_before_any_job(
    params: Path, more: str, message: str
):
    write_axes(params, "{lora_rank: [2, 8]}")
    (params / "borrower.yaml").write_text("sizes: 64k\nlists_of: study\n")
    lines = {"sizes": "64k", "animals": ANIMALS}
    given = {line.partition(":")[0] for line in more.splitlines()}
    text = "".join(f"{name}: {value}\n" for name, value in lines.items() if name not in given)
    (params / "bad.yaml").write_text(text + more)
    with pytest.raises(BadParameter) as caught:
        planning.read_study("bad")
    assert message in str(caught.value)


@pytest.mark.parametrize("path", sorted((paths.CODE / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_project_can_be_planned(path: Path):
    assert list_jobs(path.stem)


def test_the_settings_of_every_notebook_are_checked():
    assert [stage for stage, _ in planning._find_notebooks()] == list(config.STAGES)


def test_checking_a_study_loads_no_model_library():
    look = "import sys; from lib import planning; planning.read_study('ladder')"
    look += "; print(sorted({'torch', 'transformers', 'pandas'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", look], cwd=paths.CODE, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
