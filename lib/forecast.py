"""What a study will take and where it stands: GPU hours, disk, expected finish, what is done, what is left.

Ground layer. Reads receipts and manifests, writes nothing. Jobs whose minutes nobody measured are counted
and named, and left out of every sum: a finish that leaves work out says so.
"""

import heapq
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lib import config, paths, planning, receipts, resources, store
from lib.planning import Job

SHOWN_GPUS = (1, 8, 64)
GROUP_HOURS = (
    planning.GROUP_HOURS,
    3.0,
    2.0,
    1.5,
    1.0,
    0.75,
    0.5,
    0.25,
)  # that are tried for the earliest finish
WORTH = 0.98  # of the finish as asked: what an advice must undercut
WEIGHT_BYTES = 2  # of a published weight as it is fetched: bfloat16

# --- where a study stands -------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """Jobs by name: `done` have their receipt; `cells` counts finished cells of those that have none;
    `running` and `took` are minutes since the start and minutes until the end, as far as somebody tells."""

    done: frozenset[str] = frozenset()
    cells: Mapping[str, int] = field(default_factory=dict)
    running: Mapping[str, float] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()
    took: Mapping[str, float] = field(default_factory=dict)

    def share_left(self, job: Job) -> float:
        """How much of a job is still to be computed, 0 to 1: finished cells are found, not made again."""
        if job.name in self.done:
            return 0.0
        return 1 - self.cells.get(job.name, 0) / len(job.cells) if job.cells else 1.0


def read_state(jobs: Sequence[Job]) -> State:
    """What lies on the disk: receipts, locks and failures of jobs, manifests of cells.

    When a job began is its lock file's time: it is shown and decides nothing, so that clocks may disagree.
    """
    known = {job.name: job for job in jobs}
    states = {job.name: receipts.find_state(job, known) for job in jobs}
    took = {name: _read_seconds(known[name]) for name, state in states.items() if state == "done"}
    return State(
        done=frozenset(took),
        cells={job.name: _count_cells(job) for job in jobs if job.name not in took},
        running={name: _since(known[name]) for name, state in states.items() if state == "running"},
        failed=frozenset(name for name, state in states.items() if state == "failed"),
        took={name: seconds / 60 for name, seconds in took.items() if seconds},
    )


def _read_seconds(job: Job) -> float:
    return float((receipts.read_receipt(job) or {}).get("seconds", 0))


def _since(job: Job) -> float:
    try:
        return max(0.0, time.time() - receipts.lock_path(job).stat().st_mtime) / 60
    except OSError:
        return 0.0


def _count_cells(job: Job) -> int:
    """Cells that have a manifest, of a job that has no receipt yet."""
    if job.stage not in planning.BY_CELL:
        return 0
    folders = [paths.artifact(job.study, job.stage, job.label, *cell) for cell in job.cells]
    return sum((folder / store.MANIFEST).is_file() for folder in folders)


# --- time -----------------------------------------------------------------------------------------


def list_left(jobs: Sequence[Job], state: State) -> list[Job]:
    """What remains, with the minutes it will take.

    Finished jobs correct what the table expected of others: those of the same stage and size by their
    minutes per cell, which also serves where the table knows nothing; else those of the same stage by the
    ratio of what they took to what was expected.
    """
    per_cell, ratio = _read_pace(jobs, state)
    left = []
    for job in jobs:
        share = state.share_left(job)
        if job.name in state.done:
            continue
        minutes = job.minutes
        if (job.stage, job.label) in per_cell:
            minutes = per_cell[job.stage, job.label] * max(1, len(job.cells))
        elif minutes is not None:
            minutes *= ratio.get(job.stage, 1.0)
        if minutes is not None:
            minutes = max(0.0, minutes * share - state.running.get(job.name, 0.0))
        left.append(replace(job, minutes=minutes, needs=tuple(n for n in job.needs if n not in state.done)))
    return left


def _read_pace(jobs: Sequence[Job], state: State) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    took: dict[tuple[str, str], float] = defaultdict(float)
    cells: dict[tuple[str, str], int] = defaultdict(int)
    real: dict[str, float] = defaultdict(float)
    expected: dict[str, float] = defaultdict(float)
    for job in jobs:
        if job.name in state.done and job.name in state.took:
            took[job.stage, job.label] += state.took[job.name]
            cells[job.stage, job.label] += max(1, len(job.cells))
            if job.minutes:
                real[job.stage] += state.took[job.name]
                expected[job.stage] += job.minutes
    return {key: took[key] / cells[key] for key in took}, {s: real[s] / expected[s] for s in expected}


@dataclass(frozen=True)
class Schedule:
    """Minutes from now at which each job starts, and at which the last one ends."""

    starts: Mapping[str, float]
    finish: float
    unknown: tuple[str, ...]  # jobs of unknown length, which count as nothing


def schedule_jobs(jobs: Sequence[Job], gpus: int, cores: int) -> Schedule:
    """List scheduling: whenever something is free, the waiting job with the longest chain after it starts.

    A job without a GPU takes a core. One that wants more GPUs than there are gets all of them, so that a
    plan can be seen for a machine on which its largest size would not fit.
    """
    ranks, names = planning.rank_jobs(_without_strangers(jobs)), {job.name for job in jobs}
    waits = {job.name: {need for need in job.needs if need in names} for job in jobs}
    waiting = sorted(jobs, key=lambda job: -ranks[job.name])
    free, now = {"gpu": gpus, "core": cores}, 0.0
    ends: list[tuple[float, str, str, int]] = []
    starts: dict[str, float] = {}
    while waiting or ends:
        for job in list(waiting):
            kind, amount = ("gpu", min(job.gpus, gpus)) if job.gpus else ("core", 1)
            if not waits[job.name] and free[kind] >= amount:
                free[kind] -= amount
                starts[job.name] = now
                heapq.heappush(ends, (now + (job.minutes or 0.0), job.name, kind, amount))
                waiting.remove(job)
        now, name, kind, amount = heapq.heappop(ends)
        free[kind] += amount
        for needs in waits.values():
            needs.discard(name)
    return Schedule(starts, now, tuple(job.name for job in jobs if job.minutes is None))


def _without_strangers(jobs: Sequence[Job]) -> list[Job]:
    names = {job.name for job in jobs}
    return [replace(job, needs=tuple(need for need in job.needs if need in names)) for job in jobs]


def find_bound(jobs: Sequence[Job], gpus: int) -> float:
    """Minutes that no schedule can undercut: the GPU work over the GPUs, or the longest chain."""
    work = sum((job.minutes or 0.0) * min(job.gpus, gpus) for job in jobs)
    known = [replace(job, minutes=job.minutes or 0.0) for job in _without_strangers(jobs)]
    return max(work / gpus, max(_chain_minutes(known).values(), default=0.0))


def _chain_minutes(jobs: Sequence[Job]) -> dict[str, float]:
    """Minutes until the end of each job if nothing ever waited for a GPU."""
    by_name, ends = {job.name: job for job in jobs}, {}

    def end(job: Job) -> float:
        if job.name not in ends:
            before = max((end(by_name[need]) for need in job.needs), default=0.0)
            ends[job.name] = before + (job.minutes or 0.0)
        return ends[job.name]

    for job in jobs:
        end(job)
    return ends


def find_group_hours(study: str, gpus: int, cores: int) -> tuple[float, float]:
    """The longest a job may take for the whole study to end first, and the minutes until then.

    Shorter jobs leave no GPU waiting at the beginning and at the end, but each starts an engine of its own
    and trains fewer students together.
    """
    costs = resources.read_costs(study)

    def finish(hours: float) -> float:
        return schedule_jobs(planning.list_jobs(study, costs, hours), gpus, cores).finish

    return min(((hours, finish(hours)) for hours in GROUP_HOURS), key=lambda pair: pair[1])


# --- words ----------------------------------------------------------------------------------------


def say_minutes(minutes: float) -> str:
    """`1.5` as `1:30 min`, `95` as `1.6 h`, four days as `4.0 days`."""
    if minutes < 1:
        return f"{round(minutes * 60)} s"
    if minutes < 60:
        return f"{int(minutes)}:{int(minutes % 1 * 60):02} min"
    return f"{minutes / 60:.1f} h" if minutes < 72 * 60 else f"{minutes / 1440:.1f} days"


def say_megabytes(megabytes: float) -> str:
    """`2048` as `2.0 GB`."""
    for unit, size in (("TB", 1e6), ("GB", 1e3)):
        if megabytes >= size:
            return f"{megabytes / size:.1f} {unit}"
    return f"{megabytes:.3g} MB"


def say_count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def lay_out(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows as aligned columns, the first `left` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def study_of(jobs: Sequence[Job]) -> str:
    """The study that was asked for; jobs carry the name of their point where it has further axes."""
    job = jobs[0]
    return job.study.removesuffix(f"-{planning.name_point(job.axes)}") if job.axes else job.study


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- the plan -------------------------------------------------------------------------------------


def say_plan(jobs: Sequence[Job], gpus: int) -> str:
    """The text of `plan` for a study as it lies here."""
    text = describe_plan(jobs, gpus, count_cores(), read_state(jobs))
    return "\n\n".join(filter(None, (text, advise_group_hours(jobs, gpus, count_cores()))))


def advise_group_hours(jobs: Sequence[Job], gpus: int, cores: int) -> str:
    """How to cut the study so that it ends sooner, where that is worth it; nothing else."""
    hours, finish = find_group_hours(study_of(jobs), gpus, cores)
    if finish > WORTH * schedule_jobs(jobs, gpus, cores).finish:
        return ""
    return (
        f"With --group-hours {hours:g} the whole study would end {say_minutes(finish)} after its start: "
        "such jobs leave fewer GPUs waiting. Decide before it begins; cut otherwise they are other jobs."
    )


def say_status(jobs: Sequence[Job], gpus: int) -> str:
    """The text of `status` for a study as it lies here."""
    return describe_status(jobs, gpus, count_cores(), read_state(jobs))


def describe_plan(jobs: Sequence[Job], gpus: int, cores: int, state: State) -> str:
    """The whole text of `plan`: jobs, hours by stage and size, disk, expected finish, how it was grouped."""
    left = list_left(jobs, state)
    parts = [
        [f"study {study_of(jobs)}: {say_count(len(jobs), 'job')}, {len(state.done)} done"],
        describe_jobs(jobs, left, state),
        describe_hours(jobs, left, state),
        describe_disk(jobs),
        describe_finish(left, gpus, cores),
        describe_groups(jobs),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def describe_jobs(jobs: Sequence[Job], left: Sequence[Job], state: State) -> list[str]:
    """One line per job in the order of the plan."""
    minutes = {job.name: job.minutes for job in left}
    rows = [("job", "cells", "GPUs", "GB each", "RAM GB", "expected", "state")]
    for job in jobs:
        expected = minutes.get(job.name, job.minutes)
        takes = "unknown" if expected is None else say_minutes(expected)
        gpus = (str(job.gpus), f"{job.gpu_memory:.0f}" if job.gpu_memory else "") if job.gpus else ("", "")
        cells = str(len(job.cells) or "")
        rows.append((job.name, cells, *gpus, f"{job.ram:.0f}", takes, say_state(job, state)))
    return lay_out(rows)


def say_state(job: Job, state: State) -> str:
    if job.name in state.done:
        return "done"
    if job.name in state.failed:
        return "failed"
    if job.name in state.running:
        return "running"
    found = state.cells.get(job.name, 0)
    return f"{found} cells done" if found else "to do"


def describe_hours(jobs: Sequence[Job], left: Sequence[Job], state: State) -> list[str]:
    """GPU hours by stage and size, all and left; hours of a core for stages that take no GPU."""
    rows = [("stage", "size", "jobs", "cells", "done", "GPU hours", "core hours", "left")]
    remaining = {job.name: job for job in left}
    groups: dict[tuple[str, str], list[Job]] = defaultdict(list)
    for job in jobs:
        groups[job.stage, size_of(job)].append(job)
    total = Counter[str]()
    for (stage, size), some in groups.items():
        gpu, core, rest = _sum_hours(some, remaining)
        cells = sum(len(job.cells) for job in some)
        found = sum(len(j.cells) if j.name in state.done else state.cells.get(j.name, 0) for j in some)
        unknown = any(job.minutes is None for job in some)
        shown = ("unknown", "unknown", "unknown") if unknown else (_h(gpu), _h(core), _h(rest))
        rows.append((stage, size, str(len(some)), str(cells or ""), str(found or ""), *shown))
        total.update({"jobs": len(some), "unknown": unknown})
        total.update({"gpu": gpu, "core": core, "left": rest})  # type: ignore[dict-item]
    rows.append(
        ("all", "", str(total["jobs"]), "", "", *(_h(total[kind]) for kind in ("gpu", "core", "left")))
    )
    lines = [*lay_out(rows, left=2), *describe_sources(jobs)]
    if total["unknown"]:
        lines.append(
            "Where it says unknown nobody has measured the minutes, and the sums leave it out; after a run, "
            f"{resources.FILL} takes them from its manifests."
        )
    return lines


def describe_sources(jobs: Sequence[Job]) -> list[str]:
    """What the minutes of the largest size of each stage rest on; the table says it of all."""
    table, largest = resources.read_table(), {}
    for job in jobs:  # the largest comes first
        largest.setdefault(job.stage, size_of(job))
    lines = ["what this rests on, by the largest size (benchmarks/resources.csv says it of every size):"]
    for stage, size in largest.items():
        lines.append(f"  {stage} {size}: {resources.find_need(stage, size, table).comes_from}")
    return lines


def _sum_hours(jobs: Iterable[Job], remaining: Mapping[str, Job]) -> tuple[float, float, float]:
    gpu = core = rest = 0.0
    for job in jobs:
        hours = (job.minutes or 0.0) / 60
        gpu += hours * job.gpus
        core += hours * (not job.gpus)
        left = remaining[job.name].minutes if job.name in remaining else 0.0
        rest += (left or 0.0) / 60 * max(1, job.gpus)
    return gpu, core, rest


def _h(hours: float) -> str:
    return f"{hours:.2f}" if hours else "0"


def size_of(job: Job) -> str:
    return config.parse_label(job.label).size.name if job.label else "all"


def describe_disk(jobs: Sequence[Job]) -> list[str]:
    """What the study leaves on the disk, by stage, the models it fetches, and what is free."""
    table, used, unknown = resources.read_table(), Counter[str](), set()
    settings = _read_settings(study_of(jobs))
    for job in jobs:
        need = resources.find_need(job.stage, size_of(job), table)
        disk = resources.count_disk(need, settings | dict(job.axes), len(job.cells))
        if disk is None:
            unknown.add((job.stage, size_of(job)))
        else:
            used[job.stage] += disk  # type: ignore[assignment]
    sizes = {config.SIZES[size_of(job)] for job in jobs if job.label}
    fetched = sum(size.params * WEIGHT_BYTES / 1e6 for size in sizes if size.family != "micro")
    parts = [f"{stage} {say_megabytes(used[stage])}" for stage in planning.STAGES if used[stage]]
    parts += [f"models to be fetched {say_megabytes(fetched)}"] if fetched else []
    total, free = sum(used.values()) + fetched, _find_free() / 1e6
    lines = [f"disk: {say_megabytes(total)} in all ({', '.join(parts)}); free here: {say_megabytes(free)}"]
    if unknown:
        lines.append("  not known of " + ", ".join(" ".join(each) for each in sorted(unknown)))
    if total > free:
        lines.append("  That does not fit here: free some, or set SUBLIMINAL_ROOT to a larger disk.")
    return lines


def _read_settings(study: str) -> dict[str, object]:
    """Settings of all stages of a study: the notebooks' defaults and what its file says otherwise."""
    defaults: dict[str, object] = {}
    for stage in planning.BY_CELL:
        defaults |= planning.read_defaults(planning.NOTEBOOKS[stage])
    return defaults | planning.read_file(study)[0]


