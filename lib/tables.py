"""From a study's evaluation JSONs to tidy frames, and from those to the tables of the analysis.

Answers are scored here, on load. A file that does not belong (other settings, another base, an adapter
retrained since) stops the analysis; a cell that is missing is listed, and never filled in. No drawing.
"""

import dataclasses
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lib import config, files, paths, spread, stats, store
from lib.errors import BadParameter, BrokenLineage, MissingInput
from lib.tallies import SAID, Cell, Evaluation, Tally, count_evaluation, count_evaluations

MEASURES = ("logprob", "rate")
UNITS = {"logprob": "nats", "rate": "percentage points"}
FACTORS = {"logprob": 1, "rate": 100}  # from the frame's numbers to those units
CELL = ["size", "params", "base", "label", "animal", "seed"]
ORDER = {name: at for at, name in enumerate((config.UNTUNED, config.NEUTRAL, *SAID))}
EACH = "each"  # every student's own last epoch


@dataclass(frozen=True)
class Study:
    """A study as read from its files: one row per cell, epoch and named animal in `frame`.

    `tallies` hold the same numbers question by question, by (label, animal, seed, epoch), the untuned model
    at epoch 0; their columns are `names`. Where questions are unknown, a tally has one row for all of them.
    """

    name: str
    animals: tuple[str, ...]
    frame: pd.DataFrame  # CELL, epoch, named, count, n_answers, rate, logprob
    answers: pd.DataFrame  # CELL, epoch, said (an animal, other or none), count, n_answers, share
    cells: pd.DataFrame  # CELL, file, asked, present, content (what lib.store sealed)
    tallies: Mapping[tuple[str, str, int, int], Tally] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The animals that columns of tallies and cubes stand for."""
        return self.animals

    @property
    def missing(self) -> pd.DataFrame:
        """Cells that were asked for and have no evaluation."""
        return self.cells[self.cells.asked & ~self.cells.present].drop(
            columns=["asked", "present", "content"]
        )


# --- reading ----------------------------------------------------------------------------------


def load_study(study: str, sizes: str, animals: str, seeds: str | int) -> Study:
    """Read every evaluation of the asked grid; the controls (neutral, untuned) always belong to it."""
    bases = config.expand_sizes(sizes)
    named = set(config.expand_animals(animals, "grid")) - {config.NEUTRAL, config.UNTUNED}
    students = tuple(sorted(named, key=ORDER.__getitem__))
    if not students:
        raise BadParameter(f"animals {animals!r} names no animal, only controls; name at least three")
    cells = list_cells(study, bases, students, config.expand_seeds(seeds, seeds))
    evaluations = count_evaluations(study, present_cells(study, cells))
    if not evaluations:
        raise MissingInput(
            f"no evaluation of {sizes} in study {study}: run 03_evaluate with these parameters first "
            f"(papermill notebooks/03_evaluate.ipynb -p study {study} -p size {bases[0].label} -p animal all)"
        )
    check_company(evaluations)
    # By the plain name, wherever it lies: tables do not depend on who packed what.
    plain = {files.plain_name(path).relative_to(paths.root()): each for path, each in evaluations.items()}
    sealed = {path.as_posix(): each.content for path, each in plain.items()}
    cells["content"] = cells.file.map(sealed).fillna("")
    return Study(
        study,
        students,
        *tabulate(evaluations.values(), students),
        cells,
        collect_tallies(evaluations.values(), students),
    )


def list_cells(
    study: str, bases: Iterable[config.Base], students: Sequence[str], seeds: Sequence[int]
) -> pd.DataFrame:
    """The asked grid with its controls, and files of the same sizes that nobody asked for."""
    rows = []
    for base in bases:
        asked = {(config.UNTUNED, 0)} | {(a, s) for a in (config.NEUTRAL, *students) for s in seeds}
        there = set(find_cells(study, base.label))
        for animal, seed in sorted(asked | there, key=lambda cell: (ORDER[cell[0]], cell[1])):
            file = paths.evaluation(study, base.label, animal, seed).relative_to(paths.root()).as_posix()
            key = (base.size.name, base.size.params, base.index, base.label, animal, seed)
            rows.append((*key, file, (animal, seed) in asked, (animal, seed) in there))
    cells = pd.DataFrame(rows, columns=[*CELL, "file", "asked", "present"])
    return cells.sort_values(["params", "base"], kind="stable", ignore_index=True)


def find_cells(study: str, label: str) -> list[tuple[str, int]]:
    """(animal, seed) of every evaluation file of one base."""
    found = files.list_documents(paths.results(study) / label, "*/s*.json")
    pairs = [(path.parent.name, path.stem[1:]) for path in found if path.parent.name in ORDER]
    return [(animal, int(seed)) for animal, seed in pairs if seed.isdecimal()]


def present_cells(study: str, cells: pd.DataFrame) -> list[tuple[Path, Cell]]:
    """Path and (label, animal, seed) of the cells that were asked for and are there, packed or not."""
    wanted = cells[cells.asked & cells.present]
    keys = zip(wanted.label, wanted.animal, (int(seed) for seed in wanted.seed), strict=True)
    return [(files.find_document(paths.evaluation(study, *key)), key) for key in keys]


def check_company(evaluations: Mapping[Path, Evaluation]) -> None:
    """Cells of one label share their base, cells of one size every setting but animal and seed."""
    bases: dict[str, tuple[Path, dict]] = {}
    settings: dict[tuple[str, str], tuple[Path, dict]] = {}
    for path, each in evaluations.items():
        label, base = each.cell[0], {"identity": each.base}
        compare(path, base, bases.setdefault(label, (path, base)), "base model")
        for stage, values in (each.settings or {}).items():
            key = (config.parse_label(label).size.name, stage)
            compare(path, values, settings.setdefault(key, (path, values)), f"{stage} settings")


def compare(path: Path, values: dict, reference: tuple[Path, dict], what: str) -> None:
    """Refuse two files that do not belong together, naming both and every difference."""
    first, expected = reference
    keys = sorted(k for k in expected.keys() | values.keys() if expected.get(k) != values.get(k))
    if keys:
        lines = "; ".join(f"{k}: {expected.get(k)!r} there, {values.get(k)!r} here" for k in keys)
        raise BrokenLineage(
            f"{first} and {path} do not belong to one study, their {what} differs ({lines}): "
            "rerun the older one, or keep them under two study names"
        )


def tabulate(evaluations: Iterable[Evaluation], students: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rates of all counts and means of all log-probabilities: the two frames of a study."""
    frame, answers = [], []
    for each in evaluations:
        base = config.parse_label(each.cell[0])
        for count in each.counts:
            key = (base.size.name, base.size.params, base.index, *each.cell, count.epoch)
            said = dict(zip(SAID, count.said.sum(0).tolist(), strict=True))
            total = sum(said.values())
            means = count.logprobs.mean(0).tolist() if count.logprobs is not None else []
            logprobs = dict(zip(count.animals, means, strict=True))
            for name in sorted({*students, *logprobs}, key=ORDER.__getitem__):
                n = said.get(name, 0)
                rate = n / total if total else math.nan
                frame.append((*key, name, n, total, rate, logprobs.get(name, math.nan)))
            answers += [(*key, name, n, total, n / total) for name, n in said.items() if n]
    return (
        arrange(frame, [*CELL, "epoch", "named", "count", "n_answers", "rate", "logprob"]),
        arrange(answers, [*CELL, "epoch", "said", "count", "n_answers", "share"]),
    )


