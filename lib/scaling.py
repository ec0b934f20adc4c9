"""Laws over sizes, on plain arrays: candidate laws, their maximum-likelihood fits and how likely each is.

Data are points, one per block (size, base, seed), each with its students' terms. Blocks of one base are
averaged, bases are the units. Nothing here reads a file; trend tests stand in trend.py, and the simulated
studies that the choices made here were checked on stand in lawcheck.py.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.special import digamma, log_ndtr, logsumexp, polygamma
from scipy.stats import chi2

Array = np.ndarray

LOG_2PI = math.log(2 * math.pi)
FLOOR = 1e-3  # no size's variance is taken to be below this share of the sizes' median one
FEW_SIZES = 5  # below, weights of laws are lower bounds (python calibrate.py, lawcheck.simulate_laws)
SETTLED = 0.05  # a law of less weight is called ruled out
LEAST_FREEDOM = 7  # of a size's noise (8 animals); with fewer it may be far from what it is said to be
AICC_TIE = 2.0  # laws this close in AICc are as good as each other


# --- points -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Points:
    """One point per block: log10 of the parameters, size, base, and the terms of its students by animal.

    A term is an animal's own diagonal excess (lib.stats.transfer_terms); the mean of a block's terms is
    its lambda. The same animals recur at every size and in every base: they are crossed with both.
    """

    x: Array
    size: Sequence[Hashable]
    base: Sequence[Hashable]
    values: tuple[Array, ...]
    names: tuple[tuple[Hashable, ...], ...]

    def __post_init__(self) -> None:
        x = np.asarray(self.x, dtype=float)
        lengths = {len(each) for each in (x, self.size, self.base, self.values, self.names)}
        if lengths != {len(x)} or not len(x):
            raise ValueError(f"x, size, base, values and names must be as long as each other, got {lengths}")
        values = tuple(np.asarray(each, dtype=float) for each in self.values)
        for own, names in zip(values, self.names, strict=True):
            if own.shape != (len(names),) or len(own) < 2 or not np.isfinite(own).all():
                raise ValueError(f"a block needs two finite terms or more, one per animal, got {own}")
        if any(len({x[i] for i in own}) > 1 for own in places(self.size).values()):
            raise ValueError("one size has several numbers of parameters")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "values", values)

    @property
    def means(self) -> Array:
        """Lambda of every block: what bootstrap draws are drawn around."""
        return np.array([each.mean() for each in self.values])


@dataclass(frozen=True)
class Units:
    """Bases with their mean lambda and the covariance of its error; `average` takes points to bases."""

    x: Array  # [units]
    size: Array  # [units], number of the size in ascending order of x
    y: Array  # [units]
    noise: Array  # [units, units]: animals, seeds and single students; the spread between bases is not in it
    estimated: Array  # the same before it was raised for being an estimate
    common: Array  # [units]: the part of the noise's variance that is common to a whole seed
    average: Array  # [units, points]
    freedom: int  # the least number of animals of a size, less one for each of its bases
    seeds_seen: bool  # some base has several seeds

    @property
    def sizes(self) -> int:
        return int(self.size.max()) + 1

    @property
    def identified(self) -> bool:
        """The spread between bases can be told from the trend: some size has several bases."""
        return len(self.x) > self.sizes


def places(labels: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Where each label stands."""
    return {label: [i for i, each in enumerate(labels) if each == label] for label in dict.fromkeys(labels)}


def summarise(points: Points) -> Units:
    """Average blocks to bases, and estimate how far a base's mean strays, from within its blocks alone.

    What each animal adds to a base's mean is one independent part (over all seeds: the same animal is not
    new in another seed); their variance over their number is that of the mean, for other animals and
    students. What is common to a seed adds to it, in proportion to the size's own noise, the proportion
    pooled over sizes (one size has two or three seeds, too few to say). Bases of one size share their
    animals, so they covary as far as these do alike. Between sizes errors count as independent: over the
    published runs animals correlate by .05 in the mean of the 21 pairs of sizes.

    Variances of sizes differ a thousandfold and some have few students. They are moderated towards each
    other as far as they resemble each other (empirical Bayes of log variances), never below FLOOR of the
    median. `noise` is raised by freedom / (freedom - 2), the variance of a Student t, without which a normal
    likelihood with an estimated variance is too sure of itself: laws that hold were then rejected .04 to .12
    of the time at .05, with it .03 to .08. `estimated` is not raised; weights of laws are computed from it.
    """
    x, order = np.unique(points.x, return_inverse=True)
    bases = places(list(zip(order.tolist(), points.base, strict=True)))
    size = np.array([at for at, _ in bases])
    average = np.zeros((len(bases), len(points.x)))
    for unit, own in enumerate(bases.values()):
        average[unit, own] = 1 / len(own)
    tables = [animal_parts(points, own) for own in bases.values()]
    variance, raised = moderate([np.array(list(each.values())) for each in tables], size)
    freedom = min(
        sum(len(table) - 1 for table, own in zip(tables, size, strict=True) if own == s)
        for s in range(len(x))
    )
    ratio, seeds_seen = seed_ratio(points, list(bases.values()))
    noise = np.zeros((len(bases), len(bases)))
    common = ratio * variance[size] / np.array([len(own) for own in bases.values()])
    for s in range(len(x)):
        own = np.flatnonzero(size == s)
        shared = share_of_animals([tables[i] for i in own])
        for i in own:
            for j in own:
                both = len(tables[i].keys() & tables[j].keys())
                part = 1.0 if i == j else shared
                noise[i, j] = part * variance[s] * both / (len(tables[i]) * len(tables[j]))
    y = average @ points.means
    up, noise = np.sqrt(raised[size]), noise + np.diag(common)
    return Units(
        x[size], size, y, noise * np.outer(up, up), noise, common * up**2, average,
        freedom, seeds_seen,
    )  # fmt: skip


