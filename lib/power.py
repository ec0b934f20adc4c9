"""How sure a design can be of lambda: its parts of variance, its power, what more of anything would buy.

Parts are estimated by moments from sheets (lib.stats); sd of lambda and of its permutation null, power of the
one-sided joint permutation test and the smallest lambda found follow in closed form for other numbers of
animals, bases, seeds, questions and answers. Plans for new animals, seeds and questions of the same kind;
nothing here tests anything, and power at the estimated lambda is no evidence beside the p it follows from.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from lib import stats

LEVEL = 0.05  # of the one-sided test
GOAL = 0.8  # power that counts as found
CLEAR = 2.0  # lambda over its null sd from which the spread of its strength is taken to be its own
ASSUMED_SPREAD = 1.0  # sd between animals over lambda where lambda is not clear: about that of clear ones
# Up to where `needed` looks: beyond it nobody will go.
MOST = {"seeds": 1000, "animals": 1000, "questions": 10_000, "answers": 10_000, "bases": 1000}
MANY = {what: what for what in MOST} | {"answers": "answers to each question"}


@dataclass(frozen=True)
class Plan:
    """How much is trained and asked at one size; `seeds` are those of a base, `answers` those to a question.

    Log-probabilities need no answers (0). `present` is the share of the students that are there.
    Numbers need not be whole: half a seed more is a way to compare equal costs.
    """

    animals: float
    seeds: float
    bases: float = 1
    questions: float = 1
    answers: float = 0
    present: float = 1.0

    @property
    def students(self) -> float:
        """Students of one animal."""
        return self.seeds * self.bases * self.present

    @property
    def uneven(self) -> float:
        """By how much more than in a full plan what all students of an animal share counts.

        Where students are missing at random, animals with more of them weigh more in the mean.
        """
        return 1 + (1 - self.present) / self.students


@dataclass(frozen=True)
class Parts:
    """Variances of one size in its unit squared, of a single entry (student x named animal) where not said.

    Noise of an entry, on the diagonal and off it:
        teacher   student's animal x named animal, the same in every base and seed
        line      the same within one base: its teachers differ from another base's
        student   student x named animal, anew each seed
        cell      question x student x named animal
        answers   of one sampled answer (binomial)
    Strength of transfer, on the diagonal alone:
        animal    between animals
        own       between students of one animal (holds also that often named animals are noisier)
        base, seed, question   shared by all students of one
    `skew` is the third moment of a mean entry's noise over its sd cubed, at the plan these were estimated at.
    `clear` says whether lambda stands out enough for the strength's spread to be its own.
    """

    value: float
    teacher: float = 0.0
    line: float = 0.0
    student: float = 0.0
    cell: float = 0.0
    answers: float = 0.0
    animal: float = 0.0
    own: float = 0.0
    base: float = 0.0
    seed: float = 0.0
    question: float = 0.0
    skew: float = 0.0
    clear: bool = True
    notes: tuple[str, ...] = ()


STRENGTHS = ("animal", "own", "base", "seed", "question")


# --- parts of variance ------------------------------------------------------------------------


def plan_of(sheets: Sequence[stats.Sheet], answers: int = 0) -> Plan:
    """What these sheets are: the plan that was carried out, absent students counted in `present`."""
    sheets = stats.check_sheets(sheets)
    bases = len({sheet.base for sheet in sheets})
    animals = len({name for sheet in sheets for name in sheet.students})
    there = sum(len(sheet.students) - 1 for sheet in sheets) / (len(sheets) * (animals - 1))
    questions = float(np.mean([len(sheet.values) for sheet in sheets]))
    return Plan(animals, len(sheets) / bases, bases, questions, answers, there)


def estimate_parts(sheets: Sequence[stats.Sheet], answers: int = 0) -> Parts:
    """Parts of variance by moments, each truncated at 0; `answers` to a question where values are rates (%).

    What is 0 in truth comes out above it on average, the more the fewer there are of it (three seeds say
    little of the spread between seeds): what a study says of power errs to the dark side.
    """
    plan, moments = plan_of(sheets, answers), estimate_moments(sheets, answers)
    names = ("teacher", "line", "student", "cell", "answers", *STRENGTHS)
    parts = dataclasses.replace(moments, **{name: max(0.0, getattr(moments, name)) for name in names})
    noise = dataclasses.replace(parts, **dict.fromkeys(STRENGTHS, 0.0))
    if parts.value > CLEAR * null_sd(noise, plan, 0.0):
        return parts
    note = (
        "lambda is not clear of 0: animals are taken to differ by as much as lambda, seeds and questions not"
    )
    return dataclasses.replace(parts, clear=False, notes=(*parts.notes, note))


def estimate_moments(sheets: Sequence[stats.Sheet], answers: int = 0) -> Parts:
    """The parts as moments leave them: unbiased each, and below 0 by chance where a part is small.

    Everything rests on two kinds of residual: entries off the diagonal after row and column effects, which
    are free of transfer, and the diagonal's own terms (stats.transfer_terms). Products of residuals of two
    sheets hold what the sheets share (teacher), those of two questions of a sheet what the questions share
    (student), squares hold all. No normality is used; that parts of an entry are independent, and on
    average as large on the diagonal as off it, is. Question-specific habits of a teacher count as teacher.
    """
    sheets = stats.check_sheets(sheets)
    plan = plan_of(sheets, answers)
    notes: list[str] = []
    value = float(stats.sheet_weights(sheets) @ [factor_of(sheet) for sheet in sheets])
    noise = Parts(value, **split_noise(sheets, plan, notes), skew=skew_of(sheets))
    strength = split_strength(sheets, plan, noise, notes)
    return dataclasses.replace(noise, **strength, notes=tuple(notes))


def factor_of(sheet: stats.Sheet) -> float:
    """lambda of one sheet."""
    return stats.transfer_factor(sheet.square.mean(0))


def residuals(square: np.ndarray) -> np.ndarray:
    """[..., m, m] after row and column effects fitted off the diagonal; the diagonal itself is 0."""
    m = square.shape[-1]
    centred = square - square.mean(-1, keepdims=True) - square.mean(-2, keepdims=True)
    centred = centred + square.mean((-1, -2), keepdims=True)
    diagonal = np.diagonal(centred, axis1=-2, axis2=-1)
    terms = (diagonal - diagonal.sum(-1, keepdims=True) / (m - 1) / m) / (1 - 2 / m)
    shift = np.eye(m) * terms[..., None]
    shift = shift - shift.mean(-1, keepdims=True) - shift.mean(-2, keepdims=True)
    return centred - shift - terms.mean(-1)[..., None, None] / m


def freedom_of(m: int) -> int:
    """Entries off the diagonal less the row and column effects fitted to them."""
    return m * m - 3 * m + 1


def shared_squares(one: stats.Sheet, other: stats.Sheet) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean squares of two sheets over the students that both have; None where they are too few."""
    both = [name for name in one.students if name in other.students]
    if len(both) < stats.MIN_ANIMALS:
        return None
    return square_of(one, both), square_of(other, both)


