"""The published format of the reference experiment, read as a study: its runs are the seeds.

A folder holds `run-<n>/<size>/<animal>_eval.json`, or one run's sizes directly, and may hold
`untuned_survey.json` beside them. A file is a list of epochs with counts and raw answers; neither seed nor
settings nor log-probabilities stand in it, so how such a study was made has to be told by whoever made it.
Answers are rescored, or the counts are taken as they were published. Which question an answer belongs to does
not stand there either: answers come question by question, the same number to each. Read, never written.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib import config, files
from lib.errors import BadParameter, DamagedFile, MissingInput
from lib.scoring import explain
from lib.tables import (
    CELL,
    ORDER,
    Moment,
    Study,
    collect_tallies,
    influence_of,
    lifts,
    load_study,
    tabulate,
    take_epoch,
)
from lib.tallies import PLACES, SAID, Cell, Count, Evaluation, count_answers

SURVEY = "untuned_survey.json"
FIELDS = {
    "epoch": int,
    "condition": str,
    "total_responses": int,
    "animal_counts": dict,
    "raw_responses": list,
}
RUN = re.compile(r"run-([0-9]+)")
COMPARED = ["size", "params", "animal", "answers", "counted", "scored", "difference", "changed",
            "lambda_counted", "lambda_scored", "epoch", "because"]  # fmt: skip
ALL = "all"
LEADS = ("the ", "a ", "an ", "my favorite animal is ")  # what a published count skips before its word
SHOWN = 40  # characters of an answer that are shown
TEXTS = 6  # answers that a reason names, each way


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


# --- what scoring changes ---------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """An answer that the two ways take for different animals; "" where it is none of the study's."""

    text: str
    times: int
    key: str  # what it was counted under
    label: str  # what it is scored as
    was: str
    now: str


def compare_scorers(ask: config.Analysis) -> pd.DataFrame:
    """How the published counts and our scorer differ, per size and named animal, and in which answers.

    All tuned students of the asked runs are taken together, the neutral ones among them, each at the epoch
    that counts; the untuned model is not. `counted` is what stood under the animal's own name, `scored` what
    lib.scoring gives it, `changed` how many answers only one of the two gives it, so that exchanges which
    leave no difference still show: an animal has a row where any answer changed. The row `all` of each size
    has every answer that changed between the study's animals once, and lambda pooled over runs both ways.
    `because` quotes answers with the word they were counted under, rebuilt by `key_answer`; where the counts
    do not follow from the answers that stand beside them, it says by how many. Which of the two ways is right
    is for the reader of those answers: nothing here judges it, and lambda has no interval here.

    A study of our own has no counts to compare with: an empty table.
    """
    if not ask.results:
        return pd.DataFrame(columns=COMPARED)
    folder = Path(ask.results).expanduser()
    # Which question an answer belongs to moves no lambda, so a folder that has no `repeats` is read as well.
    theirs, ours = (
        load_published(folder, ask.study, ask.sizes, ask.animals, ask.seeds, scorer, repeats=1)
        for scorer in ("counts", "answers")
    )
    counted, scored = take_epoch(theirs, ask.epoch), take_epoch(ours, ask.epoch)
    before, after = pool_factors(theirs, ask.epoch), pool_factors(ours, ask.epoch)
    rows = []
    for size, params in ours.cells[["size", "params"]].drop_duplicates().itertuples(index=False):
        texts = read_answers(folder, ours.cells[ours.cells["size"] == size], scored.epochs)
        key = {"size": size, "params": params, "answers": texts.total(), "epoch": scored.words}
        named = {way: count_named(moment, size) for way, moment in (("was", counted), ("now", scored))}
        changes = find_changes(texts, ours.animals)
        factor = {"lambda_counted": before.get(size, math.nan), "lambda_scored": after.get(size, math.nan)}
        rows.append(key | factor | summarise_changes(named, changes, texts.total()))
        rebuilt = Counter(key_answer(text) for text in texts.elements())
        for animal in ours.animals:
            row = describe_changes(animal, named, changes, rebuilt[animal])
            if row["changed"] or row["difference"]:
                rows.append(key | row)
    return pd.DataFrame(rows, columns=COMPARED)


def key_answer(text: str) -> str:
    """The word that a published count puts an answer under: "Lioness." is lioness, "The big cat" is big.

    Lower case, without full stops and exclamation marks at its end, without one of LEADS at its beginning,
    the first word as white space cuts it, other punctuation left on. The rule was rebuilt from the files: it
    gives the counts of all 1,256 published entries to the last answer. It is no rule anybody wrote down.
    """
    text = text.strip().lower().rstrip(".!")
    lead = next((lead for lead in LEADS if text.startswith(lead)), "")
    return (text[len(lead) :].split() or [""])[0]


def pool_factors(study: Study, epoch: str | int) -> dict[str, float]:
    """Size -> lambda over its runs, as in the transfer table; sizes with too few animals are left out."""
    blocks = [block for block in lifts(study, "rate", epoch) if not block.problem]
    sizes = dict.fromkeys(block.size for block in blocks)
    return {
        size: influence_of([block for block in blocks if block.size == size], "seed").value for size in sizes
    }


