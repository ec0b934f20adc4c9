"""The mixed-effects logistic model of the answers: does a student name its teacher's animal more often?

A multinomial logit with crossed random effects, beside lambda, on counts `said[question, student, named]` of
blocks (one per base and seed). It reports an odds ratio; its p is a permutation test and its interval
takes animals as the units: neither trusts the model's own standard error, which is too small.
"""

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse
from scipy.stats import norm
from scipy.stats import t as student_t
from statsmodels.genmod.bayes_mixed_glm import PoissonBayesMixedGLM

from lib.stats import ALPHA, MIN_ANIMALS, MIN_OTHERS, Sheet, permute_sheets

# The groups of random effects; a student's own level is a nuisance and not estimated but given room.
GROUPS = ("student", "target animal", "named animal", "student x named", "question x named")
FIXED = 2  # the intercept and the target effect
PRIOR_SD = 10.0  # of the fixed effects, on the log scale: flat for any odds ratio that can be seen
SMALLEST_SD = 0.02  # of a group of random effects: a share changed by 2 % at most is no change
ROUNDS, SETTLED = 300, 1e-4
INFORMED = 0.5  # answers naming the own animal, expected, from which an animal tells about the effect
STUDENT_SD = 2.0  # fixed: estimated, it would shrink away what an animal named more takes from all others
STRIDE = 2.0  # the furthest that one step moves a coefficient: a factor of seven in a share


@dataclass(frozen=True)
class Answers:
    """The answers of one (base, seed): who named which animal, question by question.

    `said[q, s, a]` counts the answers of student s to question q that name animal a; students and named
    animals stand in the order of `names`. `answers[q, s]` are all answers, those that name none included.
    """

    said: np.ndarray
    answers: np.ndarray
    names: tuple[Hashable, ...]

    def __post_init__(self) -> None:
        """Refuse counts that do not fit together."""
        questions, k = len(self.said), len(self.names)
        if self.said.shape != (questions, k, k) or self.answers.shape != (questions, k):
            raise ValueError(
                f"{k} names, but said is {self.said.shape} and answers {self.answers.shape}: "
                "said is [question, student, named], answers [question, student]"
            )
        if k < MIN_ANIMALS:
            raise ValueError(f"{k} animals are too few, at least {MIN_ANIMALS} are needed")
        if (self.said < 0).any() or (self.said.sum(2) > self.answers).any():
            raise ValueError("more answers name an animal than there are answers")


# --- the design -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Blocks of one shape, stacked: [block, named, question, student], so that one product serves them all.

    `own` says where each student's animal stands among the animals of the size.
    """

    said: np.ndarray
    offset: np.ndarray  # log of the answers [block, 1, question, student]; -inf where none was given
    own: np.ndarray  # [block, student]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Blocks, students and questions."""
        return len(self.said), self.said.shape[1], self.said.shape[2]


@dataclass(frozen=True)
class Design:
    """The blocks of a size, those of one shape next to each other, and the same stacked."""

    blocks: tuple[Answers, ...]
    animals: tuple[Hashable, ...]
    batches: tuple[Batch, ...]

    @property
    def students(self) -> int:
        return sum(len(block.names) for block in self.blocks)


def lay_out(blocks: Sequence[Answers]) -> Design:
    """The design of a size; every animal that some block has gets a target effect of its own."""
    if not blocks:
        raise ValueError("no block to fit")
    animals = tuple(dict.fromkeys(name for block in blocks for name in block.names))
    shapes: dict[tuple[int, ...], list[Answers]] = {}
    for block in blocks:
        shapes.setdefault(block.said.shape, []).append(block)
    batches = tuple(stack_blocks(own, animals) for own in shapes.values())
    return Design(tuple(block for own in shapes.values() for block in own), animals, batches)


def stack_blocks(blocks: Sequence[Answers], animals: Sequence[Hashable]) -> Batch:
    """Blocks of one shape as one batch."""
    said = np.stack([np.asarray(block.said, dtype=float).transpose(2, 0, 1) for block in blocks])
    with np.errstate(divide="ignore"):
        offset = np.log(np.stack([np.asarray(block.answers, dtype=float) for block in blocks]))
    own = np.array([[animals.index(name) for name in block.names] for block in blocks])
    return Batch(np.ascontiguousarray(said), offset[:, None], own)


