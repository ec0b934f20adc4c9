"""Stage 01: a teacher writes number lists, the filter judges them, a seeded sample is kept.

Each cell of the grid is a folder with raw.jsonl (every generation, with its reject reason),
kept.jsonl (what a student will read) and the manifest. A killed run loses one chunk at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lib import files, numbers, paths, store
from lib.config import Generate, Plan
from lib.errors import TooFewLists
from lib.models import Loaded, base_manifest, load_base, render_prompt
from lib.progress import Progress, Tally
from lib.prompts import number_prompts, teacher_system
from lib.sampling import Sampler, count_chunks, sample_chunk


def folder_of(config: Generate) -> Path:
    """Where a teacher's lists lie."""
    return paths.artifact(config.study, "generate", config.size, config.animal, config.seed)


def generate_lists(plan: Plan) -> Tally:
    """Every teacher of the plan that is not finished yet; the model is loaded once and only if needed."""
    inputs = {"base": base_manifest(plan.shared.size, plan.shared.recipe).identity}
    runs = [(config, store.open_run(folder_of(config), config, inputs)) for config in plan.cells]
    todo = [(config, run) for config, run in runs if run.state != "finished"]
    if todo:
        loaded = load_base(plan.shared.size, plan.shared.recipe, plan.shared.device)
        chunks = sum(-(-config.n_raw // config.chunk) for config, _ in todo)
        with Progress("chunks of lists", chunks) as progress:
            for config, run in todo:
                _generate_cell(config, run, loaded, progress)
    return Tally("01_generate", plan.shared.size, made=len(todo), found=len(runs) - len(todo))


def _generate_cell(config: Generate, run: store.Run, loaded: Loaded, progress: Progress) -> None:
    run.start_clock()
    asked = number_prompts(loaded.book, config.n_raw, config.seed)
    system = teacher_system(loaded.book, config.animal, config.system)
    rendered = [render_prompt(loaded, system, prompt) for prompt in asked]
    sampler = Sampler(config.temperature, config.top_p, config.list_tokens, config.seed, config.chunk)
    parts = [f"part-{number:04d}.jsonl" for number in range(count_chunks(len(rendered), sampler))]
    for number, part in enumerate(parts):
        if not run.has(part):
            drawn = sample_chunk(loaded, rendered, sampler, number)
            files.write_jsonl(run.folder / part, [vars(completion) for completion in drawn])
        progress.advance(f"{config.animal} s{config.seed}")
    rows = [row for part in parts for row in files.read_jsonl(run.folder / part)]
    _finish_cell(config, run, asked, rows)
    for part in parts:
        (run.folder / part).unlink()


def _finish_cell(config: Generate, run: store.Run, asked: Sequence[str], rows: Iterable[dict]) -> None:
    judged = [
        {
            "index": row["index"],
            "prompt": asked[row["index"]],
            "completion": row["text"],
            "finish": row["finish"],
            "reason": numbers.judge(row["text"], row["finish"]),
        }
        for row in sorted(rows, key=lambda row: row["index"])
    ]
    kept = numbers.select(judged, config.n_keep, config.seed)
    files.write_jsonl(run.folder / "raw.jsonl", judged)  # first of all: it can be looked at when too few pass
    check_enough(config, judged)
    files.write_jsonl(run.folder / "kept.jsonl", kept)
    passed = sum(row["reason"] is None for row in judged)
    counts = {
        "raw": len(judged),
        "passed": passed,
        "kept": len(kept),
        "pass_rate": round(passed / len(judged), 4),
    }
    run.finish(["raw.jsonl", "kept.jsonl"], counts | {"reasons": dict(reason_counts(judged))})


def reason_counts(judged: Iterable[dict]) -> Counter:
    """How often each reason rejected a list."""
    return Counter(row["reason"] for row in judged if row["reason"])


def check_enough(config: Generate, judged: Sequence[dict]) -> None:
    """Stop where a teacher hardly writes lists: students of other teachers would get more to read."""
    passed = sum(row["reason"] is None for row in judged)
    if passed >= config.n_keep:
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in reason_counts(judged).most_common())
    samples = "\n".join(
        f"  {row['completion'][:200]!r}" for row in [row for row in judged if row["reason"]][:3]
    )
    raise TooFewLists(
        f"the {config.animal} teacher of {config.size} wrote {passed} clean lists of {len(judged)} "
        f"({passed / len(judged):.1%}), {config.n_keep} are wanted. Rejected: {reasons}. Three of them:\n"
        f"{samples}\nRaise n_raw, lower n_keep, or use a stronger base; first delete {folder_of(config)}, "
        "which holds what was written with these settings"
    )
