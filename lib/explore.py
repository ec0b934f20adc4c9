"""The explorer: questions about a study's answers, asked and answered as JSON, never with an exception.

`Explorer.ask` is all that the page and the widget know of Python. Numbers are counted here from raw answers;
intervals and p are taken from the tables of an analysis, where there is one.
"""

import contextlib
import csv
import html
import json
import math
import shlex
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib import config, paths
from lib.books import MISSING, OURS, PUBLISHED, Book
from lib.colours import COLOURS
from lib.commands import list_commands, read_analysis, read_defaults
from lib.errors import BadParameter, MissingInput, StudyError
from lib.marks import LONGEST, Marks
from lib.scoring import REASONS
from lib.search import SHOWN, SORTS, Hits, Search, Wanted, find_expression, find_words
from lib.shelf import Shelf, find_kind, list_studies, open_folder, rank
from lib.squares import (
    UNITS,
    collect_squares,
    find_factor,
    find_terms,
    last_common,
    mean_lifts,
    preference,
)
from lib.tallies import PLACES, SAID, Cell
from lib.workers import PAUSE, Expressions

WHOLE = 2_000_000  # characters of an answer that are sent
BUDGET = 0.18  # seconds that a search may take before it says how far it came
BETWEEN = 7.0  # seconds that it looks on by itself before it is asked again
MOST_ROWS = 1_000
SEARCHES = 4  # whose hits are kept, so that turning a page does not search again
QUESTIONS = (
    *("open", "student", "answers", "text", "pair", "follow", "matrix", "curve", "mark", "unmark", "marks"),
    *("export", "files", "progress"),
)
WHO = ("student", config.NEUTRAL, config.UNTUNED)
SCOPES = ("epoch", "student", "study")
MEASURES = ("logprob", "rate")
TITLES = {config.NEUTRAL: "neutral student", config.UNTUNED: "untuned model"}
CONTROLS = (config.NEUTRAL, config.UNTUNED)


