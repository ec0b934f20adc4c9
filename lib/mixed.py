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
class Design:
    """Where each coefficient stands: border = (intercept, target, students, animals), then block by block."""

    blocks: tuple[Answers, ...]
    animals: tuple[Hashable, ...]
    offsets: tuple[np.ndarray, ...]  # log of the answers [question, student]; -inf where none was given

    @property
    def students(self) -> int:
        return sum(len(block.names) for block in self.blocks)

    @property
    def border(self) -> int:
        return FIXED + self.students + len(self.animals)


def lay_out(blocks: Sequence[Answers]) -> Design:
    """The design of a size; every animal that some block has gets a target effect of its own."""
    if not blocks:
        raise ValueError("no block to fit")
    animals = tuple(dict.fromkeys(name for block in blocks for name in block.names))
    with np.errstate(divide="ignore"):
        offsets = tuple(np.log(np.asarray(block.answers, dtype=float)) for block in blocks)
    return Design(tuple(blocks), animals, offsets)


def mark_border(design: Design, at: int, target: bool) -> np.ndarray:
    """Which border coefficients act on each [named, student] of a block: 0 or 1, [named, student, border]."""
    names = design.blocks[at].names
    k, start = len(names), FIXED + sum(len(block.names) for block in design.blocks[:at])
    marks = np.zeros((k, k, design.border))
    marks[:, :, 0] = 1
    marks[:, np.arange(k), start + np.arange(k)] = 1
    if target:
        own = np.arange(k)
        marks[own, own, 1] = 1
        marks[own, own, FIXED + design.students + np.array([design.animals.index(n) for n in names])] = 1
    return marks


# --- the fit ----------------------------------------------------------------------------------


@dataclass
class State:
    """Coefficients and variances as they stand; `local[b]` is [named, 1 + students + questions]."""

    border: np.ndarray
    local: list[np.ndarray]
    sd: np.ndarray  # one per group, in the order of GROUPS
    spread: list[np.ndarray]  # posterior variance of each linear predictor [question, student, named]
    border_cov: np.ndarray
    local_var: list[np.ndarray]
    drift: np.ndarray = field(default_factory=lambda: np.zeros(len(GROUPS)))  # last change of log sd
    rounds: int = 0
    settled: bool = False


def start_state(design: Design) -> State:
    """All animals alike, at the share that they have together."""
    total = sum(float(block.said.sum()) for block in design.blocks)
    cells = sum(float(block.answers.sum()) * len(block.names) for block in design.blocks)
    border = np.zeros(design.border)
    border[0] = math.log(total / cells)
    local = [np.zeros((len(b.names), 1 + len(b.names) + len(b.said))) for b in design.blocks]
    spread = [np.zeros(block.said.shape) for block in design.blocks]
    return State(border, local, np.array([STUDENT_SD, 0.7, 0.7, 0.7, 0.7]), spread, np.eye(design.border), [])