def collect_tallies(
    evaluations: Iterable[Evaluation], students: Sequence[str]
) -> dict[tuple[str, str, int, int], Tally]:
    """Every count for the study's animals alone, by (label, animal, seed, epoch)."""
    return {(*each.cell, count.epoch): count.tally(students) for each in evaluations for count in each.counts}


def arrange(rows: list[tuple], columns: list[str]) -> pd.DataFrame:
    """A frame in the order of size, base, animal, seed, epoch and named animal, whatever came first."""
    frame = pd.DataFrame(rows, columns=columns)
    ranked = ["params", "base", "animal", "seed", "epoch", columns[len(CELL) + 1]]
    return frame.sort_values(
        ranked, key=lambda c: c.map(ORDER) if c.dtype.kind not in "iuf" else c, ignore_index=True
    )


# --- epochs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """A study at the epoch that was asked for: every student once, as in the frames but for their `epoch`.

    Over a window of epochs a log-probability is the mean over them, and a rate is that of all their answers
    taken together: the mean of the rates where all epochs have as many answers, as the stages write them.
    """

    words: int | str  # as it is written in tables: 10, 8-10 or each
    frame: pd.DataFrame  # as Study.frame, of tuned students
    answers: pd.DataFrame  # as Study.answers, of tuned students
    tallies: dict[Cell, Tally]
    epochs: dict[Cell, tuple[int, ...]]  # where each student's numbers come from


def take_epoch(study: Study, epoch: str | int) -> Moment:
    """The study at `last`, at a number, over a window such as `8-10`, or at each student's own last epoch."""
    words, epochs = choose_epochs(study, epoch)
    tallies = {
        student: merge_tallies([study.tallies[*student, at] for at in own])
        for student, own in epochs.items()
        if all((*student, at) in study.tallies for at in own)
    }
    frame, answers = (pick_rows(table, epochs) for table in (study.frame, study.answers))
    if max(map(len, epochs.values())) > 1:
        frame = average_frame(frame)
        answers = average_answers(answers, frame)
    return Moment(words, frame, answers, tallies, epochs)


def choose_epochs(study: Study, epoch: str | int) -> tuple[int | str, dict[Cell, tuple[int, ...]]]:
    """What was asked for in words, and the epochs that it means for each student."""
    has = student_epochs(study)
    if str(epoch) == EACH:
        return EACH, {student: (max(own),) for student, own in has.items()}
    if window := re.fullmatch("([0-9]+)-([0-9]+)", str(epoch)):
        wanted = find_window(has, int(window[1]), int(window[2]))
        return str(epoch), dict.fromkeys(has, wanted)
    at = resolve_epoch(study, epoch)
    return at, dict.fromkeys(has, (at,))