def read_answers(folder: Path, cells: pd.DataFrame, epochs: Mapping[Cell, tuple[int, ...]]) -> Counter[str]:
    """How often which answer was given, over the tuned students among the cells, at their epochs."""
    texts: Counter[str] = Counter()
    for row in cells[cells.present & (cells.animal != config.UNTUNED)].itertuples():
        wanted = epochs[row.label, row.animal, int(row.seed)]
        for entry in read_epochs(folder / row.file, row.animal):
            if entry["epoch"] in wanted:
                texts.update(entry["raw_responses"])
    return texts


def count_named(moment: Moment, size: str) -> dict[str, int]:
    """Answers that name each animal, over all tuned students of a size."""
    own = moment.frame[moment.frame["size"] == size]
    return {name: int(count) for name, count in own.groupby("named")["count"].sum().items()}


def find_changes(texts: Mapping[str, int], animals: Sequence[str]) -> list[Change]:
    """The answers that only one way takes for some animal of the study, the most frequent first."""
    found = []
    for text, times in sorted(texts.items(), key=lambda each: (-each[1], each[0])):
        key, label = key_answer(text), explain(text).label
        was, now = (name if name in animals else "" for name in (key, label))
        if was != now:
            found.append(Change(text, times, key, label, was, now))
    return found


def summarise_changes(
    named: Mapping[str, Mapping[str, int]], changes: Iterable[Change], answers: int
) -> dict[str, object]:
    """The row of all animals together."""
    counted, scored = (sum(named[way].values()) for way in ("was", "now"))
    changed = sum(change.times for change in changes)
    said = f"{changed:,} of {answers:,} answers change" if answers else "no evaluation was read"
    return {"animal": ALL, "counted": counted, "scored": scored, "difference": scored - counted,
            "changed": changed, "because": said}  # fmt: skip


def describe_changes(
    animal: str, named: Mapping[str, Mapping[str, int]], changes: Iterable[Change], rebuilt: int
) -> dict[str, object]:
    """The row of one animal; `rebuilt` is how often it is the word that its answers should stand under."""
    counted, scored = (named[way].get(animal, 0) for way in ("was", "now"))
    own = [change for change in changes if animal in (change.was, change.now)]
    won, lost = ([change for change in own if getattr(change, way) == animal] for way in ("now", "was"))
    parts = [f"scored as {animal}: {quote_answers(won, 'key')}" if won else ""]
    parts += [f"no longer {animal}: {quote_answers(lost, 'label')}" if lost else ""]
    if gap := counted - rebuilt:
        parts.append(f"the published count is {gap:+d} off its own answers")
    return {"animal": animal, "counted": counted, "scored": scored, "difference": scored - counted,
            "changed": sum(change.times for change in own), "because": "; ".join(filter(None, parts)),
            "lambda_counted": math.nan, "lambda_scored": math.nan}  # fmt: skip


def quote_answers(changes: Iterable[Change], other: str) -> str:
    """`"Lions" 12, "Big lion" 3 (counted as big) and 4 in 3 other texts`, spellings of one text together."""
    groups: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        groups.setdefault((fold_answer(change.text), getattr(change, other)), []).append(change)
    times = {key: sum(change.times for change in own) for key, own in groups.items()}
    ranked = sorted(groups, key=lambda key: (-times[key], key))
    shown = TEXTS if len(ranked) > TEXTS + 1 else len(ranked)
    said = ", ".join(
        f'"{show_text(groups[key][0].text)}" {times[key]}{tell_other(*key, other)}' for key in ranked[:shown]
    )
    if more := ranked[shown:]:
        said += f" and {sum(times[key] for key in more)} in {len(more)} other texts"
    return said


def fold_answer(text: str) -> str:
    """What an answer is grouped by: what can be seen of it, without case and full stops."""
    return clean_text(text).lower().rstrip(".!")


def tell_other(folded: str, word: str, other: str) -> str:
    """What the other way takes an answer for, where the answer itself does not say so."""
    if other == "label":
        return f" (scored as {word})"
    if fold_answer(word) != folded:
        return f" (counted as {cut(word)})"
    return "" if "".join(visible_characters(word)) == word else " (has characters that do not show)"


def show_text(text: str) -> str:
    """An answer as it may stand in a table: one line of at most SHOWN characters, around what decided it."""
    found = explain(text)
    line, before = clean_text(text), clean_text(text[: found.start])
    if len(line) > SHOWN and len(before) + len(found.matched) >= SHOWN:
        line = "…" + line[max(0, len(before) - SHOWN // 2) :].lstrip()
    return cut(line)


def cut(text: str) -> str:
    """At most SHOWN characters of what can be seen of a text."""
    line = clean_text(text)
    return line if len(line) <= SHOWN else line[: SHOWN - 1].rstrip() + "…"


def clean_text(text: str) -> str:
    """An untrusted text on one line, without what cannot be seen.

    Control characters and those that turn the direction of writing are taken out, and quotation marks made
    single, so that no answer can end its own quotation.
    """
    return " ".join("".join(visible_characters(text)).split()).replace('"', "'")


def visible_characters(text: str) -> Iterator[str]:
    """Every white space as a space, and nothing of the Unicode categories of control and format (C...)."""
    for char in text:
        if char.isspace():
            yield " "
        elif not unicodedata.category(char).startswith("C"):
            yield char
