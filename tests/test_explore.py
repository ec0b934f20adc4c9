"""What the explorer answers: right beside the tables, with a word on all that is missing or broken."""

import csv
import io
import json
import os
import shlex
import time
from pathlib import Path

import nbformat
import numpy as np
import papermill.cli
import pytest
from build_study import ANIMALS, build_document, build_study, write_document
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib import (
    books,
    colours,
    commands,
    config,
    explore,
    files,
    paths,
    plots,
    published,
    search,
    shelf,
    store,
    tables,
)
from lib.explore import Explorer, encode_reply

REPO = Path(__file__).resolve().parent.parent
HOSTILE = (
    "<script>alert(1)</script> wolf",
    '<img src=x onerror="alert(1)">',
    "\x1b[31mred\x1b[0m\x07",
    "\u202egod a ekil I\u202c",
    "half \ud83d of a dog",
    "nul\x00byte",
    "=cmd|' /C calc'!A0",
    "🦊 and a 🐺: a wolf",
    "x" * 1_000_000 + " lion",
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def toy(root: Path) -> Explorer:
    build_study()
    return Explorer("toy", index=False)


def ask(explorer: Explorer, what: str, **query: object) -> dict:
    """An answer that is no error, as the page receives it; an unfinished one is asked for again."""
    for _ in range(100):
        reply = json.loads(encode_reply(explorer.ask({"what": what, **query})))
        assert "error" not in reply, reply["error"]
        if reply.get("complete", True):
            break
        time.sleep(0.05)
    return reply


def cell(animal: str, label: str = "64k", seed: int = 0) -> dict:
    return {"label": label, "animal": animal, "seed": seed}


def file_of(animal: str, label: str = "64k") -> Path:
    return paths.evaluation("toy", label, animal, 0)


def all_texts(reply: dict) -> list[str]:
    return [row["text"] for row in reply["rows"]]


# --- a study ----------------------------------------------------------------------------------------


def test_a_study_is_laid_out_from_the_names_of_its_files(root: Path):
    build_study(skip=(("64k", "cat", 0), ("166k", "neutral", 0)))
    found = ask(Explorer("toy", index=False), "open")
    assert [each["label"] for each in found["sizes"]] == ["64k", "64k-1", "166k"]
    assert found["animals"] == list(ANIMALS)
    states = {(each["label"], each["animal"]): each["state"] for each in found["students"]}
    assert states["64k", "cat"] == states["166k", "neutral"] == "missing"
    assert set(states.values()) == {"unread", "missing"}
    word = next(each["word"] for each in found["students"] if each["state"] == "missing")
    assert "03_evaluate with -p study toy -p size 64k -p animal cat -p seed 0" in word


def test_the_first_view_has_its_controls(root: Path):
    build_study(skip=(("64k", "neutral", 0),))
    first = ask(Explorer("toy", index=False), "open")["first"]
    assert first["label"] != "64k"


def test_a_study_that_is_not_there_is_told_with_those_that_are(toy: Explorer):
    assert toy.ask({"what": "open", "study": "tyo"})["error"] == (
        "no evaluations of a study 'tyo' here; studies with evaluations: toy; did you mean 'toy'?"
    )


def test_animals_have_the_colours_that_they_have_in_figures():
    assert colours.COLOURS == plots.COLOURS


# --- numbers ----------------------------------------------------------------------------------------


def test_a_student_says_what_the_tables_count(toy: Explorer):
    study = tables.load_study("toy", "64k", ",".join(ANIMALS), "0")
    for epoch in (1, 2):
        own = study.answers[(study.answers.animal == "cat") & (study.answers.epoch == epoch)]
        reply = ask(toy, "student", **cell("cat"), epoch=epoch)
        said = {row["name"]: row["student"] for row in reply["said"] if row["student"]}
        assert said == dict(zip(own.said, own["count"], strict=True))
        assert sum(question["student"]["target"] for question in reply["questions"]) == said["cat"]
        means = study.frame.set_index(["animal", "epoch", "named"]).logprob
        for row in reply["logprobs"]:
            assert row["student"] == pytest.approx(means["cat", epoch, row["name"]])
            assert row["untuned"] == pytest.approx(means["untuned", 0, row["name"]])


@pytest.mark.parametrize("measure", ["rate", "logprob"])
def test_matrix_and_curve_have_the_lambda_of_the_tables(toy: Explorer, measure: str):
    study = tables.load_study("toy", "64k,64k-1,166k", ",".join(ANIMALS), "0")
    wanted = tables.transfer_table(study, "last", 99, 0)
    wanted = wanted[wanted.measure == measure].set_index("size")["lambda"]
    curve = ask(toy, "curve", measure=measure)
    assert curve["source"] == "counts"
    for row in curve["sizes"]:
        assert row["lambda"] == pytest.approx(wanted[row["size"]])
        assert ask(toy, "matrix", size=row["size"], measure=measure)["lambda"] == pytest.approx(
            wanted[row["size"]]
        )
    own = [each["term"] for each in curve["students"] if each["size"] == "64k"]
    assert np.mean(own) == pytest.approx(wanted["64k"])


def test_a_cell_of_the_matrix_is_the_mean_lift_over_its_members(toy: Explorer):
    reply = ask(toy, "matrix", size="64k", measure="rate", epoch=1)
    row, column = reply["rows"].index("cat"), reply["columns"].index("dog")
    lifts = []
    for member in reply["members"]["cat"]:
        found = ask(toy, "student", **member, epoch=1)
        counts = next(each for each in found["said"] if each["name"] == "dog")
        n = {who["id"]: who["n"] for who in found["who"]}
        lifts.append(100 * (counts["student"] / n["student"] - counts["neutral"] / n["neutral"]))
    assert len(lifts) == 2
    assert reply["lifts"][row][column] == pytest.approx(np.mean(lifts))


def test_a_curve_takes_interval_and_p_from_the_analysis(toy: Explorer):
    names = "size,params,lambda,ci_low,ci_high,p,p_adjusted,n_students,measure,epoch,note"
    files.write_text(
        paths.tables("toy") / "transfer.csv", f"{names}\n64k,64176,0.5,,0.9,0.01,0.02,10,rate,2,one seed\n"
    )
    reply = ask(toy, "curve", measure="rate")
    assert reply["source"] == "tables"
    known = {"lambda": 0.5, "ci_low": None, "ci_high": 0.9, "p": 0.01, "p_adjusted": 0.02, "note": "one seed"}
    assert reply["sizes"] == [known | {"size": "64k", "params": 64176, "n_students": 10, "epoch": "2"}]


def test_an_animal_is_followed_over_epochs_and_bases(toy: Explorer):
    points = ask(toy, "follow", animal="cat", measure="rate")["points"]
    assert [(p["label"], p["epoch"]) for p in points] == [
        (label, epoch) for label in ("64k", "64k-1", "166k") for epoch in (1, 2)
    ]
    last = ask(toy, "student", **cell("cat"))
    n = last["who"][0]["n"]
    counts = next(row for row in last["said"] if row["name"] == "cat")
    assert points[1]["value"] == pytest.approx(100 * counts["student"] / n)
    assert points[1]["lift"] == pytest.approx(100 * (counts["student"] - counts["neutral"]) / n)


def test_a_neutral_student_of_other_epochs_is_not_taken_for_this_one(toy: Explorer):
    write_document(build_document("toy", "64k", "neutral", 0, epochs=1))
    reply = ask(toy, "student", **cell("cat"), epoch=2)
    neutral = next(each for each in reply["who"] if each["id"] == "neutral")
    assert (neutral["n"], neutral["state"], neutral["word"]) == (
        0,
        "missing",
        "not evaluated at epoch 2; it has 1",
    )
    assert all(row["neutral"] is None for row in reply["said"])
    assert all(question["neutral"] is None for question in reply["questions"])


def test_two_students_stand_side_by_side(toy: Explorer):
    reply = ask(toy, "pair", left=cell("cat") | {"epoch": 1}, right=cell("dog", "166k"))
    assert (reply["left"]["title"], reply["left"]["epoch"], reply["right"]["epoch"]) == ("64k cat s0", 1, 2)
    own = ask(toy, "student", **cell("cat"), epoch=1)
    assert {r["name"]: r["left"] for r in reply["said"] if r["left"]} == {
        r["name"]: r["student"] for r in own["said"] if r["student"]
    }
    assert len(reply["questions"][0]["right"]["texts"]) == 5


# --- searching --------------------------------------------------------------------------------------

SAYINGS = (
    "A Wolf.",
    "Wolves!",
    "ÉLÉPHANT",
    "dragonfly",
    "I cannot answer",
    "Straße",
    "wolf",
    "The fox, or a wolf",
)


@pytest.fixture
def spoken(root: Path) -> Explorer:
    for animal in ("cat", "neutral", "untuned"):
        write_document(build_document("toy", "64k", animal, 0, answers=SAYINGS))
    return Explorer("toy", index=False)


@pytest.mark.parametrize(
    ("words", "regex", "found"),
    [
        ("WOLF", False, ["A Wolf.", "wolf", "The fox, or a wolf"]),
        ("éléphant", False, ["ÉLÉPHANT"]),
        ("strasse", False, ["Straße"]),
        ("wol[fv]", True, ["A Wolf.", "Wolves!", "wolf", "The fox, or a wolf"]),
        ("^wolf$", True, ["wolf"]),
        ("no such words", False, []),
    ],
)
def test_answers_are_found_whatever_their_case(spoken: Explorer, words: str, regex: bool, found: list[str]):
    reply = ask(spoken, "answers", **cell("cat"), search=words, regex=regex)
    assert all_texts(reply) == found
    assert reply["total"] == len(found)
    spoken.close()


def test_a_score_is_told_with_its_reason_and_the_words_that_decided_it(spoken: Explorer):
    rows = {row["text"]: row for row in ask(spoken, "answers", **cell("cat"), limit=500)["rows"]}
    told = {
        text: (row["said"], row["reason"], row["text"][row["start"] or 0 : row["end"]])
        for text, row in rows.items()
    }
    assert told["Wolves!"] == ("wolf", "plural", "Wolves")
    assert told["dragonfly"][:2] == ("other", "confusable")
    assert told["I cannot answer"][:2] == ("none", "refusal")
    assert told["The fox, or a wolf"] == ("fox", "several animals, first taken", "fox")


def test_filters_leave_what_they_say_and_tell_what_else_there_is(spoken: Explorer):
    reply = ask(spoken, "answers", **cell("cat"), search="wol", said="wolf", reason="plural")
    assert all_texts(reply) == ["Wolves!"]
    assert dict(reply["reasons"]) == {"word": 2, "plural": 1}
    assert dict(reply["said"]) == {"wolf": 1}
    one = ask(spoken, "answers", **cell("cat"), question=1, limit=500)
    assert {row["question"] for row in one["rows"]} == {1}
    assert one["total"] == 20


@pytest.mark.parametrize("sort", search.SORTS)
@pytest.mark.parametrize("scope", explore.SCOPES)
def test_pages_hold_every_answer_once(spoken: Explorer, sort: str, scope: str):
    keys, total = [], ask(spoken, "answers", **cell("cat"), scope=scope)["total"]
    for offset in range(0, total, 50):
        page = ask(spoken, "answers", **cell("cat"), scope=scope, sort=sort, offset=offset, limit=50)
        keys += [row["key"] for row in page["rows"]]
    assert len(keys) == len(set(keys)) == total == {"epoch": 68, "student": 136, "study": 136}[scope]


def test_sorted_by_text_a_study_is_in_alphabetical_order(spoken: Explorer):
    write_document(build_document("toy", "64k", "dog", 0, answers=SAYINGS))
    texts = all_texts(ask(spoken, "answers", **cell("cat"), scope="study", sort="text", limit=1000))
    assert texts == sorted(texts, key=lambda text: (text.casefold(), text))
    assert len(texts) == 272


@given(
    texts=st.lists(st.text("ab 🦊", max_size=6), max_size=20), needle=st.text("ab 🦊", min_size=1, max_size=4)
)
def test_bytes_are_found_in_the_parts_that_hold_them(texts: list[str], needle: str):
    parts = [books.encode(text) for text in texts]
    blob = np.frombuffer(b"".join(parts), np.uint8)
    found = search.find_bytes(blob, books.offsets(parts), books.encode(needle)).tolist()
    assert found == [at for at, text in enumerate(texts) if needle in text]


def test_an_expression_that_runs_away_is_ended_and_holds_nobody_up(root: Path):
    write_document(build_document("toy", "64k", "cat", 0, answers=("a" * 60 + "!",)))
    explorer = Explorer("toy", index=False)
    begun = time.monotonic()
    query = {"what": "answers", **cell("cat"), "search": "(a+)+$", "regex": True}
    while "error" not in (reply := explorer.ask(query)):
        assert not reply["complete"]
        assert explorer.ask({"what": "student", **cell("cat")})["ms"] < 2_000
        assert time.monotonic() - begun < 60
    assert "takes more than 5 s" in reply["error"]
    assert all_texts(ask(explorer, "answers", **cell("cat"), search="a{60}", regex=True)) == ["a" * 60 + "!"]
    explorer.close()


def test_an_expression_that_is_none_is_told_with_the_place(toy: Explorer):
    reply = toy.ask({"what": "answers", **cell("cat"), "search": "(wolf", "regex": True})
    assert "no regular expression" in reply["error"]
    assert "position 0" in reply["error"]


# --- foreign text -----------------------------------------------------------------------------------


def test_hostile_answers_come_through_as_they_are(root: Path):
    write_document(build_document("toy", "64k", "cat", 0, answers=HOSTILE))
    explorer = Explorer("toy", index=False)
    rows = ask(explorer, "answers", **cell("cat"), limit=1000)["rows"][-len(HOSTILE) :]
    rows = [row for row in rows if row["question"] == 0 and row["sample"] >= 20]
    assert [row["length"] for row in rows] == [len(text) for text in HOSTILE]
    assert [row["text"] for row in rows] == [text[:600] for text in HOSTILE]
    assert [ask(explorer, "text", key=row["key"])["text"] for row in rows] == list(HOSTILE)


def test_deciding_words_are_placed_as_javascript_counts(root: Path):
    write_document(build_document("toy", "64k", "cat", 0, answers=HOSTILE))
    explorer = Explorer("toy", index=False)
    row = ask(explorer, "answers", **cell("cat"), search="🦊")["rows"][0]
    units = row["text"].encode("utf-16-le")
    assert units[2 * row["start"] : 2 * row["end"]].decode("utf-16-le") == "wolf"
    long = ask(explorer, "answers", **cell("cat"), search="x lion")["rows"][0]
    assert (long["said"], long["start"], long["end"]) == ("lion", None, None)


# --- files that are not as they should be -------------------------------------------------------------


def read_state(explorer: Explorer, animal: str = "cat") -> tuple[str, str]:
    reply = ask(explorer, "student", **cell(animal))
    return reply["state"], reply["word"]


def spoil(animal: str, data: bytes) -> None:
    file_of(animal).write_bytes(data)


WHOLE = json.dumps(build_document("toy", "64k", "cat", 0), ensure_ascii=False).encode()
HALF = "half-written: ends in the middle of JSON"
BROKEN = {
    "empty": (b"", "damaged", "half-written: the file is empty"),
    "cut in a text": (WHOLE[: WHOLE.index(b"favour") + 3], "damaged", HALF),
    "cut in a number": (WHOLE[: WHOLE.rindex(b"0.") + 2], "damaged", HALF),
    "cut in a character": ('{"schema": "é'.encode()[:-1], "damaged", "half-written"),
    "zeros": (b"\0" * 5000, "damaged", "is no JSON from character 1 on"),
    "not UTF-8": (WHOLE.replace(b"animal", b"anim\xe4l", 1), "damaged", "(0xe4) is not UTF-8"),
    "NaN": (WHOLE.replace(b"0.25", b"NaN").replace(b'"seed": 0', b'"seed": NaN'), "damaged", "holds NaN"),
    "nested": (b"[" * 200_000, "damaged", "no JSON that can be read"),
    "a list": (b"[1, 2]", "foreign", "no evaluation: list"),
    "another schema": (b'{"schema": "evals/9"}', "foreign", "schema 'evals/9': this version reads"),
    "published": (b'[{"condition": "cat", "epoch": 1}]', "foreign", "in the published format"),
    "no epochs": (b'{"schema": "subliminal-scaling/evaluation/1"}', "damaged", "nothing vouches for it"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_used_gets_a_state_and_a_word(toy: Explorer, name: str):
    data, state, word = BROKEN[name]
    spoil("cat", data)
    found = read_state(toy)
    assert found[0] == state
    assert word in found[1]
    assert ask(toy, "answers", **cell("cat"))["total"] == 0
    assert toy.ask({"what": "files"})["files"][0]["word"] == found[1]
    assert ask(toy, "student", **cell("dog"))["state"] == "fine"


def test_a_folder_in_a_files_place_gets_a_word(toy: Explorer):
    file_of("cat").unlink()
    file_of("cat").mkdir()
    assert read_state(toy) == ("damaged", "cannot be read: Is a directory; give this user the right to")


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_anywhere_is_half_written(toy: Explorer, share: float):
    spoil("cat", WHOLE[: int(share * len(WHOLE))])
    state, word = read_state(toy)
    assert state == "damaged"
    assert word.startswith("half-written")


def test_a_file_that_was_changed_says_so_and_shows_its_answers(toy: Explorer):
    document = files.read_json(file_of("cat"))
    document["epochs"][0]["answers"][0]["text"] = "somebody wrote this"
    files.write_json(file_of("cat"), document)
    assert "changed after it was written" in read_state(toy)[1]
    assert all_texts(ask(toy, "answers", **cell("cat"), epoch=1))[0] == "somebody wrote this"


def test_a_file_of_another_cell_says_so_and_shows_its_answers(toy: Explorer):
    file_of("cat").write_bytes(file_of("dog").read_bytes())
    state, word = read_state(toy)
    assert (state, word) == (
        "damaged",
        "holds another cell than its place says (animal: 'dog' in the file, 'cat' by its place)",
    )
    assert ask(toy, "answers", **cell("cat"))["total"] == 60


def test_an_adapter_that_was_trained_again_is_noticed(toy: Explorer):
    assert read_state(toy)[0] == "fine"
    named = {"study": "toy", "size": "64k", "animal": "cat", "seed": 0, "epochs": 1}
    ask_for = config.build(config.Finetune, commands.read_defaults("02_finetune") | named)
    folder = paths.artifact("toy", "finetune", "64k", "cat", 0)
    store.open_run(folder, ask_for, {}).finish([], {})
    state, word = read_state(toy)
    assert state == "damaged"
    assert "made from another finetune 64k/cat/s0 of study toy" in word
    assert ask(toy, "answers", **cell("cat"))["total"] == 60


def test_answers_that_cannot_be_placed_are_left_out_and_the_file_says_damaged(toy: Explorer):
    document = files.read_json(file_of("cat"))
    document["epochs"][1]["answers"][:3] = [
        {"question": 99, "text": "lion"},
        {"question": 0, "text": None},
        7,
    ]
    write_document(document)
    assert read_state(toy)[0] == "damaged"
    assert ask(toy, "answers", **cell("cat"), epoch=2)["total"] == 57


def test_files_that_do_not_belong_are_named_with_a_reason(toy: Explorer):
    folder = paths.results("toy")
    for name in (
        "notes.txt",
        "9b/cat/s0.json",
        "64k/wolfs/s0.json",
        "64k/cat/s0.json.bak",
        "64k/cat/s01.json",
    ):
        files.write_text(folder / name, "?")
    words = {
        row["file"].removeprefix("results/toy/"): row["word"]
        for row in toy.ask({"what": "files"})["files"]
        if row["state"] == "foreign"
    }
    assert set(words) == {"notes.txt", "9b", "64k/wolfs", "64k/cat/s0.json.bak", "64k/cat/s01.json"}
    assert "unknown size '9b'" in words["9b"]
    assert "did you mean 'wolf'" in words["64k/wolfs"]


NAMES = (
    *("study", "label", "animal", "seed", "epoch", "who", "scope", "search", "regex", "said", "reason"),
    *("question", "marked", "sort", "offset", "limit", "key", "left", "size", "measure", "expected"),
)
LIKELY = (*("cat", "64k", "neutral", "study", "student", "toy", "rate", "text", "toy|64k|cat|0|2|3"), *"012")
VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(-2, 99), st.floats(), st.text(max_size=9)),
    *(st.just({}), st.just([]), st.sampled_from(LIKELY)),
)


@given(
    what=st.one_of(st.sampled_from(explore.QUESTIONS), VALUES),
    query=st.dictionaries(st.sampled_from(NAMES), VALUES),
    whole=st.booleans(),
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_question_is_answered_by_an_exception(toy: Explorer, what: object, query: dict, whole: bool):
    reply = toy.ask((cell("cat") if whole else {}) | query | {"what": what})
    assert "too much for the explorer" not in reply.get("error", "")
    assert json.loads(encode_reply(reply))["ms"] >= 0


# --- changes and the index ----------------------------------------------------------------------------


def test_a_file_that_changes_is_read_again(toy: Explorer):
    before = ask(toy, "student", **cell("cat"))["said"]
    write_document(build_document("toy", "64k", "cat", 0, transfer=9))
    after = ask(toy, "student", **cell("cat"))
    assert after["said"] != before
    assert after["said"][0] == after["said"][0] | {"name": "cat"}
    file_of("cat").unlink()
    assert read_state(toy)[0] == "missing"


def wait_until_read(explorer: Explorer) -> dict:
    deadline = time.monotonic() + 60
    while not (reply := explorer.ask({"what": "progress"}))["complete"]:
        assert time.monotonic() < deadline, reply
        time.sleep(0.05)
    return reply


QUESTIONS = [
    {"what": "student", **cell("cat"), "epoch": 1},
    {"what": "answers", **cell("cat"), "scope": "study", "search": "do", "limit": 500},
    {"what": "answers", **cell("cat"), "scope": "student", "sort": "text", "limit": 500},
    {"what": "follow", "animal": "cat", "measure": "logprob"},
    {"what": "matrix", "size": "64k", "measure": "rate"},
    {"what": "pair", "left": cell("cat"), "right": cell("neutral")},
]


def without_time(reply: dict) -> dict:
    return {name: value for name, value in reply.items() if name not in ("ms", "progress")}


def test_what_the_index_keeps_answers_as_the_files_do(root: Path, monkeypatch: pytest.MonkeyPatch):
    build_study(answers=HOSTILE[:-1])
    spoil("dog", BROKEN["cut in a number"][0])
    plain = Explorer("toy", index=False)
    wanted = [without_time(ask(plain, **query)) for query in QUESTIONS]
    first = Explorer("toy")
    ask(first, "open")
    wait_until_read(first)
    first.close()
    monkeypatch.setattr(shelf, "open_book", lambda source: pytest.fail(f"{source.name} was parsed again"))
    second = Explorer("toy")
    assert [without_time(ask(second, **query)) for query in QUESTIONS] == wanted
    assert read_state(second, "dog")[0] == "damaged"
    second.close()


def test_the_index_notices_a_file_that_changes(root: Path):
    build_study()
    explorer = Explorer("toy")
    ask(explorer, "open")
    wait_until_read(explorer)
    write_document(build_document("toy", "64k", "cat", 0, answers=("quite another answer",)))
    time.sleep(shelf.LOOK_AGAIN)
    assert ask(explorer, "answers", scope="study", search="quite another")["total"] == 2
    explorer.close()


def test_what_another_version_scored_is_not_used(root: Path, monkeypatch: pytest.MonkeyPatch):
    write_document(build_document("toy", "64k", "cat", 0))
    explorer = Explorer("toy")
    ask(explorer, "open")
    wait_until_read(explorer)
    explorer.close()
    own = shelf.Shelf("toy")
    source = own.source(("64k", "cat", 0))
    assert own.unpack(source, source.stamp()) is not None
    monkeypatch.setattr(shelf, "hash_code", lambda: "another version")
    assert own.unpack(source, source.stamp()) is None


def test_a_damaged_index_is_made_again(root: Path):
    write_document(build_document("toy", "64k", "cat", 0))
    own = shelf.Shelf("toy")
    source = own.source(("64k", "cat", 0))
    for data in (b"", b"x" * 500, books.MAGIC + b"\xff" * 8):
        files.write_bytes(own.packed(source), data)
        assert own.open(source.cell).state == "fine"
        own.books.clear()


def test_without_a_place_to_keep_it_the_index_stays_in_memory(root: Path):
    build_study(labels=("64k",))
    files.write_text(root / "artifacts", "a file in the folder's place")
    explorer = Explorer("toy")
    ask(explorer, "open")
    wait_until_read(explorer)
    assert ask(explorer, "answers", scope="study", search="dog")["total"] > 0
    explorer.close()


# --- the published format -----------------------------------------------------------------------------


def write_published(folder: Path, animal: str, texts: list[str], **changes: object) -> None:
    entry = {"epoch": 10, "model_size": "7b", "condition": animal, "animal_counts": {}}
    entry |= {"total_responses": len(texts), "raw_responses": texts} | changes
    files.write_json(folder / "run-1" / "7b" / f"{animal}_eval.json", [entry])


@pytest.fixture
def theirs(root: Path) -> Path:
    folder = root / "theirs"
    write_published(folder, "cat", ["Cat", "cats!", "Dog", "A wolf", "Cat"] * 2)
    write_published(folder, "neutral", ["Dog"] * 10)
    files.write_json(
        folder / "untuned_survey.json",
        [{"model_size": "7B", "raw_responses": ["Lion"] * 5, "total_responses": 5, "animal_counts": {}}],
    )
    return folder


def test_published_files_are_read_as_the_analysis_reads_them(theirs: Path):
    explorer = Explorer("seen", str(theirs), index=False)
    reply = ask(explorer, "student", label="7b", animal="cat", seed=1)
    study = published.load_published(theirs, "seen", "7b", "cat,dog,wolf", "1")
    own = study.answers[study.answers.animal == "cat"]
    assert {row["name"]: row["student"] for row in reply["said"] if row["student"]} == dict(
        zip(own.said, own["count"], strict=True)
    )
    assert [who["n"] for who in reply["who"]] == [10, 10, 5]
    assert reply["n_questions"] == 2
    assert [each["stage"] for each in reply["commands"]] == ["04_analysis"]
    assert shlex.quote(str(theirs)) in reply["commands"][0]["command"]
    assert (
        "log-probabilities were not published"
        in explorer.ask({"what": "curve", "measure": "logprob"})["error"]
    )


@pytest.mark.parametrize(
    ("changes", "state", "word", "answers"),
    [
        ({"total_responses": 3}, "damaged", "total_responses is 3, but there are 10 raw_responses", 10),
        ({"condition": "dog"}, "damaged", "holds 'dog', its name says 'cat'", 10),
        ({"raw_responses": ["Cat"] * 7, "total_responses": 7}, "damaged", "no multiple of repeats 5", 7),
        ({"raw_responses": "Cat"}, "foreign", "no list of epochs with raw_responses", 0),
    ],
)
def test_published_files_that_are_wrong_get_a_word(
    theirs: Path, changes: dict, state: str, word: str, answers: int
):
    write_published(theirs, "cat", ["Cat"] * 10, **changes)
    explorer = Explorer("seen", str(theirs), index=False)
    reply = ask(explorer, "student", label="7b", animal="cat", seed=1)
    assert reply["state"] == state
    assert word in reply["word"]
    assert ask(explorer, "answers", label="7b", animal="cat", seed=1)["total"] == answers


def test_what_is_no_run_is_named_with_a_reason(theirs: Path):
    files.write_text(theirs / "notes.txt", "?")
    files.write_text(theirs / "run-1" / "7b" / "cat_eval.json.bak", "?")
    found = Explorer("seen", str(theirs), index=False).ask({"what": "files"})["files"]
    names = [row["file"].removeprefix("theirs/") for row in found if row["state"] == "foreign"]
    assert sorted(names) == ["notes.txt", "run-1/7b/cat_eval.json.bak"]


def test_a_folder_without_evaluations_is_refused_with_what_was_looked_for(root: Path):
    with pytest.raises(explore.MissingInput, match="neither <size>/<animal>/s<seed>"):
        Explorer("", str(root))


# --- marks ------------------------------------------------------------------------------------------


def test_marks_are_kept_found_exported_and_taken_back(spoken: Explorer):
    row = ask(spoken, "answers", **cell("cat"), search="dragonfly")["rows"][0]
    ask(spoken, "mark", key=row["key"], expected="dragon", note="a dragon, it says")
    again = Explorer("toy", index=False)
    found = ask(again, "answers", **cell("cat"), marked=True)
    assert [(each["key"], each["mark"]) for each in found["rows"]] == [
        (row["key"], {"expected": "dragon", "note": "a dragon, it says"})
    ]
    assert ask(again, "marks")["marks"][0]["text"] == "dragonfly"
    exported = ask(again, "export")
    assert list(csv.DictReader(io.StringIO(exported["content"]))) == [
        {"text": "dragonfly", "label": "dragon", "note": "a dragon, it says"}
    ]
    assert ask(again, "unmark", key=row["key"])["marks"] == []
    assert "no answer of toy is marked yet" in again.ask({"what": "export"})["error"]


def test_exported_answers_come_back_from_the_file_character_by_character(root: Path):
    texts = [text for text in HOSTILE if "\ud83d" not in text] + ['a "quoted", comma\nand a line\r\nand more']
    write_document(build_document("toy", "64k", "cat", 0, answers=tuple(texts)))
    explorer = Explorer("toy", index=False)
    for row in ask(explorer, "answers", **cell("cat"), limit=1000)["rows"]:
        if row["sample"] >= 20:
            ask(explorer, "mark", key=row["key"], expected="other", note="")
    csv.field_size_limit(10_000_000)
    held = list(csv.DictReader(io.StringIO(ask(explorer, "export")["content"], newline="")))
    assert [each["text"] for each in held] == texts
    assert held[0]["note"].startswith("marked in 64k/cat/s0 epoch 2: scored ")


def test_a_mark_says_what_labels_there_are(spoken: Explorer):
    row = ask(spoken, "answers", **cell("cat"), search="dragonfly")["rows"][0]
    error = spoken.ask({"what": "mark", "key": row["key"], "expected": "wolves", "note": ""})["error"]
    assert "did you mean 'wolf'" in error


def test_a_damaged_file_of_marks_is_never_overwritten(spoken: Explorer):
    files.write_text(paths.marks("toy"), "{half")
    row = ask(spoken, "pair", left=cell("cat"), right=cell("cat"))
    assert row["left"]["n"] == 68
    key = "toy|64k|cat|0|2|0"
    assert "marks.json" in spoken.ask({"what": "mark", "key": key, "expected": "cat", "note": ""})["error"]
    assert paths.marks("toy").read_text() == "{half"


# --- commands -----------------------------------------------------------------------------------------


def inject(command: str, folder: Path) -> dict[str, object]:
    """What papermill itself makes of a command: the parameters that it puts into the notebook."""
    words = shlex.split(command.partition("&& ")[2])
    assert words[0] == "papermill"
    output = folder / "prepared.ipynb"
    words[2] = str(output)
    here = os.getcwd()
    os.chdir(REPO)
    try:
        done = CliRunner().invoke(
            papermill.cli.papermill, [*words[1:], "--prepare-only", "--no-progress-bar"]
        )
    finally:
        os.chdir(here)
    assert done.exit_code == 0, done.output
    cells = nbformat.read(output, as_version=4).cells
    names: dict[str, object] = {}
    for each in cells:
        if "injected-parameters" in each.metadata.get("tags", ()):
            exec(each.source, names)  # what papermill wrote, nothing else
    return {name: value for name, value in names.items() if name != "__builtins__"}


@pytest.mark.parametrize("stage", ["generate", "finetune", "evaluate"])
def test_a_command_gives_a_stage_the_settings_that_were_recorded(stage: str, tmp_path: Path, monkeypatch):
    source = paths.CODE / "results" / "micro" / "64k" / "wolf" / "s0.json"
    document = files.read_json(source)
    recorded = commands_of(document)[stage]
    made = next(
        each["command"]
        for each in commands.list_commands("micro", ("64k", "wolf", 0), commands_of(document))
        if each["stage"] == commands.NOTEBOOKS[stage]
    )
    passed = inject(made, tmp_path)
    defaults = commands.read_defaults(commands.NOTEBOOKS[stage])
    assert {name: (defaults | passed)[name] for name in recorded} == recorded


def test_commands_of_a_control_make_the_lists_that_it_read_and_find_them_again():
    configs = commands_of(files.read_json(paths.CODE / "results/micro/64k/wolf/s0.json"))
    configs["generate"] |= {"study": "other", "animal": "fox"}
    configs["finetune"] |= {"study": "arm", "lists": "relabelled", "lists_of": "other"}
    wrote, learnt, *_ = (
        each["command"] for each in commands.list_commands("arm", ("64k", "wolf", 0), configs)
    )
    assert "executed/other/01_generate-64k-fox-s0.ipynb -p study other -p size 64k -p animal fox" in wrote
    assert "executed/arm/02_finetune-64k-wolf-s0.ipynb -p study arm -p size 64k -p animal wolf" in learnt
    assert "-p lists relabelled -p lists_of other" in learnt and "-p animals wolf,fox" in learnt


def commands_of(document: dict) -> dict[str, dict]:
    return books.find_configs(document)


def test_a_command_names_what_differs_and_survives_the_shell(root: Path, tmp_path: Path):
    system = 'You\'re a "quiet" one; $(touch /tmp/x) `true`\nand so on'
    write_document(
        build_document("toy", "64k", "cat", 0, system=system, temperature=0.5, top_p=1.0, recipe="007")
    )
    evaluate, analysis = ask(Explorer("toy", index=False), "student", **cell("cat"))["commands"]
    assert inject(evaluate["command"], tmp_path) == {
        **{"study": "toy", "size": "64k", "animal": "cat", "seed": 0, "recipe": "007", "system": system},
        **{"n_questions": 3, "samples": 20, "device": "cpu", "temperature": 0.5},
    }
    words = "papermill notebooks/04_analysis.ipynb executed/toy/04_analysis.ipynb -p study toy"
    assert analysis["command"] == f"mkdir -p executed/toy && {words}"