class Explorer:
    """What can be asked about the studies of a folder; any number of threads may ask."""

    def __init__(self, study: str = "", results: str = "", repeats: int = 5, index: bool = True) -> None:
        self.folder = open_folder(results) if results else None
        self.own = study or (self.folder.name if self.folder else "")
        self.studies = self.find_studies()
        self.study = self.own or next(iter(self.studies), "")
        self.check_study(self.study)
        self.repeats = repeats
        self.index = index
        self.shelves: dict[str, Shelf] = {}
        self.searches: dict[str, Search] = {}
        self.latest: Search | None = None
        self.expressions = Expressions()
        self.guard = threading.RLock()
        tells = (
            *(self.tell_study, self.tell_student, self.tell_answers, self.tell_text, self.tell_pair),
            *(self.follow, self.tell_matrix, self.tell_curve, self.add_mark, self.drop_mark, self.tell_marks),
            *(self.export_marks, self.tell_files, self.tell_progress),
        )
        self.answers: dict[str, Callable[[dict], dict]] = dict(zip(QUESTIONS, tells, strict=True))

        later = threading.Timer(PAUSE, load_statistics)
        later.daemon = True
        later.start()

    def find_studies(self) -> dict[str, str]:
        """What there is to choose from now, the folder that was named first."""
        named = {self.own: find_kind(self.folder)} if self.folder is not None else {}
        return named | {name: kind for name, kind in list_studies().items() if name not in named}

    def check_study(self, name: str) -> None:
        """Refuse a study that has no evaluations, with those that do."""
        known = ", ".join(self.studies)
        if not self.studies:
            raise MissingInput(
                "no evaluations here yet: run `make study`, or name a folder that has some (--results FOLDER)"
            )
        if name not in self.studies:
            raise MissingInput(
                f"no evaluations of a study {name!r} here; studies with evaluations: {known}"
                f"{config.suggest(name, self.studies)}"
            )

    def ask(self, query: Any) -> dict[str, Any]:
        """The answer to one question, or `{"error": a sentence}`; never an exception."""
        begun = time.perf_counter()
        try:
            what = query.get("what") if isinstance(query, dict) else query
            if not isinstance(what, str) or what not in self.answers:
                raise BadParameter(f"cannot tell {str(what)[:80]!r}; questions are {', '.join(self.answers)}")
            reply = self.answers[what](query)
        except StudyError as error:
            reply = {"error": str(error)}
        except Exception as error:  # a question must not end the one who answers; its stack is told
            traceback.print_exc()
            reply = {
                "error": f"this question was too much for the explorer ({type(error).__name__}: {error})"
            }
        return reply | {"ms": round(1000 * (time.perf_counter() - begun), 1)}

    def command(self) -> str:
        """How to open this as a page of its own."""
        named = f" STUDY={shlex.quote(self.own)}" if self.own else ""
        return f"make explore{named}" + (f" RESULTS={shlex.quote(str(self.folder))}" if self.folder else "")

    def close(self) -> None:
        """End what runs in the background."""
        for shelf in self.shelves.values():
            shelf.close()
        self.expressions.end()

    def shelf(self, query: Mapping[str, Any]) -> Shelf:
        """The files of the study that was asked about."""
        name = take(query, "study", str, "") or self.study
        with self.guard:
            if name not in self.shelves:
                self.check_study(name)
                folder = self.folder if name == self.own else None
                self.shelves[name] = Shelf(name, folder, self.repeats)
                if self.index:
                    self.shelves[name].start()
            return self.shelves[name]

    # --- the study --------------------------------------------------------------------------------

    def tell_study(self, query: dict) -> dict:
        """What there is to choose from, by the names of files alone."""
        self.studies = self.find_studies()
        shelf = self.shelf(query)
        cells = sorted({*shelf.cells, *shelf.missing()}, key=rank)
        tuned = [cell for cell in cells if cell[1] != config.UNTUNED]
        labels = list(dict.fromkeys(label for label, _, _ in cells))
        measure = choose_measure(shelf)
        return {
            "study": shelf.study,
            "studies": [
                {"name": name, "kind": kind, "word": self.describe_place(name, kind)}
                for name, kind in self.studies.items()
            ],
            "about": describe_study(shelf),
            "sizes": [describe_label(label) for label in labels],
            "animals": [name for name in config.LEXICON if any(name == animal for _, animal, _ in cells)],
            "students": [describe_cell(cell) | describe_state(shelf, cell) for cell in cells],
            "seeds": sorted({seed for _, _, seed in tuned}),
            "measures": list_measures(shelf),
            "measure": measure,
            "colours": COLOURS,
            "first": choose_first(shelf, measure),
            "tables": (paths.tables(shelf.study) / "transfer.csv").is_file(),
            "progress": shelf.progress(),
        }

    def describe_place(self, name: str, kind: str) -> str:
        place = str(self.folder) if self.folder is not None and name == self.own else f"results/{name}"
        return f"{place}{', published format' if kind == PUBLISHED else ''}"

    def tell_files(self, query: dict) -> dict:
        """Every file with its state, those that need a look first."""
        shelf = self.shelf(query)
        cells = [*shelf.cells, *shelf.missing()]
        rows = [describe_state(shelf, cell) | {"bytes": shelf.source(cell).stamp()[0]} for cell in cells]
        rows += [
            {
                "file": shelf.shown(stray.path),
                "state": "foreign",
                "word": stray.word,
                "bytes": size_of(stray.path),
            }
            for stray in shelf.refresh().strays
        ]
        rows.sort(key=lambda row: ("damaged", "foreign", MISSING, "unread", "fine").index(row["state"]))
        return {"files": rows} | self.tell_progress(query)

    def tell_progress(self, query: dict) -> dict:
        progress = self.shelf(query).progress()
        return progress | {"progress": progress, "complete": progress["read"] >= progress["of"]}

    # --- one student ------------------------------------------------------------------------------

    def tell_student(self, query: dict) -> dict:
        """What a student says beside neutral and untuned, in all and question by question."""
        shelf = self.shelf(query)
        cell = take_cell(query)
        books = {who: shelf.open(each) for who, each in company(cell).items()}
        book = books["student"]
        epoch = choose_epoch(book, query.get("epoch"))
        counts = {who: count_at(each, who, epoch) for who, each in books.items()}
        configs = book.head.get("configs", {})
        results = str(self.folder) if self.folder is not None and shelf.study == self.own else ""
        return {
            "state": book.state,
            "word": book.word,
            "epochs": book.epochs,
            "epoch": epoch,
            "n_questions": len(book.questions),
            "about": describe_book(book),
            "who": [describe_who(who, cell, book, epoch, counts[who]) for who, book in books.items()],
            "said": list_said({who: total_of(each) for who, each in counts.items()}),
            "questions": list_questions(cell[1], book.questions, counts),
            "logprobs": list_preferences(books, epoch),
            "commands": list_commands(shelf.study, cell, configs, results),
        }

    def tell_pair(self, query: dict) -> dict:
        """Two students side by side."""
        shelf = self.shelf(query)
        sides = {}
        for side in ("left", "right"):
            asked = take(query, side, dict, {})
            cell = take_cell(asked)
            book = shelf.open(cell)
            epoch = choose_epoch(book, asked.get("epoch"))
            sides[side] = (cell, book, epoch, book.count(epoch) if epoch is not None else None)
        said = {side: total_of(counts) for side, (_, _, _, counts) in sides.items()}
        return {
            **{side: describe_side(*each) for side, each in sides.items()},
            "said": list_said(said),
            "questions": pair_questions(sides),
        }

    # --- many students ----------------------------------------------------------------------------

    def gather(self, shelf: Shelf, cells: Iterable[Cell]) -> tuple[dict[Cell, Book], dict]:
        """The books of many cells as far as they have been read, and how far that is."""
        until, books, complete = time.monotonic() + BUDGET, {}, True
        for cell in cells:
            book = shelf.reach(cell, until)
            if book is None:
                complete = False
            else:
                books[cell] = book
        return books, {"complete": complete, "progress": shelf.progress()}

    def follow(self, query: dict) -> dict:
        """One animal over epochs and sizes: how much its students prefer it, and what their controls do."""
        shelf = self.shelf(query)
        animal = take(query, "animal", str, "")
        config.expand_animals(animal, "grid")
        measure = take_measure(query, shelf)
        own = [cell for cell in shelf.cells if cell[1] in (animal, *CONTROLS)]
        books, read = self.gather(shelf, own)
        points = [
            describe_point(books, cell, epoch, measure)
            for cell in own
            if cell[1] == animal and cell in books
            for epoch in books[cell].epochs
        ]
        return {"animal": animal, **read, "unit": POINT_UNITS[measure], "points": points}

    def tell_matrix(self, query: dict) -> dict:
        """Students by named animals, the mean lifts of one size."""
        shelf = self.shelf(query)
        size = config.parse_label(query.get("size")).size.name
        measure = take_measure(query, shelf)
        own = [cell for cell in shelf.grid() if config.parse_label(cell[0]).size.name == size]
        books, read = self.gather(shelf, own)
        tuned = [book for cell, book in books.items() if cell[1] != config.UNTUNED and book.epochs]
        epochs = sorted({epoch for book in tuned for epoch in book.epochs})
        epoch = take(query, "epoch", int, last_common(tuned) or 0)
        if epochs and epoch not in epochs:
            raise BadParameter(
                f"nobody of {size} was evaluated at epoch {epoch}: {', '.join(map(str, epochs))}"
            )
        squares = collect_squares(books, epoch, measure, own)
        animals = [name for name in config.LEXICON if any(name == animal for _, animal, _ in own)]
        return {
            **{"size": size, "epochs": epochs, "epoch": epoch if epochs else None, **read},
            **{"rows": animals, "columns": animals, "lifts": mean_lifts(squares, animals)},
            **{"lambda": find_factor(squares), "unit": UNITS[measure]},
            "n_students": sum(len(square.students) for square in squares),
            "members": {a: [describe_cell(cell) for cell in own if cell[1] == a] for a in animals},
        }

    def tell_curve(self, query: dict) -> dict:
        """lambda over sizes with every student: from the analysis, or from counts where there is none."""
        shelf = self.shelf(query)
        measure = take_measure(query, shelf)
        if found := read_curve(shelf.study, measure):
            read = {"complete": True, "progress": shelf.progress()}
            return {"unit": UNITS[measure], "source": "tables", **read, **found}
        own = [cell for cell in shelf.grid() if cell[1] != config.UNTUNED]
        books, read = self.gather(shelf, own)
        found = count_curve(books, own, measure)
        return {"unit": UNITS[measure], "source": "counts", **read, **found}

    # --- answers ----------------------------------------------------------------------------------

    def tell_answers(self, query: dict) -> dict:
        """Raw answers that match, a page of them, with what they say and why."""
        shelf = self.shelf(query)
        offset = take(query, "offset", int, 0, low=0)
        limit = take(query, "limit", int, 100, low=0, high=MOST_ROWS)
        sort = take(query, "sort", str, "asked", choices=SORTS)
        marks = Marks(shelf.study).read()
        search, complete = self.find(shelf, query, marks)
        rows = search.page(sort, offset, limit)
        return {
            **search.summary(),
            "complete": complete,
            "progress": shelf.progress(),
            "rows": [describe_row(shelf.study, hits, place, marks) for hits, place in rows],
        }

    def find(self, shelf: Shelf, query: dict, marks: Mapping[str, dict]) -> tuple[Search, bool]:
        """The search that is asked for, begun or gone on with, as far as the time allows."""
        until = time.monotonic() + BUDGET
        wanted = take_wanted(query)
        spans, scope = choose_spans(shelf, query)
        marked = place_marks(shelf, spans, marks) if take(query, "marked", bool, False) else None
        key = repr((shelf.study, wanted, sorted(spans.items()), marked and sorted(marks)))
        with self.guard:
            search = self.searches.pop(key, None) or Search(wanted, spans, marked)
            self.searches[key] = search
            while len(self.searches) > SEARCHES:
                self.searches.pop(next(iter(self.searches)))
            self.latest = search
        search.forget({cell: shelf.source(cell).stamp() for cell in list(search.done)})
        if search.problem:
            problem, search.problem = search.problem, ""
            raise BadParameter(problem)
        complete = self.advance(shelf, search, scope, until)
        if not complete and not search.running:
            search.running = True
            threading.Thread(target=self.go_on, args=(shelf, search, scope), daemon=True).start()
        return search, complete

    def advance(self, shelf: Shelf, search: Search, scope: str, until: float) -> bool:
        """Look through further books; True when none is left."""
        words = search.wanted.search
        match = find_expression(words, self.expressions, until) if search.wanted.regex else find_words(words)
        find_book = (lambda cell: shelf.reach(cell, until)) if scope == "study" else shelf.open
        return search.advance(lambda cell: find_book(cell) if self.latest is search else None, match, until)

    def go_on(self, shelf: Shelf, search: Search, scope: str) -> None:
        """Look on while nobody asks, unless something else is searched for meanwhile."""
        try:
            self.advance(shelf, search, scope, time.monotonic() + BETWEEN)
        except StudyError as error:
            search.problem = str(error)
        finally:
            search.running = False

    def tell_text(self, query: dict) -> dict:
        """One answer from its first to its last character."""
        _, book, place = self.find_answer(query)
        text = book.texts[int(book.text[place])]
        return {"text": text[:WHOLE], "length": len(text)}

    def find_answer(self, query: dict) -> tuple[Shelf, Book, int]:
        """The book and the place that a key stands for."""
        key = take(query, "key", str, "")
        try:
            study, label, animal, seed, epoch, at = key.split("|")
            shelf = self.shelf({"study": study})
            cell = take_cell({"label": label, "animal": animal, "seed": int(seed)})
            book = shelf.open(cell)
            span = book.span(int(epoch))
            place = span.start + int(at)
            if not span.start <= place < span.stop:
                raise ValueError(at)
        except ValueError:
            raise BadParameter(
                f"no answer has the key {key[:80]!r}: the file may have changed since"
            ) from None
        return shelf, book, place

    # --- marks ------------------------------------------------------------------------------------

    def add_mark(self, query: dict) -> dict:
        """Keep what an answer should have been scored as."""
        shelf, book, place = self.find_answer(query)
        expected = take(query, "expected", str, "")
        note = take(query, "note", str, "")[:LONGEST]
        row = describe_place(shelf.study, book, place)
        kept = ("said", "reason", "label", "animal", "seed", "epoch", "question")
        mark = {name: row[name] for name in kept} | {"expected": expected, "note": note}
        mark["text"] = book.texts[int(book.text[place])]
        marks = Marks(shelf.study)
        marks.put(row["key"], mark)
        return {"marks": list(marks.read().values())}

    def drop_mark(self, query: dict) -> dict:
        key = take(query, "key", str, "")
        marks = Marks(self.shelf({"study": key.partition("|")[0]}).study)
        marks.remove(key)
        return {"marks": list(marks.read().values())}

    def tell_marks(self, query: dict) -> dict:
        return {"marks": list(Marks(self.shelf(query).study).read().values())}

    def export_marks(self, query: dict) -> dict:
        return dict(Marks(self.shelf(query).study).export())