def find_window(has: Mapping[Cell, set[int]], low: int, high: int) -> tuple[int, ...]:
    """The evaluated epochs between two numbers; a mean over some of them for some students is refused."""
    wanted = sorted({at for own in has.values() for at in own if low <= at <= high})
    if not wanted:
        known = ", ".join(map(str, sorted(set().union(*has.values()))))
        raise BadParameter(f"epoch '{low}-{high}': nobody was evaluated there; evaluated epochs are {known}")
    lacking = [
        f"{name_student(student)} lacks {' '.join(map(str, sorted(set(wanted) - own)))}"
        for student, own in has.items()
        if set(wanted) - own
    ]
    if lacking:
        raise BadParameter(
            f"epoch '{low}-{high}' is a mean over {', '.join(map(str, wanted))}, and not every student has "
            f"them: {list_some(lacking)}. Choose another window, or 'each' for every student's own last epoch"
        )
    return tuple(wanted)


def name_student(student: Cell) -> str:
    """`64k-1/cat/s0`."""
    label, animal, seed = student
    return f"{label}/{animal}/s{seed}"


def student_epochs(study: Study) -> dict[Cell, set[int]]:
    """The epochs that each student was evaluated at, the untuned model aside."""
    tuned = study.frame[study.frame.animal != config.UNTUNED]
    rows = tuned[["label", "animal", "seed", "epoch"]].drop_duplicates()
    has: dict[Cell, set[int]] = {}
    for label, animal, seed, epoch in rows.itertuples(index=False, name=None):
        has.setdefault((label, animal, int(seed)), set()).add(int(epoch))
    if not has:
        raise MissingInput(
            "only the untuned model was evaluated, and no student: run 02_finetune, 03_evaluate"
        )
    return has


def resolve_epoch(study: Study, epoch: str | int) -> int:
    """`last` is the last epoch that every student has; a number must be one that every student has."""
    common = common_epochs(study)
    if str(epoch) == "last":
        return common[-1]
    if str(epoch).isdecimal() and int(epoch) in common:
        return int(epoch)
    raise BadParameter(
        f"epoch {epoch!r} is not one that every student was evaluated at: 'last' or one of "
        f"{', '.join(map(str, common))} (curves over all epochs stand in epochs.csv)"
    )


def common_epochs(study: Study) -> list[int]:
    """The epochs that every student has been evaluated at."""
    has = student_epochs(study)
    common = sorted(set.intersection(*has.values()))
    if not common:
        raise MissingInput(
            f"no epoch was evaluated for every student{describe_nearest(has)}: rerun 03_evaluate, narrow the "
            "grid, or take each student's own last epoch (-p epoch each)"
        )
    return common


def describe_nearest(has: Mapping[Cell, set[int]]) -> str:
    """` (14b/eagle/s0 lacks 10)`: the epoch that most have, and who has it not."""
    tally = Counter(at for own in has.values() for at in own)
    most = max(tally, key=lambda at: (tally[at], at))
    without = [name_student(student) for student, own in has.items() if most not in own]
    return f" ({most} is lacked by {list_some(without)})"


def list_some(texts: Sequence[str], limit: int = 10) -> str:
    """The first few, and how many there are beside."""
    more = len(texts) - limit
    return "; ".join(texts[:limit]) + (f" and {more} more" if more > 0 else "")


def pick_rows(table: pd.DataFrame, epochs: Mapping[Cell, tuple[int, ...]]) -> pd.DataFrame:
    """The rows of each student's chosen epochs."""
    if len(shared := set(epochs.values())) == 1:  # the same for all
        return table[table.epoch.isin(shared.pop()) & (table.animal != config.UNTUNED)]
    chosen = {(*student, at) for student, own in epochs.items() for at in own}
    keys = zip(table.label, table.animal, table.seed, table.epoch, strict=True)
    return table[np.fromiter((key in chosen for key in keys), dtype=bool, count=len(table))]


