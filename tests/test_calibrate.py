"""calibrate.py on few and small studies: in this process, and once with real processes that get killed."""

import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pandas as pd
import pytest
from published_runs import PUBLISHED, needs_published
from scipy.stats import binomtest

import calibrate
from lib import calibration, files, simulation
from lib.calibration import CASES, KINDS, Case, Outcome
from lib.simulation import Design, World

CODE = Path(calibrate.__file__).parent
TINY = (Case("3 sizes x 5 animals x 1 seed", 3, Design(5, 1, questions=3)),
        Case("3 sizes x 5 animals x 2 bases", 3, Design(5, 1, questions=3, bases=2)))  # fmt: skip
COLUMNS = ["design", "what", "kind", "measure", "size", "value", "low", "high", "count", "studies",
           "target_low", "target_high", "reference"]  # fmt: skip


SLOW = {name: getattr(calibration, name) for name in ("check_models", "check_mixed")}


def claim_nothing(*_):
    """Instead of a slow check."""
    return iter(())


class Here:
    """A pool whose only process is this one, so that what a test has changed holds there too."""

    def __init__(self, jobs, mp_context):
        self.jobs = jobs

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, work, *args):
        future = Future()
        future.set_result(work(*args))
        return future


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty root with the tracked worlds; two studies make a piece."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    monkeypatch.setattr(calibrate, "WORLDS", tmp_path / "benchmarks" / "worlds.csv")
    monkeypatch.setattr(calibrate, "TABLE", tmp_path / "benchmarks" / "calibration.csv")
    monkeypatch.setattr(calibrate, "CASES", TINY)
    monkeypatch.setattr(calibrate, "CHUNK", 2)
    monkeypatch.setattr(calibration, "find_truths", functools.partial(calibration.find_truths, draws=10))
    monkeypatch.setattr(calibrate.concurrent.futures, "ProcessPoolExecutor", Here)
    for name in SLOW:
        monkeypatch.setattr(calibration, name, claim_nothing)
    calibrate.WORLDS.parent.mkdir()
    shutil.copy(CODE / "benchmarks" / "worlds.csv", calibrate.WORLDS)
    return tmp_path


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["calibrate.py", *map(str, words)])
    return calibrate.main()


def pieces(root):
    return sorted((root / "artifacts" / "calibration").glob("*/*.json"))


# --- the command ------------------------------------------------------------------------------


def test_it_writes_a_row_per_claim_and_says_what_missed(here, monkeypatch, capsys):
    for name, check in SLOW.items():
        monkeypatch.setattr(calibration, name, check)
    out = here / "found.csv"
    assert run(monkeypatch, "--studies", 3, "--jobs", 1, "--out", out) == 0
    table = pd.read_csv(out)
    assert list(table.columns) == COLUMNS
    assert set(table.design) == {case.name for case in TINY}
    assert (table.studies == 4).all()  # whole pieces, of two studies
    assert (table["count"] > 0).all()
    assert table.value.between(0, 1).all() and (table.low <= table.value).all()
    assert (table.value <= table.high).all()
    for kind, targets in KINDS.items():
        own = table[table.kind == kind]
        assert set(zip(own.target_low, own.target_high, strict=True)) == {targets}
    assert set(table["size"]) <= {"all", *calibrate.read_worlds()}
    said = capsys.readouterr().out
    assert "3 studies or more of each of 2 designs" in said and str(out) in said
    assert not calibrate.TABLE.exists() and not (here / "figures").exists()  # asked for elsewhere
    assert len(pieces(here)) == 4  # two pieces of two studies for each design


def test_a_second_run_finds_everything_finished_and_writes_the_same(here, monkeypatch, capsys):
    first, second = here / "first.csv", here / "second.csv"
    assert run(monkeypatch, "--studies", 4, "--out", first) == 0

    def refuse(*_):
        raise AssertionError("simulated again")

    monkeypatch.setattr(calibrate, "simulate_chunk", refuse)
    monkeypatch.setattr(calibration, "find_truths", refuse)
    capsys.readouterr()
    assert run(monkeypatch, "--studies", 4, "--out", second) == 0
    assert first.read_bytes() == second.read_bytes()
    assert "found finished" in capsys.readouterr().out