def animal_parts(points: Points, own: Sequence[int]) -> dict[Hashable, float]:
    """What each animal adds to a base's mean, times the number of animals; the parts add up to 0.

    In a base whose blocks all have the same animals it is the animal's term, less its block's mean, averaged
    over blocks. An animal that is in more blocks, or in a smaller one, counts as much as it does in the mean.
    """
    parts: dict[Hashable, float] = {}
    for i in own:
        centred = (points.values[i] - points.values[i].mean()) / (len(own) * len(points.values[i]))
        for name, term in zip(points.names[i], centred.tolist(), strict=True):
            parts[name] = parts.get(name, 0.0) + term
    return {name: part * len(parts) for name, part in parts.items()}


def moderate(groups: Sequence[Array], size: Array) -> tuple[Array, Array]:
    """At each size: variance between animals, moderated; by how much to raise it for being an estimate."""
    squares, freedom = np.zeros(size.max() + 1), np.zeros(size.max() + 1)
    for group, s in zip(groups, size, strict=True):
        squares[s] += (group**2).sum()  # they add up to 0
        freedom[s] += len(group) - 1
    raw = squares / freedom
    if not raw.any():
        raise ValueError("no student differs from any other at any size: there is no noise to weigh laws by")
    raw = np.maximum(raw, FLOOR * np.median(raw[raw > 0]))
    prior, centre = fit_prior(raw, freedom)
    if math.isinf(prior):
        pooled, total = np.full(len(raw), centre), np.full(len(raw), freedom.sum())
    else:
        total = freedom + prior
        pooled = (freedom * raw + prior * centre) / total
    return pooled, np.where(total > 4, total / np.maximum(total - 2, 2), 2.0)


def fit_prior(variances: Array, freedom: Array) -> tuple[float, float]:
    """Freedom and centre of the inverse chi-square that the sizes' variances come from (Smyth 2004)."""
    if len(variances) < 2:
        return 0.0, float(variances.mean())
    logs = np.log(variances) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, freedom / 2).mean())
    if excess <= 0:
        return math.inf, float((freedom * variances).sum() / freedom.sum())
    grid = np.geomspace(1e-2, 1e4, 400)
    prior = float(grid[np.argmin(np.abs(polygamma(1, grid / 2) - excess))])
    return prior, float(np.exp(logs.mean() + digamma(prior / 2) - math.log(prior / 2)))


def seed_ratio(points: Points, bases: Sequence[Sequence[int]]) -> tuple[float, bool]:
    """Variance of what a whole seed has in common, in units of its base's animal variance; never below 0.

    From pairs of seeds of one base: the squared mean difference over the animals that both have, less what
    the spread of these differences lets it be by chance, is twice that variance.
    """
    excess, weight = 0.0, 0
    for own in bases:
        parts = np.array(list(animal_parts(points, own).values()))
        unit = float((parts**2).sum() / (len(parts) - 1))
        for i, j in combinations(own, 2):
            first, second = (
                dict(zip(points.names[k], points.values[k].tolist(), strict=True)) for k in (i, j)
            )
            apart = np.array([first[name] - second[name] for name in first if name in second])
            if len(apart) > 1 and unit > 0:
                excess += (apart.mean() ** 2 - apart.var(ddof=1) / len(apart)) / (2 * unit)
                weight += 1
    return (max(0.0, excess / weight), True) if weight else (0.0, False)


def share_of_animals(tables: Sequence[dict[Hashable, float]]) -> float:
    """Mean correlation between bases of what their animals do: how far one size's bases share their luck."""
    found = []
    for i, first in enumerate(tables):
        for second in tables[i + 1 :]:
            names = sorted(first.keys() & second.keys(), key=str)
            pair = np.array([[first[n], second[n]] for n in names])
            if len(names) > 2 and pair.std(0).all():
                found.append(np.corrcoef(pair.T)[0, 1])
    return float(np.clip(np.mean(found), 0, 0.95)) if found else 0.0


# --- laws -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Law:
    """A law: some parameters are linear (solved exactly), some bend the curve (searched on a grid).

    `basis(x, bend)` gives [grid, x, linear]; `grid(x)` gives the bends searched, evenly spread over their
    prior; `bounds(x)` what they may be. `positive`: the one linear parameter is a height, at least 0.
    """

    name: str
    linear: tuple[str, ...]
    bends: tuple[str, ...]
    basis: Callable[[Array, Array, Array], Array]
    grid: Callable[[Array], Array]
    positive: bool = False
    smooth: bool = False  # the bends can be polished between the points of the grid

    @property
    def k(self) -> int:
        return len(self.linear) + len(self.bends)


def sizes_of(x: Array) -> Array:
    """The sizes in ascending order."""
    return np.unique(x)


def span(x: Array) -> tuple[float, float, float]:
    """Lowest, highest and range."""
    return float(x.min()), float(x.max()), float(np.ptp(x))


def cross(*axes: Array) -> Array:
    """Every combination, one per row."""
    return np.stack([each.ravel() for each in np.meshgrid(*axes, indexing="ij")], axis=1)


def no_bend(x: Array) -> Array:
    return np.zeros((1, 0))


def constant_basis(x: Array, bend: Array, ref: Array) -> Array:
    return np.ones((len(bend), len(x), 1))


def line_basis(x: Array, bend: Array, ref: Array) -> Array:
    """Level in the middle of the sizes and the change from there to either end."""
    low, high, reach = span(ref)
    tilt = (x - (low + high) / 2) / (reach / 2)
    return np.broadcast_to(np.stack([np.ones_like(tilt), tilt], -1), (len(bend), len(x), 2))


def power_basis(x: Array, bend: Array, ref: Array) -> Array:
    """(N / N0)^b, N0 being the end of the sizes where the law is largest: a is its value there."""
    low, high, _ = span(ref)
    b = bend[:, :1]
    return (10 ** (b * (x - np.where(b > 0, high, low))))[..., None]


