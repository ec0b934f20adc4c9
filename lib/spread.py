"""How far base models of one size differ in lambda: each size's own spread, moderated by what all sizes say.

Two bases say next to nothing of the spread between bases, eight say a good deal, and over sizes it is
not the same: it falls and grows with lambda. `stats.interval_of` takes what comes out; no file is read.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import betaln, digamma, polygamma

from lib.stats import Influence, Spread, group_units

Array = np.ndarray

# How the spread's sd goes with lambda: 0 not at all, 1 in proportion, and whatever lies between, evenly.
POWERS = np.arange(0, 1.3, 0.25)
# Degrees of freedom with which a size's variance is about what its lambda lets expect, evenly in logarithms:
# 1, sizes differ anyhow; 256, they keep to it.
FREEDOMS = 2.0 ** np.array([0, 1, 2, 3, 4, 5, 6, 8])
CENTRES = np.linspace(-6, 6, 81)  # log of the variance at the middle lambda, about its pooled estimate
LEAST = 1e-6  # of the pooled variance: bases that agree to the last digit do so by chance
FREEDOM_GRID = np.geomspace(0.3, 1e5, 4000)


def moderate_spreads(groups: Sequence[Influence]) -> list[Spread | None]:
    """The variance between units (bases) of each group (size), and what that is worth; None where no group
    has two units.

    A group's variance comes from an inverse chi-square about c * level^(2 p): level is the size of the
    group's lambda, p (POWERS) how far the spread goes with it, and the chi-square's degrees of freedom
    (FREEDOMS) say how strictly. All three are averaged over what the groups' own variances leave likely (c
    evenly in its logarithm), so that what is unknown of the pool is in the degrees of freedom given. With
    eight units a group's own variance dominates, with two the pool, with one there is nothing but the pool.
    A lambda that is not clear of its noise counts as its noise.

    Chosen among six by simulation: intervals of a mean over 2 to 8 bases, all normal, 400 studies each.
    Coverage of the worst size where the sd is in proportion to lambda, where it is constant, and where it
    jumps from size to size: this one .92, .94, .92; own variances alone .93 throughout, but at two bases five
    times as wide as need be, and none at one; one variance for all .73, .94, .72; Smyth's (2004) moderation
    towards one variance .92, .93, .92, but 4 times too wide where a proportional spread is smallest; towards
    a constant coefficient of variation .86, .91, .92. Whole studies stand in benchmarks/calibration.csv.
    """
    parts = [square_units(group) for group in groups]
    squares, freedom = (np.array([each[at] for each in parts], dtype=float) for at in (0, 1))
    if not freedom.sum():
        return [None] * len(groups)
    if not squares.sum():
        return [Spread(0.0, freedom.sum())] * len(groups)
    levels = np.array([max(group.value**2, noise_of(group)) for group in groups])
    found = average_variances(squares, freedom, np.log(np.maximum(levels, 1e-12 * levels.max() + 1e-300)))
    return [Spread(*each) for each in zip(*(part.tolist() for part in found), strict=True)]


def square_units(group: Influence) -> tuple[float, int]:
    """Sum of squares of the units' means about their mean, and its degrees of freedom."""
    means = group.means.mean(1)
    each = np.array([means[own].mean() for own in group_units(group.units).values()])
    return float(((each - each.mean()) ** 2).sum()), len(each) - 1


def noise_of(group: Influence) -> float:
    """Variance of a group's lambda for other animals, whatever its units do."""
    animals = group.weights @ group.animals.mean(2)
    return len(animals) / (len(animals) - 1) * float((animals**2).sum())


def average_variances(squares: Array, freedom: Array, levels: Array) -> tuple[Array, Array]:
    """Each group's variance and its degrees of freedom, from sums of squares and log squared levels.

    The posterior is a mixture of scaled inverse chi-squares, one for each (p, c, freedom) of the grid; it is
    given as the one with the same mean and variance of the logarithm.
    """
    seen, levels = freedom > 0, levels - levels.mean()
    own = np.where(seen, squares, 0.0)
    own = np.where(seen, np.maximum(own, LEAST * own.sum() / freedom.sum() * freedom), 0.0)
    shape = np.exp(POWERS[:, None] * levels)  # [power, group]
    middle = np.log((own / shape).sum(1) / freedom.sum())
    centre = np.exp(middle[:, None, None] + CENTRES[:, None])[..., None, :] * shape[:, None, None]
    prior = FREEDOMS[:, None]
    total = prior + freedom
    # Log density of the groups' own variances (Fisher's F), up to what all points of the grid share.
    ratio = own[seen] / centre[..., seen]
    ends = freedom[seen]
    fit = ends / 2 * np.log(ratio / prior) - (ends + prior) / 2 * np.log1p(ratio / prior)
    fit = (fit - betaln(ends / 2, prior / 2)).sum(-1)
    weight = np.exp(fit - fit.max())[..., None] / np.exp(fit - fit.max()).sum()
    logs = np.log((prior * centre + own) / total) + np.log(total / 2) - digamma(total / 2)
    mean = (weight * logs).sum((0, 1, 2))
    variance = (weight * (polygamma(1, total / 2) + (logs - mean) ** 2)).sum((0, 1, 2))
    worth = np.interp(-variance, -polygamma(1, FREEDOM_GRID / 2), FREEDOM_GRID)
    return np.exp(mean - np.log(worth / 2) + digamma(worth / 2)), worth