def square_of(sheet: stats.Sheet, names: Sequence[str]) -> np.ndarray:
    """[students, named] of these animals, mean over questions."""
    rows, columns = [sheet.students.index(n) for n in names], [sheet.named.index(n) for n in names]
    return sheet.values.mean(0)[np.ix_(rows, columns)]


def pair_moments(sheets: Sequence[stats.Sheet], same_base: bool) -> tuple[float, float] | None:
    """Mean product over two sheets of one base (or of two): off-diagonal residuals, and diagonal terms.

    Of the terms' product what their entries' shared noise makes of it is taken out.
    """
    entry, term, weight, freedom, noise = 0.0, 0.0, 0, 0, 0.0
    for one, other in combinations(sheets, 2):
        squares = shared_squares(one, other) if (one.base == other.base) == same_base else None
        if squares is None:
            continue
        m = len(squares[0])
        entry += float((residuals(squares[0]) * residuals(squares[1])).sum())
        terms = [stats.transfer_terms(square) for square in squares]
        term += float(((terms[0] - terms[0].mean()) * (terms[1] - terms[1].mean())).sum())
        weight, freedom, noise = weight + freedom_of(m), freedom + m - 1, noise + (m - 1) * inflation(m)
    return (entry / weight, (term - noise * entry / weight) / freedom) if weight else None


