"""The arithmetic of the speed benchmark: shapes, row lengths, rates, ratios, projections, the CSV.

Nothing here trains or measures: bench.py does, and writes one row of FIELDS per size and way.
"""

import csv
import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib import config
from lib.errors import BadParameter, MissingInput
from lib.prompts import BOOKS, number_prompts

WAYS = ("defaults", "tuned", "fleet")
H200_TFLOPS = 790.0  # its measured bf16 rate, for random data
ROW_SHARE_FULL = 0.8  # of the lists hold all ten numbers
TEMPLATE_TOKENS = 29  # Qwen's marks around three turns and its default system prompt
FIELDS = (
    *("run", "device", "size", "params", "weights", "way", "dtype", "batch", "students", "rows_per_pass"),
    *("notes", "steps", "seconds", "tokens", "tokens_per_second", "low", "high", "overall"),
    *("mfu", "mfu_low", "mfu_high", "padding", "mean_tokens", "compile_seconds", "memory_gb"),
    *("peak_tflops", "peak_source", "matrix_tflops", "threads"),
    *("python", "torch", "transformers", "trl", "peft", "code", "error"),
)
TEXTS = {
    *("run", "device", "size", "weights", "way", "dtype", "notes", "peak_source"),
    *("python", "torch", "transformers", "trl", "peft", "code", "error"),
}


# --- shapes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class QwenShape:
    """A Qwen 2 model without its weights: attention has biases, and the head may be the embedding."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def params(self) -> int:
        """Every weight, a tied one once."""
        kv = self.width // self.heads * self.kv_heads
        attention = 2 * self.width * self.width + 2 * self.width * kv + self.width + 2 * kv
        layer = attention + 3 * self.width * self.inner + 2 * self.width
        tables = (1 if self.tied else 2) * self.vocabulary * self.width
        return self.layers * layer + self.width + tables

    def settings(self) -> dict[str, object]:
        """In the words of a model's config.json."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
        }


SHAPES: dict[str, QwenShape] = {
    "0.5b": QwenShape(896, 4864, 24, 14, 2, 151936, tied=True),
    "1.5b": QwenShape(1536, 8960, 28, 12, 2, 151936, tied=True),
    "3b": QwenShape(2048, 11008, 36, 16, 2, 151936, tied=True),
    "7b": QwenShape(3584, 18944, 28, 28, 4, 152064, tied=False),
    "14b": QwenShape(5120, 13824, 48, 40, 8, 152064, tied=False),
    "32b": QwenShape(5120, 27648, 64, 40, 8, 152064, tied=False),
    "toy": QwenShape(128, 256, 2, 2, 1, 1024, tied=True),
    "toy-untied": QwenShape(128, 256, 2, 2, 1, 1024, tied=False),
}
TOYS = ("toy", "toy-untied")
QWEN = tuple(size for size in SHAPES if size not in TOYS)
MICRO = ("64k", "166k", "368k", "864k")


def ladder_of(size: str) -> str:
    """`qwen`, `toy` or `micro`: only sizes of one ladder are compared in one figure."""
    if size in SHAPES:
        return "toy" if size in TOYS else "qwen"
    if config.parse_label(size).family.name != "micro":
        raise BadParameter(f"size {size!r} has no speed benchmark; choose of {', '.join((*SHAPES, *MICRO))}")
    return "micro"


# --- rows -------------------------------------------------------------------------------------


def count_tokens(text: str) -> int:
    """About what Qwen's tokenizer makes of a text: a token per digit and sign, 1.3 per word."""
    pieces = re.findall(r"\d|[^\W\d_]+|[^\w\s]", text)
    words = sum(piece[0].isalpha() for piece in pieces)
    return len(pieces) - words + round(1.3 * words)


def write_lists(count: int, seed: int) -> list[str]:
    """Lists like those of teachers: up to ten numbers of up to three digits, mostly ten."""
    rng = random.Random(f"lists {seed}")
    lengths = (10 if rng.random() < ROW_SHARE_FULL else rng.randint(1, 9) for _ in range(count))
    return [", ".join(str(rng.randint(0, 999)) for _ in range(length)) for length in lengths]


def count_row_tokens(count: int, seed: int) -> list[tuple[int, int]]:
    """Tokens of the prompt and of the completion with its end mark, for rows of the English book."""
    prompts = number_prompts(BOOKS["english"], count, seed)
    return [
        (TEMPLATE_TOKENS + count_tokens(prompt), count_tokens(answer) + 1)
        for prompt, answer in zip(prompts, write_lists(count, seed), strict=True)
    ]


# --- rates ------------------------------------------------------------------------------------


def compute_mfu(params: int, tokens_per_second: float, peak_tflops: float) -> float:
    """Share of the device's matrix rate: 4 operations per weight and token.

    Two forward and two backward to the inputs; the frozen weights need no gradient of their own.
    """
    return 4 * params * tokens_per_second / (peak_tflops * 1e12)


