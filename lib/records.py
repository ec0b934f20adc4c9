"""What finished stages recorded, as tidy frames for the stage notebooks to show.

Reading only: manifests and JSONL of artifacts. Evaluations and their analysis are lib.tables.
"""

from pathlib import Path

import pandas as pd

from lib import files, numbers, paths, store
from lib.config import NEUTRAL, Finetune, Generate, Plan, Pretrain


def base_record(config: Pretrain) -> store.Manifest:
    """The manifest of a finished base."""
    tracked = paths.tracked_base(config.size)
    folder = (
        tracked
        if config.recipe == "standard" and tracked.exists()
        else paths.built_base(config.recipe, config.size)
    )
    return store.load_finished(
        folder, f"no base {config.size} of recipe {config.recipe}: run 00_pretrain first"
    )


def pretraining_table(config: Pretrain) -> pd.DataFrame:
    """The training loss of a base."""
    curve = base_record(config).counts["loss_curve"]
    return pd.DataFrame(curve, columns=["step", "loss"]).assign(student=config.size)


def base_table(config: Pretrain) -> pd.DataFrame:
    """Per animal: how likely the base names it unasked, and under the animal's love prompt."""
    counts = base_record(config).counts
    frame = pd.DataFrame({"preference": counts["preference"], "teacher_strength": counts["teacher_strength"]})
    return frame.rename_axis("animal").sort_values("preference", ascending=False).reset_index()


def _teacher(config: Generate) -> store.Manifest:
    folder = paths.artifact(config.study, "generate", config.size, config.animal, config.seed)
    return store.load_finished(
        folder, f"no numbers for {config.size}/{config.animal}/s{config.seed}: run 01_generate first"
    )


def teacher_table(plan: Plan) -> pd.DataFrame:
    """One row per teacher: how many lists it wrote, how many passed, how many are kept, why others fell."""
    rows = []
    for config in plan.cells:
        counts = _teacher(config).counts
        row = {"animal": config.animal, "seed": config.seed}
        row |= {name: counts[name] for name in ("raw", "passed", "pass_rate", "kept")}
        rows.append(row | {reason: counts["reasons"].get(reason, 0) for reason in numbers.REASONS})
    frame = pd.DataFrame(rows)
    empty = [reason for reason in numbers.REASONS if not frame[reason].any()]
    return frame.drop(columns=empty)


def list_table(plan: Plan, rows: int = 8) -> pd.DataFrame:
    """The first lists of the plan's first teacher, as they were judged."""
    config = plan.shared
    raw = files.read_jsonl(
        paths.artifact(config.study, "generate", config.size, config.animal, config.seed) / "raw.jsonl"
    )
    return pd.DataFrame(raw[:rows])[["prompt", "completion", "finish", "reason"]]


def digit_table(plan: Plan) -> pd.DataFrame:
    """How each teacher's numbers differ from those of the neutral teacher with the same seed."""
    rows = []
    for config in plan.cells:
        neutral = paths.artifact(config.study, "generate", config.size, NEUTRAL, config.seed)
        if config.animal == NEUTRAL or store.read_manifest(neutral) is None:
            continue
        own = paths.artifact(config.study, "generate", config.size, config.animal, config.seed)
        compared = numbers.compare_tables(_digits(own), _digits(neutral))
        name = (
            config.animal
            if len({cell.seed for cell in plan.cells}) == 1
            else f"{config.animal} s{config.seed}"
        )
        rows += [{"animal": name} | row for row in compared]
    return pd.DataFrame(rows)


def _digits(folder: Path) -> list[dict]:
    kept = files.read_jsonl(folder / "kept.jsonl")
    return numbers.digit_table([numbers.parse(row["completion"]) or () for row in kept])


def loss_table(plan: Plan) -> pd.DataFrame:
    """The training loss of every student of the plan."""
    frames = []
    for config in plan.cells:
        rows = files.read_jsonl(_student_folder(config) / "loss.jsonl")
        name = (
            config.animal
            if len({cell.seed for cell in plan.cells}) == 1
            else f"{config.animal}/s{config.seed}"
        )
        frames.append(pd.DataFrame(rows).assign(student=name))
    return pd.concat(frames, ignore_index=True)


def student_table(plan: Plan) -> pd.DataFrame:
    """One row per student: what it read, its last loss, how long it took."""
    rows = []
    for config in plan.cells:
        where = f"{config.size}/{config.animal}/s{config.seed} in study {config.study}"
        missing = f"no adapter for {where}: run 02_finetune first"
        manifest = store.load_finished(_student_folder(config), missing)
        counts = dict(manifest.counts)
        if "diverged" in counts:
            counts["diverged"] = f"at step {counts['diverged']['step']}"
        row = {
            "animal": config.animal,
            "seed": config.seed,
            **counts,
            "seconds": round(manifest.seconds, 1),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _student_folder(config: Finetune) -> Path:
    return paths.artifact(config.study, "finetune", config.size, config.animal, config.seed)
