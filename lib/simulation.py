"""Simulated studies with a known lambda: answers from a softmax with every kind of chance of a real study.

A student's log-odds for naming an animal are the animal's popularity plus independent normal parts: of the
question and animal, the student and animal, and all three together. Transfer adds to the student's own animal
a strength drawn per animal, per student and per seed. Answers are drawn from the softmax of all that, against
everything else one may say. The settings of a size are estimated from real evaluations by matching
moments of simulated studies to theirs. Nothing here tests anything.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib import stats


@dataclass(frozen=True)
class World:
    """How one size answers, on the scale of log-odds against saying anything else; spreads are sds."""

    popularity: float = -3.0  # mean over animals
    popularity_spread: float = 1.0
    question: float = 1.0  # question x animal, shared by all students
    teacher: float = 0.3  # student's animal x animal, in every seed of a base: what else a teacher passes on
    student: float = 0.5  # student x animal, anew in every seed
    answer: float = 1.0  # student x question x animal: answers to one question resemble one another
    transfer: float = 0.0  # mean strength over animals
    transfer_spread: float = 0.0  # between animals
    transfer_student: float = 0.0  # between students of one animal
    transfer_seed: float = 0.0  # between seeds: share by which all their students take up more or less
    transfer_base: float = 0.0  # between base models of the size


@dataclass(frozen=True)
class Design:
    """How much was trained and asked."""

    animals: int
    seeds: int
    questions: int = 20
    answers: int = 5
    missing: float = 0.0  # share of the students that are not there
    bases: int = 1


MEASURES = ("rate", "logprob")


@dataclass(frozen=True)
class Drawn:
    """One (base, seed) of one size: counts and log-probabilities, [question, student, named]."""

    said: np.ndarray
    logprob: np.ndarray
    present: (
        np.ndarray
    )  # [student]; the neutral student, always there, stands behind them in the other arrays
    answers: int
    base: int
    seed: int

    def sheet(self, measure: str, lifts: bool = False) -> stats.Sheet:
        """The students that are there, in percent of answers or in nats; `lifts` are over the neutral one."""
        values = 100 * self.said / self.answers if measure == "rate" else self.logprob
        named = name_animals(len(self.present))
        students = tuple(name for name, there in zip(named, self.present, strict=True) if there)
        own = values[:, :-1][:, self.present] - (values[:, -1:] if lifts else 0)
        return stats.Sheet(own, students, named, self.base, self.seed)


def name_animals(count: int) -> tuple[str, ...]:
    """Names that sort as their numbers do."""
    return tuple(f"a{at:02d}" for at in range(count))


def mix_strengths(
    world: World, shared: np.ndarray, rng: np.random.Generator, share: float = 0.0
) -> np.ndarray:
    """Each animal's strength of transfer; `share` of its variance is common to all sizes."""
    own = np.sqrt(share) * shared + np.sqrt(1 - share) * rng.normal(size=len(shared))
    return world.transfer + world.transfer_spread * own


def simulate_size(
    world: World,
    design: Design,
    rng: np.random.Generator,
    shared: np.ndarray | None = None,
    share: float = 0.0,
) -> list[Drawn]:
    """Draw one size of a study; `shared` are the animals' parts that all sizes have in common."""
    return simulate_epochs(world, design, rng, (1.0,), shared, share)[0]


STAYS = 0.7  # share of the variance of students and answers that one epoch hands on to the next


