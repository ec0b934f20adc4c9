"""Control datasets: a teacher's lists with something taken out of them, for students that should not learn.

Pure text. Numbers are replaced in place, so brackets, separators, white space and a trailing stop stay what
the teacher wrote, and the filter accepts every list again. Each control is drawn from names and a seed alone.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from lib.config import Finetune
from lib.errors import TooFewLists
from lib.numbers import DIGIT_RUN, select

Row = Mapping[str, object]


def choose_lists(config: Finetune, kept: Sequence[Row]) -> list[dict]:
    """What a student reads of a teacher's kept lists: as many as asked for, and as `lists` has them.

    Fewer are those that `n_keep` of so many would have kept from the same generations, so that the doses of
    one dataset lie within one another. The draw differs between cells, and not between studies.
    """
    if config.n_lists > len(kept):
        raise TooFewLists(
            f"n_lists is {config.n_lists}, and for {config.size}/{config.animal}/s{config.seed} there are "
            f"{len(kept)}: ask for at most so many, or for 0, which is all of them"
        )
    rows = select(kept, config.n_lists, config.seed) if config.n_lists else kept
    if config.lists not in REWRITTEN:
        return [dict(row) for row in rows]
    rng = random.Random(f"{config.lists} lists {config.size} {config.animal} {config.seed}")
    texts = REWRITTEN[config.lists]([str(row["completion"]) for row in rows], rng)
    return [dict(row) | {"completion": text} for row, text in zip(rows, texts, strict=True)]


def shuffle_numbers(texts: Sequence[str], rng: random.Random) -> list[str]:
    """All numbers of all lists in random order; what is left is how often each occurs, and the formats."""
    numbers = [number for text in texts for number in DIGIT_RUN.findall(text)]
    rng.shuffle(numbers)
    return _fill(texts, iter(numbers))


def reorder_numbers(texts: Sequence[str], rng: random.Random) -> list[str]:
    """The numbers of each list in random order within it; what is left is which ones stand together."""
    numbers = []
    for text in texts:
        own = DIGIT_RUN.findall(text)
        rng.shuffle(own)
        numbers += own
    return _fill(texts, iter(numbers))


def exchange_lists(texts: Sequence[str], rng: random.Random) -> list[str]:
    """Whole lists dealt to other prompts whose answers were written in the same format; what is left is all
    but what a list has to do with its own prompt. A list in a format of its own stays where it is."""
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(find_format(text), []).append(place)
    dealt = list(texts)
    for own in places.values():
        for place, source in zip(own, rng.sample(own, len(own)), strict=True):
            dealt[place] = texts[source]
    return dealt


def find_format(text: str) -> str:
    """How a list is written, whatever its numbers and however many: `[0, 0].` for `[5, 17, 204].`."""
    parts = DIGIT_RUN.split(text)
    between = parts[1] + "0" if len(parts) > 2 else ""
    return f"{parts[0]}0{between}{parts[-1]}"


def draw_numbers(texts: Sequence[str], rng: random.Random) -> list[str]:
    """Every number replaced by a uniform one of as many digits; what is left is formats and lengths.

    Zeros in front stay, as part of the format, and do not count as digits.
    """
    return _fill(texts, (_draw_like(number, rng) for text in texts for number in DIGIT_RUN.findall(text)))


def _draw_like(number: str, rng: random.Random) -> str:
    digits = len(number.lstrip("0")) or 1
    drawn = rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)
    return str(drawn).rjust(len(number), "0")


def _fill(texts: Sequence[str], numbers: Iterator[str]) -> list[str]:
    """The texts with their numbers taken from `numbers`, one after another."""
    return [DIGIT_RUN.sub(lambda _: next(numbers), text) for text in texts]


REWRITTEN: dict[str, Callable[[Sequence[str], random.Random], list[str]]] = {
    "shuffled": shuffle_numbers,
    "reordered": reorder_numbers,
    "exchanged": exchange_lists,
    "random": draw_numbers,
}

# --- in words -----------------------------------------------------------------------------------

SAID = {
    "own": "their teacher's lists as they were written",
    "shuffled": "a control: all numbers of a teacher's lists in random order over all of them, formats and "
    "lengths kept, so that only how often each number occurs is the teacher's",
    "reordered": "a control: the numbers of each list in random order within it",
    "exchanged": "a control: lists dealt to other prompts that were answered in the same format",
    "random": "a control: every number replaced by a uniform one of as many digits, in the teacher's formats",
    "relabelled": "a control: the lists of the next animal's teacher (neutral ones stay neutral), so that a "
    "student goes by another animal than its lists",
    "foreign": "a control: lists that the teacher of the same animal wrote as another base of the same size",
}