def power_grid(x: Array) -> Array:
    """Exponents that change the law by up to e^7 (about a thousandfold) over the sizes, down or up."""
    fold = np.arange(-7 + 0.0875, 7, 0.175)
    return (fold / (math.log(10) * span(x)[2]))[:, None]


def logistic_basis(x: Array, bend: Array, ref: Array) -> Array:
    argument = (x - bend[:, :1]) / bend[:, 1:]
    return (0.5 * (1 + np.tanh(argument / 2)))[..., None]


def places_grid(x: Array) -> Array:
    """Middles and peaks looked for: the sizes and a quarter of their range beyond either end."""
    low, high, reach = span(x)
    return np.linspace(low - reach / 4, high + reach / 4, 61)


def logistic_grid(x: Array) -> Array:
    """Widths from a fortieth to a quarter of the range: sharper looks like a step, wider like a line."""
    width = span(x)[2] * np.geomspace(1 / 40, 1 / 4, 12)
    return cross(places_grid(x), np.concatenate([-width[::-1], width]))


def bump_basis(x: Array, bend: Array, ref: Array) -> Array:
    return np.exp(-0.5 * ((x - bend[:, :1]) / bend[:, 1:]) ** 2)[..., None]


def bump_grid(x: Array) -> Array:
    """Widths (standard deviations) from a twentieth to half of the range."""
    return cross(places_grid(x), span(x)[2] * np.geomspace(1 / 20, 1 / 2, 14))


def step_basis(x: Array, bend: Array, ref: Array) -> Array:
    above = (x > bend[:, :1]).astype(float)
    return np.stack([1 - above, above], -1)


def step_grid(x: Array) -> Array:
    """The middle of every gap between neighbouring sizes: the data cannot tell places within a gap."""
    each = sizes_of(x)
    return ((each[1:] + each[:-1]) / 2)[:, None]


NONE, LINE, POWER = "none", "log-linear", "power"
LOGISTIC, BUMP, STEP = "saturating", "inverted-u", "changepoint"
LAWS: tuple[Law, ...] = (
    Law(NONE, ("level",), (), constant_basis, no_bend),
    Law(LINE, ("middle", "half change"), (), line_basis, no_bend),
    Law(POWER, ("a",), ("b",), power_basis, power_grid, positive=True, smooth=True),
    Law(LOGISTIC, ("a",), ("x0", "w"), logistic_basis, logistic_grid, positive=True, smooth=True),
    Law(BUMP, ("height",), ("peak", "width"), bump_basis, bump_grid, positive=True, smooth=True),
    Law(STEP, ("below", "above"), ("point",), step_basis, step_grid),
)
BY_NAME = {law.name: law for law in LAWS}


def curve(law: Law, theta: Array, x: Array, ref: Array) -> Array:
    """The law at x for each row of theta (linear parameters first); `ref` are the sizes it was fitted to."""
    theta = np.atleast_2d(theta)
    count = len(law.linear)
    basis = law.basis(x, theta[:, count:], ref)
    return np.einsum("nxl,nl->nx", basis, theta[:, :count])


# --- fitting ----------------------------------------------------------------------------------


def whiten(covariance: Array) -> Array:
    """A matrix W with W cov W' = 1."""
    return np.linalg.inv(np.linalg.cholesky(covariance))


def orthonormal(basis: Array) -> Array:
    """Orthonormal columns of [grid, units, one or two]; a column that vanishes or repeats is left at zero."""
    parts: list[Array] = []
    for at in range(basis.shape[2]):
        column = basis[:, :, at]
        norm = np.sqrt((column**2).sum(1, keepdims=True))
        for part in parts:
            column = column - (column * part).sum(1, keepdims=True) * part
        left = np.sqrt((column**2).sum(1, keepdims=True))
        kept = left > 1e-9 * np.maximum(norm, 1e-300)
        parts.append(np.where(kept, column / np.where(kept, left, 1), 0.0))
    return np.stack(parts, 2)


def solve_linear(law: Law, bend: Array, x: Array, root: Array, whitened: Array, ref: Array) -> Array:
    """The linear parameters that fit each row of `whitened` best, given that row's bend."""
    basis = np.einsum("uv,nvl->nul", root, law.basis(x, bend, ref))
    inner = np.einsum("nul,num->nlm", basis, basis)
    ridge = 1e-12 * np.trace(inner, axis1=1, axis2=2)[:, None, None] + 1e-300
    right = np.einsum("nul,nu->nl", basis, whitened)
    found = np.linalg.solve(inner + ridge * np.eye(len(law.linear)), right[..., None])[..., 0]
    return np.maximum(found, 0) if law.positive else found


def fit_law(law: Law, x: Array, y: Array, root: Array, starts: int = 1) -> tuple[Array, Array]:
    """theta [rows, k] and chi-square [rows] of the best fit to each row of y.

    Variable projection: at every bend of the grid the linear parameters are solved in closed form, for
    all rows at once; the best of the grid (and of `starts` slabs of it) are then polished.
    """
    y = np.atleast_2d(y)
    whitened = y @ root.T
    grid = law.grid(x)
    frame = orthonormal(np.einsum("uv,gvl->gul", root, law.basis(x, grid, x)))
    score = np.zeros((len(y), len(grid)))
    for at in range(frame.shape[2]):
        along = whitened @ frame[:, :, at].T
        score += np.square(np.maximum(along, 0) if law.positive else along)
    slabs = np.array_split(np.arange(len(grid)), min(starts, len(grid)))
    best = np.stack([slab[score[:, slab].argmax(1)] for slab in slabs], 1)  # [rows, slabs]
    rows = np.repeat(np.arange(len(y)), best.shape[1])
    bend = grid[best.ravel()]
    theta = np.hstack([solve_linear(law, bend, x, root, whitened[rows], x), bend])
    if law.smooth:
        theta = polish(law, theta, x, root, whitened[rows])
    loss = np.square(whitened[rows] - curve(law, theta, x, x) @ root.T).sum(1).reshape(best.shape)
    pick = loss.argmin(1)
    at = np.arange(len(y))
    return theta.reshape(*best.shape, law.k)[at, pick], loss[at, pick]