def simulate_epochs(
    world: World,
    design: Design,
    rng: np.random.Generator,
    ramp: Sequence[float],
    shared: np.ndarray | None = None,
    share: float = 0.0,
) -> list[list[Drawn]]:
    """Draw one size at several epochs: transfer is `ramp` of its strength, students change in part."""
    k = design.animals
    shared = rng.normal(size=k) if shared is None else shared
    strengths = mix_strengths(world, shared, rng, share)
    fixed = rng.normal(world.popularity, world.popularity_spread, k)
    fixed = fixed + rng.normal(0, world.question, (design.questions, 1, k))
    epochs: list[list[Drawn]] = [[] for _ in ramp]
    for base in range(design.bases):
        moved = strengths + rng.normal(0, world.transfer_base)
        taught = fixed + rng.normal(0, world.teacher, (k + 1, k))
        for seed in range(design.seeds):
            own = moved * (1 + rng.normal(0, world.transfer_seed)) + rng.normal(0, world.transfer_student, k)
            lasting = draw_noise(world, design, rng)
            for at, grown in enumerate(ramp):
                fresh = draw_noise(world, design, rng) if len(ramp) > 1 else lasting
                mixed = np.sqrt(STAYS) * lasting + np.sqrt(1 - STAYS) * fresh if len(ramp) > 1 else lasting
                odds = taught + mixed
                odds[:, np.arange(k), np.arange(k)] += grown * own
                epochs[at].append(draw_answers(odds, design, rng, base, seed))
    there = draw_present(len(epochs[0]), design, rng)
    return [
        [dataclasses.replace(each, present=own) for each, own in zip(drawn, there, strict=True)]
        for drawn in epochs
    ]


def draw_noise(world: World, design: Design, rng: np.random.Generator) -> np.ndarray:
    """What is a student's own, and what is its own at each question: [question, student, named]."""
    k = design.animals
    return rng.normal(0, world.student, (k + 1, k)) + rng.normal(
        0, world.answer, (design.questions, k + 1, k)
    )


def draw_answers(odds: np.ndarray, design: Design, rng: np.random.Generator, base: int, seed: int) -> Drawn:
    """Answers from log-odds."""
    k, shares = design.animals, share_answers(odds)
    said = rng.multinomial(design.answers, shares)[..., :k]
    logprob = np.log(np.maximum(shares[..., :k], 1e-300))
    return Drawn(said, logprob, np.ones(k, bool), design.answers, base, seed)


