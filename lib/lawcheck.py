"""Simulated studies whose law is known: what the weights, bands and trend tests of scaling.py are checked on.

Students' terms are drawn as the published runs have them: noise grows with the effect, half of its
variance belongs to the animal in that base and returns in every seed, some to the whole seed.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lib import scaling, trend

Array = np.ndarray

PUBLISHED_X = tuple(math.log10(n) for n in (0.494e9, 1.54e9, 3.09e9, 7.62e9, 14.8e9, 32.8e9, 72.7e9))
PUBLISHED_NOISE = (2.5, 2.7, 2.9, 4.2, 33.6, 17.1, 7.0)  # between the terms of one block, points
FLAT_NOISE, GROWTH = 2.5, 1.2  # noise of a block whose lambda is 0, and what a point of lambda adds
ANIMAL_SHARE, SEED_SHARE = 0.5, 0.05  # of that variance


@dataclass(frozen=True)
class Design:
    """A study's shape: sizes (log10 parameters), bases of each, seeds, animals, share of students lost."""

    name: str
    x: tuple[float, ...]
    animals: int
    seeds: int
    bases: int = 1
    missing: float = 0.0
    spread: float = 0.0  # between bases, standard deviation in points
    noise: tuple[float, ...] = ()  # by size; empty: it grows with the law as FLAT_NOISE and GROWTH say
    skewed: bool = False  # the animals' part is exponential, as a few animals carry most of a lambda


THREE = (PUBLISHED_X[0], PUBLISHED_X[3], PUBLISHED_X[6])
DESIGNS = (
    Design("7 sizes, 15 animals, 3 seeds", PUBLISHED_X, 15, 3),
    Design("7 sizes, 15 animals, 3 seeds, 20 % missing", PUBLISHED_X, 15, 3, missing=0.2),
    Design("3 sizes, 5 animals, 1 seed", THREE, 5, 1),
    Design("3 sizes, 5 animals, 1 seed, 20 % missing", THREE, 5, 1, missing=0.2),
)


@dataclass(frozen=True)
class Ranges:
    """What true laws are drawn from; the defaults are the prior that the weights assume (prior_shapes)."""

    top: tuple[float, float] = (1.0, 25.0)  # largest value over the sizes, points, evenly in its logarithm
    ratio: tuple[float, float] = (0.0, 0.5)  # lower to upper end of lines and steps
    fold: tuple[float, float] = (math.log(2), 7.0)  # log of the change of power laws over the sizes
    middle: tuple[float, float] = (0.0, 1.0)  # of a saturating law, and peaks: share of the range of sizes
    logistic: tuple[float, float] = (1 / 40, 1 / 4)  # its width over that range, evenly in its logarithm
    bump: tuple[float, float] = (1 / 20, 1 / 2)


PRIOR = Ranges()
NARROW = Ranges((3.0, 25.0), (0.0, 0.3), (1.5, 5.0), (0.2, 0.8), (1 / 25, 1 / 8), (1 / 12, 1 / 4))
WIDE = Ranges((0.5, 50.0), (0.0, 0.8), (0.3, 10.0), (-0.1, 1.1), (1 / 80, 1 / 2), (1 / 40, 1.0))


def draw_theta(law: scaling.Law, x: Array, ranges: Ranges, rng: np.random.Generator) -> Array:
    """Parameters of a law from the ranges; it rises or falls with even odds."""
    low, _, reach = scaling.span(x)
    top = math.exp(rng.uniform(*np.log(ranges.top)))
    up = rng.random() < 0.5
    if law.name == scaling.NONE:
        return np.array([top])
    if law.name in (scaling.LINE, scaling.STEP):
        other = top * rng.uniform(*ranges.ratio)
        first, last = (other, top) if up else (top, other)
        if law.name == scaling.LINE:
            return np.array([(first + last) / 2, (last - first) / 2])
        return np.array([first, last, rng.choice(scaling.step_grid(x)[:, 0])])
    if law.name == scaling.POWER:
        exponent = rng.uniform(*ranges.fold) / (math.log(10) * reach)
        return np.array([top, exponent if up else -exponent])
    where = low + reach * rng.uniform(*ranges.middle)
    shares = ranges.logistic if law.name == scaling.LOGISTIC else ranges.bump
    width = reach * math.exp(rng.uniform(*np.log(shares)))
    return np.array([top, where, width if up or law.name == scaling.BUMP else -width])


