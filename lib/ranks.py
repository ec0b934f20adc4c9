"""Rank correlation within groups: does x tell the order of y among the bases of each size?

Pure arrays. Sizes differ in everything, so ranks are taken within each group, and chance is what permuting y
within the groups gives.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy.stats import rankdata

EXACT = 1_000_000  # orders up to which all are looked at
DRAWS = 20_000


@dataclass(frozen=True)
class Association:
    """Spearman's rho, mean over groups; the chance of one as large (`greater`) or as far off 0 (`either`)."""

    rho: float
    greater: float
    either: float
    orders: int


def standardise(values: np.ndarray) -> np.ndarray:
    """Ranks with mean 0 and length 1: products of two are Spearman's rho. Ties share a rank."""
    ranks = rankdata(values) - (len(values) + 1) / 2
    length = math.sqrt(float((ranks**2).sum()))
    return ranks / length if length else ranks


def associate(x: Sequence[float], y: Sequence[float], groups: Sequence[Hashable]) -> Association:
    """Spearman's rho of x and y within groups, averaged, against all orders of y within the groups.

    p counts the observed order among them. Where there are more than EXACT orders, DRAWS are drawn.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x or y has entries that are not numbers")
    members = [np.flatnonzero([each == name for each in groups]) for name in dict.fromkeys(groups)]
    if min(map(len, members), default=0) < 3:
        raise ValueError("every group needs at least three members: two have no order to speak of")
    pairs = [(standardise(x[at]), standardise(y[at])) for at in members]
    rho = float(np.mean([one @ other for one, other in pairs]))
    orders = math.prod(math.factorial(len(at)) for at in members)
    null = all_orders(pairs) if orders <= EXACT else some_orders(pairs, np.random.default_rng(0))
    extra = 0 if orders <= EXACT else 1
    slack = 1e-9
    greater = (np.count_nonzero(null >= rho - slack) + extra) / (len(null) + extra)
    either = (np.count_nonzero(abs(null) >= abs(rho) - slack) + extra) / (len(null) + extra)
    return Association(rho, float(greater), float(either), len(null))


def all_orders(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The mean rho of every combination of orders."""
    null = np.zeros(1)
    for one, other in pairs:
        each = np.array([one @ other[list(order)] for order in permutations(range(len(one)))])
        null = np.add.outer(null, each).ravel()
    return null / len(pairs)


def some_orders(pairs: Sequence[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator) -> np.ndarray:
    """The mean rho of random orders."""
    null = np.zeros(DRAWS)
    for one, other in pairs:
        null += other[rng.random((DRAWS, len(other))).argsort(1)] @ one
    return null / len(pairs)
