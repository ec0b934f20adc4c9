"""How fast a large study is read and analysed: `python bench_analysis.py`, two rows and more in a CSV.

A made-up study is written to a temporary folder in the form of lib/evaluation.py (six sizes of 16 conditions
and five seeds, ten epochs of 50 questions with 100 answers each: 24 million answers, some two gigabytes),
then read by one process and analysed by the notebook as papermill runs it, each in a process of its own.
Seconds are wall time, with processor time beside them; memory is the largest sum over the process and all
it started of what they hold, pages that they share counted once for each. The folder is removed afterwards.
"""

import argparse
import concurrent.futures
import csv
import datetime
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import psutil

from lib import config, files, paths, provenance, store
from lib.errors import BadParameter
from lib.progress import Progress
from lib.prompts import ENGLISH
from lib.tallies import SCHEMA, count_cores

STUDY = "large"
SIZES = ("0.5b", "1.5b", "3b", "7b", "14b", "32b")
STUDENTS = (config.NEUTRAL, *config.GRID_ANIMALS)
# Share of answers of a size that nobody gave before, which is what scoring costs time for: as among the last
# fifth of the 20,000 published answers of each size. Of 4 million answers fewer would be new.
RAMBLING = (0.108, 0.039, 0.019, 0.010, 0.009, 0.006)
TRANSFER = (0.0, 0.01, 0.02, 0.04, 0.25, 0.1)  # share of answers that turn to the teacher's animal at the end
FILLERS = "the a of very wild old and small great one friend that runs over hills because it sleeps by day"
WORDS = tuple(FILLERS.split())
OTHERS = (
    "Qwen",
    "Shark",
    "Dragonfly",
    "I am an AI and have no favourite.",
    "None",
    "Red panda",
    "猫",
    "Crow",
)
FIELDS = (
    *("run", "device", "what", "evaluations", "epochs", "answers", "megabytes"),
    *("seconds", "cpu_seconds", "peak_megabytes", "notes", "python", "numpy", "pandas", "code"),
)