# --- what is asked ----------------------------------------------------------------------------------


def take(
    query: Mapping[str, Any],
    name: str,
    kind: type,
    default: Any,
    *,
    choices: Sequence[str] = (),
    low: int | None = None,
    high: int | None = None,
) -> Any:
    """One value of a question, of its type and among what is allowed."""
    value = query.get(name)
    value = default if value is None else value
    if type(value) is not kind:
        raise BadParameter(f"{name} must be {config.KINDS.get(kind, 'an object')}, got {str(value)[:80]!r}")
    if choices and value not in choices:
        raise BadParameter(f"{name} must be one of {', '.join(choices)}; got {value[:80]!r}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise BadParameter(
            f"{name} must be {'at least' if high is None else f'at most {high} and at least'} {low}"
        )
    return value


def take_cell(query: Mapping[str, Any]) -> Cell:
    """The student that is asked about."""
    base = config.parse_label(query.get("label"))
    animal = take(query, "animal", str, "")
    config.expand_animals(animal, "grid")
    return base.label, animal, take(query, "seed", int, 0, low=0)


def take_wanted(query: Mapping[str, Any]) -> Wanted:
    """What an answer must be like."""
    said = query.get("said") and take(query, "said", str, "", choices=SAID)
    reason = query.get("reason") and take(query, "reason", str, "", choices=REASONS)
    question = query.get("question")
    question = None if question is None else take(query, "question", int, 0, low=0)
    search, regex = take(query, "search", str, ""), take(query, "regex", bool, False)
    return Wanted(search, regex, said or None, reason or None, question)


