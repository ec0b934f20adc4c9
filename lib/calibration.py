"""Do the p values and intervals of the analysis hold? Simulated studies in which the truth is known.

Every check is one claim that the analysis makes of a study: a p of .05 or less where nothing travels, an
interval that holds the true value. A check is counted over many studies; the worlds that they are drawn
from were estimated from real evaluations (lib.simulation). Tests that others used stand beside ours.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import fisher_exact, norm

from lib import lawcheck, mixed, pooling, scaling, simulation, spread, stats, trend
from lib.simulation import Design, Drawn, World

ALPHA = stats.ALPHA
PERMUTATIONS = 499
RAMP = (0.3, 0.6, 0.8, 0.9, 1.0)  # how transfer grows over the epochs of a simulated study
DRAWS = 6000  # of students and questions, for true values
SHARE = 0.5  # of the variance of an animal's strength that all sizes have in common
TEACHER = 0.5  # of simulated cells: what students of one animal share in all seeds, in log-odds
# Animals for the interval of each; `rest` is the difference of the two and has no interval of its own.
REPORTED = {"lambda": stats.MIN_OTHERS, "own": stats.MIN_SPLIT}
KINDS = {"type I": (0.035, 0.065), "coverage": (0.93, 0.97), "family": (0.0, 0.065)}


@dataclass(frozen=True)
class Case:
    """A design in words, its sizes (drawn anew for each study where there are more worlds) and its parts.

    `times`: so many studies for each one that is asked for. A small study is quick and makes few claims.
    `bases` says how many bases each size has where they differ; such a study is of a ladder of sizes
    (`climb_down`) and is asked for the claims alone in which the spread between bases has a part.
    """

    name: str
    sizes: int
    design: Design
    times: int = 1
    bases: tuple[int, ...] = ()
    spread: str = ""  # how bases differ on a ladder: in proportion to transfer, or alike at all sizes


LADDER = Design(15, 1, bases=8)
RUNGS = (8, 8, 8, 8, 4, 4, 2, 2)
CASES = (
    Case("7 sizes x 15 animals x 3 seeds", 7, Design(15, 3)),
    Case("7 sizes x 15 animals x 3 seeds, 20 % missing", 7, Design(15, 3, missing=0.2)),
    Case("3 sizes x 5 animals x 1 seed", 3, Design(5, 1), times=4),
    Case("3 sizes x 5 animals x 1 seed, 20 % missing", 3, Design(5, 1, missing=0.2), times=4),
    Case("3 sizes x 12 animals x 3 bases", 3, Design(12, 1, bases=3)),
    Case("8 sizes x 15 animals x 8 to 2 bases, spread as lambda", 8, LADDER, bases=RUNGS, spread="as lambda"),
    Case("8 sizes x 15 animals x 8 to 2 bases, spread alike", 8, LADDER, bases=RUNGS, spread="alike"),
)
TRENDS = 4  # silent studies whose trend is tested, for each other study: a study has one trend per measure
BASE_SHARE = 0.5  # spread between bases over that between animals, where a design has several
# A ladder of sizes: whose answers its first rung has, how much of one rung's transfer the next one has, and
# how far bases differ, over the transfer (of the rung itself, or of all in the mean).
RUNG, FALL, RUNG_SHARE = "7b", 0.7, 0.6


@dataclass(frozen=True)
class Outcome:
    """One claim of one simulated study: did it come true? (a p was small, an interval held the truth)"""

    what: str
    kind: str
    measure: str
    size: str
    hit: bool
    reference: bool = False


Truths = Mapping[tuple[str, str], Mapping[str, float]]  # (size, measure) -> lambda, own, rest


def draw_study(
    worlds: Mapping[str, World], case: Case, rng: np.random.Generator, ramp: tuple[float, ...] = RAMP
) -> dict[str, list[list[Drawn]]]:
    """One study: per size, the sheets of every epoch; animals recur over sizes, students are missing."""
    names = sorted(rng.choice(list(worlds), case.sizes, replace=False), key=list(worlds).index)
    design = dataclasses.replace(case.design, missing=0.0)
    shared = rng.normal(size=design.animals)
    bases = case.bases or (design.bases,) * len(names)
    drawn = {
        size: simulation.simulate_epochs(
            worlds[size], dataclasses.replace(design, bases=own), rng, ramp, shared, SHARE
        )
        for size, own in zip(names, bases, strict=True)
    }
    sheets = [len(epochs[0]) for epochs in drawn.values()]
    there = np.split(simulation.draw_present(sum(sheets), case.design, rng), np.cumsum(sheets)[:-1])
    return {
        size: [
            [dataclasses.replace(each, present=own) for each, own in zip(epoch, present, strict=True)]
            for epoch in drawn[size]
        ]
        for size, present in zip(names, there, strict=True)
    }


def find_truths(
    worlds: Mapping[str, World], case: Case, rng: np.random.Generator, draws: int = DRAWS
) -> dict[tuple[str, str], dict[str, float]]:
    """The true lambda and its parts, by size and measure."""
    return {
        (size, measure): simulation.true_values(world, case.design.animals, measure, rng, draws)
        for size, world in worlds.items()
        for measure in simulation.MEASURES
    }


def place_worlds(worlds: Mapping[str, World], case: Case) -> dict[str, World]:
    """The worlds of a case's studies; where it has several bases these differ."""
    if case.bases:
        return climb_down(worlds[RUNG], case)
    if case.design.bases == 1:
        return dict(worlds)
    return {
        size: dataclasses.replace(world, transfer_base=BASE_SHARE * world.transfer_spread)
        for size, world in worlds.items()
    }


