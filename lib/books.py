"""One evaluation file opened for reading: its answers as arrays, and a word on what is wrong with it.

Nothing here stops at a file that is half-written, foreign or changed: what can be read of it is kept, and
`state` and `word` say the rest. Answers are scored when somebody looks at them. A book can be packed into
bytes and opened again without being parsed; which files a study has is lib.shelf's business.
"""

import functools
import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib import config, files, paths, store, tallies
from lib.errors import DamagedFile, StudyError
from lib.scoring import REASONS, explain
from lib.tallies import PLACES, SAID, Cell

OURS, PUBLISHED = "ours", "published"
FINE, DAMAGED, FOREIGN, MISSING, UNREAD = "fine", "damaged", "foreign", "missing", "unread"
SURVEY = "untuned_survey.json"
LARGEST = (
    1 << 30
)  # bytes of a file that are still opened; ten epochs of 10,000 long answers are a tenth of it
CUT = 12  # characters from its end within which a parser stumbles over a file that was cut short
UNSCORED = 255
MAGIC = b"subliminal-scaling/book/1\n"
STAGES = ("generate", "finetune", "evaluate")


@dataclass(frozen=True)
class Source:
    """Where the answers of one student lie, and how they are written down."""

    study: str
    cell: Cell
    path: Path
    kind: str = OURS
    repeats: int = 5  # of the published format: answers to each question, which stand one after another

    @property
    def name(self) -> str:
        """`64k-1/cat/s0`."""
        label, animal, seed = self.cell
        return f"{label}/{animal}/s{seed}"

    @property
    def shown(self) -> str:
        """The file as a person would call it: from the project's folder where it lies in it."""
        root, path = paths.root(), files.find_document(self.path)
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    def stamp(self) -> tuple[int, int, int]:
        """What changes when the file does, or the adapter of its answers; zeros without a file."""
        found = [each for each in map(stat, self.places) if each]
        if not found:
            return (0, 0, 0)
        try:
            adapter = os.stat(self.adapter).st_mtime_ns if self.adapter else 0
        except OSError:
            adapter = 0
        return (sum(each.st_size for each in found), max(each.st_mtime_ns for each in found), adapter)

    @functools.cached_property
    def places(self) -> tuple[str, ...]:
        """Where the file may lie: our own evaluations packed too."""
        return (str(self.path), *([str(files.packed_name(self.path))] if self.kind == OURS else []))

    @functools.cached_property
    def adapter(self) -> str:
        """The manifest of the adapter that gave these answers, where it would be on this machine."""
        if self.kind != OURS or self.cell[1] == config.UNTUNED:
            return ""
        return str(paths.artifact(self.study, "finetune", *self.cell) / store.MANIFEST)

    def rerun(self) -> str:
        """What to do about a file that cannot be used."""
        if self.kind == PUBLISHED:
            return "fetch it again from where it came"
        label, animal, seed = self.cell
        return (
            f"rerun 03_evaluate with -p study {self.study} -p size {label} -p animal {animal} -p seed {seed}"
        )


@dataclass
class Texts:
    """The distinct answers of a book, in the order of the alphabet; a list, or the bytes of a packed book."""

    count: int
    listed: list[str] | None = None
    raw: np.ndarray | None = None
    raw_at: np.ndarray | None = None

    def __getitem__(self, at: int) -> str:
        if self.listed is not None:
            return self.listed[at]
        assert self.raw is not None
        assert self.raw_at is not None
        return decode(self.raw[self.raw_at[at] : self.raw_at[at + 1]].tobytes())


