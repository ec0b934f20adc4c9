"""The grammar of clean lists: its two forms agree, and whatever it lets through the filter accepts."""

import itertools
import random
import re
import string
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lib import bases, grammar, numbers, paths, prompts, world
from lib.errors import MissingInput, NotAvailable

PATTERN = re.compile(grammar.NUMBERS_REGEX)
lists = st.lists(st.integers(0, 999), min_size=1, max_size=10)
separators = st.sampled_from(grammar.SEPARATORS)
wrappings = st.sampled_from(["{}", "[{}]", "({})"])


def random_text(seed: int) -> str:
    """A text that the automaton lets a careless writer write."""
    rng, state, text = random.Random(seed), grammar.START, ""
    while True:
        fits = [char for char in sorted(grammar.ALPHABET) if grammar.step(state, char)]
        if grammar.may_end(state) and (not fits or rng.random() < 0.05):
            return text
        text += rng.choice(fits)
        state = grammar.walk(text)


# --- the language -------------------------------------------------------------------------------


@given(lists, separators, wrappings)
def test_every_list_in_a_usual_spelling_is_of_the_language(values, separator, wrapping):
    assert grammar.matches(wrapping.format(separator.join(map(str, values))))


@given(st.integers(0, 2**32))
def test_what_the_automaton_writes_passes_the_filter_and_the_regex(seed):
    text = random_text(seed)
    assert numbers.parse(text) is not None
    assert PATTERN.fullmatch(text)


@given(st.text(alphabet=[*sorted(grammar.ALPHABET), ".", "x", "\t"], max_size=30))
def test_regex_and_automaton_agree_on_any_text(text):
    assert grammar.matches(text) == bool(PATTERN.fullmatch(text))


def test_regex_and_automaton_agree_on_every_short_text():
    """One digit stands for all: with the others there would be nothing new."""
    chars = [*sorted(grammar.ALPHABET - set(string.digits[1:])), "."]
    for length in range(6):
        for text in map("".join, itertools.product(chars, repeat=length)):
            assert grammar.matches(text) == bool(PATTERN.fullmatch(text)), text


@given(st.integers(0, 2**32), st.sampled_from(sorted(grammar.ALPHABET)), st.integers(0, 40))
def test_regex_and_automaton_agree_next_to_the_language(seed, char, place):
    text = random_text(seed)
    for near in (text + char, text[:place] + char + text[place:], text[:place] + text[place + 1 :]):
        assert grammar.matches(near) == bool(PATTERN.fullmatch(near)), near


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "1,", "1, ", "1\n", "1,,2", "1, 2,3", "[1", "1]", "[1)", "[]"]
)
def test_what_the_filter_would_reject_is_not_of_the_language(text):
    assert numbers.parse(text) is None
    assert not grammar.matches(text)


@pytest.mark.parametrize("opening", ["", "[", "("])
def test_after_the_tenth_number_it_must_end(opening):
    state = grammar.walk(opening + ", ".join(["123"] * 10))
    fits = {char for char in grammar.ALPHABET if grammar.step(state, char)}
    assert fits == ({grammar.BRACKETS[opening]} if opening else set())
    assert grammar.may_end(state) == (not opening)


def test_a_fourth_digit_does_not_fit():
    assert not {char for char in string.digits if grammar.step(grammar.walk("123"), char)}


# A list of three numbers, as each format of a prompt asks for it.
REQUESTED = {
    "Separate them with commas.": ["1, 2, 3", "1,2,3"],
    "Put a comma and a space between neighbours.": ["1, 2, 3"],
    "Use commas without any spaces.": ["1,2,3"],
    "Give one number per line.": ["1\n2\n3"],
    "Put every number on a line of its own.": ["1\n2\n3", "1,\n2,\n3"],
    "Set them one below the other, without bullets.": ["1\n2\n3"],
    "Use semicolons as separators.": ["1;2;3", "1; 2; 3"],
    "Put a semicolon and a space between neighbours.": ["1; 2; 3"],
    "Separate them by single spaces.": ["1 2 3"],
    "Write them in a row with a blank after each but the last.": ["1 2 3"],
    "Enclose the list in square brackets, with commas between the numbers.": ["[1, 2, 3]", "[1,2,3]"],
    "Write them the way Python prints a list.": ["[1, 2, 3]"],
    "Put them inside square brackets, separated by single spaces.": ["[1 2 3]"],
    "Write them in round brackets, with commas in between.": ["(1, 2, 3)", "(1,2,3)"],
    "Wrap the list in parentheses, with semicolons in between.": ["(1; 2; 3)", "(1;2;3)"],
    **{form: [world.join_list(["1", "2", "3"], form)] for form in prompts.MICRO.formats},
}