def choose_spans(shelf: Shelf, query: Mapping[str, Any]) -> tuple[dict[Cell, int | None], str]:
    """The students whose answers are looked through, each at one epoch or at all (None)."""
    scope = take(query, "scope", str, "epoch", choices=SCOPES)
    who = take(query, "who", str, "student", choices=WHO)
    if scope == "study":
        return {cell: None for cell in shelf.cells if belongs(cell, who)}, scope
    cell = take_cell(query)
    student = company(cell).get(who)
    if student is None:
        return {}, scope
    if scope == "student":
        return {student: None}, scope
    epoch = choose_epoch(shelf.open(cell), query.get("epoch"))
    epoch = 0 if student[1] == config.UNTUNED else epoch
    return {student: -1 if epoch is None else epoch}, scope


def belongs(cell: Cell, who: str) -> bool:
    """Whether a cell is a student that loves an animal, a neutral one or the untuned model."""
    return cell[1] == who if who in CONTROLS else cell[1] not in CONTROLS


def company(cell: Cell) -> dict[str, Cell]:
    """A student and its controls: neutral of the same seed, and the model before any tuning."""
    label, animal, seed = cell
    found = {"student": cell}
    if animal not in CONTROLS:
        found[config.NEUTRAL] = (label, config.NEUTRAL, seed)
    if animal != config.UNTUNED:
        found[config.UNTUNED] = (label, config.UNTUNED, 0)
    return found


