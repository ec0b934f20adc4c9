"""The grid's benchmark: what finished runs fill into the table, and a small grid that Snakemake runs."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

import bench_grid
from lib import files, forecast, paths, planning, resources
from lib.planning import Job

BENCHMARKS = paths.CODE / "benchmarks"


# --- filling the table ----------------------------------------------------------------------------


def write_evaluation(root: Path, size: str, gpu: str | None, seconds: float, together: int) -> None:
    """What a tracked evaluation says of the stages before it."""
    lineage = {
        "seconds": {"generate": 30.0, "finetune": seconds},
        "hardware": {"gpu": gpu},
        "chain": {
            "generate": {"config": {"size": size}, "counts": {"raw": 5_000}},
            "finetune": {
                "config": {"size": size, "epochs": 2},
                "counts": {"examples": 10_000, "together": together},
            },
        },
    }
    files.write_json(root / "results" / "mine" / size / "wolf" / "s0.json", {"lineage": lineage})


def test_seconds_of_finished_runs_fill_the_table(tmp_path):
    write_evaluation(tmp_path, "135m", "NVIDIA X", 240.0, 8)
    rows = {(n.rule, n.size, n.device): n for n in bench_grid.fill_recorded([tmp_path], BENCHMARKS)}
    assert rows["generate", "135m", "gpu"].minutes == pytest.approx(1.0)  # 30 s for half of 10,000
    # Eight students shared 240 s, so that each took 30 s to read 10,000 lists twice.
    assert rows["finetune", "135m", "gpu"].minutes == pytest.approx(0.25)
    assert "results/mine, NVIDIA X" in rows["generate", "135m", "gpu"].comes_from


def test_a_cpu_and_a_gpu_are_rows_of_their_own(tmp_path):
    write_evaluation(tmp_path, "135m", None, 240.0, 1)
    rows = {(n.rule, n.size, n.device): n for n in bench_grid.fill_recorded([tmp_path], BENCHMARKS)}
    assert rows["generate", "135m", "cpu"].gpus == 0
    assert ("generate", "135m", "gpu") not in rows


def test_a_row_whose_runs_are_gone_stays_and_one_that_was_never_known_does_not_pretend():
    gone = dataclasses.replace(
        resources.find_need("evaluate", "72b", resources.read_table()), minutes=9.0, comes_from="manifests"
    )
    filled = bench_grid.fill_table([], BENCHMARKS, {("evaluate", "72b", "gpu"): gone})
    rows = {(n.rule, n.size, n.device): n for n in filled}
    assert rows["evaluate", "72b", "gpu"] == gone
    assert rows["finetune", "72b", "gpu"].minutes is None


def test_filling_again_without_the_runs_changes_nothing():
    old = resources.read_table()
    again = {(n.rule, n.size, n.device): n for n in bench_grid.fill_table([paths.CODE], BENCHMARKS, old)}
    assert again.keys() == old.keys()
    for key, need in old.items():
        assert (again[key].start_minutes is None) == (need.start_minutes is None)
        assert (again[key].minutes is None) == (need.minutes is None)


def test_what_is_written_is_what_is_read(tmp_path, monkeypatch):
    old = resources.read_table()
    monkeypatch.setattr(resources, "table_path", lambda: tmp_path / "resources.csv")
    bench_grid.write_table(tmp_path / "resources.csv", old.values())
    assert resources.read_table() == old


def test_filling_a_damaged_table_makes_it_anew(tmp_path, monkeypatch, capsys):
    path = tmp_path / "resources.csv"
    path.write_text("rule,size\ngenerate,7b\n")
    monkeypatch.setattr(resources, "table_path", lambda: path)
    assert bench_grid.run_fill([]) == 0
    assert resources.find_need("finetune", "7b", resources.read_table()).minutes
    assert "not measured: " in capsys.readouterr().out


# --- the synthetic grid ---------------------------------------------------------------------------


def test_what_a_job_waited_beyond_its_gpu_and_its_needs_is_overhead():
    jobs = (
        Job("qwen", "generate", "7b", gpus=1, minutes=1.0),
        Job("qwen", "finetune", "7b", needs=("generate-7b",), gpus=1, minutes=1.0),
        Job("qwen", "generate", "3b", gpus=1, minutes=1.0),
        Job("qwen", "analyse", needs=("finetune-7b",), minutes=1.0),
    )
    spans = {
        "generate-7b": (10.0, 14.0),
        "generate-3b": (10.5, 12.0),  # the other GPU was free from the start: half a second late
        "finetune-7b": (14.2, 16.0),  # a GPU was free since 12, what it needs only since 14
        "analyse": (16.3, 17.0),
    }
    ran = bench_grid.Simulated(jobs, 2, 4.0, 1.0, 9.0, spans)
    seats = bench_grid.seat_jobs(ran)
    assert [seat["gpu"] for seat in seats] == [0, 1, 1, None]
    assert [seat["waited"] for seat in seats] == pytest.approx([0, 0.5, 0.2, 0.3])
    assert (ran.makespan, ran.start) == (7, 1)
    row = bench_grid.describe_run(ran, seats, "now", 0.4)
    assert (row["overhead_mean_s"], row["overhead_worst_s"]) == (0.25, 0.5)
    assert row["over_bound"] == pytest.approx(7 / 3 - 1, abs=1e-4)  # a chain of three minutes, a second each


def test_snakemake_runs_a_grid_of_sleeping_jobs(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_grid, "STUDY", "smoke")
    ran = bench_grid.simulate(1, 3.0, tmp_path)
    jobs = planning.list_jobs("smoke", resources.read_costs("smoke"))
    assert set(ran.spans) == {job.name for job in jobs}
    for job in jobs:
        assert all(ran.spans[need][1] <= ran.spans[job.name][0] for need in job.needs)
    assert ran.makespan >= forecast.find_bound(jobs, 1) * ran.scale > 2.9
    assert all(seat["waited"] >= 0 for seat in bench_grid.seat_jobs(ran))


def test_a_job_gets_as_far_as_its_notebook(monkeypatch):
    assert 0 < bench_grid.time_job_start() < 60


def test_a_row_is_added_and_others_stay(tmp_path):
    path = tmp_path / "grid.csv"
    bench_grid.append_row(path, {"gpus": 1, "notes": "a, b"})
    bench_grid.append_row(path, {"gpus": 8, "notes": ""})
    with open(path, newline="") as file:
        assert [row["gpus"] + row["notes"] for row in csv.DictReader(file)] == ["1a, b", "8"]


def test_the_committed_grid_holds_what_was_asked_of_it():
    """Makespan within a tenth of the bound on 1, 8 and 64 GPUs, less than two seconds of overhead a job."""
    with open(BENCHMARKS / "grid.csv", newline="") as file:
        rows = {int(row["gpus"]): row for row in csv.DictReader(file)}
    assert set(rows) >= {1, 8, 64}
    for row in rows.values():
        assert float(row["over_bound"]) <= 0.1
        assert float(row["overhead_mean_s"]) + float(row["job_start_s"]) < 2


def test_the_figure_shows_every_job_on_its_gpu():
    from lib import gantt, plots

    jobs = (Job("qwen", "generate", "7b", gpus=1, minutes=60.0),)
    ran = bench_grid.Simulated(jobs, 1, 4.0, 1.0, 0.0, {"generate-7b": (1.0, 61.0)})
    table = bench_grid.tabulate_seats(ran, bench_grid.seat_jobs(ran))
    assert json.loads(table.to_json(orient="records"))[0]["end"] == pytest.approx(1.0)
    slide = plots.draw(gantt.grid_gantt, table, by="gpus")
    (bar,) = slide.axes[0].patches
    assert (bar.get_x(), bar.get_width()) == pytest.approx((0, 1))
    assert "+0.0% over the bound" in slide.axes[0].get_title()