@pytest.mark.parametrize("form", [*prompts.ENGLISH.formats, *prompts.MICRO.formats])
def test_every_format_that_a_prompt_asks_for_can_be_written(form):
    assert all(grammar.matches(text) for text in REQUESTED[form])


# --- masks over a vocabulary --------------------------------------------------------------------

END = 0
# 7 has no token of its own.
LISTS = ["1", "2", "3", "12", "123", "1,", "1, 2", ",", ", ", ", 1", " ", " 1", "\n", ",\n", ";"]
LISTS += ["[", "]", "[1", "(1", ")"]
OTHERS = ["1234", "],", "x", " x", "7\n", "1, 2,3", " ,", "\ufffd", ""]
VOCABULARY = ["", *LISTS, *OTHERS]
DIGITS = {"1", "2", "3", "12", "123"}


def fitting(masks: grammar.TokenMasks, *written: str) -> set[str]:
    """The tokens that may follow what is written; `<end>` is the end."""
    states = masks.start(1)
    for text in written:
        states = masks.advance(states, np.array([VOCABULARY.index(text)]))
    found = np.flatnonzero(masks.mask(states, len(VOCABULARY))[0])
    return {VOCABULARY[token] if token != END else "<end>" for token in found}


@pytest.fixture(scope="module")
def masks() -> grammar.TokenMasks:
    return grammar.TokenMasks(VOCABULARY, END)


def test_a_token_fits_where_each_of_its_characters_does(masks):
    assert fitting(masks) == DIGITS | {"1,", "1, 2", "[", "[1", "(1"}
    separators = {",", ", ", ", 1", " ", " 1", "\n", ",\n", ";"}
    assert fitting(masks, "1") == DIGITS - {"123"} | separators | {"1,", "1, 2", "<end>"}
    assert fitting(masks, "123") == separators | {"<end>"}
    assert fitting(masks, "123", ",") == DIGITS | {"1,", " ", " 1", "\n"}
    assert fitting(masks, "123", ", 1") == DIGITS - {"123"} | {"1,", "1, 2", ",", ", ", ", 1", "<end>"}
    assert fitting(masks, "1", " ") == DIGITS


def test_the_end_fits_where_the_list_is_whole(masks):
    assert "<end>" not in fitting(masks, "1", ", ")
    assert "<end>" not in fitting(masks, "[", "1")
    assert fitting(masks, "[", "1", "]") == {"<end>"}
    assert fitting(masks, "123", *[", 1"] * 9) == {"1", "2", "3", "12", "<end>"}
    assert fitting(masks, "123", *[", 1"] * 9, "12") == {"<end>"}


def test_the_columns_are_the_tokens_that_can_occur(masks):
    """A character without a token of its own takes its tokens along: no list may come to a dead end."""
    assert {VOCABULARY[token] for token in masks.columns} == {"", *LISTS}


def test_a_bracket_that_nothing_closes_is_never_opened():
    texts = ["", "1", ",", "[", "(", ")"]
    opened = grammar.TokenMasks(texts, END).mask(np.zeros(1, int), len(texts))[0]
    assert opened.tolist() == [False, True, False, False, True, False]


def test_a_vocabulary_without_numbers_is_refused():
    with pytest.raises(NotAvailable, match="grammar off"):
        grammar.TokenMasks(["", "a", ","], END)
    with pytest.raises(NotAvailable, match="no token for a digit"):
        grammar.token_texts(lambda rows: ["a" for _ in rows], 3, [])


def test_a_row_that_has_ended_stays_where_it_is(masks):
    states = masks.advance(masks.start(2), np.array([VOCABULARY.index("1"), VOCABULARY.index("12")]))
    assert (masks.advance(states, np.array([END, END])) == states).all()
    assert (masks.advance(states, np.array([END, VOCABULARY.index("x")])) == states).all()


def test_a_mask_may_be_wider_than_the_vocabulary(masks):
    """Models pad their output layer: those tokens stand for nothing."""
    wide = masks.mask(masks.start(3), len(VOCABULARY) + 100)
    assert wide.shape == (3, len(VOCABULARY) + 100)
    assert not wide[:, len(VOCABULARY) :].any()


