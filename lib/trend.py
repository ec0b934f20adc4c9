"""Is there a trend over sizes? A permutation test over bases, and one over animals given the bases.

The first is about bases of these kinds in general, the second about the very bases (and seeds) at hand.
Neither assumes a law: a slope in log10 of the parameters is what they are sensitive to.
"""

import math
from collections.abc import Hashable
from itertools import permutations, product

import numpy as np
from scipy.special import ndtr

from lib.scaling import Points, Trend, Units, summarise

Array = np.ndarray

MAX_EXACT = 20_000  # orders enumerated at most
MAX_FLIPS = 15  # animals whose signs are flipped in every way
LEVEL = 0.05


def refuse(slope: float, units: int, smallest: float, unit: str) -> Trend:
    """A test that could not come out significant whatever the data: no p, and why."""
    note = f"{units} {unit}: the smallest p there could be is {smallest:.2g}, over {LEVEL}; no p is given"
    return Trend(slope, math.nan, units, 0, True, note)


# --- bases ------------------------------------------------------------------------------------


def permute_bases(points: Points, draws: int = MAX_EXACT, rng: np.random.Generator | None = None) -> Trend:
    """Permutation test of the slope over bases; a unit is a base, its seeds and students averaged.

    The bases' means have variances up to a thousandfold apart, so neither they nor their ranks are
    exchangeable over sizes. Made so first: under no trend the means spread about a constant by their own
    noise and by the spread between bases, which that very hypothesis lets us estimate (Paule and Mandel);
    divided by both, with the constant taken out, they leave (bases - 1) uncorrelated contrasts of equal
    variance, in which the slope's score is a fixed weighted sum. Orders and signs of the contrasts are
    permuted: all of them where there are at most 20,000 (six bases and fewer), else `draws` random ones.
    Contrasts are chosen such that the score's weights are as 1 : 2 : 3 ..., which tells most orders apart.
    Exact for normal errors of known ratios. Of 1,000 studies without a trend it called one (at .05) in .042
    under the published noise, .041 with 20 % of the students missing, .064 with a few animals carrying most,
    .051 with bases that spread, .057 with three bases at each of six sizes, .053 with two at each of four
    (lawcheck.simulate_trend); permuting raw means gives .01 to .06, ranks .02 to .05, studentised slopes .02
    to .09. Bases are taken to be independent: animals that do well in every base of one size, and only
    there, would count as a difference between sizes.
    """
    return permute_units(summarise(points), draws, rng)


def permute_units(units: Units, draws: int, rng: np.random.Generator | None) -> Trend:
    """The test on bases that are already summarised."""
    count = len(units.y)
    variance = np.diag(units.noise)
    variance = variance + null_spread(units.y, variance)
    slope = weighted_slope(units.x, units.y, variance)
    dimensions = count - 1
    smallest = 2 / (math.factorial(dimensions) * 2**dimensions) if count > 1 else 1.0
    if units.sizes < 3:
        return Trend(slope, math.nan, count, 0, True, "a trend needs three sizes")
    if smallest > LEVEL:
        return refuse(slope, count, smallest, "bases")
    contrasts, weights = find_contrasts(units.x, units.y, variance)
    null, exact = permute_signed(contrasts, weights, draws, rng or np.random.default_rng(0))
    observed = abs(float(weights @ contrasts))
    extreme = int(np.count_nonzero(np.abs(null) >= observed * (1 - 1e-9) - 1e-12))
    p = extreme / len(null) if exact else (extreme + 1) / (len(null) + 1)
    return Trend(slope, p, count, len(null), exact)


def weighted_slope(x: Array, y: Array, variance: Array) -> float:
    """Weighted least squares slope, per unit of x."""
    weight = 1 / variance
    centred = x - np.average(x, weights=weight)
    return float((weight * centred * y).sum() / (weight * centred**2).sum()) if np.ptp(x) else math.nan


def null_spread(y: Array, variance: Array) -> float:
    """Variance between bases under no trend that makes the weighted squares about the mean as expected."""

    def excess(between: float) -> float:
        weight = 1 / (variance + between)
        return float((weight * (y - np.average(y, weights=weight)) ** 2).sum()) - (len(y) - 1)

    low, high = 0.0, float(np.ptp(y)) ** 2 + float(variance.max())
    if excess(low) <= 0:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def find_contrasts(x: Array, y: Array, variance: Array) -> tuple[Array, Array]:
    """Uncorrelated contrasts of the bases, free of the constant, and the slope's score in terms of them.

    They depend on x and the variances only, but for y that they are applied to.
    """
    root = 1 / np.sqrt(variance)
    level = root / np.linalg.norm(root)
    free = np.linalg.qr(np.column_stack([level, np.eye(len(x))[:, : len(x) - 1]]))[0][:, 1:]
    score = free.T @ (root * (x - np.average(x, weights=root**2)))
    score = score / np.linalg.norm(score)
    weights = np.arange(1.0, len(x))
    weights = weights / np.linalg.norm(weights)
    mirror = score - weights  # a Householder reflection takes the score to the weights
    norm = float(mirror @ mirror)
    turn = np.eye(len(score)) - (2 * np.outer(mirror, mirror) / norm if norm > 1e-14 else 0)
    return turn @ (free.T @ (root * y)), weights


