"""Do the statistics keep their word? `python calibrate.py` simulates studies in which the truth is known.

Each p and each interval of the analysis is counted over many simulated studies: how often p is .05 or
less where nothing travels, how often an interval holds the true value. benchmarks/calibration.csv and
its figure are what this wrote. The worlds in benchmarks/worlds.csv were estimated from the published runs
of the reference experiment: `python calibrate.py --estimate FOLDER` makes that file anew.

What was simulated is kept in artifacts/calibration/: the same command goes on from there.
"""

import argparse
import concurrent.futures
import csv
import dataclasses
import multiprocessing
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import beta

from lib import calibration, files, paths, plots, published, simulation
from lib.calibration import CASES, KINDS, Outcome
from lib.errors import BadParameter, MissingInput
from lib.progress import Progress
from lib.simulation import World
from lib.terminal import guarded

WORLDS = paths.root() / "benchmarks" / "worlds.csv"
TABLE = paths.root() / "benchmarks" / "calibration.csv"
CHUNK = 20  # studies of one piece of work
SIZES = "0.5b,1.5b,3b,7b,14b,32b,72b"


# --- worlds -----------------------------------------------------------------------------------


def estimate_worlds(folder: Path) -> None:
    """Estimate a world per size from runs 1 to 3 of published evaluations, and write them."""
    study = published.load_published(folder, "published", SIZES, "grid", "1,2,3")
    counts = {}
    for size in SIZES.split(","):
        last = max(at for label, _, _, at in study.tallies if label == size)
        counts[size] = np.array(
            [[study.tallies[size, name, run, last].said for name in study.animals] for run in (1, 2, 3)]
        ).transpose(0, 2, 1, 3)
    answers = int(study.tallies["7b", study.animals[0], 1, 10].answers[0])
    print("what seeds share, over all sizes: minutes", flush=True)
    spread = simulation.find_seed_spread(counts, answers)
    rows = []
    for size, said in counts.items():
        world = simulation.estimate_world(said, answers, np.random.default_rng(0), spread)
        rows.append(
            {"size": size} | {name: f"{value:.4g}" for name, value in dataclasses.asdict(world).items()}
        )
        print(rows[-1], flush=True)
    files.write_text(WORLDS, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))


def read_worlds() -> dict[str, World]:
    """The worlds by size."""
    with WORLDS.open(encoding="utf-8") as lines:
        return {
            row.pop("size"): World(**{name: float(value) for name, value in row.items()})
            for row in csv.DictReader(lines)
        }


# --- simulating -------------------------------------------------------------------------------


def simulate_chunk(case_at: int, chunk: int, seed: int) -> list[Outcome]:
    """Some studies of one case: with its worlds, and with nothing travelling."""
    case = CASES[case_at]
    worlds = calibration.place_worlds(read_worlds(), case)
    if case.bases:
        return simulate_ladder(case_at, chunk, seed, worlds)
    silent = {size: calibration.silence(world) for size, world in worlds.items()}
    truths = read_truths(case_at, seed)
    found: list[Outcome] = []
    for at in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        rng = np.random.default_rng([seed, case_at, at])
        study, null = (calibration.draw_study(each, case, rng) for each in (worlds, silent))
        found += calibration.check_null(null, case, rng)
        found += calibration.check_intervals(study, case, truths[-1])
        found += calibration.check_bands(study, case, truths, rng)
        for _ in range(calibration.TRENDS):
            last = calibration.draw_study(silent, case, rng, calibration.RAMP[-1:])
            found += calibration.check_trends(last, rng)
        found += calibration.check_cells(null)
        found += calibration.check_mixed(null, rng)
        found += calibration.check_models(case, rng)
        found += calibration.check_laws(case, rng)
    return found


def simulate_ladder(case_at: int, chunk: int, seed: int, worlds: dict[str, World]) -> list[Outcome]:
    """Some studies of a ladder of sizes: the claims that the spread between bases has a part in."""
    truths = read_truths(case_at, seed)
    found: list[Outcome] = []
    for at in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        rng = np.random.default_rng([seed, case_at, at])
        study = calibration.draw_study(worlds, CASES[case_at], rng)
        found += calibration.check_intervals(study, CASES[case_at], truths[-1])
        found += calibration.check_bands(study, CASES[case_at], truths, rng)
    return found


