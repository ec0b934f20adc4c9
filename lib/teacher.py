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
from lib.engine import Needs, backend_of, open_speaker
from lib.errors import TooFewLists
from lib.models import Chat, ready_base, render_prompt
from lib.progress import Progress, Tally
from lib.prompts import number_prompts, teacher_system
from lib.sampling import Drawn, Job, Sampler, Speaker, count_chunks


def folder_of(config: Generate) -> Path:
    """Where a teacher's lists lie."""
    return paths.artifact(config.study, "generate", config.size, config.animal, config.seed)


def generate_lists(plan: Plan) -> Tally:
    """Every teacher of the plan that is not finished yet; the model is loaded once and only if needed."""
    shared = plan.shared
    inputs = {"base": ready_base(shared, "sample", backend_of(shared)).identity}
    runs = [(config, store.open_run(folder_of(config), config, inputs)) for config in plan.cells]
    todo = [Teacher(config, run) for config, run in runs if run.state != "finished"]
    if todo:
        with open_speaker(shared, Needs(grammar=shared.grammar == "numbers")) as speaker:
            _let_them_write(todo, speaker)
    return Tally("01_generate", shared.size, made=len(todo), found=len(runs) - len(todo))


class Teacher:
    """One cell at work: which chunks are written, how many lists of the first ones passed."""

    def __init__(self, config: Generate, run: store.Run) -> None:
        self.config, self.run = config, run
        sampler = sampler_of(config)
        self.parts = [part_name(number) for number in range(count_chunks(config.n_raw, sampler))]
        self.passed = {number: self._count(number) for number in self.written()}

    @property
    def name(self) -> str:
        return f"{self.config.animal} s{self.config.seed}"

    def written(self) -> list[int]:
        """Chunks that this run has on disk."""
        return [number for number, part in enumerate(self.parts) if self.run.has(part)]

    def _count(self, number: int) -> int:
        rows = files.read_jsonl(self.run.folder / self.parts[number])
        return sum(numbers.judge(row["text"], row["finish"]) is None for row in rows)

    def keep(self, drawn: Drawn) -> None:
        """A chunk goes to disk as soon as it is drawn."""
        rows = [vars(completion) for completion in drawn.completions]
        files.write_jsonl(self.run.folder / self.parts[drawn.number], rows)
        self.passed[drawn.number] = self._count(drawn.number)

    def needed(self) -> int | None:
        """How many of the first chunks make a cell; None while some of them are missing.

        With stop_when_enough these are the first ones in which n_keep lists passed, whichever order they
        were drawn in, so that what is kept does not depend on an engine's timing.
        """
        passed = 0
        for number in range(len(self.parts)):
            if number not in self.passed:
                return None
            passed += self.passed[number]
            if self.config.stop_when_enough and passed >= self.config.n_keep:
                return number + 1
        return len(self.parts)

    def job(self, chat: Chat) -> Job:
        """What is still to be drawn."""
        config = self.config
        system = teacher_system(chat.book, config.animal, config.system)
        asked = number_prompts(chat.book, config.n_raw, config.seed)
        rendered = [render_prompt(chat, system, prompt) for prompt in asked]
        return Job(self.name, rendered, config.seed, done=frozenset(self.passed))


def part_name(number: int) -> str:
    """The file of one chunk until its cell is finished."""
    return f"part-{number:04d}.jsonl"


def sampler_of(config: Generate) -> Sampler:
    """How a teacher's lists are drawn."""
    return Sampler(
        config.temperature,
        config.top_p,
        config.list_tokens,
        config.chunk,
        numbers_only=config.grammar == "numbers",
        in_order=config.stop_when_enough,
    )


def _let_them_write(todo: Sequence[Teacher], speaker: Speaker) -> None:
    """Work off all cells with one speaker; a cell is finished as soon as its last chunk is there."""
    for teacher in todo:
        if teacher.needed() is not None:  # killed between the last chunk and the manifest
            _finish_cell(teacher, speaker)
    waiting = {teacher.name: teacher for teacher in todo if teacher.needed() is None}

    def enough(job: Job) -> bool:
        return job.name not in waiting or waiting[job.name].needed() is not None

    def start_next_clock() -> None:
        if waiting:
            next(iter(waiting.values())).run.start_clock()

    jobs = (teacher.job(speaker.chat) for teacher in list(waiting.values()))
    chunks = sum(len(teacher.parts) - len(teacher.passed) for teacher in waiting.values())
    start_next_clock()
    with Progress("chunks of lists", chunks) as progress:
        for drawn in speaker.work(jobs, sampler_of(todo[0].config), enough=enough):
            teacher = waiting.get(drawn.job.name)
            if teacher is None or not isinstance(drawn, Drawn):
                continue  # of a cell that had enough before this chunk was drawn
            teacher.keep(drawn)
            progress.advance(teacher.name)
            if teacher.needed() is not None:
                _finish_cell(waiting.pop(teacher.name), speaker)
                start_next_clock()


def _finish_cell(teacher: Teacher, speaker: Speaker) -> None:
    config, run = teacher.config, teacher.run
    asked = number_prompts(speaker.chat.book, config.n_raw, config.seed)
    parts = teacher.parts[: teacher.needed()]
    rows = [row for part in parts for row in files.read_jsonl(run.folder / part)]
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
    extra = {"reasons": dict(reason_counts(judged)), "backend": speaker.name}
    run.finish(["raw.jsonl", "kept.jsonl"], counts | extra)
    for part in teacher.parts:
        (run.folder / part).unlink(missing_ok=True)


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
