"""The list filter: hand-made cases, properties, a second implementation; the seeded sample; the tables."""

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib import numbers
from lib.errors import BadParameter

ACCEPTED = {
    # separators
    "1, 2, 3": (1, 2, 3),
    "1,2,3": (1, 2, 3),
    "1 ,2 ,3": (1, 2, 3),
    "1 , 2 , 3": (1, 2, 3),
    "1;2;3": (1, 2, 3),
    "1; 2; 3": (1, 2, 3),
    "1 2 3": (1, 2, 3),
    "1  2  3": (1, 2, 3),
    "1\n2\n3": (1, 2, 3),
    "1\t2": (1, 2),
    "1,\n2,\n3": (1, 2, 3),
    "1\r\n2": (1, 2),
    "1\u00a02\u00a03": (1, 2, 3),  # no-break space: white space that strip() strips
    "1\u20032": (1, 2),
    "1\x1f2": (1, 2),
    # the full stop and the brackets, in that order
    "1, 2, 3.": (1, 2, 3),
    "[1, 2, 3]": (1, 2, 3),
    "(1, 2, 3)": (1, 2, 3),
    "[1, 2, 3].": (1, 2, 3),
    "(1;2).": (1, 2),
    "[1 2]": (1, 2),
    "5.": (5,),
    "[5]": (5,),
    "(5).": (5,),
    # one number, the bounds, leading zeros
    "0": (0,),
    "999": (999,),
    "42": (42,),
    "007": (7,),
    "0007": (7,),
    "000, 0999": (0, 999),
    "00001": (1,),
    "1,2,3,4,5,6,7,8,9,10": tuple(range(1, 11)),
    "7, 7, 7": (7, 7, 7),
    "0" * 5000: (0,),  # longer than int() reads
}
REJECTED = {
    "": numbers.NO_NUMBER,
    ".": numbers.NO_NUMBER,
    "[]": numbers.NO_NUMBER,
    "[": numbers.NO_NUMBER,
    "no numbers here": numbers.NO_NUMBER,
    "一二三": numbers.NO_NUMBER,
    "١٢٣": numbers.NO_NUMBER,  # Arabic-Indic digits
    "１２": numbers.NO_NUMBER,  # full-width digits
    "²": numbers.NO_NUMBER,
    " 5": numbers.NOT_ALONE,
    "5 ": numbers.NOT_ALONE,
    "5\n": numbers.NOT_ALONE,
    "5,": numbers.NOT_ALONE,
    "-5": numbers.NOT_ALONE,
    "5..": numbers.NOT_ALONE,
    "[5": numbers.NOT_ALONE,
    "[5)": numbers.NOT_ALONE,
    "[[5]]": numbers.NOT_ALONE,
    "([5])": numbers.NOT_ALONE,
    "{5}": numbers.NOT_ALONE,
    "[5.]": numbers.NOT_ALONE,
    "[ 5 ]": numbers.NOT_ALONE,
    "[5]. ": numbers.NOT_ALONE,
    "5²": numbers.NOT_ALONE,
    "wolf 5": numbers.NOT_ALONE,
    "1-2-3": numbers.BAD_SEPARATOR,
    "1.2": numbers.BAD_SEPARATOR,
    "1, -2": numbers.BAD_SEPARATOR,
    "1,, 2": numbers.BAD_SEPARATOR,
    "1, ; 2": numbers.BAD_SEPARATOR,
    "1 and 2": numbers.BAD_SEPARATOR,
    "1 | 2 | 3": numbers.BAD_SEPARATOR,
    "1、2、3": numbers.BAD_SEPARATOR,
    "1，2": numbers.BAD_SEPARATOR,  # the full-width comma is another character
    "1\u200b2": numbers.BAD_SEPARATOR,  # zero-width space: not white space to strip()
    "1\u0660 2": numbers.BAD_SEPARATOR,
    "1. 7\n2. 8": numbers.BAD_SEPARATOR,
    "1) 7": numbers.BAD_SEPARATOR,
    "1, 2, ": numbers.EMPTY_PART,
    "1,2,": numbers.EMPTY_PART,
    ",1,2": numbers.EMPTY_PART,
    " 1 2": numbers.EMPTY_PART,
    "1 2 ": numbers.EMPTY_PART,
    "1\n2\n": numbers.EMPTY_PART,
    "1 2  3": numbers.EMPTY_PART,
    "1,2,,3": numbers.EMPTY_PART,
    "1,2,.": numbers.EMPTY_PART,
    "1, 2,3": numbers.MIXED_SEPARATORS,
    "1,2, 3": numbers.MIXED_SEPARATORS,
    "1, 2; 3": numbers.MIXED_SEPARATORS,
    "1  2 3": numbers.MIXED_SEPARATORS,
    " 1, 2": numbers.MIXED_SEPARATORS,
    "1, 2 ": numbers.MIXED_SEPARATORS,
    "1, 2\n": numbers.MIXED_SEPARATORS,
    "[1, 2] ": numbers.OTHER_TEXT,
    "[ 1, 2 ]": numbers.MIXED_SEPARATORS,
    "1, 2,\n3": numbers.MIXED_SEPARATORS,
    "1, 2, three": numbers.OTHER_TEXT,
    "1, 2..": numbers.OTHER_TEXT,
    "[1, 2": numbers.OTHER_TEXT,
    "1, 2]": numbers.OTHER_TEXT,
    "(1, 2]": numbers.OTHER_TEXT,
    "[(1, 2)]": numbers.OTHER_TEXT,
    "[1, 2.]": numbers.OTHER_TEXT,
    "Sure: 1, 2, 3": numbers.OTHER_TEXT,
    "1, 2, -3": numbers.OTHER_TEXT,
    "1, 2, 3.5": numbers.OTHER_TEXT,
    "1, 2, ３": numbers.OTHER_TEXT,
    "1, 2²": numbers.OTHER_TEXT,
    "1, 2, +3": numbers.OTHER_TEXT,
    "1, 2, 1_0": numbers.OTHER_TEXT,  # int("1_0") is 10, a list is not
    "1,2,3,4,5,6,7,8,9,10,11": numbers.TOO_MANY,
    "1,2,3,4,5,6,7,8,9,10,1000": numbers.TOO_MANY,
    "1000": numbers.TOO_LARGE,
    "1, 1000": numbers.TOO_LARGE,
    "01000, 1": numbers.TOO_LARGE,
    "9" * 5000: numbers.TOO_LARGE,
}


