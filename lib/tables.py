"""From a study's evaluation JSONs to tidy frames, and from those to the tables of the analysis.

Answers are scored here, on load. A file that does not belong (other settings, another base, an adapter
retrained since) stops the analysis; a cell that is missing is listed, and never filled in. No drawing.
"""

import dataclasses
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lib import config, files, paths, stats, store
from lib.errors import BadParameter, BrokenLineage, DamagedFile, MissingInput
from lib.scoring import score

SCHEMA = "subliminal-scaling/evaluation/1"
MEASURES = ("logprob", "rate")
UNITS = {"logprob": "nats", "rate": "percentage points"}
CELL = ["size", "params", "base", "label", "animal", "seed"]
ORDER = {
    name: at for at, name in enumerate((config.UNTUNED, config.NEUTRAL, *config.LEXICON, "other", "none"))
}
# Per stage, the settings that shape a result and that all cells of one size must share.
SHARED_FIELDS: dict[str, tuple[str, ...]] = {
    stage.stage: tuple(
        field.name
        for field in dataclasses.fields(stage)
        if field.metadata.get("identity", True) and field.name not in ("size", "animal", "seed")
    )
    for stage in (config.Generate, config.Finetune, config.Evaluate)
}


@dataclass(frozen=True)
class Study:
    """A study as read from its files: one row per cell, epoch and named animal in `frame`."""

    name: str
    animals: tuple[str, ...]
    frame: pd.DataFrame  # CELL, epoch, named, count, n_answers, rate, logprob
    answers: pd.DataFrame  # CELL, epoch, said (an animal, other or none), count, n_answers, share
    cells: pd.DataFrame  # CELL, file, asked, present, content (what lib.store sealed)

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
    documents = {path: read_evaluation(path, study, *key) for path, key in present_cells(study, cells)}
    if not documents:
        raise MissingInput(
            f"no evaluation of {sizes} in study {study}: run 03_evaluate with these parameters first "
            f"(papermill notebooks/03_evaluate.ipynb -p study {study} -p size {bases[0].label} -p animal all)"
        )
    check_company(documents)
    sealed = {
        path.relative_to(paths.root()).as_posix(): d["lineage"]["content"] for path, d in documents.items()
    }
    cells["content"] = cells.file.map(sealed).fillna("")
    return Study(study, students, *tabulate(documents, students), cells)


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
    found = (paths.results(study) / label).glob("*/s*.json")
    pairs = [(path.parent.name, path.stem[1:]) for path in found if path.parent.name in ORDER]
    return [(animal, int(seed)) for animal, seed in pairs if seed.isdecimal()]


def present_cells(study: str, cells: pd.DataFrame) -> list[tuple[Path, tuple[str, str, int]]]:
    """Path and (label, animal, seed) of the cells that were asked for and are there."""
    wanted = cells[cells.asked & cells.present]
    keys = zip(wanted.label, wanted.animal, (int(seed) for seed in wanted.seed), strict=True)
    return [(paths.evaluation(study, *key), key) for key in keys]


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
    check_adapter(document, path, study, label, animal, seed)
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
                isinstance(a["text"], str) and 0 <= a["question"] < questions for a in entry["answers"]
            ):
                raise ValueError("an answer is no text or belongs to no question")
            entry["epoch"] + 0
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DamagedFile(
            f"{path}: not a whole evaluation ({what}); remove it and rerun 03_evaluate"
        ) from None


def check_adapter(document: dict, path: Path, study: str, label: str, animal: str, seed: int) -> None:
    """Where the adapter is still on this machine, it is the one that gave these answers."""
    if animal != config.UNTUNED:  # results travel without artifacts: an absent folder passes
        folder = paths.artifact(study, "finetune", label, animal, seed)
        store.check_inputs(str(path), document["lineage"]["inputs"], {"finetune": folder})


def check_company(documents: dict[Path, dict]) -> None:
    """Cells of one label share their base, cells of one size every setting but animal and seed."""
    bases: dict[str, tuple[Path, dict]] = {}
    settings: dict[tuple[str, str], tuple[Path, dict]] = {}
    for path, document in documents.items():
        label, base = document["config"]["size"], {"identity": document["lineage"]["inputs"]["base"]}
        compare(path, base, bases.setdefault(label, (path, base)), "base model")
        for stage, values in describe_settings(document).items():
            key = (config.parse_label(label).size.name, stage)
            compare(path, values, settings.setdefault(key, (path, values)), f"{stage} settings")


