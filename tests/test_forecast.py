"""What a study will take and where it stands: schedules against bounds, words against made-up jobs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib import forecast, paths, planning, resources
from lib.forecast import State
from lib.planning import Job


def make_job(name: str, minutes: float | None, *needs: str, gpus: int = 1, stage: str = "finetune") -> Job:
    """A job whose name is its stage and label."""
    return Job("qwen", stage, name, needs=needs, gpus=gpus, minutes=minutes)


def named(name: str, stage: str = "finetune") -> str:
    return f"{stage}-{name}"


# --- schedules ------------------------------------------------------------------------------------

THREE = [make_job("7b", 10.0), make_job("3b", 6.0), make_job("1.5b", 4.0)]


@pytest.mark.parametrize(("gpus", "finish"), [(1, 20.0), (2, 10.0), (3, 10.0)])
def test_the_longest_goes_first_and_the_others_fill_up(gpus: int, finish: float):
    assert forecast.schedule_jobs(THREE, gpus, 1).finish == finish


def test_a_job_waits_for_what_it_needs():
    jobs = [make_job("7b", 5.0), make_job("3b", 5.0, named("7b"))]
    assert forecast.schedule_jobs(jobs, 8, 1).starts == {named("7b"): 0, named("3b"): 5}


def test_a_job_of_two_gpus_waits_for_both():
    jobs = [make_job("7b", 10.0), make_job("72b", 9.0, gpus=2), make_job("3b", 1.0)]
    ends = forecast.schedule_jobs(jobs, 2, 1)
    assert ends.starts[named("72b")] == 10
    assert ends.starts[named("3b")] == 0


def test_jobs_without_a_gpu_take_cores():
    jobs = [make_job(name, 5.0, gpus=0) for name in ("64k", "64k-1", "64k-2")]
    assert forecast.schedule_jobs(jobs, 1, 2).finish == 10
    assert forecast.schedule_jobs([*jobs, *THREE], 1, 3).finish == 20


@st.composite
def plans(draw: st.DrawFn) -> list[Job]:
    """Up to twelve jobs of one GPU, each needing some of those before it."""
    jobs: list[Job] = []
    for i in range(draw(st.integers(1, 12))):
        needs = draw(st.lists(st.sampled_from(jobs), unique=True, max_size=2)) if jobs else []
        minutes = draw(st.floats(0.1, 100))
        jobs.append(make_job(f"64k-{i + 1}", minutes, *(job.name for job in needs)))
    return jobs


@given(plans(), st.integers(1, 5))
def test_a_schedule_keeps_every_rule_and_is_near_the_bound(jobs: list[Job], gpus: int):
    ends = forecast.schedule_jobs(jobs, gpus, 1)
    finish = {job.name: ends.starts[job.name] + job.minutes for job in jobs}
    for job in jobs:
        assert all(ends.starts[job.name] >= finish[need] - 1e-6 for need in job.needs)
        now = ends.starts[job.name] + 1e-6
        assert sum(ends.starts[j.name] <= now < finish[j.name] for j in jobs) <= gpus
    bound = forecast.find_bound(jobs, gpus)
    # No list schedule takes more than the work over the GPUs and the longest chain together (Graham, 1969).
    assert bound - 1e-6 <= ends.finish <= sum(job.minutes for job in jobs) / gpus + bound + 1e-6


def test_the_bound_is_the_work_or_the_longest_chain():
    chain = [make_job("7b", 5.0), make_job("3b", 7.0, named("7b")), make_job("1.5b", 1.0)]
    assert forecast.find_bound(chain, 1) == 13
    assert forecast.find_bound(chain, 8) == 12


def test_the_advice_is_the_cut_that_ends_first(monkeypatch):
    monkeypatch.setattr(forecast, "GROUP_HOURS", (4.0, 0.25))
    costs, finishes = resources.read_costs("qwen"), {}
    for hours in forecast.GROUP_HOURS:
        jobs = planning.list_jobs("qwen", costs, hours)
        finishes[hours] = forecast.schedule_jobs(jobs, 64, 2).finish
        advice = forecast.advise_group_hours(jobs, 64, 2)
        assert advice.startswith("With --group-hours 0.25 ") if hours == 4 else not advice
    assert forecast.find_group_hours("qwen", 64, 2) == (0.25, finishes[0.25])


# --- what is left ---------------------------------------------------------------------------------


def make_cells(label: str, count: int, minutes: float | None, stage: str = "finetune", part: str = "") -> Job:
    animals = ("neutral", "dog", "cat", "wolf")[:count]
    return Job("qwen", stage, label, animals, (0,), part=part, gpus=1, minutes=minutes)


def test_finished_cells_of_a_job_are_not_made_again():
    job = make_cells("7b", 4, 40.0)
    (left,) = forecast.list_left([job], State(cells={job.name: 3}))
    assert left.minutes == 10


def test_what_was_done_is_left_out_and_no_longer_waited_for():
    before, after = make_cells("7b", 4, 40.0, "generate"), make_job("7b", 5.0, "generate-7b")
    (left,) = forecast.list_left([before, after], State(done=frozenset([before.name])))
    assert (left.name, left.needs) == (after.name, ())


def test_jobs_that_are_done_teach_what_others_will_take():
    jobs = [
        make_cells("7b", 4, 40.0, part="s0"),
        make_cells("7b", 2, 20.0, part="s1"),  # the same size: by cells
        make_cells("3b", 2, 10.0),  # the same stage: by the ratio
        make_cells("7b", 4, 8.0, "evaluate"),  # neither
    ]
    left = forecast.list_left(jobs, State(done=frozenset([jobs[0].name]), took={jobs[0].name: 80.0}))
    assert [job.minutes for job in left] == [40, 20, 8]


def test_a_job_of_unknown_length_is_known_once_its_like_has_run():
    jobs = [make_cells("72b", 4, None, part="s0"), make_cells("72b", 2, None, part="s1")]
    assert forecast.schedule_jobs(jobs, 1, 1).unknown == tuple(job.name for job in jobs)
    (left,) = forecast.list_left(jobs, State(done=frozenset([jobs[0].name]), took={jobs[0].name: 100.0}))
    assert left.minutes == 50


def test_a_running_job_has_less_left_and_never_less_than_nothing():
    jobs = [make_cells("7b", 4, 40.0), make_cells("3b", 4, 5.0)]
    left = forecast.list_left(jobs, State(running={job.name: 10.0 for job in jobs}))
    assert [job.minutes for job in left] == [30, 0]


def test_manifests_without_a_receipt_count_as_cells(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    jobs = planning.list_jobs("smoke", resources.read_costs("smoke"))
    written = paths.artifact("smoke", "generate", "64k", "wolf", 0) / "manifest.json"
    written.parent.mkdir(parents=True)
    written.write_text("{}")
    state = forecast.read_state(jobs)
    assert state.cells == {"generate-64k": 1, "finetune-64k": 0, "evaluate-64k": 0, "analyse": 0}
    assert not state.done | state.failed | set(state.running)


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minutes", "words"),
    [
        (0.5, "30 s"),
        (1.5, "1:30 min"),
        (59.99, "59:59 min"),
        (95, "1.6 h"),
        (4319, "72.0 h"),
        (5760, "4.0 days"),
    ],
)
def test_minutes_in_words(minutes: float, words: str):
    assert forecast.say_minutes(minutes) == words


@pytest.mark.parametrize(("megabytes", "words"), [(0.5, "0.5 MB"), (2048, "2.0 GB"), (3.2e6, "3.2 TB")])
def test_megabytes_in_words(megabytes: float, words: str):
    assert forecast.say_megabytes(megabytes) == words


@pytest.fixture(scope="module")
def qwen() -> list[Job]:
    return planning.list_jobs("qwen", resources.read_costs("qwen"))


def test_a_plan_tells_jobs_hours_disk_finish_and_grouping(qwen: list[Job]):
    text = forecast.describe_plan(qwen, 8, 2, State())
    assert text.startswith(f"study qwen: {len(qwen)} jobs, 0 done")
    for job in qwen:
        assert f"\n{job.name} " in text
    hours = sum((job.minutes or 0) * job.gpus for job in qwen) / 60
    assert f"{hours:.2f}" in text
    for part in ("disk: ", "expected finish", "*8", "how the jobs are cut:", "projection.csv"):
        assert part in text
    assert "unknown" not in text


def test_a_plan_says_what_nobody_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "params_file", lambda study: tmp_path / f"{study}.yaml")
    (tmp_path / "large.yaml").write_text("sizes: 72b\nanimals: neutral,owl\nseeds: '0'\n")
    jobs = planning.list_jobs("large", resources.read_costs("large"))
    text = forecast.describe_plan(jobs, 2, 2, State())
    assert "finetune-72b" in text and "unknown" in text
    assert "whose minutes nobody has measured" in text
    assert "bench_grid.py --fill" in text


def test_a_plan_that_does_not_fit_on_the_disk_says_so(qwen: list[Job], monkeypatch):
    monkeypatch.setattr(forecast, "_find_free", lambda: 10**9)
    assert "does not fit" in forecast.describe_plan(qwen, 8, 2, State())
    monkeypatch.setattr(forecast, "_find_free", lambda: 10**15)
    assert "does not fit" not in forecast.describe_plan(qwen, 8, 2, State())


def test_the_state_of_each_job_is_told(qwen: list[Job]):
    first, second, third, fourth = (job.name for job in qwen[:4])
    state = State(frozenset([first]), {fourth: 2}, {second: 3.0}, frozenset([third]))
    left = forecast.list_left(qwen, state)
    lines = {line.split()[0]: line for line in forecast.describe_jobs(qwen, left, state)}
    ends = {name: lines[name].split("  ")[-1].strip() for name in (first, second, third, fourth)}
    assert ends == {first: "done", second: "running", third: "failed", fourth: "2 cells done"}


def test_progress_is_one_line_with_the_time_left(qwen: list[Job]):
    line = forecast.say_progress(qwen, 8, 2, State())
    left = forecast.schedule_jobs(qwen, 8, 2).finish
    assert line == f"0 of {len(qwen)} jobs done; about {forecast.say_minutes(left)} left on 8 GPUs"


def test_what_waits_for_a_failed_job_is_not_in_the_time_left():
    jobs = [make_job("7b", 60.0), make_job("3b", 30.0), make_job("1.5b", 600.0, named("7b"))]
    line = forecast.say_progress(jobs, 1, 1, State(failed=frozenset([named("7b")])))
    assert line == "0 of 3 jobs done, 1 failed; about 30:00 min left on 1 GPU"


def test_a_finished_study_has_nothing_left():
    state = State(done=frozenset(job.name for job in THREE))
    assert forecast.say_progress(THREE, 1, 1, state) == "3 of 3 jobs done"
    assert "everything is done" in "\n".join(forecast.describe_finish(forecast.list_left(THREE, state), 1, 1))


def test_status_counts_jobs_and_cells_by_stage_and_size(qwen: list[Job]):
    some = [job for job in qwen if job.stage == "finetune" and job.label == "32b"]
    state = State(frozenset([some[0].name]), {some[1].name: 1}, {some[1].name: 12.0})
    text = forecast.describe_status(qwen, 8, 2, state)
    row = next(line.split() for line in text.splitlines() if line.startswith("finetune  32b"))
    assert row == ["finetune", "32b", "1", "of", str(len(some)), str(len(some[0].cells) + 1), "of", "80"]
    assert f"running {some[1].name} since 12:00 min" in text