def draw_points(design: Design, law: scaling.Law, theta: Array, rng: np.random.Generator) -> scaling.Points:
    """A study whose true means follow the law; a block keeps at least three of its students."""
    x = np.array(design.x)
    truth = scaling.curve(law, theta, x, x)[0]
    noise = np.array(design.noise) if design.noise else np.hypot(FLAT_NOISE, GROWTH * truth)
    rows: list[tuple] = []
    for s, centre in enumerate(truth):
        sd = math.sqrt(ANIMAL_SHARE) * noise[s]
        for base in range(design.bases):
            own = sd * (
                rng.exponential(1, design.animals) - 1 if design.skewed else rng.normal(size=design.animals)
            )
            luck = design.spread * rng.normal()
            for _ in range(design.seeds):
                rest = math.sqrt(1 - ANIMAL_SHARE - SEED_SHARE) * noise[s] * rng.normal(size=design.animals)
                common = math.sqrt(SEED_SHARE) * noise[s] * rng.normal() if design.seeds > 1 else 0.0
                kept = rng.permutation(design.animals)[
                    : max(3, rng.binomial(design.animals, 1 - design.missing))
                ]
                kept.sort()
                rows.append(
                    (x[s], s, (s, base), (centre + luck + common + own + rest)[kept], tuple(kept.tolist()))
                )
    return scaling.Points(*(list(column) for column in zip(*rows, strict=True)))


# --- weights ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """One simulated study: the true law, the one chosen by a rule, and the weight the rule gave it."""

    design: str
    rule: str
    law_true: str
    law_chosen: str
    weight: float
    weight_true: float  # of the true law: its mean logarithm is what rules are compared by

    @property
    def right(self) -> bool:
        return self.law_true == self.law_chosen


RULES = ("evidence", "aicc of students", "aicc of sizes", "bic of students", "bic of sizes")


def simulate_laws(
    design: Design,
    n: int,
    rng: np.random.Generator,
    ranges: Ranges = PRIOR,
    rules: tuple[str, ...] = RULES[:1],
) -> list[Verdict]:
    """`n` studies whose true law is drawn evenly from those the sizes can carry, and what each rule says.

    `evidence` is the weight that scaling.compare_laws reports; the others are what it could have been.
    """
    x = np.array(design.x)
    laws = [law for law in scaling.LAWS if law.k < len(x)]
    rows = []
    for _ in range(n):
        true = laws[rng.integers(len(laws))]
        points = draw_points(design, true, draw_theta(true, x, ranges, rng), rng)
        for rule, weights in weigh_by_rules(points, laws, rules).items():
            chosen = max(weights, key=lambda name: weights[name])
            rows.append(Verdict(design.name, rule, true.name, chosen, weights[chosen], weights[true.name]))
    return rows


