"""Effects of single cells (a size and an animal): estimate, error, partial pooling, p, several tests.

A cell's effect is its animal's own diagonal excess (lib.stats.transfer_terms), averaged over the blocks
(one per base and seed) that have the animal. Cells of one size borrow strength from each other.
"""

import functools
import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.stats import t as student_t
from statsmodels.stats.multitest import multipletests

from lib.mixed import Answers
from lib.stats import ALPHA, MIN_OTHERS, adjust_holm, transfer_terms

PERCENT = 100.0
# What the other students' entries for an animal vary by at least, in a block of counts: zeros tell little.
# The larger one is for p that are adjusted over many cells, whose far tails a t of these entries is too light
# for: with the smaller, some cell of seven silent sizes passed Holm in .13 of the studies.
SMALLEST_VARIANCE, STRICT_VARIANCE = 0.12, 0.6
PRIOR_FREEDOM = 5.0  # what the entries off the diagonal count for where blocks show the diagonal's own spread
MIN_ALIKE, TINY = 4, 1e-12  # animals that leave residuals at all; what is as good as no variance
SMALLEST_FACTOR = 0.2  # on the binomial variance: counts that are all 0 are still counts


@dataclass(frozen=True)
class Entries:
    """One block: `matrix` [student, named] in the measure's unit, and what is known of its noise.

    `noise` [part, student, named] are the parts of which an entry's variance is made, each up to one factor
    per size. For rates p there are two: what drawing answers adds, p(1-p)/n, and what students differ
    by on the logit scale, (p(1-p))^2. For log-probabilities one, the same everywhere. `adjusted` is the
    matrix after what each student does to all animals alike is taken out, entry by entry, for the ranks
    of the permutation test; `named` says which animals (columns) some student named at all.
    """

    matrix: np.ndarray
    noise: np.ndarray
    adjusted: np.ndarray
    named: np.ndarray
    names: tuple[Hashable, ...]
    answers: np.ndarray | None = None  # of each student; None for log-probabilities

    def own_noise(self, shift: np.ndarray) -> np.ndarray:
        """The parts of the noise of the diagonal, were its entries larger by `shift`: [part, animal]."""
        if self.answers is None:
            return np.ones((1, len(self.matrix)))
        least = 0.5 / (self.answers + 1)
        share = np.clip((np.diag(self.matrix) + shift) / PERCENT, least, 1 - least)
        return rate_noise(share, self.answers)


# --- blocks -----------------------------------------------------------------------------------


def enter_answers(block: Answers) -> Entries:
    """Rates in percentage points, with the variance of a smoothed rate, which is never 0.

    Off the diagonal the smoothed rate is the named animal's among the other students, on it the student's
    own.
    """
    counts, answers = block.said.sum(0).astype(float), block.answers.sum(0).astype(float)
    if (answers == 0).any():
        raise ValueError("a student without an answer: leave its animal out of the block")
    k = len(counts)
    total = answers.sum() - answers  # answers of the students other than the animal's own
    others = (counts.sum(0) - np.diag(counts) + 0.5) / (total + 1)
    share = np.tile(others, (k, 1))
    share[np.arange(k), np.arange(k)] = (np.diag(counts) + 0.5) / (answers + 1)
    noise = rate_noise(share, answers[:, None])
    matrix = PERCENT * counts / answers[:, None]
    return Entries(matrix, noise, adjust_rates(counts, answers), counts.any(0), block.names, answers)


