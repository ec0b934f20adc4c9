"""Lifts and lambda from counts alone, for a look at a study that may still be read: no interval and no p.

A square is one (base, seed): its students by the animals they name. The numbers are those of lib.tables,
which needs all files at once and stops at a damaged one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lib import config
from lib.books import Book
from lib.tallies import PLACES, Cell

UNITS = {"logprob": "nats", "rate": "percentage points"}


def preference(book: Book | None, epoch: int | None, measure: str) -> dict[str, float]:
    """What a student prefers at an epoch: percent of its answers, or nats; nothing where unknown."""
    if book is None or epoch not in book.epochs:
        return {}
    if measure == "logprob":
        return book.preferences(epoch)
    counts = book.total(epoch)
    n = int(counts.sum())
    return {name: 100 * int(counts[PLACES[name]]) / n for name in config.LEXICON} if n else {}


@dataclass(frozen=True)
class Square:
    """What the students of one base and seed prefer, their neutral student beside them."""

    label: str
    seed: int
    students: Mapping[str, Mapping[str, float]]  # animal of the student -> animal named -> preference
    neutral: Mapping[str, float]

    @property
    def animals(self) -> list[str]:
        """Animals whose student is there and that all students were measured for."""
        return [a for a in self.students if all(a in own for own in self.students.values())]

    def matrix(self) -> np.ndarray:
        """Students by their animals, less the neutral student, or less the mean where there is none."""
        names = self.animals
        values = np.array([[self.students[row][name] for name in names] for row in names])
        if not self.neutral:
            return values - values.mean(0)
        return values - np.array([self.neutral.get(name, np.nan) for name in names])

    def lift(self, student: str, named: str) -> float | None:
        """How much more a student prefers an animal than the neutral student does."""
        own = self.students.get(student, {}).get(named)
        before = self.neutral.get(named)
        return None if own is None or before is None else own - before


def collect_squares(
    books: Mapping[Cell, Book], epoch: int | None, measure: str, order: Iterable[Cell]
) -> list[Square]:
    """A square per base and seed; `epoch` None takes every student at its last."""
    groups: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for cell in order:
        label, animal, seed = cell
        book = books.get(cell)
        if book is None or animal == config.UNTUNED or not book.epochs:
            continue
        found = preference(book, book.epochs[-1] if epoch is None else epoch, measure)
        if found:
            groups.setdefault((label, seed), {})[animal] = found
    return [
        Square(
            label,
            seed,
            {a: own for a, own in each.items() if a != config.NEUTRAL},
            each.get(config.NEUTRAL, {}),
        )
        for (label, seed), each in groups.items()
    ]


def find_factor(squares: Iterable[Square]) -> float | None:
    """lambda over squares, which count by their students less one, as in the tables."""
    from lib import stats  # a second that a first view does not wait for

    parts = []
    for square in squares:
        matrix = square.matrix()
        if len(matrix) >= stats.MIN_ANIMALS and np.isfinite(matrix).all():
            parts.append((stats.transfer_factor(matrix), len(matrix) - 1))
    weight = sum(each for _, each in parts)
    return sum(value * each for value, each in parts) / weight if weight else None


def find_terms(square: Square) -> dict[str, float]:
    """Every student's own diagonal excess; their mean is lambda."""
    from lib import stats

    matrix = square.matrix()
    if len(matrix) < stats.MIN_ANIMALS or not np.isfinite(matrix).all():
        return {}
    return dict(zip(square.animals, stats.transfer_terms(matrix).tolist(), strict=True))


def mean_lifts(squares: Iterable[Square], animals: Iterable[str]) -> list[list[float | None]]:
    """Students by named animals: the mean lift over bases and seeds, None where nothing is known."""
    names, squares = list(animals), list(squares)
    rows = []
    for student in names:
        found = [[square.lift(student, named) for square in squares] for named in names]
        known = [[value for value in each if value is not None] for each in found]
        rows.append([sum(each) / len(each) if each else None for each in known])
    return rows


def last_common(books: Iterable[Book]) -> int | None:
    """The last epoch that all have, or the last that any has where they share none."""
    known = [set(book.epochs) for book in books if book.epochs]
    if not known:
        return None
    return max(set.intersection(*known) or set.union(*known))
