"""Evaluation files one by one: checked, scored and counted question by question, many of them side by side.

Of a file with fifty thousand answers a few arrays remain, so that millions of answers fit into memory. What
files say together is lib.tables' business; this module knows one file at a time and imports little, because
every process of the pool imports it again.
"""

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from lib import config, files, paths, store
from lib.errors import BrokenLineage, DamagedFile
from lib.progress import Progress
from lib.scoring import NONE, OTHER, score

SCHEMA = "subliminal-scaling/evaluation/1"
SAID = (*config.LEXICON, OTHER, NONE)  # what an answer can say: the columns of a count
PLACES = {name: at for at, name in enumerate(SAID)}
# Per stage, the settings that shape a result and that all cells of one size must share.
SHARED_FIELDS: dict[str, tuple[str, ...]] = {
    stage.stage: tuple(
        field.name
        for field in fields(stage)
        if field.metadata.get("identity", True) and field.name not in ("size", "animal", "seed")
    )
    for stage in (config.Generate, config.Finetune, config.Evaluate)
}
POOL_BYTES = 64_000_000  # below, reading takes a few seconds and processes would cost more than they save
PROCESSES = 4  # at most: a process holds one parsed file, some hundred megabytes of a large one
SCORED = 1 << 18  # texts whose score is kept at hand: a model that rambles hardly ever says a thing twice

Cell = tuple[str, str, int]  # label, animal, seed


@dataclass(frozen=True)
class Tally:
    """What one student said at one epoch, question by question, of the named animals of a study."""

    said: np.ndarray  # whole numbers [questions, names]
    answers: np.ndarray  # whole numbers [questions]
    logprob: np.ndarray  # [questions, names], NaN where it was not evaluated


@dataclass(frozen=True)
class Count:
    """One epoch of one file: answers by question and by what they said, and its log-probabilities."""

    epoch: int
    said: np.ndarray  # whole numbers [questions, SAID]
    animals: tuple[str, ...] = ()  # columns of the log-probabilities
    logprobs: np.ndarray | None = None  # [questions, animals]

    def tally(self, names: Sequence[str]) -> Tally:
        """The same for the named animals alone."""
        logprob = np.full((len(self.said), len(names)), np.nan)
        for at, name in enumerate(names):
            if self.logprobs is not None and name in self.animals:
                logprob[:, at] = self.logprobs[:, self.animals.index(name)]
        said = self.said[:, [PLACES[name] for name in names]]
        return Tally(said, self.said.sum(1), logprob)


@dataclass(frozen=True)
class Evaluation:
    """One file without its answers: whose it is, what sealed it, what it shares with others, its counts."""

    cell: Cell
    content: str
    counts: tuple[Count, ...]
    base: str = ""
    settings: dict[str, dict] | None = None


# --- one file ---------------------------------------------------------------------------------


def read_evaluation(path: Path, study: str, label: str, animal: str, seed: int) -> dict:
    """One evaluation: intact, of this schema, of this cell, and of the adapter that is there now."""
    document = files.read_json(path)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise DamagedFile(f"{path}: schema {found!r}, this version reads {SCHEMA!r}; rerun 03_evaluate")
    store.check_seal(document, path)
    check_form(document, path)
    cell = {"study": study, "size": label, "animal": animal, "seed": seed}
    held = {name: document["config"].get(name) for name in cell}
    wrong = [f"{k}: {v!r} asked, {held[k]!r} in the file" for k, v in cell.items() if held[k] != v]
    if wrong:
        raise BrokenLineage(f"{path} holds another cell than its path says ({'; '.join(wrong)}): remove it")
    check_adapter(document, path)
    return document


def check_form(document: dict, path: Path) -> None:
    """The parts that are read below are there and fit together."""
    try:
        questions, inputs = len(document["questions"]), document["lineage"]["inputs"]
        document["config"].get("study"), inputs["base"]
        if not document["epochs"]:
            raise DamagedFile(f"{path}: no evaluated epoch in it; rerun 03_evaluate")
        for entry in document["epochs"]:
            values = np.array(entry["logprobs"]["values"], dtype=float)
            if values.shape != (questions, len(entry["logprobs"]["animals"])):
                raise ValueError(f"logprobs are {values.shape} for {questions} questions")
            if not all(
                isinstance(a["text"], str) and type(a["question"]) is int and 0 <= a["question"] < questions
                for a in entry["answers"]
            ):
                raise ValueError("an answer is no text or belongs to no question")
            entry["epoch"] + 0
        numbers = [entry["epoch"] for entry in document["epochs"]]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"an epoch stands in it twice: {numbers}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DamagedFile(
            f"{path}: not a whole evaluation ({what}); remove it and rerun 03_evaluate"
        ) from None