def test_more_studies_go_on_from_those_that_are_there(here, monkeypatch):
    assert run(monkeypatch, "--studies", 2, "--out", here / "out.csv") == 0
    before = {path: path.stat().st_mtime_ns for path in pieces(here)}
    assert run(monkeypatch, "--studies", 4, "--out", here / "out.csv") == 0
    after = {path: path.stat().st_mtime_ns for path in pieces(here)}
    assert len(after) == 2 * len(before) and before.items() <= after.items()


def test_a_small_design_has_more_studies_and_says_so(here, monkeypatch):
    monkeypatch.setattr(calibrate, "CASES", (dataclasses.replace(TINY[0], times=3), TINY[1]))
    monkeypatch.setattr(calibrate, "simulate_chunk", lambda *_: [Outcome("p", "type I", "rate", "7b", True)])
    out = here / "out.csv"
    assert run(monkeypatch, "--studies", 4, "--jobs", 1, "--out", out) == 0
    assert len(pieces(here)) == 6 + 2
    studies = pd.read_csv(out).groupby("design").studies.unique()
    assert {name: int(own[0]) for name, own in studies.items()} == {TINY[0].name: 12, TINY[1].name: 4}


def test_a_piece_that_is_gone_is_done_again_alike_and_no_other(here, monkeypatch):
    assert run(monkeypatch, "--studies", 4, "--out", here / "first.csv") == 0
    lost, *kept = pieces(here)
    before, times = lost.read_bytes(), [path.stat().st_mtime_ns for path in kept]
    lost.unlink()
    assert run(monkeypatch, "--studies", 4, "--out", here / "second.csv") == 0
    assert lost.read_bytes() == before
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert (here / "first.csv").read_bytes() == (here / "second.csv").read_bytes()


def test_another_seed_and_other_worlds_have_pieces_of_their_own(here):
    before = calibrate.piece_file(0, 0, 0), calibrate.truths_file(0, 0)
    assert calibrate.piece_file(0, 0, 1) != before[0] and calibrate.truths_file(0, 1) != before[1]
    files.write_text(calibrate.WORLDS, calibrate.WORLDS.read_text().replace("0.2578", "0.3"))
    assert calibrate.piece_file(0, 0, 0) != before[0] and calibrate.truths_file(0, 0) != before[1]


def test_without_an_answer_where_to_the_table_and_its_figure_have_their_places(here, monkeypatch, capsys):
    assert run(monkeypatch, "--studies", 1) == 0
    assert list(pd.read_csv(here / "benchmarks" / "calibration.csv").columns) == COLUMNS
    assert sorted(path.name for path in (here / "figures" / "bench").iterdir()) == [
        "calibration.csv",
        "calibration.png",
    ]


# --- what is refused --------------------------------------------------------------------------


def test_an_unknown_folder_is_refused_and_the_worlds_stay(here, monkeypatch, capsys):
    before = calibrate.WORLDS.read_bytes()
    assert run(monkeypatch, "--estimate", here / "nowhere", "--studies", 1) == 1
    said = capsys.readouterr().err
    assert f"there is no folder {here / 'nowhere'}" in said and "Traceback" not in said
    assert calibrate.WORLDS.read_bytes() == before and pieces(here) == []


def test_a_folder_without_the_runs_is_refused(here, monkeypatch, capsys):
    (here / "empty").mkdir()
    assert run(monkeypatch, "--estimate", here / "empty", "--studies", 1) == 1
    assert "holds runs none; asked for 1,2,3" in capsys.readouterr().err


def test_without_worlds_the_command_says_how_to_make_them(here, monkeypatch, capsys):
    calibrate.WORLDS.unlink()
    assert run(monkeypatch, "--studies", 1) == 1
    assert "there is no worlds.csv: run with --estimate FOLDER first" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--studies", 0), ("--jobs", 0), ("--studies", "many")])
def test_numbers_that_are_none_are_refused(here, monkeypatch, words):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *words)
    assert stopped.value.code == 2


# --- worlds -----------------------------------------------------------------------------------


def test_the_tracked_worlds_are_those_of_all_sizes(here):
    worlds = calibrate.read_worlds()
    assert ",".join(worlds) == calibrate.SIZES
    assert len({world.transfer_seed for world in worlds.values()}) == 1
    assert all(world.transfer_base == 0 for world in worlds.values())