def inflation(m: int) -> float:
    """A diagonal term is its entry less fitted effects: the spread of terms is larger than noise by this."""
    return m / (m - 2)


def split_noise(sheets: Sequence[stats.Sheet], plan: Plan, notes: list[str]) -> dict[str, float]:
    """teacher, line, student, cell and answers; what is not told apart counts where it shrinks least."""
    freedom = sum(freedom_of(len(sheet.students)) for sheet in sheets)
    single, repeated, sampled = 0.0, 0.0, 0.0
    for sheet in sheets:
        questions, left = len(sheet.values), residuals(sheet.square)
        squares = float((left**2).sum())
        single += squares / questions / freedom
        if questions > 1:
            repeated += (float((left.sum(0) ** 2).sum()) - squares) / (questions * (questions - 1)) / freedom
        sampled += answer_variance(sheet, plan.answers) * freedom_of(len(sheet.students)) / freedom
    if min(len(sheet.values) for sheet in sheets) == 1:
        repeated = single - sampled / max(1, plan.answers)
        notes.append("questions are not known apart: what they add counts as the student's")
    across, within = pair_moments(sheets, False), pair_moments(sheets, True)
    if across is None and within is None:
        notes.append("one seed and one base: teacher and student cannot be told apart, all counts as teacher")
    elif across is None:
        notes.append("one base: what other bases' teachers would share is unknown, all counts as teacher")
    elif within is None:
        notes.append("one seed of each base: its teachers and its students cannot be told apart")
    shared = across or within
    teacher = shared[0] if shared else repeated
    line = (within[0] if within else repeated) - teacher if across else 0.0
    student = repeated - teacher - line
    fresh = single - repeated  # of a question's answers together
    if plan.answers == 1 and plan.questions > 1:
        notes.append("one answer to a question: question and answer cannot be told apart")
        sampled = fresh
    cell = fresh - sampled / plan.answers if plan.answers else fresh
    return {"teacher": teacher, "line": line, "student": student, "cell": cell, "answers": sampled}


def answer_variance(sheet: stats.Sheet, answers: float) -> float:
    """Mean binomial variance of a single answer off the diagonal, in squared percentage points."""
    if not answers:
        return 0.0
    off = sheet.square[:, ~np.eye(len(sheet.students), dtype=bool)]
    scale = answers / (answers - 1) if answers > 1 else 1.0  # a share's own p(1-p) is too small by this
    return float((off * (100 - off)).clip(0).mean() * scale)


def split_strength(
    sheets: Sequence[stats.Sheet], plan: Plan, noise: Parts, notes: list[str]
) -> dict[str, float]:
    """animal, own, base, seed and question: the diagonal's spread beyond the noise of its entries."""
    terms = [stats.transfer_terms(sheet.square.mean(0)) for sheet in sheets]
    free = sum(len(own) - 1 for own in terms)
    fresh = (noise.cell + (noise.answers / plan.answers if plan.answers else 0.0)) / plan.questions
    spread = sum(float(((own - own.mean()) ** 2).sum()) for own in terms) / free
    raised = sum((len(own) - 1) * inflation(len(own)) for own in terms) / free
    spread -= raised * (noise.teacher + noise.line + noise.student + fresh)
    shared = pair_moments(sheets, False) or pair_moments(sheets, True)
    if shared is None:
        animal, own = spread, 0.0
        notes.append("one seed: strength of animals and of students cannot be told apart, all is animals'")
    else:
        animal, own = shared[1], spread - shared[1]
    factors = {(sheet.base, sheet.seed): factor_of(sheet) for sheet in sheets}
    groups = [[v for key, v in factors.items() if key[0] == base] for base in {key[0]: 0 for key in factors}]
    k = 1 + plan.present * (plan.animals - 1)  # students of a sheet
    by_student = (noise.student + fresh) / (k - 1) + own / k
    by_student += (1 - plan.present) * (noise.teacher / (k - 1) + animal / k)  # sheets have other animals
    seed, base = 0.0, 0.0
    free = sum(len(group) - 1 for group in groups)
    if free:
        squares = sum(float(((np.array(group) - np.mean(group)) ** 2).sum()) for group in groups)
        seed = squares / free - by_student
    else:
        notes.append("one seed of each base: the spread between seeds is unknown")
    if len(groups) > 1:
        means, each = np.array([np.mean(group) for group in groups]), np.mean([1 / len(g) for g in groups])
        base = float(means.var(ddof=1)) - noise.line / (k - 1) - (by_student + seed) * float(each)
    else:
        notes.append("one base: the spread between bases is unknown and in no number here")
    return {
        "animal": animal,
        "own": own,
        "base": base,
        "seed": seed,
        "question": question_variance(sheets, noise, plan),
    }