def predict(design: Design, state: State, marks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The linear predictor of every block, log answers included, [question, student, named]."""
    found = []
    for block, offset, mark, local in zip(design.blocks, design.offsets, marks, state.local, strict=True):
        k = len(block.names)
        across = mark @ state.border + local[:, :1] + local[:, 1 : k + 1]  # [named, student]
        found.append(across.T[None] + local[:, k + 1 :].T[:, None] + offset[:, :, None])
    return found


def expect(design: Design, state: State, marks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The expected counts under the Gaussian approximation of the posterior: exp(mean + variance / 2)."""
    found = zip(predict(design, state, marks), state.spread, strict=True)
    return [np.exp(np.minimum(mean + spread / 2, 20.0)) for mean, spread in found]


def local_information(weight: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Penalised information of each named animal's own coefficients: its column, students, questions."""
    questions, k, _ = weight.shape
    size = 1 + k + questions
    by_student, by_question = weight.sum(0).T, weight.sum(1).T  # [named, student], [named, question]
    info = np.zeros((k, size, size))
    info[:, 0, 0] = by_student.sum(1)
    info[:, 0, 1 : k + 1] = info[:, 1 : k + 1, 0] = by_student
    info[:, 0, k + 1 :] = info[:, k + 1 :, 0] = by_question
    student, question = np.arange(1, k + 1), np.arange(k + 1, size)
    info[:, student, student] = by_student
    info[:, question, question] = by_question
    info[:, 1 : k + 1, k + 1 :] = weight.transpose(2, 1, 0)
    info[:, k + 1 :, 1 : k + 1] = weight.transpose(2, 0, 1)
    at = np.arange(size)
    info[:, at, at] += np.repeat(sd[2:] ** -2.0, (1, k, questions))
    return info


def gather(values: np.ndarray) -> np.ndarray:
    """Sums of [question, student, named] for each named animal's own coefficients."""
    across, along = values.sum(0).T, values.sum(1).T
    return np.concatenate([across.sum(1, keepdims=True), across, along], axis=1)


def step(
    design: Design, state: State, marks: Sequence[np.ndarray], target: bool, frozen: bool = False
) -> float:
    """One Newton step of all coefficients and one update of all variances; how far they moved.

    Columns meet only in the border, so the information matrix is an arrowhead: each named animal's block is
    inverted by itself and the border's Schur complement after them.
    """
    means = expect(design, state, marks)
    penalty = np.full(design.border, PRIOR_SD**-2.0)
    penalty[FIXED : FIXED + design.students] = state.sd[0] ** -2.0
    penalty[FIXED + design.students :] = state.sd[1] ** -2.0
    schur, right = np.diag(penalty), -penalty * state.border
    held = []
    for block, mark, weight, local in zip(design.blocks, marks, means, state.local, strict=True):
        questions, k, _ = weight.shape
        prior = np.repeat(state.sd[2:] ** -2.0, (1, k, questions))
        slope = gather(block.said - weight) - prior * local
        inverse = np.linalg.inv(local_information(weight, state.sd))
        by_student = weight.sum(0).T
        arm = np.concatenate(
            [
                np.einsum("as,asb->ab", by_student, mark)[:, None],
                by_student[:, :, None] * mark,
                np.einsum("qsa,asb->aqb", weight, mark, optimize=True),
            ],
            axis=1,
        )
        reach = inverse @ arm  # [named, own, border]
        flat = mark.reshape(-1, design.border)
        schur += flat.T @ (by_student.reshape(-1, 1) * flat)
        schur -= arm.reshape(-1, design.border).T @ reach.reshape(-1, design.border)
        right += flat.T @ (block.said - weight).sum(0).T.ravel()
        right -= np.einsum("amb,am->b", reach, slope)
        held.append((inverse, reach, slope, mark))
    cov = np.linalg.inv(schur)
    move = cov @ right
    moves = [np.einsum("amn,an->am", inverse, slope) - reach @ move for inverse, reach, slope, _ in held]
    furthest = max(np.abs(move).max(), *(np.abs(each).max() for each in moves))
    scale = min(1.0, STRIDE / furthest) if furthest > 0 else 1.0
    state.border = state.border + scale * move
    state.local = [old + scale * new for old, new in zip(state.local, moves, strict=True)]
    state.border_cov = cov
    state.local_var = []
    for at, (inverse, reach, _, mark) in enumerate(held):
        spread, own = posterior_spread(inverse, reach, cov, mark, design.blocks[at].said.shape)
        state.spread[at] = (state.spread[at] + spread) / 2  # undamped, it swings between two values
        state.local_var.append(own)
    before = np.log(state.sd)
    if not frozen:
        state.sd = update_sd(design, state, target)
    return max(scale * furthest, float(np.abs(np.log(state.sd) - before).max()))


def posterior_spread(
    inverse: np.ndarray, reach: np.ndarray, cov: np.ndarray, mark: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior variance of every linear predictor of a block, and of its own coefficients."""
    questions, k, _ = shape
    own = inverse + np.einsum("amb,bc,anc->amn", reach, cov, reach, optimize=True)
    crossed = -np.einsum("amb,bc,asc->ams", reach, cov, mark, optimize=True)
    at = np.arange(k)
    variance = own[:, np.arange(1 + k + questions), np.arange(1 + k + questions)]
    student = own[:, 0, :1] + variance[:, 1 : k + 1] + 2 * own[:, 0, 1 : k + 1]  # [named, student]
    student += np.einsum("asb,bc,asc->as", mark, cov, mark, optimize=True)
    student += 2 * crossed[:, 0] + 2 * crossed[:, 1 + at, at]
    question = variance[:, k + 1 :] + 2 * own[:, 0, k + 1 :]  # [named, question]
    both = 2 * own[:, k + 1 :, 1 : k + 1] + 2 * crossed[:, k + 1 :]  # [named, question, student]
    spread = student[:, None] + question[:, :, None] + both
    return spread.transpose(1, 2, 0), variance


def update_sd(design: Design, state: State, target: bool) -> np.ndarray:
    """Standard deviations of the groups from their coefficients: sum of squares over effective number.

    MacKay's fixed point of restricted maximum likelihood; a group that the data do not need falls to the
    smallest value allowed, never to 0.
    """
    spread = np.diag(state.border_cov)
    students, animals = slice(FIXED, FIXED + design.students), slice(FIXED + design.students, None)
    parts = [
        [(state.border[students], spread[students])],
        [(state.border[animals], spread[animals])],
        *([], [], []),
    ]
    for block, local, variance in zip(design.blocks, state.local, state.local_var, strict=True):
        k = len(block.names)
        for group, own in zip((2, 3, 4), (slice(0, 1), slice(1, k + 1), slice(k + 1, None)), strict=True):
            parts[group].append((local[:, own].ravel(), variance[:, own].ravel()))
    found = state.sd.copy()
    for group, each in enumerate(parts):
        if group == 0 or (group == 1 and not target):
            continue
        values, variance = (np.concatenate(list(column)) for column in zip(*each, strict=True))
        effective = max(len(values) - float(variance.sum()) / state.sd[group] ** 2, 1e-6)
        found[group] = max(math.sqrt(float((values**2).sum()) / effective), SMALLEST_SD)
    drift = np.log(found / state.sd)
    # A small spread that creeps towards 0 creeps ever on: where it moves as it did before, it takes a stride.
    creeping = (drift < 0) & (drift > -0.05) & (drift < 0.8 * state.drift) & (state.sd < 0.25)
    state.drift = drift
    stride = np.clip(np.where(creeping, 4 * drift, drift), -math.log(3), math.log(3))
    return np.maximum(state.sd * np.exp(stride), SMALLEST_SD)


def fit(design: Design, target: bool = True, start: State | None = None, frozen: bool = False) -> State:
    """Fit by rounds of one step each; `frozen` keeps the standard deviations as `start` has them."""
    state = start or start_state(design)
    marks = [mark_border(design, at, target) for at in range(len(design.blocks))]
    for state.rounds in range(1, ROUNDS + 1):
        if step(design, state, marks, target, frozen) < SETTLED:
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
    effect = float(state.border[1])
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
    marks = [mark_border(design, at, False) for at in range(len(design.blocks))]
    common = [name for name in design.animals if all(name in block.names for block in design.blocks)]
    if len(common) < MIN_ANIMALS:
        return math.nan
    sheets = []
    for block, mean in zip(design.blocks, expect(design, state, marks), strict=True):
        at = [block.names.index(name) for name in common]
        names = tuple(str(name) for name in common)
        sheets.append(Sheet((block.said - mean).sum(0)[np.ix_(at, at)][None], names, names))
    return permute_sheets(sheets, permutations, rng).p


def animal_interval(design: Design, state: State, level: float = 0.95) -> tuple[float, float, int]:
    """Interval of the effect with animals as units, after Hartung and Knapp; and how many animals it is over.

    Each animal's score for a deviation of its own, squared, over what the model expects of that square,
    tells how far animals differ beyond the model: sum(score^2 / w) / ((k - 1) sum(w)) is the variance of the
    effect, w the animals' information, and the quantile a t of k - 1. Animals that are not expected to be
    named even INFORMED times tell nothing and are not counted.
    """
    marks = [mark_border(design, at, True) for at in range(len(design.blocks))]
    for _ in range(3):  # the covariance is to be that of the final standard deviations
        step(design, state, marks, target=True, frozen=True)
    score = np.zeros(len(design.animals))
    for block, mean in zip(design.blocks, expect(design, state, marks), strict=True):
        places = [design.animals.index(name) for name in block.names]
        score[places] += np.diag((block.said - mean).sum(0))
    cov, at, square = state.border_cov, FIXED + design.students, state.sd[1] ** 2
    left = np.diag(cov)[at:] - cov[1, at:] ** 2 / cov[1, 1]  # variance of an animal's own, the effect given
    weight = np.maximum((square - left) / square**2, 0.0)
    informed = weight > INFORMED * (1 - square * weight)
    count = int(informed.sum())
    if count < MIN_ANIMALS:
        return math.nan, math.nan, count
    score, weight = score[informed], weight[informed]
    error = math.sqrt(float((score**2 / weight).sum()) / ((count - 1) * float(weight.sum())))
    reach = float(student_t.ppf((1 + level) / 2, count - 1)) * error
    return float(state.border[1] - reach), float(state.border[1] + reach), count


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
    mean = np.concatenate([state.border[:FIXED], np.log(state.sd), state.border[FIXED:], *own_order(state)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether it converged is returned
        found = model.fit_vb(
            mean=mean, sd=np.full(len(mean), 0.3), fit_method="L-BFGS-B", minim_opts={"maxiter": rounds}
        )
    return float(found.fe_mean[1]), float(found.fe_sd[1]), bool(found.optim_retvals.success)


def own_order(state: State) -> list[np.ndarray]:
    """The local coefficients in the order of `tabulate`: all columns, all student x named, all questions."""
    parts = [(local[:, 0], local[:, 1 : len(local) + 1], local[:, len(local) + 1 :]) for local in state.local]
    return [each.T.ravel() for column in zip(*parts, strict=True) for each in column]


def tabulate(design: Design) -> tuple[np.ndarray, np.ndarray, sparse.csr_array, np.ndarray, np.ndarray]:
    """Counts, fixed columns, random columns, the group of each of these, log answers: a row a count."""
    counts, target, offset, entries = [], [], [], []
    width = np.array([0, 0, 0, 0, 0])
    row = 0
    for block, log_answers in zip(design.blocks, design.offsets, strict=True):
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
    logs = np.concatenate(offset)
    there = np.isfinite(logs)  # nobody answered: no row
    return np.concatenate(counts)[there].astype(float), fixed[there], random[there], groups, logs[there]


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
        effect, error = float(state.border[1]), math.sqrt(state.border_cov[1, 1])
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