def permute_signed(values: Array, weights: Array, draws: int, rng: np.random.Generator) -> tuple[Array, bool]:
    """The weighted sum under every order and sign of the values, or under `draws` random ones."""
    count = len(values)
    if math.factorial(count) * 2**count <= MAX_EXACT:
        orders = np.array(list(permutations(range(count))))
        signs = np.array(list(product((1, -1), repeat=count)))
        return ((weights * values[orders]) @ signs.T).ravel(), True
    orders = rng.random((draws, count)).argsort(1)
    signs = rng.choice((-1, 1), (draws, count))
    return (weights * values[orders] * signs).sum(1), False


# --- animals, given the bases -----------------------------------------------------------------


def flip_animals(points: Points, draws: int = MAX_EXACT, rng: np.random.Generator | None = None) -> Trend:
    """Sign-flip test of the slope over animals, given these bases.

    Each animal has a weighted slope over sizes (weights from the noise of the sizes, the same for all
    animals); under no trend it is as often up as down, so its sign may be flipped. Exact up to 2^15. What
    a whole seed has in common moves all animals together, which no flip shows: its estimated variance is
    added to every flip as normal noise (with one seed it cannot be seen, and the test is given the seed).
    What it does not cover is the luck of a base: it says whether these very bases differ in the direction
    of size, which is less than a trend. Flips want animals that stray evenly up and down: of 1,000 studies
    without a trend it called one (at .05) in .050, .058 with 20 % of the students missing, .06 to .07 with
    a few animals carrying most of a lambda.
    """
    units = summarise(points)
    x, order = np.unique(points.x, return_inverse=True)
    noise = np.array([np.diag(units.noise)[units.size == s].mean() for s in range(units.sizes)])
    common = np.array(
        [units.common[units.size == s].mean() / (units.size == s).sum() for s in range(units.sizes)]
    )
    terms: dict[Hashable, list[tuple[int, float]]] = {}
    for s, values, names in zip(order.tolist(), points.values, points.names, strict=True):
        for name, value in zip(names, values.tolist(), strict=True):
            terms.setdefault(name, []).append((s, value))
    loads, scores, totals = zip(*(animal_score(each, x, noise) for each in terms.values()), strict=True)
    scores, count = np.array(scores), int(np.count_nonzero(totals))
    slope = float(scores.sum() / sum(totals)) if sum(totals) else math.nan
    if units.sizes < 2:
        return Trend(slope, math.nan, count, 0, True, "a trend needs several sizes")
    if 2.0 ** (1 - count) > LEVEL:
        return refuse(slope, count, 2.0 ** (1 - count), "animals")
    scores = scores[np.array(totals) > 0]
    exact = count <= MAX_FLIPS
    if exact:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = (rng or np.random.default_rng(0)).choice((-1, 1), (draws, count))
    shared = math.sqrt(float((np.sum(loads, axis=0) ** 2 * common).sum()))
    p = tail_share(signs @ scores, abs(float(scores.sum())), shared)
    return Trend(slope, p if exact else (p * draws + 1) / (draws + 1), count, len(signs), exact)


def tail_share(null: Array, observed: float, shared: float) -> float:
    """Share of the null at least as far from 0 as what was observed, each with normal noise added to it."""
    if shared == 0:
        return float(np.mean(np.abs(null) >= observed * (1 - 1e-9) - 1e-12))
    return float(np.mean(ndtr((null - observed) / shared) + ndtr((-null - observed) / shared)))


def animal_score(terms: list[tuple[int, float]], x: Array, noise: Array) -> tuple[Array, float, float]:
    """How an animal's score weighs the sizes, its score, and what to divide that by for its slope."""
    sizes = sorted({s for s, _ in terms})
    means = np.array([np.mean([value for s, value in terms if s == own]) for own in sizes])
    weight = 1 / noise[sizes]
    centred = x[sizes] - np.average(x[sizes], weights=weight)
    load = np.zeros(len(x))
    load[sizes] = weight * centred
    return load, float(load[sizes] @ means), float((weight * centred**2).sum())