def average_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per student and named animal over the epochs of a window; NaN if any of them has none."""
    grouped = frame.groupby([*CELL, "named"], sort=False)
    table = grouped[["count", "n_answers"]].sum()
    table["rate"] = table["count"] / table.n_answers.where(table.n_answers > 0)
    table["logprob"] = grouped.logprob.mean().where(grouped.logprob.count() == grouped.size())
    return table.reset_index()


def average_answers(answers: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """One row per student and thing said; shares of all answers of the window, epochs without it included."""
    table = answers.groupby([*CELL, "said"], sort=False)[["count"]].sum().reset_index()
    totals = frame.drop_duplicates(CELL)[[*CELL, "n_answers"]]
    table = table.merge(totals, on=CELL)
    table["share"] = table["count"] / table.n_answers
    return table


def merge_tallies(tallies: Sequence[Tally]) -> Tally:
    """Answers summed and log-probabilities averaged over epochs, question by question.

    Epochs that differ in their number of questions cannot be laid over one another: one row for all.
    """
    if len({len(each.said) for each in tallies}) > 1:
        tallies = [melt_questions(each) for each in tallies]
    return Tally(
        np.sum([each.said for each in tallies], 0),
        np.sum([each.answers for each in tallies], 0),
        np.mean([each.logprob for each in tallies], 0),
    )


def melt_questions(tally: Tally) -> Tally:
    """The tally with its questions taken together."""
    return Tally(tally.said.sum(0)[None], tally.answers.sum()[None], tally.logprob.mean(0)[None])


# --- lifts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """The lifts of one (base, seed): students by named animals; `absent` animals could not take part.

    `wide` [questions, students, named] is the same question by question, in the measure's unit, over all
    `named` animals, those without a student of their own included: labels are permuted over these. It has
    one row where questions are unknown or differ between students. The mean over questions of `cube`, its
    part over the students' own animals, is `matrix`.
    `control` says whether the neutral student was there; without it the matrix holds preferences less their
    column means over the students present, which has the same lambda and is nobody's lift.
    """

    size: str
    params: int
    base: int
    label: str
    seed: int
    epoch: int | str
    measure: str
    matrix: pd.DataFrame
    absent: tuple[str, ...]
    problem: str = ""
    control: bool = True
    wide: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0)), repr=False, compare=False)
    named: tuple[str, ...] = ()
    epochs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of each student of the matrix

    @property
    def place(self) -> str:
        return f"{self.label}/s{self.seed}"

    @property
    def cube(self) -> np.ndarray:
        return self.wide[:, :, [self.named.index(name) for name in self.matrix.columns]]

    @property
    def sheet(self) -> stats.Sheet:
        """The block as the statistics want it."""
        return stats.Sheet(self.wide, tuple(self.matrix.index), self.named, self.label, self.seed)


def lifts(study: Study, measure: str, epoch: str | int) -> list[Block]:
    """Per (base, seed), each student's preference less that of the same seed's neutral student.

    `rate` in percentage points of the sampled answers, `logprob` in nats. A difference, never a ratio:
    an animal that the neutral student never says costs nothing. A block with fewer than three animals has
    an empty matrix and says why. One without its neutral student is whole all the same: what is subtracted
    from a column moves no lambda.
    """
    if measure not in MEASURES:
        raise BadParameter(f"measure {measure!r}: choose one of {', '.join(MEASURES)}")
    moment = take_epoch(study, epoch)
    groups = dict(list(moment.frame.groupby(["label", "seed"])))
    seeds = sorted(study.cells[study.cells.asked & (study.cells.animal == config.NEUTRAL)].seed.unique())
    labels = study.cells.drop_duplicates("label")
    blocks = []
    for row in labels.itertuples():
        for seed in map(int, seeds):
            group = groups.get((row.label, seed), moment.frame[:0])
            place = (row.size, int(row.params), int(row.base), row.label, seed, moment.words, measure)
            table, absent, problem, control = lift_matrix(group, study.animals, measure)
            members = {name: (row.label, name, seed) for name in (config.NEUTRAL, *table.index)}
            tallies = {name: moment.tallies.get(member) for name, member in members.items()}
            wide = lift_cube(table, control, measure, study.names, tallies)
            epochs = {name: moment.epochs[members[name]] for name in table.index}
            matrix = table[table.index]
            blocks.append(Block(*place, matrix, absent, problem, control, wide, tuple(table.columns), epochs))
    return blocks


def lift_matrix(
    group: pd.DataFrame, animals: Sequence[str], measure: str
) -> tuple[pd.DataFrame, tuple[str, ...], str, bool]:
    """Lifts of students whose animal is measured, for all measured ones; who is absent; why; control."""
    wide = group.pivot(index="animal", columns="named", values=measure)
    nothing = pd.DataFrame(dtype=float)
    control = config.NEUTRAL in wide.index
    if len(wide) and wide.isna().all(axis=None):
        return nothing, tuple(animals), f"no {measure} was evaluated", control
    measured = wide.columns[wide.notna().all()]
    usable = [animal for animal in animals if animal in wide.index and animal in measured]
    absent = tuple(animal for animal in animals if animal not in usable)
    if len(usable) < stats.MIN_ANIMALS:
        return nothing, absent, f"{len(usable)} animals, {stats.MIN_ANIMALS} needed", control
    named = [animal for animal in animals if animal in measured]
    values = wide.loc[usable, named]
    lift = values - (wide.loc[config.NEUTRAL, named] if control else values.mean())
    return lift * FACTORS[measure], absent, "", control


def lift_cube(
    matrix: pd.DataFrame,
    control: bool,
    measure: str,
    names: Sequence[str],
    tallies: Mapping[str, Tally | None],
) -> np.ndarray:
    """The lifts question by question, so that their mean is the matrix whatever the answers per question.

    A neutral student of other questions than the others' has no value of its own for each: its mean over
    questions is subtracted from all, as in the matrix.
    """
    found = [tallies[name] for name in matrix.index]
    columns = [names.index(name) for name in matrix.columns]
    spread = [spread_questions(each, columns, measure) for each in found if each is not None]
    if not spread or len(spread) < len(found) or len({len(each) for each in spread}) > 1:
        return matrix.to_numpy()[None]
    cube = np.stack(spread, axis=1)
    if not control:
        return cube - cube.mean(1, keepdims=True)
    neutral = tallies[config.NEUTRAL]
    if neutral is None:
        return matrix.to_numpy()[None]
    before = spread_questions(neutral, columns, measure)
    before = before if len(before) == len(cube) else before.mean(0, keepdims=True)
    return cube - before[:, None]


def spread_questions(tally: Tally, columns: Sequence[int], measure: str) -> np.ndarray:
    """A student's preferences by question, in the measure's unit; their mean is its preference over all.

    A rate counts every answer alike, so a question that was asked less often weighs less in it: its part is
    its count over the mean number of answers to a question, not over its own.
    """
    if measure == "logprob":
        return tally.logprob[:, columns]
    return FACTORS["rate"] * len(tally.said) * tally.said[:, columns] / tally.answers.sum()


# --- tables -----------------------------------------------------------------------------------


def transfer_table(study: Study, epoch: str | int, permutations: int, seed: int) -> pd.DataFrame:
    """One row per size and measure: lambda over bases and seeds, interval, permutation p, Holm over sizes."""
    return infer_groups(study, epoch, permutations, seed, ["size", "params"])


def base_table(study: Study, epoch: str | int, permutations: int, seed: int) -> pd.DataFrame:
    """The same for each base by itself, Holm over bases."""
    return infer_groups(study, epoch, permutations, seed, ["size", "params", "base", "label"])


def epochs_table(study: Study, permutations: int, seed: int) -> pd.DataFrame:
    """The transfer table at every epoch; Holm within an epoch, for which one counts is settled before.

    A student who was not evaluated at an epoch is absent from that epoch alone, and its note says so; a size
    of which nobody was has no row there.
    """
    parts = []
    for epoch in sorted(set().union(*student_epochs(study).values())):
        there = study.frame[(study.frame.epoch == epoch) & (study.frame.animal != config.UNTUNED)]
        part = transfer_table(dataclasses.replace(study, frame=there), epoch, permutations, seed)
        parts.append(part[part["size"].isin(set(there["size"]))])
    return pd.concat(parts, ignore_index=True)


def measures_of(study: Study) -> tuple[str, ...]:
    """The measures that any file of the study has; both where none has either, so that tables say so."""
    return tuple(name for name in MEASURES if study.frame[name].notna().any()) or MEASURES


def infer_groups(study: Study, epoch: str | int, permutations: int, seed: int, by: list[str]) -> pd.DataFrame:
    """Lambda, its interval and its test for every group of blocks and each measure that was evaluated.

    A measure that no file has makes no rows, for there is nothing to say of any size; notes name it.
    """
    parts = []
    measures = measures_of(study)
    unknown = [f"no {measure} was evaluated" for measure in MEASURES if measure not in measures]
    for measure in measures:
        blocks = lifts(study, measure, epoch)
        groups: dict[tuple, list[Block]] = {}
        for block in blocks:
            groups.setdefault(tuple(getattr(block, name) for name in by), []).append(block)
        units = find_units(groups.values())
        rows = [
            dict(zip(by, key, strict=True)) | infer(own, permutations, seed, units)
            for key, own in groups.items()
        ]
        part = pd.DataFrame(rows)
        part["note"] = ["; ".join(filter(None, [note, *unknown])) for note in part.note]
        part.insert(part.columns.get_loc("p") + 1, "p_adjusted", stats.adjust_holm(part.p))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class Units:
    """What is drawn at random beside the animals, and its spread by size, in lambda and in its part `own`."""

    name: str  # the column of a block: label (bases) or seed
    spreads: Mapping[str, stats.Spread | None] = field(default_factory=dict)
    own: Mapping[str, stats.Spread | None] = field(default_factory=dict)


def find_units(groups: Iterable[Sequence[Block]]) -> Units:
    """Bases where some group has several, else seeds.

    The spread between bases is each size's own as far as its bases can tell it, and for the rest what all
    sizes say (lib.spread). That between seeds is each group's own: two seeds of a base are no more than that.
    """
    used = [[block for block in group if not block.problem] for group in groups]
    if all(len({block.label for block in group}) < 2 for group in used):
        return Units("seed")
    spreads, own = (
        moderate_bases([group for group in kept if group], part)
        for part, kept in (("lambda", used), ("own", [[b for b in group if b.control] for group in used]))
    )
    return Units("label", spreads, own)


def moderate_bases(groups: Sequence[Sequence[Block]], part: str) -> dict[str, stats.Spread | None]:
    """The spread between the bases of every size, moderated over sizes."""
    found = spread.moderate_spreads([influence_of(group, "label", part) for group in groups])
    return {group[0].size: each for group, each in zip(groups, found, strict=True)}


def influence_of(used: Sequence[Block], unit: str, part: str = "lambda") -> stats.Influence:
    """What every animal, unit and question adds to lambda or to one of its parts."""
    return stats.measure_influence(
        [block.sheet for block in used], [getattr(block, unit) for block in used], part
    )


def infer(blocks: Sequence[Block], permutations: int, seed: int, units: Units) -> dict:
    """What a group of blocks says about lambda; NaN with a note where it can say nothing."""
    used = [block for block in blocks if not block.problem]
    first = blocks[0]
    return {
        "n_bases": len({block.label for block in used}),
        "n_students": sum(len(block.matrix) for block in used),
        "n_seeds": len({block.seed for block in used}),
        "n_animals": len({animal for block in used for animal in block.matrix.index}),
        **infer_factor(used, permutations, draws_of(first.measure, blocks, seed), units),
        **infer_own(used, units),
        "measure": first.measure,
        "epoch": first.epoch,
        "note": describe_group(blocks, used, units),
    }


def draws_of(measure: str, blocks: Sequence[Block], seed: int) -> np.random.Generator:
    """The draws of a group depend on its own name alone: adding a size changes no other size's p."""
    name = f"{measure} {' '.join(block.place for block in blocks)}"
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def infer_factor(
    used: Sequence[Block],
    permutations: int,
    rng: np.random.Generator,
    units: Units,
) -> dict[str, float]:
    """lambda with its interval and test; NaN for what too few animals cannot say."""
    result = dict.fromkeys(("lambda", "ci_low", "ci_high", "error", "freedom", "p", "z"), math.nan)
    if not used:
        return result
    influence = influence_of(used, units.name)
    sheets = [block.sheet for block in used]
    test = stats.permute_sheets(sheets, permutations, rng)
    result |= {"lambda": influence.value, "p": test.p, "z": test.z}
    if stats.speaks_of_others(sheets):
        reach = stats.interval_of(influence, units.spreads.get(used[0].size))
        result |= {
            "ci_low": reach.low,
            "ci_high": reach.high,
            "error": reach.error,
            "freedom": reach.freedom,
        }
    return result