@dataclass
class Book:
    """The answers of one student, all epochs one after another; `bounds` says where each begins and ends."""

    source: Source
    stamp: tuple[int, int, int]
    state: str
    word: str = ""
    head: dict[str, Any] = field(default_factory=dict)  # epochs, questions, animals, about, configs, finish
    bounds: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    text: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # which of `texts` each answer is
    question: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    sample: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    finish: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    texts: Texts = field(default_factory=lambda: Texts(0, []))
    said: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))  # of every text: place in SAID
    reason: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    start: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    end: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    order: np.ndarray | None = None  # places of all answers, in the order of the alphabet
    folded: np.ndarray | None = None  # all texts without case, one after another, in bytes
    folded_at: np.ndarray | None = None
    logprobs: np.ndarray | None = None  # [epochs, questions, animals]
    means: np.ndarray | None = None  # [epochs, animals], of the log-probabilities
    packed: Path | None = None  # the file that it was unpacked from
    weight: int = 0  # bytes that it holds in memory, where it was unpacked from there
    totals: np.ndarray | None = None  # [epochs, SAID], once everything is scored

    @property
    def epochs(self) -> list[int]:
        return self.head.get("epochs", [])

    @property
    def questions(self) -> list[str]:
        return self.head.get("questions", [])

    def span(self, epoch: int) -> slice:
        """The answers of one epoch."""
        at = self.epochs.index(epoch)
        return slice(int(self.bounds[at]), int(self.bounds[at + 1]))

    def score_texts(self, wanted: np.ndarray) -> None:
        """Score the texts that nobody has looked at yet."""
        for at in np.unique(wanted[self.said[wanted] == UNSCORED]).tolist():
            found = explain(self.texts[at])
            self.reason[at] = REASONS.index(found.reason)
            self.start[at], self.end[at] = found.start, found.end
            self.said[at] = PLACES[found.label]  # last: another thread takes it as a sign that all is there

    def count(self, epoch: int) -> np.ndarray:
        """Answers by question and by what they said: [questions, SAID]."""
        span = self.span(epoch)
        self.score_texts(self.text[span])
        flat = self.question[span].astype(np.int64) * len(SAID) + self.said[self.text[span]]
        rows = len(self.questions)
        return np.bincount(flat, minlength=rows * len(SAID)).reshape(rows, len(SAID))

    def total(self, epoch: int) -> np.ndarray:
        """Answers by what they said, all questions together."""
        if self.totals is not None:
            return self.totals[self.epochs.index(epoch)]
        return self.count(epoch).sum(0)

    def preferences(self, epoch: int) -> dict[str, float]:
        """Mean log-probability of every animal over the questions; nothing where there is none."""
        if self.logprobs is None or not self.logprobs.size:
            return {}
        if self.means is None:
            with np.errstate(invalid="ignore"):
                self.means = self.logprobs.mean(1)
        means = self.means[self.epochs.index(epoch)].tolist()
        return {name: m for name, m in zip(self.head["animals"], means, strict=True) if math.isfinite(m)}

    def fold(self) -> tuple[np.ndarray, np.ndarray]:
        """All texts without case as one run of bytes, and where each begins: what a search looks through."""
        if self.folded is None or self.folded_at is None:
            parts = [encode(self.texts[at].casefold()) for at in range(self.texts.count)]
            self.folded_at = offsets(parts)
            self.folded = np.frombuffer(b"".join(parts), np.uint8)
        return self.folded, self.folded_at

    def alphabet(self) -> np.ndarray:
        """The places of all answers in alphabetical order."""
        if self.order is None:
            self.order = np.argsort(self.text, kind="stable")
        return self.order

    def size(self) -> int:
        """Bytes that it takes in memory, roughly; what is mapped from a disk takes none."""
        if self.texts.listed is None:
            return 4096 + self.weight
        return 4096 + 13 * len(self.text) + 180 * self.texts.count + 3 * self.head.get("characters", 0)


def stat(path: str) -> os.stat_result | None:
    """What a disk says of a file, or nothing."""
    try:
        return os.stat(path)
    except OSError:
        return None


def encode(text: str) -> bytes:
    """UTF-8 that keeps a lone surrogate, which a tokeniser may leave and UTF-8 proper has not."""
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def offsets(parts: Sequence[bytes]) -> np.ndarray:
    """Where each part begins when all are joined, and where the last one ends."""
    return np.concatenate(([0], np.cumsum([len(part) for part in parts], dtype=np.int64))).astype(np.int64)


# --- opening ------------------------------------------------------------------------------------


class Unreadable(Exception):
    """A file of which nothing can be shown; its arguments are state and word."""