def weigh_by_rules(
    points: scaling.Points, laws: list[scaling.Law], rules: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """The laws' weights by each rule."""
    units = scaling.summarise(points)
    students, k = sum(len(each) for each in points.values), np.array([law.k for law in laws])
    found = {}
    if set(rules) - {"evidence"}:
        spreads = [scaling.find_spread(law, units) for law in laws]
        logliks = np.array(
            [
                scaling.score_fit(*each, starts=4)[0]
                for each in zip(laws, [units] * len(laws), spreads, strict=True)
            ]
        )
    for rule in rules:
        if rule == "evidence":
            found[rule] = scaling.weigh_laws(units, laws)
            continue
        name, _, unit = rule.partition(" of ")
        count = students if unit == "students" else len(units.y)
        each = k + units.identified
        # A law that AICc cannot count (too few observations) has no weight: that is what it says of it.
        spare = count - each - 1
        cost = (
            each * math.log(count)
            if name == "bic"
            else np.where(spare > 0, 2 * each + 2 * each * (each + 1) / np.maximum(spare, 1), np.inf)
        )
        score = logliks - cost / 2
        if not np.isfinite(score).any():
            score = np.zeros(len(laws))
        raw = np.exp(score - score.max())
        found[rule] = dict(zip((law.name for law in laws), (raw / raw.sum()).tolist(), strict=True))
    return found


def reliability(
    rows: list[Verdict], edges: tuple[float, ...] = (0, 0.4, 0.6, 0.8, 1.001)
) -> list[tuple[float, float, int]]:
    """Per bin of weight: mean weight, share of studies where the chosen law was the true one, studies."""
    bins = []
    for low, high in pairwise(edges):
        own = [row for row in rows if low <= row.weight < high]
        if own:
            bins.append(
                (float(np.mean([r.weight for r in own])), float(np.mean([r.right for r in own])), len(own))
            )
    return bins


# --- trend tests ------------------------------------------------------------------------------

TREND_DESIGNS = (
    Design("7 sizes, published noise", PUBLISHED_X, 15, 3, noise=PUBLISHED_NOISE),
    Design("7 sizes, published noise, 20 % missing", PUBLISHED_X, 15, 3, missing=0.2, noise=PUBLISHED_NOISE),
    Design(
        "7 sizes, published noise, skewed animals", PUBLISHED_X, 15, 3, noise=PUBLISHED_NOISE, skewed=True
    ),
    Design(
        "7 sizes, published noise, bases spread by 5", PUBLISHED_X, 15, 3, spread=5.0, noise=PUBLISHED_NOISE
    ),
    Design(
        "6 sizes, 3 bases, 8 animals, 1 seed",
        PUBLISHED_X[1:],
        8,
        1,
        bases=3,
        spread=2.0,
        noise=PUBLISHED_NOISE[1:],
    ),
    Design(
        "4 sizes, 2 bases, 12 animals, 1 seed",
        PUBLISHED_X[2:6],
        12,
        1,
        bases=2,
        spread=1.0,
        noise=PUBLISHED_NOISE[2:6],
    ),
    Design("3 sizes, 5 animals, 1 seed", THREE, 5, 1, noise=(2.5, 4.2, 7.0)),
)


def simulate_trend(
    design: Design, n: int, rng: np.random.Generator, draws: int = 2000, level: float = 3.0
) -> dict[str, float]:
    """Share of studies without a trend (a constant of `level` points) that each test rejects at .05.

    NaN where the test gives no p. A spread between bases is no luck of the animals: flip_animals is about
    the given bases, so its share is only that of a type I error where the design has no spread.
    """
    ps: dict[str, list[float]] = {"bases": [], "animals": []}
    for _ in range(n):
        points = draw_points(design, scaling.LAWS[0], np.array([level]), rng)
        ps["bases"].append(trend.permute_bases(points, draws, rng).p)
        ps["animals"].append(trend.flip_animals(points, draws, rng).p)
    return {
        test: math.nan if np.isnan(found).any() else float(np.mean(np.array(found) <= 0.05))
        for test, found in ps.items()
    }


# --- bands ------------------------------------------------------------------------------------


def bootstrap_means(points: scaling.Points, count: int, rng: np.random.Generator) -> Array:
    """Draws of the points' means: animals resampled jointly over all blocks, then seeds within their base."""
    everyone = sorted({name for own in points.names for name in own}, key=str)
    at = {name: i for i, name in enumerate(everyone)}
    copies = rng.multinomial(len(everyone), np.full(len(everyone), 1 / len(everyone)), count).astype(float)
    means = np.empty((count, len(points.values)))
    for i, (values, names) in enumerate(zip(points.values, points.names, strict=True)):
        weight = copies[:, [at[name] for name in names]]
        total = weight.sum(1)
        means[:, i] = np.where(total > 0, weight @ values / np.where(total > 0, total, 1), values.mean())
    for own in scaling.places(list(zip(points.x.tolist(), points.base, strict=True))).values():
        means[:, own] = np.take_along_axis(means[:, own], rng.integers(len(own), size=(count, len(own))), 1)
    return means


@dataclass(frozen=True)
class Cover:
    """How often a band held the true curve: over places and studies, and at the worst place."""

    design: str
    law: str
    mean: float
    least: float
    studies: int


def simulate_bands(
    design: Design, law: scaling.Law, n: int, rng: np.random.Generator, count: int = 400, places: int = 15
) -> Cover:
    """Coverage of the law's own band in `n` studies where it is the true law; NaN where none is given."""
    x = np.array(design.x)
    grid = np.linspace(x.min(), x.max(), places)
    held = []
    for _ in range(n):
        theta = draw_theta(law, x, PRIOR, rng)
        points = draw_points(design, law, theta, rng)
        units = scaling.summarise(points)
        best = scaling.fit_law(law, units.x, units.y, scaling.whiten(units.noise), 6)[0]
        drawn = scaling.fit_draws(law, units, 0.0, bootstrap_means(points, count, rng))
        curves = scaling.curve(law, np.vstack([best, drawn]), grid, units.x)
        band = scaling.make_band(law.name, grid, curves, units)
        if band.note:
            return Cover(design.name, law.name, math.nan, math.nan, n)
        truth = scaling.curve(law, theta, grid, x)[0]
        slack = (
            1e-6 * truth.max()
        )  # the feet of steep curves are 0 to the last digits, and so are their bands
        held.append((band.low - slack <= truth) & (truth <= band.high + slack))
    return Cover(design.name, law.name, float(np.mean(held)), float(np.mean(held, axis=0).min()), n)