def polish(law: Law, theta: Array, x: Array, root: Array, whitened: Array, rounds: int = 10) -> Array:
    """Levenberg-Marquardt on the bends within the grid's bounds, all rows at once; it never gets worse.

    The height is solved anew at every step, so the search is over one or two numbers: the place, and the
    logarithm of the width, whose sign stays. A number that its bound holds back is left out of the step.
    """
    grid = law.grid(x)
    bend = theta[:, len(law.linear) :].copy()
    sign = np.sign(bend[:, 1:])  # of widths; power laws have none
    bend[:, 1:] = np.log(np.abs(bend[:, 1:]))
    widths = np.log(np.abs(grid[:, 1:]))
    low = np.concatenate([grid[:, :1].min(0), widths.min(0)])
    high = np.concatenate([grid[:, :1].max(0), widths.max(0)])
    step, eye = 1e-5 * (high - low), np.eye(len(low))

    def residuals(bend: Array) -> tuple[Array, Array]:
        basis = law.basis(x, restore(bend), x)[..., 0] @ root.T
        size = np.maximum((basis**2).sum(1), 1e-300)
        height = np.maximum((basis * whitened).sum(1) / size, 0)
        return whitened - height[:, None] * basis, height

    def restore(bend: Array) -> Array:
        return np.hstack([bend[:, :1], sign * np.exp(bend[:, 1:])])

    rest, height = residuals(bend)
    loss, damping = (rest**2).sum(1), np.full(len(theta), 1e-3)
    for _ in range(rounds):
        slopes = np.stack(
            [(residuals(bend + h * unit)[0] - rest) / h for h, unit in zip(step, eye, strict=True)], 2
        )
        descent = -np.einsum("nuk,nu->nk", slopes, rest)
        held = ((bend <= low) & (descent < 0)) | ((bend >= high) & (descent > 0))
        slopes, descent = np.where(held[:, None, :], 0, slopes), np.where(held, 0, descent)
        inner = np.einsum("nuk,nul->nkl", slopes, slopes)
        scale = np.einsum("nkk->nk", inner)
        inner = inner + (damping[:, None] * scale + 1e-12 * (1 + scale))[..., None] * eye
        move = np.linalg.solve(inner, descent[..., None])[..., 0]
        trial = np.clip(bend + move, low, high)
        new, tall = residuals(trial)
        total = (new**2).sum(1)
        better = total < loss
        bend, rest = np.where(better[:, None], trial, bend), np.where(better[:, None], new, rest)
        height, loss = np.where(better, tall, height), np.where(better, total, loss)
        damping = np.clip(np.where(better, damping / 8, damping * 8), 1e-8, 1e8)
    return np.hstack([height[:, None], restore(bend)])


# --- evidence ---------------------------------------------------------------------------------


AMPLITUDES = 2.0 ** np.arange(-3, 2)  # of a law's largest value, in units of the largest mean seen
SPREADS = np.array([0.0, 0.03, 0.06, 0.12, 0.25, 0.5])  # between bases, in the same unit
QUANTILES = np.array([1, 3, 5]) / 6  # of the noise's true size, given how well it is known
RATIOS = (np.arange(10) + 0.5) / 20  # of the lower end of a line or step to its upper one


def prior_shapes(law: Law, x: Array) -> Array:
    """Curves [grid, x] of largest value 1 that are equally likely under the law before data are seen.

    A law of change changes: lines and steps fall to less than half at their lower end (else they are a
    constant in all but name), power laws change two- to a thousandfold. Middles of a saturating law and
    peaks lie between the smallest and the largest size; a peak beyond them is a rise or a fall.
    """
    low, high, _ = span(x)
    grid = law.grid(x)
    if law.name in (LINE, STEP):
        first, last = (law.basis(x, grid, x)[..., i] for i in (0, 1))
        if law.name == LINE:
            first, last = (first - last) / 2, (first + last) / 2
        shapes = [r * a + b for r in RATIOS for a, b in ((first, last), (last, first))]
        return np.concatenate(shapes)
    if law.name == POWER:
        grid = grid[np.abs(grid[:, 0]) * math.log(10) * (high - low) >= math.log(2)]
    elif law.name in (LOGISTIC, BUMP):
        grid = grid[(grid[:, 0] >= low - 1e-9) & (grid[:, 0] <= high + 1e-9)]
    return law.basis(x, grid, x)[..., 0]


def log_evidence(law: Law, x: Array, y: Array, covariances: Sequence[Array]) -> Array:
    """Log of the likelihood averaged over the law's prior, up to what all laws share, for each row of y.

    Prior: the shapes of `prior_shapes`, evenly; the largest value is at least 0 and half normal with scale
    A, and A is one of AMPLITUDES times the largest mean seen, evenly, so that the prior has no unit of its
    own; `covariances` evenly. The largest value is integrated in closed form, all else is summed.
    """
    y = np.atleast_2d(y)
    shapes = prior_shapes(law, x)
    scale = np.maximum(np.abs(y).max(1), 1e-300)
    parts = []
    for covariance in covariances:
        root = whiten(covariance)
        whitened, turned = y @ root.T, shapes @ root.T
        constant = np.log(np.diag(root)).sum() - 0.5 * (whitened**2).sum(1)
        along, inner = whitened @ turned.T, (turned**2).sum(1)
        for amplitude in AMPLITUDES:
            tau = (amplitude * scale[:, None]) ** -2.0
            mean = along / np.sqrt(inner + tau)
            part = 0.5 * mean**2 + 0.5 * np.log(tau / (inner + tau)) + math.log(2) + log_ndtr(mean)
            parts.append(logsumexp(part, axis=1) + constant - math.log(len(shapes)))
    return logsumexp(parts, axis=0) - math.log(len(parts))