def climb_down(world: World, case: Case) -> dict[str, World]:
    """A ladder of sizes: from rung to rung transfer falls, and with it all that students differ by.

    The spread between bases falls likewise, or is the same at all rungs.
    """
    shares = FALL ** np.arange(case.sizes)
    found = {}
    for at, share in enumerate(shares.tolist()):
        noise = {name: share * getattr(world, name) for name in ("teacher", "student", "answer")}
        rung = dataclasses.replace(scale_transfer(world, share), **noise)
        of = rung.transfer if case.spread == "as lambda" else world.transfer * float(shares.mean())
        found[f"rung{at + 1}"] = dataclasses.replace(rung, transfer_base=RUNG_SHARE * of)
    return found


def silence(world: World) -> World:
    """The same world where nothing travels; teachers still differ in what else they pass on."""
    return dataclasses.replace(
        world, transfer=0.0, transfer_spread=0.0, transfer_student=0.0, transfer_seed=0.0, transfer_base=0.0
    )


# --- the claims of one study ------------------------------------------------------------------


def usable(drawn: Sequence[Drawn]) -> list[Drawn]:
    """The sheets with enough students."""
    return [each for each in drawn if each.present.sum() >= stats.MIN_ANIMALS]


def units_of(drawn: Sequence[Drawn], case: Case) -> list[int]:
    """What is drawn at random beside the animals: bases where there are several, else seeds."""
    return [each.base if case.design.bases > 1 else each.seed for each in drawn]


def check_null(
    study: Mapping[str, list[list[Drawn]]], case: Case, rng: np.random.Generator
) -> Iterator[Outcome]:
    """p of lambda by size, and Holm over sizes, at the last epoch of a study in which nothing travels."""
    for measure in simulation.MEASURES:
        found = {}
        for size, epochs in study.items():
            drawn = usable(epochs[-1])
            if not drawn:
                continue
            sheets = [each.sheet(measure) for each in drawn]
            found[size] = stats.permute_sheets(sheets, PERMUTATIONS, rng).p
            yield from check_others(drawn, sheets, measure, size, rng)
        known = {size: p for size, p in found.items() if not math.isnan(p)}
        for size, p in known.items():
            yield Outcome("p of lambda", "type I", measure, size, p <= ALPHA)
        if known:
            hit = bool((stats.adjust_holm(list(known.values())) <= ALPHA).any())
            yield Outcome("any p of lambda after Holm", "family", measure, "all", hit)


def check_others(
    drawn: Sequence[Drawn], sheets: Sequence[stats.Sheet], measure: str, size: str, rng: np.random.Generator
) -> Iterator[Outcome]:
    """What others would have reported on the same answers."""
    if len(sheets) > 1 and len(sheets[0].students) > 3:
        blocks = [sheet.square.mean(0) for sheet in sheets]
        p = stats.permute_blocks(blocks, PERMUTATIONS, rng).p
        yield Outcome("students permuted within each seed", "type I", measure, size, p <= ALPHA, True)
    if measure == "rate":
        for hit in fisher_cells(drawn[0]):
            yield Outcome("Fisher's test, answer by answer", "type I", measure, size, hit, True)
        p = cluster_cells(drawn[0])
        if not math.isnan(p):
            yield Outcome("target rates clustered by cell", "type I", measure, size, p <= ALPHA, True)


def fisher_cells(drawn: Drawn) -> Iterator[bool]:
    """Per animal: its student's answers against those of the one neutral student, as if independent."""
    total = drawn.answers * len(drawn.said)
    said = drawn.said.sum(0)
    for at in np.flatnonzero(drawn.present):
        own, control = int(said[at, at]), int(said[-1, at])
        if own + control:
            yield bool(
                fisher_exact([[own, total - own], [control, total - control]], "greater").pvalue <= ALPHA
            )


