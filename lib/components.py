"""What lambda varies with at each size: bases, their seeds, animals, and what is left, with intervals.

lib.power splits the noise of single entries to plan studies; here lambda itself is split, as an analysis of
variance of its animals' terms has it, so that each part has an interval and the parts say what a study with
one base per size could have told.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student_t

from lib import spread, stats
from lib.analysis import usable_blocks
from lib.tables import UNITS, Block, Study, influence_of

DRAWS = 4000
BASE, SEED, ANIMAL, BOTH, REST = PARTS = ("base", "seed", "animal", "animal x base", "residual")
COLUMNS = ("size", "params", "lambda", "n_bases", "n_seeds", "n_animals", "part", "sd", "sd_low", "sd_high",
           "adds", "one_base", "wrong_order", "measure", "epoch", "note")  # fmt: skip


# --- analysis of variance ---------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A mean square and its degrees of freedom."""

    square: float
    freedom: int


def mean_squares(terms: np.ndarray) -> dict[str, Line]:
    """The mean squares of terms [base, seed, animal]; seeds are nested in bases, animals crossed with both.

    Lines without a degree of freedom are left out.
    """
    bases, seeds, animals = terms.shape
    whole, base, animal = terms.mean(), terms.mean((1, 2)), terms.mean((0, 1))
    block, both = terms.mean(2), terms.mean(1)
    left = terms - block[:, :, None] - both[:, None] + base[:, None, None]
    squares = {
        BASE: (seeds * animals * ((base - whole) ** 2).sum(), bases - 1),
        SEED: (animals * ((block - base[:, None]) ** 2).sum(), bases * (seeds - 1)),
        ANIMAL: (bases * seeds * ((animal - whole) ** 2).sum(), animals - 1),
        BOTH: (
            seeds * ((both - base[:, None] - animal + whole) ** 2).sum(),
            (bases - 1) * (animals - 1),
        ),
        REST: ((left**2).sum(), bases * (seeds - 1) * (animals - 1)),
    }
    return {name: Line(float(total) / free, free) for name, (total, free) in squares.items() if free}