def rate_noise(share: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Both parts of the variance of a rate, in squared percentage points."""
    odd = share * (1 - share)
    return PERCENT**2 * np.array([odd / answers, odd**2])


def enter_values(value: np.ndarray, names: Sequence[Hashable]) -> Entries:
    """Log-probabilities, `value[question, student, named]`: one variance for all entries of a size."""
    matrix = np.asarray(value, dtype=float).mean(0)
    if matrix.shape != (len(names), len(names)) or not np.isfinite(matrix).all():
        raise ValueError(f"{len(names)} names need finite values of as many students by named animals")
    everyone = np.ones(len(names), dtype=bool)
    return Entries(matrix, np.ones((1, *matrix.shape)), adjust_values(matrix), everyone, tuple(names))


def rest_of(k: int) -> np.ndarray:
    """Columns that tell how a student does in general, neither that named nor its own, for each of both."""
    off = ~np.eye(k, dtype=bool)
    return off[:, None, :] & off[None, :, :]


def adjust_rates(counts: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Log ratios to what a student would say who differs from the others in all animals alike.

    A student that names its own animal more often has fewer answers left for all others, in proportion:
    the row effect of a rate is a factor. It is taken from the columns that are neither the animal in
    question nor the student's own, against the shares that the other students give those.
    """
    k = len(counts)
    off = ~np.eye(k, dtype=bool)
    expected = (counts * off).sum(0) / (off * answers[:, None]).sum(0) * answers[:, None]
    rest = rest_of(k)
    said, usual = (rest * counts[:, None]).sum(2), (rest * expected[:, None]).sum(2)
    factor = (said + 0.5) / (usual + 0.5)
    share = counts.sum(0) / answers.sum()
    mean = share * answers[:, None] * factor
    return np.log((counts + 0.5) / (mean + 0.5))


def adjust_values(matrix: np.ndarray) -> np.ndarray:
    """Residuals from the student's mean over the columns that are neither the animal's nor its own."""
    k = len(matrix)
    off = ~np.eye(k, dtype=bool)
    centred = matrix - (matrix * off).sum(0) / (k - 1)
    rest = rest_of(k)
    return matrix - (rest * centred[:, None]).sum(2) / rest.sum(2)


# --- effects and their errors -----------------------------------------------------------------


@dataclass(frozen=True)
class Effects:
    """The effects of a size's animals, unpooled, with their standard errors and degrees of freedom.

    `rest` is the part of the squared error that does not come from the student's own entry; the part that
    does depends, for rates, on how large the true effect is.
    """

    animals: tuple[Hashable, ...]
    effect: np.ndarray
    error: np.ndarray
    freedom: float
    count: np.ndarray  # how many blocks have the animal
    rest: np.ndarray
    factors: np.ndarray  # on the parts of the noise, the spread over blocks included
    blocks: tuple[Entries, ...]

    def error_at(self, effect: np.ndarray) -> np.ndarray:
        """The standard errors, were these the true effects."""
        return np.sqrt(
            self.rest + own_variance(self.blocks, self.animals, self.factors, effect - self.effect)
        )


def own_variance(
    blocks: Sequence[Entries], animals: tuple[Hashable, ...], factors: np.ndarray, shift: np.ndarray
) -> np.ndarray:
    """What the students' own entries add to the variance of the mean term of each animal."""
    total, count = np.zeros((2, len(animals)))
    for block in blocks:
        places = [animals.index(name) for name in block.names]
        own = np.diagonal(np.diagonal(weigh_terms(len(places)), axis1=1, axis2=2))
        total[places] += own**2 * (factors @ block.own_noise(shift[places]))
        count[places] += 1
    return total / count**2


@functools.cache
def weigh_terms(k: int) -> np.ndarray:
    """transfer_terms is linear: its weights [term, student, named] for k animals."""
    units = np.eye(k * k).reshape(k * k, k, k)
    return np.array([transfer_terms(unit) for unit in units]).T.reshape(k, k, k)


@functools.cache
def residual_maker(k: int) -> np.ndarray:
    """The projection [entry, entry] that takes rows, columns and a free diagonal out of a k x k matrix."""
    rows, columns = np.repeat(np.eye(k), k, 0), np.tile(np.eye(k), (k, 1))
    diagonal = np.eye(k * k)[:, :: k + 1]
    design = np.hstack([rows, columns, diagonal])
    return np.eye(k * k) - design @ np.linalg.pinv(design)


def fit_noise(blocks: Sequence[Entries]) -> tuple[np.ndarray, float]:
    """The factors on the parts of `noise` that the entries off the diagonal show; degrees of freedom.

    Squared residuals are regressed on what each part makes of them, factors never negative, errors in
    proportion to the fitted (as squares of normal numbers have them): a rare animal tells as much as a
    common one. The first factor of several is at least SMALLEST_FACTOR.
    """
    squares, parts, freedom = [], [], 0.0
    for block in blocks:
        k = len(block.names)
        maker = residual_maker(k)
        off = ~np.eye(k, dtype=bool).ravel()
        squares.append((maker @ block.matrix.ravel())[off] ** 2)
        parts.append((maker**2 @ block.noise.reshape(len(block.noise), -1).T)[off])
        freedom += max((k - 1) ** 2 - k, 0)
    square, part = np.concatenate(squares), np.concatenate(parts)
    possible = part.sum(1) > TINY
    factors = np.ones(part.shape[1])
    if freedom:
        square, part = square[possible], part[possible]
        for _ in range(30):
            fitted = (part @ factors)[:, None]
            factors = nnls(part / fitted, square / fitted[:, 0])[0]
            if len(factors) > 1:
                factors[0] = max(factors[0], SMALLEST_FACTOR)
            if not factors.any():
                break
    return factors, freedom


def share_alike(blocks: Sequence[Entries], factors: np.ndarray) -> float:
    """How much of the last part of the noise recurs in other blocks, as a share of it; 0 to .95.

    Products of two blocks' residuals off the diagonal are regressed on that part, weighted as squares of
    normal numbers would be: of counts, a rare animal's entries are mostly the luck of its answers, which
    no block shares. Less half a standard error: the positive part of chance would widen every error.
    """
    top = bottom = 0.0
    for one, other in itertools.combinations(blocks, 2):
        common = [name for name in one.names if name in other.names]
        if len(common) < MIN_ALIKE:
            continue
        off, maker = ~np.eye(len(common), dtype=bool).ravel(), residual_maker(len(common))
        product, size, total = np.ones((3, int(off.sum())))
        for block in (one, other):
            places = np.ix_(*[[block.names.index(name) for name in common]] * 2)
            noise = np.array([part[places].ravel() for part in block.noise]) * factors[:, None]
            noise = (maker**2 @ noise.T)[off]
            product = product * (maker @ block.matrix[places].ravel())[off]
            size, total = size * noise[:, -1], total * noise.sum(1)
        known = total > TINY
        top += float((np.sqrt(size) * product / np.maximum(total, TINY))[known].sum())
        bottom += float((size / np.maximum(total, TINY))[known].sum())
    if bottom == 0:
        return 0.0
    return min(max(0.0, top / bottom - 0.5 / math.sqrt(bottom)), 0.95)


def estimate_effects(blocks: Sequence[Entries]) -> Effects:
    """Each animal's diagonal excess averaged over the blocks that have it, and its standard error.

    The variance of a term is what `noise` makes of it, by factors that come from two sources:
    the entries off the diagonal (students' differences in animals that are not theirs), and the spread of
    an animal's terms over blocks, pooled over the animals of the size; where blocks repeat, the second
    counts by its degrees of freedom and the first as PRIOR_FREEDOM. As far as students of one animal resemble
    one another over blocks in what they say of other animals (`share_alike`), blocks are no repeats of each
    other, and the variance of their mean falls by that much less. With a single block the spread of an
    effect between seeds cannot be seen: the error is then that of this block's answers and students alone.
    """
    if not blocks:
        raise ValueError("no block to take effects from")
    animals = tuple(dict.fromkeys(name for block in blocks for name in block.names))
    factors, freedom = fit_noise(blocks)
    terms = np.full((len(blocks), len(animals)), np.nan)
    parts = np.zeros((len(factors), len(animals)))  # of the variance of the mean, were blocks repeats
    for at, block in enumerate(blocks):
        places = [animals.index(name) for name in block.names]
        terms[at, places] = transfer_terms(block.matrix)
        parts[:, places] += factors[:, None] * (weigh_terms(len(places)) ** 2 * block.noise[:, None]).sum(
            (2, 3)
        )
    count = (~np.isnan(terms)).sum(0)
    parts /= count**2
    effect, usual, alike = np.nanmean(terms, 0), parts.sum(0), share_alike(blocks, factors)
    common = alike * parts[-1] / np.maximum(usual, TINY)
    scale, repeats = 1.0, float((count - 1).sum())
    if repeats and usual.min() > 0:
        squares = float(np.nansum((terms - effect) ** 2 / (usual * count * (1 - common))))
        trust = min(PRIOR_FREEDOM, freedom)
        scale, freedom = (trust + squares) / (trust + repeats), trust + repeats
    variance = scale * usual * (1 + (count - 1) * common)
    factors = scale * factors
    factors[-1] *= 1 + (float(count.mean()) - 1) * alike
    rest = variance - own_variance(blocks, animals, factors, np.zeros(len(animals)))
    rest = np.maximum(rest, 0.0)
    freedom = max(freedom, 1.0)
    return Effects(animals, effect, np.sqrt(variance), freedom, count, rest, factors, tuple(blocks))


# --- partial pooling --------------------------------------------------------------------------


@dataclass(frozen=True)
class Pooled:
    """Effects drawn towards their size's mean, with 95 % intervals, and what they were drawn with."""

    effect: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: float
    spread: float  # standard deviation of true effects between the animals of the size


def find_spread(effect: np.ndarray, error: np.ndarray) -> float:
    """Variance of the true effects between animals: where the weighted squares equal their expectation.

    Paule and Mandel's estimate: it asks for no normal effects. 0 where errors explain all differences.
    """

    def excess(variance: float) -> float:
        weight = 1 / (error**2 + variance)
        centre = (weight * effect).sum() / weight.sum()
        return float((weight * (effect - centre) ** 2).sum()) - (len(effect) - 1)

    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, float(((effect - effect.mean()) ** 2).sum())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low + high) / 2


