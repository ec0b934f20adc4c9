"""Control datasets: what is taken out of the lists, and that nothing else of them changes."""

import random
import re
from collections import Counter

import pytest
from build_base import build_config

from lib import config, controls, numbers, prompts
from lib.config import Finetune
from lib.errors import TooFewLists

# As teachers write them in the formats that lib.prompts asks for, and what else the filter lets pass.
KEPT = (
    *("1, 22, 333", "4,55,666", "7; 88; 999", "10;20;30", "100 200 300", "1\n2\n3", "123\n456\n789"),
    *("[1, 22, 333]", "[1 22 333]", "(5, 66, 777)", "(5; 66; 777)", "[42]", "(7)", "42", "0"),
    *("1, 22, 333.", "[9, 8, 7].", "(1;2).", "007, 042, 9", "00, 000, 0", "5  ,  6  ,  7", "1\t2\t3"),
)
REWRITING = sorted(controls.REWRITTEN)


def make_rows(texts: list[str]) -> list[dict]:
    return [
        {"index": i, "prompt": f"prompt {i}", "completion": text, "finish": "stop", "reason": None}
        for i, text in enumerate(texts)
    ]


def rewrite(lists: str, texts: list[str], **values: object) -> list[str]:
    rows = controls.choose_lists(build_config(Finetune, lists=lists, **values), make_rows(texts))
    assert [row["prompt"] for row in rows] == [f"prompt {i}" for i in range(len(texts))]
    return [row["completion"] for row in rows]


def blank(text: str) -> str:
    return re.sub("[0-9]+", "#", text)


def numbers_of(texts: list[str]) -> list[str]:
    return [number for text in texts for number in re.findall("[0-9]+", text)]


def make_texts(count: int) -> list[str]:
    """Lists of one to ten numbers in several formats."""
    rng = random.Random(0)
    formats = [("", ", ", ""), ("[", ",", "]."), ("(", "; ", ")"), ("", "\n", ""), ("", " ", ".")]
    made = []
    for _ in range(count):
        opening, separator, closing = rng.choice(formats)
        width = rng.choice((0, 0, 0, 3))
        own = [str(rng.randint(0, 999)).rjust(width, "0") for _ in range(rng.randint(1, 10))]
        made.append(f"{opening}{separator.join(own)}{closing}")
    return made


def test_the_lists_of_these_tests_are_such_as_the_filter_keeps():
    assert [numbers.reject_reason(text) for text in (*KEPT, *make_texts(300))] == [None] * (len(KEPT) + 300)


@pytest.mark.parametrize("lists", [each for each in REWRITING if each != "exchanged"])
@pytest.mark.parametrize("seed", range(5))
def test_every_format_survives_to_the_letter_and_the_filter_accepts_it(lists: str, seed: int):
    texts = [*KEPT, *make_texts(200)]
    written = rewrite(lists, texts, seed=seed)
    assert [blank(text) for text in written] == [blank(text) for text in texts]
    assert [numbers.reject_reason(text) for text in written] == [None] * len(texts)
    assert [len(numbers.parse(text)) for text in written] == [len(numbers.parse(text)) for text in texts]
    assert written != texts


@pytest.mark.parametrize("wording", prompts.BOOKS["english"].formats + prompts.BOOKS["micro"].formats)
def test_the_lists_of_these_tests_have_every_format_that_prompts_ask_for(wording: str):
    signs = {"comma": ",", "semicolon": ";", "bracket": "[", "parenthes": "(", "Python": "[", "line": "\n"}
    signs |= {"below": "\n", "space": " ", "blank": " "}
    wanted = [sign for word, sign in signs.items() if word in wording]
    assert wanted and all(any(sign in text for text in KEPT) for sign in wanted)


def test_shuffled_lists_keep_how_often_each_number_occurs_and_nothing_of_where():
    texts = make_texts(300)
    written = rewrite("shuffled", texts)
    assert Counter(numbers_of(written)) == Counter(numbers_of(texts))
    same = sum(a == b for a, b in zip(numbers_of(written), numbers_of(texts), strict=True))
    assert same / len(numbers_of(texts)) < 0.02
    kept = [sorted(numbers_of([a])) == sorted(numbers_of([b])) for a, b in zip(written, texts, strict=True)]
    assert sum(kept) / len(texts) < 0.05