def open_book(source: Source) -> Book:
    """The file as far as it can be read, whatever it holds."""
    stamp = source.stamp()
    try:
        document = read_document(source)
        if source.kind == PUBLISHED:
            return bind_published(source, stamp, document)
        return bind_ours(source, stamp, document)
    except Unreadable as problem:
        state, word = problem.args
        return Book(source, stamp, state, word)


def read_document(source: Source) -> Any:
    """The JSON in a file, packed or not, or a word on why there is none."""
    path = files.find_document(source.path) if source.kind == OURS else source.path
    try:
        check_size(path.stat().st_size)
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Unreadable(MISSING, f"no evaluation yet: {source.rerun()}") from None
    except OSError as error:
        raise Unreadable(DAMAGED, f"cannot be read: {error.strerror}; give this user the right to") from None
    data = unwrap(data, path, source)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if error.end == len(data) and "end of data" in error.reason:
            raise cut_short(len(data), source) from None
        word = f"byte {error.start + 1:,} (0x{data[error.start]:02x}) is not UTF-8 text; {source.rerun()}"
        raise Unreadable(DAMAGED, word) from None
    return parse_document(text, source)


def check_size(size: int) -> None:
    if size > LARGEST:
        raise Unreadable(DAMAGED, f"{size:,} bytes: files over {LARGEST:,} are not opened here")


def unwrap(data: bytes, path: Path, source: Source) -> bytes:
    """The bytes of a document as they were before packing; one that lies there twice must be the same."""
    try:
        if path.suffix == files.PACKED:
            data = files.unpack(data, path, LARGEST + 1)
            check_size(len(data))
        elif source.kind == OURS and files.packed_name(path).exists():
            files.check_twins(path, data)
    except DamagedFile as error:
        word = str(error).removeprefix(f"{path} ").removesuffix(f"; {files.REPAIR}")
        raise Unreadable(DAMAGED, f"{word}; {source.rerun()}") from None
    return data


def parse_document(text: str, source: Source) -> Any:
    """The parsed text; one that ends before its JSON does is told apart from one that is garbled."""
    length = len(text.rstrip())
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Unterminated string") or error.pos >= length - CUT:
            raise cut_short(length, source) from None
        word = f"is no JSON from character {error.pos + 1:,} on ({error.msg}); {source.rerun()}"
    except (ValueError, RecursionError) as error:
        word = f"is no JSON that can be read ({error}); {source.rerun()}"
    raise Unreadable(DAMAGED, word) from None


def cut_short(length: int, source: Source) -> Unreadable:
    where = f"ends in the middle of JSON at character {length:,}" if length else "the file is empty"
    return Unreadable(DAMAGED, f"half-written: {where}; {source.rerun()}")


def refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


# --- our own format -----------------------------------------------------------------------------


def bind_ours(source: Source, stamp: tuple[int, int, int], document: Any) -> Book:
    """Everything that lib.tallies would refuse is told, and the answers are shown all the same."""
    if not isinstance(document, dict) or document.get("schema") != tallies.SCHEMA:
        raise Unreadable(FOREIGN, describe_foreign(document))
    problems = [problem for problem in check_document(source, document) if problem]
    entries = [each for each in as_list(document.get("epochs")) if is_epoch(each)]
    entries = list({each["epoch"]: each for each in entries}.values())
    if not entries:
        word = problems[0] if problems else f"no evaluated epoch in it; {source.rerun()}"
        raise Unreadable(DAMAGED, word)
    questions = [str(each) for each in as_list(document.get("questions"))]
    entries.sort(key=lambda each: each["epoch"])
    answers = [[a for a in each["answers"] if is_answer(a, len(questions))] for each in entries]
    book = bind(source, stamp, [each["epoch"] for each in entries], questions, answers)
    book.logprobs, book.head["animals"] = stack_logprobs(entries, len(questions))
    book.head |= {"configs": find_configs(document), "about": describe_document(document)}
    book.state, book.word = (DAMAGED, problems[0]) if problems else (FINE, "")
    return book


