"""How quick the explorer is on a large study: `python bench_explore.py` writes benchmarks/explore.csv.

A made-up study (tests/build_grid.py: 480 evaluations of ten epochs with 1,000 answers, 4.8 million in all) is
written to a temporary folder. Then: the first view, from the start of a process to the answers of `open` and
`student`, with nothing read before and with everything read by an earlier start; questions while files are
still being read in the background; and questions once all are read. Milliseconds are wall time as the page
sees it but for the network within the machine.
"""

import argparse
import csv
import datetime
import itertools
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lib import config, paths, provenance
from lib.explore import Explorer
from lib.tallies import count_cores
from tests.build_grid import STUDY, build_grid

FIELDS = (
    "run",
    "device",
    "answers",
    "when",
    "query",
    "n",
    "median_ms",
    "p95_ms",
    "worst_ms",
    "cpu_ms",
    "notes",
    "code",
)
FIRST = """
import json, sys, time
from lib.explore import Explorer
if __name__ == "__main__":
    explorer = Explorer(sys.argv[1])
    first = explorer.ask({"what": "open"})["first"]
    reply = explorer.ask({"what": "student", **first})
    print(json.dumps([reply["state"], len(reply["said"]), 1000 * time.process_time()]), flush=True)
    explorer.close()
"""
WORDS = ("wolf", "gentle", "the", "a", "because", "zebra", "my favourite animal is the cat", "ê", "猫", "ly")


def measure_first(folder: Path) -> tuple[float, float]:
    """Milliseconds from the start of a process to its first view, and of processor time until then."""
    script = folder / "first.py"
    script.write_text(FIRST, encoding="utf-8")
    begun = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(paths.CODE)}
    with subprocess.Popen(
        [sys.executable, script, STUDY], env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        taken = 1000 * (time.perf_counter() - begun)
    cpu = json.loads(line)[2]
    if json.loads(line)[0] != "fine":
        raise RuntimeError(f"the first view said {line!r}")
    return taken, cpu


def list_queries(students: Sequence[dict], rng: random.Random) -> dict[str, Callable[[], dict]]:
    """A question of each kind, about another student every time."""
    sizes = sorted({config.parse_label(each["label"]).size.name for each in students})
    names = ("label", "animal", "seed")
    anyone = lambda: {name: value for name, value in rng.choice(students).items() if name in names}  # noqa: E731
    some = lambda: anyone() | {"epoch": rng.randint(1, 10)}  # noqa: E731
    words, expressions = (
        itertools.cycle(WORDS),
        itertools.cycle(("w[oa]lf", "^the", "(gentle|wild).*cat", "[^ -~]")),
    )
    return {
        "open": lambda: {"what": "open"},
        "student": lambda: {"what": "student", **some()},
        "answers of an epoch": lambda: {"what": "answers", **some()},
        "answers of a student, searched": lambda: {
            "what": "answers", **anyone(), "scope": "student", "search": next(words)
        },
        "answers of a student, filtered": lambda: {
            "what": "answers", **anyone(), "scope": "student", "said": "wolf", "sort": "text"
        },
        "answers of the study, searched": lambda: {
            "what": "answers", "scope": "study", "search": next(words)
        },
        "answers of the study, an expression": lambda: {
            "what": "answers", "scope": "study", "search": next(expressions), "regex": True
        },
        "answers of the study, filtered": lambda: {
            "what": "answers", "scope": "study", "reason": "plural", "question": rng.randrange(20)
        },
        "answers of the study, in alphabetical order": lambda: {
            "what": "answers", "scope": "study", "sort": "text", "offset": rng.randrange(4000)
        },
        "pair": lambda: {"what": "pair", "left": some(), "right": some()},
        "follow": lambda: {"what": "follow", "animal": rng.choice(config.GRID_ANIMALS), "measure": "rate"},
        "matrix": lambda: {
            "what": "matrix", "size": rng.choice(sizes), "epoch": rng.randint(1, 10), "measure": "rate"
        },
        "curve": lambda: {"what": "curve", "measure": rng.choice(["rate", "logprob"])},
        "files": lambda: {"what": "files"},
    }  # fmt: skip


def ask_all(explorer: Explorer, count: int, names: Sequence[str] = ()) -> Iterator[dict]:
    """A row per kind of question; what came back incomplete is asked again, and the notes say how often."""
    rng = random.Random(0)
    students = [each for each in explorer.ask({"what": "open"})["students"] if each["animal"] != "untuned"]
    queries = list_queries(students, rng)
    for name in names or queries:
        taken, cpu, unfinished = [], [], []
        for _ in range(count):
            query, asked = queries[name](), 0
            while True:
                begun, worked = time.perf_counter(), time.thread_time()
                reply = explorer.ask(query)
                taken.append(1000 * (time.perf_counter() - begun))
                cpu.append(1000 * (time.thread_time() - worked))
                if "error" in reply:
                    raise RuntimeError(f"{query}: {reply['error']}")
                if reply.get("complete", True) or asked == 40:
                    break
                asked += 1
                time.sleep(0.2)
            unfinished.append(asked)
        again = sum(unfinished)
        note = (
            f"asked again {again} times in {count} until complete, {max(unfinished)} at most" if again else ""
        )
        yield summarise(name, taken, cpu) | {"notes": note}


def summarise(name: str, taken: Sequence[float], cpu: Sequence[float]) -> dict:
    """Wall time, and the median of processor time, which others on the machine do not lengthen as much."""
    ordered = sorted(taken)
    return {
        "query": name,
        "n": len(ordered),
        "median_ms": statistics.median(ordered),
        "p95_ms": ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))],
        "worst_ms": ordered[-1],
        "cpu_ms": statistics.median(cpu),
    }