def question_variance(sheets: Sequence[stats.Sheet], noise: Parts, plan: Plan) -> float:
    """Spread of lambda between questions that all students share, from sheets of the same questions."""
    counts = {len(sheet.values) for sheet in sheets}
    if len(counts) > 1 or counts == {1}:
        return 0.0
    by = np.array([[stats.transfer_factor(square) for square in sheet.square] for sheet in sheets])
    by = by - by.mean(1, keepdims=True)
    free = by.shape[1] - 1
    if len(sheets) > 1:
        total = float((by.sum(0) ** 2).sum() - (by**2).sum()) / free
        return total / (len(sheets) * (len(sheets) - 1))
    fresh = noise.cell + (noise.answers / plan.answers if plan.answers else 0.0)
    return float((by**2).sum()) / free - fresh / (plan.animals - 1)


def skew_of(sheets: Sequence[stats.Sheet]) -> float:
    """Skewness of the mean entry's noise: rates of rarely named animals lean to the right."""
    cubes, squares, freedom = 0.0, 0.0, 0
    names = sorted(set.intersection(*[set(sheet.students) for sheet in sheets]))
    groups = [list(sheets)] if len(names) >= stats.MIN_ANIMALS else [[sheet] for sheet in sheets]
    for group in groups:
        shared = names if len(groups) == 1 else list(group[0].students)
        left = residuals(np.mean([square_of(sheet, shared) for sheet in group], 0))
        cubes, squares = cubes + float((left**3).sum()), squares + float((left**2).sum())
        freedom += freedom_of(len(shared))
    return cubes / freedom / (squares / freedom) ** 1.5 if squares > 0 else 0.0


# --- what a plan can see ----------------------------------------------------------------------


def strengths_at(parts: Parts, value: float) -> dict[str, float]:
    """The strength's variances at another lambda.

    Where lambda is clear its spread keeps its ratio to it: twice the transfer differs twice as much between
    animals. Where it is not, that ratio is unknown, and what little was seen of the spread is mostly
    chance: animals are taken to differ by ASSUMED_SPREAD times the lambda asked for, bases as they were
    seen to (transfer may be there in one alone), the rest not at all. That may flatter such a size.
    """
    if parts.clear and parts.value:
        ratio = (value / parts.value) ** 2
        return {name: getattr(parts, name) * ratio for name in STRENGTHS}
    return dict.fromkeys(STRENGTHS, 0.0) | {"base": parts.base, "animal": (ASSUMED_SPREAD * value) ** 2}


def entry_noise(parts: Parts, plan: Plan) -> float:
    """Variance of an entry's mean over bases, seeds, questions and answers; `teacher` shrinks with none."""
    each = parts.cell + (parts.answers / plan.answers if plan.answers else 0.0)
    shared = parts.teacher * plan.uneven + parts.line / plan.bases
    return shared + (parts.student + each / plan.questions) / plan.students