@pytest.mark.parametrize("text", ACCEPTED, ids=ascii)
def test_accepts(text):
    assert numbers.parse(text) == ACCEPTED[text]
    assert numbers.reject_reason(text) is None


@pytest.mark.parametrize("text", REJECTED, ids=ascii)
def test_rejects_with_reason(text):
    assert numbers.parse(text) is None
    assert numbers.reject_reason(text) == REJECTED[text]


def test_every_reason_has_a_case():
    assert {*REJECTED.values(), numbers.CUT_OFF} == set(numbers.REASONS)
    assert len(ACCEPTED) + len(REJECTED) >= 60


# --- properties -------------------------------------------------------------------------------

lists = st.lists(st.integers(0, 999), min_size=1, max_size=10)
separators = st.sampled_from([",", ", ", ";", "; ", " ", "\n", "\t", " , ", ",\n", "  "])
wrappings = st.sampled_from(["{}", "{}.", "[{}]", "({})", "[{}].", "({})."])
# Texts near the border between accepted and rejected: random text would hardly ever be accepted.
near_lists = st.lists(
    st.sampled_from(
        [*"0123456789", ",", ", ", ";", " ", "\n", ".", "[", "]", "(", ")", "x", "٣", "\u00a0", "1,", "12 "]
    ),
    max_size=14,
).map("".join)


def second_opinion(text):
    """The filter again as a scan over characters, without regular expressions or the module's own steps."""
    body = text[:-1] if text[-1:] == "." else text
    if len(body) >= 2 and (body[0], body[-1]) in {("[", "]"), ("(", ")")}:
        body = body[1:-1]
    labels = ["d" if char in string.digits else "x" for char in body]
    starts = [i for i, kind in enumerate(labels) if kind == "d" and (i == 0 or labels[i - 1] == "x")]
    if not starts:
        return None
    parts = [body]
    if len(starts) > 1:
        end = starts[0] + labels[starts[0] :].index("x")
        gap = body[end : starts[1]]
        if "".join(gap.split()) not in ("", ",", ";"):
            return None
        parts, rest = [], body
        while gap in rest:
            part, _, rest = rest.partition(gap)
            parts.append(part)
        parts.append(rest)
    good = all(part != "" and set(part) <= set(string.digits) for part in parts)
    values = [int(part) for part in parts] if good else []
    return tuple(values) if good and len(values) <= 10 and max(values) <= 999 else None