def measure(folder: Path, count: int) -> Iterator[dict]:
    """All rows, in the order in which somebody would meet them."""
    starts = 5
    cold = []
    for _ in range(starts):
        shutil.rmtree(paths.explore(STUDY), ignore_errors=True)
        cold.append(measure_first(folder))
    yield summarise("first view", *zip(*cold, strict=True)) | {"when": "nothing read before"}
    shutil.rmtree(paths.explore(STUDY), ignore_errors=True)
    begun = time.perf_counter()
    explorer = Explorer(STUDY)
    for row in ask_all(explorer, count, ("student", "answers of an epoch", "pair")):
        yield row | {"when": "while files are read"}
    while not explorer.ask({"what": "progress"})["complete"]:
        time.sleep(0.2)
    seconds = time.perf_counter() - begun
    kept = sum(path.stat().st_size for path in paths.explore(STUDY).iterdir())
    yield summarise("reading all files in the background", [1000 * seconds], [math.nan]) | {
        "when": "nothing read before",
        "notes": f"{kept / 1e6:.0f} MB kept",
    }
    for row in ask_all(explorer, count):
        yield row | {"when": "all files read"}
    explorer.close()
    yield summarise("first view", *zip(*(measure_first(folder) for _ in range(starts)), strict=True)) | {
        "when": "all files read by an earlier start"
    }


def describe_device() -> str:
    """Processor and cores."""
    lines = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if os.path.exists("/proc/cpuinfo")
        else []
    )
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )
    return f"{name}, {count_cores()} cores"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, default=480)
    parser.add_argument("--count", type=int, default=40, help="questions of each kind (%(default)s)")
    parser.add_argument("--out", type=Path, default=paths.benchmarks() / "explore.csv")
    parser.add_argument(
        "--folder", type=Path, help="where the temporary folder is made; a gigabyte is needed"
    )
    asked = parser.parse_args()
    out = asked.out.resolve()
    shared = {
        "run": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": describe_device(),
        "answers": asked.evaluations * 10_000,
        "code": str(provenance.code_version()["source"])[:12],
    }
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        build_grid(Path(name), asked.evaluations)
        os.environ["SUBLIMINAL_ROOT"] = name
        begin = "" if out.exists() else ",".join(FIELDS) + "\n"
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", newline="", encoding="utf-8") as file:
            file.write(begin)
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            for row in measure(Path(name), asked.count):
                load = f"load {os.getloadavg()[0]:.1f}"
                row["notes"] = "; ".join(filter(None, [row.get("notes", ""), load]))
                numbers = {
                    k: "" if math.isnan(v) else f"{v:.4g}" for k, v in row.items() if isinstance(v, float)
                }
                writer.writerow(shared | row | numbers)
                file.flush()
                times = ", ".join(
                    f"{name} {row[f'{name}_ms']:.0f} ms" for name in ("median", "p95", "worst", "cpu")
                )
                print(f"{row['when']}: {row['query']}: {times} ({row['n']}; {row['notes']})", flush=True)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