# --- comparison -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """One law's row: how well it fits, what it costs, what it predicts; NaN and a note where not fitted.

    `k` counts the law's parameters, and the spread between bases where that was fitted too. `weight` is the
    probability of the law among those fitted (all equally likely before), from the evidence;
    `weight_aicc` the Akaike weight. `density` is the mean log predictive density of a size's mean when the
    law is fitted without that size, `error` the root mean square of what it misses by.
    """

    law: str
    k: int
    loglik: float = math.nan
    aicc: float = math.nan
    weight: float = math.nan
    weight_aicc: float = math.nan
    theta: Array | None = None
    parameters: str = ""
    spread: float = 0.0
    chi_square: float = math.nan
    freedom: int = 0
    p_fit: float = math.nan
    density: float = math.nan
    error: float = math.nan
    note: str = ""

    @property
    def fitted(self) -> bool:
        return self.theta is not None


@dataclass(frozen=True)
class Comparison:
    """The laws side by side, the units they were fitted to, and what one base per size leaves open."""

    fits: tuple[Fit, ...]
    units: Units
    tipping: float  # spread between bases at which a constant would do as well; NaN where it was estimated
    statement: str

    @property
    def fitted(self) -> list[Fit]:
        return [fit for fit in self.fits if fit.fitted]

    @property
    def chosen(self) -> Fit:
        """The law of the greatest weight."""
        return max(self.fitted, key=lambda fit: fit.weight)

    def __getitem__(self, name: str) -> Fit:
        return next(fit for fit in self.fits if fit.law == name)


def compare_laws(points: Points, laws: Sequence[Law] = LAWS) -> Comparison:
    """Fit every law that the sizes can carry (more sizes than parameters) and weigh them.

    AICc counts students as observations: the noise is known from within blocks, not from how far sizes lie
    from a law, so the correction for estimating it belongs to the students. With sizes as observations it
    is far too sure: over 1,500 simulated studies of 7 sizes the chosen law's mean weight was .64, and it was
    the true one .43 of the time (with students .46 and .48; BIC .67 and .43). `weight` is the one to read:
    .53 where .55 were right; in bins, weight and share right, .30 and .37, .49 and .47, .69 and .69, .92
    and .92; at 3 sizes of 5 animals .51 and .56 (lawcheck.simulate_laws). That holds for laws drawn evenly
    and from the prior of `prior_shapes`; where true laws are clearer than it supposes, the weight is too
    modest (.64 where .72 were right), where they are wilder, too sure (.51 and .46). With three sizes
    it is too modest by up to .1, whatever the number of animals and bases. No weight speaks for laws that
    are not among them. Noise that grows with the effect, as it does in the published runs, pulls
    every law towards the sizes with little of both.
    """
    units = summarise(points)
    students = sum(len(each) for each in points.values)
    fits = [fit_one(law, units, students) for law in laws]
    weights = weigh_laws(units, [BY_NAME[fit.law] for fit in fits if fit.fitted])
    best = min((fit.aicc for fit in fits if fit.fitted), default=math.nan)
    total = sum(math.exp(-(fit.aicc - best) / 2) for fit in fits if fit.fitted)
    fits = [
        replace(fit, weight=weights[fit.law], weight_aicc=math.exp(-(fit.aicc - best) / 2) / total)
        if fit.fitted
        else fit
        for fit in fits
    ]
    tipping = math.nan if units.identified else find_tipping(units, laws, students)
    return Comparison(tuple(fits), units, tipping, describe_bases(units, tipping))


def covariance_of(units: Units, spread: float) -> Array:
    """Of the bases' means: noise, and the spread between bases."""
    return units.noise + spread**2 * np.eye(len(units.y))


def score_fit(law: Law, units: Units, spread: float, starts: int = 1) -> tuple[float, Array, float]:
    """Log-likelihood, theta and chi-square of the best fit at one spread between bases."""
    root = whiten(covariance_of(units, spread))
    theta, loss = fit_law(law, units.x, units.y, root, starts)
    loglik = np.log(np.diag(root)).sum() - 0.5 * float(loss[0]) - 0.5 * len(units.y) * LOG_2PI
    return float(loglik), theta[0], float(loss[0])


def find_spread(law: Law, units: Units) -> float:
    """The maximum-likelihood spread between bases; 0 where one base per size cannot show it."""
    if not units.identified:
        return 0.0
    grid = np.concatenate([[0.0], float(np.std(units.y)) * np.geomspace(0.02, 3, 12)])
    scores = [score_fit(law, units, spread)[0] for spread in grid]
    at = int(np.argmax(scores))
    fine = np.linspace(grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)], 9)
    return float(fine[np.argmax([score_fit(law, units, spread)[0] for spread in fine])])


def correct_aic(loglik: float, k: int, n: int) -> float:
    """AICc; infinite where there are not enough observations for it."""
    return -2 * loglik + 2 * k + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.inf


def fit_one(law: Law, units: Units, students: int) -> Fit:
    """A law's fit, its goodness and what it predicts of a size that it has not seen."""
    k = law.k + units.identified
    if units.sizes <= law.k:
        return Fit(law.name, k, note=f"{law.k} parameters need more than {units.sizes} sizes: not fitted")
    spread = find_spread(law, units)
    loglik, theta, _ = score_fit(law, units, spread, starts=6)
    root_sizes, residual = size_residuals(law, theta, units, spread)
    misfit = float(((root_sizes @ residual) ** 2).sum())
    freedom = units.sizes - law.k
    density, error = leave_out_sizes(law, units, spread)
    return Fit(
        law.name, k, loglik, correct_aic(loglik, k, students), theta=theta,
        parameters=describe_parameters(law, theta, spread if units.identified else 0.0), spread=spread,
        chi_square=misfit, freedom=freedom, p_fit=float(chi2.sf(misfit, freedom)),
        density=density, error=error,
    )  # fmt: skip


def size_averages(units: Units) -> Array:
    """The matrix [sizes, units] that averages a size's bases."""
    member = (units.size[None, :] == np.arange(units.sizes)[:, None]).astype(float)
    return member / member.sum(1, keepdims=True)


