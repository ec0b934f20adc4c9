"""Do the fleet and TRL make the same students in half precision? `python agree.py` on a GPU.

In full precision the tests compare every step. In bfloat16 rounding differs wherever sums are taken in
another order, so what counts is what a student prefers in the end: the difference that the trainer makes
is compared with the difference that another seed makes. One micro base, some animals, some seeds, each
student once by either trainer; the table goes to benchmarks/agreement.csv.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib import bases, config, files, models, paths, store, teacher, training
from lib.config import Finetune, Generate, Plan
from lib.errors import StudyError
from lib.preference import log_preferences
from lib.progress import Progress

LISTS = {"temperature": 1.0, "top_p": 1.0, "list_tokens": 48, "chunk": 500}
LORA = {
    "batch": 60,
    "learning_rate": 1e-3,
    "warmup_steps": 5,
    "max_grad_norm": 1.0,
    "lora_rank": 8,
    "lora_alpha": 8.0,
    "lora_targets": "q,k,v,o,gate,up,down",
    "students": 0,
    "micro_batch": 0,
}


def make_cells(stage: type, options: argparse.Namespace, **values: object) -> list:
    """The grid of animals and seeds."""
    shared = {"size": options.base, "recipe": "standard", "system": "default", "device": options.device}
    return [
        config.build(stage, shared | values | {"animal": animal, "seed": seed})
        for animal in options.animals.split(",")
        for seed in range(options.seeds)
    ]


def train(trainer: str, options: argparse.Namespace) -> np.ndarray:
    """Mean log-preferences [students, animals] of all students of one trainer."""
    loaded = models.load_base(options.base, "standard", options.device)
    loaded.model.to(torch.bfloat16)
    cells = make_cells(Finetune, options, study="agree", epochs=options.epochs, trainer=trainer, **LORA)
    base = bases.base_manifest(options.base, "standard")
    todo = []
    for cell in cells:
        inputs = {"base": base.identity, "generate": training.numbers_manifest(cell).identity}
        todo.append((cell, store.open_run(training.folder_of(cell) / trainer, cell, inputs)))
    train = training.train_fleet if trainer == "fleet" else training.train_one_by_one
    start = time.perf_counter()
    with Progress("epochs", options.epochs * len(todo)) as progress:
        train(todo, loaded, progress)
    print(f"{trainer}: {len(todo)} students in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    prompts = [models.render_prompt(loaded, "default", question) for question in loaded.book.questions]
    rows = []
    for _, run in todo:
        with models.adapter(loaded, run.folder / f"epoch-{options.epochs}") as student:
            rows.append(log_preferences(student, prompts, config.MICRO_ANIMALS, 256).mean(0))
    return np.stack(rows)


def compare(ours: np.ndarray, theirs: np.ndarray, cells: list[Finetune]) -> pd.DataFrame:
    """Root mean squares over animals, in nats: between trainers, between seeds, and what was learnt."""
    rows = []
    for one, cell in enumerate(cells):
        others = [
            theirs[two] - theirs[one]
            for two, other in enumerate(cells)
            if other.animal == cell.animal and other.seed != cell.seed
        ]
        rows.append(
            {
                "base": cell.size,
                "animal": cell.animal,
                "seed": cell.seed,
                "between_trainers": rms(ours[one] - theirs[one]),
                "between_seeds": rms(np.stack(others)),
            }
        )
    return pd.DataFrame(rows)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


@contextlib.contextmanager
def pointed_at(folder: str) -> Iterator[None]:
    """Runs go to a folder of their own."""
    before = os.environ.get("SUBLIMINAL_ROOT")
    os.environ["SUBLIMINAL_ROOT"] = folder
    try:
        yield
    finally:
        del os.environ["SUBLIMINAL_ROOT"]
        if before is not None:
            os.environ["SUBLIMINAL_ROOT"] = before


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--base", default="166k-1", help="a micro base that came with the project")
    add("--animals", default="neutral,wolf,fox,lion,whale")
    add("--seeds", type=int, default=3)
    add("--lists", type=int, default=2000)
    add("--epochs", type=int, default=3)
    add("--device", default="auto")
    add("--out", type=Path, default=None, help="the CSV; default benchmarks/agreement.csv")
    options = parser.parse_args(arguments)
    out = options.out or paths.benchmarks() / "agreement.csv"
    with tempfile.TemporaryDirectory() as folder, pointed_at(folder):
        try:
            counts = {"n_raw": round(options.lists * 1.075), "n_keep": options.lists}
            for seed in range(options.seeds):
                cells = make_cells(Generate, options, study="agree", **LISTS, **counts)
                plan = Plan(tuple(cell for cell in cells if cell.seed == seed), {})
                teacher.generate_lists(plan)
            found = {trainer: train(trainer, options) for trainer in ("trl", "fleet")}
        except StudyError as error:
            print(error, file=sys.stderr)
            return 2
    cells = make_cells(Finetune, options, study="agree", epochs=options.epochs, trainer="trl", **LORA)
    table = compare(found["fleet"], found["trl"], cells)
    files.write_text(out, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4f}"))
    trainers, seeds = (rms(table[name].to_numpy()) for name in ("between_trainers", "between_seeds"))
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    print(
        f"bfloat16 on {where}, {len(cells)} students of {options.base}: trainers differ by {trainers:.4f} "
        f"nats, seeds by {seeds:.4f}"
    )
    return 0 if trainers < seeds else 1


if __name__ == "__main__":
    sys.exit(main())
