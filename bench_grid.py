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
import datetime
import heapq
import importlib.metadata
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from lib import (
    config,
    files,
    forecast,
    gantt,
    paths,
    placement,
    planning,
    plots,
    provenance,
    resources,
    speed,
)
from lib.errors import DamagedFile, StudyError
from lib.prompts import BOOKS, number_prompts
from lib.resources import Need

H200 = placement.Gpu(0, "NVIDIA H200", 149_000_000_000, 149_000_000_000)
RAM_BESIDE = 8.0  # GB of a process on a GPU beside the weights that pass through it
CPU_RAM = 2.0  # GB that a chain of the micro ladder may take, as grid.py plans
QWEN = (*speed.QWEN, "72b")
MICRO = tuple(name for name, size in config.SIZES.items() if size.family == "micro")
STUDY = "qwen"  # six sizes, 16 conditions, five seeds
GPU_COUNTS = (1, 8, 64)
SECONDS = 300.0  # of a simulation, so that what Snakemake adds to a job does not weigh more than it would
START_NOTE = "; start is what its notebook took beside"
RANDOM = "random weights at the exact shape"

# --- the table: published models on a GPU -----------------------------------------------------


def fill_published(benchmarks: Path) -> Iterator[Need]:
    """Qwen 2.5 on an H200, from what bench.py and bench_sampling.py measured."""
    sampled = _read(benchmarks / "sampling.csv")
    trained = [row for row in _read(benchmarks / "nvidia-h200.csv") if row["way"] == "fleet"]
    projected = _read(benchmarks / "projection.csv")
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
    rows = {each["way"]: each for each in projected if each["size"] == size}
    if not {"fleet", "tuned"} <= rows.keys():
        return blank
    row = rows["fleet"]
    run = [each for each in trained if each["size"] == size][-1]
    grid = speed.Grid()
    units = grid.conditions * float(row["rows"]) * float(row["epochs"]) / 10_000
    note = (
        f"projection.csv: {row['rests_on']}; {float(run['memory_gb']):.0f} GB taken "
        "(nvidia-h200.csv); start is compiling; alone: TRL, tuned, on the same card"
    )
    return replace(
        blank,
        start_minutes=round(float(run["compile_seconds"]) / 60, 4),
        minutes=round(float(row["hours_96"]) * 60 / units, 5),
        together=float(run["students"]),
        alone=round(float(rows["tuned"]["hours_96"]) * 60 / units, 5),
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
    for path in files.list_documents(root, "results/*/*/*/s*.json"):
        yield from _read_evaluation(path, root)
    for path in sorted(root.glob("artifacts/*/evaluate/*/*/s*/manifest.json")):
        yield from _read_evaluate(path, root)
    for path in sorted(root.glob("models/*/manifest.json")):
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
        note += START_NOTE if start is not None else ""
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
    note += START_NOTE if start is not None else ""
    return Need("finetune", row["size"], "cpu", 0, None, CPU_RAM, start, round(minutes, 5), None, note)


def read_starts(root: Path) -> dict[tuple[str, str], float]:
    """Minutes that an executed notebook took beside what its manifests count: kernel, imports, loading."""
    found = {}
    for path in sorted(root.glob("executed/*/*.ipynb")):
        stage, _, label = path.stem.partition("-")
        rule = {"01_generate": "generate", "02_finetune": "finetune", "03_evaluate": "evaluate"}.get(stage)
        duration = read_duration(path)
        study = path.parent.name
        manifests = list(root.glob(f"artifacts/{study}/{rule}/{label}/*/s*/manifest.json"))
        if not rule or not duration or not manifests:
            continue
        beside = duration - sum(files.read_json(each)["seconds"] for each in manifests)
        if beside > 0:
            found[rule, _size(label)] = round(beside / 60, 4)
    return found


def read_duration(executed: Path) -> float | None:
    """Seconds that papermill took for a notebook."""
    return json.loads(executed.read_text(encoding="utf-8"))["metadata"].get("papermill", {}).get("duration")


def fill_analysis(benchmarks: Path, roots: Iterable[Path]) -> Need:
    """A large study, and as its start what a small one took beyond its share of that."""
    rows = [row for row in _read(benchmarks / "analysis.csv") if row["what"] == "notebook 04_analysis"]
    row = rows[-1]
    note = (
        f"analysis.csv, run {row['run']} on {row['device']}: {row['evaluations']} evaluations with "
        f"{row['answers']} answers, {row['notes']}; fewer or shorter evaluations take less"
    )
    minutes = round(float(row["seconds"]) / 60, 4)
    ram = max(CPU_RAM, round(float(row["peak_megabytes"]) / 1000, 1))
    starts = []
    for path in (each for root in roots for each in sorted(root.glob("executed/*/04_analysis.ipynb"))):
        folders = (f"{root}/results/{path.parent.name}" for root in (path.parents[2], paths.CODE))
        names = {
            each.parts[-3:]
            for folder in folders
            for each in files.list_documents(Path(folder), "*/*/s*.json")
        }
        starts.append((read_duration(path) or 0) / 60 - len(names) / 480 * minutes)
    start = round(min(starts), 4) if starts and min(starts) > 0 else None
    note += START_NOTE if start is not None else ""
    return Need("analyse", resources.ALL_SIZES, "cpu", 0, None, ram, start, minutes, None, note)


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
        tracked = files.list_documents(paths.CODE, f"results/*/{need.size}/[!u]*/s*.json")
        if tracked:
            epochs = files.read_json(tracked[0])["epochs"]
            return round(files.count_bytes(tracked[0]) / sum(len(e["answers"]) for e in epochs) / 100, 3)
    return None


def fill_table(roots: Sequence[Path], benchmarks: Path, old: resources.Table) -> list[Need]:
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
    found = [*fill_published(benchmarks), fill_analysis(benchmarks, roots)]
    found += fill_recorded(roots, benchmarks)
    rows |= {(need.rule, need.size, need.device): need for need in found}
    rows = {**old_only(old, rows), **{key: keep_known(need, old.get(key)) for key, need in rows.items()}}
    order = {name: i for i, name in enumerate((*config.SIZES, resources.ALL_SIZES))}
    rows = {key: n if n.disk is not None else replace(n, disk=count_other_disk(n)) for key, n in rows.items()}
    return sorted(
        rows.values(), key=lambda need: (resources.RULES.index(need.rule), order[need.size], need.device)
    )


def old_only(old: resources.Table, rows: resources.Table) -> dict[tuple[str, str, str], Need]:
    """Rows with minutes whose sources are no longer here."""
    return {key: need for key, need in old.items() if need.minutes is not None and key not in rows}


def keep_known(need: Need, before: Need | None) -> Need:
    """A row as its sources fill it; what only runs that are no longer here could tell stays as it was."""
    if before is None or before.minutes is None:
        return need
    if need.minutes is None:
        return before
    if need.start_minutes is None and before.start_minutes is not None:
        note = need.comes_from + (START_NOTE if START_NOTE not in need.comes_from else "")
        return replace(need, start_minutes=before.start_minutes, comes_from=note)
    return need


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


def read_old(path: Path) -> resources.Table:
    """The table as it is, whose rows stay where their runs are gone; one that is no table is replaced."""
    try:
        return resources.read_table() if path.is_file() else {}
    except DamagedFile as error:
        print(f"{error}\nIt is filled without what it said before.", file=sys.stderr)
        return {}


def run_fill(roots: list[str]) -> int:
    """Fill the table and say what it still does not know."""
    benchmarks, path = paths.CODE / "benchmarks", resources.table_path()
    old = read_old(path)
    needs = fill_table([paths.CODE, *map(Path, roots)], benchmarks, old)
    write_table(path, needs)
    known = [need for need in needs if need.minutes is not None]
    print(f"{len(needs)} rows, minutes known of {len(known)}: {path}")
    for rule in resources.RULES:
        unknown = [f"{n.size} ({n.device})" for n in needs if n.rule == rule and n.minutes is None]
        if unknown:
            print(f"not measured: {rule} of {', '.join(unknown)}")
    return 0


# --- the synthetic grid -------------------------------------------------------------------------

# Stands in for workflow/job.py beside the same Snakefile: sleeps as long as the plan expects, scaled.
SLEEPER = """
import json, os, sys, time
began, name = time.time(), sys.argv[-1]
root = os.environ["SUBLIMINAL_ROOT"]
time.sleep(json.load(open(f"{root}/seconds.json"))[name])
receipt = f"{root}/artifacts/{sys.argv[1]}/.grid/{name}.json"
with open(receipt + ".part", "w") as file:
    json.dump({"job": name, "began": began, "ended": time.time()}, file)
os.replace(receipt + ".part", receipt)
"""


@dataclass(frozen=True)
class Simulated:
    """A grid that Snakemake ran with sleeping jobs; seconds are of the clock, `scale` seconds to a minute."""

    jobs: tuple[planning.Job, ...]
    gpus: int
    group_hours: float
    scale: float
    launched: float
    spans: Mapping[str, tuple[float, float]]  # when each job began and ended

    @property
    def makespan(self) -> float:
        """From the first job's start to the last one's end."""
        begins, ends = zip(*self.spans.values(), strict=True)
        return max(ends) - min(begins)

    @property
    def start(self) -> float:
        """Until the first job began: Snakemake reading the plan, paid once."""
        return min(began for began, _ in self.spans.values()) - self.launched


def simulate(gpus: int, seconds: float, folder: Path) -> Simulated:
    """Run the study's own Snakefile for so many GPUs, its work scaled to about so many seconds."""
    hours, _ = forecast.find_group_hours(STUDY, gpus, 2)
    jobs = planning.list_jobs(STUDY, resources.read_costs(STUDY), hours)
    scale = seconds / forecast.find_bound(jobs, gpus)
    workflow, root = folder / "workflow", folder / "root"
    (root / "artifacts" / STUDY / ".grid").mkdir(parents=True)
    workflow.mkdir()
    (folder / "lib").symlink_to(paths.CODE / "lib")
    shutil.copy(paths.CODE / "workflow" / "Snakefile", workflow)
    (workflow / "job.py").write_text(SLEEPER, encoding="utf-8")
    files.write_json(root / "seconds.json", {job.name: (job.minutes or 0) * scale for job in jobs})
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(workflow / "Snakefile")]
    command += ["--profile", str(paths.CODE / "workflow" / "profiles" / "box"), "--directory", str(folder)]
    command += ["--cores", str(gpus + 2), "--resources", f"gpu={gpus}"]
    command += ["--config", f"study={STUDY}", f"group_hours={hours:g}"]
    environment = os.environ | {"SUBLIMINAL_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    launched = time.time()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise StudyError(f"Snakemake ended with code {done.returncode}: {done.stderr[-2000:]}")
    told = [files.read_json(root / "artifacts" / STUDY / ".grid" / f"{job.name}.json") for job in jobs]
    spans = {each["job"]: (each["began"], each["ended"]) for each in told}
    return Simulated(tuple(jobs), gpus, hours, scale, launched, spans)


def seat_jobs(ran: Simulated) -> list[dict]:
    """One row per job: its GPU, when it began and ended, and how long it waited although it could have begun.

    The GPU is the one that had been free for longest. What a job waited beyond the end of the jobs it needs
    and the moment at which that GPU fell free is the scheduler's doing: overhead.
    """
    free = [(ran.launched + ran.start, gpu) for gpu in range(ran.gpus)]
    rows = []
    for job in sorted(ran.jobs, key=lambda job: ran.spans[job.name][0]):
        began, ended = ran.spans[job.name]
        ready = max((ran.spans[need][1] for need in job.needs), default=0.0)
        gpu: int | None = None
        if job.gpus:
            since, gpu = heapq.heappop(free)
            heapq.heappush(free, (ended, gpu))
            ready = max(ready, since)
        rows.append({"job": job, "gpu": gpu, "began": began, "ended": ended, "waited": began - ready})
    return rows


def time_job_start() -> float:
    """Seconds of workflow/job.py before it starts its notebook: imports and the plan."""
    began = time.monotonic()
    program = str(paths.CODE / "workflow" / "job.py")
    done = subprocess.run([sys.executable, program, STUDY, "no-such-job"], capture_output=True, text=True)
    if "no job" not in done.stderr:
        raise StudyError(f"workflow/job.py did not get as far as its plan: {done.stderr[-2000:]}")
    return time.monotonic() - began


def describe_run(ran: Simulated, seats: Sequence[Mapping], run: str, job_start: float) -> dict:
    """The row of benchmarks/grid.csv. Hours are those of the grid, seconds those of the simulation."""
    to_hours = 1 / ran.scale / 60
    bound = forecast.find_bound(ran.jobs, ran.gpus)
    waited = [max(0.0, seat["waited"]) for seat in seats]
    expected = forecast.schedule_jobs(ran.jobs, ran.gpus, 2).finish
    return {
        "run": run,
        "device": f"{platform.machine()}, {os.cpu_count()} cores",
        "gpus": ran.gpus,
        "group_hours": ran.group_hours,
        "jobs": len(ran.jobs),
        "work_hours": round(sum((job.minutes or 0) * job.gpus for job in ran.jobs) / 60, 2),
        "bound_hours": round(bound / 60, 3),
        "expected_hours": round(expected / 60, 3),
        "makespan_hours": round(ran.makespan * to_hours, 3),
        "over_bound": round(ran.makespan / (bound * ran.scale) - 1, 4),
        "makespan_s": round(ran.makespan, 2),
        "start_s": round(ran.start, 2),
        "overhead_mean_s": round(statistics.mean(waited), 3),
        "overhead_p95_s": round(sorted(waited)[int(0.95 * len(waited))], 3),
        "overhead_worst_s": round(max(waited), 3),
        "job_start_s": round(job_start, 3),
        "notes": f"load {os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "snakemake": importlib.metadata.version("snakemake"),
        "code": provenance.code_version()["source"][:12],
    }


def tabulate_seats(ran: Simulated, seats: Sequence[Mapping]) -> pd.DataFrame:
    """What the figure draws: hours of the grid, not of the clock."""
    first = min(seat["began"] for seat in seats)
    return pd.DataFrame(
        {
            "gpus": ran.gpus,
            "gpu": seat["gpu"],
            "job": seat["job"].name,
            "stage": seat["job"].stage,
            "size": forecast.size_of(seat["job"]),
            "start": (seat["began"] - first) / ran.scale / 60,
            "end": (seat["ended"] - first) / ran.scale / 60,
            "bound": forecast.find_bound(ran.jobs, ran.gpus) / 60,
            "makespan": ran.makespan / ran.scale / 60,
        }
        for seat in seats
        if seat["gpu"] is not None
    )


def say_run(row: Mapping) -> str:
    return (
        f"{row['gpus']:>3} GPUs, {row['jobs']} jobs: {row['makespan_hours']:.2f} h, bound "
        f"{row['bound_hours']:.2f} h ({row['over_bound']:+.1%}); per job {row['overhead_mean_s']:.2f} s of "
        f"Snakemake, {row['overhead_worst_s']:.2f} s at worst, and {row['job_start_s']:.2f} s until its "
        "notebook starts"
    )


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """One more run at the end of the file, which is replaced at once."""
    rows = [*(_read(path) if path.is_file() else []), row]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, out.getvalue())


def run_simulations(counts: Sequence[int], seconds: float) -> int:
    """One simulation per number of GPUs, a row each, and the figure of all."""
    run = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    drawn = []
    for gpus in counts:
        with tempfile.TemporaryDirectory(prefix="grid-") as folder:
            ran = simulate(gpus, seconds, Path(folder))
        seats = seat_jobs(ran)
        row = describe_run(ran, seats, run, time_job_start())
        append_row(paths.benchmarks() / "grid.csv", row)
        drawn.append(tabulate_seats(ran, seats))
        print(say_run(row), flush=True)
    slide = plots.draw(gantt.grid_gantt, pd.concat(drawn), by="gpus")
    plots.save_figure(slide, slide.table, paths.root() / "figures" / "bench", "grid")
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
    parser.add_argument(
        "--gpus", type=int, nargs="+", default=GPU_COUNTS, help="simulated GPUs (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each simulation (%(default)s)")
    asked = parser.parse_args()
    if asked.fill:
        return guarded(lambda: run_fill(asked.runs))
    return guarded(lambda: run_simulations(asked.gpus, asked.seconds))


if __name__ == "__main__":
    sys.exit(main())