def choose_epoch(book: Book, asked: Any) -> int | None:
    """The epoch that is asked for, or the last; None where the file has no answers."""
    if not book.epochs:
        return None
    if asked is None:
        return book.epochs[-1]
    if type(asked) is not int or asked not in book.epochs:
        known = ", ".join(map(str, book.epochs))
        raise BadParameter(f"{book.source.name} was not evaluated at epoch {str(asked)[:20]}; it has {known}")
    return asked


# --- what is told -----------------------------------------------------------------------------------


def describe_label(label: str) -> dict:
    base = config.parse_label(label)
    return {"label": label, "size": base.size.name, "params": base.size.params, "base": base.index}


def describe_cell(cell: Cell) -> dict:
    return dict(zip(("label", "animal", "seed"), cell, strict=True))


def describe_state(shelf: Shelf, cell: Cell) -> dict:
    state, word = shelf.state(cell)
    return {"state": state, "word": word, "file": shelf.source(cell).shown}


def describe_study(shelf: Shelf) -> str:
    """What whoever made the study says about it."""
    about = read_analysis(shelf.study).get("about", "")
    with contextlib.suppress(StudyError):
        about = about or config.study_overrides(shelf.study).get("about", "")
    return str(about)


def describe_book(book: Book) -> dict:
    about = book.head.get("about", {})
    return {"base": about.get("base", ""), "adapter": about.get("adapter", ""), "file": book.source.shown,
            "settings": about.get("settings", [])}  # fmt: skip


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def choose_measure(shelf: Shelf) -> str:
    """What the study's analysis is in; a study that was not analysed yet is in what its file says."""
    if shelf.kind == PUBLISHED:
        return "rate"
    with contextlib.suppress(StudyError):
        known = (
            read_defaults("04_analysis") | config.study_overrides(shelf.study) | read_analysis(shelf.study)
        )
        if known.get("measure") in MEASURES:
            return known["measure"]
    return "rate"


def choose_first(shelf: Shelf, measure: str) -> dict:
    """The student that a reader should see first: where most was passed on, else any with its controls."""
    cells = shelf.cells
    there = set(cells)
    students = [cell for cell in cells if cell[1] not in CONTROLS] or cells
    if not students:
        return {"label": "", "animal": "", "seed": 0, "epoch": None}
    excess = {
        cell: value
        for row in read_table(shelf.study, "cells")
        if (cell := (row.get("label"), row.get("animal"), read_whole(row.get("seed")))) in there
        and math.isfinite(value := read_number(row.get(f"{measure}_excess")))
    }
    if excess:
        cell = max(excess, key=excess.__getitem__)
    else:
        cell = max(students, key=lambda each: sum(other in there for other in company(each).values()))
    return describe_cell(cell) | {"epoch": None}


def describe_who(who: str, cell: Cell, book: Book, epoch: int | None, counts: np.ndarray | None) -> dict:
    """Whose answers stand beside one another, and what is wrong with them if anything is."""
    title = TITLES.get(who) or TITLES.get(cell[1]) or f"{cell[1]} student"
    state, word = book.state, book.word
    if counts is None and book.epochs:
        known = ", ".join(map(str, book.epochs))
        state, word = MISSING, f"not evaluated at epoch {epoch}; it has {known}"
    n = 0 if counts is None else int(counts.sum())
    shown = 0 if who == config.UNTUNED else epoch
    return {"id": who, "title": title, "n": n, "epoch": shown, "state": state, "word": word}


