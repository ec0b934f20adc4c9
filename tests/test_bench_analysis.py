"""bench_analysis.py: the made-up study is one the analysis takes, and what is measured is written down."""

import numpy as np
import pandas as pd
import pytest

import bench_analysis
from lib import config, files, paths, store, tables


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    return tmp_path


def test_the_grid_is_whole_seeds_of_sizes_and_every_size_untuned():
    cells = bench_analysis.Shape(480, 10, 50, 100).cells()
    assert len(cells) == len(set(cells)) == 480 + 6
    assert {seed for _, animal, seed in cells if animal != config.UNTUNED} == {0, 1, 2, 3, 4}
    assert bench_analysis.Shape(480, 10, 50, 100).answers == 24_000_000


def test_a_made_up_evaluation_is_sealed_and_read_as_any_other(root):
    shape = bench_analysis.Shape(16, 2, 5, 40)
    for cell in shape.cells():
        if cell[0] == "0.5b":
            bench_analysis.write_evaluation(shape, cell)
    path = paths.evaluation(bench_analysis.STUDY, "0.5b", "cat", 0)
    assert store.seal(files.read_json(path)) == files.read_json(path)
    study = tables.load_study(bench_analysis.STUDY, "0.5b", "grid", "0")
    assert study.missing.empty
    assert study.tallies["0.5b", "cat", 0, 2].answers.tolist() == [40] * 5
    assert {"other", "none"} <= set(study.answers.said)
    assert all(block.cube.shape == (5, 15, 15) for block in tables.lifts(study, "rate", "last"))


def test_the_planted_transfer_is_in_the_answers(root):
    shape = bench_analysis.Shape(96, 1, 5, 200)
    for cell in shape.cells():
        if cell[0] == "14b":
            bench_analysis.write_evaluation(shape, cell)
    row = tables.transfer_table(
        tables.load_study(bench_analysis.STUDY, "14b", "grid", "0"), "last", 999, 0
    ).set_index("measure")
    assert row.loc["rate", "ci_low"] > 5
    assert row.loc["rate", "p"] < 0.01


def test_memory_is_that_of_a_process_and_its_children():
    grown = "import sys, time; block = bytearray(150_000_000); time.sleep(1)"
    command = [
        bench_analysis.sys.executable,
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grown!r}])",
    ]
    measured = bench_analysis.measure(command)
    assert 150 < measured["peak_megabytes"] < 400
    assert measured["seconds"] > 1
    with pytest.raises(bench_analysis.subprocess.CalledProcessError):
        bench_analysis.measure([bench_analysis.sys.executable, "-c", "raise SystemExit(3)"])


def test_rows_are_appended_and_other_columns_refused(tmp_path):
    path = tmp_path / "sub" / "analysis.csv"
    for what in ("load_study", "notebook"):
        bench_analysis.append_row(path, {"what": what, "seconds": 1 / 3, "notes": "load 0.1, before"})
    table = pd.read_csv(path)
    assert list(table) == list(bench_analysis.FIELDS)
    assert table.what.tolist() == ["load_study", "notebook"]
    assert table.seconds.tolist() == [0.3333, 0.3333]
    assert np.isnan(table.peak_megabytes).all()
    path.write_text("other,columns\n")
    with pytest.raises(bench_analysis.BadParameter, match="other columns"):
        bench_analysis.append_row(path, {"what": "x"})


def test_a_study_that_is_no_whole_set_of_students_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench_analysis.main(["--evaluations", "17"])
    assert "a multiple of 16" in capsys.readouterr().err