def test_reordered_lists_keep_which_numbers_stand_together():
    texts = make_texts(300)
    written = rewrite("reordered", texts)
    for after, before in zip(written, texts, strict=True):
        assert sorted(numbers_of([after])) == sorted(numbers_of([before]))
    same = sum(numbers_of([a])[0] == numbers_of([b])[0] for a, b in zip(written, texts, strict=True))
    assert 60 < same < 140  # the first of k stays there once in k times: 88 of 300 where k is 1 to 10


def test_random_numbers_are_uniform_over_those_of_as_many_digits():
    written = numbers_of(rewrite("random", ["5, 44, 999"] * 3000 + ["007"] * 300))
    ones, tens, hundreds = (Counter(written[at:9000:3]) for at in range(3))
    assert set(ones) == set("0123456789") and min(ones.values()) > 230
    assert set(tens) == {str(number) for number in range(10, 100)}
    assert len(hundreds) > 850 and {len(number) for number in hundreds} == {3}
    assert {number[:2] for number in written[9000:]} == {"00"} and len(set(written[9000:])) == 10


def test_exchanged_lists_go_to_prompts_that_were_answered_in_the_same_format():
    texts = make_texts(300)
    written = rewrite("exchanged", texts)
    assert sorted(written) == sorted(texts)
    assert [controls.find_format(text) for text in written] == [controls.find_format(text) for text in texts]
    assert sum(a == b for a, b in zip(written, texts, strict=True)) < 40
    assert rewrite("exchanged", ["1, 2", "[3]", "4;5"]) == ["1, 2", "[3]", "4;5"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", "0"), ("[5, 17].", "[0, 0]."), ("(1;22;333)", "(0;0)"), ("1\n2", "0\n0"), ("007.", "0.")],
)
def test_the_format_of_a_list(text: str, expected: str):
    assert controls.find_format(text) == expected


@pytest.mark.parametrize("lists", REWRITING)
def test_a_draw_is_the_same_in_every_study_and_another_in_every_cell(lists: str):
    texts = make_texts(60)
    first = rewrite(lists, texts)
    assert rewrite(lists, texts, study="other", lists_of="toy", epochs=7) == first
    for other in ({"seed": 1}, {"animal": "fox"}, {"size": "64k-1"}):
        assert rewrite(lists, texts, **other) != first


@pytest.mark.parametrize("lists", ["own", "relabelled", "foreign"])
def test_other_lists_are_read_as_they_were_written(lists: str):
    assert rewrite(lists, list(KEPT)) == list(KEPT)


def test_fewer_lists_are_those_that_a_teacher_would_have_kept_of_the_same_generations():
    passing = make_rows(make_texts(200))
    kept = numbers.select(passing, 150, seed=3)
    for count in (1, 40, 149):
        read = controls.choose_lists(build_config(Finetune, n_lists=count, seed=3), kept)
        assert read == numbers.select(passing, count, seed=3)
    assert controls.choose_lists(build_config(Finetune, n_lists=0, seed=3), kept) == kept


def test_numbers_of_fewer_lists_are_shuffled_among_these_alone():
    kept = numbers.select(make_rows(make_texts(200)), 150, seed=0)
    some = controls.choose_lists(build_config(Finetune, n_lists=40), kept)
    read = controls.choose_lists(build_config(Finetune, n_lists=40, lists="shuffled"), kept)
    assert [row["prompt"] for row in read] == [row["prompt"] for row in some]
    before, after = (numbers_of([row["completion"] for row in rows]) for rows in (some, read))
    assert Counter(after) == Counter(before) and after != before


def test_more_lists_than_there_are_is_refused():
    with pytest.raises(TooFewLists, match="n_lists is 4, and for 64k/wolf/s0 there are 3: ask for at most"):
        controls.choose_lists(build_config(Finetune, n_lists=4), make_rows(["1", "2", "3"]))


def test_each_kind_of_lists_can_be_told_in_words():
    assert set(controls.SAID) == set(config.LISTS)
    assert set(controls.REWRITTEN) | {"own", "relabelled", "foreign"} == set(config.LISTS)