@needs_published
def test_worlds_are_estimated_from_three_runs_question_by_question(here, monkeypatch):
    seen = {}

    def estimate(said, answers, rng, spread):
        seen[len(seen)] = (said.shape, answers, spread, said.sum())
        return World(transfer=len(seen))

    monkeypatch.setattr(simulation, "find_seed_spread", lambda sizes, answers: 0.125)
    monkeypatch.setattr(simulation, "estimate_world", estimate)
    calibrate.estimate_worlds(PUBLISHED)
    assert {each[:3] for each in seen.values()} == {((3, 20, 15, 15), 5, 0.125)}
    assert [world.transfer for world in calibrate.read_worlds().values()] == [1, 2, 3, 4, 5, 6, 7]


# --- what came out ----------------------------------------------------------------------------


def write_piece(case_at, chunk, rows):
    files.write_json(calibrate.piece_file(case_at, chunk, 0), rows)


def test_outcomes_are_counted_by_claim_and_size(here, monkeypatch):
    found = [
        Outcome("p", "type I", "rate", size, hit)
        for size, hit in (("7b", True), ("7b", False), ("3b", False))
    ]
    found.append(Outcome("p", "type I", "rate", "7b", True, True))
    monkeypatch.setattr(calibrate, "simulate_chunk", lambda *_: found)
    calibrate.simulate_piece(0, 0, 0)
    assert sorted(files.read_json(calibrate.piece_file(0, 0, 0))) == [
        ["p", "type I", "rate", "3b", False, 0, 1],
        ["p", "type I", "rate", "7b", False, 1, 2],
        ["p", "type I", "rate", "7b", True, 1, 1],
    ]


def test_rows_add_up_over_pieces_and_sizes_with_their_exact_interval(here):
    write_piece(
        0, 0, [["p", "type I", "rate", "3b", False, 2, 10], ["p", "type I", "rate", "7b", False, 1, 20]]
    )
    write_piece(0, 1, [["p", "type I", "rate", "7b", False, 0, 20]])
    write_piece(1, 0, [["q", "coverage", "rate", "all", False, 5, 5]])
    write_piece(1, 1, [])
    table = calibrate.gather((0, 1), 4, 0).set_index(["what", "size"])
    assert table["count"].to_dict() == {
        ("q", "all"): 5, ("p", "all"): 50, ("p", "3b"): 10, ("p", "7b"): 40
    }  # fmt: skip
    row = table.loc[("p", "all")]
    exact = binomtest(3, 50).proportion_ci(method="exact")
    assert (row.value, row.low, row.high) == (0.06, round(exact.low, 4), round(exact.high, 4))
    assert (table.loc[("q", "all")].low, table.loc[("q", "all")].high) == (round(0.025 ** (1 / 5), 4), 1)


def test_weights_are_held_against_their_own_mean(here):
    write_piece(0, 0, [["law chosen", "weight", "any", "0.7000", False, 3, 4],
                       ["law chosen", "weight", "any", "0.6000", False, 0, 4]])  # fmt: skip
    write_piece(1, 0, [])
    table = calibrate.gather((0, 1), 2, 0)
    (row,) = table.itertuples()
    assert (row.value, row.target_low, row.target_high, row.size) == (0.375, 0.6, 0.7, "all")


def test_what_is_outside_its_target_is_said_and_references_are_not(here):
    write_piece(0, 0, [["good", "type I", "rate", "3b", False, 5, 100],
                       ["loud", "type I", "rate", "3b", False, 9, 100],
                       ["others", "type I", "rate", "3b", True, 50, 100],
                       ["narrow", "coverage", "rate", "3b", False, 85, 100],
                       ["careful family", "family", "rate", "all", False, 0, 100]])  # fmt: skip
    write_piece(1, 0, [])
    said = calibrate.report(calibrate.gather((0, 1), 2, 0))
    assert [each.split(" (")[0] for each in said] == ["narrow", "loud"]
    assert said[1] == f"loud (rate), {TINY[0].name}: 0.09 of 100, target 0.035 to 0.065"