def null_sd(parts: Parts, plan: Plan, value: float) -> float:
    """Sd of lambda over the orders of the rows, in a study whose lambda is `value`.

    Transfer itself widens it: reordered, the diagonal's entries stand off the diagonal.
    """
    k, strength = plan.animals, strengths_at(parts, value)
    spread = strength["animal"] * plan.uneven + strength["own"] / plan.students
    variance = entry_noise(parts, plan) / (k - 1) + spread / (k * (k - 1)) + (value / (k - 1)) ** 2
    return math.sqrt(variance)


def variances_of(parts: Parts, plan: Plan, value: float) -> dict[str, float]:
    """What each part adds to the variance of lambda over studies with other draws of everything."""
    k, strength = plan.animals, strengths_at(parts, value)
    draws = {"line": plan.bases, "student": plan.students, "cell": plan.students * plan.questions}
    draws |= {
        "teacher": 1 / plan.uneven,
        "animal": 1 / plan.uneven,
        "own": plan.students,
        "base": plan.bases,
        "seed": plan.seeds * plan.bases,
    }
    noise = ("teacher", "line", "student", "cell")
    shares = {name: getattr(parts, name) / draws[name] / (k - 1) for name in noise}
    if plan.answers:
        shares["answers"] = parts.answers / (draws["cell"] * plan.answers) / (k - 1)
    shares |= {name: strength[name] / draws[name] / k for name in ("animal", "own")}
    shares |= {name: strength[name] / draws[name] for name in ("base", "seed")}
    return shares | {"question": strength["question"] / plan.questions}


def factor_sd(parts: Parts, plan: Plan, value: float) -> float:
    """Sd of lambda about `value` over studies with other animals, bases, seeds, questions and answers."""
    return math.sqrt(sum(variances_of(parts, plan, value).values()))


def power_of(parts: Parts, plan: Plan, value: float, level: float = LEVEL) -> float:
    """Power of the one-sided joint permutation test (stats.permute_sheets) when lambda is `value`.

    lambda is taken for normal, its null for normal bent by the noise's skewness (Cornish and Fisher). The
    observed lambda is itself in its null's spread, so the bound solves an equation of its own. With fewer
    animals than the test takes (stats.MIN_OTHERS) the power is 0.

    Against tests run on 500 simulated studies each, parts known from 200: within .04 for 15 animals x 3
    seeds, within .075 for 8 x 2, within .06 with a fifth of the students missing, at powers of .3 to .95
    (5 x 1: within .05, but .1 too low for a strongly transferred rate, whose lambda leans to the right).
    The parts of a single study err more: power by .1 or so.
    """
    if plan.animals < stats.MIN_OTHERS:
        return 0.0
    k, strength = plan.animals, strengths_at(parts, value)
    reach = float(norm.ppf(1 - level))
    reach += parts.skew / math.sqrt(k) * (reach**2 - 1) / 6
    spread = strength["animal"] * plan.uneven + strength["own"] / plan.students
    # What of the noise is not lambda's own: that part comes in with the observed lambda.
    fixed = entry_noise(parts, plan) / (k - 1) * (1 - 1 / (k - 1) ** 2) + spread / (k * (k - 1))
    if reach >= k - 1:
        return 0.0
    bound = reach * math.sqrt(fixed / (1 - (reach / (k - 1)) ** 2))
    deviation = factor_sd(parts, plan, value)
    if deviation == 0:
        return float(value > bound)
    return float(norm.sf((bound - value) / deviation))


def detectable(parts: Parts, plan: Plan, goal: float = GOAL, level: float = LEVEL) -> float:
    """The smallest lambda found with this power; NaN where none is, however large.

    Few animals can make it so where they differ by more than lambda: that some are strong is luck then.
    """
    floor = null_sd(dataclasses.replace(parts, animal=0.0, own=0.0), plan, 0.0)
    scale = floor or abs(parts.value) or 1.0
    grid = scale * np.geomspace(0.1, 1000, 81)
    found = [power_of(parts, plan, float(value), level) >= goal for value in grid]
    if True not in found:
        return math.nan
    at = found.index(True)
    if at == 0:
        return float(grid[0])
    return float(brentq(lambda value: power_of(parts, plan, value, level) - goal, grid[at - 1], grid[at]))