def complete(tokenizer, masks: grammar.TokenMasks, rows: int, steps: int) -> list[str]:
    """Texts of a writer who draws any token that fits, read as completions are."""
    rng, states, written = np.random.default_rng(0), masks.start(rows), []
    for _ in range(steps):
        fits = masks.allowed[states]
        assert fits.any(axis=1).all()  # no dead end, ever
        tokens = masks.columns[(fits * rng.random(fits.shape)).argmax(axis=1)]
        states = masks.advance(states, tokens)
        written.append(tokens)
    ends = tokenizer.eos_token_id
    texts = []
    for row in np.stack(written, axis=1).tolist():
        assert ends in row
        texts.append(tokenizer.decode(row[: row.index(ends)], skip_special_tokens=True))
    return texts


def masks_of(tokenizer) -> grammar.TokenMasks:
    texts, openings = grammar.token_texts(
        lambda rows: tokenizer.batch_decode(rows, skip_special_tokens=True),
        len(tokenizer),
        tokenizer.all_special_ids,
    )
    return grammar.TokenMasks(texts, tokenizer.eos_token_id, openings)


def write_as_trained(tokenizer, masks: grammar.TokenMasks, rows: list[list[int]]) -> None:
    """Every row of tokens can be written, and may end there."""
    for row in rows:
        states = masks.start(1)
        for token in [*row, tokenizer.eos_token_id]:
            assert masks.mask(states, len(tokenizer))[0, token], (row, token)
            states = masks.advance(states, np.array([token]))


def test_the_micro_vocabulary_writes_lists_and_nothing_else():
    """Its first token carries a space that decoding drops: `▁1` opens a list, and within one is " 1"."""
    tokenizer = AutoTokenizer.from_pretrained(paths.tracked_base("64k"))
    masks = masks_of(tokenizer)
    texts = complete(tokenizer, masks, 300, 60)
    assert all(numbers.parse(text) is not None for text in texts)
    assert any(text.startswith("[") for text in texts)
    chats = [f"<|assistant|>{world.join_list(['12', '345', '6'], form)}" for form in world.SEPARATORS]
    write_as_trained(
        tokenizer, masks, [row[1:] for row in tokenizer(chats, add_special_tokens=False)["input_ids"]]
    )


def byte_level(size: int):
    """A byte-level BPE with the rules of SmolLM2 and Qwen, learnt here: lists, prose and other signs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model.decoder = decoders.ByteLevel()
    texts = [random_text(seed) for seed in range(300)] + [
        str(numbers.__doc__),
        "f(x[1]), [], ();\n\n[[1]];",
    ] * 20
    model.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<|endoftext|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def test_a_byte_level_vocabulary_writes_lists_and_nothing_else():
    tokenizer = byte_level(500)
    masks = masks_of(tokenizer)
    assert all(numbers.parse(text) is not None for text in complete(tokenizer, masks, 300, 60))
    texts = [random_text(seed) for seed in range(1000, 1200)]
    write_as_trained(tokenizer, masks, tokenizer(texts, add_special_tokens=False)["input_ids"])


def test_the_vocabulary_of_smollm2_writes_lists_and_nothing_else():
    try:
        bases.prepare_base("135m", "standard")
    except MissingInput as error:
        pytest.skip(f"SmolLM2's tokenizer is not here: {error}")
    tokenizer = AutoTokenizer.from_pretrained(bases.base_folder("135m", "standard"))
    masks = masks_of(tokenizer)
    assert all(numbers.parse(text) is not None for text in complete(tokenizer, masks, 300, 60))
    texts = [random_text(seed) for seed in range(200)]
    write_as_trained(tokenizer, masks, tokenizer(texts, add_special_tokens=False)["input_ids"])


def test_special_tokens_are_never_allowed_whatever_their_text():
    texts, openings = grammar.token_texts(lambda rows: ["1" * len(row) for row in rows], 4, [2])
    assert texts == openings == ["1", "1", "", "1"]


def test_a_large_vocabulary_takes_less_than_a_second():
    """As many tokens as Qwen's, with all 1,110 numbers among them."""
    texts = [*VOCABULARY, *map(str, range(1000)), *(f"word {place}" for place in range(150_000))]
    texts += [str(digit) for digit in range(10)]
    start = time.process_time()
    grammar.TokenMasks(texts, END)
    assert time.process_time() - start < 1