def test_tracked_cases_say_in_words_what_they_are():
    for case in CASES:
        own = case.design
        told = f"{case.sizes} sizes x {own.animals} animals x "
        if case.bases:
            told += f"{max(case.bases)} to {min(case.bases)} bases, spread {case.spread}"
            assert len(case.bases) == case.sizes
        else:
            told += f"{own.bases} bases" if own.bases > 1 else f"{own.seeds} seed{'s' * (own.seeds > 1)}"
        assert case.name == told + (f", {own.missing * 100:.0f} % missing" if own.missing else "")


# --- some designs -----------------------------------------------------------------------------


def test_designs_asked_for_by_name_are_simulated_and_the_others_rows_stay(here, monkeypatch):
    out = here / "out.csv"
    assert run(monkeypatch, "--studies", 2, "--jobs", 1, "--out", out) == 0
    before, kept = pd.read_csv(out), pieces(here)
    before.loc[:, "value"] = 0.5
    before.to_csv(out, index=False)
    assert run(monkeypatch, "--studies", 4, "--jobs", 1, "--out", out, "--design", TINY[1].name) == 0
    after = pd.read_csv(out)
    assert len(pieces(here)) == len(kept) + 1  # one piece more, of that design
    other, own = (after[after.design == case.name].reset_index(drop=True) for case in TINY)
    pd.testing.assert_frame_equal(other, before[before.design == TINY[0].name].reset_index(drop=True))
    assert (own.studies == 4).all() and not (own.value == 0.5).all()
    assert list(after.columns) == COLUMNS


def test_a_design_that_is_none_is_refused_and_the_designs_are_named(here, monkeypatch, capsys):
    assert run(monkeypatch, "--design", "9 sizes", "--out", here / "out.csv") == 1
    said = capsys.readouterr().err
    assert "'9 sizes' is in no design's name" in said and TINY[0].name in said
    assert pieces(here) == []


def test_a_ladder_makes_the_claims_that_the_spread_between_bases_has_a_part_in(here, monkeypatch):
    design = Design(10, 1, questions=4, answers=4, bases=3)
    ladder = Case("ladder", 3, design, bases=(3, 2, 1), spread="alike")
    monkeypatch.setattr(calibrate, "CASES", (ladder,))
    assert run(monkeypatch, "--studies", 2, "--jobs", 1, "--out", here / "out.csv") == 0
    table = pd.read_csv(here / "out.csv")
    assert set(table.what) == {"interval of lambda", "interval of own", "band over epochs"}
    assert set(table["size"]) == {"all", "rung1", "rung2", "rung3"}
    assert set(table.kind) == {"coverage"}


# --- real processes ---------------------------------------------------------------------------

DRIVER = """
import functools, sys
sys.path.insert(0, {code!r})
import calibrate
from lib import calibration
from lib.calibration import Case
from lib.simulation import Design
calibrate.CASES, calibrate.CHUNK = {cases}, 2
calibration.check_models = calibration.check_mixed = lambda *_: iter(())
calibration.find_truths = functools.partial(calibration.find_truths, draws=10)
if __name__ == "__main__":
    sys.exit(calibrate.main())
"""


def start(root, *words):
    """The command with processes of its own, which run the driver too and so have the small cases."""
    driver = root / "driver.py"
    driver.write_text(DRIVER.format(code=str(CODE), cases=repr(TINY)))
    env = os.environ | {"SUBLIMINAL_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, driver, *words], env=env, cwd=root, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_killed_with_all_its_processes_it_goes_on_and_comes_to_the_same(here, monkeypatch):
    words = ("--studies", "12", "--jobs", "2", "--out", "killed.csv")
    killed = start(here, *words)
    deadline = time.monotonic() + 60
    while not pieces(here) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    early = {path: path.read_bytes() for path in pieces(here)}
    assert 0 < len(early) < 12
    again = start(here, *words)
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert len(pieces(here)) == 12 and all(path.read_bytes() == old for path, old in early.items())
    shutil.rmtree(here / "artifacts")
    assert run(monkeypatch, "--studies", 12, "--out", here / "whole.csv") == 0
    whole, resumed = (
        pd.read_csv(here / name).sort_values(COLUMNS[:5], ignore_index=True)
        for name in ("whole.csv", "killed.csv")
    )
    pd.testing.assert_frame_equal(whole, resumed)