def cluster_cells(drawn: Drawn) -> float:
    """Mean lift of the target over the one neutral student, cells as clusters, normal quantiles."""
    share = drawn.said.sum(0) / (drawn.answers * len(drawn.said))
    lifts = np.array([share[at, at] - share[-1, at] for at in np.flatnonzero(drawn.present)])
    spread = lifts.std(ddof=1)
    return float(norm.sf(lifts.mean() / spread * math.sqrt(len(lifts)))) if spread > 1e-12 else math.nan


def check_intervals(
    study: Mapping[str, list[list[Drawn]]],
    case: Case,
    truths: Truths,
) -> Iterator[Outcome]:
    """The intervals of lambda and of its part `own`."""
    for measure in simulation.MEASURES:
        spreads = {}
        for part in REPORTED:
            parts = {size: measure_part(epochs[-1], case, measure, part) for size, epochs in study.items()}
            spreads[part] = moderate_parts(parts, case)
        for size, epochs in study.items():
            drawn = usable(epochs[-1])
            for part in REPORTED:
                interval = find_interval(drawn, case, measure, part, spreads[part].get(size))
                if interval is not None:
                    true = truths[size, measure][part]
                    yield Outcome(
                        f"interval of {part}",
                        "coverage",
                        measure,
                        size,
                        interval.low <= true <= interval.high,
                    )


def moderate_parts(parts: Mapping[str, stats.Influence | None], case: Case) -> dict[str, stats.Spread | None]:
    """The spread between bases by size, as the analysis has it; none where seeds are units."""
    known = {size: each for size, each in parts.items() if each is not None}
    if case.design.bases == 1 or not known:
        return {}
    return dict(zip(known, spread.moderate_spreads(list(known.values())), strict=True))


def find_interval(
    drawn: Sequence[Drawn], case: Case, measure: str, part: str, bases: stats.Spread | None = None
) -> stats.Interval | None:
    """The interval as the analysis has it; None where it gives none."""
    sheets = [each.sheet(measure, True) for each in drawn]
    if not stats.speaks_of_others(sheets, REPORTED[part]):
        return None
    return stats.interval_of(stats.measure_influence(sheets, units_of(drawn, case), part), bases)


def check_bands(
    study: Mapping[str, list[list[Drawn]]], case: Case, truths: Sequence[Truths], rng: np.random.Generator
) -> Iterator[Outcome]:
    """The band over epochs: does it hold the true lambda at all of them together?"""
    for measure in simulation.MEASURES:
        parts = {size: [measure_part(one, case, measure) for one in own] for size, own in study.items()}
        spreads = [
            moderate_parts({size: own[at] for size, own in parts.items()}, case) for at in range(len(truths))
        ]
        for size, epochs in study.items():
            sheets = [each.sheet(measure) for each in usable(epochs[0])]
            if not stats.speaks_of_others(sheets, stats.MIN_BAND):
                continue
            own = [each.get(size) for each in spreads]
            found = stats.joint_band([each for each in parts[size] if each is not None], rng, own)
            hits = [
                one.low <= true[size, measure]["lambda"] <= one.high
                for one, true in zip(found, truths, strict=True)
            ]
            yield Outcome("band over epochs", "coverage", measure, size, all(hits))


def measure_part(
    drawn: Sequence[Drawn], case: Case, measure: str, part: str = "lambda"
) -> stats.Influence | None:
    """What moves a statistic of one size at one epoch; None where no sheet has students enough."""
    used = usable(drawn)
    if not used:
        return None
    return stats.measure_influence([each.sheet(measure, True) for each in used], units_of(used, case), part)


def scale_transfer(world: World, share: float) -> World:
    """The world at an epoch where transfer is a share of what it becomes."""
    names = ("transfer", "transfer_spread", "transfer_student", "transfer_base")
    return dataclasses.replace(world, **{name: share * getattr(world, name) for name in names})


# --- the claims of the other modules ------------------------------------------------------------


def check_trends(
    study: Mapping[str, list[list[Drawn]]], rng: np.random.Generator, draws: int = 2000
) -> Iterator[Outcome]:
    """Both tests for a trend over sizes, in a study whose sizes do not differ (nothing travels at any)."""
    for measure in simulation.MEASURES:
        points = gather_points(study, measure)
        if points is None:
            continue
        for what, p in (
            ("p of a trend over bases", trend.permute_bases(points, draws, rng).p),
            ("p of a trend over animals", trend.flip_animals(points, draws, rng).p),
        ):
            if not math.isnan(p):
                yield Outcome(what, "type I", measure, "all", p <= ALPHA)