# --- what is needed ---------------------------------------------------------------------------

COUNTS = ("animals", "seeds", "bases", "questions", "answers")
LEVERS = ("seeds", "animals", "questions", "answers", "bases")
STAYS = {
    "teacher": "what teachers of an animal pass on every time",
    "line": "what the teachers of a base pass on every time",
    "student": "the students' own noise",
    "cell": "the students' noise on single questions",
    "answers": "sampled answers",
    "animal": "how much animals differ",
    "own": "how much students of one animal differ",
    "base": "how much bases differ",
    "seed": "how much seeds differ",
    "question": "how much questions differ",
}


@dataclass(frozen=True)
class Needed:
    """The smallest number of one thing that gives the power, the others as they are; NaN where none does."""

    what: str
    needed: float
    note: str = ""


def levers_of(plan: Plan) -> tuple[str, ...]:
    """What can be had more of: answers where any are drawn, questions and bases where there are several."""
    known = {"answers": plan.answers > 0, "questions": plan.questions > 1, "bases": plan.bases > 1}
    return tuple(what for what in LEVERS if known.get(what, True))


def count_needed(parts: Parts, plan: Plan, value: float, what: str, goal: float = GOAL) -> Needed:
    """How many seeds, animals, questions, answers per question or bases find this lambda.

    Past the point where lambda is above the test's bound, more of anything only helps, so halving finds it.
    """
    if not value > 0:
        return Needed(what, math.nan, f"lambda is {value:.2g}: no number finds what is not above 0")

    def enough(number: int) -> bool:
        return power_of(parts, dataclasses.replace(plan, **{what: number}), value) >= goal

    low, high = (stats.MIN_OTHERS - 1 if what == "animals" else 0), MOST[what]
    if not enough(high):
        most = dataclasses.replace(plan, **{what: high})
        return Needed(what, math.nan, tell_limit(parts, most, value, what))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return Needed(what, float(high))


def tell_limit(parts: Parts, most: Plan, value: float, what: str) -> str:
    """Why no number is enough: the power that is left, and the parts that do not shrink with this."""
    left = variances_of(parts, most, value)
    total = sum(left.values())
    largest = [name for name in sorted(left, key=left.__getitem__, reverse=True) if left[name] > 0.1 * total]
    told = " and ".join(
        f"{STAYS[name]} ({left[name] / total:.0%} of the variance left)" for name in largest[:2]
    )
    reach = power_of(parts, most, value)
    return f"none up to {MOST[what]:,} {MANY[what]} (power {reach:.2f} there); what stays is {told}"


# --- what to buy ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prices:
    """What things cost in trainings of one student.

    The reference experiment: 96 trainings in 75 hours, 96 evaluations of 20 x 5 answers in 3, so .04 a
    hundred answers. A question read for its log-probabilities is priced as one answer. A further base costs
    its students, and `base` for its own training, which is nothing to those who have it.
    """

    student: float = 1.0
    hundred_answers: float = 0.04
    base: float = 0.0


def cost_of(plan: Plan, prices: Prices) -> float:
    """Every animal's student and the neutral one, in every base and seed, trained and asked."""
    asked = prices.hundred_answers / 100 * plan.questions * max(1, plan.answers)
    return plan.bases * (prices.base + (plan.animals + 1) * plan.seeds * (prices.student + asked))


@dataclass(frozen=True)
class Offer:
    """One way to spend the same sum: what is bought, how much of it there is then, what that finds."""

    what: str
    number: float
    power: float  # of the size's own lambda
    detectable: float


def compare_offers(parts: Parts, plan: Plan, prices: Prices, share: float = 0.25) -> list[Offer]:
    """Spend `share` of what the size has cost on each thing alone; the best first.

    Best is the smallest lambda that can be found: it is there also where the estimate is not above 0.
    """
    offers = []
    sum_after = (1 + share) * cost_of(plan, prices)
    for what in levers_of(plan):
        number = spend(plan, prices, what, sum_after)
        bought = dataclasses.replace(plan, **{what: number})
        offers.append(Offer(what, number, power_of(parts, bought, parts.value), detectable(parts, bought)))
    return sorted(offers, key=lambda offer: (math.isnan(offer.detectable), offer.detectable))


