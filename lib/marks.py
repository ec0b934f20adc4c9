"""Answers that a reader says were scored wrongly: kept in a file per study, exported as cases for tests."""

import csv
import io
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib import config, files, paths
from lib.errors import BadParameter, DamagedFile, MissingInput
from lib.scoring import NONE, OTHER

SCHEMA = "subliminal-scaling/marks/1"
LABELS = (*config.LEXICON, OTHER, NONE)
COLUMNS = ("text", "label", "note")  # of tests/data/labelled_answers.csv
RUN = ".venv/bin/python -m pytest -q tests/test_scoring.py"
LONGEST = 2_000  # characters of a note


class Marks:
    """The marks of one study; every change is on the disk before it is confirmed."""

    def __init__(self, study: str) -> None:
        self.study = study
        self.path = paths.marks(study)
        self.guard = threading.Lock()

    def read(self) -> dict[str, dict[str, Any]]:
        """All marks by the key of their answer, in the order in which they were made."""
        try:
            document = files.read_json(self.path)
        except MissingInput:
            return {}
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise DamagedFile(f"{self.path} holds no marks of schema {SCHEMA!r}; move it away to begin anew")
        return {str(mark["key"]): mark for mark in document["marks"]}

    def put(self, key: str, mark: Mapping[str, Any]) -> None:
        """Add a mark, or replace the one that this answer has."""
        check_label(mark["expected"])
        with self.guard:
            self._write(self.read() | {key: dict(mark) | {"key": key}})

    def remove(self, key: str) -> None:
        with self.guard:
            held = self.read()
            if held.pop(key, None) is not None:
                self._write(held)

    def _write(self, marks: Mapping[str, Mapping]) -> None:
        files.write_json(self.path, {"schema": SCHEMA, "study": self.study, "marks": list(marks.values())})

    def export(self) -> dict[str, str]:
        """A CSV that tests/test_scoring.py reads once it lies beside the labelled answers."""
        marks = list(self.read().values())
        if not marks:
            raise MissingInput(
                f"no answer of {self.study} is marked yet: mark those that the scorer got wrong"
            )
        rows = {printable(mark["text"]): mark for mark in marks}
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([text, mark["expected"], describe(mark)] for text, mark in rows.items())
        name = f"marked-{self.study}.csv"
        return {
            "filename": name,
            "content": buffer.getvalue(),
            "command": f"mv ~/Downloads/{name} tests/data/ && {RUN}",
            "word": (
                f"{len(rows)} answers. In tests/data/ every line is a test of the scorer at once: it fails "
                "until lib/scoring.py gives the answer the label that you gave it."
            ),
        }


def check_label(label: object) -> None:
    if label not in LABELS:
        raise BadParameter(
            f"an answer cannot be labelled {label!r}; labels are {', '.join(LABELS)}"
            f"{config.suggest_animal(str(label))}"
        )


def printable(text: str) -> str:
    """The text as a file in UTF-8 can hold it: half a character becomes the sign for an unknown one."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def describe(mark: Mapping[str, Any]) -> str:
    """What stands beside a case: the reader's own words, or where the answer came from."""
    place = f"{mark['label']}/{mark['animal']}/s{mark['seed']} epoch {mark['epoch']}"
    return printable(str(mark["note"])) or f"marked in {place}: scored {mark['said']}"


def find_exported(folder: Path) -> list[Path]:
    """The exported files among the cases of the tests."""
    return sorted(folder.glob("marked-*.csv"))