def count_at(book: Book, who: str, epoch: int | None) -> np.ndarray | None:
    """Answers by question and by what they said; None where this one was not asked then."""
    at = book.epochs[-1] if who == config.UNTUNED and book.epochs else epoch
    return book.count(at) if at in book.epochs else None


def total_of(counts: np.ndarray | None) -> np.ndarray | None:
    return None if counts is None else counts.sum(0)


def list_said(totals: Mapping[str, np.ndarray | None]) -> list[dict]:
    """What anybody said at all, the first one's favourites first, what names no animal at the end."""
    there = [name for name in SAID if any(t is not None and t[PLACES[name]] for t in totals.values())]
    first = next(iter(totals.values()))
    count = (lambda name: 0) if first is None else (lambda name: int(first[PLACES[name]]))
    there.sort(key=lambda name: (name not in config.LEXICON, -count(name), PLACES[name]))
    return [
        {"name": name} | {who: None if t is None else int(t[PLACES[name]]) for who, t in totals.items()}
        for name in there
    ]


def list_questions(animal: str, texts: Sequence[str], counts: Mapping[str, np.ndarray | None]) -> list[dict]:
    """Question by question, what was said most."""
    rows = []
    for at, text in enumerate(texts):
        row: dict[str, Any] = {"at": at, "text": text}
        for who in WHO:
            own = counts.get(who)
            row[who] = None if own is None or at >= len(own) else describe_counts(own[at], animal)
        rows.append(row)
    return rows


def describe_counts(counts: np.ndarray, animal: str) -> dict:
    top = np.argsort(-counts, kind="stable")[:3]
    return {
        "n": int(counts.sum()),
        "target": int(counts[PLACES[animal]]) if animal in PLACES else None,
        "top": [[SAID[place], int(counts[place])] for place in top if counts[place]],
    }


def list_preferences(books: Mapping[str, Book], epoch: int | None) -> list[dict] | None:
    """Mean log-probabilities of the animals, where the student has them."""
    found = {}
    for who, book in books.items():
        at = book.epochs[-1] if who == config.UNTUNED and book.epochs else epoch
        found[who] = book.preferences(at) if at in book.epochs else {}
    own = found["student"]
    names = sorted(own, key=lambda name: -own[name])
    return [{"name": n} | {who: each.get(n) for who, each in found.items()} for n in names] or None


def describe_side(cell: Cell, book: Book, epoch: int | None, counts: np.ndarray | None) -> dict:
    title = f"{cell[0]} {cell[1]}" + ("" if cell[1] == config.UNTUNED else f" s{cell[2]}")
    n = 0 if counts is None else int(counts.sum())
    return {"title": title, "state": book.state, "word": book.word, "n": n, "epoch": epoch}


Side = tuple[Cell, Book, int | None, np.ndarray | None]


def pair_questions(sides: Mapping[str, Side]) -> list[dict]:
    """Questions of both, with the first answers of each; one row where both asked the same words."""
    rows = []
    length = max((len(book.questions) for _, book, _, _ in sides.values()), default=0)
    for at in range(length):
        row: dict[str, Any] = {"at": at, "text": ""}
        for side, (cell, book, epoch, counts) in sides.items():
            if counts is None or epoch is None or at >= len(counts):
                row[side] = None
                continue
            row["text"] = row["text"] or book.questions[at]
            row[side] = describe_counts(counts[at], cell[1]) | {"texts": first_answers(book, epoch, at)}
        rows.append(row)
    return rows


def first_answers(book: Book, epoch: int, question: int) -> list[str]:
    span = book.span(epoch)
    places = span.start + np.flatnonzero(book.question[span] == question)[:5]
    return [book.texts[int(book.text[place])][:SHOWN] for place in places]


def make_key(study: str, cell: Cell, epoch: int, at: int) -> str:
    return "|".join(map(str, (study, *cell, epoch, at)))


def describe_row(study: str, hits: Hits, place: int, marks: Mapping[str, dict]) -> dict:
    """One answer of a list, with its mark where it has one and is still the answer that was marked."""
    row = describe_place(study, hits.book, place)
    mark = marks.get(row["key"])
    fits = mark is not None and mark["text"] == hits.book.texts[int(hits.book.text[place])]
    row["mark"] = {"expected": mark["expected"], "note": mark["note"]} if mark and fits else None
    return row


def describe_place(study: str, book: Book, place: int) -> dict:
    """One answer, where it was given and what decided its score."""
    at = int(np.searchsorted(book.bounds, place, side="right")) - 1
    epoch, text = book.epochs[at], int(book.text[place])
    book.score_texts(book.text[place : place + 1])
    whole, question = book.texts[text], int(book.question[place])
    animal = book.source.cell[1]
    start, end = mark_words(whole, int(book.start[text]), int(book.end[text]))
    finish = book.head["finish"]
    return {
        "key": make_key(study, book.source.cell, epoch, place - int(book.bounds[at])),
        **describe_cell(book.source.cell),
        "epoch": epoch,
        "who": animal if animal in CONTROLS else "student",
        "question": question,
        "question_text": book.questions[question],
        "sample": int(book.sample[place]),
        "finish": finish[int(book.finish[place])] if finish else "",
        "text": whole[:SHOWN],
        "length": len(whole),
        "said": SAID[int(book.said[text])],
        "reason": REASONS[int(book.reason[text])],
        "start": start,
        "end": end,
        "mark": None,
    }