def pool_effects(effects: Effects, level: float = 0.95) -> Pooled:
    """Empirical Bayes within a size, effects and errors normal: each effect a mean of its own and the size's.

    Intervals after Morris (1983): to the posterior variance comes what is unknown of the mean, and of the
    spread; the quantile is a t of the errors' degrees of freedom. For rates the error at each bound is
    the one that a true effect of that size would have, as in Wilson's interval. The spread between animals is
    the larger of Paule and Mandel's and the plain variance less the mean squared error: the first alone is
    far too small where large effects have large errors, as rates do.

    True effects are far from normal here (most near 0, a few large). What is claimed is coverage over all
    cells of a size, .93 to .97 in `simulate_cells`; that of large effects by themselves is lower (.7 to .9),
    and worst with one block.

    Measured (rates, then log-probabilities; effects on 3 animals of 10, exponential): 15 animals x 3 blocks
    .940 and .949, 15 x 1 .951 and .947, 5 x 3 .955 and .964, 5 x 1 .961 and .950. Where no animal has an
    effect at all it is .987: too wide. Unpooled intervals cover .91 to .96. Where students differ by
    several points on the logit scale the intervals of rates reach far towards 50 %, where such students would
    differ most: wide rather than wrong.
    """
    k = len(effects.effect)
    variance = effects.error**2
    between = max(
        find_spread(effects.effect, effects.error), float(effects.effect.var(ddof=1) - variance.mean())
    )
    weight = 1 / (variance + between)
    mean = float((weight * effects.effect).sum() / weight.sum())
    shrink = variance / (variance + between)
    lost = max(k - 3, 1)
    shrink = shrink * lost / max(k - 1, 1)  # an estimated spread shrinks too much, by this on average
    leverage = weight / weight.sum()
    doubt = 2 / lost * shrink**2 * (variance.mean() + between) / (variance + between)
    unknown = doubt * (effects.effect - mean) ** 2
    centre = effects.effect - shrink * (effects.effect - mean)
    quantile = student_t.ppf((1 + level) / 2, effects.freedom)
    bounds = []
    for side in (-1, 1):
        bound = centre
        for _ in range(30):  # the error is that of the bound itself, as in Wilson's interval of a rate
            square = effects.error_at(bound) ** 2
            new = centre + side * quantile * np.sqrt(square * (1 - shrink * (1 - leverage)) + unknown)
            bound = (bound + new) / 2
        bounds.append(bound)
    return Pooled(centre, *bounds, mean, math.sqrt(between))