@given(near_lists | st.text(max_size=20))
def test_agrees_with_a_second_implementation(text):
    assert numbers.parse(text) == second_opinion(text)


@given(near_lists | st.text())
def test_parse_and_reason_agree(text):
    reason = numbers.reject_reason(text)
    assert (numbers.parse(text) is None) == (reason is not None)
    assert reason is None or reason in numbers.REASONS


@given(lists, separators, wrappings)
def test_round_trip(values, separator, wrapping):
    assert numbers.parse(wrapping.format(separator.join(map(str, values)))) == tuple(values)


@given(near_lists)
def test_what_was_parsed_parses_again(text):
    values = numbers.parse(text)
    if values is not None:
        assert numbers.parse(", ".join(map(str, values))) == values


@given(lists, separators, st.integers(1, 4))
def test_leading_zeros_change_nothing(values, separator, zeros):
    padded = separator.join("0" * zeros + str(value) for value in values)
    assert numbers.parse(padded) == tuple(values)


@given(lists, separators, st.sampled_from([" ", "\n", "\t", ",", ";", ", ", "\u00a0"]))
def test_nothing_is_stripped(values, separator, tail):
    assert numbers.parse(separator.join(map(str, values)) + tail) is None
    assert numbers.parse(tail + separator.join(map(str, values))) is None


@given(st.lists(st.integers(0, 999), min_size=11, max_size=30), separators)
def test_more_than_ten_are_rejected(values, separator):
    assert numbers.reject_reason(separator.join(map(str, values))) == numbers.TOO_MANY


@given(lists, st.integers(1000, 10**9), separators)
def test_above_999_is_rejected(values, large, separator):
    assert numbers.reject_reason(separator.join(map(str, [*values[:9], large]))) == numbers.TOO_LARGE


@given(st.text(alphabet=st.characters(blacklist_characters=string.digits)))
def test_no_ascii_digit_is_no_number(text):
    assert numbers.reject_reason(text) == numbers.NO_NUMBER


