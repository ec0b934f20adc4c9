"""What a stage of a size takes: GPUs, memory, time and disk, from the one table benchmarks/resources.csv.

Ground layer. A number that nobody has measured is None here and is called unknown wherever it is shown; no
other number stands in for it. `python bench_grid.py --fill` writes the table, nothing here does.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import config, paths, planning
from lib.errors import DamagedFile, MissingInput

RULES = ("pretrain", "generate", "finetune", "evaluate", "analyse")
FILL = "python bench_grid.py --fill"
# What `minutes` is minutes of, by rule: everything but the start grows in step with it.
PER = {
    "pretrain": "base",
    "generate": "10,000 lists written",
    "finetune": "10,000 lists read, once",
    "evaluate": "10,000 answers",
    "analyse": "480 evaluations",
}
DISK_PER = {
    "pretrain": "base",
    "generate": "10,000 lists written",
    "finetune": "epoch of a student",
    "evaluate": "10,000 answers",
    "analyse": "study",
}
ALL_SIZES = "all"  # in the place of a size: the analysis reads every size at once
RAM_UNKNOWN = 2.0  # GB that a job asks for where nobody measured more
RANK = 8  # of the adapters whose disk was counted


@dataclass(frozen=True)
class Need:
    """One row of the table. `gpu_memory` and `ram` are GB, `minutes` are of one unit (PER), `disk` is MB.

    `gpu_memory` is what each of the GPUs must have free at least; with more of it, more students share a
    pass, and the minutes are those of the device that is named in `comes_from`: of `together` students at
    a time, where fine-tuning was measured so. `alone` are the minutes of one by itself.
    """

    rule: str
    size: str
    device: str
    gpus: int
    gpu_memory: float | None
    ram: float | None
    start_minutes: float | None
    minutes: float | None
    disk: float | None
    comes_from: str
    together: float | None = None
    alone: float | None = None

    def minutes_for(self, units: float, cells: int = 1) -> float | None:
        """Minutes of one job over so many units of so many cells; None where nobody measured them.

        Students are trained in rounds of `together`. A round that is not full was not measured: it counts
        as its students one by one, and at most as a full round.
        """
        if self.minutes is None:
            return None
        if self.together and self.alone and cells:
            full, rest = divmod(cells, int(self.together))
            counted = full * self.together + min(rest * self.alone / self.minutes, self.together)
            units *= counted / cells
        return (self.start_minutes or 0.0) + units * self.minutes


FIELDS = (
    *("rule", "size", "device", "gpus", "gpu_memory", "ram", "start_minutes", "minutes", "per"),
    *("together", "alone", "disk", "disk_per", "comes_from"),
)
NUMBERS = ("gpu_memory", "ram", "start_minutes", "minutes", "together", "alone", "disk")
Table = Mapping[tuple[str, str, str], Need]


def table_path() -> Path:
    """The table is part of the project, wherever its runs are kept."""
    return paths.CODE / "benchmarks" / "resources.csv"


def read_table(path: Path | None = None) -> dict[tuple[str, str, str], Need]:
    """Every row by rule, size and device (`gpu` or `cpu`)."""
    path = path or table_path()
    if not path.is_file():
        raise MissingInput(f"{path} is not there; git restore it, or fill it with: {FILL}")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(need.rule, need.size, need.device): need for need in map(_read_row, rows)}


def _read_row(row: Mapping[str, str | None]) -> Need:
    try:
        numbers = {name: float(row[name]) if row[name] else None for name in NUMBERS}  # type: ignore[arg-type]
        texts = {name: str(row[name]) for name in ("rule", "size", "device", "comes_from")}
        return Need(gpus=int(row["gpus"]), **numbers, **texts)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"{table_path()}: {dict(row)} is no row of it; fill it anew: {FILL}") from error


def default_device(size: str) -> str:
    """Where a size usually runs: the micro ladder on a CPU, published models on a GPU."""
    return "cpu" if config.SIZES[size].family == "micro" else "gpu"


def find_need(rule: str, size: str, table: Table, device: str = "") -> Need:
    """The row of a rule and size; where there is none, one that says that nothing is known.

    A published model on the GPU asks for one then, as none of them can do without.
    """
    size = ALL_SIZES if rule == "analyse" else size
    device = device or ("cpu" if size == ALL_SIZES else default_device(size))
    unknown = Need(rule, size, device, int(device == "gpu"), None, None, None, None, None, "not measured")
    return table.get((rule, size, device), unknown)


def count_units(rule: str, settings: Mapping[str, object], cells: int) -> float:
    """How many units (PER) a job over so many cells is, from the study's settings.

    A teacher that stops when it has enough writes fewer lists than this counts, never more.
    """

    def number(name: str) -> float:
        return float(str(settings[name]))

    if rule == "generate":
        return cells * number("n_raw") / 10_000
    if rule == "finetune":
        lists = float(str(settings.get("n_lists", 0))) or number("n_keep")
        return cells * lists * number("epochs") / 10_000
    if rule == "evaluate":
        return cells * number("n_questions") * number("samples") * number("epochs") / 10_000
    return cells / 480 if rule == "analyse" else 1.0


def read_costs(study: str, device: str = "", table: Path | None = None) -> planning.Costs:
    """What each job of a study takes, for planning.list_jobs; `device` says where all of it runs, if known.

    `table` is the copy that a grid at work goes by, lest a table filled meanwhile cuts its jobs anew.

    How many epochs are evaluated is what 02_finetune makes: the most of them where a study varies that.
    """
    needs, epochs = read_table(table), _read_epochs(study)

    def costs(stage: str, label: str, cells: int, settings: Mapping[str, Any]) -> planning.Cost:
        size = config.parse_label(label).size.name if label else ALL_SIZES
        need = find_need(stage, size, needs, device)
        minutes = need.minutes_for(count_units(stage, {"epochs": epochs, **settings}, cells), cells)
        return planning.Cost(
            need.gpus, need.gpu_memory or 0, need.ram or RAM_UNKNOWN, minutes, need.start_minutes
        )

    return costs


def _read_epochs(study: str) -> int:
    overrides, axes = planning.read_file(study)
    own = overrides.get("epochs", planning.read_defaults("02_finetune")["epochs"])
    return max(map(int, axes.get("epochs", [own])))


def count_disk(need: Need, settings: Mapping[str, object], cells: int) -> float | None:
    """MB that a job leaves on the disk; adapters grow with their rank."""
    if need.disk is None:
        return None
    if need.rule == "finetune":
        epochs, rank = float(str(settings["epochs"])), float(str(settings["lora_rank"]))
        return need.disk * cells * epochs * rank / RANK
    units = 1.0 if need.rule in ("pretrain", "analyse") else count_units(need.rule, settings, cells)
    return need.disk * units