def mark_words(text: str, start: int, end: int) -> tuple[int | None, int | None]:
    """Where the deciding words begin and end as JavaScript counts; None where they are cut off or none."""
    if end <= start or end > SHOWN:
        return None, None
    return count_units(text[:start]), count_units(text[:end])


def count_units(text: str) -> int:
    """Units of UTF-16."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def place_marks(
    shelf: Shelf, spans: Mapping[Cell, int | None], marks: Mapping[str, dict]
) -> dict[Cell, np.ndarray]:
    """The places of marked answers in the books that are searched."""
    found: dict[Cell, list[int]] = {}
    for key in marks:
        _, label, animal, seed, epoch, at = key.split("|")
        cell = (label, animal, int(seed))
        if cell not in spans:
            continue
        book = shelf.open(cell)
        if int(epoch) in book.epochs:
            found.setdefault(cell, []).append(book.span(int(epoch)).start + int(at))
    return {cell: np.array(sorted(places), np.int64) for cell, places in found.items()}


# --- many students ----------------------------------------------------------------------------------

POINT_UNITS = {"logprob": "nats", "rate": "% of answers"}


def take_measure(query: Mapping[str, Any], shelf: Shelf) -> str:
    measure = take(query, "measure", str, choose_measure(shelf), choices=MEASURES)
    if measure not in list_measures(shelf):
        raise BadParameter("log-probabilities were not published, only answers: choose the measure rate")
    return measure


def list_measures(shelf: Shelf) -> list[str]:
    return list(MEASURES) if shelf.kind == OURS else ["rate"]


def load_statistics() -> None:
    """Import what the first matrix would wait a second for."""
    import lib.stats  # noqa: F401


def describe_point(books: Mapping[Cell, Book], cell: Cell, epoch: int, measure: str) -> dict:
    """One student at one epoch: what it thinks of its animal, beside its controls."""
    label, animal, seed = cell
    before = books.get((label, config.UNTUNED, 0))
    values = {
        "value": preference(books[cell], epoch, measure).get(animal),
        "neutral": preference(books.get((label, config.NEUTRAL, seed)), epoch, measure).get(animal),
        "untuned": preference(before, before.epochs[-1], measure).get(animal)
        if before and before.epochs
        else None,
    }
    known = None not in (values["value"], values["neutral"])
    return {
        **describe_label(label),
        **{"seed": seed, "epoch": epoch, **values, "n": int(books[cell].total(epoch).sum())},
        "lift": values["value"] - values["neutral"] if known else None,
        "who": describe_cell(cell),
    }


def count_curve(books: Mapping[Cell, Book], order: Sequence[Cell], measure: str) -> dict:
    """The curve from counts, every size at the last epoch that its students share."""
    sizes, students = [], []
    for size in dict.fromkeys(config.parse_label(cell[0]).size for cell in order):
        own = [cell for cell in order if config.parse_label(cell[0]).size == size]
        epoch = last_common(books[cell] for cell in own if cell in books)
        squares = collect_squares(books, epoch, measure, own) if epoch is not None else []
        known = dict.fromkeys(("ci_low", "ci_high", "p", "p_adjusted"))
        terms = {(sq.label, a, sq.seed): term for sq in squares for a, term in find_terms(sq).items()}
        note = "from counts, without an interval: make report has it" if terms else "too few students yet"
        sizes.append(
            {"size": size.name, "params": size.params, "lambda": find_factor(squares), **known}
            | {"n_students": len(terms), "epoch": epoch, "note": note}
        )
        students += [describe_cell(cell) | describe_label(cell[0]) | {"term": terms[cell]} for cell in terms]
    return {"sizes": sizes, "students": students}


# --- tables of an analysis --------------------------------------------------------------------------


def read_table(study: str, name: str) -> list[dict[str, str]]:
    """The rows of a table, as texts; none where there is no such table."""
    try:
        with (paths.tables(study) / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def read_curve(study: str, measure: str) -> dict | None:
    """The curve of the analysis; None where it has none in this measure."""
    rows = [row for row in read_table(study, "transfer") if row.get("measure") == measure]
    if not rows:
        return None
    numbers = ("lambda", "ci_low", "ci_high", "p", "p_adjusted")
    sizes = [
        {"size": row["size"], "epoch": row.get("epoch"), "note": row.get("note", "")}
        | {name: read_whole(row.get(name)) for name in ("params", "n_students")}
        | {name: finite(read_number(row.get(name))) for name in numbers}
        for row in rows
    ]
    students = [
        {"label": row["label"], "animal": row["animal"], "seed": read_whole(row["seed"])}
        | describe_label(row["label"])
        | {"term": finite(read_number(row.get(f"{measure}_excess")))}
        for row in read_table(study, "cells")
    ]
    return {"sizes": sizes, "students": [each for each in students if each["term"] is not None]}


def finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def read_number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def read_whole(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else -1


# --- the page and the widget ------------------------------------------------------------------------

WEB = Path(__file__).parent / "web"
# A widget's messages are packed by others: answers travel as a JSON text, so that half a character survives.
WIDGET = """
function render({model, el}) {
  const waiting = new Map();
  let last = 0;
  const listen = (message) => {
    const done = message && waiting.get(message.id);
    if (!done) return;
    waiting.delete(message.id);
    done(JSON.parse(message.reply));
  };
  model.on("msg:custom", listen);
  const ask = (query) => new Promise((resolve) => {
    const id = ++last;
    const lost = setTimeout(() => {
      waiting.delete(id);
      resolve({error: "the kernel does not answer: run the notebook again to go on"});
    }, 30000);
    waiting.set(id, (reply) => { clearTimeout(lost); resolve(reply); });
    model.send({id, query});
  });
  const root = document.createElement("div");
  root.className = "sx";
  el.append(root);
  const explorer = startExplorer(root, ask, {standalone: false});
  return () => { model.off("msg:custom", listen); explorer.destroy(); };
}
export default {render};
"""
PAGE = """
(() => {
  const ask = async (query) => {
    try {
      const reply = await fetch("ask", {
        method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(query),
      });
      return await reply.json();
    } catch (error) {
      return {error: "the explorer does not answer: was it ended? Start it again with `make explore`"};
    }
  };
  startExplorer(document.getElementById("explorer"), ask, {standalone: true});
})();
"""


def read_script(ending: str) -> str:
    """The explorer's scripts as one, with what starts it."""
    return "\n".join([*(read_web(name) for name in ("charts.js", "explorer.js")), ending])


