"""Which answers match: words or an expression in their text, what they say and why, of one student or all.

A search looks through one book after another until its time is up and goes on when it is asked again; what it
has counted so far is told as such. Numbers are exact for the books that were looked through.
"""

import heapq
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lib.books import Book, encode
from lib.errors import BadParameter
from lib.scoring import REASONS
from lib.tallies import PLACES, SAID, Cell
from lib.workers import Expressions

SHOWN = 600  # characters of an answer in a list
FARTHEST = 5_000  # rows to which a whole study can be turned in the order of the alphabet
CHUNK = 64
SORTS = ("asked", "text", "said")
# Letters from frequent to rare: a search begins with the two neighbours that are rarest together.
COMMON = b" etaoinsrhldcumfpgwybvkxjqz.,-'"

Matcher = Callable[[Book], np.ndarray | None]  # texts that match, or None where that is not known yet


@dataclass(frozen=True)
class Wanted:
    """What a search asks for, the same for every book."""

    search: str = ""
    regex: bool = False
    said: str | None = None
    reason: str | None = None
    question: int | None = None


@dataclass
class Hits:
    """What one book has for a search: places of its answers, and counts for the filters."""

    cell: Cell
    book: Book
    found: np.ndarray
    said: np.ndarray  # of all that match but for what they say
    reasons: np.ndarray  # of all that match but for the reason
    scanned: int