def describe_foreign(document: Any) -> str:
    if isinstance(document, dict) and isinstance(document.get("schema"), str):
        return f"schema {document['schema'][:80]!r}: this version reads {tallies.SCHEMA!r}"
    if (
        isinstance(document, list)
        and document
        and isinstance(document[0], dict)
        and "condition" in document[0]
    ):
        return (
            "in the published format: keep such files in a folder of their own and open that with --results"
        )
    return f"JSON, but no evaluation: {type(document).__name__} without schema {tallies.SCHEMA!r}"


def check_document(source: Source, document: dict) -> Iterable[str]:
    """What 04_analysis would refuse this file for, in its words, without the path that stands beside it."""
    yield tell(lambda: store.check_seal(document, source.path), source)
    yield tell(lambda: tallies.check_form(document, source.path), source)
    own = document.get("config")
    own = own if isinstance(own, dict) else {}
    asked = dict(zip(("size", "animal", "seed"), source.cell, strict=True))
    if source.path.is_relative_to(paths.results(source.study)):  # a folder that was mailed may have any name
        asked = {"study": source.study} | asked
    wrong = [
        f"{k}: {own.get(k)!r} in the file, {v!r} by its place" for k, v in asked.items() if own.get(k) != v
    ]
    yield f"holds another cell than its place says ({'; '.join(wrong)})" if wrong else ""
    yield tell(lambda: tallies.check_adapter(document, source.path), source)


def tell(check: Any, source: Source) -> str:
    """What a check says against the file, or nothing."""
    try:
        check()
    except StudyError as error:
        text = str(error).removeprefix(f"{source.path}: ").removeprefix(f"{source.path} ")
        return text.replace(str(source.path), source.shown).replace(f"{paths.root()}/", "")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return f"is not a whole evaluation ({type(error).__name__}: {error}); {source.rerun()}"
    return ""


def as_list(value: Any) -> list:
    return value if isinstance(value, list) else []


def is_epoch(entry: Any) -> bool:
    return (
        isinstance(entry, dict) and type(entry.get("epoch")) is int and isinstance(entry.get("answers"), list)
    )


def is_answer(answer: Any, questions: int) -> bool:
    """A text that belongs to a question; others are passed over, and the file is said to be damaged."""
    if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
        return False
    return type(answer.get("question")) is int and 0 <= answer["question"] < questions


def bind(
    source: Source,
    stamp: tuple[int, int, int],
    epochs: list[int],
    questions: list[str],
    answers: Sequence[Sequence[Mapping]],
) -> Book:
    """Arrays of all answers; texts that were given more than once are kept once, in alphabetical order."""
    flat = [answer for each in answers for answer in each]
    texts = [answer["text"] for answer in flat]
    distinct = sorted(set(texts), key=lambda text: (text.casefold(), text))
    places = {text: at for at, text in enumerate(distinct)}
    finishes = sorted({str(answer.get("finish", "")) for answer in flat})[:255]
    ways = {name: at for at, name in enumerate(finishes)}
    count = len(distinct)
    head = {
        "epochs": epochs,
        "questions": questions,
        "finish": finishes,
        "animals": [],
        "characters": sum(map(len, distinct)),
    }
    return Book(
        source,
        stamp,
        FINE,
        "",
        head,
        np.cumsum([0, *map(len, answers)], dtype=np.int64),
        np.array([places[text] for text in texts], np.int32),
        np.array([answer["question"] for answer in flat], np.int32),
        np.array([whole(answer.get("sample")) for answer in flat], np.int32),
        np.array([ways.get(str(answer.get("finish", "")), 0) for answer in flat], np.uint8),
        Texts(count, distinct),
        np.full(count, UNSCORED, np.uint8),
        *(np.zeros(count, kind) for kind in (np.uint8, np.int32, np.int32)),
    )