def truths_file(case_at: int, seed: int) -> Path:
    """Where the true values of a case lie: of these worlds and this seed."""
    source = files.hash_file(Path(simulation.__file__))
    asked = [repr(CASES[case_at]), calibration.RAMP, calibration.BASE_SHARE, calibration.DRAWS]
    asked += [calibration.RUNG, calibration.FALL, calibration.RUNG_SHARE]
    key = files.hash_object([WORLDS.read_text(encoding="utf-8"), seed, source, *asked])[:12]
    return work_folder() / f"truths-{case_at}-{key}.json"


def read_truths(case_at: int, seed: int) -> list[dict[tuple[str, str], dict[str, float]]]:
    """The true values at each epoch of the ramp, computed once."""
    path = truths_file(case_at, seed)
    return [{tuple(k.split()): v for k, v in each.items()} for each in files.read_json(path)]


def find_truths(case_at: int, seed: int) -> None:
    """Compute the true values of a case, unless they are there."""
    path = truths_file(case_at, seed)
    if path.exists():
        return
    case = CASES[case_at]
    worlds = calibration.place_worlds(read_worlds(), case)
    truths = []
    for share in calibration.RAMP:
        scaled = {size: calibration.scale_transfer(world, share) for size, world in worlds.items()}
        rng = np.random.default_rng([seed, 99])
        found = calibration.find_truths(scaled, case, rng)
        truths.append({" ".join(key): value for key, value in found.items()})
    files.write_json(path, truths)


def work_folder() -> Path:
    """Where what was simulated is kept."""
    return paths.root() / "artifacts" / "calibration"


