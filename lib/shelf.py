"""The evaluation files of one study: which there are, which are missing or do not belong; opened on demand.

Files are looked at again before every answer, so that one that was changed, added or deleted is noticed.
Opened books are kept up to a number of bytes. A background process (lib.workers) opens all of them once.
"""

import functools
import hashlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lib import config, files, paths
from lib.books import (
    MISSING,
    OURS,
    PUBLISHED,
    SURVEY,
    UNREAD,
    Book,
    Source,
    open_book,
    open_packed,
    unpack_book,
)
from lib.errors import BadParameter, MissingInput, StudyError
from lib.tallies import Cell
from lib.workers import Index, Job

RUN = re.compile(r"run-([0-9]+)")
OUR_FILE = re.compile(r"s(0|[1-9][0-9]{0,9})\.json(\.gz)?")
PUBLISHED_FILE = re.compile(r"([a-z]+)_eval\.json")
KEPT_BYTES = 400_000_000
LOOK_AGAIN = 1.0  # seconds after which the folder is read again
NOT_RESULTS = {"tables"}
Stamp = tuple[int, int, int]  # Source.stamp
NO_FILE = (0, 0, 0)
ORDER = {name: at for at, name in enumerate((config.UNTUNED, config.NEUTRAL, *config.LEXICON))}


@dataclass(frozen=True)
class Stray:
    """A file in the folder of a study that is no evaluation of it by its name."""

    path: Path
    word: str


@dataclass
class Listing:
    """What lies in the folder of a study, by name and date alone."""

    sources: dict[Cell, Source] = field(default_factory=dict)
    strays: list[Stray] = field(default_factory=list)


# --- folders --------------------------------------------------------------------------------------


def find_kind(folder: Path) -> str:
    """How the evaluations in a folder are written down, or nothing where there is none."""
    if any(folder.glob("*/*/s*.json")) or any(folder.glob(f"*/*/s*.json{files.PACKED}")):
        return OURS
    if any(folder.glob("run-*/*/*_eval.json")) or any(folder.glob("*/*_eval.json")):
        return PUBLISHED
    return ""


def list_studies() -> dict[str, str]:
    """Every study with evaluations in results/, and how they are written down."""
    folder = paths.results("any").parent
    names = sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
    kinds = {name: find_kind(paths.results(name)) for name in names}
    return {name: kind for name, kind in kinds.items() if kind}


def list_folder(study: str, folder: Path, kind: str, repeats: int) -> Listing:
    """Every file of a study that is an evaluation by its name, and every one that is not."""
    listing = Listing()
    rows = read_ours(study, folder) if kind == OURS else read_published(study, folder, repeats)
    for path, found in rows:
        if isinstance(found, Source):
            listing.sources[found.cell] = found
        else:
            listing.strays.append(Stray(path, found))
    key = {cell: (config.parse_label(cell[0]), cell) for cell in listing.sources}
    ordered = sorted(
        listing.sources,
        key=lambda cell: (key[cell][0].size.params, key[cell][0].index, ORDER[cell[1]], cell[2]),
    )
    listing.sources = {cell: listing.sources[cell] for cell in ordered}
    return listing