# --- the fit ----------------------------------------------------------------------------------


@dataclass
class Local:
    """The coefficients of a batch that no other block has, and what is known of them."""

    student: np.ndarray  # [block, student]
    column: np.ndarray  # [block, named]
    cell: np.ndarray  # student x named [block, named, student]
    question: np.ndarray  # question x named [block, named, question]
    spread: np.ndarray  # posterior variance of each linear predictor, as Batch.said
    variance: tuple[float, float, float] = (0.0, 0.0, 0.0)  # posterior, summed: column, cell, question


@dataclass
class State:
    """Coefficients and variances as they stand; `core` is the intercept, the effect, the animals' own."""

    core: np.ndarray
    local: list[Local]  # one per batch
    sd: np.ndarray  # one per group, in the order of GROUPS
    core_cov: np.ndarray
    drift: np.ndarray = field(default_factory=lambda: np.zeros(len(GROUPS)))  # last change of log sd
    rounds: int = 0
    settled: bool = False

    @property
    def effect(self) -> float:
        """Log odds ratio."""
        return float(self.core[1])

    @property
    def error(self) -> float:
        """The model's own standard error of the effect: too small, and not reported."""
        return math.sqrt(self.core_cov[1, 1])


def start_state(design: Design) -> State:
    """All animals alike, at the share that they have together."""
    total = sum(float(block.said.sum()) for block in design.blocks)
    cells = sum(float(block.answers.sum()) * len(block.names) for block in design.blocks)
    core = np.zeros(FIXED + len(design.animals))
    core[0] = math.log(total / cells)
    local = [
        Local(
            np.zeros((n, k)), np.zeros((n, k)), np.zeros((n, k, k)), np.zeros((n, k, questions)),
            np.zeros((n, k, questions, k)),
        )
        for n, k, questions in (batch.shape for batch in design.batches)
    ]  # fmt: skip
    return State(core, local, np.array([STUDENT_SD, 0.7, 0.7, 0.7, 0.7]), np.eye(len(core)))


def sum_border(batch: Batch, core: np.ndarray, student: np.ndarray) -> np.ndarray:
    """What the effects that named animals share add to each [block, named, student]."""
    at = np.arange(batch.shape[1])
    across = np.repeat(core[0] + student[:, None], len(at), axis=1)
    across[:, at, at] += core[1] + core[FIXED + batch.own]
    return across


def predict(batch: Batch, core: np.ndarray, local: Local) -> np.ndarray:
    """The linear predictor of a batch, log answers included."""
    across = sum_border(batch, core, local.student) + local.column[:, :, None] + local.cell
    return across[:, :, None] + local.question[..., None] + batch.offset


def expect(design: Design, state: State) -> list[np.ndarray]:
    """The expected counts under the Gaussian approximation of the posterior: exp(mean + variance / 2)."""
    return [
        np.exp(np.minimum(predict(batch, state.core, local) + local.spread / 2, 20.0))
        for batch, local in zip(design.batches, state.local, strict=True)
    ]


@dataclass(frozen=True)
class Reduced:
    """A batch's Newton equations after its own coefficients were eliminated, innermost first.

    Questions (diagonal), then students x named (k x k for each named animal), then columns, then students.
    What is left speaks of the core alone. Each field is what finding the eliminated coefficients needs again.
    """

    share: np.ndarray  # [block, named, question, student]: weight over its question's information
    question: np.ndarray  # the questions' information and slope [2, block, named, question]
    cell: np.ndarray  # inverse information of cells [block, named, student, student]
    keep: np.ndarray  # how much of a move elsewhere cells leave standing: cell precision x `cell`
    slope: np.ndarray  # of cells [block, named, student]
    column: np.ndarray  # information and slope of columns [2, block, named]
    lean: np.ndarray  # how columns follow the shared effects, negative [block, named, student]
    student: np.ndarray  # inverse information of students [block, student, student]
    pull: np.ndarray  # how students follow the core, negative [block, student, core]
    step: np.ndarray  # of students, the core standing still [block, student]
    core: np.ndarray  # information left for the core
    right: np.ndarray  # slope left for the core