def size_residuals(law: Law, theta: Array, units: Units, spread: float) -> tuple[Array, Array]:
    """What whitens the sizes' means, and how far they lie from the law."""
    means = size_averages(units)
    rest = units.y - curve(law, theta, units.x, units.x)[0]
    return whiten(means @ covariance_of(units, spread) @ means.T), means @ rest


def leave_out_sizes(law: Law, units: Units, spread: float) -> tuple[float, float]:
    """Mean log predictive density and root mean square error of each size's mean, fitted without it.

    The prediction's variance is that of the size's own mean and that of the fit, to first order. NaN where
    a law has as many parameters as the sizes that are left.
    """
    if units.sizes - 1 < law.k:
        return math.nan, math.nan
    densities, misses = [], []
    means, whole = size_averages(units), covariance_of(units, spread)
    for s in range(units.sizes):
        kept = units.size != s
        x, y = units.x[kept], units.y[kept]
        root = whiten(whole[np.ix_(kept, kept)])
        theta = fit_law(law, x, y, root, 2)[0]
        at = np.append(x, units.x[~kept][:1])
        slopes = curve_slopes(law, theta[0], at, x)
        whitened = root @ slopes[:-1]
        doubt = np.linalg.pinv(whitened.T @ whitened, rcond=1e-10, hermitian=True)
        own = float(means[s] @ whole @ means[s])
        variance = own + float(slopes[-1] @ doubt @ slopes[-1])
        miss = float(means[s] @ units.y - curve(law, theta, at[-1:], x)[0, 0])
        densities.append(-0.5 * (LOG_2PI + math.log(variance) + miss**2 / variance))
        misses.append(miss)
    return float(np.mean(densities)), float(np.sqrt(np.mean(np.square(misses))))


def curve_slopes(law: Law, theta: Array, x: Array, ref: Array) -> Array:
    """How the law moves with each smooth parameter, [x, parameters]."""
    count = law.k if law.smooth else len(law.linear)
    step = 1e-5 * np.maximum(np.abs(theta[:count]), 1e-3)
    moved = theta + np.eye(law.k)[:count] * step[:, None]
    return ((curve(law, moved, x, ref) - curve(law, theta, x, ref)) / step[:, None]).T


def weigh_laws(units: Units, laws: Sequence[Law]) -> dict[str, float]:
    """The laws' probabilities from their evidence, every law as likely as any other before the data.

    The noise is taken as estimated. Where some size has few animals it may be off by a lot, and the evidence
    is averaged over how far (one factor for all sizes); done with 15 animals, this made the weights less
    sure than they were right (.51 against .55).
    """
    scale = float(np.abs(units.y).max())
    spreads = SPREADS * scale if units.identified else [0.0]
    few = units.freedom < LEAST_FREEDOM
    doubts = units.freedom / chi2.ppf(QUANTILES, units.freedom) if few else [1.0]
    covariances = [
        doubt * units.estimated + spread**2 * np.eye(len(units.y)) for spread in spreads for doubt in doubts
    ]
    logs = np.array([log_evidence(law, units.x, units.y, covariances)[0] for law in laws])
    weights = np.exp(logs - logsumexp(logs))
    return {law.name: float(each) for law, each in zip(laws, weights, strict=True)}


def find_tipping(units: Units, laws: Sequence[Law], students: int) -> float:
    """The least spread between bases at which no law beats a constant by more than AICC_TIE.

    It is assumed known and the same at every size: how lucky bases would have to be for the trend to be luck.
    """

    def lead(spread: float) -> float:
        scores = {
            law.name: correct_aic(score_fit(law, units, spread)[0], law.k, students)
            for law in laws
            if law.k < units.sizes
        }
        return scores[NONE] - min(scores.values())

    if lead(0.0) < AICC_TIE:
        return 0.0
    grid = float(np.ptp(units.y)) * np.geomspace(0.01, 3, 16)
    at = next((i for i, spread in enumerate(grid) if lead(spread) < AICC_TIE), None)
    if at is None:
        return math.inf
    low, high = (0.0 if at == 0 else grid[at - 1]), grid[at]
    for _ in range(6):
        middle = (low + high) / 2
        low, high = (low, middle) if lead(middle) < AICC_TIE else (middle, high)
    return float(high)


# --- words ------------------------------------------------------------------------------------


def name_size(x: float) -> str:
    """A number of parameters as people write it: 14.8B, 368k."""
    n = 10.0**x
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= unit:
            return f"{n / unit:.3g}{name}"
    return f"{n:.3g}"


def describe_parameters(law: Law, theta: Array, spread: float) -> str:
    """The parameters as text; a place on the axis of sizes is given as a size."""
    parts = []
    for name, value in zip((*law.linear, *law.bends), theta.tolist(), strict=True):
        text = name_size(value) if name in ("x0", "peak", "point") else f"{value:.4g}"
        parts.append(f"{name} {text}{' decades' if name in ('w', 'width') else ''}")
    return "; ".join(parts) + (f"; spread between bases {spread:.3g}" if spread else "")


def describe_bases(units: Units, tipping: float) -> str:
    """What can and cannot be said about other bases and other seeds."""
    seeds = (
        "" if units.seeds_seen else " With one seed per base, what a seed has in common counts as nothing."
    )
    if units.identified:
        text = "The spread between bases is estimated: laws are about bases of these sizes in general."
        return text + seeds
    text = "One base per size: luck of a base cannot be told from a trend, and all here is about these bases"
    if tipping == 0:
        text += "; even without any such spread no law is clearly better than a constant"
    elif math.isinf(tipping):
        text += "; no spread up to three times the range of the means would make a constant as good"
    else:
        text += (
            f"; a spread between bases of {tipping:.3g} (standard deviation) would make a constant as good "
            "as the best law"
        )
    return f"{text}.{seeds}"