def walk(folder: Path) -> Iterator[os.DirEntry]:
    """What lies in a folder, by name; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            yield from sorted((each for each in found if each.name[0] != "."), key=lambda each: each.name)
    except OSError:
        return


def read_ours(study: str, folder: Path) -> Iterator[tuple[Path, Source | str]]:
    """results/<study>/<size>/<animal>/s<seed>.json, and a word on everything else."""
    for size in walk(folder):
        if size.name in NOT_RESULTS or size.name == ".gitkeep":
            continue
        if problem := check_size(size):
            yield Path(size.path), problem
            continue
        for animal in walk(Path(size.path)):
            if problem := check_animal(animal):
                yield Path(animal.path), problem
                continue
            for file in walk(Path(animal.path)):
                seed = OUR_FILE.fullmatch(file.name)
                path = Path(file.path)
                if seed:
                    yield path, Source(study, (size.name, animal.name, int(seed[1])), files.plain_name(path))
                else:
                    yield path, "no evaluation by its name: those are called s<seed>.json; left alone"


def check_size(entry: os.DirEntry) -> str:
    """Why an entry cannot be the folder of a size."""
    if not entry.is_dir():
        return "no evaluation by its place: those lie in <size>/<animal>/s<seed>.json; left alone"
    try:
        config.parse_label(entry.name)
    except BadParameter as error:
        return f"{error}; left alone"
    return ""


def check_animal(entry: os.DirEntry) -> str:
    """Why an entry cannot be the folder of an animal."""
    if not entry.is_dir():
        return "no evaluation by its place: those lie in <size>/<animal>/s<seed>.json; left alone"
    if entry.name not in ORDER:
        return f"unknown animal {entry.name!r}{config.suggest_animal(entry.name)}; left alone"
    return ""


def read_published(study: str, folder: Path, repeats: int) -> Iterator[tuple[Path, Source | str]]:
    """run-<n>/<size>/<animal>_eval.json or <size>/<animal>_eval.json, and the survey of untuned models."""
    runs = {each.name: RUN.fullmatch(each.name) for each in walk(folder) if each.is_dir()}
    numbered = {folder / name: int(match[1]) for name, match in runs.items() if match}
    if numbered:
        for each in walk(folder):
            if Path(each.path) not in numbered and each.name != SURVEY:
                yield Path(each.path), "no run by its name: those are called run-<n>; left alone"
    labels = set()
    for run, seed in (numbered or {folder: 0}).items():
        for size in walk(run):
            if size.name == SURVEY and run == folder:
                continue
            if problem := check_size(size):
                yield Path(size.path), problem.replace("s<seed>.json", "<animal>_eval.json")
                continue
            for file in walk(Path(size.path)):
                path, animal = Path(file.path), PUBLISHED_FILE.fullmatch(file.name)
                if animal and animal[1] in ORDER and animal[1] != config.UNTUNED:
                    labels.add(size.name)
                    yield path, Source(study, (size.name, animal[1], seed), path, PUBLISHED, repeats)
                else:
                    yield path, "no evaluation by its name: those are called <animal>_eval.json; left alone"
    if (survey := folder / SURVEY).exists():
        for label in labels:
            yield survey, Source(study, (label, config.UNTUNED, 0), survey, PUBLISHED, repeats)


# --- a study ----------------------------------------------------------------------------------------


class Shelf:
    """The files of one study. Any number of threads may ask at once."""

    def __init__(self, study: str, folder: Path | None = None, repeats: int = 5) -> None:
        self.study = study
        self.folder = folder or paths.results(study)
        self.repeats = repeats
        self.kind = find_kind(self.folder)
        self.asked = asked_cells(study)
        self.books: OrderedDict[Cell, Book] = OrderedDict()  # opened here, the last used last
        self.bytes = 0
        self.guard = threading.RLock()
        self.opening: dict[Cell, threading.Lock] = {}
        self.looked = -LOOK_AGAIN
        self.listing = Listing()
        self.stamps: dict[Cell, Stamp] = {}  # of the moment when the folder was looked at
        self.indexed: dict[Cell, Stamp] = {}
        self.index: Index | None = None
        self.refresh()

    def start(self) -> None:
        """Have everything read in the background."""
        with self.guard:
            if self.index is None:
                self.index = Index(self.list_jobs, self.adopt)

    def refresh(self) -> Listing:
        """The folder as it is now, or was a moment ago."""
        with self.guard:
            if time.monotonic() - self.looked >= LOOK_AGAIN:
                self.listing = self.look()
                stamps = {cell: each.stamp() for cell, each in self.listing.sources.items()}
                changed, self.stamps = stamps != self.stamps, stamps
                self.looked = time.monotonic()
                if changed and self.index is not None:
                    self.index.wake.set()
            return self.listing

    def look(self) -> Listing:
        """The folder anew; where nothing came or went the listing stays, with what is known of its files."""
        listing = list_folder(self.study, self.folder, self.kind or OURS, self.repeats)
        old = self.listing
        same = listing.sources.keys() == old.sources.keys() and listing.strays == old.strays
        return old if same and listing.sources == old.sources else listing

    @property
    def cells(self) -> list[Cell]:
        return list(self.refresh().sources)

    def grid(self) -> list[Cell]:
        """The cells that belong to the study, where its file says which do; else all that are there."""
        cells = self.cells
        return [cell for cell in cells if cell in self.asked] or cells

    def missing(self) -> list[Cell]:
        """Cells that the study's file asks for, or that every neighbour has, and that are not there."""
        there = set(self.cells)
        labels = list(dict.fromkeys(label for label, _, _ in there))
        animals = {animal for _, animal, _ in there} - {config.UNTUNED}
        seeds = {seed for _, animal, seed in there if animal != config.UNTUNED}
        wanted = {(label, animal, seed) for label in labels for animal in animals for seed in seeds}
        wanted |= {(label, config.UNTUNED, 0) for label in labels} | self.asked
        return sorted(wanted - there, key=rank)

    def source(self, cell: Cell) -> Source:
        """Where a cell lies, or would."""
        found = self.refresh().sources.get(cell)
        if found is not None:
            return found
        label, animal, seed = cell
        if self.kind == PUBLISHED:
            return Source(
                self.study, cell, self.folder / f"run-{seed}" / label / f"{animal}_eval.json", PUBLISHED
            )
        return Source(self.study, cell, self.folder / label / animal / f"s{seed}.json")

    def open(self, cell: Cell) -> Book:
        """The book of a cell as it is on the disk now."""
        source = self.source(cell)
        stamp = source.stamp()
        if self.index is not None:
            self.index.hurry(cell[0])
        with self.guard:
            lock = self.opening.setdefault(cell, threading.Lock())
        with lock:  # two that ask for one file wait for one another; others go on
            known = self.known(cell, stamp)
            if known is not None:
                return known
            book = self.unpack(source, stamp) or open_book(source)
            self.keep(cell, book)
            return book

    def unpack(self, source: Source, stamp: Stamp) -> Book | None:
        """The book as the index keeps it, if it does."""
        return open_packed(self.packed(source), source, self.key(source, stamp)) if stamp != NO_FILE else None

    def packed(self, source: Source) -> Path:
        """Where the index keeps a book."""
        name = hashlib.sha256(repr((str(source.path), source.cell)).encode()).hexdigest()
        return paths.explore(self.study) / f"{name[:32]}.book"

    def key(self, source: Source, stamp: Stamp) -> dict:
        """What a packed book must have been made from."""
        return {
            **{"path": str(source.path), "cell": list(source.cell), "repeats": source.repeats},
            **{"stamp": list(stamp), "code": hash_code()},
        }

    def list_jobs(self) -> dict[Cell, Job]:
        """What the index has not read yet; what an earlier one has kept is taken over here."""
        jobs = {}
        listing = self.refresh()
        for cell, source in listing.sources.items():
            stamp = self.stamps.get(cell, source.stamp())
            if stamp == NO_FILE or self.indexed.get(cell) == stamp:
                continue
            book = self.unpack(source, stamp)
            if book is None:
                jobs[cell] = (source, self.packed(source), self.key(source, stamp))
            else:
                self.keep(cell, book)
                self.indexed[cell] = stamp
        return jobs

    def adopt(self, cell: Cell, data: bytes | None) -> None:
        """Take over what the index has packed: from its file, or as bytes where that could not be written."""
        source = self.source(cell)
        stamp = source.stamp()
        key = self.key(source, stamp)
        book = (
            open_packed(self.packed(source), source, key) if data is None else unpack_book(data, source, key)
        )
        if book is not None:  # else the file has changed meanwhile, and its turn comes again
            book.weight = len(data or b"")
            self.keep(cell, book)
            self.indexed[cell] = stamp

    def known(self, cell: Cell, stamp: tuple[int, int, int]) -> Book | None:
        """The book as it was opened before, where the file has not changed since."""
        with self.guard:
            book = self.books.get(cell)
            if book is None or book.stamp != stamp or stamp == NO_FILE:
                return None
            self.books.move_to_end(cell)
            return book

    def keep(self, cell: Cell, book: Book) -> None:
        """Put a book within reach; those that nobody asked for longest make room."""
        with self.guard:
            old = self.books.pop(cell, None)
            self.bytes += book.size() - (old.size() if old else 0)
            self.books[cell] = book
            while self.bytes > KEPT_BYTES and len(self.books) > 3:
                _, gone = self.books.popitem(last=False)
                self.bytes -= gone.size()

    def reach(self, cell: Cell, until: float) -> Book | None:
        """As `open`, of a study that is looked at as a whole; None where that would take too long now."""
        known = self.look_up(cell)
        return known if known is not None or time.monotonic() > until else self.open(cell)

    def look_up(self, cell: Cell) -> Book | None:
        """A book that is open already, as its file was a moment ago."""
        return self.known(cell, self.stamps.get(cell) or self.source(cell).stamp())

    def progress(self) -> dict:
        """How much of the study has been read."""
        self.refresh()
        with self.guard:
            stamps = dict(self.stamps)
            known = [
                self.indexed.get(cell) == each or self.is_open(cell, each) for cell, each in stamps.items()
            ]
        read, of = sum(known), len(known)
        word = f"all {of:,} files read" if read == of else f"{read:,} of {of:,} files read"
        problem = f"; {self.index.word}" if self.index is not None and self.index.word else ""
        return {"read": read, "of": of, "word": word + problem}

    def is_open(self, cell: Cell, stamp: Stamp) -> bool:
        book = self.books.get(cell)
        return stamp == NO_FILE or (book is not None and book.stamp == stamp)

    def close(self) -> None:
        """End what runs in the background."""
        if self.index is not None:
            self.index.close()

    def shown(self, path: Path) -> str:
        """A file as a person would call it."""
        root = paths.root()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    def state(self, cell: Cell) -> tuple[str, str]:
        """State and word of a cell without opening its file."""
        source = self.source(cell)
        stamp = self.stamps.get(cell) or source.stamp()
        if stamp == NO_FILE and not any(map(os.path.islink, source.places)):
            return MISSING, f"no evaluation yet: {source.rerun()}"
        known = self.known(cell, stamp)
        return (known.state, known.word) if known else (UNREAD, "")