def gather_points(study: Mapping[str, list[list[Drawn]]], measure: str) -> scaling.Points | None:
    """One point per base and seed, sizes a tenfold apart; None where fewer than three sizes are left."""
    rows = []
    for at, (size, epochs) in enumerate(study.items()):
        for each in usable(epochs[-1]):
            sheet = each.sheet(measure)
            terms = stats.transfer_terms(sheet.square.mean(0))
            rows.append((6.0 + at, size, (size, each.base), terms, sheet.students))
    if len({row[1] for row in rows}) < 3:
        return None
    return scaling.Points(*(list(column) for column in zip(*rows, strict=True)))


def check_cells(study: Mapping[str, list[list[Drawn]]]) -> Iterator[Outcome]:
    """p of every cell, and Holm's and the false discovery rate over all, where nothing travels."""
    for measure in simulation.MEASURES:
        strict = []
        for size, epochs in study.items():
            entries = [enter(each, measure) for each in usable(epochs[-1])]
            for cell in pooling.find_cells(entries) if entries else ():
                strict.append(cell.strict)
                if not math.isnan(cell.p):
                    yield Outcome("p of a cell", "type I", measure, size, cell.p <= ALPHA)
        for what, adjusted in zip(("Holm", "FDR"), pooling.adjust_cells(strict), strict=True):
            if not np.isnan(adjusted).all():
                yield Outcome(
                    f"any cell after {what}", "family", measure, "all", bool((adjusted <= ALPHA).any())
                )


def enter(drawn: Drawn, measure: str) -> pooling.Entries:
    """A sheet as partial pooling wants it."""
    if measure == "rate":
        return pooling.enter_answers(answer(drawn))
    sheet = drawn.sheet(measure)
    return pooling.enter_values(sheet.square, sheet.students)


def answer(drawn: Drawn) -> mixed.Answers:
    """The counts of the students that are there, over their own animals."""
    there = np.flatnonzero(drawn.present)
    said = drawn.said[:, :-1][:, there][:, :, there]
    names = tuple(drawn.sheet("rate").students)
    return mixed.Answers(said, np.full(said.shape[:2], drawn.answers), names)


def check_mixed(study: Mapping[str, list[list[Drawn]]], rng: np.random.Generator) -> Iterator[Outcome]:
    """p of the mixed-effects logistic model at one size, in a study in which nothing travels."""
    size = str(rng.choice(list(study)))
    answers = [answer(each) for each in usable(study[size][-1])]
    if answers and any(each.said.any() for each in answers):
        p = mixed.permute_score(mixed.lay_out(answers), PERMUTATIONS, rng)
        if not math.isnan(p):
            yield Outcome("p of the logistic model", "type I", "rate", size, p <= ALPHA)


def check_models(case: Case, rng: np.random.Generator) -> Iterator[Outcome]:
    """Coverage of the logistic model's interval and of pooled cells, in studies of their own kind."""
    seeds = case.design.seeds * case.design.bases
    if not case.design.missing:
        found = mixed.simulate_mixed(case.design.animals, seeds, 1, rng, 1.0, 0.5, 0)
        if found["given"]:
            yield Outcome("interval of the logistic model", "coverage", "rate", "all", found["coverage"] > 0)
        for measure in simulation.MEASURES:
            cells = pooling.simulate_cells(case.design.animals, seeds, 1, rng, measure, teacher_sd=TEACHER)
            held = round(cells.coverage * case.design.animals)
            for at in range(case.design.animals):
                yield Outcome("pooled interval of a cell", "coverage", measure, "all", at < held)


def check_laws(case: Case, rng: np.random.Generator) -> Iterator[Outcome]:
    """The band of a law that is the true one, at all places of its curve, and whether weights are honest."""
    design = next((each for each in lawcheck.DESIGNS if fits(each, case)), None)
    if design is None:
        return
    for row in lawcheck.simulate_laws(design, 1, rng):
        what = f"law chosen, weight {bin_of(row.weight)}"
        yield Outcome(what, "weight", "any", f"{row.weight:.4f}", row.right)


def fits(design: lawcheck.Design, case: Case) -> bool:
    """Is this design of the laws' own simulation that of the case?"""
    same = (len(design.x), design.animals, design.seeds, design.bases, design.missing)
    own = case.design
    return same == (case.sizes, own.animals, own.seeds, own.bases, own.missing)


def bin_of(weight: float) -> str:
    """The bin of a law's weight, in words."""
    for high in (0.4, 0.6, 0.8):
        if weight < high:
            return f"below {high}"
    return "of .8 and more"
