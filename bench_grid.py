"""What the grid takes and how well it is scheduled: `python bench_grid.py --fill`, `python bench_grid.py`.

`--fill` writes benchmarks/resources.csv, the table that plans rest on, from the other tables of benchmarks/
and from the seconds that finished runs have recorded: evaluations in results/, manifests in artifacts/. What
nobody measured stays empty. Rows whose runs are no longer here stay as they are.

Without it, a synthetic grid of six sizes, 16 conditions and five seeds with the durations of that table is
run by Snakemake on simulated 1, 8 and 64 GPUs, its jobs asleep for a scaled time: benchmarks/grid.csv.
"""

import argparse
import collections
import csv
import io
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from lib import config, files, paths, placement, resources, speed
from lib.errors import StudyError
from lib.prompts import BOOKS, number_prompts
from lib.resources import Need

H200 = placement.Gpu(0, "NVIDIA H200", 149_000_000_000, 149_000_000_000)
RAM_BESIDE = 8.0  # GB of a process on a GPU beside the weights that pass through it
CPU_RAM = 2.0  # GB that a chain of the micro ladder may take, as study.py plans
QWEN = (*speed.QWEN, "72b")
MICRO = tuple(name for name, size in config.SIZES.items() if size.family == "micro")
RANDOM = "random weights at the exact shape"

# --- the table: published models on a GPU -----------------------------------------------------


def fill_published(benchmarks: Path) -> Iterator[Need]:
    """Qwen 2.5 on an H200, from what bench.py and bench_sampling.py measured."""
    sampled = _read(benchmarks / "sampling.csv")
    trained = [row for row in _read(benchmarks / "nvidia-h200.csv") if row["way"] == "fleet"]
    projected = [row for row in _read(benchmarks / "projection.csv") if row["way"] == "fleet"]
    answers = _read(benchmarks / "analysis.csv")[-1]
    per_answers = float(answers["megabytes"]) / float(answers["answers"]) * 10_000
    for size in QWEN:
        own = [row for row in sampled if row["size"] == size]
        yield _fill_sampling("generate", size, own, "lists", count_list_megabytes())
        yield _fill_training(size, trained, projected)
        yield _fill_sampling("evaluate", size, own, "answers, one engine", per_answers)


def _blank(rule: str, size: str, what: str) -> Need:
    """The row of a published model before anything was measured: GPUs and memory by lib.placement."""
    base = config.parse_label(size)
    gpus = [replace(H200, index=i) for i in range(8)]
    place = placement.plan_placement(base, what, "cuda", "bfloat16", 0, gpus)
    need = (
        placement.need_to_train(base, "bfloat16", "cuda")
        if what == "train"
        else placement.need_to_sample(base, "bfloat16", "vllm", "cuda")
    )
    memory = round(need.on_each_of(len(place.gpus)) / placement.GB, 1)
    ram = round(need.weights / placement.GB + RAM_BESIDE, 1)
    note = "minutes not measured; memory as lib.placement plans it, RAM the weights and 8 GB"
    return Need(rule, size, "gpu", len(place.gpus), memory, ram, None, None, None, note)


def _fill_sampling(rule: str, size: str, rows: list[dict], what: str, disk: float) -> Need:
    blank = replace(_blank(rule, size, "sample"), disk=round(disk, 3))
    found = [row for row in rows if row["what"] == what]
    if not found:
        return blank
    row, apart = found[-1], [each for each in rows if "process" in each["notes"]]
    starts = [float(each["notes"].split()[1]) - float(each["seconds"]) for each in apart]
    minutes = float(row["seconds"]) / float(row["requests"]) * 10_000 / 60
    each = float(row["new_tokens"]) / float(row["requests"])
    note = (
        f"sampling.csv, run {row['run']} on {row['device']}: {row['requests']} {what.split(',')[0]} of "
        f"{each:.0f} tokens, {RANDOM}; start of the process included, loading of real weights not"
    )
    if rule == "evaluate":
        note += "; log-probabilities not measured, they come on top"
    start = round(statistics.mean(starts) / 60, 4) if starts else None
    return replace(blank, start_minutes=start, minutes=round(minutes, 5), comes_from=note)


