"""Statistics of transfer, on plain arrays: lambda, its permutation test, its interval, Holm's adjustment.

A block is one (base, seed): a square array of lifts, students in rows and named animals in columns, both
in one order. A sheet is the same question by question, and wider where a student is missing whose animal is
named: tests and intervals are over sheets. The unit of inference is the student. Nothing here reads a file.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import permutations as orderings

import numpy as np
from scipy.stats import t as student_t

MIN_ANIMALS = 3  # with two animals there are two orders of the rows and no diagonal excess of an animal's own
MIN_OTHERS = 5  # animals for a p or an interval: with fewer they do not hold (python calibrate.py)
MIN_SPLIT = 10  # animals for the interval of lambda's part `own`
MIN_BAND = 10  # animals for a band over several epochs, whose quantiles lie further out
ALPHA = 0.05  # a p that could never be as small as this says nothing: it is not given
# Degrees of freedom that an interval over k animals has less than k: one for the mean, the rest because row
# and column effects are estimated from the same few animals. Settled by simulation, not derived.
LOST = 2.5
BOOTSTRAPS = 4000
BATCH = 4096  # permutations drawn at once: small enough to stay in the cache

Matrix = np.ndarray


def check_square(matrix: Matrix, least: int) -> Matrix:
    """The matrix as floats, or a ValueError that says what is wrong with it."""
    matrix = np.asarray(matrix, dtype=float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"students by named animals must be square, got shape {matrix.shape}")
    if len(matrix) < least:
        raise ValueError(f"{len(matrix)} animals are too few, at least {least} are needed")
    if not np.isfinite(matrix).all():
        raise ValueError("the matrix has entries that are not numbers: drop the animals without them first")
    return matrix


def transfer_factor(matrix: Matrix) -> float:
    """lambda: the mean diagonal excess after row and column effects, `(trace - total/k) / (k - 1)`.

    It is the least-squares estimate of the common diagonal term in row + column + lambda * [row = column].
    Adding a constant to a row or a column leaves it as it is, so the control that is subtracted from
    every row (the neutral student) shifts no lambda; nor does a student who names all animals less.
    """
    matrix = check_square(matrix, 2)
    k = len(matrix)
    return float((np.trace(matrix) - matrix.sum() / k) / (k - 1))


def transfer_terms(matrix: Matrix) -> np.ndarray:
    """Each animal's own diagonal excess after row and column effects; their mean is exactly lambda.

    Least squares with a free diagonal: rows and columns are then fitted off the diagonal alone, so one
    animal's strong transfer does not count against the others. Needs three animals.
    """
    matrix = check_square(matrix, MIN_ANIMALS)
    k = len(matrix)
    return (np.diag(double_centre(matrix)) - transfer_factor(matrix) / k) / (1 - 2 / k)


def double_centre(matrix: Matrix) -> Matrix:
    """The matrix after its row and column means are taken out."""
    return matrix - matrix.mean(0, keepdims=True) - matrix.mean(1, keepdims=True) + matrix.mean()


def mean_factor(blocks: Sequence[Matrix]) -> float:
    """lambda over blocks: every block weighs the same."""
    return float(np.mean([transfer_factor(block) for block in blocks]))


# --- permutation test -------------------------------------------------------------------------


@dataclass(frozen=True)
class Permutation:
    """Outcome of a permutation test: one-sided p (greater) and z against the permutation null."""

    statistic: float
    p: float
    z: float
    count: int
    exact: bool


def permute_blocks(
    blocks: Sequence[Matrix], permutations: int, rng: np.random.Generator | None = None
) -> Permutation:
    """Rows against columns, each block by itself: for comparison (calibrate.py), permute_sheets is the test.

    The labels of the students are permuted independently within each block, the statistic is the mean
    lambda over blocks. All orders are enumerated when there are no more of them than `permutations`
    (p = share of orders at least as extreme, the observed one among them), else `permutations` are
    drawn and p = (b + 1) / (n + 1). Mean and variance of the null are known in closed form, so z
    carries no Monte-Carlo error; it is NaN where every order gives the same lambda (then p is 1).
    """
    blocks = [check_square(block, MIN_ANIMALS) for block in blocks]
    if not blocks:
        raise ValueError("no block to test")
    observed = mean_factor(blocks)
    orders = math.prod(math.factorial(len(block)) for block in blocks)
    if exact := orders <= permutations:
        null = enumerate_null(blocks)
    else:
        null = draw_null(blocks, permutations, rng if rng is not None else np.random.default_rng(0))
    # Sums in another order differ in the last bits: what ties on paper must tie here.
    slack = 1e-9 * max(1e-300, *(float(np.abs(block).max()) for block in blocks))
    extreme = int(np.count_nonzero(null >= observed - slack))
    p = extreme / len(null) if exact else (extreme + 1) / (len(null) + 1)
    spread = math.sqrt(sum(null_variance(block) for block in blocks)) / len(blocks)
    z = observed / spread if spread > slack else math.nan
    return Permutation(observed, p, z, len(null), exact)


def null_variance(block: Matrix) -> float:
    """Variance of lambda over all orders of the rows (Hoeffding's formula for a sum along a permutation)."""
    k = len(block)
    return float((double_centre(block) ** 2).sum() / (k - 1) ** 3)


def enumerate_null(blocks: Sequence[Matrix]) -> np.ndarray:
    """The mean lambda under every combination of orders."""
    null = np.zeros(1)
    for block in blocks:
        k = len(block)
        order = np.array(list(orderings(range(k))))
        null = np.add.outer(null, factors_of(block, block[np.arange(k), order].sum(1))).ravel()
    return null / len(blocks)


def draw_null(blocks: Sequence[Matrix], count: int, rng: np.random.Generator) -> np.ndarray:
    """The mean lambda under `count` random orders, drawn apart for each block."""
    null = np.zeros(count)
    for block in blocks:
        k = len(block)
        for start in range(0, count, BATCH):
            order = rng.random((min(BATCH, count - start), k)).argsort(1)
            null[start : start + BATCH] += factors_of(block, block[np.arange(k), order].sum(1))
    return null / len(blocks)


def factors_of(block: Matrix, traces: np.ndarray) -> np.ndarray:
    """lambda from traces; the total does not change when rows change place."""
    k = len(block)
    return (traces - block.sum() / k) / (k - 1)


# --- interval ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A confidence interval: bounds, standard error, degrees of freedom, the units it is over, its centre."""

    low: float
    high: float
    error: float
    freedom: float
    units: int
    centre: float = math.nan


@dataclass(frozen=True)
class Spread:
    """Variance of a unit's mean lambda about its group's, and its degrees of freedom (lib.spread)."""

    variance: float
    freedom: float


def group_units(units: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Where each unit's blocks stand."""
    return {unit: [i for i, each in enumerate(units) if each == unit] for unit in dict.fromkeys(units)}


# --- sheets: students by named animals, question by question ------------------------------------


@dataclass(frozen=True)
class Sheet:
    """What the students of one base and seed answered: `values` [questions, students, named], in one unit.

    Every student's own animal stands among the named; animals whose student is missing stand there too.
    """

    values: np.ndarray
    students: tuple[str, ...]
    named: tuple[str, ...]
    base: Hashable = 0
    seed: Hashable = 0

    @property
    def own(self) -> list[int]:
        """Where each student's own animal stands among the named."""
        return [self.named.index(name) for name in self.students]

    @property
    def square(self) -> np.ndarray:
        """[questions, students, own animals of the students]: all that lambda depends on."""
        return self.values[:, :, self.own]


def check_sheets(sheets: Sequence[Sheet]) -> list[Sheet]:
    """The sheets that have at least MIN_ANIMALS students; a ValueError where none has, or numbers lack."""
    for sheet in sheets:
        if not np.isfinite(sheet.values).all():
            raise ValueError("a sheet has entries that are not numbers: drop the animals without them first")
    used = [sheet for sheet in sheets if len(sheet.students) >= MIN_ANIMALS]
    if not used:
        raise ValueError(f"no sheet with at least {MIN_ANIMALS} students")
    return used


def speaks_of_others(sheets: Sequence[Sheet], least: int = MIN_OTHERS) -> bool:
    """Are there animals enough to say anything of chance? (with four no order can have p of .04 or less)"""
    return len({name for sheet in sheets for name in sheet.students}) >= least


def sheet_weights(sheets: Sequence[Sheet]) -> np.ndarray:
    """What each sheet counts: by its students less one, as least squares over all of them would have it."""
    sizes = np.array([len(sheet.students) - 1 for sheet in sheets], dtype=float)
    return sizes / sizes.sum()


PARTS = ("lambda", "own", "rest")


@dataclass(frozen=True)
class Influence:
    """A statistic and how much each animal, unit and question moves it.

    `animals` [sheets, animals, questions] are leave-one-animal-out influences within each sheet, which sum to
    zero over animals; `means` [sheets, questions] the statistic of each sheet and question. A student's
    answer about another's animal moves both animals and is counted twice in that: `pairs` is its variance.
    """

    value: float
    animals: np.ndarray
    means: np.ndarray
    pairs: float
    weights: np.ndarray
    units: tuple[Hashable, ...]


def measure_influence(sheets: Sequence[Sheet], units: Sequence[Hashable], part: str = "lambda") -> Influence:
    """Split a statistic into what every animal adds to it, in each sheet and question.

    With diagonal sum D and total T of a sheet's m x m square, lambda is (D - T/m) / (m - 1): the mean of the
    diagonal (`own`) less the mean off the diagonal (`rest` is that, negative). Taking an animal away
    takes its row and its column away, in all sheets at once.
    """
    everyone = sorted({name for sheet in sheets for name in sheet.students})
    questions = {len(sheet.values) for sheet in sheets}
    count = questions.pop() if len(questions) == 1 else 1
    moved = np.zeros((len(sheets), len(everyone), count))
    means = np.zeros((len(sheets), count))
    weights = sheet_weights(sheets)
    pairs = np.zeros((len(everyone), len(everyone)))
    for at, sheet in enumerate(sheets):
        square = sheet.square if len(sheet.values) == count else sheet.square.mean(0, keepdims=True)
        m = square.shape[1]
        diagonal = np.diagonal(square, axis1=1, axis2=2)
        trace, total = diagonal.sum(1, keepdims=True), square.sum((1, 2))[:, None]
        whole = find_part(trace, total, m, part)
        left = find_part(trace - diagonal, total - square.sum(1) - square.sum(2) + diagonal, m - 1, part)
        places = [everyone.index(name) for name in sheet.students]
        moved[at, places] = ((m - 1) / m * (whole - left)).T
        means[at] = whole[:, 0]
        if part != "own":
            pairs[np.ix_(places, places)] += weights[at] * pair_noise(square.mean(0))
    return Influence(
        float(weights @ means.mean(1)), moved, means, float((pairs**2).sum()), weights, tuple(units)
    )


def pair_noise(matrix: np.ndarray) -> np.ndarray:
    """What each entry off the diagonal adds to their mean, row and column effects taken out."""
    m = len(matrix)
    off = ~np.eye(m, dtype=bool)
    if m < 4:  # nothing is left of three animals' six entries
        return np.zeros_like(matrix)
    left = np.where(off, matrix - matrix[off].mean(), 0.0)
    rows, columns = left.sum(1), left.sum(0)  # least squares without a diagonal, in closed form
    scale = m * (m - 2)
    row, column = ((m - 1) * rows + columns) / scale, ((m - 1) * columns + rows) / scale
    left = np.where(off, left - row[:, None] - column[None, :], 0.0)
    freedom = m * (m - 1) - (2 * m - 1)
    return left / (m * (m - 1)) * math.sqrt(m * (m - 1) / freedom)


def find_part(trace: np.ndarray, total: np.ndarray, m: int, part: str) -> np.ndarray:
    """lambda, or one of the two means whose difference it is."""
    if part == "own":
        return trace / m
    rest = -(total - trace) / (m * (m - 1))
    return rest if part == "rest" else trace / m + rest


def interval_of(influence: Influence, spread: Spread | None = None, level: float = 0.95) -> Interval:
    """Interval when animals, units (bases, or seeds) and questions are each drawn at random.

    They are crossed, so the variance is that of the animals' part (their leave-one-out influences, which hold
    the single students' noise as well), plus what the units add beyond it, plus what the questions add:

        units      spread of the units' means less the noise of their students, never below 0; where
                   `spread` is given it was moderated over sizes (lib.spread)
        questions  spread of the questions' means less the noise of students and questions, never below 0

    With one unit the noise that two animals share is counted twice: its own part cannot be seen, and the
    interval would miss too often without. Degrees of freedom follow Satterthwaite. A few animals often carry
    all of the transfer, so the mean of a sample and its spread err together and a symmetric interval misses
    on one side; the quantiles are bent by the skewness of the animals' parts (the transformation of Hall,
    1992, with quantiles of t). What the interval covers: other animals, bases or seeds, and questions of this
    kind. With one unit and no spread its part cannot be seen, and the caller has to say so.
    """
    animals = influence.weights @ influence.animals.mean(2)
    k, questions, units = len(animals), influence.animals.shape[2], len(set(influence.units))
    raw = k / (k - 1) * float((animals**2).sum())
    from_animals = raw if units == 1 else max(raw - influence.pairs, influence.pairs)
    between, noise, freedom = split_units(influence, animals, spread)
    from_units, from_questions = max(0.0, between - noise), find_questions(influence, animals)
    variance = from_animals + from_units + from_questions
    parts = from_animals**2 / (k - LOST) + between**2 / freedom + from_questions**2 / max(1, questions - 1)
    reach = (from_animals + between + from_questions) ** 2 / parts if parts > 0 else math.inf
    skew = skewness(animals) * (from_animals / variance) ** 1.5 if variance > 0 else 0.0
    return bend_interval(influence.value, variance, reach, skew, k, level, units)


def split_units(
    influence: Influence, animals: np.ndarray, spread: Spread | None
) -> tuple[float, float, float]:
    """Variance that units show, how much of it is the noise of their students, degrees of freedom."""
    weights, members = influence.weights, group_units(influence.units)
    count, k = len(members), len(animals)
    shares = np.array([weights[own].sum() for own in members.values()])
    noise = 0.0
    if count > 1:
        per_sheet = influence.animals.mean(2)
        by_unit = np.array([weights[own] @ per_sheet[own] for own in members.values()])
        rest = by_unit - shares[:, None] * animals
        noise = float((rest**2).sum()) * count / (count - 1) * k / (k - 1)
    if spread is not None:
        return spread.variance * float((shares**2).sum()), noise, float(spread.freedom)
    if count == 1:
        return 0.0, noise, math.inf
    means = influence.means.mean(1)
    off = np.array([weights[own] @ (means[own] - influence.value) for own in members.values()])
    return count / (count - 1) * float((off**2).sum()), noise, count - 1.0


def find_questions(influence: Influence, animals: np.ndarray) -> float:
    """Variance that questions add beyond the noise of students and questions, never below 0."""
    k, questions = len(animals), influence.animals.shape[2]
    if questions == 1:
        return 0.0
    off = (influence.weights @ influence.means - influence.value) / questions
    cells = np.einsum("s,saq->aq", influence.weights, influence.animals) / questions
    noise = cells - animals[:, None] / questions
    scale = questions / (questions - 1)
    return max(0.0, scale * float((off**2).sum()) - scale * k / (k - 1) * float((noise**2).sum()))


def skewness(values: np.ndarray) -> float:
    """Sample skewness, corrected for its bias in small samples; 0 where there is no spread."""
    k, centred = len(values), values - values.mean()
    second = float((centred**2).mean())
    if second <= 0 or k < 3:
        return 0.0
    return float((centred**3).mean()) / second**1.5 * math.sqrt(k * (k - 1)) / (k - 2)


def bend_interval(
    centre: float, variance: float, freedom: float, skew: float, k: int, level: float, units: int
) -> Interval:
    """A t interval whose two sides are bent by the skewness of a mean over k (Hall's transformation)."""
    error = math.sqrt(variance)
    if error == 0:
        return Interval(float(centre), float(centre), 0.0, float(freedom), units, float(centre))
    reach = float(student_t.ppf((1 + level) / 2, freedom))
    bend = skew / math.sqrt(k)

    def unbend(y: float) -> float:  # beyond its saddle the transformation would stretch without bound
        if abs(bend) < 1e-6:
            return y
        return 3 / bend * (float(np.cbrt(max(0.0, 1 + bend * (y - bend / 6)))) - 1)

    low, high = centre - unbend(reach) * error, centre - unbend(-reach) * error
    return Interval(float(low), float(high), error, float(freedom), units, float(centre))


def correlate_residuals(one: Matrix, other: Matrix) -> float:
    """Correlation of two squares' entries off the diagonal, row and column effects taken out.

    NaN with fewer than four animals, whose entries leave nothing, and where one of the two does not vary.
    """
    off = ~np.eye(len(one), dtype=bool)
    first, second = (pair_noise(each)[off] for each in (one, other))
    if len(one) < 4 or not (first.std() > 0 and second.std() > 0):
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def permute_sheets(
    sheets: Sequence[Sheet], permutations: int, rng: np.random.Generator | None = None
) -> Permutation:
    """Are the students' animals arbitrary labels? Rows against columns, in all sheets with one order.

    The animals of the students are permuted, the same way in every base and seed, and lambda is computed
    anew. Seeds do not make students of one animal independent: teachers of one animal may pass the same
    other things on every time, and published runs share datasets. Permuting each seed by itself would count
    that as evidence for transfer. What has to hold is that rows could change places: a student that is
    noisier because its own animal is one that all students name noisily breaks that, and p is then too small
    (.1 to .2 at .05 in strong cases). Orders are enumerated where there are no more than `permutations`,
    else drawn. Students that are missing stay missing: the pattern moves with the labels.

    Answers are counts, so orders tie; of those the order counts as more extreme whose lambda of the square
    roots is larger (any statistic is exact here, one with fewer ties wastes less). p is NaN with fewer than
    five animals: too few orders, too many of them tied.
    """
    sheets = check_sheets(sheets)
    everyone = sorted({name for sheet in sheets for name in sheet.students})
    if any(set(everyone) - set(sheet.named) for sheet in sheets):
        raise ValueError("every sheet must name every student's animal")
    gains = np.zeros((2, len(everyone), len(everyone)))
    for sheet in sheets:
        matrix = sheet.values.mean(0)[:, [sheet.named.index(name) for name in everyone]]
        both = np.stack([matrix, np.sign(matrix) * np.sqrt(np.abs(matrix))])
        places = [everyone.index(name) for name in sheet.students]
        gains[:, places] += both - both.mean(1, keepdims=True)
    size = sum(len(sheet.students) - 1 for sheet in sheets)
    return permute_labels(gains, size, permutations, rng if rng is not None else np.random.default_rng(0))


def permute_labels(
    gains: np.ndarray, size: float, permutations: int, rng: np.random.Generator
) -> Permutation:
    """Is the sum along the diagonal of `gains[0]` larger than along other orders? `gains[1]` breaks ties."""
    k = gains.shape[1]
    gains = np.stack([double_centre(each) for each in gains])
    exact = math.factorial(k) <= permutations
    null = sum_orders(gains, permutations if not exact else None, rng)
    observed = np.trace(gains, axis1=1, axis2=2)
    slack = 1e-9 * k * np.maximum(1e-300, np.abs(gains).max((1, 2)))
    first, second = null - observed[:, None]
    extreme = int(np.count_nonzero((first > slack[0]) | ((first >= -slack[0]) & (second >= -slack[1]))))
    p = extreme / len(first) if exact else (extreme + 1) / (len(first) + 1)
    if k < MIN_OTHERS:
        p = math.nan
    deviation = math.sqrt(float((gains[0] ** 2).sum()) / (k - 1))
    z = float(observed[0]) / deviation if deviation > slack[0] else math.nan
    return Permutation(float(observed[0]) / size, p, z, len(first), exact)


def sum_orders(gains: np.ndarray, draws: int | None, rng: np.random.Generator) -> np.ndarray:
    """The sums of both matrices along all orders, or along so many drawn ones: [2, orders]."""
    k = gains.shape[1]
    if draws is None:
        order = np.array(list(orderings(range(k))))
        return gains[:, np.arange(k), order].sum(2)
    parts = [
        gains[:, np.arange(k), rng.random((min(BATCH, draws - start), k)).argsort(1)].sum(2)
        for start in range(0, draws, BATCH)
    ]
    return np.concatenate(parts, 1)


# --- several epochs, several groups -------------------------------------------------------------


def joint_band(
    influences: Sequence[Influence],
    rng: np.random.Generator,
    spreads: Sequence[Spread | None] | None = None,
    level: float = 0.95,
) -> list[Interval]:
    """Intervals of several statistics of the same sheets, say of all epochs, that hold together with `level`.

    A studentised bootstrap over animals, each drawn with all it has at every epoch: the lowest and highest t
    over the epochs give the two bounds, so that a few animals that carry everything widen the side that
    they should. What units and questions add is drawn from a normal with its degrees of freedom. A band is
    nowhere narrower than the pointwise interval.
    """
    spreads = spreads or [None] * len(influences)
    each = [interval_of(*pair, level) for pair in zip(influences, spreads, strict=True)]
    errors = np.array([one.error for one in each])
    if not errors.any():
        return each
    parts = np.array([one.weights @ one.animals.mean(2) for one in influences])[errors > 0]
    k = parts.shape[1]
    share = np.minimum(1.0, k / (k - 1) * (parts**2).sum(1) / errors[errors > 0] ** 2)
    counts = rng.multinomial(k, np.full(k, 1 / k), BOOTSTRAPS)
    sums, squares = counts @ parts.T, counts @ (parts**2).T
    sample = np.maximum((parts**2).sum(1), 1e-300)
    scale = (squares - sums**2 / k) / sample
    freedom = spreads[-1].freedom if spreads[-1] is not None else max(1, len(set(influences[0].units)) - 1)
    wave, chance = rng.normal(size=(BOOTSTRAPS, 1)), rng.chisquare(freedom, (BOOTSTRAPS, 1)) / freedom
    moved = sums / np.sqrt(k / (k - 1) * (parts**2).sum(1)) * np.sqrt(share) + np.sqrt(1 - share) * wave
    t = moved / np.sqrt(np.maximum(scale * share + chance * (1 - share), 1e-12))
    low = float(np.quantile(t.min(1), (1 - level) / 2))
    high = float(np.quantile(t.max(1), (1 + level) / 2))
    return [
        Interval(
            min(one.low, one.centre - high * one.error),
            max(one.high, one.centre - low * one.error),
            one.error,
            one.freedom,
            one.units,
            one.centre,
        )
        for one in each
    ]


# --- several tests ----------------------------------------------------------------------------


def adjust_holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down p values; a p that could not be computed (NaN) stays NaN and is not counted."""
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return adjusted