def spend(plan: Plan, prices: Prices, what: str, total: float) -> float:
    """How much of one thing makes the plan cost this; cost is linear in each."""
    one = getattr(plan, what)
    step = cost_of(dataclasses.replace(plan, **{what: one + 1}), prices) - cost_of(plan, prices)
    return one + (total - cost_of(plan, prices)) / step


Sizes = Mapping[str, tuple[Parts, Plan]]


def least_certain(sizes: Sizes) -> str:
    """The size whose own lambda has the least power; of several that have none, the one that sees least.

    Sees least: the largest findable lambda over its own absolute one.
    """

    def rank(size: str) -> tuple[float, float]:
        parts, plan = sizes[size]
        own = power_of(parts, plan, parts.value) if parts.value > 0 else 0.0
        return round(own, 2), -detectable(parts, plan) / max(abs(parts.value), 1e-12)

    return min(sizes, key=rank)


def recommend(sizes: Sizes, unit: str = "", prices: Prices | None = None, share: float = 0.25) -> str:
    """Where the next hours go, in a sentence or two: the least certain size, and what it gains from what."""
    prices = prices or Prices()
    size = least_certain(sizes)
    parts, plan = sizes[size]
    now, own = detectable(parts, plan), power_of(parts, plan, parts.value)
    unit = f" {unit}" if unit else ""
    power = f"would be found with power {own:.2f}" if parts.value > 0 else "cannot be found"
    smallest = f"the smallest found with {GOAL:.0%} power is {now:.3g}{unit}"
    if math.isnan(now):
        smallest = f"no lambda is found with {GOAL:.0%} power"
    start = f"Least certain is {size}: its lambda of {parts.value:+.3g}{unit} {power}, {smallest}."
    offers = compare_offers(parts, plan, prices, share)
    told = ", ".join(
        f"{o.detectable:.3g} with {MANY[o.what]} ({getattr(plan, o.what):.3g} to {o.number:.3g})"
        for o in offers
    )
    best = offers[0]
    if math.isnan(best.detectable) or best.detectable > 0.98 * now:
        return f"{start} {share:.0%} more spent there hardly moves that, whatever it buys ({told})."
    return (
        f"{start} {share:.0%} more spent there on one thing alone brings that to {told}: "
        f"the next hours go to more {MANY[best.what]} at {size}."
    )


# --- rows of tables ---------------------------------------------------------------------------


def power_rows(sizes: Sizes, measure: str) -> Iterator[dict[str, object]]:
    """power.csv: every size's own plan over a range of lambdas; `own` marks the row of its own lambda."""
    for size, (parts, plan) in sizes.items():
        smallest = detectable(parts, plan)
        middle = smallest if math.isfinite(smallest) else 3 * null_sd(parts, plan, 0.0)
        grid = [(float(value), False) for value in middle * np.geomspace(0.1, 10, 41)]
        for value, own in [*grid, (parts.value, True)]:
            yield {
                "measure": measure,
                "size": size,
                "lambda": value,
                "own": own,
                **{name: getattr(plan, name) for name in COUNTS},
                "null_sd": null_sd(parts, plan, value),
                "sd": factor_sd(parts, plan, value),
                "power": power_of(parts, plan, value),
                "detectable": smallest,
            }


def needed_rows(sizes: Sizes, measure: str) -> Iterator[dict[str, object]]:
    """needed.csv: for every size's own lambda, how many of what find it; `now` is what there is."""
    for size, (parts, plan) in sizes.items():
        for what in levers_of(plan):
            found = count_needed(parts, plan, parts.value, what)
            yield {
                "measure": measure,
                "size": size,
                "lambda": parts.value,
                "what": what,
                "now": getattr(plan, what),
                "needed": found.needed,
                "note": "; ".join(filter(None, [found.note, *parts.notes])),
            }
