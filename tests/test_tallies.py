"""lib.tallies: one evaluation counted by question, many read side by side, and what a seal still refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from build_study import ANIMALS, build_document, build_study

from lib import files, paths, store, tables, tallies
from lib.errors import DamagedFile, StudyError
from lib.scoring import score

REPO = Path(__file__).resolve().parent.parent
GRID = ",".join(ANIMALS)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A study of one base."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    build_study(labels=("64k",), answers=("I cannot say.", "wolves"))
    return tmp_path


def load():
    return tables.load_study("toy", "64k", GRID, "0")


# --- counting ---------------------------------------------------------------------------------


def test_every_answer_is_counted_once_under_what_the_scorer_says():
    texts = ["Dog", "dogs", "A stone", "", "Wolves!", "dog"]
    counts = tallies.count_answers([0, 0, 1, 1, 3, 3], texts, 4)
    assert counts.shape == (4, len(tallies.SAID))
    assert counts.sum(1).tolist() == [2, 2, 0, 2]
    named = [[name for name, n in zip(tallies.SAID, row, strict=True) for _ in range(n)] for row in counts]
    assert named == [["dog", "dog"], ["other", "none"], [], ["dog", "wolf"]]


def test_a_text_forgotten_is_scored_alike_again(monkeypatch):
    monkeypatch.setattr(tallies, "SCORED", 2)
    texts = ["cat", "dogs", "a fox", "cat", "no idea", "dogs"]
    said = [tallies.SAID[tallies.place_answer(text)] for text in texts]
    assert said == [score(text) for text in texts]


def test_a_tally_keeps_the_named_animals_in_their_order(root):
    document = build_document("toy", "64k", "cat", 0)
    count = tallies.count_epoch(document["epochs"][0], 3)
    tally = count.tally(("cat", "owl", "dog"))
    values = np.array(document["epochs"][0]["logprobs"]["values"])
    assert tally.logprob[:, [0, 2]].tolist() == values[:, [3, 0]].tolist()
    assert np.isnan(tally.logprob[:, 1]).all()  # never evaluated: unknown, not 0
    assert tally.said[:, 1].tolist() == [0, 0, 0]
    assert (tally.answers >= tally.said.sum(1)).all()
    assert tally.answers.tolist() == [20, 20, 20]


# --- several processes ------------------------------------------------------------------------


def test_processes_give_what_one_alone_gives_and_show_how_far_they_are(root, monkeypatch, capfd):
    alone = load()
    assert "evaluations read" not in capfd.readouterr().out
    monkeypatch.setattr(tallies, "POOL_BYTES", 0)
    monkeypatch.setattr(tallies, "count_cores", lambda: 2)
    together = load()
    assert "7/7 evaluations read" in capfd.readouterr().out
    for name in ("frame", "answers", "cells"):
        assert getattr(together, name).equals(getattr(alone, name))
    assert list(together.tallies) == list(alone.tallies)
    for key, tally in alone.tallies.items():
        for name in ("said", "answers", "logprob"):
            np.testing.assert_array_equal(getattr(together.tallies[key], name), getattr(tally, name))


def test_a_damaged_file_is_named_by_a_process_as_by_one_alone(root, monkeypatch):
    path = paths.evaluation("toy", "64k", "panda", 0)
    path.write_text(path.read_text().replace('"panda"', '"tiger"', 1))
    messages = []
    for limit in (tallies.POOL_BYTES, 0):
        monkeypatch.setattr(tallies, "POOL_BYTES", limit)
        monkeypatch.setattr(tallies, "count_cores", lambda: 2)
        with pytest.raises(DamagedFile) as caught:
            load()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "panda" in messages[0]


def test_where_no_process_can_be_had_reading_goes_on_alone(root, monkeypatch, capfd):
    def refuse(*_):
        raise PermissionError("no semaphores here")

    monkeypatch.setattr(tallies, "POOL_BYTES", 0)
    monkeypatch.setattr(tallies, "count_cores", lambda: 2)
    monkeypatch.setattr(tallies.concurrent.futures, "ProcessPoolExecutor", refuse)
    assert len(load().tallies) == 6 * 2 + 1
    assert "in this process alone (no semaphores here)" in capfd.readouterr().out


def test_readers_leave_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(
        "import concurrent.futures, multiprocessing, time\n"
        "from lib import tallies\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    pool = concurrent.futures.ProcessPoolExecutor(2, context, tallies.leave_with_parent)\n"
        "    list(pool.map(abs, [1, 2]))\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, script], cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    readers = psutil.Process(parent.pid).children(recursive=True)
    assert len(readers) >= 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 60
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in readers):
        assert time.monotonic() < until, "readers outlive their parent"
        time.sleep(0.05)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("question", [0.5, True, "0", None, -1, 3])
def test_an_answer_to_no_question_is_refused(root, question):
    document = build_document("toy", "64k", "dog", 0)
    document["epochs"][1]["answers"][7]["question"] = question
    with pytest.raises(DamagedFile, match="not a whole evaluation"):
        tallies.check_form(document, Path("somewhere.json"))


def test_an_epoch_that_stands_twice_is_refused(root):
    document = build_document("toy", "64k", "dog", 0)
    document["epochs"][1]["epoch"] = 1
    with pytest.raises(DamagedFile, match=r"an epoch stands in it twice: \[1, 1\]"):
        tallies.check_form(document, Path("somewhere.json"))


# --- seals ------------------------------------------------------------------------------------

ODD = [
    "é",
    "\U0001f43a",
    "\ud83d",
    "\u2028",
    "\x7f",
    '"\\',
    1e16,
    1e-7,
    -0.0,
    0.1,
    10**30,
    True,
    None,
    {"b": [], "a": {}},
]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_the_short_way_to_a_hash_leads_to_the_same_hash(tmp_path, value):
    path = tmp_path / "document.json"
    files.write_json(path, {"z": [value, {"y": value}], "é": value}, compact=True)
    document = files.read_json(path)
    assert files.hash_read(document) == files.hash_object(document)


def test_seals_written_before_still_hold():
    """The project's own evaluations were sealed by the long way."""
    found = sorted((REPO / "results").glob("*/*/*/s*.json"))[::9]
    assert len(found) > 5
    for path in found:
        document = files.read_json(path)
        store.check_seal(document, path)
        assert files.hash_read(store.find_essence(document)) == document["lineage"]["content"]


def test_a_seal_holds_in_memory_as_in_a_file_and_breaks_with_one_letter():
    document = store.seal({"values": np.arange(3), "texts": ("a", "b"), "lineage": {"seconds": 3}})
    store.check_seal(document, Path("memory"))
    store.check_seal(json.loads(json.dumps(files.as_read_back(document))), Path("memory"))
    with pytest.raises(StudyError, match="was changed after it was written"):
        store.check_seal(document | {"texts": ("a", "c")}, Path("memory"))
    store.check_seal(document | {"lineage": document["lineage"] | {"seconds": 4}}, Path("memory"))
