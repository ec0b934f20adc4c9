"""The published format of the reference experiment, read as a study: its runs are the seeds.

A folder holds `run-<n>/<size>/<animal>_eval.json`, or one run's sizes directly, and may hold
`untuned_survey.json` beside them. A file is a list of epochs with counts and raw answers; neither seed nor
settings nor log-probabilities stand in it, so how such a study was made has to be told by whoever made it.
Answers are rescored, or the counts are taken as they were published. Which question an answer belongs to does
not stand there either: answers come question by question, the same number to each. Read, never written.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib import config, files
from lib.errors import BadParameter, DamagedFile, MissingInput
from lib.tables import CELL, ORDER, Study, collect_tallies, load_study, tabulate
from lib.tallies import PLACES, SAID, Count, Evaluation, count_answers

SURVEY = "untuned_survey.json"
FIELDS = {
    "epoch": int,
    "condition": str,
    "total_responses": int,
    "animal_counts": dict,
    "raw_responses": list,
}
RUN = re.compile(r"run-([0-9]+)")


def load_results(ask: config.Analysis) -> Study:
    """What an analysis asks for: a study's own evaluations, or a folder in the published format."""
    if not ask.results:
        return load_study(ask.study, ask.sizes, ask.animals, ask.seeds)
    folder = Path(ask.results).expanduser()
    return load_published(folder, ask.study, ask.sizes, ask.animals, ask.seeds, ask.scorer, ask.repeats)


def load_published(
    folder: Path,
    name: str,
    sizes: str,
    animals: str,
    seeds: str | int,
    scorer: str = "answers",
    repeats: int = 5,
) -> Study:
    """Every evaluation of the asked grid; `seeds` are numbers of runs, `scorer` is `answers` or `counts`.

    `repeats` answers in a row belong to one question, and that the questions came in the same order in every
    file is taken on trust. With `counts` questions are unknown.
    """
    if not folder.is_dir():
        raise MissingInput(f"there is no folder {folder}; -p results names one with run-0, run-1 ... in it")
    if scorer not in config.SCORERS:
        raise BadParameter(f"scorer {scorer!r}: choose one of {', '.join(config.SCORERS)}")
    named = set(config.expand_animals(animals, "grid")) - {config.NEUTRAL, config.UNTUNED}
    students = tuple(sorted(named, key=ORDER.__getitem__))
    runs = find_runs(folder)
    asked = config.expand_seeds(seeds, seeds)
    if not set(asked) & set(runs):
        raise MissingInput(
            f"{folder} holds runs {', '.join(map(str, sorted(runs))) or 'none'}; asked for {seeds}: "
            "the numbers of runs are given as -p seeds"
        )
    rows, found = [], []
    for base in config.expand_sizes(sizes):
        key = (base.size.name, base.size.params, base.index, base.label)
        for run in asked:
            for animal in (config.NEUTRAL, *students):
                path = runs.get(run, folder / f"run-{run}") / base.label / f"{animal}_eval.json"
                rows.append((*key, animal, run, path.relative_to(folder).as_posix(), True, path.exists()))
                if path.exists():
                    counts = [count_entry(each, path, scorer, repeats) for each in read_epochs(path, animal)]
                    found.append(Evaluation((base.label, animal, run), files.hash_file(path), tuple(counts)))
        path = folder / SURVEY
        survey = find_survey(path, base)
        rows.append((*key, config.UNTUNED, 0, SURVEY, True, survey is not None))
        if survey:
            count = count_entry(survey | {"epoch": 0}, path, scorer, repeats)
            found.append(Evaluation((base.label, config.UNTUNED, 0), files.hash_file(path), (count,)))
    if not found:
        raise MissingInput(f"{folder} holds no evaluation of {sizes} in runs {seeds}")
    cells = pd.DataFrame(rows, columns=[*CELL, "file", "asked", "present"])
    sealed = {each.cell: each.content for each in found}
    keys = zip(cells.label, cells.animal, cells.seed, strict=True)
    cells["content"] = [sealed.get(key, "") for key in keys]
    cells = cells.sort_values(["params", "base"], kind="stable", ignore_index=True)
    return Study(name, students, *tabulate(found, students), cells, collect_tallies(found, students))


def find_runs(folder: Path) -> dict[int, Path]:
    """Number of a run -> its folder; a folder without run-<n> is a run of its own, number 0."""
    numbered = {path: RUN.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()}
    runs = {int(match[1]): path for path, match in numbered.items() if match}
    return runs or ({0: folder} if any(folder.glob("*/*_eval.json")) else {})


def read_epochs(path: Path, animal: str) -> list[dict[str, Any]]:
    """The epochs of one file, each whole and of the animal that its name says."""
    document = files.read_json(path)
    if not isinstance(document, list) or not document:
        raise DamagedFile(f"{path} is no list of epochs, as published evaluations are")
    for entry in document:
        check_entry(entry, path)
        if entry["condition"] != animal:
            raise DamagedFile(f"{path} holds {entry['condition']!r}, its name says {animal!r}")
    epochs = [entry["epoch"] for entry in document]
    if len(set(epochs)) < len(epochs):
        raise DamagedFile(f"{path} holds an epoch twice: {epochs}")
    return document


def check_entry(entry: Any, path: Path) -> None:
    """The parts that are read are there and fit together."""
    for name, kind in FIELDS.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
            raise DamagedFile(f"{path}: an entry lacks {name!r}, or it is no {kind.__name__}")
    total, counts, texts = entry["total_responses"], entry["animal_counts"], entry["raw_responses"]
    if total < 1 or total != len(texts) or not all(isinstance(text, str) for text in texts):
        raise DamagedFile(f"{path}: total_responses is {total}, but there are {len(texts)} raw_responses")
    if not all(isinstance(count, int) and 0 <= count <= total for count in counts.values()):
        raise DamagedFile(f"{path}: a count in animal_counts is no number of answers up to {total}")


def find_survey(path: Path, base: config.Base) -> dict[str, Any] | None:
    """What the untuned model of a size answered, if the survey has it."""
    if not path.exists():
        return None
    for entry in files.read_json(path):
        if str(entry.get("model_size", "")).lower() == base.label:
            check_entry(entry | {"epoch": 0, "condition": config.UNTUNED}, path)
            return entry
    return None


def count_entry(entry: dict[str, Any], path: Path, scorer: str, repeats: int) -> Count:
    """One epoch: scored by question, or as its authors counted, every animal under its own name alone."""
    total = entry["total_responses"]
    if scorer == "counts":
        said = np.zeros((1, len(SAID)), dtype=np.int32)
        for name in config.LEXICON:
            said[0, PLACES[name]] = entry["animal_counts"].get(name, 0)
        said[0, PLACES["other"]] = total - said.sum()
        return Count(entry["epoch"], said)
    if total % repeats:
        raise BadParameter(
            f"{path}: {total} answers are no multiple of repeats {repeats}: -p repeats is the number of "
            "answers to each question, which stand one after another (1: every answer its own question)"
        )
    questions = [at // repeats for at in range(total)]
    return Count(entry["epoch"], count_answers(questions, entry["raw_responses"], total // repeats))