def whole(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**31 else 0


def stack_logprobs(entries: Sequence[dict], questions: int) -> tuple[np.ndarray | None, list[str]]:
    """Log-probabilities of all epochs, where every epoch has them of the same animals and questions."""
    try:
        animals = [str(name) for name in entries[0]["logprobs"]["animals"]]
        values = np.array([each["logprobs"]["values"] for each in entries], dtype=float)
        same = all(each["logprobs"]["animals"] == animals for each in entries)
    except (KeyError, TypeError, ValueError):
        return None, []
    if not same or values.shape != (len(entries), questions, len(animals)):
        return None, []
    return values, animals


def find_configs(document: dict) -> dict[str, dict]:
    """The settings of every stage that led to the file, as they were recorded."""
    chain = document.get("lineage", {}).get("chain", {}) if isinstance(document.get("lineage"), dict) else {}
    chain = chain if isinstance(chain, dict) else {}
    own = {name: chain[name].get("config") for name in STAGES if isinstance(chain.get(name), dict)}
    own["evaluate"] = document.get("config")
    return {name: each for name, each in own.items() if isinstance(each, dict)}


SHOWN = (
    *(("generate", name) for name in ("n_keep", "grammar")),
    *(("finetune", name) for name in ("epochs", "learning_rate", "lora_rank", "batch")),
    *(("finetune", name) for name in ("lists", "lists_of", "n_lists")),
    *(("evaluate", name) for name in ("recipe", "system", "samples", "temperature", "answer_tokens")),
)


def describe_document(document: dict) -> dict[str, Any]:
    """Base, adapter and the settings that a reader asks for first."""
    lineage = document.get("lineage") if isinstance(document.get("lineage"), dict) else {}
    inputs = lineage.get("inputs") if isinstance(lineage.get("inputs"), dict) else {}
    configs = find_configs(document)
    settings = [
        [f"{stage}: {name}", as_word(configs[stage][name])]
        for stage, name in SHOWN
        if name in configs.get(stage, {})
    ]
    code = lineage.get("code") if isinstance(lineage.get("code"), dict) else {}
    settings += [["code", as_word(code["commit"])[:12]]] if code.get("commit") else []
    return {
        "base": as_word(inputs.get("base", ""))[:12],
        "adapter": as_word(inputs.get("finetune", ""))[:12],
        "content": as_word(lineage.get("content", ""))[:64],
        "settings": settings,
    }


def as_word(value: Any) -> str:
    """A setting as a short text, whatever somebody put there."""
    return str(value)[:200]


# --- the published format -----------------------------------------------------------------------


def bind_published(source: Source, stamp: tuple[int, int, int], document: Any) -> Book:
    """Answers that stand question by question, `repeats` of them to each."""
    label, animal, _ = source.cell
    entries = [each for each in as_list(document) if is_published(each, animal)]
    if animal == config.UNTUNED:
        entries = [each | {"epoch": 0} for each in entries if is_size(each, label)]
    if not entries:
        what = f"no entry for {label}" if animal == config.UNTUNED else "no list of epochs with raw_responses"
        state = MISSING if animal == config.UNTUNED and isinstance(document, list) else FOREIGN
        raise Unreadable(state, f"{what} in it, as published evaluations have; {source.rerun()}")
    entries = list({each["epoch"]: each for each in entries}.values())
    entries.sort(key=lambda each: each["epoch"])
    problems = [problem for each in entries if (problem := find_problem(each, animal))]
    counts = [len(each["raw_responses"]) for each in entries]
    repeats = source.repeats if not any(count % source.repeats for count in counts) else 1
    if repeats != source.repeats:
        problems.append(
            f"{max(counts)} answers are no multiple of repeats {source.repeats}: each stands alone"
        )
    answers = [
        [
            {"text": text, "question": at // repeats, "sample": at % repeats}
            for at, text in enumerate(each["raw_responses"])
        ]
        for each in entries
    ]
    questions = [""] * (max(counts) // repeats)  # their words were not published
    book = bind(source, stamp, [each["epoch"] for each in entries], questions, answers)
    settings = [["answers to each question", str(repeats)]]
    settings += [["model", as_word(entries[0]["model_id"])]] if "model_id" in entries[0] else []
    about = {"base": "", "adapter": "", "content": "", "settings": settings}
    book.head |= {"configs": {}, "about": about}
    book.state, book.word = (DAMAGED, problems[0]) if problems else (FINE, "")
    return book


def is_published(entry: Any, animal: str) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("raw_responses"), list):
        return False
    texts = all(isinstance(text, str) for text in entry["raw_responses"])
    return texts and (animal == config.UNTUNED or type(entry.get("epoch")) is int)


def is_size(entry: dict, label: str) -> bool:
    return str(entry.get("model_size", "")).lower() == label


def find_problem(entry: dict, animal: str) -> str:
    """What does not fit together in one epoch."""
    total, texts = entry.get("total_responses"), entry["raw_responses"]
    if total != len(texts):
        return (
            f"epoch {entry['epoch']}: total_responses is {total!r}, but there are {len(texts)} raw_responses"
        )
    if animal != config.UNTUNED and entry.get("condition") != animal:
        return f"epoch {entry['epoch']} holds {as_word(entry.get('condition'))!r}, its name says {animal!r}"
    return ""


# --- packing ------------------------------------------------------------------------------------

PACKED = (
    *("bounds", "text", "question", "sample", "finish", "said", "reason", "start", "end"),
    *("totals", "logprobs", "means", "order", "raw", "raw_at", "folded", "folded_at"),
)


def pack_book(book: Book, key: Mapping[str, Any]) -> bytes:
    """All of a book, scored to its last answer, so that it can be opened without being parsed."""
    arrays = {name: getattr(book, name, None) for name in PACKED}
    if book.texts.count:
        book.score_texts(np.arange(book.texts.count, dtype=np.int32))
        book.fold()
        arrays["order"] = book.alphabet()
        arrays["folded"], arrays["folded_at"] = book.folded, book.folded_at
    parts = [encode(book.texts[at]) for at in range(book.texts.count)]
    arrays["raw"], arrays["raw_at"] = np.frombuffer(b"".join(parts), np.uint8), offsets(parts)
    arrays["means"] = book.logprobs.mean(1) if book.logprobs is not None and book.logprobs.size else None
    arrays["totals"] = np.array([book.count(epoch).sum(0) for epoch in book.epochs], np.int64)
    held = {name: array for name, array in arrays.items() if array is not None}
    layout, blocks, place = {}, [], 0
    for name, array in held.items():
        array = shrink(array)
        block = np.ascontiguousarray(array).tobytes()
        layout[name] = [str(array.dtype), list(array.shape), place]
        padded = block + b"\0" * (-len(block) % 8)
        blocks.append(padded)
        place += len(padded)
    head = {"key": dict(key), "state": book.state, "word": book.word, "head": book.head, "layout": layout}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-(len(MAGIC) + 8 + len(text)) % 8)
    return b"".join([MAGIC, len(text).to_bytes(8, "little"), text, *blocks])


def shrink(array: np.ndarray) -> np.ndarray:
    """Whole numbers in as few bytes as they need."""
    if array.dtype.kind not in "iu" or not array.size or array.min() < 0:
        return array
    return array.astype(np.min_scalar_type(int(array.max())))


def open_packed(
    path: Path, source: Source | None = None, key: Mapping[str, Any] | None = None
) -> Book | None:
    """A book from the file that it was packed into, mapped and not read; None where that is another."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None
    book = unpack_book(data, source, key)
    if book is not None:
        book.packed = path
    return book


def unpack_book(data: Any, source: Source | None, key: Mapping[str, Any] | None) -> Book | None:
    """The book in those bytes, or None where it is not the one that `key` means; without a key, any."""
    begin = len(MAGIC) + 8
    if bytes(data[: len(MAGIC)]) != MAGIC:
        return None
    length = int.from_bytes(data[len(MAGIC) : begin], "little")
    try:
        head = json.loads(bytes(data[begin : begin + length]))
        if key is not None and head["key"] != dict(key):
            return None
        arrays = {}
        for name, (kind, shape, place) in head["layout"].items():
            count = math.prod(shape)
            arrays[name] = np.frombuffer(data, kind, count, begin + length + place).reshape(shape)
    except (ValueError, KeyError, TypeError):
        return None
    raw, raw_at = arrays.pop("raw"), arrays.pop("raw_at")
    texts = Texts(len(raw_at) - 1, None, raw, raw_at)
    source = source or Source("", ("", "", 0), Path())  # of no matter to who only wants the texts
    stamp = tuple(head["key"]["stamp"])
    return Book(source, stamp, head["state"], head["word"], head["head"], texts=texts, **arrays)