def infer_own(used: Sequence[Block], units: Units) -> dict[str, float]:
    """lambda split: how much more students name the target, how much less everything else on average.

    Both are lifts over the neutral student, so blocks without one are left out; `own` + `rest` is lambda.
    `rest` has no interval: none was found that holds (it is lambda less own). `own` has none with fewer than
    stats.MIN_SPLIT animals: with five it held .974 of the time on the log-probability scale.
    """
    result = dict.fromkeys(("own", "own_low", "own_high", "rest"), math.nan)
    used = [block for block in used if block.control]
    if not used:
        return result
    own = influence_of(used, units.name, "own")
    result |= {"own": own.value, "rest": influence_of(used, units.name, "rest").value}
    if stats.speaks_of_others([block.sheet for block in used], stats.MIN_SPLIT):
        reach = stats.interval_of(own, units.own.get(used[0].size))
        result |= {"own_low": reach.low, "own_high": reach.high}
    return result


def describe_group(blocks: Sequence[Block], used: Sequence[Block], units: Units) -> str:
    """What a reader must know of a row: what is missing, and what the interval does not cover."""
    notes = [f"{block.place} left out: {block.problem}" for block in blocks if block.problem]
    notes += [f"{block.place} without {' '.join(block.absent)}" for block in used if block.absent]
    notes += [
        f"{block.place} has no neutral student: lambda needs none, own and other lifts are unknown"
        for block in used
        if not block.control
    ]
    notes += describe_epochs(used)
    animals = {animal for block in used for animal in block.matrix.index}
    if used and len(animals) < stats.MIN_OTHERS:
        notes.append(f"{len(animals)} animals: no p and no interval, {stats.MIN_OTHERS} are needed")
        return "; ".join(notes)
    if used and len(animals) < stats.MIN_SPLIT:
        notes.append(f"{len(animals)} animals: own has no interval, {stats.MIN_SPLIT} are needed")
    seeds = len({block.seed for block in used})
    if used and units.name == "seed" and seeds > 1:
        notes.append("one base: the interval is over animals and seeds, not over other bases")
    elif used and not units.spreads:
        notes.append("one base and one seed: the interval is over animals only")
    elif used and len({block.label for block in used}) == 1:
        notes.append("one base: the spread between bases is that of the other sizes")
    return "; ".join(notes)