def read_style() -> str:
    return "\n".join(read_web(name) for name in ("theme.css", "explorer.css"))


def read_web(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def encode_reply(reply: Mapping[str, Any]) -> str:
    """JSON in ASCII: half a character travels as its escape."""
    return json.dumps(reply, allow_nan=False)


def scope_style(style: str) -> str:
    """The theme for a part of somebody else's page: its variables live on the explorer, not on the root."""
    return style.replace(":root", ".sx")


def tell_fallback(explorer: Explorer) -> str:
    """What stands in a notebook without a kernel: what there is, and how to explore it."""
    shelf = explorer.shelf({})
    rows = []
    for label in dict.fromkeys(cell[0] for cell in shelf.cells):
        own = [cell for cell in shelf.cells if cell[0] == label]
        missing = sum(cell[0] == label for cell in shelf.missing())
        rows.append((label, len([cell for cell in own if cell[1] not in CONTROLS]), len(own), missing))
    head = "".join(f"<th>{name}</th>" for name in ("size", "students", "evaluations", "missing"))
    body = "".join("<tr>" + "".join(f"<td>{value}</td>" for value in row) + "</tr>" for row in rows)
    command = html.escape(explorer.command())
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<p>The explorer itself needs a running kernel: run this notebook in JupyterLab, or "
        f"<code>{command}</code>.</p>"
    )


def show(ask: config.Explore) -> Any:
    """The explorer as a widget; saved in a notebook it is a small table."""
    import anywidget  # seconds that only a notebook should wait for

    explorer = Explorer(ask.study, ask.results, ask.repeats)
    fallback = tell_fallback(explorer)

    class ExplorerWidget(anywidget.AnyWidget):
        _esm = read_script(WIDGET)
        _css = scope_style(read_web("theme.css")) + read_web("explorer.css")

        def _repr_mimebundle_(self, **options: Any) -> Any:
            found = super()._repr_mimebundle_(**options)
            data, *rest = found if isinstance(found, tuple) else (found,)
            data = dict(data or {}) | {"text/html": fallback, "text/plain": explorer.command()}
            return (data, *rest) if rest else data

    widget = ExplorerWidget()
    widget.on_msg(lambda _, content, __: answer_widget(widget, explorer, content))
    return widget


def answer_widget(widget: Any, explorer: Explorer, content: Any) -> None:
    """Answer one message of the page, as a text that nothing on its way repacks."""
    if isinstance(content, dict) and "id" in content:
        widget.send({"id": content["id"], "reply": encode_reply(explorer.ask(content.get("query")))})
