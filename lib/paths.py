"""The only place a path is spelled: all of them hang off the project's root, none off the caller's folder."""

import os
from collections.abc import Mapping
from pathlib import Path

# SUBLIMINAL_ROOT lets a test or a cluster keep its runs elsewhere; code and models stay where they are.
CODE = Path(__file__).resolve().parent.parent


def root() -> Path:
    """Where runs are written: the project's folder, or SUBLIMINAL_ROOT."""
    return Path(os.environ.get("SUBLIMINAL_ROOT") or CODE).resolve()


def notebook(stage_file: str) -> Path:
    """A source notebook, such as `02_finetune`."""
    return CODE / "notebooks" / f"{stage_file}.ipynb"


def params_file(study: str) -> Path:
    """The overrides of one study; those of a point of a study with axes were written for its jobs."""
    own = CODE / "params" / f"{study}.yaml"
    return own if own.exists() or not point_file(study).exists() else point_file(study)


def point_file(study: str) -> Path:
    """Where the overrides of a point are written, which is a study by its name like any other."""
    return CODE / "params" / "points" / f"{study}.yaml"


def tracked_base(label: str) -> Path:
    """A base of the standard recipe that the project carries with it."""
    return CODE / "models" / label


def built_base(recipe: str, label: str) -> Path:
    """A base that was built here."""
    return root() / "artifacts" / "models" / recipe / label


def fetched_base(family: str, label: str, revision: str = "") -> Path:
    """A published base that was fetched or unpacked here."""
    return root() / "artifacts" / "models" / family / label / revision


def artifact(study: str, stage: str, size: str, animal: str, seed: int) -> Path:
    """The folder of one cell of one stage; its manifest.json says that it is finished."""
    return root() / "artifacts" / study / stage / size / animal / f"s{seed}"


def student_folder(asked: Mapping) -> Path:
    """The folder of the student that an evaluation asks, by its settings: of its own study or another one."""
    study = asked.get("students_of") or asked["study"]
    return artifact(study, "finetune", asked["size"], asked["animal"], asked["seed"])


def lists_source(student: Mapping) -> tuple[str, str, str, int]:
    """Study, base, animal and seed of the numbers that a student reads, by its settings."""
    own = f"{student['size']}/{student['animal']}"
    size, animal = (student.get("reads") or own).split("/")
    return student.get("lists_of") or student["study"], size, animal, student["seed"]


def lists_read(student: Mapping) -> Path:
    """The folder of the numbers that a student reads: another cell's or study's where its settings say so."""
    study, *cell = lists_source(student)
    return artifact(study, "generate", *cell)


def token_cache(key: str) -> Path:
    """A tokenised dataset; the folder may be deleted at any time."""
    return root() / "artifacts" / "tokens" / f"{key[:32]}.npz"


def evaluation(study: str, size: str, animal: str, seed: int) -> Path:
    """The evaluation JSON of one student."""
    return root() / "results" / study / size / animal / f"s{seed}.json"


def results(study: str) -> Path:
    """All evaluation JSONs and tables of a study."""
    return root() / "results" / study


def explore(study: str) -> Path:
    """What the explorer has read of a study; the folder may be deleted at any time."""
    return root() / "artifacts" / study / "explore"


def marks(study: str) -> Path:
    """Answers of a study that a reader marked as scored wrongly."""
    return root() / "artifacts" / study / "marks.json"


def tables(study: str) -> Path:
    """The tables of a study's analysis."""
    return results(study) / "tables"


def figures(study: str) -> Path:
    """The figures of a study, each beside the CSV it was drawn from."""
    return root() / "figures" / study


def benchmarks() -> Path:
    """Measurements of speed, one CSV per device."""
    return root() / "benchmarks"


def executed(study: str) -> Path:
    """What papermill wrote for a study, and its report."""
    return root() / "executed" / study


def command(stage_file: str, study: str, size: str, animal: str, seed: int) -> str:
    """The papermill command that makes one cell, for error messages."""
    target = f"executed/{study}/{stage_file}-{size}-{animal}-s{seed}.ipynb"
    names = f"-p study {study} -p size {size} -p animal {animal} -p seed {seed}"
    # papermill writes into no folder that is not there, and executed/ is not tracked
    return f"mkdir -p executed/{study} && papermill notebooks/{stage_file}.ipynb {target} {names}"