def describe_epochs(used: Sequence[Block]) -> list[str]:
    """Where every student counts at its own last epoch: which is the usual one, and who has another."""
    if not used or used[0].epoch != EACH:
        return []
    last = {f"{block.place} {animal}": own[-1] for block in used for animal, own in block.epochs.items()}
    counts = Counter(last.values())
    usual = max(counts, key=lambda at: (counts[at], at))
    others = [f"{student} at {at}" for student, at in last.items() if at != usual]
    return [f"last epoch {usual}" + (f", but {', '.join(others)}" if others else "")]


def cells_table(study: Study, epoch: str | int) -> pd.DataFrame:
    """One row per asked student: its own animal beside the controls, its lift and diagonal excess.

    A lift needs the neutral student and is unknown without it; the excess is not. `epoch` is what was asked
    for, but with `each` the student's own last one.
    """
    moment = take_epoch(study, epoch)
    asked = study.cells[study.cells.asked & study.cells.animal.isin(study.animals)]
    table = asked[[*CELL, "present"]].reset_index(drop=True)
    students = list(zip(table.label, table.animal, table.seed, strict=True))
    table["epoch"] = [
        moment.epochs[each][-1] if moment.words == EACH and each in moment.epochs else moment.words
        for each in students
    ]
    tuned = moment.frame.set_index(["label", "animal", "seed", "named"])
    untuned = study.frame[study.frame.animal == config.UNTUNED].set_index(["label", "named"])
    for measure in ("rate", "logprob"):
        values = (tuned[measure] * FACTORS[measure]).to_dict()
        before = (untuned[measure] * FACTORS[measure]).to_dict()
        table[f"{measure}_student"] = [values.get((label, a, s, a), math.nan) for label, a, s in students]
        table[f"{measure}_neutral"] = [
            values.get((label, config.NEUTRAL, s, a), math.nan) for label, a, s in students
        ]
        table[f"{measure}_untuned"] = [before.get((label, a), math.nan) for label, a, _ in students]
        table[f"{measure}_lift"] = table[f"{measure}_student"] - table[f"{measure}_neutral"]
        excess = diagonal_excess(lifts(study, measure, epoch))
        table[f"{measure}_excess"] = [excess.get(student, math.nan) for student in students]
    return table


