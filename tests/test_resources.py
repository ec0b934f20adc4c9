"""The one table of what a stage takes: filled from committed measurements, unknown where there are none."""

import csv
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench_grid
from lib import config, paths, planning, resources
from lib.errors import DamagedFile, MissingInput

TABLE = resources.read_table()
QWEN = {"n_raw": 30_000, "n_keep": 10_000, "epochs": 10, "n_questions": 50, "samples": 100, "lora_rank": 8}


@pytest.mark.parametrize("size", config.SIZES)
@pytest.mark.parametrize("rule", planning.BY_CELL)
def test_every_size_has_its_row_known_or_not(rule: str, size: str):
    assert (rule, size, resources.default_device(size)) in TABLE


def test_the_table_is_what_the_committed_measurements_fill():
    for need in bench_grid.fill_published(paths.CODE / "benchmarks"):
        assert TABLE[need.rule, need.size, need.device] == need


@pytest.mark.parametrize(
    ("rule", "size", "minutes"),
    [
        ("generate", "7b", 14.07 / 5_000 * 10_000 / 60),  # sampling.csv
        ("finetune", "32b", 14.7222 * 60 / 160),  # projection.csv: 16 students of 10 epochs
        ("finetune", "64k", 10_000 * 62.9077 / 67_285.3 / 60),  # cpu.csv
        ("evaluate", "0.5b", 6.66 / 16_000 * 10_000 / 60),  # sampling.csv
        ("analyse", "all", 99.52 / 60),  # analysis.csv
    ],
)
def test_minutes_are_those_that_were_measured(rule: str, size: str, minutes: float):
    device = "cpu" if rule == "analyse" else resources.default_device(size)
    assert TABLE[rule, size, device].minutes == pytest.approx(minutes, rel=1e-3)


def test_what_nobody_measured_is_unknown_and_says_so():
    need = resources.find_need("finetune", "72b", TABLE)
    assert (need.gpus, need.minutes, need.minutes_for(800)) == (2, None, None)
    assert "not measured" in need.comes_from


def test_without_a_row_nothing_is_known_but_that_a_published_model_takes_a_gpu():
    need = resources.find_need("finetune", "7b", {})
    assert (need.gpus, need.minutes, need.gpu_memory, need.disk) == (1, None, None, None)
    assert resources.find_need("finetune", "64k", {}).gpus == 0


def test_students_that_read_fewer_lists_take_fewer_minutes():
    settings = {"n_keep": 10_000, "n_lists": 1_000, "epochs": 10}
    assert resources.count_units("finetune", settings, 2) == 2
    assert resources.count_units("finetune", settings | {"n_lists": 0}, 2) == 20


@pytest.mark.parametrize(
    ("rule", "units"),
    [("pretrain", 1), ("generate", 6), ("finetune", 20), ("evaluate", 10), ("analyse", 2 / 480)],
)
def test_units_of_two_cells_of_the_reference_experiment(rule: str, units: float):
    assert resources.count_units(rule, QWEN, 2) == pytest.approx(units)


ROUND = resources.Need("finetune", "x", "gpu", 1, None, None, 0.5, 2.0, None, "", together=4.0, alone=3.0)


@pytest.mark.parametrize(
    ("cells", "minutes"),
    [(4, 0.5 + 8), (8, 0.5 + 16), (1, 0.5 + 3), (2, 0.5 + 6), (3, 0.5 + 8), (5, 0.5 + 8 + 3)],
    ids=["full", "two full", "one alone", "two alone", "no more than a full round", "full and one"],
)
def test_students_are_trained_in_rounds(cells: int, minutes: float):
    assert ROUND.minutes_for(cells, cells) == pytest.approx(minutes)


@given(st.integers(1, 100))
def test_another_student_never_makes_a_job_shorter(cells: int):
    assert ROUND.minutes_for(cells, cells) <= ROUND.minutes_for(cells + 1, cells + 1) + 1e-9


def test_adapters_grow_with_rank_and_epochs():
    need = resources.find_need("finetune", "7b", TABLE)
    one = resources.count_disk(need, QWEN | {"epochs": 1}, 1)
    assert one == pytest.approx(80.74)
    assert resources.count_disk(need, QWEN | {"lora_rank": 32}, 3) == pytest.approx(one * 10 * 4 * 3)


def test_the_costs_of_a_study_follow_its_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "params_file", lambda study: tmp_path / f"{study}.yaml")
    (tmp_path / "short.yaml").write_text("sizes: 7b\nepochs: 5\n")
    (tmp_path / "long.yaml").write_text("sizes: 7b\nepochs: 10\n")
    (tmp_path / "both.yaml").write_text("sizes: 7b\naxes: {epochs: [5, 10]}\n")
    settings = {"n_questions": 50, "samples": 100}
    short, long, both = (
        resources.read_costs(study)("evaluate", "7b", 16, settings) for study in ("short", "long", "both")
    )
    start = short.start
    assert long.minutes - start == pytest.approx(2 * (short.minutes - start))
    assert both == long


def test_a_row_that_is_none_is_refused_with_the_command(tmp_path, monkeypatch):
    broken = tmp_path / "resources.csv"
    monkeypatch.setattr(resources, "table_path", lambda: broken)
    with pytest.raises(MissingInput, match=re.escape(resources.FILL)):
        resources.read_table()
    with open(broken, "w", newline="") as file:
        writer = csv.DictWriter(file, resources.FIELDS)
        writer.writeheader()
        writer.writerow({"rule": "generate", "size": "7b", "device": "gpu", "gpus": "many"})
    with pytest.raises(DamagedFile, match=re.escape(resources.FILL)):
        resources.read_table()