def _fill_training(size: str, trained: list[dict], projected: list[dict]) -> Need:
    base = config.parse_label(size)
    disk = placement.count_adapter(placement.shape_of(base), resources.RANK) * 4 / 1e6
    blank = replace(_blank("finetune", size, "train"), disk=round(disk, 3))
    row = next((each for each in projected if each["size"] == size), None)
    if row is None:
        return blank
    run = [each for each in trained if each["size"] == size][-1]
    grid = speed.Grid()
    lists = grid.conditions * float(row["rows"]) * float(row["epochs"])
    note = (
        f"projection.csv: {row['rests_on']}; {float(run['memory_gb']):.0f} GB taken "
        f"(nvidia-h200.csv); start is compiling"
    )
    return replace(
        blank,
        start_minutes=round(float(run["compile_seconds"]) / 60, 4),
        minutes=round(float(row["hours_96"]) * 60 / lists * 10_000, 5),
        comes_from=note,
    )


def count_list_megabytes(book: str = "english", count: int = 2_000) -> float:
    """MB of 10,000 lists as stage 01 writes them, once raw and once kept, on prompts of a book."""
    prompts, lists = number_prompts(BOOKS[book], count, 0), speed.write_lists(count, 0)
    rows = (
        {"index": i, "prompt": prompt, "completion": text, "finish": "stop", "reason": None}
        for i, (prompt, text) in enumerate(zip(prompts, lists, strict=True))
    )
    return 2 * sum(len(json.dumps(row)) + 1 for row in rows) / count * 10_000 / 1e6


# --- the table: seconds that runs have recorded ------------------------------------------------

Record = tuple[str, str, str, float, float, str]  # rule, size, device, seconds, units, source


def read_records(root: Path) -> Iterator[Record]:
    """One record per finished stage of a cell: of tracked evaluations and of manifests that are here."""
    for path in sorted(root.glob("results/*/*/*/s*.json")):
        yield from _read_evaluation(path, root)
    for path in sorted(root.glob("artifacts/*/evaluate/*/*/s*/manifest.json")):
        yield from _read_evaluate(path, root)
    for path in sorted((paths.CODE / "models").glob("*/manifest.json")):
        manifest = files.read_json(path)
        label, gpu = manifest["config"]["size"], manifest["hardware"]["gpu"]
        source = f"manifests of models/, {gpu or 'CPU'}, eight bases side by side"
        yield "pretrain", _size(label), _device(gpu), manifest["seconds"], 1.0, source


def _read_evaluation(path: Path, root: Path) -> Iterator[Record]:
    """Teacher and student of an evaluation, whose seconds its lineage holds."""
    lineage = files.read_json(path)["lineage"]
    chain, gpu = lineage["chain"], lineage["hardware"]["gpu"]
    study = path.relative_to(root).parts[1]
    source = f"seconds recorded in results/{study}, {gpu or 'CPU'}"
    for rule in ("generate", "finetune"):
        if rule not in chain:
            continue
        settings, counts = chain[rule]["config"], chain[rule]["counts"]
        seconds = lineage["seconds"][rule]
        if rule == "finetune":  # students that shared passes recorded the same seconds
            seconds /= counts.get("together", 1)
            units = counts["examples"] * settings["epochs"] / 10_000
        else:
            units = counts["raw"] / 10_000
        yield rule, _size(settings["size"]), _device(gpu), seconds, units, source


def _read_evaluate(path: Path, root: Path) -> Iterator[Record]:
    manifest = files.read_json(path)
    settings, gpu = manifest["config"], manifest["hardware"]["gpu"]
    if settings["animal"] == config.UNTUNED:
        return
    stored = paths.evaluation(settings["study"], settings["size"], settings["animal"], settings["seed"])
    result = root / stored.relative_to(paths.root())
    epochs = len(files.read_json(result)["epochs"])
    units = settings["n_questions"] * settings["samples"] * epochs / 10_000
    source = f"manifests of study {settings['study']}, {gpu or 'CPU'}, log-probabilities included"
    yield "evaluate", _size(settings["size"]), _device(gpu), manifest["seconds"], units, source