@given(lists, separators, st.sampled_from("abz-+/|:٣"))
def test_any_letter_or_sign_rejects(values, separator, foreign):
    text = separator.join(map(str, values))
    for place in (0, len(text) // 2, len(text)):
        assert numbers.parse(text[:place] + foreign + text[place:]) is None


# --- the cut-off rule -------------------------------------------------------------------------


@given(near_lists)
def test_a_generation_at_the_token_limit_is_cut_off(text):
    assert numbers.judge(text, "length") == numbers.CUT_OFF
    assert numbers.judge(text, "stop") == numbers.reject_reason(text)


def test_an_unknown_finish_is_refused():
    with pytest.raises(BadParameter, match=r"eos.*stop, length"):
        numbers.judge("1, 2", "eos")


# --- the seeded sample ------------------------------------------------------------------------


def make_rows(passing, n_rows=200):
    reasons = {index: None if index in passing else numbers.NO_NUMBER for index in range(n_rows)}
    return [
        {"index": index, "prompt": f"p{index}", "completion": "1", "finish": "stop", "reason": reason}
        for index, reason in reasons.items()
    ]


def indices(rows):
    return [row["index"] for row in rows]


index_sets = st.sets(st.integers(0, 199))


@given(index_sets, st.integers(0, 250), st.integers(0, 5))
def test_select_keeps_passing_rows_in_prompt_order(passing, n_keep, seed):
    kept = indices(numbers.select(make_rows(passing), n_keep, seed))
    assert kept == sorted(kept)
    assert set(kept) <= passing
    assert len(kept) == min(n_keep, len(passing))


@given(index_sets, st.randoms())
def test_select_ignores_row_order_and_rejected_rows(passing, shuffler):
    rows = make_rows(passing)
    shuffled = shuffler.sample(rows, len(rows))
    only_passing = [row for row in shuffled if row["reason"] is None]
    expected = indices(numbers.select(rows, 50, 3))
    assert indices(numbers.select(shuffled, 50, 3)) == expected
    assert indices(numbers.select(only_passing, 50, 3)) == expected


@given(index_sets, index_sets)
def test_two_animals_keep_the_same_prompts_where_both_passed(wolf, owl):
    kept_wolf, kept_owl = (set(indices(numbers.select(make_rows(each), 60, 7))) for each in (wolf, owl))
    # Passed for both but kept by one: pushed out by a prompt that passed for the other alone.
    assert len((kept_wolf - kept_owl) & owl) <= len(owl - wolf)


def test_select_follows_the_seed():
    rows = make_rows(set(range(200)))
    assert numbers.select(rows, 50, 0) == numbers.select(rows, 50, 0)
    assert indices(numbers.select(rows, 50, 0)) != indices(numbers.select(rows, 50, 1))


def test_select_favours_no_part_of_the_prompts():
    rows = make_rows(set(range(200)))
    early = sum(index < 100 for seed in range(200) for index in indices(numbers.select(rows, 50, seed)))
    assert 4700 < early < 5300  # of 10,000; binomial spread is 43 (hypergeometric) around 5,000


def test_select_refuses_a_negative_size():
    with pytest.raises(BadParameter, match="-1"):
        numbers.select([], -1, 0)


# --- tables -----------------------------------------------------------------------------------


def value_of(rows, feature, value, column):
    return next(row[column] for row in rows if (row["feature"], row["value"]) == (feature, value))


def test_digit_table_counts_by_hand():
    rows = numbers.digit_table([(7, 70, 705), (0,)])
    assert value_of(rows, "leading digit", 7, "count") == 3
    assert value_of(rows, "leading digit", 7, "share") == 0.75
    assert value_of(rows, "hundreds digit", 7, "total") == 1
    assert value_of(rows, "tens digit", 0, "count") == 1  # 705 has a tens digit, 7 has none
    assert value_of(rows, "tens digit", 0, "total") == 2
    assert value_of(rows, "units digit", 0, "count") == 2
    assert value_of(rows, "list length", 3, "share") == 0.5
    assert value_of(rows, "list length", 10, "count") == 0


@given(st.lists(lists, min_size=1, max_size=20))
def test_shares_of_a_feature_sum_to_one(values):
    for table in (numbers.digit_table(values), numbers.number_table(values)):
        for feature in {row["feature"] for row in table if row["total"]}:
            assert sum(row["share"] for row in table if row["feature"] == feature) == pytest.approx(1)


def test_comparison_finds_what_was_planted():
    draw = random.Random(0)
    neutral = [[draw.randrange(1000) for _ in range(8)] for _ in range(500)]
    loves_seven = [
        [777 if draw.random() < 0.1 else draw.randrange(1000) for _ in range(8)] for _ in range(500)
    ]
    digits = numbers.compare_tables(numbers.digit_table(loves_seven), numbers.digit_table(neutral))
    assert value_of(digits, "leading digit", 7, "z") > 5
    assert abs(value_of(digits, "list length", 8, "z")) == 0
    table = numbers.compare_tables(numbers.number_table(loves_seven), numbers.number_table(neutral))
    assert numbers.most_distinct(table, 1)[0]["value"] == 777
    # A number that only the neutral teacher wrote is there too, with the animal's count 0.
    missing = next(row for row in table if row["count"] == 0)
    assert missing["difference"] < 0
    assert missing["z"] < 0


def test_z_is_the_two_proportion_statistic():
    proportions_ztest = pytest.importorskip("statsmodels.stats.proportion").proportions_ztest
    own = [{"feature": "number", "value": 5, "count": 30, "total": 200, "share": 0.15}]
    neutral = [{"feature": "number", "value": 5, "count": 20, "total": 300, "share": 20 / 300}]
    expected, _ = proportions_ztest([30, 20], [200, 300])
    assert numbers.compare_tables(own, neutral)[0]["z"] == pytest.approx(expected)


def test_a_table_beside_nothing_has_no_z():
    rows = numbers.compare_tables(numbers.number_table([(5,)]), numbers.number_table([]))
    assert rows[0]["z"] is None
    assert rows[0]["neutral_share"] is None
