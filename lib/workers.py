"""Background processes of the explorer: one packs books, one tries regular expressions; both end with it.

They are processes because Python does one thing at a time: the page would wait for them otherwise, and an
expression that runs away can only be ended from outside.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from lib import config, files
from lib.books import Book, Source, open_book, open_packed, pack_book
from lib.errors import BadParameter, StorageFailed
from lib.tallies import Cell, leave_with_parent

PATIENCE = 5.0  # seconds that an expression may take over the answers of one student
CONTROLS = (config.NEUTRAL, config.UNTUNED)
PAUSE = 1.0  # seconds before anything begins in the background: the first view comes first
ABANDONED = 0.05  # seconds that one search waits for the expression of another that nobody looks at any more


class Worker:
    """A process that answers messages one by one."""

    def __init__(self, target: Callable[[Connection], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=target, args=(there,), daemon=True)
        # A Ctrl-C at the terminal reaches the process too: it is to end with this one, not with a stack.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            there.close()

    def end(self) -> None:
        """At once."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


# --- packing --------------------------------------------------------------------------------------

Job = tuple[Source, Path, dict[str, Any]]  # what to open, where to keep it, the key it is kept under
Packed = tuple[Cell, bytes | None]  # the bytes where they could not be kept


def pack_books(pipe: Connection) -> None:
    """Open, score and keep one file after another; politely, for somebody looks at others meanwhile."""
    leave_with_parent()
    os.nice(5)
    with contextlib.suppress(EOFError, OSError):
        while job := pipe.recv():
            source, path, key = job
            data = pack_book(open_book(source), key)
            try:
                files.write_bytes(path, data)
            except StorageFailed:
                pipe.send((source.cell, data))
            else:
                pipe.send((source.cell, None))


Name = tuple[Cell, tuple[int, int, int]]  # of a book: whose it is, and its stamp

# --- expressions ----------------------------------------------------------------------------------


def try_expressions(pipe: Connection) -> None:
    """For each (expression, texts or a packed book) the numbers of the texts that it finds something in."""
    leave_with_parent()
    with contextlib.suppress(EOFError, OSError):
        while True:
            name, expression, texts = pipe.recv()
            pattern = re.compile(expression, re.IGNORECASE)
            if isinstance(texts, Path):
                book = open_packed(texts)
                texts = [book.texts[at] for at in range(book.texts.count)] if book else []
            found = [at for at, text in enumerate(texts) if pattern.search(text)]
            pipe.send((name, np.array(found, np.int64)))


class Expressions:
    """Tries one expression at a time over any number of books, in a process that can be ended."""

    def __init__(self) -> None:
        self.news = threading.Condition()
        self.worker: Worker | None = None
        self.expression = ""
        self.found: dict[Name, np.ndarray] = {}
        self.waiting: list[Name] = []  # books that the process was sent, in its order
        self.since = 0.0  # when it began with the first of these, or was idle

    def match(self, expression: str, book: Book, until: float) -> np.ndarray | None:
        """The texts of a book in which it finds something; None where that is not known yet."""
        name = (book.source.cell, book.stamp)
        with self.news:
            self.change(expression)
            if name not in self.found and name not in self.waiting:
                self.send(name, book)
            while name not in self.found:
                self.check_patience()
                if not self.news.wait(max(0.0, until - time.monotonic())):
                    return None
            return self.found[name]

    def change(self, expression: str) -> None:
        """Begin with another expression; a process that is at work on the one before is ended."""
        if expression == self.expression:
            return
        if self.waiting and not (self.news.wait(ABANDONED) and not self.waiting):
            self.end()
        self.expression = expression
        self.found.clear()

    def send(self, name: Name, book: Book) -> None:
        if self.worker is None:
            self.worker = Worker(try_expressions)
            threading.Thread(target=self.listen, args=(self.worker,), daemon=True).start()
        if not self.waiting:
            self.since = time.monotonic()
        self.waiting.append(name)
        texts = book.packed or [book.texts[at] for at in range(book.texts.count)]
        self.worker.pipe.send((name, self.expression, texts))

    def listen(self, worker: Worker) -> None:
        """Take results as they come."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                name, found = worker.pipe.recv()
                with self.news:
                    if worker is self.worker and name in self.waiting:
                        self.waiting.remove(name)
                        self.found[name] = found
                        self.since = time.monotonic()
                        self.news.notify_all()

    def check_patience(self) -> None:
        """End a process that has been at the answers of one student for too long."""
        if self.waiting and time.monotonic() - self.since > PATIENCE:
            self.end()
            raise BadParameter(
                f"the expression takes more than {PATIENCE:g} s for the answers of one student: make it "
                "simpler, above all repeats within repeats such as (a+)+"
            )

    def end(self) -> None:
        if self.worker is not None:
            self.worker.end()
        self.worker, self.waiting = None, []


# --- the index ------------------------------------------------------------------------------------


class Index:
    """Has every file of a study packed by one process, those that are looked at first.

    `look` lists what there is to do as jobs by cell, `adopt` takes a cell that was packed.
    """

    def __init__(
        self, look: Callable[[], Mapping[Cell, Job]], adopt: Callable[[Cell, bytes | None], None]
    ) -> None:
        self.look, self.adopt = look, adopt
        self.wake = threading.Event()
        self.closed = threading.Event()
        self.label = ""
        self.failed: set[tuple] = set()
        self.word = ""
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def hurry(self, label: str) -> None:
        """The files of this size first."""
        self.label = label

    def close(self) -> None:
        self.closed.set()
        self.wake.set()
        self.thread.join(5)

    def run(self) -> None:
        """Pack until nothing is left, then wait for a file to change."""
        worker: Worker | None = None
        self.closed.wait(PAUSE)
        while not self.closed.is_set():
            self.wake.clear()
            jobs = {cell: job for cell, job in self.look().items() if self.name(job) not in self.failed}
            while jobs and not self.closed.is_set() and not self.wake.is_set():
                cell = self.choose(jobs)
                worker = self.work(worker or Worker(pack_books), jobs.pop(cell))
            if not jobs:
                worker = self.release(worker)
                self.wake.wait()
        self.release(worker)

    def name(self, job: Job) -> tuple:
        return (job[0].cell, *job[2]["stamp"])

    def choose(self, jobs: Iterable[Cell]) -> Cell:
        """The next one: of the size that is looked at, controls before students."""
        return min(jobs, key=lambda cell: (cell[0] != self.label, cell[1] not in CONTROLS))

    def work(self, worker: Worker, job: Job) -> Worker | None:
        """One file; a process that dies over it is not asked again."""
        try:
            worker.pipe.send(job)
            while not worker.pipe.poll(0.2):
                if self.closed.is_set():
                    return worker
            cell, data = worker.pipe.recv()
        except (EOFError, OSError):
            self.failed.add(self.name(job))
            self.word = f"{job[0].shown} could not be indexed (too little memory does that)"
            worker.end()
            return None
        self.adopt(cell, data)
        return worker

    def release(self, worker: Worker | None) -> None:
        if worker is not None:
            worker.end()
