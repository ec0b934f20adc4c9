"""What a study answers: laws over sizes, cells with partial pooling, the odds model, power, curves, words.

Tables on top of lib.tables, each a tidy frame for one figure and one CSV. The statistics themselves are in
the pure layer (stats, scaling, trend, mixed, pooling, power); here they meet a study's names. No drawing.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib import config, files, mixed, paths, pooling, power, scaling, stats, trend
from lib.errors import BadParameter, MissingInput
from lib.tables import (
    UNITS,
    Block,
    Study,
    draws_of,
    find_units,
    influence_of,
    lifts,
    take_epoch,
)

DRAWS = 2000  # joint bootstrap draws of all sizes
GRID = 61  # points of a law's curve


def usable_blocks(study: Study, measure: str, epoch: str | int) -> dict[str, list[Block]]:
    """Size -> its blocks that can say something."""
    groups: dict[str, list[Block]] = {}
    for block in lifts(study, measure, epoch):
        if not block.problem:
            groups.setdefault(block.size, []).append(block)
    return groups


# --- over sizes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scaling:
    """Laws over sizes in one measure: `laws` and `bands` are tables, `statements` what they come to."""

    laws: pd.DataFrame
    bands: pd.DataFrame
    statements: tuple[str, ...]


LAWS = ("law", "k", "n", "loglik", "aicc", "weight", "weight_aicc", "parameters", "fit_p", "loso_lpd",
        "loso_rmse", "p_trend", "p_trend_given", "measure", "epoch", "note")  # fmt: skip
BANDS = ("level", "size", "params", "lambda", "ci_low", "ci_high", "measure", "epoch", "note")


def fit_scaling(study: Study, measure: str, epoch: str | int, seed: int = 0) -> Scaling:
    """Fit the candidate laws to the students of all sizes, test for a trend, and say what that carries.

    With fewer than two sizes there is nothing to fit: empty tables and a sentence that says so.
    """
    groups = usable_blocks(study, measure, epoch)
    if len(groups) < 2:
        said = f"{len(groups)} size: nothing can be said of how transfer scales."
        return Scaling(pd.DataFrame(columns=list(LAWS)), pd.DataFrame(columns=list(BANDS)), (said,))
    blocks = [block for own in groups.values() for block in own]
    points = gather_points(blocks)
    compared = scaling.compare_laws(points)
    rng = np.random.default_rng([seed, 5])
    draws = draw_means(blocks, rng)
    over_bases = trend.permute_bases(points, rng=rng)
    given = trend.flip_animals(points, rng=rng)
    peak = scaling.find_peak(compared, draws, seed=seed)
    first, students = blocks[0], sum(len(each) for each in points.values)
    laws = pd.DataFrame(
        [describe_law(fit, over_bases, given, students, first) for fit in compared.fits],
        columns=list(LAWS),
    )
    said = scaling.state_findings(compared, over_bases, given, peak)
    return Scaling(laws, tabulate_bands(compared, draws, first, seed), tuple(said))


def gather_points(blocks: Sequence[Block]) -> scaling.Points:
    """One point per base and seed: its students' own terms."""
    return scaling.Points(
        np.log10([block.params for block in blocks]),
        [block.size for block in blocks],
        [block.label for block in blocks],
        tuple(stats.transfer_terms(block.matrix.to_numpy()) for block in blocks),
        tuple(tuple(block.matrix.index) for block in blocks),
    )