# --- draws: bands and the peak ----------------------------------------------------------------


def stretch_draws(units: Units, draws: Array, spread: float = 0.0, seed: int = 0) -> Array:
    """Draws of the points' means as draws of the bases' means, as wide as those are known to stray.

    Resampling k animals or three seeds shows only (k - 1) / k or two thirds of their variance, and with one
    seed nothing of it. The draws keep their centre at the data and each base's own shape; their width is
    scaled to the standard deviation in `noise`. What sizes have in common, since the same animals recur, is
    kept as one number, the mean correlation between sizes: the correlations of each pair, from 15 animals,
    are mostly chance, and bands of constants, lines and power laws that took them as they were covered .86
    to .95. A spread between bases,
    which resampled animals cannot show, comes in as normal noise.
    """
    draws = np.asarray(draws, dtype=float)
    if draws.ndim != 2 or draws.shape[1] != units.average.shape[1] or len(draws) < 100:
        raise ValueError(
            f"draws must be at least 100 rows of {units.average.shape[1]} points, got {draws.shape}"
        )
    rng = np.random.default_rng(seed)
    means = draws @ units.average.T
    apart, own = means - means.mean(0), means.std(0)
    apart = np.where(own > 0, apart / np.where(own > 0, own, 1), rng.normal(size=apart.shape))
    alike = share_of_sizes(units, apart)
    common = apart.mean(1) / max(float(apart.mean(1).std()), 1e-300)
    for s in range(units.sizes):
        at = units.size == s
        apart[:, at] = apart[rng.permutation(len(apart))][:, at]
    apart = math.sqrt(1 - alike) * apart + math.sqrt(alike) * common[:, None]
    wide = np.sqrt(np.diag(units.noise))
    return units.y + apart * wide + spread * rng.normal(size=apart.shape)


def share_of_sizes(units: Units, apart: Array) -> float:
    """Mean correlation of the draws between bases of different sizes, at least 0."""
    other = units.size[:, None] != units.size[None, :]
    return float(np.clip((apart.T @ apart / len(apart))[other].mean(), 0, 0.95)) if other.any() else 0.0


def fit_draws(law: Law, units: Units, spread: float, draws: Array, seed: int = 0) -> Array:
    """theta of the law for each draw of the points' means, stretched as above."""
    root = whiten(covariance_of(units, spread))
    stretched = stretch_draws(units, draws, spread, seed)
    parts = np.array_split(stretched, math.ceil(len(draws) / 500))
    return np.concatenate([fit_law(law, units.x, part, root)[0] for part in parts])


@dataclass(frozen=True)
class Band:
    """A law's curve, or the laws' weighted mean, with a pointwise interval; NaN and a note where none."""

    law: str
    x: Array
    curve: Array
    low: Array
    high: Array
    note: str = ""


MEAN = "weighted mean"


def draw_bands(
    compared: Comparison, draws: Array, x: Array, level: float = 0.95, seed: int = 0
) -> tuple[Band, ...]:
    """Pointwise bands of every fitted law, and of the mean of their curves by the weights the data give them.

    A law's band: percentiles of its curves fitted to the stretched draws. That of the mean: percentiles of
    all laws' curves, as many of each as its weight, so that the doubt about the law is in it.
    Measured (lawcheck.simulate_bands, the law being the true one): .94 to .97 over 7 sizes, 15 animals, 3
    seeds, also with 20 % of the students missing; .94 to .96 with 8 animals and one seed; .92 to .94 over 3
    sizes with 15 animals and wherever a few animals carry most of a lambda. The band of the mean covers .96
    over all laws; that of the averaged curves themselves covered .89. Basic bands cover .74 to .95 and
    first-order ones .80 to .96. With 5 animals it is .93 to .95 at best and .92 with students missing, too
    near to failing: with fewer than 8 animals at some size none is given.
    """
    units, curves = compared.units, {}
    for fit in compared.fitted:
        law = BY_NAME[fit.law]
        theta = np.vstack([fit.theta, fit_draws(law, units, fit.spread, draws, seed)])
        curves[fit.law] = curve(law, theta, x, units.x)
    bands = [make_band(name, x, each, units, level) for name, each in curves.items()]
    weights = {name: compared[name].weight for name in curves}
    mean = sum(weights[name] * each[0] for name, each in curves.items())
    mixed = [each[1 : 1 + round(weights[name] * len(draws))] for name, each in curves.items()]
    return (*bands, make_band(MEAN, x, np.vstack([mean, *mixed]), units, level))


def refuse_band(units: Units) -> str:
    """Why no band is given, or nothing."""
    if units.freedom >= LEAST_FREEDOM:
        return ""
    return (
        f"no band: some size's noise is known from {units.freedom + 1:.0f} animals; "
        "from so few it can be too narrow (8 are needed)"
    )