def reduce_batch(batch: Batch, local: Local, weight: np.ndarray, state: State, target: bool) -> Reduced:
    """Eliminate a batch's own coefficients from its part of the information matrix and of the slope."""
    precision = state.sd**-2.0
    left = batch.said - weight
    at = np.arange(batch.shape[1])
    ones = np.ones(len(at))  # products with it are several times faster than sums along a short axis
    info = weight @ ones + precision[4]
    down = left @ ones - precision[4] * local.question
    share = weight / info[..., None]
    plain = weight.sum(2)  # information of the predictor, [block, named, student]
    known = -weight.swapaxes(2, 3) @ share
    known[..., at, at] += plain
    slope = left.sum(2) - (down[:, :, None] @ share)[:, :, 0]
    cell = np.linalg.inv(known + precision[3] * np.eye(len(at)))
    keep = precision[3] * cell
    cells = slope - precision[3] * local.cell
    slope = slope - (known @ (cell @ cells[..., None]))[..., 0]
    known = known @ keep
    across = known.sum(3)
    column = across.sum(2) + precision[2]
    columns = slope.sum(2) - precision[2] * local.column
    lean = across / column[..., None]
    slope = slope - lean * columns[..., None]
    known = known - lean[..., None] * across[..., None, :]
    core, arm, right = border_parts(batch, known, slope, len(state.core), target)
    student = np.linalg.inv(known.sum(1) + precision[0] * np.eye(len(at)))
    students = slope.sum(1) - precision[0] * local.student
    pull = student @ arm
    core = core - np.einsum("nsb,nsc->bc", arm, pull)
    right = right - np.einsum("nsb,ns->b", pull, students)
    step = (student @ students[..., None])[..., 0]
    return Reduced(
        share, np.stack([info, down]), cell, keep, cells, np.stack([column, columns]), lean, student, pull,
        step, core, right,
    )  # fmt: skip