def describe_settings(document: dict) -> dict[str, dict]:
    """Per stage that led to this evaluation, the settings that its neighbours must share."""
    chain = document["lineage"].get("chain", {})
    stages = {name: chain[name].get("config", chain[name]) for name in SHARED_FIELDS if name in chain}
    stages["evaluate"] = document["config"]
    settings = {name: {f: own.get(f) for f in SHARED_FIELDS[name]} for name, own in stages.items()}
    settings["evaluate"]["questions"] = files.hash_object(document["questions"])
    return settings


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


def tabulate(documents: dict[Path, dict], students: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score every answer and average every log-probability: the two frames of a study."""
    scored: dict[str, str] = {}  # a text is scored once, however often it was answered
    frame, answers = [], []
    for document in documents.values():
        settings = document["config"]
        base = config.parse_label(settings["size"])
        cell = (
            base.size.name,
            base.size.params,
            base.index,
            base.label,
            settings["animal"],
            settings["seed"],
        )
        for entry in document["epochs"]:
            said: Counter[str] = Counter()
            for text, n in Counter(answer["text"] for answer in entry["answers"]).items():
                if text not in scored:
                    scored[text] = score(text)
                said[scored[text]] += n
            total = said.total()
            means = np.array(entry["logprobs"]["values"], dtype=float).mean(0)
            logprobs = dict(zip(entry["logprobs"]["animals"], means.tolist(), strict=True))
            key = (*cell, entry["epoch"])
            for name in sorted({*students, *logprobs}, key=ORDER.__getitem__):
                rate = said[name] / total if total else math.nan
                frame.append((*key, name, said[name], total, rate, logprobs.get(name, math.nan)))
            answers += [(*key, name, n, total, n / total) for name, n in said.items()]
    return (
        arrange(frame, [*CELL, "epoch", "named", "count", "n_answers", "rate", "logprob"]),
        arrange(answers, [*CELL, "epoch", "said", "count", "n_answers", "share"]),
    )


def arrange(rows: list[tuple], columns: list[str]) -> pd.DataFrame:
    """A frame in the order of size, base, animal, seed, epoch and named animal, whatever came first."""
    frame = pd.DataFrame(rows, columns=columns)
    ranked = ["params", "base", "animal", "seed", "epoch", columns[len(CELL) + 1]]
    return frame.sort_values(
        ranked, key=lambda c: c.map(ORDER) if c.dtype.kind not in "iuf" else c, ignore_index=True
    )


# --- lifts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """The lifts of one (base, seed): students by named animals; `absent` animals could not take part."""

    size: str
    params: int
    base: int
    label: str
    seed: int
    epoch: int
    measure: str
    matrix: pd.DataFrame
    absent: tuple[str, ...]
    problem: str = ""

    @property
    def place(self) -> str:
        return f"{self.label}/s{self.seed}"


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
    tuned = study.frame[study.frame.animal != config.UNTUNED]
    each = [set(group) for _, group in tuned.groupby(["label", "animal", "seed"])["epoch"]]
    common = sorted(set.intersection(*each)) if each else []
    if not common:
        raise MissingInput("no epoch was evaluated for every student: rerun 03_evaluate, or narrow the grid")
    return common


def lifts(study: Study, measure: str, epoch: str | int) -> list[Block]:
    """Per (base, seed), each student's preference less that of the same seed's neutral student.

    `rate` in percentage points of the sampled answers, `logprob` in nats. A difference, never a ratio:
    an animal that the neutral student never says costs nothing. A block without its neutral student, or
    with fewer than three animals, has an empty matrix and says why.
    """
    if measure not in MEASURES:
        raise BadParameter(f"measure {measure!r}: choose one of {', '.join(MEASURES)}")
    at = resolve_epoch(study, epoch)
    chosen = study.frame[(study.frame.epoch == at) & (study.frame.animal != config.UNTUNED)]
    seeds = sorted(study.cells[study.cells.asked & (study.cells.animal == config.NEUTRAL)].seed.unique())
    labels = study.cells.drop_duplicates("label")
    blocks = []
    for row in labels.itertuples():
        for seed in seeds:
            group = chosen[(chosen.label == row.label) & (chosen.seed == seed)]
            place = (row.size, int(row.params), int(row.base), row.label, int(seed), at, measure)
            blocks.append(Block(*place, *lift_matrix(group, study.animals, measure)))
    return blocks


def lift_matrix(
    group: pd.DataFrame, animals: Sequence[str], measure: str
) -> tuple[pd.DataFrame, tuple[str, ...], str]:
    """The lifts over the animals that have both a student and a measured name; who is absent; why."""
    wide = group.pivot(index="animal", columns="named", values=measure)
    nothing = pd.DataFrame(dtype=float)
    if config.NEUTRAL not in wide.index:
        return nothing, tuple(animals), "no neutral student"
    if wide.loc[config.NEUTRAL].isna().all():
        return nothing, tuple(animals), f"no {measure} was evaluated"
    measured = wide.columns[wide.notna().all()]
    usable = [animal for animal in animals if animal in wide.index and animal in measured]
    absent = tuple(animal for animal in animals if animal not in usable)
    if len(usable) < stats.MIN_ANIMALS:
        return nothing, absent, f"{len(usable)} animals, {stats.MIN_ANIMALS} needed"
    lift = wide.loc[usable, usable] - wide.loc[config.NEUTRAL, usable]
    return lift * (100 if measure == "rate" else 1), absent, ""


# --- tables -----------------------------------------------------------------------------------


def transfer_table(study: Study, epoch: str | int, permutations: int, seed: int) -> pd.DataFrame:
    """One row per size and measure: lambda over bases and seeds, interval, permutation p, Holm over sizes."""
    return infer_groups(study, epoch, permutations, seed, ["size", "params"])


def base_table(study: Study, epoch: str | int, permutations: int, seed: int) -> pd.DataFrame:
    """The same for each base by itself, Holm over bases."""
    return infer_groups(study, epoch, permutations, seed, ["size", "params", "base", "label"])


def epochs_table(study: Study, permutations: int, seed: int) -> pd.DataFrame:
    """The transfer table at every epoch; Holm within an epoch, for which one counts is settled before."""
    return pd.concat(
        [transfer_table(study, epoch, permutations, seed) for epoch in common_epochs(study)],
        ignore_index=True,
    )


def infer_groups(study: Study, epoch: str | int, permutations: int, seed: int, by: list[str]) -> pd.DataFrame:
    """Lambda, its interval and its test for every group of blocks and both measures."""
    parts = []
    for measure in MEASURES:
        blocks = lifts(study, measure, epoch)
        groups: dict[tuple, list[Block]] = {}
        for block in blocks:
            groups.setdefault(tuple(getattr(block, name) for name in by), []).append(block)
        unit, spread = find_units(groups.values())
        rows = [
            dict(zip(by, key, strict=True)) | infer(own, permutations, seed, unit, spread)
            for key, own in groups.items()
        ]
        part = pd.DataFrame(rows)
        part.insert(part.columns.get_loc("p") + 1, "p_adjusted", stats.adjust_holm(part.p))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def find_units(groups: Iterable[Sequence[Block]]) -> tuple[str, stats.Spread | None]:
    """What is drawn at random beside the animals: bases where some group has several, else seeds.

    The spread between bases is pooled over the groups, since two bases of a size say next to nothing about
    it. That between seeds is each group's own: it grows with the effect, which differs between sizes.
    """
    used = [[block for block in group if not block.problem] for group in groups]
    for unit in ("label", "seed"):
        spread = stats.pool_spread(
            [([b.matrix.to_numpy() for b in group], [getattr(b, unit) for b in group]) for group in used]
        )
        if spread is not None:
            return unit, spread if unit == "label" else None
    return "label", None


def infer(
    blocks: Sequence[Block], permutations: int, seed: int, unit: str, spread: stats.Spread | None
) -> dict:
    """What a group of blocks says about lambda; NaN with a note where it can say nothing."""
    used = [block for block in blocks if not block.problem]
    first = blocks[0]
    # The draws of a group depend on its own name alone: adding a size changes no other size's p.
    name = f"{first.measure} {' '.join(block.place for block in blocks)}"
    result = {"lambda": math.nan, "ci_low": math.nan, "ci_high": math.nan, "p": math.nan, "z": math.nan}
    if used:
        matrices = [block.matrix.to_numpy() for block in used]
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        test = stats.permutation_test(matrices, permutations, rng)
        names = [list(block.matrix.index) for block in used]
        reach = stats.transfer_interval(matrices, names, [getattr(block, unit) for block in used], spread)
        result = {
            "lambda": test.statistic,
            "ci_low": reach.low,
            "ci_high": reach.high,
            "p": test.p,
            "z": test.z,
        }
    return {
        "n_bases": len({block.label for block in used}),
        "n_students": sum(len(block.matrix) for block in used),
        "n_seeds": len({block.seed for block in used}),
        "n_animals": len({animal for block in used for animal in block.matrix.index}),
        **result,
        "measure": first.measure,
        "epoch": first.epoch,
        "note": describe_group(blocks, used, unit, spread),
    }


def describe_group(
    blocks: Sequence[Block], used: Sequence[Block], unit: str, spread: stats.Spread | None
) -> str:
    """What a reader must know of a row: what is missing, and what the interval does not cover."""
    notes = [f"{block.place} left out: {block.problem}" for block in blocks if block.problem]
    notes += [f"{block.place} without {' '.join(block.absent)}" for block in used if block.absent]
    seeds = len({block.seed for block in used})
    if used and unit == "seed" and seeds > 1:
        notes.append("one base: the interval is over animals and seeds, not over other bases")
    elif used and spread is None:
        notes.append("one base and one seed: the interval is over animals only")
    elif used and len({block.label for block in used}) == 1:
        notes.append("one base: the spread between bases is that of the other sizes")
    return "; ".join(notes)


def cells_table(study: Study, epoch: str | int) -> pd.DataFrame:
    """One row per asked student: its own animal beside the controls, its lift and diagonal excess."""
    at = resolve_epoch(study, epoch)
    asked = study.cells[study.cells.asked & study.cells.animal.isin(study.animals)]
    table = asked[[*CELL, "present"]].reset_index(drop=True)
    table["epoch"] = at
    tuned = study.frame[study.frame.epoch == at].set_index(["label", "animal", "seed", "named"])
    untuned = study.frame[study.frame.animal == config.UNTUNED].set_index(["label", "named"])
    for measure, factor in (("rate", 100), ("logprob", 1)):
        values, before = tuned[measure] * factor, untuned[measure] * factor
        rows = list(zip(table.label, table.animal, table.seed, strict=True))
        table[f"{measure}_student"] = [values.get((label, a, s, a), math.nan) for label, a, s in rows]
        table[f"{measure}_neutral"] = [
            values.get((label, config.NEUTRAL, s, a), math.nan) for label, a, s in rows
        ]
        table[f"{measure}_untuned"] = [before.get((label, a), math.nan) for label, a, _ in rows]
        table[f"{measure}_lift"] = table[f"{measure}_student"] - table[f"{measure}_neutral"]
        excess = diagonal_excess(lifts(study, measure, at))
        table[f"{measure}_excess"] = [excess.get(row, math.nan) for row in rows]
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


# --- tables of the figures --------------------------------------------------------------------


def scaling_table(transfer: pd.DataFrame, bases: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Sizes with their intervals, and each base as a point of its own, in one measure."""
    columns = ["level", "size", "params", "base", "lambda", "ci_low", "ci_high", "p", "p_adjusted"]
    columns += ["n_bases", "n_students", "n_seeds", "n_animals", "measure", "epoch"]
    both = pd.concat([transfer.assign(level="size"), bases.assign(level="base")], ignore_index=True)
    both["base"] = both["base"].astype("Int64")
    return both.loc[both.measure == measure, columns].reset_index(drop=True)


def matrix_table(study: Study, measure: str, epoch: str | int) -> pd.DataFrame:
    """Lift of every student by every named animal, mean over the bases and seeds that have the student."""
    parts = [
        block.matrix.rename_axis(index="animal", columns="named").stack().rename("lift").reset_index()
        .assign(size=block.size, params=block.params, label=block.label, seed=block.seed)
        for block in lifts(study, measure, epoch) if not block.problem
    ]  # fmt: skip
    if not parts:
        raise MissingInput("no base has a neutral student and three animals: nothing to compare")
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
    at = resolve_epoch(study, epoch)
    frame = study.frame[study.frame.named.isin(study.animals)]
    parts = {
        "untuned": frame[frame.animal == config.UNTUNED],
        "neutral student": frame[(frame.animal == config.NEUTRAL) & (frame.epoch == at)],
        "animal student": frame[(frame.animal == frame.named) & (frame.epoch == at)],
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
    at = resolve_epoch(study, epoch)
    chosen = study.answers[(study.answers.epoch == at) | (study.answers.animal == config.UNTUNED)]
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
        if not path.exists():
            continue
        frame, _ = tabulate({path: read_evaluation(path, study, size, name, number)}, (animal,))
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