@functools.cache
def hash_code() -> str:
    """What a packed book depends on beside its file: how answers are read, scored and packed."""
    here = Path(__file__).parent
    code = b"".join((here / f"{name}.py").read_bytes() for name in ("config", "scoring", "tallies", "books"))
    return hashlib.sha256(code).hexdigest()


def rank(cell: Cell) -> tuple:
    """The order of sizes, bases, animals and seeds."""
    base = config.parse_label(cell[0])
    return (base.size.params, base.index, ORDER[cell[1]], cell[2])


def asked_cells(study: str) -> set[Cell]:
    """The grid that params/<study>.yaml asks for, as far as it says so."""
    try:
        asked = config.study_overrides(study)
        if not {"sizes", "seeds"} <= set(asked):
            return set()
        bases = config.expand_sizes(str(asked["sizes"]))
        animals = config.expand_animals("all", str(asked.get("animals", "grid")))
        seeds = config.expand_seeds("all", str(asked["seeds"]))
    except StudyError:
        return set()
    cells = {(base.label, animal, seed) for base in bases for animal in animals for seed in seeds}
    return cells | {(base.label, config.UNTUNED, 0) for base in bases}


def open_folder(results: str) -> Path:
    """The folder that somebody named, if there is anything in it."""
    folder = Path(results).expanduser().resolve()
    if not folder.is_dir():
        raise MissingInput(
            f"there is no folder {results}: name one with <size>/<animal>/s<seed>.json in it, or with "
            "run-0, run-1 ... in the published format"
        )
    if not find_kind(folder):
        raise MissingInput(
            f"no evaluation in {results}: neither <size>/<animal>/s<seed>.json nor, published, "
            "run-<n>/<size>/<animal>_eval.json"
        )
    return folder