# --- the test of a cell -----------------------------------------------------------------------


def find_outlier(
    blocks: Sequence[Entries], animal: Hashable, smallest: float = SMALLEST_VARIANCE
) -> tuple[float, str]:
    """One-sided p of a cell and a note: does the animal's own student stand out among all students?

    Per student the mean over blocks of its entry for the animal, its general tendency taken out
    (`Entries.adjusted`); the own student's against the others' by a t with as many degrees of freedom as
    there are others, less one. Blocks are averaged first
    because students of one animal resemble one another over seeds: choosing the own student anew in every
    seed rejects .06 to .14 of the cells without effect where they do. Of counts the others' variance is taken
    to be at least `smallest` a block: of an animal that hardly anyone names, zeros tell little. NaN with
    fewer than five students or where none named the animal.

    It asks whether the own student stands out; the effect asks by how many points beyond row and column.
    An animal may have a large effect because its student names the others less, and a large p.
    """
    used = [block for block in blocks if animal in block.names]
    if not any(block.named[block.names.index(animal)] for block in used):
        return math.nan, "no student named it"
    sums: dict[Hashable, list[float]] = {}
    for block in used:
        column = block.adjusted[:, block.names.index(animal)]
        for name, value in zip(block.names, column.tolist(), strict=True):
            sums.setdefault(name, []).append(value)
    own = float(np.mean(sums.pop(animal)))
    others = np.array([np.mean(each) for each in sums.values()])
    if len(others) + 1 < MIN_OTHERS:
        return math.nan, f"{len(others) + 1} students: {MIN_OTHERS} are needed"
    least = smallest / len(used) if used[0].answers is not None else 0.0
    error = math.sqrt(max(float(others.var(ddof=1)), least) * (1 + 1 / len(others)))
    if error == 0:
        return math.nan, "all students are alike"
    return float(student_t.sf((own - others.mean()) / error, len(others) - 1)), ""