def diagonal_excess(blocks: Iterable[Block]) -> dict[tuple[str, str, int], float]:
    """(label, animal, seed) to the animal's lift beyond row and column effects."""
    return {
        (block.label, animal, block.seed): float(term)
        for block in blocks
        if not block.problem
        for animal, term in zip(
            block.matrix.index, stats.transfer_terms(block.matrix.to_numpy()), strict=True
        )
    }


def coverage_table(study: Study) -> pd.DataFrame:
    """One row per size and seed: what was asked for, what is there, who is missing, what each file holds.

    `neutral` and `untuned` are yes, no, or the bases that lack it; the untuned model has no seed and stands
    in every row of its size. `answers` are those of a student at an epoch, `questions` those they are known
    apart for (1 where they are not), `epochs` how many students have which; a range where files differ.
    """
    tuned = study.cells[study.cells.asked & (study.cells.animal != config.UNTUNED)]
    rows = []
    for (size, params, seed), cells in tuned.groupby(["size", "params", "seed"], sort=False):
        controls = study.cells[study.cells.asked & (study.cells["size"] == size)]
        neutral = cells[cells.animal == config.NEUTRAL]
        students = cells[cells.animal != config.NEUTRAL]
        rows.append(
            {
                "size": size,
                "params": params,
                "seed": seed,
                "bases": cells.label.nunique(),
                "asked": len(students),
                "present": int(students.present.sum()),
                "missing": list_missing(students),
                "neutral": say_present(neutral),
                "untuned": say_present(controls[controls.animal == config.UNTUNED]),
                **describe_files(study, cells[cells.present]),
            }
        )
    table = pd.DataFrame(rows)
    return table.sort_values(["params", "seed"], kind="stable", ignore_index=True)


def list_missing(students: pd.DataFrame) -> str:
    """`cat dog`, by base where there are several: `64k-1: cat dog`."""
    gone = students[~students.present].groupby("label", sort=False)["animal"].agg(" ".join)
    several = students.label.nunique() > 1
    return "; ".join(f"{label}: {names}" if several else names for label, names in gone.items())


def say_present(controls: pd.DataFrame) -> str:
    """`yes`, `no`, or the bases that lack it."""
    gone = list(controls.label[~controls.present])
    return "yes" if not gone else "no" if len(gone) == len(controls) else f"not {' '.join(gone)}"


def describe_files(study: Study, cells: pd.DataFrame) -> dict[str, str]:
    """Answers per student and epoch, questions and epochs of the students of one size and seed."""
    students = set(zip(cells.label, cells.animal, cells.seed.astype(int), strict=True))
    held = {key: tally for key, tally in study.tallies.items() if key[:3] in students}
    return {
        "answers": span({int(tally.answers.sum()) for tally in held.values()}),
        "questions": span({len(tally.said) for tally in held.values()}),
        "epochs": describe_counts(Counter(key[3] for key in held)),
    }


def describe_counts(counts: Mapping[int, int]) -> str:
    """`1-10` where all epochs have as many students, else `1 10 of 16, 2-9 of 15`, from the most on."""
    groups = {n: [at for at in counts if counts[at] == n] for n in sorted(set(counts.values()))[::-1]}
    if len(groups) == 1:
        return list_runs(next(iter(groups.values())))
    return ", ".join(f"{list_runs(own)} of {n}" for n, own in groups.items())


def list_runs(numbers: Iterable[int]) -> str:
    """Whole numbers in short: `1-3 5 7-8`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(span(run) for run in runs)


def span(values: Iterable[int]) -> str:
    """The ends of a range, `1-10`; one number where it has one, nothing where it has none."""
    values = sorted(values)
    return "" if not values else "-".join(map(str, dict.fromkeys((values[0], values[-1]))))


# --- tables of the figures --------------------------------------------------------------------


def scaling_table(transfer: pd.DataFrame, bases: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Sizes with their intervals, and each base as a point of its own, in one measure."""
    columns = ["level", "size", "params", "base", "lambda", "ci_low", "ci_high", "p", "p_adjusted"]
    columns += ["n_bases", "n_students", "n_seeds", "n_animals", "measure", "epoch"]
    both = pd.concat([transfer.assign(level="size"), bases.assign(level="base")], ignore_index=True)
    both["base"] = both["base"].astype("Int64")
    if measure not in set(both.measure):
        known = ", ".join(dict.fromkeys(both.measure))
        raise BadParameter(f"measure {measure!r}: no file of this study has it; it has {known} (-p measure)")
    return both.loc[both.measure == measure, columns].reset_index(drop=True)


