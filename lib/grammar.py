"""The language of clean lists: what a model may write next if lib.numbers is to accept its list.

One definition in two forms that accept the same texts: a regular expression, for vLLM's structured outputs,
and an automaton over characters, for masks over a vocabulary. It is narrower than the filter: at most ten
numbers of one to three digits, one of SEPARATORS all through, optionally all in one pair of brackets.
Pure: it knows neither a model nor a tokenizer, and draws nothing.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lib.errors import NotAvailable
from lib.numbers import MAX_DIGITS, MAX_NUMBERS

# What models write when they are asked for commas, semicolons, spaces or lines of their own.
SEPARATORS = (",", ", ", ";", "; ", " ", "\n", ",\n")
BRACKETS = {"[": "]", "(": ")"}
DIGITS = "0123456789"
ALPHABET = frozenset(DIGITS + "".join(SEPARATORS) + "".join(BRACKETS) + "".join(BRACKETS.values()))


def _regex() -> str:
    """Alternation, classes and counts alone: engines of structured outputs know no more."""
    number = f"[0-9]{{1,{MAX_DIGITS}}}"
    apart = [each.replace("\n", r"\n") for each in SEPARATORS]
    more = "|".join(f"(?:{each}{number}){{1,{MAX_NUMBERS - 1}}}" for each in apart)
    body = f"{number}(?:{more})?"
    return "|".join([body, *(rf"\{left}{body}\{right}" for left, right in BRACKETS.items())])


NUMBERS_REGEX = _regex()

# --- the automaton ----------------------------------------------------------------------------


class State(NamedTuple):
    """Where a list stands after so many characters; `pending` is what of a separator is written so far."""

    closing: str = ""  # the bracket that the list will end with
    separator: str = ""  # of this list, known from its second number on
    pending: str = ""
    numbers: int = 0
    digits: int = 0  # of the last number; 0 before it begins


START = State()
CLOSED = State(numbers=MAX_NUMBERS, digits=MAX_DIGITS)  # after the closing bracket: nothing fits any more


@functools.cache
def step(state: State, char: str) -> State | None:
    """The state after one more character, None where no list goes on like that."""
    if char in BRACKETS:
        return State(closing=BRACKETS[char]) if state == START else None
    if char in DIGITS:
        return _add_digit(state)
    if char == state.closing:
        return CLOSED if state.digits else None
    return _add_to_separator(state, char)


def _add_digit(state: State) -> State | None:
    if state.digits:
        return state._replace(digits=state.digits + 1) if state.digits < MAX_DIGITS else None
    known = (state.separator,) if state.separator else SEPARATORS
    if state.numbers and state.pending not in known:
        return None
    return State(state.closing, state.pending, "", state.numbers + 1, 1)


def _add_to_separator(state: State, char: str) -> State | None:
    if not state.numbers or state.numbers == MAX_NUMBERS:
        return None
    known = (state.separator,) if state.separator else SEPARATORS
    pending = state.pending + char
    fits = any(each.startswith(pending) for each in known)
    return state._replace(pending=pending, digits=0) if fits else None


def may_end(state: State) -> bool:
    """Whether what was written is a whole list."""
    return state.digits > 0 and not state.closing


def walk(text: str, state: State = START) -> State | None:
    """The state after a text, None where no list goes on like that."""
    for char in text:
        if (after := step(state, char)) is None:
            return None
        state = after
    return state


def matches(text: str) -> bool:
    """Whether a text is a whole list; `matches("[1, 2]")`."""
    state = walk(text)
    return state is not None and may_end(state)


# --- masks over a vocabulary ------------------------------------------------------------------


class TokenMasks:
    """Which tokens a list may go on with, as tables over the few tokens that can occur in one.

    States are integers here, 0 the start. `columns` are the ids of those tokens, the end among them;
    `allowed[state, column]` says whether one may follow and `after[state, column]` where it leads;
    `column_of[token]` is a token's column or -1. The tables may be moved to a GPU as they are.
    """

    def __init__(self, texts: Sequence[str], end: int, openings: Sequence[str] | None = None) -> None:
        """`texts[token]` is what a token adds to a text, `openings[token]` what it gives as the first one;
        tokens that must never be written, special ones, have "" in both (`token_texts` makes them)."""
        first = texts if openings is None else openings
        usable = _usable(texts)
        texts, first = ([text if usable.issuperset(text) else "" for text in each] for each in (texts, first))
        columns = [token for token, pair in enumerate(zip(texts, first, strict=True)) if any(pair)]
        allowed, after = _tables([texts[token] for token in columns], [first[token] for token in columns])
        occurring = allowed.any(axis=0)
        self.columns = np.array([*columns, end])[occurring]
        self.allowed, self.after = allowed[:, occurring], after[:, occurring]
        self.column_of = np.full(max(len(texts), end + 1), -1)
        self.column_of[self.columns] = np.arange(len(self.columns))
        if not self.allowed[0].any():
            raise NotAvailable(
                "grammar numbers: no token of this vocabulary can open a list; use -p grammar off"
            )

    def start(self, rows: int) -> np.ndarray:
        """The states of so many lists of which nothing is written."""
        return np.zeros(rows, dtype=np.int32)

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The states after one token each; at the end token, and at one that may not follow, they stay."""
        column = self.column_of[tokens]
        return np.where(column >= 0, self.after[states, column], states)

    def mask(self, states: np.ndarray, width: int) -> np.ndarray:
        """[rows, width]: which of the vocabulary's first `width` tokens may follow.

        `allowed[states]` says the same over `columns` alone, without touching the rest of the vocabulary.
        """
        distinct, place = np.unique(states, return_inverse=True)
        rows = np.zeros((len(distinct), width), dtype=bool)
        rows[:, self.columns] = self.allowed[distinct]
        return rows[place]