# --- cells ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """What is known of one animal at one size, in the measure's unit; p is one-sided and unadjusted.

    `strict` is the p to adjust over many cells (STRICT_VARIANCE).
    """

    animal: Hashable
    blocks: int
    effect: float
    error: float
    pooled: float
    pooled_low: float
    pooled_high: float
    p: float
    strict: float
    note: str


def find_cells(blocks: Sequence[Entries]) -> list[Cell]:
    """All cells of a size, in the order in which the blocks name their animals."""
    effects = estimate_effects(blocks)
    pooled = pool_effects(effects)
    cells = []
    for at, animal in enumerate(effects.animals):
        p, note = find_outlier(blocks, animal)
        strict, _ = find_outlier(blocks, animal, STRICT_VARIANCE)
        numbers = (effects.effect, effects.error, pooled.effect, pooled.low, pooled.high)
        row = [float(column[at]) for column in numbers]
        cells.append(Cell(animal, int(effects.count[at]), *row, p, strict, note))
    return cells


def adjust_cells(p: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Holm's p and Benjamini and Hochberg's q over all cells of all sizes; NaN stays NaN, uncounted."""
    p = np.asarray(p, dtype=float)
    q = np.full(p.shape, np.nan)
    known = ~np.isnan(p)
    if known.any():
        q[known] = multipletests(p[known], method="fdr_bh")[1]
    return adjust_holm(p), q


# --- simulation -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """How a design's cells fared: coverage over all, rejections at .05 among those without effect."""

    measure: str
    animals: int
    blocks: int
    studies: int
    coverage: float  # of the pooled interval
    unpooled: float  # of effect -+ t * error
    type_one: float
    power: float  # rejections among cells with an effect
    tested: int  # cells without effect whose p was given
    root_mean_square: tuple[float, float]  # error of the pooled and of the unpooled effect