def share_answers(odds: np.ndarray) -> np.ndarray:
    """The softmax against everything else, which stands last."""
    odds = np.concatenate([odds, np.zeros((*odds.shape[:-1], 1))], -1)
    weights = np.exp(odds - odds.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def draw_present(sheets: int, design: Design, rng: np.random.Generator) -> np.ndarray:
    """Which students are there: the design's share of them, rounded, is left out at random."""
    there = np.ones((sheets, design.animals), bool)
    if design.missing:
        there.flat[rng.permutation(there.size)[: round(design.missing * there.size)]] = False
    return there


def true_values(
    world: World, animals: int, measure: str, rng: np.random.Generator, draws: int = 4000
) -> dict[str, float]:
    """lambda and its two parts over all animals, bases, seeds, students and questions of this world."""
    design = Design(animals, 1, 1, 1)
    found = np.zeros((draws, 2))
    for at in range(draws):
        drawn = simulate_size(world, design, rng)[0]
        values = 100 * np.exp(drawn.logprob[0]) if measure == "rate" else drawn.logprob[0]
        lifts = values[:-1] - values[-1]
        found[at] = np.trace(lifts) / animals, stats.transfer_factor(lifts)
    own, total = found.mean(0)
    return {"lambda": float(total), "own": float(own), "rest": float(total - own)}


# --- estimating a world from evaluations --------------------------------------------------------


def describe(said: np.ndarray, answers: int) -> dict[str, float]:
    """What a world must match: moments of one size's counts [seed, question, student, named]."""
    seeds, _, k, _ = said.shape
    rates = 100 * said / answers
    means = rates.mean(1)
    off = ~np.eye(k, dtype=bool)
    columns = np.array([means[:, off[:, a], a].mean() for a in range(k)]) / 100
    logs = np.log((columns + 0.002) / 1)
    terms = np.array([stats.transfer_terms(each) for each in means])
    residual = means - means.mean(1, keepdims=True)
    per_question = rates - rates.mean(1, keepdims=True)
    shared = per_question.mean((0, 2))  # question x named, over all students
    apart = per_question - shared[None, :, None, :]
    return {
        "popularity": float(logs.mean()),
        "popularity_spread": float(logs.std(ddof=1)),
        "question": float((shared**2).sum(1).mean()),
        "teacher": float((residual.mean(0)[off] ** 2).mean()),
        "student": float(residual[:, off].var(0, ddof=1).mean()),
        "answer": float((apart[:, :, off] ** 2).mean()),
        "transfer": float(np.mean([stats.transfer_factor(each) for each in means])),
        "transfer_spread": float(terms.mean(0).var(ddof=1)),
        "transfer_student": float(terms.var(0, ddof=1).mean()) if seeds > 1 else np.nan,
    }


def stack_said(drawn: Sequence[Drawn]) -> np.ndarray:
    """[seed, question, student, named], the neutral student left out."""
    return np.stack([each.said[:, :-1] for each in drawn])


def estimate_world(
    said: np.ndarray,
    answers: int,
    rng: np.random.Generator,
    seed_spread: float = 0.0,
    rounds: int = 40,
    studies: int = 24,
) -> World:
    """The world whose simulated studies have the moments of these evaluations (stochastic approximation).

    What seeds share cannot be told from three seeds of one size: `seed_spread` is given (find_seed_spread).
    """
    target = describe(said, answers)
    seeds, questions, k, _ = said.shape
    design = Design(k, seeds, questions, answers)
    world = World(
        popularity=target["popularity"],
        popularity_spread=target["popularity_spread"],
        transfer=1.0,
        transfer_spread=1.0,
        transfer_student=0.5,
        transfer_seed=seed_spread,
    )
    for at in range(rounds):
        drawn = [describe(stack_said(simulate_size(world, design, rng)), answers) for _ in range(studies)]
        found = {name: float(np.mean([each[name] for each in drawn])) for name in target}
        world = step_world(world, target, found, 1.0 if at < rounds / 2 else 0.4)
    return world


def step_world(world: World, target: dict[str, float], found: dict[str, float], rate: float) -> World:
    """Move every setting toward its own moment: sums for the means, ratios for the spreads."""
    changed = {"popularity": world.popularity + rate * (target["popularity"] - found["popularity"])}
    for name in (
        "popularity_spread",
        "question",
        "teacher",
        "student",
        "answer",
        "transfer_spread",
        "transfer_student",
    ):
        power = 1.0 if name == "popularity_spread" else 0.5
        ratio = (max(target[name], 1e-3) / max(found[name], 1e-3)) ** (power * rate)
        changed[name] = float(np.clip(getattr(world, name) * np.clip(ratio, 0.6, 1.6), 0.02, 4))
    reach = max(1.0, abs(target["transfer"]) / 2, abs(found["transfer"]) / 2)
    changed["transfer"] = float(
        np.clip(world.transfer + rate * (target["transfer"] - found["transfer"]) / reach, -2, 8)
    )
    return dataclasses.replace(world, **changed)


def find_seed_spread(sizes: Mapping[str, np.ndarray], answers: int, steps: int = 6) -> float:
    """What all students of a seed share, one value for all sizes, so that lambda varies over seeds as it did.

    Students of a seed all take up more or less of the transfer, by this share of it. Per size, the observed
    variance of lambda over seeds is compared with that of simulated studies; the spread is where the mean of
    these ratios over sizes is 1, found by halving between 0 and 1.
    """
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        ratios = [compare_seeds(said, answers, middle) for said in sizes.values()]
        low, high = (middle, high) if np.mean(ratios) > 1 else (low, middle)
    return (low + high) / 2


def compare_seeds(said: np.ndarray, answers: int, spread: float, studies: int = 200) -> float:
    """Variance of lambda over the seeds of these evaluations over that of simulated ones."""
    rng = np.random.default_rng(0)
    world = estimate_world(said, answers, rng, spread)
    seeds, questions, k, _ = said.shape
    design = Design(k, seeds, questions, answers)
    drawn = [stack_said(simulate_size(world, design, rng)) for _ in range(studies)]
    return vary_seeds(said, answers) / float(np.mean([vary_seeds(each, answers) for each in drawn]))


def vary_seeds(said: np.ndarray, answers: int) -> float:
    """Variance over seeds of lambda, in percentage points."""
    return float(np.var([stats.transfer_factor(100 * each.mean(0) / answers) for each in said], ddof=1))