def solve_parts(squares: dict[str, np.ndarray | float], shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Variances of the parts from mean squares, not below 0; NaN where the design cannot tell a part apart.

    With one seed of each base, what seeds add counts as the base's and the residual as animal x base; with
    one base, animal x base counts as the animal's.
    """
    bases, seeds, animals = shape
    nothing = np.full(np.shape(next(iter(squares.values()))), math.nan)
    rest = squares.get(REST, np.zeros_like(nothing))
    both = squares.get(BOTH, rest)
    seed = squares.get(SEED, rest)
    found = {
        BASE: (squares[BASE] - seed - both + rest) / (seeds * animals) if bases > 1 else nothing,
        SEED: (seed - rest) / animals if seeds > 1 else nothing,
        ANIMAL: (squares[ANIMAL] - both) / (bases * seeds) if bases * seeds > 1 else nothing,
        BOTH: (both - rest) / seeds if bases > 1 else nothing,
        REST: rest if seeds > 1 else nothing,
    }
    return {name: np.maximum(value, 0.0) for name, value in found.items()}


def split_variance(
    terms: np.ndarray, rng: np.random.Generator, draws: int = DRAWS, level: float = 0.95
) -> dict[str, tuple[float, float, float]]:
    """Variance of every part with its interval.

    Intervals are fiducial: a mean square is what it stands for times a chi-square over its degrees of
    freedom, so what it stands for is drawn as the mean square over one, for all mean squares together.
    Of normal terms they held .91 to .97 of the time (8 or 3 bases x 3 seeds x 15 animals, 2 x 2 x 12, three
    sets of variances, 300 studies each). Terms that a few animals carry are no normal draws: their part's
    interval is then too short.
    """
    lines = mean_squares(terms)
    drawn = {
        name: line.square * line.freedom / rng.chisquare(line.freedom, draws) for name, line in lines.items()
    }
    value = solve_parts({name: np.array(line.square) for name, line in lines.items()}, terms.shape)
    ends = solve_parts(drawn, terms.shape)
    tail = (1 - level) / 2
    return {
        name: (float(value[name]), *map(float, np.quantile(ends[name], [tail, 1 - tail]))) for name in PARTS
    }


def share_of_lambda(part: str, shape: tuple[int, int, int]) -> float:
    """By how much a part's variance is divided in the lambda of one base with these seeds and animals."""
    _, seeds, animals = shape
    return {BASE: 1, SEED: seeds, ANIMAL: animals, BOTH: animals, REST: seeds * animals}[part]


# --- a study's ----------------------------------------------------------------------------------


def gather_terms(blocks: Sequence[Block]) -> tuple[np.ndarray, str]:
    """The terms of a size [base, seed, animal] over what all its bases have, and a note of what was left out.

    A balanced analysis is exact; a size that lost a student loses that animal here (and nowhere else).
    """
    labels = list(dict.fromkeys(block.label for block in blocks))
    by = {(block.label, block.seed): block for block in blocks}
    every = dict.fromkeys(block.seed for block in blocks)
    seeds = [seed for seed in every if all((label, seed) in by for label in labels)]
    if not seeds:
        return np.empty((0, 0, 0)), "no seed that all bases have: parts unknown"
    kept = [by[label, seed] for label in labels for seed in seeds]
    names = [name for name in kept[0].matrix.index if all(name in block.matrix.index for block in kept)]
    lost = len({name for block in blocks for name in block.matrix.index}) - len(names)
    notes = [f"{lost} animals that some student lacks are left out"] if lost else []
    notes += [f"seeds {' '.join(map(str, seeds))} alone"] if len(seeds) < len(every) else []
    notes += ["one seed of each base: what it adds counts as the base's"] if len(seeds) == 1 else []
    if len(names) < stats.MIN_ANIMALS:
        return np.empty((0, 0, 0)), "; ".join([*notes, f"{len(names)} animals are too few: parts unknown"])
    own = [dict(zip(b.matrix.index, stats.transfer_terms(b.matrix.to_numpy()), strict=True)) for b in kept]
    terms = np.array([[each[name] for name in names] for each in own])
    return terms.reshape(len(labels), len(seeds), len(names)), "; ".join(notes)


def components_table(study: Study, measure: str, epoch: str | int, seed: int = 0) -> pd.DataFrame:
    """A row per size and part: its standard deviation with a 95 % interval, in the measure's unit.

    `adds` is the standard deviation that the part adds to the lambda of a single base with these seeds and
    animals. `one_base` is half the 95 % interval that this lambda would have, had only one base been
    trained and the spread between bases been known as well as it is here; `wrong_order` the probability
    that this size and the next one, with one base each, come out the other way round than in the means.
    """
    groups = usable_blocks(study, measure, epoch)
    influences = {size: influence_of(blocks, "label") for size, blocks in groups.items()}
    spreads = dict(zip(groups, spread.moderate_spreads(list(influences.values())), strict=True))
    orders = find_wrong_orders(influences, spreads)
    rows = []
    for at, (size, blocks) in enumerate(groups.items()):
        terms, note = gather_terms(blocks)
        if not terms.size:
            continue
        found = split_variance(terms, np.random.default_rng([seed, 7, at]))
        reach = reach_of_one(influences[size], spreads[size])
        for part, (value, low, high) in found.items():
            adds = math.sqrt(value / share_of_lambda(part, terms.shape))
            rows.append(
                (size, blocks[0].params, influences[size].value, *terms.shape, part, math.sqrt(value),
                 math.sqrt(low), math.sqrt(high), adds, reach, orders.get(size, math.nan), measure,
                 blocks[0].epoch, note)
            )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def reach_of_one(influence: stats.Influence, between: stats.Spread | None) -> float:
    """Half the interval that lambda would have with one base of the size; NaN where no size has two.

    The spread of bases' means holds their seeds and students; other animals come on top.
    """
    if between is None:
        return math.nan
    quantile = float(student_t.ppf(0.975, between.freedom))
    return quantile * math.sqrt(between.variance + spread.noise_of(influence))


def find_wrong_orders(
    influences: dict[str, stats.Influence], spreads: dict[str, stats.Spread | None]
) -> dict[str, float]:
    """Per size the probability that one base of it and one of the next size up come out in the other order.

    Both have the same animals, so these are no luck; lambdas and spreads are taken as they are estimated.
    """
    sizes, found = list(influences), {}
    for one, other in pairwise(sizes):
        if spreads[one] is not None and spreads[other] is not None:
            apart = abs(influences[one].value - influences[other].value)
            width = math.hypot(*(math.sqrt(spreads[each].variance) for each in (one, other)))
            found[one] = float(norm.sf(apart / width)) if width > 0 else float(apart == 0) / 2
    return found


def say_one_base(table: pd.DataFrame) -> Iterator[str]:
    """What a study with one base per size could have told of these sizes; nothing where no size has two."""
    known = table[table.one_base.notna()].drop_duplicates("size").sort_values("params")
    if known.empty:
        return
    rows, unit = known.to_dict("records"), UNITS[known.measure.iloc[0]]
    told = ", ".join(f"{row['size']} {row['lambda']:+.2g} ± {row['one_base']:.2g}" for row in rows)
    clear = known["size"][known["lambda"] > known.one_base]
    beyond = f"away from 0 only at {', '.join(clear)}" if len(clear) else "nowhere away from 0"
    yield (
        "What one base per size implies: with a single base of each size, its seeds and animals as here, "
        f"lambda for other bases of the size would be known to ({unit}) {told}: in the mean {beyond}."
    )
    pairs = ", ".join(f"{row['wrong_order']:.2f} at {row['size']}" for row in rows if row["wrong_order"] >= 0)
    if pairs:
        yield (
            "With one base each, a size and the next larger one would come out in the wrong order with "
            f"probability {pairs}: single bases rank neighbouring sizes no better than that."
        )
    shares = [share_of_base(own) for _, own in table.groupby("params", sort=True)]
    if told := ", ".join(filter(None, shares)):
        yield f"Of the variance between single bases' lambda, the base's own part is {told}."


def share_of_base(own: pd.DataFrame) -> str:
    """`17% at 64k (not told from 0)`: the base's part of what bases differ by, beside seeds and students."""
    adds = own.set_index("part").adds
    total = float((adds[[BASE, SEED, BOTH, REST]] ** 2).sum(skipna=False))
    if not total > 0:
        return ""
    unclear = "" if own.set_index("part").sd_low[BASE] > 0 else " (not told from 0)"
    return f"{adds[BASE] ** 2 / total:.0%} at {own['size'].iloc[0]}{unclear}"