@dataclass
class Search:
    """A search and how far it came."""

    wanted: Wanted
    spans: Mapping[Cell, int | None]  # the cells to look through, and the epoch where only one counts
    marked: Mapping[Cell, np.ndarray] | None = None  # places of marked answers, where only these count
    done: dict[Cell, Hits] = field(default_factory=dict)
    running: bool = False  # somebody looks on in the background
    problem: str = ""  # what stopped that

    def advance(self, books: Callable[[Cell], Book | None], match: Matcher, until: float) -> bool:
        """Look through further books until `until`, through one at least; True when none is left."""
        complete = True
        for at, cell in enumerate(self.left()):
            if at and time.monotonic() > until:
                return False
            book = books(cell)
            hits = self.look(cell, book, match) if book is not None else None
            if hits is None:
                complete = False
            else:
                self.done[cell] = hits
        return complete

    def left(self) -> list[Cell]:
        """What was not looked through yet."""
        return [cell for cell in self.spans if cell not in self.done]

    def look(self, cell: Cell, book: Book, match: Matcher) -> Hits | None:
        """One book; None where the expression is still at work on it."""
        span = self.choose_span(cell, book)
        at = np.arange(span.start, span.stop)
        if self.marked is not None:
            at = np.intersect1d(at, self.marked.get(cell, np.zeros(0, int)))
        scanned = len(at)
        if self.wanted.question is not None:
            at = at[book.question[at] == self.wanted.question]
        if self.wanted.search and book.texts.count:
            texts = match(book)
            if texts is None:
                return None
            mask = np.zeros(book.texts.count, bool)
            mask[texts] = True
            at = at[mask[book.text[at]]] if len(texts) else at[:0]
        return self.filter(cell, book, at, scanned)

    def choose_span(self, cell: Cell, book: Book) -> slice:
        epoch = self.spans[cell]
        if epoch is None:
            return slice(0, len(book.text))
        return book.span(epoch) if epoch in book.epochs else slice(0, 0)

    def filter(self, cell: Cell, book: Book, at: np.ndarray, scanned: int) -> Hits:
        """What the answers say and why: counted for each filter as the other one leaves them."""
        texts = book.text[at]
        book.score_texts(texts)
        said, reasons = book.said[texts], book.reason[texts]
        this, that = np.ones(len(at), bool), np.ones(len(at), bool)
        if self.wanted.said is not None:
            this = said == PLACES[self.wanted.said]
        if self.wanted.reason is not None:
            that = reasons == REASONS.index(self.wanted.reason)
        return Hits(
            cell,
            book,
            at[this & that],
            np.bincount(said[that], minlength=len(SAID)),
            np.bincount(reasons[this], minlength=len(REASONS)),
            scanned,
        )

    def forget(self, stamps: Mapping[Cell, tuple[int, int, int]]) -> None:
        """Look again through books whose file has changed."""
        for cell, stamp in stamps.items():
            if self.done[cell].book.stamp != stamp:
                self.done.pop(cell, None)

    # --- what was found ---

    def ordered(self) -> list[Hits]:
        """The books in the order of the study, whenever they were looked through."""
        return [self.done[cell] for cell in self.spans if cell in self.done]

    def summary(self) -> dict[str, Any]:
        hits = self.ordered()
        said = sum((each.said for each in hits), np.zeros(len(SAID), np.int64))
        reasons = sum((each.reasons for each in hits), np.zeros(len(REASONS), np.int64))
        return {
            "total": sum(len(each.found) for each in hits),
            "scanned": sum(each.scanned for each in hits),
            "said": rank_counts(SAID, said),
            "reasons": rank_counts(REASONS, reasons),
        }

    def page(self, sort: str, offset: int, limit: int) -> list[tuple[Hits, int]]:
        """The rows from `offset` on: a book and the place of an answer in it."""
        hits = [each for each in self.ordered() if len(each.found)]
        if sort == "text":
            return self.page_by_text(hits, offset, limit)
        if sort == "said":
            return self.page_by_said(hits, offset, limit)
        return take_rows(((each, each.found) for each in hits), offset, limit)

    def page_by_text(self, hits: Sequence[Hits], offset: int, limit: int) -> list[tuple[Hits, int]]:
        if len(hits) > 1 and offset + limit > FARTHEST:
            raise BadParameter(
                f"in the order of the alphabet the first {FARTHEST:,} answers of a study can be shown; "
                "search for fewer, or show them as they were asked"
            )
        if len(hits) == 1:
            return take_rows([(hits[0], by_text(hits[0]))], offset, limit)
        rows = heapq.merge(*(walk_texts(at, each) for at, each in enumerate(hits)))
        chosen = [row for row, _ in zip(rows, range(offset + limit), strict=False)]
        return [(hits[at], place) for _, at, place in chosen[offset:]]

    def page_by_said(self, hits: Sequence[Hits], offset: int, limit: int) -> list[tuple[Hits, int]]:
        """Those that say the most frequent thing first."""
        counts = sum((each.said for each in hits), np.zeros(len(SAID), np.int64))
        order = np.argsort(-counts, kind="stable").tolist()
        groups = (
            (each, each.found[each.book.said[each.book.text[each.found]] == name])
            for name in order
            if counts[name]
            for each in hits
            if each.said[name]
        )
        return take_rows(groups, offset, limit)


def rank_counts(names: Sequence[str], counts: np.ndarray) -> list[list]:
    """Names with their counts, the most frequent first, without zeros."""
    order = np.argsort(-counts, kind="stable")
    return [[names[at], int(counts[at])] for at in order if counts[at]]


def by_text(hits: Hits) -> np.ndarray:
    """Places in the order of the alphabet; texts of a book have that order."""
    order = hits.book.alphabet()
    if len(hits.found) == len(order):
        return order
    wanted = np.zeros(len(order), bool)
    wanted[hits.found] = True
    return order[wanted[order]]


def walk_texts(at: int, hits: Hits) -> Iterator[tuple[tuple[str, str], int, int]]:
    """Answers of one book from the alphabet's beginning: text, number of the book, place."""
    held, key = -1, ("", "")
    places = by_text(hits)
    for begin in range(0, len(places), CHUNK):  # of most books only the first few are looked at
        for place in places[begin : begin + CHUNK].tolist():
            text = int(hits.book.text[place])
            if text != held:
                whole = hits.book.texts[text]
                held, key = text, (whole.casefold(), whole)
            yield key, at, place