def border_parts(
    batch: Batch, known: np.ndarray, slope: np.ndarray, size: int, target: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Information among the core, between students and the core, and the core's slope.

    `known` and `slope` are those of a shift of each [named, student]: the intercept shifts them all, the
    effect and an animal's own effect only the student of the named animal.
    """
    n, k, _ = batch.shape
    at, rows = np.arange(k), np.arange(n)[:, None]
    own = known[:, at, :, at].swapaxes(0, 1) * target  # [block, named, student]: against the own student
    every, twice = own.sum(2), own[:, at, at]
    core, arm, right = np.zeros((size, size)), np.zeros((n, k, size)), np.zeros(size)
    core[0, 0], core[1, 1] = known.sum(), twice.sum()
    core[0, 1] = core[1, 0] = every.sum()
    arm[:, :, 0], arm[:, :, 1] = known.sum((1, 2)), own.sum(1)
    arm[rows, :, FIXED + batch.own] = own
    right[0], right[1] = slope.sum(), target * slope[:, at, at].sum()
    places = FIXED + batch.own
    for values, column in ((every, 0), (twice, 1)):
        np.add.at(core[:, column], places, values)
    np.add.at(core, (places, places), twice)
    np.add.at(right, places, target * slope[:, at, at])
    core[:2, FIXED:] = core[FIXED:, :2].T
    return core, arm, right


def step(design: Design, state: State, target: bool, frozen: bool = False) -> float:
    """One Newton step of all coefficients and one update of all variances; how far they moved.

    The information matrix is an arrowhead of arrowheads, and only its shafts are ever inverted: see Reduced.
    `target` False is the model without an effect.
    """
    means = expect(design, state)
    reduced = [
        reduce_batch(batch, local, weight, state, target)
        for batch, local, weight in zip(design.batches, state.local, means, strict=True)
    ]
    penalty = np.full(len(state.core), state.sd[1] ** -2.0)
    penalty[:FIXED] = PRIOR_SD**-2.0
    state.core_cov = np.linalg.inv(np.diag(penalty) + sum(each.core for each in reduced))
    move = state.core_cov @ (sum(each.right for each in reduced) - penalty * state.core)
    moves = [find_moves(*pair, move) for pair in zip(design.batches, reduced, strict=True)]
    furthest = max(float(np.abs(each).max()) for each in (move, *(part for own in moves for part in own)))
    scale = min(1.0, STRIDE / furthest) if furthest > 0 else 1.0
    state.core = state.core + scale * move
    for batch, local, each, own in zip(design.batches, state.local, reduced, moves, strict=True):
        local.student, local.column, local.cell, local.question = (
            old + scale * new
            for old, new in zip((local.student, local.column, local.cell, local.question), own, strict=True)
        )
        spread = posterior_spread(batch, local, each, state.core_cov, target)
        local.spread = (local.spread + spread) / 2  # undamped, it swings between two values
    before = np.log(state.sd)
    if not frozen:
        state.sd = update_sd(state, target)
    return max(scale * furthest, float(np.abs(np.log(state.sd) - before).max()))


def find_moves(
    batch: Batch, reduced: Reduced, move: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The Newton steps of the eliminated coefficients, given the core's: students outward to questions."""
    student = reduced.step - reduced.pull @ move
    shift = sum_border(batch, move, student)
    column = reduced.column[1] / reduced.column[0] - (reduced.lean * shift).sum(2)
    shift = shift + column[:, :, None]
    cell = (reduced.cell @ reduced.slope[..., None])[..., 0]
    cell = cell - shift + (reduced.keep @ shift[..., None])[..., 0]
    shift = shift + cell
    question = reduced.question[1] / reduced.question[0] - (reduced.share @ shift[..., None])[..., 0]
    return student, column, cell, question


def posterior_spread(
    batch: Batch, local: Local, reduced: Reduced, core_cov: np.ndarray, target: bool
) -> np.ndarray:
    """Posterior variance of every linear predictor of a batch; that of its coefficients goes into `local`.

    From the core outward: the covariance, over the students of a block, of what named animals share, then
    with each one's column, then with its cells, and last with its questions.
    """
    shared = border_spread(batch, reduced, core_cov, target)
    follow = np.eye(batch.shape[1]) - reduced.lean[..., None, :]  # what columns leave standing
    free = 1 / reduced.column[0]
    column = free + np.einsum("nas,nast,nat->na", reduced.lean, shared, reduced.lean, optimize=True)
    shared = follow @ shared @ follow.swapaxes(2, 3) + free[..., None, None]
    given = np.eye(batch.shape[1]) - reduced.keep  # how cells follow the rest, negative
    cell = np.einsum("nass->nas", reduced.cell) + ((given @ shared) * given).sum(3)
    shared = reduced.keep @ shared @ reduced.keep.swapaxes(2, 3) + reduced.cell
    reach = reduced.share @ shared
    question = 1 / reduced.question[0] + np.einsum("naqs,naqs->naq", reach, reduced.share)
    local.variance = (float(column.sum()), float(cell.sum()), float(question.sum()))
    reach *= -2
    reach += np.einsum("nass->nas", shared)[:, :, None]
    reach += question[..., None]
    return reach


def border_spread(batch: Batch, reduced: Reduced, core_cov: np.ndarray, target: bool) -> np.ndarray:
    """Covariance over students of the shared effects: [block, named, student, student]."""
    k = batch.shape[1]
    at, places = np.arange(k), FIXED + batch.own
    crossed = -reduced.pull @ core_cov  # of students with the core
    student = reduced.student - crossed @ reduced.pull.swapaxes(1, 2)
    plain = crossed[:, :, 0]
    base = student + plain[:, :, None] + plain[:, None] + core_cov[0, 0]  # intercept and student
    own = core_cov[0, 1] + core_cov[0, places][:, :, None]  # with the effects of the named animal
    own = own + crossed[:, :, 1][:, None] + np.take_along_axis(crossed, places[:, None], 2).swapaxes(1, 2)
    twice = core_cov[1, 1] + 2 * core_cov[1, places] + core_cov[places, places]
    shared = np.repeat(base[:, None], k, axis=1)
    if target:
        shared[:, at, at] += own
        shared[:, at, :, at] += own.swapaxes(0, 1)
        shared[:, at, at, at] += twice
    return shared


def update_sd(state: State, target: bool) -> np.ndarray:
    """Standard deviations of the groups from their coefficients: sum of squares over effective number.

    MacKay's fixed point of restricted maximum likelihood; a group that the data do not need falls to the
    smallest value allowed, never to 0.
    """
    found = state.sd.copy()
    for group in range(1 if target else 2, len(GROUPS)):
        squares, variance, count = sum_group(state, group)
        effective = max(count - variance / state.sd[group] ** 2, 1e-6)
        found[group] = max(math.sqrt(squares / effective), SMALLEST_SD)
    drift = np.log(found / state.sd)
    # A small spread that creeps towards 0 creeps ever on: where it moves as it did before, it takes a stride.
    creeping = (drift < 0) & (drift > -0.05) & (drift < 0.8 * state.drift) & (state.sd < 0.25)
    state.drift = drift
    stride = np.clip(np.where(creeping, 4 * drift, drift), -math.log(3), math.log(3))
    return np.maximum(state.sd * np.exp(stride), SMALLEST_SD)


def sum_group(state: State, group: int) -> tuple[float, float, int]:
    """Sum of squares, summed posterior variance and number of a group's coefficients."""
    if group == 1:
        own = state.core[FIXED:]
        return float((own**2).sum()), float(np.diag(state.core_cov)[FIXED:].sum()), len(own)
    parts = [((each.column, each.cell, each.question)[group - 2], each.variance) for each in state.local]
    squares = sum(float((values**2).sum()) for values, _ in parts)
    return squares, sum(own[group - 2] for _, own in parts), sum(values.size for values, _ in parts)


def fit(design: Design, target: bool = True, start: State | None = None, frozen: bool = False) -> State:
    """Fit by rounds of one step each; `frozen` keeps the standard deviations as `start` has them."""
    state = start or start_state(design)
    for state.rounds in range(1, ROUNDS + 1):
        if step(design, state, target, frozen) < SETTLED:
            state.settled = True
            break
    return state


# --- what is reported -------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixed:
    """The model's answer for a size: how many times the odds of the own animal exceed the other students'.

    `low` and `high` bound `log_odds` at 95 %, over animals of this kind; p is one-sided (greater) and
    exact up to the draws. `sd` are the standard deviations of the groups of random effects on the log scale.
    """

    log_odds: float
    odds_ratio: float
    low: float
    high: float
    p: float
    sd: dict[str, float]
    converged: bool
    animals: int  # that tell something about the effect: the interval's degrees of freedom are one less
    note: str


def fit_mixed(
    blocks: Sequence[Answers], permutations: int = 20_000, rng: np.random.Generator | None = None
) -> Mixed:
    """Fit the model to the blocks of a size.

    log E said[q, s, a] = log answers + student + column + (effect + animal's own) * [s is a's student]
                          + (student x named) + (question x named), all but `effect` random.

    This is the Poisson form of a multinomial logit among the named animals: with a level of its own for
    each student, exp(effect) is the ratio of a student's odds of naming its own animal to those of the
    other students. A binomial model per animal would count it twice where a student's own animal leaves fewer
    answers for all others. The student x named term is what keeps 100 answers of one student from passing
    as 100 witnesses. Columns and questions are each block's own.

    The fit is a Gaussian variational approximation with its full covariance. statsmodels' mean-field one
    (`refit_mean_field`) takes some hundred times longer at 15 animals x 3 seeds, and its standard error is
    several times too small. Neither is used for inference: p permutes the students' labels, with the
    score of the model without an effect as statistic; the interval is `animal_interval`.

    What is not covered: other bases, and seeds beyond those that there are. The effect is drawn towards 0
    where questions differ much (a log odds ratio of 1 came out at .93 to .97), since each student has one
    level over all questions.

    Measured with `simulate_mixed`, 20 questions x 5 answers. One block of 5 animals without an effect (1,200
    studies): rejections .051, coverage .961; log odds ratio 1, animals differing by .5 (600): coverage
    .941, where the model's own standard error covers .903; log odds ratio 2, animals differing by 1 (300):
    .930. 15 animals x 3 blocks: rejections .050 and coverage .955 without an effect (400), coverage .940
    with a log odds ratio of 1 (300). Most animals rare, 5 animals: an interval in 3 of 4 studies, .942.
    """
    design = lay_out(blocks)
    named = sum(int(block.said.sum()) for block in blocks)
    if not named:
        return nothing("no student ever named any of the animals")
    p = permute_score(design, permutations, rng)
    state = fit(design)
    effect = state.effect
    low, high, informed = animal_interval(design, state)
    notes = []
    if math.isnan(p):
        notes.append(f"fewer than {MIN_OTHERS} animals with a student in every block: no p")
    notes += [] if state.settled else [f"not settled after {ROUNDS} rounds"]
    if math.isnan(low):
        notes.append(f"{informed} animals are named often enough to tell: no interval")
    sd = dict(zip(GROUPS[1:], state.sd[1:].tolist(), strict=True))
    return Mixed(effect, math.exp(effect), low, high, p, sd, state.settled, informed, "; ".join(notes))


def nothing(note: str) -> Mixed:
    """The answer where there is none."""
    return Mixed(*[math.nan] * 5, dict.fromkeys(GROUPS[1:], math.nan), False, 0, note)


def permute_score(design: Design, permutations: int, rng: np.random.Generator | None) -> float:
    """p of the sum of the own students' residuals under the model without an effect.

    That model does not know which student is whose, so under the null every assignment of the animals to the
    students was as likely, the same in all blocks (stats.permute_sheets says why): the test is exact
    whatever the answers' distribution. Animals that miss in some block are left out of it; NaN where
    fewer than five are left.
    """
    state = fit(design, target=False)
    common = [name for name in design.animals if all(name in block.names for block in design.blocks)]
    if len(common) < MIN_ANIMALS:
        return math.nan
    sheets = []
    for block, left in zip(design.blocks, residuals(design, state), strict=True):
        at = [block.names.index(name) for name in common]
        names = tuple(str(name) for name in common)
        sheets.append(Sheet(left.T[np.ix_(at, at)][None], names, names))
    return permute_sheets(sheets, permutations, rng).p


def residuals(design: Design, state: State) -> list[np.ndarray]:
    """Of every block, answers beyond what the model expects [named, student], all questions together."""
    pairs = zip(design.batches, expect(design, state), strict=True)
    return [left for batch, mean in pairs for left in (batch.said - mean).sum(2)]


def animal_interval(design: Design, state: State, level: float = 0.95) -> tuple[float, float, int]:
    """Interval of the effect with animals as units, after Hartung and Knapp; and how many animals it is over.

    Each animal's score for a deviation of its own, squared, over what the model expects of that square,
    tells how far animals differ beyond the model: sum(score^2 / w) / ((k - 1) sum(w)) is the variance of the
    effect, w the animals' information, and the quantile a t of k - 1. Animals that are not expected to be
    named even INFORMED times tell nothing and are not counted.
    """
    for _ in range(3):  # the covariance is to be that of the final standard deviations
        step(design, state, target=True, frozen=True)
    score = np.zeros(len(design.animals))
    for block, left in zip(design.blocks, residuals(design, state), strict=True):
        score[[design.animals.index(name) for name in block.names]] += np.diag(left)
    cov, square = state.core_cov, state.sd[1] ** 2
    own, both = np.diag(cov)[FIXED:], cov[1, FIXED:]
    left = own - both**2 / cov[1, 1]  # variance of an animal's own, the effect given
    weight = np.maximum((square - left) / square**2, 0.0)
    informed = weight > INFORMED * (1 - square * weight)
    count = int(informed.sum())
    if count < MIN_ANIMALS:
        return math.nan, math.nan, count
    score, weight = score[informed], weight[informed]
    error = math.sqrt(float((score**2 / weight).sum()) / ((count - 1) * float(weight.sum())))
    reach = float(student_t.ppf((1 + level) / 2, count - 1)) * error
    return state.effect - reach, state.effect + reach, count


def verdict(lambda_p: float, mixed: Mixed, alpha: float = ALPHA) -> str:
    """In words: do lambda's permutation test and the model agree, and if not, why they can differ."""
    if math.isnan(mixed.p):
        return f"The logistic model gives no p: {mixed.note}."
    if math.isnan(lambda_p):
        return f"lambda could not be tested; the logistic model alone gives p = {mixed.p:.2g}."
    tests = f"lambda p = {lambda_p:.2g}, logistic model p = {mixed.p:.2g}"
    if lambda_p <= alpha and mixed.p <= alpha:
        return f"Both agree that students name their teacher's animal more ({tests})."
    if lambda_p > alpha and mixed.p > alpha:
        return f"Both agree that no effect is shown ({tests})."
    if lambda_p <= alpha:
        return (
            f"They disagree ({tests}): lambda counts percentage points, so animals that are named often "
            "carry it; in odds those weigh less, and the others show too little."
        )
    return (
        f"They disagree ({tests}): the model counts odds, in which a rare animal that is named a few times "
        "more weighs much; in percentage points that is next to nothing, and lambda does not see it."
    )


# --- the same model with statsmodels ------------------------------------------------------------


class PoissonWithOffset(PoissonBayesMixedGLM):
    """statsmodels' class with a known part of the linear predictor."""

    offset: np.ndarray | float = 0.0

    def _lp_stats(self, *parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, variance = super()._lp_stats(*parts)
        return mean + self.offset, variance


def refit_mean_field(blocks: Sequence[Answers], rounds: int = 200) -> tuple[float, float, bool]:
    """The effect, its standard error and whether it converged, as statsmodels' variational Bayes has them.

    A second opinion on the estimate, never a source of p or interval: mean-field posteriors are too
    narrow, and where effects are large they draw the groups' spread, and the effect with it, towards 0. It
    estimates the spread of the students' level too. Slow: some 20 s for 15 animals x 3 seeds x 20
    questions.
    """
    design = lay_out(blocks)
    state = fit(design)
    counts, fixed, random, groups, offset = tabulate(design)
    model = PoissonWithOffset(counts, fixed, random, groups, vcp_p=1, fe_p=PRIOR_SD)
    model.offset = offset
    mean = np.concatenate([state.core[:FIXED], np.log(state.sd), *random_order(state)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether it converged is returned
        found = model.fit_vb(
            mean=mean, sd=np.full(len(mean), 0.3), fit_method="L-BFGS-B", minim_opts={"maxiter": rounds}
        )
    return float(found.fe_mean[1]), float(found.fe_sd[1]), bool(found.optim_retvals.success)


def random_order(state: State) -> list[np.ndarray]:
    """The random coefficients in the order of `tabulate`: group by group, block by block."""
    local = state.local
    students, columns = ([getattr(each, name).ravel() for each in local] for name in ("student", "column"))
    cells, questions = (
        [getattr(each, name).swapaxes(1, 2).ravel() for each in local] for name in ("cell", "question")
    )
    return [*students, state.core[FIXED:], *columns, *cells, *questions]


def tabulate(design: Design) -> tuple[np.ndarray, np.ndarray, sparse.csr_array, np.ndarray, np.ndarray]:
    """Counts, fixed columns, random columns, the group of each of these, log answers: a row a count."""
    counts, target, offset, entries = [], [], [], []
    width = np.array([0, 0, 0, 0, 0])
    row = 0
    logs = [each for batch in design.batches for each in batch.offset[:, 0]]
    for block, log_answers in zip(design.blocks, logs, strict=True):
        questions, k, _ = block.said.shape
        asked, student, named = (each.ravel() for each in np.indices(block.said.shape))
        own = student == named
        animal = np.array([design.animals.index(name) for name in block.names])[named]
        at = row + np.arange(len(own))
        places = (student, animal, named, student * k + named, asked * k + named)
        for group, place in enumerate(places):
            used = own if group == 1 else np.ones_like(own)
            shift = 0 if group == 1 else width[group]
            entries.append((group, at[used], shift + place[used]))
        width += np.array([k, 0, k, k * k, questions * k])
        counts.append(block.said.ravel())
        target.append(own)
        offset.append(np.repeat(log_answers.ravel(), k))
        row += len(own)
    width[1] = len(design.animals)
    starts = np.concatenate([[0], np.cumsum(width)[:-1]])
    rows = np.concatenate([each[1] for each in entries])
    columns = np.concatenate([starts[group] + place for group, _, place in entries])
    random = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(row, int(width.sum())))
    fixed = np.column_stack([np.ones(row), np.concatenate(target).astype(float)])
    groups = np.repeat(np.arange(len(GROUPS)), width)
    known = np.concatenate(offset)
    there = np.isfinite(known)  # nobody answered: no row
    return np.concatenate(counts)[there].astype(float), fixed[there], random[there], groups, known[there]


# --- simulation -------------------------------------------------------------------------------


def simulate_answers(
    animals: int,
    blocks: int,
    rng: np.random.Generator,
    log_odds: float = 0.0,
    animal_sd: float = 0.0,
    student_sd: float = 0.5,
    question_sd: float = 0.7,
    column_sd: float = 1.5,
    questions: int = 20,
    repeats: int = 5,
) -> list[Answers]:
    """Blocks whose answers are drawn from a softmax over the animals and one other answer."""
    columns = rng.normal(0, column_sd, animals)
    own = log_odds + rng.normal(0, animal_sd, animals)
    asked = rng.normal(0, question_sd, (questions, 1, animals))
    made = []
    for _ in range(blocks):
        noise = rng.normal(0, student_sd, (animals, animals))
        logit = (columns + noise + np.diag(own))[None] + asked
        share = np.concatenate([np.exp(logit), np.full((questions, animals, 1), float(animals))], axis=2)
        share /= share.sum(2, keepdims=True)
        said = rng.multinomial(repeats, share)[:, :, :animals]
        made.append(Answers(said, np.full((questions, animals), repeats), tuple(range(animals))))
    return made


def simulate_mixed(
    animals: int,
    blocks: int,
    studies: int,
    rng: np.random.Generator,
    log_odds: float = 0.0,
    animal_sd: float = 0.0,
    permutations: int = 999,
    **settings: float,
) -> dict[str, float]:
    """Coverage of the interval, rejections at .05 and bias over simulated studies of one design.

    Beside them what is not reported: coverage and rejections of the model's own standard error (`wald`).
    With 0 permutations nothing is tested.
    """
    rows = []
    for _ in range(studies):
        made = simulate_answers(animals, blocks, rng, log_odds, animal_sd, **settings)
        design = lay_out(made)
        p = permute_score(design, permutations, rng) if permutations else math.nan
        state = fit(design)
        effect, error = state.effect, state.error
        low, high, _ = animal_interval(design, state)
        covered = math.nan if math.isnan(low) else low <= log_odds <= high
        wald = abs(effect - log_odds) <= norm.ppf(0.975) * error
        rows.append((effect, covered, p <= ALPHA, wald, norm.sf(effect / error) <= ALPHA, state.settled))
    columns = np.array(rows, dtype=float).T
    names = ("mean", "coverage", "rejected", "wald_coverage", "wald_rejected", "converged")
    found = dict(zip(names, np.nanmean(columns, 1).tolist(), strict=True))
    given = float(np.mean(~np.isnan(columns[1])))
    return (
        {
            "animals": animals,
            "blocks": blocks,
            "studies": studies,
            "log_odds": log_odds,
            "animal_sd": animal_sd,
        }
        | found
        | {"given": given}
    )