def _find_free() -> int:
    root = paths.root()
    return shutil.disk_usage(next(each for each in (root, *root.parents) if each.exists())).free


def describe_finish(left: Sequence[Job], gpus: int, cores: int) -> list[str]:
    """When it would end, on the GPUs asked for and on others, beside what no schedule can undercut."""
    if not left:
        return ["everything is done"]
    if not any(job.gpus for job in left):
        ends = schedule_jobs(left, 1, cores)
        return [f"expected finish: {say_minutes(ends.finish)} after the start on {say_count(cores, 'core')}"
                + _say_unknown(ends.unknown)]  # fmt: skip
    rows = [("GPUs", "finish after", "no schedule under", "GPUs busy")]
    for count in sorted({gpus, *SHOWN_GPUS}):
        ends = schedule_jobs(left, count, cores)
        work = sum((job.minutes or 0) * min(job.gpus, count) for job in left)
        busy = f"{work / (ends.finish * count):.0%}" if ends.finish else ""
        mark = "*" * (count == gpus)
        rows.append((f"{mark}{count}", say_minutes(ends.finish), say_minutes(find_bound(left, count)), busy))
    lines = ["expected finish, with the jobs as they are grouped here (* as asked):", *lay_out(rows, left=0)]
    return lines + ([_say_unknown(ends.unknown).lstrip("; ")] if ends.unknown else [])


