"""The published format of the reference experiment, read as a study: its runs are the seeds.

A folder holds `run-<n>/<size>/<animal>_eval.json`, or one run's sizes directly, and may hold
`untuned_survey.json` beside them. A file is a list of epochs with counts and raw answers; neither seed nor
settings nor log-probabilities stand in it, so how such a study was made has to be told by whoever made it.
Answers are rescored, or the counts are taken as they were published. Read, never written.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lib import config, files
from lib.errors import BadParameter, DamagedFile, MissingInput
from lib.scoring import score
from lib.tables import CELL, ORDER, Study, arrange, load_study

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
    return load_published(folder, ask.study, ask.sizes, ask.animals, ask.seeds, ask.scorer)


def load_published(
    folder: Path, name: str, sizes: str, animals: str, seeds: str | int, scorer: str = "answers"
) -> Study:
    """Every evaluation of the asked grid; `seeds` are numbers of runs, `scorer` is `answers` or `counts`."""
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
    rows, frame, answers = [], [], []
    for base in config.expand_sizes(sizes):
        key = (base.size.name, base.size.params, base.index, base.label)
        for run in asked:
            for animal in (config.NEUTRAL, *students):
                path = runs.get(run, folder / f"run-{run}") / base.label / f"{animal}_eval.json"
                rows.append((*key, animal, run, path.relative_to(folder).as_posix(), True, path.exists(), ""))
                for entry in read_epochs(path, animal) if path.exists() else ():
                    tabulate((*key, animal, run), entry, students, scorer, frame, answers)
        survey = find_survey(folder / SURVEY, base)
        rows.append((*key, config.UNTUNED, 0, SURVEY, True, survey is not None, ""))
        if survey:
            tabulate((*key, config.UNTUNED, 0), survey | {"epoch": 0}, students, scorer, frame, answers)
    if not frame:
        raise MissingInput(f"{folder} holds no evaluation of {sizes} in runs {seeds}")
    cells = pd.DataFrame(rows, columns=[*CELL, "file", "asked", "present", "content"])
    for at, row in cells[cells.present].iterrows():
        cells.loc[at, "content"] = files.hash_file(folder / row.file)
    return Study(
        name,
        students,
        arrange(frame, [*CELL, "epoch", "named", "count", "n_answers", "rate", "logprob"]),
        arrange(answers, [*CELL, "epoch", "said", "count", "n_answers", "share"]),
        cells.sort_values(["params", "base"], kind="stable", ignore_index=True),
    )


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


def tabulate(
    cell: tuple, entry: dict[str, Any], students: Sequence[str], scorer: str, frame: list, answers: list
) -> None:
    """Add one epoch of one student to the rows of both frames."""
    said = count_said(entry, scorer)
    total, key = entry["total_responses"], (*cell, entry["epoch"])
    frame += [(*key, name, said[name], total, said[name] / total, float("nan")) for name in students]
    answers += [(*key, name, count, total, count / total) for name, count in said.items() if count]


def count_said(entry: dict[str, Any], scorer: str) -> Counter[str]:
    """How often each animal was said: by our scorer, or as it was published, under its own name alone."""
    if scorer == "answers":
        return Counter(score(text) for text in entry["raw_responses"])
    known = {name: entry["animal_counts"].get(name, 0) for name in config.LEXICON}
    return Counter(known | {"other": entry["total_responses"] - sum(known.values())})