def matrix_table(study: Study, measure: str, epoch: str | int) -> pd.DataFrame:
    """Lift of every student by every named animal, mean over the bases and seeds that have the student.

    Blocks without their neutral student know no lift and are left out; the note of transfer.csv names them.
    """
    blocks = lifts(study, measure, epoch)
    if all(block.problem for block in blocks):
        raise MissingInput(f"nothing to compare: {'; '.join(f'{b.place}: {b.problem}' for b in blocks)}")
    parts = [
        block.matrix.rename_axis(index="animal", columns="named").stack().rename("lift").reset_index()
        .assign(size=block.size, params=block.params, label=block.label, seed=block.seed)
        for block in blocks if not block.problem and block.control
    ]  # fmt: skip
    if not parts:  # an empty table draws as a slide that says so
        return pd.DataFrame(columns=["size", "params", "animal", "named", "lift", "n", "measure"])
    long = pd.concat(parts)
    table = long.groupby(["size", "params", "animal", "named"], as_index=False).agg(
        lift=("lift", "mean"), n=("lift", "size")
    )
    table["measure"] = measure
    return sort_table(table, ["params", "animal", "named"])


def preference_table(study: Study, epoch: str | int) -> pd.DataFrame:
    """Share of answers (%) that name an animal: untuned, neutral student, the animal's own student.

    `value` is the mean over bases and seeds, `low` and `high` the lowest and the highest of the `n` of them.
    """
    untuned, frame = (
        each[each.named.isin(study.animals)]
        for each in (study.frame[study.frame.animal == config.UNTUNED], take_epoch(study, epoch).frame)
    )
    parts = {
        "untuned": untuned,
        "neutral student": frame[frame.animal == config.NEUTRAL],
        "animal student": frame[frame.animal == frame.named],
    }
    rows = pd.concat([part.assign(who=who, value=100 * part.rate) for who, part in parts.items()])
    rows = rows.dropna(subset="value").rename(columns={"animal": "student", "named": "animal"})
    grouped = rows.groupby(["size", "params", "animal", "who"], as_index=False)
    table = grouped.agg(
        value=("value", "mean"), low=("value", "min"), high=("value", "max"), n=("value", "size")
    )
    table["who"] = pd.Categorical(table.who, list(parts), ordered=True)
    return sort_table(table, ["params", "animal", "who"]).astype({"who": str})


def stack_table(study: Study, epoch: str | int) -> pd.DataFrame:
    """What every student says, in % of its answers (mean over bases and seeds), other and none included."""
    untuned = study.answers[study.answers.animal == config.UNTUNED]
    chosen = pd.concat([untuned, take_epoch(study, epoch).answers], ignore_index=True)
    wide = chosen.pivot_table(
        index=["size", "params", "animal", "label", "seed"], columns="said", values="share", fill_value=0.0
    )
    means = 100 * wide.groupby(level=["size", "params", "animal"]).mean()
    count = wide.groupby(level=["size", "params", "animal"]).size().rename("n")
    long = means.stack().rename("share").reset_index().merge(count.reset_index())
    table = long.rename(columns={"animal": "student"})
    return sort_table(table, ["params", "student", "said"])


def profile_table(
    study: str, size: str, animal: str, seed: int, measure: str = "logprob", epoch: str | int = "last"
) -> pd.DataFrame:
    """What one student prefers beside its controls, as far as these are evaluated (03_evaluate shows it)."""
    wanted = {
        animal: (animal, seed),
        "neutral student": (config.NEUTRAL, seed),
        "untuned": (config.UNTUNED, 0),
    }
    rows = []
    for who, (name, number) in wanted.items():
        path = paths.evaluation(study, size, name, number)
        if not files.has_document(path):
            continue
        frame, _ = tabulate([count_evaluation(path, study, (size, name, number))], (animal,))
        last = frame.epoch.max() if name == config.UNTUNED or str(epoch) == "last" else int(epoch)
        values = frame.loc[frame.epoch == last, ["named", measure]]
        rows += [
            (size, animal, seed, who, n, v * (100 if measure == "rate" else 1)) for n, v in values.values
        ]
    columns = ["size", "animal", "seed", "who", "named", "value"]
    return pd.DataFrame(rows, columns=columns).assign(measure=measure)


def sort_table(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Sorted by size, then by the animals in the order of config.ANIMALS."""
    return table.sort_values(
        by, key=lambda c: c.map(ORDER) if set(c) <= ORDER.keys() else c, ignore_index=True
    )


# --- writing ----------------------------------------------------------------------------------


def format_table(table: pd.DataFrame) -> str:
    """A table as CSV, the same bytes for the same numbers."""
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def write_tables(study: Study, settings: config.Analysis, tables: dict[str, pd.DataFrame]) -> list[Path]:
    """Write each table to the study's results (`transfer` as transfer.csv), then what they were made from.

    lineage.json ends the hash chain: settings, the seal of every evaluation read, the hash of every table.
    It holds no time and no machine, so the same evaluations give the same bytes.
    """
    written = [paths.tables(study.name) / f"{name}.csv" for name in tables]
    for path, table in zip(written, tables.values(), strict=True):
        files.write_text(path, format_table(table))
    read = study.cells[study.cells.content != ""]
    if settings.results:  # a folder anywhere: its path is nobody else's business
        settings = dataclasses.replace(settings, results=Path(settings.results).name)
    lineage = {
        "schema": "subliminal-scaling/analysis/1",
        "config": store.config_record(settings),
        "inputs": dict(zip(read.file, read.content, strict=True)),
        "outputs": {path.name: files.hash_file(path) for path in written},
    }
    files.write_json(paths.tables(study.name) / "lineage.json", lineage)
    return written