def _tables(texts: Sequence[str], openings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """For every state that can be reached, a row each: what may follow, and where it leads. Last the end."""
    states, index, allowed, after = [START], {START: 0}, [], []
    for here, state in enumerate(states):  # grows while it is read
        ends = [walk(text, state) if text else None for text in (openings if state == START else texts)]
        for reached in ends:
            if reached is not None and reached not in index:
                index[reached] = len(states)
                states.append(reached)
        allowed.append([*(reached is not None for reached in ends), may_end(state)])
        after.append([*(here if reached is None else index[reached] for reached in ends), here])
    return np.array(allowed), np.array(after, dtype=np.int32)


def token_texts(
    decode: Callable[[list[list[int]]], Sequence[str]], size: int, special: Iterable[int]
) -> tuple[list[str], list[str]]:
    """What each token adds to a text, and what it gives as the first one, for `TokenMasks`.

    `decode` turns token rows into texts, as completions are read. The two differ where a tokenizer drops
    the space that opens a text. Only tokens that can be part of a list are looked at closely; others and
    the special ones get "".
    """
    never = set(special)
    alone = decode([[token] for token in range(size)])
    known = [token for token, text in enumerate(alone) if token not in never and ALPHABET.issuperset(text)]
    anchor = next((token for token in known if alone[token] and alone[token] in DIGITS), None)
    if anchor is None:
        raise NotAvailable("grammar numbers: this vocabulary has no token for a digit; use -p grammar off")
    texts, openings = [""] * size, [""] * size
    for token, text in zip(known, decode([[anchor, token] for token in known]), strict=True):
        openings[token] = alone[token]
        texts[token] = text.removeprefix(alone[anchor])
    return texts, openings


def _usable(texts: Sequence[str]) -> frozenset[str]:
    """The characters that have a token of their own: with these alone no list can end in a dead end."""
    single = ALPHABET.intersection(texts)
    opening = {left for left, right in BRACKETS.items() if right in single}
    return frozenset(single - BRACKETS.keys() | opening)