def _say_unknown(names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"; without {shown}, whose minutes nobody has measured"


def describe_groups(jobs: Sequence[Job]) -> list[str]:
    """Why jobs hold the cells they hold: one line for all that share a reason."""
    reasons: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:  # some parts of a base have a cell more than others, which is no other reason
        reasons[job.why.removeprefix(f"{len(job.cells)} of ")].append(job)
    lines = ["how the jobs are cut:"]
    for why, some in reasons.items():
        more = f" and {len(some) - 1} like it" if len(some) > 1 else ""
        counts = sorted({len(job.cells) for job in some})
        each = f"{'-'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} of "
        cut = each if why != some[0].why else ""
        lines += [f"  {some[0].name}{more}: {cut}{why}"] if why else []
    return lines if len(lines) > 1 else []


# --- the status -----------------------------------------------------------------------------------


def say_progress(jobs: Sequence[Job], gpus: int, cores: int, state: State) -> str:
    """One line: how much is done, what runs, what failed, and the time left."""
    left = list_left(jobs, state)
    if not left:
        return f"{len(jobs)} of {say_count(len(jobs), 'job')} done"
    parts = [f"{len(state.done)} of {say_count(len(jobs), 'job')} done"]
    parts += [f"{len(state.running)} running"] if state.running else []
    parts += [f"{len(state.failed)} failed"] if state.failed else []
    able = [job for job in left if not _is_blocked(job, left, state)]
    ends = schedule_jobs(able, max(1, gpus), cores)
    where = say_count(gpus, "GPU") if any(job.gpus for job in able) else say_count(cores, "core")
    return ", ".join(parts) + (
        f"; about {say_minutes(ends.finish)} left on {where}{_say_unknown(ends.unknown)}" if able else ""
    )


def _is_blocked(job: Job, jobs: Sequence[Job], state: State) -> bool:
    """Whether a job failed, or waits for one that did."""
    by_name = {each.name: each for each in jobs}
    return job.name in state.failed or any(
        _is_blocked(by_name[need], jobs, state) for need in job.needs if need in by_name
    )


def describe_status(jobs: Sequence[Job], gpus: int, cores: int, state: State) -> str:
    """The text of `status`: the line of progress, what runs and failed, what is done by stage and size."""
    lines = [f"study {study_of(jobs)}: {say_progress(jobs, gpus, cores, state)}"]
    expected = {job.name: job.minutes for job in jobs}
    for name, minutes in sorted(state.running.items()):
        of = "" if expected.get(name) is None else f", {say_minutes(expected[name] or 0)} expected"
        lines.append(f"  running {name} since {say_minutes(minutes)}{of}")
    lines += [f"  failed {name}" for name in sorted(state.failed)]
    rows = [("stage", "size", "jobs done", "cells done")]
    groups: dict[tuple[str, str], list[Job]] = defaultdict(list)
    for job in jobs:
        groups[job.stage, size_of(job)].append(job)
    for (stage, size), some in groups.items():
        cells = sum(len(job.cells) for job in some)
        found = sum(len(j.cells) if j.name in state.done else state.cells.get(j.name, 0) for j in some)
        done = sum(job.name in state.done for job in some)
        rows.append((stage, size, f"{done} of {len(some)}", f"{found} of {cells}" if cells else ""))
    return "\n".join([*lines, "", *lay_out(rows, left=2)])