def _size(label: str) -> str:
    return config.parse_label(label).size.name


def _device(gpu: object) -> str:
    return "gpu" if gpu else "cpu"


def fill_recorded(roots: Iterable[Path], benchmarks: Path) -> Iterator[Need]:
    """Rows that rest on seconds of finished runs, and those of cpu.csv."""
    grouped, starts = collections.defaultdict(list), {}
    for root in roots:
        starts |= read_starts(root)
        for rule, size, device, seconds, units, source in read_records(root):
            grouped[rule, size, device].append((seconds, units, source))
    for (rule, size, device), found in grouped.items():
        minutes = sum(seconds for seconds, _, _ in found) / sum(units for _, units, _ in found) / 60
        sources = "; ".join(dict.fromkeys(source for _, _, source in found))
        note = f"{sources}; {len(found)} of them"
        start = starts.get((rule, size)) if device == "cpu" else None
        note += "; start is what its notebook took beside" if start is not None else ""
        if device == "gpu" and rule != "pretrain":
            what = "train" if rule == "finetune" else "sample"
            row = replace(_blank(rule, size, what), comes_from=note)
        else:
            row = Need(rule, size, device, int(device == "gpu"), None, CPU_RAM, None, None, None, note)
        yield replace(row, start_minutes=start, minutes=round(minutes, 5))
    for row in _read(benchmarks / "cpu.csv"):
        if row["way"] == "fleet":
            yield _fill_cpu_training(row, starts.get(("finetune", row["size"])))


def _fill_cpu_training(row: Mapping[str, str], start: float | None) -> Need:
    """A micro size on one thread, as bench.py measured it."""
    minutes = 10_000 * float(row["mean_tokens"]) / float(row["overall"]) / 60
    note = (
        f"cpu.csv, run {row['run']} on {row['device']}, {float(row['memory_gb']):.1f} GB at most, "
        f"lists of {float(row['mean_tokens']):.0f} tokens"
    )
    note += "; start is what its notebook took beside" if start is not None else ""
    return Need("finetune", row["size"], "cpu", 0, None, CPU_RAM, start, round(minutes, 5), None, note)


def read_starts(root: Path) -> dict[tuple[str, str], float]:
    """Minutes that an executed notebook took beside what its manifests count: kernel, imports, loading."""
    found = {}
    for path in sorted(root.glob("executed/*/*.ipynb")):
        stage, _, label = path.stem.partition("-")
        rule = {"01_generate": "generate", "02_finetune": "finetune", "03_evaluate": "evaluate"}.get(stage)
        notebook = json.loads(path.read_text(encoding="utf-8"))
        duration = notebook["metadata"].get("papermill", {}).get("duration")
        study = path.parent.name
        manifests = list(root.glob(f"artifacts/{study}/{rule}/{label}/*/s*/manifest.json"))
        if not rule or not duration or not manifests:
            continue
        beside = duration - sum(files.read_json(each)["seconds"] for each in manifests)
        if beside > 0:
            found[rule, _size(label)] = round(beside / 60, 4)
    return found


def fill_analysis(benchmarks: Path) -> Need:
    rows = [row for row in _read(benchmarks / "analysis.csv") if row["what"] == "notebook 04_analysis"]
    row = rows[-1]
    note = (
        f"analysis.csv, run {row['run']} on {row['device']}: {row['evaluations']} evaluations with "
        f"{row['answers']} answers, {row['notes']}; fewer or shorter evaluations take less"
    )
    minutes = round(float(row["seconds"]) / 60, 4)
    ram = max(CPU_RAM, round(float(row["peak_megabytes"]) / 1000, 1))
    return Need("analyse", resources.ALL_SIZES, "cpu", 0, None, ram, None, minutes, None, note)


# --- the table: put together -------------------------------------------------------------------