def take_rows(
    groups: Iterator[tuple[Hits, np.ndarray]] | Sequence[tuple[Hits, np.ndarray]], offset: int, limit: int
) -> list[tuple[Hits, int]]:
    """The rows from `offset` on of groups that stand one after another."""
    rows: list[tuple[Hits, int]] = []
    for hits, places in groups:
        if offset >= len(places):
            offset -= len(places)
            continue
        rows += [(hits, place) for place in places[offset : offset + limit - len(rows)].tolist()]
        offset = 0
        if len(rows) >= limit:
            break
    return rows


# --- matching -------------------------------------------------------------------------------------


def find_words(search: str) -> Matcher:
    """Texts that hold these very words, whatever their case."""
    needle = encode(search.casefold())

    def match(book: Book) -> np.ndarray:
        blob, bounds = book.fold()
        return find_bytes(blob, bounds, needle)

    return match


def find_bytes(blob: np.ndarray, bounds: np.ndarray, needle: bytes) -> np.ndarray:
    """The parts of a run of bytes that hold the needle, as numbers.

    By whole arrays: the time hardly depends on how often the needle is there, and other threads go on.
    """
    last = len(blob) - len(needle) + 1
    if last <= 0:
        return np.zeros(0, np.int64)
    if len(needle) == 1:
        return find_byte(blob, bounds, needle[0])
    rest = list(range(len(needle)))
    mask = scratch(0, last)
    match_pair(blob, needle, rest, mask)
    places = find_true(mask)
    for at in rest:
        if not len(places):
            break
        places = places[blob[places + at] == needle[at]]
    parts = np.searchsorted(bounds, places.astype(bounds.dtype), side="right") - 1
    parts = parts[places + len(needle) <= bounds[parts + 1]]
    return parts[np.diff(parts, prepend=-1) > 0]


def find_byte(blob: np.ndarray, bounds: np.ndarray, byte: int) -> np.ndarray:
    """The parts that hold one byte, of which there may be very many."""
    mask = np.equal(blob, byte, out=scratch(0, len(blob)))
    filled = np.flatnonzero(bounds[1:] > bounds[:-1])
    starts = bounds[filled].astype(np.int64)
    return filled[np.maximum.reduceat(mask.view(np.uint8), starts) > 0]


def match_pair(blob: np.ndarray, needle: bytes, rest: list[int], mask: np.ndarray) -> None:
    """Where the needle may begin, by its two neighbours that are rarest together; these leave `rest`."""
    rarity = [COMMON.find(byte) if byte in COMMON else len(COMMON) for byte in needle]
    at = max(range(len(needle) - 1), key=lambda place: rarity[place] + rarity[place + 1])
    second = scratch(1, len(mask))
    np.equal(blob[at : at + len(mask)], needle[at], out=mask)
    np.equal(blob[at + 1 : at + 1 + len(mask)], needle[at + 1], out=second)
    np.bitwise_and(mask, second, out=mask)
    rest.remove(at)
    rest.remove(at + 1)


def find_true(mask: np.ndarray) -> np.ndarray:
    """As np.flatnonzero, quicker where little is true: eight at a time."""
    whole = len(mask) // 8 * 8
    words = np.flatnonzero(mask[:whole].view(np.uint64))
    if len(words) > len(mask) // 64:
        return np.flatnonzero(mask)
    near = (words[:, None] * 8 + np.arange(8)).ravel()
    return np.concatenate((near[mask[near]], whole + np.flatnonzero(mask[whole:])))


_scratch = threading.local()


def scratch(which: int, length: int) -> np.ndarray:
    """An array of this thread to write into: half of the time would go into asking for fresh memory."""
    held = _scratch.__dict__.setdefault("held", {})
    if which not in held or len(held[which]) < length:
        held[which] = np.empty(2 * length, bool)
    return held[which][:length]


def compile_expression(search: str) -> re.Pattern:
    """The regular expression, or what is wrong with it."""
    try:
        return re.compile(search, re.IGNORECASE)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadParameter(f"the search is no regular expression: {error}") from None


def find_expression(search: str, expressions: Expressions, until: float) -> Matcher:
    """Texts in which a regular expression finds something, as far as that is known until then."""
    compile_expression(search)
    return lambda book: expressions.match(search, book, until)