def make_band(name: str, x: Array, curves: Array, units: Units, level: float = 0.95) -> Band:
    """The first curve is that of the data, the others are those of the draws."""
    if note := refuse_band(units):
        return Band(name, x, curves[0], np.full(len(x), np.nan), np.full(len(x), np.nan), note)
    low, high = np.quantile(curves[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(name, x, curves[0], low, high)


@dataclass(frozen=True)
class Peak:
    """Where the inverted U has its peak: log10 of parameters, the nearest size, an interval, open or not."""

    x: float
    nearest: float
    low: float  # -inf where the interval is open below
    high: float  # inf where it is open above
    share_below: float  # of the draws whose peak is no larger than the smallest size
    share_above: float
    note: str


def find_peak(compared: Comparison, draws: Array, level: float = 0.95, seed: int = 0) -> Peak | None:
    """Percentile interval of the peak over the draws; None where the inverted U was not fitted.

    Open on a side where more draws than the interval leaves out have their peak at or beyond the last size:
    there a rise that goes on cannot be told from a peak. It says where the peak is if there is one; whether
    there is one is said by the weight of the law.
    """
    fit = compared[BUMP]
    if not fit.fitted:
        return None
    units, tail = compared.units, (1 - level) / 2
    peaks = fit_draws(BY_NAME[BUMP], units, fit.spread, draws, seed)[:, 1]
    smallest, largest, _ = span(units.x)
    below, above = float(np.mean(peaks <= smallest)), float(np.mean(peaks >= largest))
    low, high = np.quantile(peaks, [tail, 1 - tail])
    notes = []
    if below > tail:
        low = -math.inf
        notes.append("a peak below the smallest size cannot be excluded")
    if above > tail:
        high = math.inf
        notes.append("a peak beyond the largest size cannot be excluded")
    peak = float(fit.theta[1])
    nearest = float(units.x[np.argmin(np.abs(units.x - peak))])
    return Peak(peak, nearest, float(low), float(high), below, above, "; ".join(notes))


# --- what can be said -------------------------------------------------------------------------


@dataclass(frozen=True)
class Trend:
    """A two-sided test of a slope: points (or nats) per tenfold size, p, and what it is about."""

    slope: float
    p: float
    units: int
    count: int  # of orders or flips
    exact: bool
    note: str = ""


def state_findings(
    compared: Comparison, trend: Trend | None = None, given: Trend | None = None, peak: Peak | None = None
) -> list[str]:
    """The comparison in sentences: what is ruled out, what cannot be told apart, what stays open."""
    parts = [
        *state_weights(compared),
        state_fit(compared),
        state_left_out(compared),
        state_peak(compared, peak),
        *state_trends(trend, given),
        compared.statement,
    ]
    return [part for part in parts if part]


def list_laws(fits: Sequence[Fit], value: Callable[[Fit], str]) -> str:
    """Names with a number each, best first."""
    return ", ".join(f"{fit.law} ({value(fit)})" for fit in fits)


def state_weights(compared: Comparison) -> list[str]:
    """Which laws the data rule out (weight below SETTLED) and which they cannot tell apart."""
    ranked = sorted(compared.fitted, key=lambda fit: -fit.weight)
    out = [fit for fit in ranked if fit.weight < SETTLED]
    left = [fit for fit in ranked if fit.weight >= SETTLED]
    said = []
    if out:
        said.append(f"Ruled out (weight below {SETTLED}): {list_laws(out, lambda fit: f'{fit.weight:.2g}')}.")
    if len(left) > 1:
        said.append(f"Cannot be told apart (weight): {list_laws(left, lambda fit: f'{fit.weight:.2f}')}.")
    else:
        said.append(f"Only one law is left: {list_laws(left, lambda fit: f'{fit.weight:.2f}')}.")
    if compared.units.sizes < FEW_SIZES and len(compared.fitted) > 1:
        said.append(
            f"With {compared.units.sizes} sizes weights are too modest: on simulated studies the likeliest "
            "law was the right one up to .1 more often than its weight says."
        )
    missing = [fit.law for fit in compared.fits if not fit.fitted]
    if missing:
        said.append(f"Not fitted, with {compared.units.sizes} sizes: {', '.join(missing)}.")
    return said


def state_fit(compared: Comparison) -> str:
    """Whether the best law fits at all: the best of a few can still be wrong."""
    fit = compared.chosen
    test = f"chi-square {fit.chi_square:.1f} on {fit.freedom}, p {fit.p_fit:.2g}"
    if fit.p_fit < SETTLED:
        return (
            f"Even the likeliest law, {fit.law}, misfits the sizes' means ({test}): none of these laws holds."
        )
    return f"The likeliest law, {fit.law}, is compatible with the sizes' means ({test})."


def state_left_out(compared: Comparison) -> str:
    """Which law predicts a size that it has not seen best."""
    ranked = sorted(
        (fit for fit in compared.fitted if not math.isnan(fit.density)), key=lambda fit: -fit.density
    )
    if not ranked:
        return "No law could be fitted without one of the sizes."
    best, constant = ranked[0], compared[NONE]
    said = (
        f"Left out one at a time, sizes are predicted best by {best.law} "
        f"(mean log density {best.density:.2f}, misses by {best.error:.3g})"
    )
    if best.law == NONE:
        return f"{said}: no law with a trend predicts a new size better than a constant."
    return f"{said}; a constant has {constant.density:.2f} and misses by {constant.error:.3g}."


def state_peak(compared: Comparison, peak: Peak | None) -> str:
    """Whether a peak inside the sizes is supported, and where it would be."""
    fit = compared[BUMP]
    if not fit.fitted:
        return ""
    inside = peak is not None and math.isfinite(peak.low) and math.isfinite(peak.high)
    if fit.weight >= 0.95 and inside:
        head = "A peak inside the range of sizes is supported"
    elif fit.weight < SETTLED:
        return f"A peak is not supported: the inverted U has weight {fit.weight:.2g}."
    else:
        head = f"A peak inside the range of sizes is possible, not established (weight {fit.weight:.2f})"
    if peak is None:
        return f"{head}."
    low = name_size(peak.low) if math.isfinite(peak.low) else "open"
    high = name_size(peak.high) if math.isfinite(peak.high) else "open"
    smallest, largest, _ = span(compared.units.x)
    outside = "" if smallest <= peak.x <= largest else ", outside the sizes"
    where = f"if there is one, it is at {name_size(peak.x)}{outside}, 95 % interval {low} to {high}"
    return f"{head}; {where}, nearest size {name_size(peak.nearest)}{'; ' + peak.note if peak.note else ''}."


def state_trends(trend: Trend | None, given: Trend | None) -> list[str]:
    """The two trend tests, each with what it is about."""
    said = []
    for test, about in ((trend, "over bases"), (given, "over animals, given these bases")):
        if test is not None and math.isnan(test.p):
            said.append(f"Trend {about}: {test.note}.")
        elif test is not None:
            said.append(
                f"Trend {about}: {test.slope:+.3g} per tenfold size, p {test.p:.2g} ({test.units} units)."
            )
    return said