def count_chunks(case_at: int, studies: int) -> int:
    """How many pieces of work a case is."""
    return -(-studies * CASES[case_at].times // CHUNK)


def piece_file(case_at: int, chunk: int, seed: int) -> Path:
    """One piece of work; its name holds what it depends on, so that older code's pieces are not used."""
    sources = sorted(Path(calibration.__file__).parent.glob("*.py"))
    names = {"calibration", "simulation", "stats", "spread", "mixed", "pooling", "scaling", "trend"}
    used = [files.hash_file(p) for p in sources if p.stem in names | {"lawcheck"}]
    key = files.hash_object([WORLDS.read_text(encoding="utf-8"), used])[:12]
    return work_folder() / key / f"{seed}-{case_at}-{chunk}.json"


def simulate_piece(case_at: int, chunk: int, seed: int) -> None:
    """Simulate a piece and keep what came out, by claim."""
    counts: dict[tuple, list[int]] = defaultdict(lambda: [0, 0])
    for each in simulate_chunk(case_at, chunk, seed):
        count = counts[each.what, each.kind, each.measure, each.size, each.reference]
        count[0] += each.hit
        count[1] += 1
    files.write_json(piece_file(case_at, chunk, seed), [[*key, *count] for key, count in counts.items()])


def simulate(cases: Sequence[int], studies: int, jobs: int, seed: int) -> None:
    """All pieces of work of these cases that are not there yet."""
    pieces = [(at, chunk) for at in cases for chunk in range(count_chunks(at, studies))]
    missing = [piece for piece in pieces if not piece_file(*piece, seed).exists()]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        with Progress("cases with their true values", len(cases)) as progress:
            for done in [pool.submit(find_truths, at, seed) for at in cases]:
                done.result()
                progress.advance()
        waiting = [pool.submit(simulate_piece, *piece, seed) for piece in missing]
        with Progress(f"pieces of {CHUNK} studies", len(pieces), 40) as progress:
            progress.advance("found finished", len(pieces) - len(missing)) if len(missing) < len(
                pieces
            ) else None
            for done in concurrent.futures.as_completed(waiting):
                done.result()
                progress.advance()


# --- what came out ----------------------------------------------------------------------------


def gather(cases: Sequence[int], studies: int, seed: int) -> pd.DataFrame:
    """One row per claim and design: over all sizes, and for each by itself."""
    totals: dict[tuple, list[int]] = defaultdict(lambda: [0, 0])
    for at in cases:
        case = CASES[at]
        for chunk in range(count_chunks(at, studies)):
            for what, kind, measure, size, reference, hits, count in files.read_json(
                piece_file(at, chunk, seed)
            ):
                sizes = ("all",) if kind == "weight" else tuple(dict.fromkeys(("all", size)))
                for each in sizes:
                    total = totals[case.name, what, kind, measure, each, reference]
                    total[0] += hits
                    total[1] += count
                if kind == "weight":
                    weight = totals[case.name, what, "weight sum", measure, "all", reference]
                    weight[0] += float(size) * count
                    weight[1] += count
    done = {CASES[at].name: count_chunks(at, studies) * CHUNK for at in cases}
    rows = [
        make_row(key, *total, totals, done[key[0]]) for key, total in totals.items() if key[2] != "weight sum"
    ]
    return sort_rows(pd.DataFrame(rows))


def sort_rows(table: pd.DataFrame) -> pd.DataFrame:
    """By kind, claim, measure, design and size."""
    order = {case.name: at for at, case in enumerate(CASES)}
    by = ["kind", "what", "measure", "design", "size"]
    return table.sort_values(by, key=lambda c: c.map(order) if c.name == "design" else c, ignore_index=True)


def keep_others(table: pd.DataFrame, out: Path) -> pd.DataFrame:
    """The table with the rows that are there of designs it does not have, as they were."""
    if not out.exists():
        return table
    names = {case.name for case in CASES} - set(table.design)
    before = pd.read_csv(out)
    return sort_rows(pd.concat([before[before.design.isin(names)], table], ignore_index=True))


def choose_cases(words: Sequence[str]) -> list[int]:
    """The designs whose name holds one of these words; all where none is given."""
    names = [case.name for case in CASES]
    for word in words:
        if not any(word in name for name in names):
            raise BadParameter(f"--design {word!r} is in no design's name; they are {'; '.join(names)}")
    return [at for at, name in enumerate(names) if not words or any(word in name for word in words)]


def make_row(
    key: tuple, hits: int, count: int, totals: dict[tuple, list[int]], studies: int
) -> dict[str, object]:
    """A row of the table; the Monte-Carlo interval is that of independent outcomes (Clopper and Pearson)."""
    design, what, kind, measure, size, reference = key
    low = beta.ppf(0.025, hits, count - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, count - hits) if hits < count else 1.0
    if kind == "weight":
        weight, number = totals[design, what, "weight sum", measure, "all", reference]
        targets = (weight / number - 0.05, weight / number + 0.05)
    else:
        targets = KINDS[kind]
    return {
        "design": design, "what": what, "kind": kind, "measure": measure, "size": size,
        "value": round(hits / count, 4), "low": round(low, 4), "high": round(high, 4), "count": count,
        "studies": studies, "target_low": round(targets[0], 4), "target_high": round(targets[1], 4),
        "reference": reference,
    }  # fmt: skip


def report(table: pd.DataFrame) -> list[str]:
    """Every claim of ours that misses its target, in words."""
    own = table[(table["size"] == "all") & ~table.reference]
    outside = own[(own.value < own.target_low) | (own.value > own.target_high)]
    return [
        f"{row.what} ({row.measure}), {row.design}: {row.value} of {row.count}, target "
        f"{row.target_low} to {row.target_high}"
        for row in outside.itertuples()
    ]


def calibrate(asked: argparse.Namespace) -> int:
    """Estimate, simulate, write, say."""
    if asked.estimate:
        estimate_worlds(Path(asked.estimate).expanduser())
    if not WORLDS.exists():
        raise MissingInput(f"there is no {WORLDS.name}: run with --estimate FOLDER first")
    started, cases = time.monotonic(), choose_cases(asked.design)
    simulate(cases, asked.studies, asked.jobs, asked.seed)
    out = TABLE if asked.out is None else Path(asked.out)
    table = keep_others(gather(cases, asked.studies, asked.seed), out)
    files.write_text(out, table.to_csv(index=False, lineterminator="\n"))
    shown = table[(table["size"] == "all") & table.kind.isin(["type I", "coverage", "family"])]
    if asked.out is None:
        slide = plots.draw(plots.calibration_figure, shown)
        plots.save_figures(paths.root() / "figures" / "bench", calibration=slide)
    missed = report(table)
    print("\n".join(missed) or "every p, interval and weight is within its target")
    took = f"{time.monotonic() - started:.0f} s"
    print(f"{asked.studies} studies or more of each of {len(cases)} designs, {took}: {out}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies of each design")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other studies")
    parser.add_argument("--estimate", metavar="FOLDER", help="estimate the worlds from published runs first")
    parser.add_argument(
        "--design", action="append", default=[], metavar="WORDS",
        help="simulate only designs with these words in their name; the table's other rows stay (repeatable)",
    )  # fmt: skip
    parser.add_argument("--out", help="write the table there, and no figure")
    asked = parser.parse_args()
    if asked.studies < 1 or asked.jobs < 1:
        parser.error("--studies and --jobs must be at least 1")
    return guarded(lambda: calibrate(asked), "was simulated")


if __name__ == "__main__":
    sys.exit(main())