def count_other_disk(need: Need) -> float | None:
    """MB where no benchmark says it: adapters by shape, lists as they are written, the rest as tracked."""
    if need.rule == "generate":
        family = config.FAMILIES[config.SIZES[need.size].family]
        return round(count_list_megabytes(family.book), 3)
    if need.rule == "analyse":  # tables and figures of the largest study that is tracked
        folders = [[*paths.CODE.glob(f"results/{path.name}/tables/*"), *path.glob("*")]
                   for path in paths.CODE.glob("figures/*")]  # fmt: skip
        return round(max(sum(each.stat().st_size for each in folder) for folder in folders) / 1e6, 1)
    if need.rule == "finetune":
        shape = placement.shape_of(config.parse_label(need.size))
        return round(placement.count_adapter(shape, resources.RANK) * 4 / 1e6, 3)
    if need.rule == "evaluate":
        tracked = sorted(paths.CODE.glob(f"results/*/{need.size}/[!u]*/s*.json"))
        if tracked:
            epochs = files.read_json(tracked[0])["epochs"]
            return round(tracked[0].stat().st_size / sum(len(e["answers"]) for e in epochs) / 100, 3)
    return None


def fill_table(roots: Iterable[Path], benchmarks: Path, old: resources.Table) -> list[Need]:
    """All rows by rule and size. Later sources win; an old row with minutes stays where none has any now."""
    rows = {}
    for rule in ("generate", "finetune", "evaluate"):  # that nothing is known is a row as well
        for size in MICRO:
            need = Need(rule, size, "cpu", 0, None, CPU_RAM, None, None, None, "minutes not measured")
            rows[rule, size, "cpu"] = need
        what = "train" if rule == "finetune" else "sample"
        rows[rule, "135m", "gpu"] = _blank(rule, "135m", what)
    for size in MICRO:
        need = Need("pretrain", size, "cpu", 0, None, CPU_RAM, None, None, None, "minutes not measured")
        rows["pretrain", size, "cpu"] = need
    found = [*fill_published(benchmarks), fill_analysis(benchmarks)]
    found += fill_recorded(roots, benchmarks)
    rows |= {(need.rule, need.size, need.device): need for need in found}
    for key, need in old.items():
        if need.minutes is not None and (key not in rows or rows[key].minutes is None):
            rows[key] = need
    order = {name: i for i, name in enumerate((*config.SIZES, resources.ALL_SIZES))}
    rows = {key: n if n.disk is not None else replace(n, disk=count_other_disk(n)) for key, n in rows.items()}
    return sorted(
        rows.values(), key=lambda need: (resources.RULES.index(need.rule), order[need.size], need.device)
    )


def write_table(path: Path, needs: Iterable[Need]) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, resources.FIELDS, lineterminator="\n")
    writer.writeheader()
    for need in needs:
        row = {name: "" if value is None else value for name, value in asdict(need).items()}
        row |= {"per": resources.PER[need.rule], "disk_per": resources.DISK_PER[need.rule]}
        writer.writerow(row)
    files.write_text(path, out.getvalue())


def _read(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_fill(roots: list[str]) -> int:
    """Fill the table and say what it still does not know."""
    benchmarks, path = paths.CODE / "benchmarks", resources.table_path()
    old = resources.read_table() if path.is_file() else {}
    needs = fill_table([paths.CODE, *map(Path, roots)], benchmarks, old)
    write_table(path, needs)
    known = [need for need in needs if need.minutes is not None]
    print(f"{len(needs)} rows, minutes known of {len(known)}: {path}")
    for rule in resources.RULES:
        unknown = [f"{n.size} ({n.device})" for n in needs if n.rule == rule and n.minutes is None]
        if unknown:
            print(f"not measured: {rule} of {', '.join(unknown)}")
    return 0


# --- the command -------------------------------------------------------------------------------


def guarded(work: Callable[[], int]) -> int:
    try:
        return work()
    except StudyError as error:
        print(error, file=sys.stderr)
        return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--fill", action="store_true", help="write the table that plans rest on")
    parser.add_argument(
        "--runs", nargs="*", default=[], help="roots of further runs, as SUBLIMINAL_ROOT names them"
    )
    asked = parser.parse_args()
    return guarded(lambda: run_fill(asked.runs))


if __name__ == "__main__":
    sys.exit(main())