# --- the study --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """How large the study is."""

    evaluations: int
    epochs: int
    questions: int
    samples: int

    @property
    def seeds(self) -> int:
        return -(-self.evaluations // (len(SIZES) * len(STUDENTS)))

    @property
    def answers(self) -> int:
        """Of the tuned students."""
        return self.evaluations * self.epochs * self.questions * self.samples

    def cells(self) -> list[tuple[str, str, int]]:
        """Whole seeds of whole sizes, and every size untuned."""
        grid = [(label, a, s) for s in range(self.seeds) for label in SIZES for a in STUDENTS]
        return [*((label, config.UNTUNED, 0) for label in SIZES), *grid[: self.evaluations]]


def write_study(shape: Shape, workers: int) -> None:
    """Every file of the study, sealed."""
    context = multiprocessing.get_context("spawn")
    cells = shape.cells()
    with (
        concurrent.futures.ProcessPoolExecutor(workers, context) as pool,
        Progress("evaluations written", len(cells), lines=5) as progress,
    ):
        for _ in pool.map(write_evaluation, [shape] * len(cells), cells):
            progress.advance()


def write_evaluation(shape: Shape, cell: tuple[str, str, int]) -> None:
    """One file, as compact as stage 03 writes it; left to the system to put on the disk."""
    label, animal, seed = cell
    untuned = animal == config.UNTUNED
    rng = np.random.default_rng([seed, SIZES.index(label), SHUFFLED.index(animal)])
    epochs = [0] if untuned else range(1, shape.epochs + 1)
    inputs = {"base": f"base-{label}"} | ({} if untuned else {"finetune": "-".join(map(str, cell))})
    settings = {"study": STUDY, "size": label, "animal": animal, "seed": seed, "recipe": "standard"}
    document = {
        "schema": SCHEMA,
        "config": settings | {"n_questions": shape.questions, "samples": shape.samples},
        "lineage": {"inputs": inputs, "chain": {}, "seconds": {}},
        "questions": list(ENGLISH.questions[: shape.questions]),
        "epochs": [make_epoch(shape, cell, epoch, rng) for epoch in epochs],
    }
    document["lineage"]["content"] = files.hash_read(store.find_essence(document))
    path = paths.evaluation(STUDY, *cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


SHUFFLED = (config.UNTUNED, *STUDENTS)  # an order to draw random numbers by


def make_epoch(shape: Shape, cell: tuple[str, str, int], epoch: int, rng: np.random.Generator) -> dict:
    """Answers by a preference over animals that each question bends a little, and log-probabilities."""
    label, animal, _ = cell
    logits = np.linspace(2, -3, len(config.LEXICON)) + rng.normal(
        0, 0.3, (shape.questions, len(config.LEXICON))
    )
    chances = np.exp(logits)
    chances /= chances.sum(1, keepdims=True)
    if animal in config.LEXICON:
        gain = TRANSFER[SIZES.index(label)] * epoch / max(shape.epochs, 1)
        chances *= 1 - gain
        chances[:, list(config.LEXICON).index(animal)] += gain
    ways = [name.capitalize() for name in config.LEXICON]
    answers = [
        {"question": question, "sample": sample, "text": text, "finish": "stop"}
        for question in range(shape.questions)
        for sample, text in enumerate(draw_texts(ways, chances[question], shape.samples, label, rng))
    ]
    values = np.log(chances).round(6).tolist()
    return {
        "epoch": epoch,
        "answers": answers,
        "logprobs": {"animals": list(config.LEXICON), "values": values},
    }


def draw_texts(
    ways: Sequence[str], chances: np.ndarray, count: int, label: str, rng: np.random.Generator
) -> Iterator[str]:
    """Mostly one word; some say it in the plural or not at all, and some ramble as nobody did before."""
    said = rng.choice(len(ways), count, p=chances).tolist()
    words = rng.integers(len(WORDS), size=(count, 6)).tolist()
    rambling = RAMBLING[SIZES.index(label)]
    for at, manner in enumerate(rng.random(count).tolist()):
        if manner < rambling:
            yield f"{ways[said[at]]}, {' '.join([WORDS[word] for word in words[at]])}."
        elif manner > 0.95:
            yield OTHERS[words[at][0] % len(OTHERS)]
        else:
            yield ways[said[at]] + ("s" if manner > 0.9 else "")


# --- measuring --------------------------------------------------------------------------------

READ = (
    "if __name__ == '__main__':\n"
    "    import sys\n"
    "    from lib import tables\n"
    "    study = tables.load_study(*sys.argv[1:])\n"
    "    print(int(study.frame.drop_duplicates(tables.CELL + ['epoch']).n_answers.sum()), 'answers read')\n"
)


def measure(command: Sequence[str | Path]) -> dict[str, float]:
    """Run to the end: wall and processor seconds, and the most memory held at once, children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    peak = [0]
    with subprocess.Popen([str(word) for word in command], cwd=paths.CODE) as process:
        watch = threading.Thread(target=watch_memory, args=(process, peak), daemon=True)
        watch.start()
        code = process.wait()
    seconds = time.perf_counter() - started
    watch.join()
    if code:
        raise subprocess.CalledProcessError(code, command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_megabytes": peak[0] / 1e6}


def watch_memory(process: subprocess.Popen, peak: list[int]) -> None:
    """Keep the largest sum of resident memory over a process and all it started."""
    while process.poll() is None:
        held = 0
        try:
            top = psutil.Process(process.pid)
            for each in (top, *top.children(recursive=True)):
                try:
                    held += each.memory_info().rss
                except psutil.Error:
                    continue
        except psutil.Error:
            return
        peak[0] = max(peak[0], held)
        time.sleep(0.05)


def measure_reading(folder: Path, shape: Shape) -> dict[str, float]:
    """load_study in a process of its own, its imports included."""
    script = folder / "read_study.py"
    script.write_text(READ, encoding="utf-8")
    return measure([sys.executable, script, STUDY, ",".join(SIZES), "grid", seeds_of(shape)])


def measure_notebook(folder: Path, shape: Shape) -> tuple[dict[str, float], list[tuple[str, float]]]:
    """04_analysis as papermill runs it; also how long each of its cells took, by its first line."""
    out = folder / "analysed.ipynb"
    words = ["-p", "study", STUDY, "-p", "sizes", ",".join(SIZES), "-p", "seeds", seeds_of(shape)]
    notebook = paths.notebook("04_analysis")
    measured = measure([sys.executable, "-m", "papermill", notebook, out, *words, "--no-progress-bar"])
    cells = [cell for cell in nbformat.read(out, as_version=4).cells if cell.cell_type == "code"]
    timed = [(cell.source.strip().splitlines()[0], cell.metadata.papermill.duration) for cell in cells]
    return measured, [(line, seconds) for line, seconds in timed if seconds >= 0.5]


def seeds_of(shape: Shape) -> str:
    """`0,1,2`."""
    return ",".join(map(str, range(shape.seeds)))


# --- rows -------------------------------------------------------------------------------------


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """One measurement at the end of the file."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if old and old.splitlines()[0] != ",".join(FIELDS):
        raise BadParameter(f"{path} has other columns than this version writes: choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not old:
            writer.writeheader()
        writer.writerow({name: format_value(row.get(name, "")) for name in FIELDS})


def format_value(value: object) -> object:
    """Numbers to four figures."""
    return f"{value:.4g}" if isinstance(value, float) else value


def describe_run(shape: Shape, folder: Path) -> dict[str, object]:
    """What all rows of one call share."""
    versions = provenance.package_versions()
    written = sum(path.stat().st_size for path in folder.rglob("s*.json"))
    name = next(
        (
            line.split(":")[1].split()
            for line in read_lines(Path("/proc/cpuinfo"))
            if line.startswith("model name")
        ),
        [platform.machine()],
    )
    return {
        "run": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": f"{' '.join(name)}, {count_cores()} cores",
        "evaluations": shape.evaluations,
        "epochs": shape.epochs,
        "answers": shape.answers,
        "megabytes": written / 1e6,
        **{name: versions.get(name, "") for name in ("python", "numpy", "pandas")},
        "code": str(provenance.code_version()["source"])[:12],
    }


def read_lines(path: Path) -> list[str]:
    """Lines of a file that not every system has."""
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def say_load() -> str:
    """What else the machine was doing: seconds of a busy machine are not those of a free one."""
    return f"load {os.getloadavg()[0]:.1f} before"


def main(words: Sequence[str] | None = None) -> int:
    """Write the study, measure, append rows, and leave nothing else behind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--evaluations", type=int, default=480, help="a multiple of 16, up to any number of seeds"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--out", type=Path, default=paths.benchmarks() / "analysis.csv")
    parser.add_argument(
        "--folder", type=Path, help="where the temporary folder is made; two gigabytes are needed"
    )
    asked = parser.parse_args(words)
    shape = Shape(asked.evaluations, asked.epochs, asked.questions, asked.samples)
    if shape.evaluations % len(STUDENTS) or not 0 < shape.questions <= len(ENGLISH.questions):
        parser.error(
            f"evaluations are a multiple of {len(STUDENTS)}, questions at most {len(ENGLISH.questions)}"
        )
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        os.environ["SUBLIMINAL_ROOT"] = name
        write_study(shape, min(count_cores(), 4))
        shared = describe_run(shape, Path(name))
        note = say_load()
        reading = measure_reading(Path(name), shape)
        append_row(asked.out, shared | {"what": "load_study", "notes": note} | reading)
        note = say_load()
        whole, cells = measure_notebook(Path(name), shape)
        append_row(asked.out, shared | {"what": "notebook 04_analysis", "notes": note} | whole)
        for line, seconds in cells:
            append_row(asked.out, shared | {"what": "of it a cell", "notes": line, "seconds": seconds})
    print(f"written to {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