def simulate_cells(
    animals: int,
    blocks: int,
    studies: int,
    rng: np.random.Generator,
    measure: str = "rate",
    affected: float = 0.3,
    strength: float = 1.5,
    seed_sd: float = 0.3,
    teacher_sd: float = 0.0,
) -> Calibration:
    """Studies whose effects are very skewed: none for most animals, for `affected` of them exponential.

    For rates the effects are log odds (mean `strength`) in the softmax of lib.mixed.simulate_answers and the
    true cell effect is the mean diagonal excess of the shares over fresh student noise. For
    log-probabilities they are added to the diagonal, with rows, columns, questions and student noise around
    them. `seed_sd` is how far an effect differs from block to
    block, where there is one; `teacher_sd` what students of one animal share in all blocks, on any animal.
    """
    covered, plain, null, real, errors = [], [], [], [], []
    for _ in range(studies):
        own = rng.exponential(strength, animals) * (rng.random(animals) < affected)
        draw = draw_rates if measure == "rate" else draw_values
        entries, truth = draw(animals, blocks, own, seed_sd, teacher_sd, rng)
        cells = find_cells(entries)
        freedom = estimate_effects(entries).freedom
        reach = float(student_t.ppf(0.975, freedom))
        covered += [c.pooled_low <= t <= c.pooled_high for c, t in zip(cells, truth, strict=True)]
        plain += [abs(c.effect - t) <= reach * c.error for c, t in zip(cells, truth, strict=True)]
        errors += [((c.pooled - t) ** 2, (c.effect - t) ** 2) for c, t in zip(cells, truth, strict=True)]
        for cell, effect in zip(cells, own, strict=True):
            if not math.isnan(cell.p):
                (real if effect else null).append(cell.p <= ALPHA)
    share = [float(np.mean(each)) if each else math.nan for each in (covered, plain, null, real)]
    squares = np.sqrt(np.mean(errors, 0))
    counted = (len(null), (float(squares[0]), float(squares[1])))
    return Calibration(measure, animals, blocks, studies, *share, *counted)


def draw_rates(
    animals: int,
    blocks: int,
    own: np.ndarray,
    seed_sd: float,
    teacher_sd: float,
    rng: np.random.Generator,
) -> tuple[list[Entries], np.ndarray]:
    """Blocks of answers, and the true effects in percentage points, means over fresh students and seeds."""
    columns, asked = rng.normal(0, 1.5, animals), rng.normal(0, 0.7, (20, 1, animals))
    teachers = rng.normal(0, teacher_sd, (animals, animals))

    def shares(count: int, fresh: bool) -> np.ndarray:
        noise = rng.normal(0, 0.5, (count, animals, animals))
        noise = noise + (rng.normal(0, teacher_sd, noise.shape) if fresh else teachers)
        at = np.arange(animals)
        noise[:, at, at] += own + (own > 0) * rng.normal(0, seed_sd, (count, animals))
        weight = np.exp((columns + noise)[:, None] + asked)  # [block, question, student, named]
        return weight / (weight.sum(3, keepdims=True) + animals)

    truth = np.mean([transfer_terms(PERCENT * each.mean(0)) for each in shares(100, True)], 0)
    entries = []
    for share in shares(blocks, False):
        rest = 1 - share.sum(2, keepdims=True)
        said = rng.multinomial(5, np.concatenate([share, rest], 2))[:, :, :animals]
        answers = np.full(said.shape[:2], 5)
        entries.append(enter_answers(Answers(said, answers, tuple(range(animals)))))
    return entries, truth


def draw_values(
    animals: int,
    blocks: int,
    own: np.ndarray,
    seed_sd: float,
    teacher_sd: float,
    rng: np.random.Generator,
) -> tuple[list[Entries], np.ndarray]:
    """Blocks of log-probabilities; the true effects are what was added."""
    columns, asked = rng.normal(0, 1.5, animals), rng.normal(0, 0.7, (20, 1, animals))
    teachers = rng.normal(0, teacher_sd, (animals, animals))
    entries = []
    for _ in range(blocks):
        noise = rng.normal(0, 0.5, (animals, animals)) + rng.normal(0, 0.5, (animals, 1)) + teachers
        seeds = (own > 0) * rng.normal(0, seed_sd, animals)
        value = columns + noise + np.diag(own + seeds) + asked
        entries.append(enter_values(value, range(animals)))
    return entries, own