def check_adapter(document: dict, path: Path) -> None:
    """Where the adapter is still on this machine, it is the one that gave these answers."""
    if document["config"]["animal"] != config.UNTUNED:  # results travel alone: an absent folder passes
        folder = paths.student_folder(document["config"])
        store.check_inputs(str(path), document["lineage"]["inputs"], {"finetune": folder})


def describe_settings(document: dict) -> dict[str, dict]:
    """Per stage that led to this evaluation, the settings that its neighbours must share."""
    chain = document["lineage"].get("chain", {})
    stages = {name: chain[name].get("config", chain[name]) for name in SHARED_FIELDS if name in chain}
    stages["evaluate"] = document["config"]
    settings = {name: {f: own.get(f) for f in SHARED_FIELDS[name]} for name, own in stages.items()}
    settings["evaluate"]["questions"] = files.hash_object(document["questions"])
    return settings


# --- counting ---------------------------------------------------------------------------------

_scored: dict[str, int] = {}


def place_answer(text: str) -> int:
    """The column of SAID that an answer belongs to; a text is scored once, however often it was given."""
    place = _scored.get(text)
    if place is None:
        if len(_scored) >= SCORED:
            _scored.clear()
        place = _scored[text] = PLACES[score(text)]
    return place


def count_answers(questions: Sequence[int], texts: Iterable[str], n_questions: int) -> np.ndarray:
    """Answers by question and by what they said, zeros included."""
    places = np.fromiter(map(place_answer, texts), dtype=np.int64, count=len(questions))
    flat = np.asarray(questions, dtype=np.int64) * len(SAID) + places
    counts = np.bincount(flat, minlength=n_questions * len(SAID))
    return counts.reshape(n_questions, len(SAID)).astype(np.int32)


def count_epoch(entry: dict, n_questions: int) -> Count:
    """One epoch of a document that has been checked."""
    answers, logprobs = entry["answers"], entry["logprobs"]
    questions = [answer["question"] for answer in answers]
    said = count_answers(questions, (answer["text"] for answer in answers), n_questions)
    values = np.array(logprobs["values"], dtype=float)
    return Count(entry["epoch"], said, tuple(logprobs["animals"]), values)


def count_evaluation(path: Path, study: str, cell: Cell) -> Evaluation:
    """Read, check and count one file."""
    document = read_evaluation(path, study, *cell)
    n_questions, lineage = len(document["questions"]), document["lineage"]
    counts = tuple(count_epoch(entry, n_questions) for entry in document["epochs"])
    return Evaluation(
        cell, lineage["content"], counts, lineage["inputs"]["base"], describe_settings(document)
    )


# --- many files -------------------------------------------------------------------------------


def count_evaluations(study: str, found: Sequence[tuple[Path, Cell]]) -> dict[Path, Evaluation]:
    """Every file counted, in the order given; large studies in several processes, with progress shown.

    The result does not depend on the number of processes. Where several files are refused, the first one in
    order is named.
    """
    size = sum(files.count_bytes(path) for path, _ in found)
    workers = min(PROCESSES, count_cores(), len(found))
    counted: dict[Path, Evaluation] = {}
    with Progress("evaluations read", len(found), lines=20 if size > POOL_BYTES else 0) as progress:
        if size > POOL_BYTES and workers > 1:
            try:
                count_apart(study, found, workers, counted, progress)
            except (BrokenProcessPool, OSError) as error:  # no room or no right for processes here
                print(f"reading goes on in this process alone ({error})", flush=True)
        for path, cell in found:
            if path not in counted:
                counted[path] = count_evaluation(path, study, cell)
                show(progress, path)
    return counted


def count_apart(
    study: str,
    found: Sequence[tuple[Path, Cell]],
    workers: int,
    counted: dict[Path, Evaluation],
    progress: Progress,
) -> None:
    """Fill `counted` from a pool. Its processes begin afresh: a notebook's kernel has threads, and a fork
    of it could hang on a lock that one of them held."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, leave_with_parent) as pool:
        results = pool.map(count_evaluation, *zip(*((p, study, c) for p, c in found), strict=True))
        for (path, _), evaluation in zip(found, results, strict=True):
            counted[path] = evaluation
            show(progress, path)


def show(progress: Progress, path: Path) -> None:
    """One file more; a bar of no lines stays silent to its end."""
    if progress.lines:
        progress.advance("/".join(path.parts[-3:]))


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave_with_parent() -> None:
    """End this process of a pool when the one that began it is gone, killed without a word included."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