def summarise_steps(tokens: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Tokens per second: median, lowest and highest step, and `overall`, all tokens over all seconds."""
    rates = np.asarray(tokens, float) / np.asarray(seconds, float)
    return {
        "steps": len(rates),
        "seconds": float(np.sum(seconds)),
        "tokens": int(np.sum(tokens)),
        "tokens_per_second": float(np.median(rates)),
        "low": float(rates.min()),
        "high": float(rates.max()),
        "overall": float(np.sum(tokens) / np.sum(seconds)),
    }


# --- the CSV ----------------------------------------------------------------------------------


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """One measurement at the end of the file, on the disk before this returns."""
    unknown = row.keys() - set(FIELDS)
    if unknown:
        raise ValueError(f"a row of the benchmark has no {', '.join(sorted(unknown))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if old and old.splitlines()[0] != ",".join(FIELDS):
        raise BadParameter(f"{path} has other columns than this version writes: choose another --out")
    with open(path, "a", newline="", encoding="utf-8") as file:
        if old and not old.endswith("\n"):
            file.write("\n")  # whoever wrote the last line was killed at it
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not old:
            writer.writeheader()
        writer.writerow({name: _format(row.get(name, "")) for name in FIELDS})
        file.flush()
        os.fsync(file.fileno())


def _format(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(value.split()) if isinstance(value, str) else value


def read_rows(path: Path) -> list[dict]:
    """All whole rows; a number that was not measured is None."""
    if not path.exists():
        raise MissingInput(
            f"there are no measurements in {path}: run `python3 bench.py` first, or name --out"
        )
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    return [
        {name: text if name in TEXTS else float(text) if text else None for name, text in row.items()}
        for row in rows
    ]


# --- from measurements to answers -------------------------------------------------------------


def choose_runs(rows: Iterable[dict]) -> dict[str, dict[str, dict]]:
    """size -> way -> row, all ways of a size from one run, so that their ratios mean something.

    Of several runs that measured a size the one with most ways is taken, of those the newest.
    """
    runs: dict[str, dict[str, dict[str, dict]]] = {}
    for row in rows:
        if row["tokens_per_second"]:
            runs.setdefault(row["size"], {}).setdefault(row["run"], {})[row["way"]] = row
    order = {size: at for at, size in enumerate((*MICRO, *SHAPES))}
    sizes = sorted(runs, key=lambda size: (order.get(size, len(order)), size))
    return {size: max(reversed(runs[size].values()), key=len) for size in sizes}


def compare_ways(chosen: Mapping[str, Mapping[str, dict]]) -> list[dict]:
    """One line per size: each way's tokens per second and MFU, the fleet's over the other two."""
    lines = []
    for size, ways in chosen.items():
        line: dict[str, object] = {"size": size}
        line |= {f"{way} tok/s": round(row["tokens_per_second"]) for way, row in ways.items()}
        line |= {f"{way} MFU": round(row["mfu"], 3) for way, row in ways.items()}
        for other in WAYS[:2]:
            if "fleet" in ways and other in ways:
                ratio = ways["fleet"]["tokens_per_second"] / ways[other]["tokens_per_second"]
                line[f"fleet / {other}"] = round(ratio, 2)
        if "fleet" in ways:
            line["students"] = int(ways["fleet"]["students"])
        lines.append(line)
    return lines


@dataclass(frozen=True)
class Grid:
    """What the projection multiplies: the reference experiment's counts."""

    conditions: int = 16
    rows: int = 10_000
    epochs: int = 10
    seeds: tuple[int, ...] = (1, 5)  # 96 students, and the 480 that were asked for
    reported: float = 75.0  # hours that the reference experiment reports for its 96 fine-tunes


def project_hours(students: int, mean_tokens: float, tokens_per_second: float, grid: Grid) -> float:
    """Hours of training for students of one size."""
    return students * grid.rows * grid.epochs * mean_tokens / tokens_per_second / 3600


def project_grid(chosen: Mapping[str, Mapping[str, dict]], grid: Grid) -> list[dict]:
    """Hours for the grid by size and way, totals where all six sizes were measured, what each rests on."""
    totals = [f"hours_{grid.conditions * len(QWEN) * seeds}" for seeds in grid.seeds]
    lines = []
    for way in WAYS:
        own = []
        for size in QWEN:
            row = chosen.get(size, {}).get(way)
            if row:
                own.append(_project_size(row, grid, totals))
        missing = [size for size in QWEN if size not in {line["size"] for line in own}]
        rests = f"missing: {', '.join(missing)}" if missing else "the sizes above"
        sums = {name: None if missing else sum(line[name] for line in own) for name in totals}
        lines += [*own, {"size": "all", "way": way, **sums, "rests_on": rests}]
    reported = {totals[0]: grid.reported, "rests_on": "reported for the reference experiment, one H200"}
    return [*lines, {"size": "all", "way": "reference", **reported}]


def _project_size(row: dict, grid: Grid, totals: list[str]) -> dict:
    line = {"size": row["size"], "way": row["way"], "rows": grid.rows, "epochs": grid.epochs}
    line |= {"mean_tokens": row["mean_tokens"], "tokens_per_second": row["overall"]}
    for name, seeds in zip(totals, grid.seeds, strict=True):
        students = grid.conditions * seeds
        line[name] = project_hours(students, row["mean_tokens"], row["overall"], grid)
    line["rests_on"] = (
        f"{row['steps']:.0f} steps of run {row['run']} on {row['device']}, {row['weights']}, {row['dtype']}, "
        f"{row['students']:.0f} student{'s' * (row['students'] != 1)} at a time; training only, "
        "without loading, compiling and saving"
    )
    return line


def list_points(chosen: Mapping[str, Mapping[str, dict]], ladder: str) -> list[dict]:
    """The rows of one ladder's figure."""
    return [
        {name: row[name] for name in ROOFLINE}
        for size, ways in chosen.items()
        if ladder_of(size) == ladder
        for row in ways.values()
    ]


ROOFLINE = (
    *("size", "params", "way", "students", "mfu", "mfu_low", "mfu_high", "tokens_per_second"),
    *("peak_tflops", "peak_source", "device", "run"),
)