def draw_means(blocks: Sequence[Block], rng: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
    """Joint bootstrap of every block's lambda, [draws, blocks]: animals are drawn once for all sizes.

    An animal that is drawn twice counts twice in every size and seed that has it.
    """
    everyone = sorted({name for block in blocks for name in block.matrix.index})
    counts = rng.multinomial(len(everyone), np.full(len(everyone), 1 / len(everyone)), draws)
    means = np.empty((draws, len(blocks)))
    for at, block in enumerate(blocks):
        terms = stats.transfer_terms(block.matrix.to_numpy())
        own = counts[:, [everyone.index(name) for name in block.matrix.index]]
        total = own.sum(1)
        means[:, at] = np.where(total > 0, own @ terms / np.maximum(total, 1), terms.mean())
    return means


def describe_law(
    fit: scaling.Fit, over_bases: scaling.Trend, given: scaling.Trend, students: int, first: Block
) -> dict[str, object]:
    """A row of laws.csv."""
    return {
        "law": fit.law, "k": fit.k, "n": students, "loglik": fit.loglik, "aicc": fit.aicc,
        "weight": fit.weight, "weight_aicc": fit.weight_aicc, "parameters": fit.parameters,
        "fit_p": fit.p_fit, "loso_lpd": fit.density, "loso_rmse": fit.error, "p_trend": over_bases.p,
        "p_trend_given": given.p, "measure": first.measure, "epoch": first.epoch, "note": fit.note,
    }  # fmt: skip


def tabulate_bands(compared: scaling.Comparison, draws: np.ndarray, first: Block, seed: int) -> pd.DataFrame:
    """Every law's curve with its band over the range of the sizes; the law's name stands under `size`."""
    x = np.linspace(compared.units.x.min(), compared.units.x.max(), GRID)
    parts = [
        pd.DataFrame(
            {"level": "band", "size": band.law, "params": 10**band.x, "lambda": band.curve,
             "ci_low": band.low, "ci_high": band.high, "measure": first.measure, "epoch": first.epoch,
             "note": band.note}
        )
        for band in scaling.draw_bands(compared, draws, x, seed=seed)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def overview_table(
    scaling_table: pd.DataFrame, found: Scaling, cells: pd.DataFrame, measure: str
) -> pd.DataFrame:
    """The scaling figure's table: sizes, bases, every student, and the likeliest law's curve and band."""
    parts = [scaling_table]
    own = cells.rename(columns={f"{measure}_excess": "lambda"}).dropna(subset="lambda")
    columns = ["size", "params", "base", "seed", "animal", "lambda"]
    parts.append(own[columns].assign(level="student", measure=measure))
    if len(found.laws) and found.laws.weight.notna().any():
        best = found.laws.law[found.laws.weight.idxmax()]
        parts.append(found.bands[found.bands["size"] == best])
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


# --- are seeds independent? -----------------------------------------------------------------------


LIKENESS = ("size", "params", "pairs", "alike", "measure", "epoch")


def likeness_table(study: Study, measure: str, epoch: str | int) -> pd.DataFrame:
    """How alike students of one animal are in two seeds of one base, in what they say of other animals.

    The correlation of the entries off the diagonal after row and column effects, mean over pairs of seeds;
    0 where seeds are independent. More than that means that a teacher passes the same other things on every
    time, or that datasets are shared: then another seed is not a whole new observation.
    """
    rows = []
    for size, blocks in usable_blocks(study, measure, epoch).items():
        found = [
            correlate_blocks(one, other)
            for at, one in enumerate(blocks)
            for other in blocks[at + 1 :]
            if one.label == other.label
        ]
        known = [each for each in found if not math.isnan(each)]
        if known:
            place = (size, blocks[0].params, len(known))
            rows.append((*place, float(np.mean(known)), measure, blocks[0].epoch))
    return pd.DataFrame(rows, columns=list(LIKENESS))


def correlate_blocks(one: Block, other: Block) -> float:
    """Correlation of two seeds' residuals off the diagonal, over the animals that both have."""
    common = [name for name in one.matrix.index if name in other.matrix.index]
    return stats.correlate_residuals(*(each.matrix.loc[common, common].to_numpy() for each in (one, other)))


# --- over epochs and doses ----------------------------------------------------------------------


def band_epochs(study: Study, epochs: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The table over epochs with bands that hold at all epochs of a size together (95 %).

    Given where a size has two epochs or more with the same students, and stats.MIN_BAND animals. The
    spread between bases is that of the pointwise intervals at each epoch.
    """
    epochs = epochs.assign(band_low=math.nan, band_high=math.nan)
    for measure, table in epochs.groupby("measure", sort=False):
        groups = {at: blocks_at(study, measure, at) for at in sorted(set(table.epoch.astype(int)))}
        units = {at: find_units(list(own.values())) for at, own in groups.items() if own}
        for size in dict.fromkeys(table["size"]):
            own = same_students({at: blocks[size] for at, blocks in groups.items() if size in blocks})
            if len(own) < 2 or not stats.speaks_of_others(
                [block.sheet for block in next(iter(own.values()))], stats.MIN_BAND
            ):
                continue
            influences = [influence_of(blocks, units[at].name) for at, blocks in own.items()]
            rng = draws_of(measure, next(iter(own.values())), seed)
            bands = stats.joint_band(influences, rng, [units[at].spreads.get(size) for at in own])
            for at, band in zip(own, bands, strict=True):
                row = table.index[(table["size"] == size) & (table.epoch.astype(int) == at)]
                epochs.loc[row, ["band_low", "band_high"]] = [band.low, band.high]
    return epochs


def blocks_at(study: Study, measure: str, epoch: int) -> dict[str, list[Block]]:
    """Size -> its blocks at one epoch, of the students that were evaluated there."""
    there = study.frame[(study.frame.epoch == epoch) & (study.frame.animal != config.UNTUNED)]
    return usable_blocks(dataclasses.replace(study, frame=there), measure, epoch)


def same_students(groups: Mapping[int, list[Block]]) -> dict[int, list[Block]]:
    """The epochs that have the same students as most epochs have; where two such sets tie, the later one.

    One student that was not evaluated at the last epoch must not cost all the others their band.
    """
    members = {at: tuple((b.place, tuple(b.matrix.index)) for b in blocks) for at, blocks in groups.items()}
    often = Counter(members.values())
    usual = max(members, key=lambda at: (often[members[at]], at), default=None)
    return {at: blocks for at, blocks in groups.items() if members[at] == members[usual]}


def curve_table(epochs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The rows of one measure for a curve over epochs; empty where no size has two of them."""
    own = epochs[epochs.measure == measure]
    several = own.groupby("size")["epoch"].transform("nunique") > 1
    return own[several].reset_index(drop=True)


# --- cells ------------------------------------------------------------------------------------


EFFECTS = ("size", "params", "animal", "n", "effect", "error", "pooled", "pooled_low", "pooled_high", "p",
           "p_adjusted", "q", "lambda", "measure", "epoch", "note")  # fmt: skip


def effects_table(study: Study, measures: Sequence[str], epoch: str | int) -> pd.DataFrame:
    """One row per size and animal: its own excess, pooled with the size's others, its p over all cells."""
    parts = []
    for measure in measures:
        rows, strict = [], []
        for size, blocks in usable_blocks(study, measure, epoch).items():
            entries = [enter(study, block, epoch) for block in blocks]
            value = influence_of(blocks, "seed").value
            for cell in pooling.find_cells(entries):
                strict.append(cell.strict)
                rows.append(
                    (size, blocks[0].params, cell.animal, cell.blocks, cell.effect, cell.error, cell.pooled,
                     cell.pooled_low, cell.pooled_high, cell.p, math.nan, math.nan, value, measure,
                     blocks[0].epoch, cell.note)
                )  # fmt: skip
        part = pd.DataFrame(rows, columns=list(EFFECTS))
        if len(part):
            part["p_adjusted"], part["q"] = pooling.adjust_cells(strict)
            parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(EFFECTS))


def enter(study: Study, block: Block, epoch: str | int) -> pooling.Entries:
    """A block as partial pooling wants it: counts for rates, values for log-probabilities."""
    if block.measure == "logprob":
        return pooling.enter_values(block.cube, tuple(block.matrix.index))
    return pooling.enter_answers(answers_of(study, block, epoch))


def answers_of(study: Study, block: Block, epoch: str | int) -> mixed.Answers:
    """A block's counts: who named which of the students' own animals, question by question."""
    moment = take_epoch(study, epoch)
    names = tuple(block.matrix.index)
    tallies = [moment.tallies[block.label, name, block.seed] for name in names]
    if len({len(tally.said) for tally in tallies}) > 1:
        tallies = [
            dataclasses.replace(t, said=t.said.sum(0)[None], answers=t.answers.sum()[None]) for t in tallies
        ]
    columns = [study.names.index(name) for name in names]
    said = np.stack([tally.said[:, columns] for tally in tallies], 1)
    return mixed.Answers(said, np.stack([tally.answers for tally in tallies], 1), names)


# --- the odds model ---------------------------------------------------------------------------


MIXED = ("size", "params", "log_odds", "odds_ratio", "low", "high", "p", "p_adjusted", "sd_student",
         "sd_animal", "sd_question", "converged", "verdict", "epoch", "note")  # fmt: skip


def mixed_table(
    study: Study, transfer: pd.DataFrame, epoch: str | int, permutations: int, seed: int = 0
) -> pd.DataFrame:
    """The mixed-effects logistic model beside lambda, by size; verdicts on p that are adjusted over sizes."""
    groups = usable_blocks(study, "rate", epoch)
    fits = {
        size: mixed.fit_mixed(
            [answers_of(study, block, epoch) for block in blocks],
            permutations,
            draws_of("odds", blocks, seed),
        )
        for size, blocks in groups.items()
    }
    adjusted = stats.adjust_holm([each.p for each in fits.values()])
    known = transfer[transfer.measure == "rate"].set_index("size").p_adjusted
    rows = []
    for (size, found), p in zip(fits.items(), adjusted.tolist(), strict=True):
        said = mixed.verdict(known.get(size, math.nan), dataclasses.replace(found, p=p))
        rows.append(
            (size, groups[size][0].params, found.log_odds, found.odds_ratio, found.low, found.high, found.p,
             p, found.sd["student x named"], found.sd["target animal"], found.sd["question x named"],
             found.converged, said, groups[size][0].epoch, found.note)
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(MIXED))


# --- power ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Power:
    """What the study could find and what it would take: two tables and a recommendation."""

    power: pd.DataFrame
    needed: pd.DataFrame
    recommendation: str


def find_power(study: Study, measure: str, epoch: str | int) -> Power:
    """Variance components of every size, what the design finds with them, where the next hours go."""
    sizes = {}
    for size, blocks in usable_blocks(study, measure, epoch).items():
        sheets = [
            block.sheet if measure == "logprob" else share_sheet(study, block, epoch) for block in blocks
        ]
        answers = 0 if measure == "logprob" else count_answers(study, blocks, epoch)
        sizes[size] = (power.estimate_parts(sheets, answers), power.plan_of(sheets, answers))
    if not sizes:
        return Power(pd.DataFrame(), pd.DataFrame(), "No size could be analysed.")
    return Power(
        pd.DataFrame(power.power_rows(sizes, measure)),
        pd.DataFrame(power.needed_rows(sizes, measure)),
        power.recommend(sizes, UNITS[measure]),
    )


def share_sheet(study: Study, block: Block, epoch: str | int) -> stats.Sheet:
    """A block's shares of answers (%) and not its lifts: the noise of sampling is that of a share.

    What the neutral student said moves no lambda, and would make every share look smaller than it is.
    """
    answers = answers_of(study, block, epoch)
    weight = len(answers.said) / answers.answers.sum(0)  # as in tables.spread_questions
    return dataclasses.replace(block.sheet, values=100 * answers.said * weight[:, None], named=answers.names)


def count_answers(study: Study, blocks: Sequence[Block], epoch: str | int) -> int:
    """Answers to a question, the median over students."""
    moment = take_epoch(study, epoch)
    counts = [
        moment.tallies[block.label, name, block.seed].answers.mean()
        for block in blocks
        for name in block.matrix.index
    ]
    return max(1, round(float(np.median(counts))))


def split_table(transfer: pd.DataFrame, measure: str) -> pd.DataFrame:
    """How lambda splits, for the sizes whose neutral students are there."""
    own = transfer[(transfer.measure == measure) & transfer.own.notna()]
    return own.assign(rest_low=math.nan, rest_high=math.nan).reset_index(drop=True)


# --- beside other studies -----------------------------------------------------------------------


def beside_table(transfer: pd.DataFrame, study: str, others: str, measure: str) -> pd.DataFrame:
    """This study's sizes and those of other finished ones, read from their tables; empty with no others."""
    names = [name.strip() for name in others.split(",") if name.strip()]
    if not names:
        return pd.DataFrame(columns=[*transfer.columns, "study"])
    parts = [transfer[transfer.measure == measure].assign(study=study)]
    for name in names:
        path = paths.tables(name) / "transfer.csv"
        if not path.is_file():
            raise MissingInput(f"study {name} has no table {path.name}: make report STUDY={name} first")
        table = pd.read_csv(path, dtype={"epoch": str})
        own = table[table.measure == measure]
        if own.empty:
            known = ", ".join(sorted(set(table.measure)))
            raise BadParameter(f"study {name} has no {measure}, only {known}: choose it with -p measure")
        parts.append(own.assign(study=name))
    return pd.concat(parts, ignore_index=True)


def difference_table(beside: pd.DataFrame) -> pd.DataFrame:
    """Sizes that this study shares with another: the difference in lambda and its standard error.

    The studies are taken to be independent; the same animals in both make the error too large, the same
    datasets too small. No interval: the one that was tried covered .98 instead of .95 (Welch).
    """
    first = beside.study.iloc[0] if len(beside) else ""
    records = beside.to_dict("records")
    here = {row["size"]: row for row in records if row["study"] == first}
    rows = [
        (first, row["study"], row["size"], row["params"], here[row["size"]]["lambda"] - row["lambda"],
         math.hypot(here[row["size"]]["error"], row["error"]), row["measure"])
        for row in records
        if row["study"] != first and row["size"] in here
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["study", "other", "size", "params", "difference", "error", "measure"])


def dose_table(beside: pd.DataFrame) -> pd.DataFrame:
    """The studies side by side by how many lists a student read; empty where they do not differ in it."""
    doses = {name: read_dose(name) for name in dict.fromkeys(beside.study)}
    if len(set(doses.values()) - {None}) < 2:
        return pd.DataFrame(columns=[*beside.columns, "n_keep"])
    table = beside.assign(n_keep=beside.study.map(doses)).dropna(subset="n_keep")
    return table.sort_values(["params", "n_keep"], kind="stable", ignore_index=True)


def read_dose(study: str) -> int | None:
    """How many lists a study's students read, from the first of its evaluations that is there."""
    for path in files.list_documents(paths.results(study), "*/*/s*.json"):
        if path.parent.name != config.UNTUNED:
            chain: Mapping = files.read_json(path).get("lineage", {}).get("chain", {})
            found = chain.get("finetune", {}).get("config", {}).get("n_lists")
            found = found or chain.get("generate", {}).get("config", {}).get("n_keep")
            return int(found) if found else None
    return None
