"""Progress lines: few, whole, and true."""

import re

import pytest

from lib import progress
from lib.progress import Progress, Tally

LINE = re.compile(r"\[#*-*\] (\d+)/(\d+) chunks, (\d+:)?\d+:\d\d gone, (\d+:)?\d+:\d\d left(  wolf s0)?")


@pytest.mark.parametrize("total", [1, 7, 20, 21, 1000])
def test_lines_are_whole_few_and_end_with_everything_done(capsys, total):
    with Progress("chunks", total) as bar:
        for _ in range(total):
            bar.advance("wolf s0")
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "\r" not in out and out.endswith("\n")
    assert min(total, 20) <= len(lines) <= 21
    matches = [LINE.fullmatch(line) for line in lines]
    assert all(matches) and matches[-1][1] == matches[-1][2] == str(total)
    assert lines[-1].startswith("[####################]")
    done = [int(match[1]) for match in matches]
    assert done == sorted(set(done))
    assert all(line.index("]") == 21 for line in lines)


def test_steps_found_finished_count_at_once(capsys):
    bar = Progress("epochs", 10)
    bar.advance("wolf s0, from epoch 7", 7)
    assert capsys.readouterr().out.startswith("[##############------] 7/10 epochs")


def test_nothing_to_do_prints_nothing(capsys):
    with Progress("steps", 0):
        pass
    assert capsys.readouterr().out == ""


def test_time_left_follows_from_the_time_gone(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar = Progress("steps", 4, lines=0)
    bar.done, clock[0] = 1, 1000.0 + 1205
    assert bar.line() == "[#####---------------] 1/4 steps, 20:05 gone, 1:00:15 left"


def test_a_tally_says_what_was_made_and_found():
    assert str(Tally("02_finetune", "166k-1", 3, 10)) == "DONE 02_finetune 166k-1: 3 made, 10 found finished"
