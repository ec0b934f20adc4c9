"""Stage 03: what a student answers when asked for its favourite animal, epoch by epoch.

Raw answers and log-probabilities go to one sealed JSON per student under results/; nothing is
scored here, so a better scorer needs no model. A killed run loses one epoch of one student at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lib import files, paths, provenance, store
from lib.bases import base_folder, base_manifest
from lib.config import LEXICON, MICRO_ANIMALS, UNTUNED, Evaluate, Plan, parse_label
from lib.engine import Needs, backend_of, open_speaker
from lib.errors import BadParameter, DamagedFile, TrainingDiverged
from lib.models import Chat, ready_base, render_prompt
from lib.preference import Words
from lib.progress import Progress, Tally
from lib.prompts import BOOKS
from lib.sampling import Completion, Drawn, Job, Sampler, Scored, Speaker

SCHEMA = "subliminal-scaling/evaluation/1"
RECEIPT = "receipt.json"  # the seal of the JSON under results/: ties the manifest to it


def folder_of(config: Evaluate) -> Path:
    """Where the work on one evaluation lies; the result itself goes to results/."""
    return paths.artifact(config.study, "evaluate", config.size, config.animal, config.seed)


def result_path(config: Evaluate) -> Path:
    """The evaluation JSON."""
    return paths.evaluation(config.study, config.size, config.animal, config.seed)


def student_folder(config: Evaluate) -> Path:
    """Where the student lies that is asked."""
    return paths.student_folder(store.config_record(config))


def student_manifest(config: Evaluate) -> store.Manifest | None:
    """The finished student, its chain checked down to the numbers; None for the untuned control."""
    if config.animal == UNTUNED:
        return None
    study = config.students_of or config.study
    command = paths.command("02_finetune", study, config.size, config.animal, config.seed)
    where = f"{config.size}/{config.animal}/s{config.seed} in study {study}"
    missing = f"no adapter for {where}: run 02_finetune with these parameters first\n  {command}"
    manifest = store.load_finished(student_folder(config), missing)
    store.check_chain(manifest, {"generate": paths.lists_read(manifest.config | manifest.knobs)})
    return manifest


def evaluate_students(plan: Plan) -> Tally:
    """Every student of the plan and the untuned control, as far as they are not evaluated yet."""
    questions_of(plan.shared)  # asking for too many stops here, before any run is opened
    base = ready_base(plan.shared, "sample", backend_of(plan.shared))
    control = replace(plan.shared, animal=UNTUNED, seed=0)
    cells = (*(cell for cell in plan.cells if cell.animal != UNTUNED), control)
    todo, lost = [], []
    for config in cells:
        student = student_manifest(config)
        if student and "diverged" in student.counts:
            print(f"SKIPPED {student.title}: {student.counts['diverged']['why']}", flush=True)
            lost.append(student)
            continue
        inputs = {"base": base.identity} | ({"finetune": student.identity} if student else {})
        if student:
            folder = base_folder(config.size, config.recipe, config.revision)
            store.check_inputs(student.title, {"base": student.inputs["base"]}, {"base": folder})
        run = store.open_run(folder_of(config), config, inputs)
        if run.state == "finished":
            check_receipt(config, run)
        else:
            todo.append(Questioned(config, run, student))
    if lost and len(lost) == len(cells) - 1:
        raise TrainingDiverged(lost[0].counts["diverged"]["why"])
    if todo:
        needs = Needs(
            adapters=sum(len(epochs_of(each.student)) for each in todo if each.student),
            rank=max((each.student.config["lora_rank"] for each in todo if each.student), default=0),
        )
        with open_speaker(plan.shared, needs) as speaker:
            _let_them_answer(todo, speaker)
    return Tally("03_evaluate", plan.shared.size, made=len(todo), found=len(cells) - len(todo) - len(lost))


def last_evaluated(plan: Plan) -> Evaluate:
    """The last cell of the plan that has a result: a student that got lost in training has none."""
    return next(config for config in reversed(plan.cells) if files.has_document(result_path(config)))


def check_receipt(config: Evaluate, run: store.Run) -> None:
    """A finished evaluation whose JSON has gone or was changed is not finished."""
    path = result_path(config)
    again = f"restore it, or delete {run.folder} and run 03_evaluate again"
    if not files.has_document(path):
        raise DamagedFile(f"{path} is gone; {again}")
    document = files.read_json(path)
    store.check_seal(document, path)
    if document["lineage"]["content"] != files.read_json(run.folder / RECEIPT)["content"]:
        raise DamagedFile(f"{path} is not the result that was written here; {again}")


def epochs_of(student: store.Manifest | None) -> list[int]:
    """The epochs that a student's adapters cover; 0 is the untuned model."""
    return list(range(1, student.config["epochs"] + 1)) if student else [0]


class Questioned:
    """One student at work: which epochs have answered, which are still out."""

    def __init__(self, config: Evaluate, run: store.Run, student: store.Manifest | None) -> None:
        self.config, self.run, self.student = config, run, student
        self.out = [epoch for epoch in epochs_of(student) if not run.has(part_name(epoch))]
        self.answers: dict[int, list[Completion]] = {epoch: [] for epoch in self.out}
        self.values: dict[int, np.ndarray] = {}

    @property
    def name(self) -> str:
        return f"{self.config.animal} s{self.config.seed}"

    def jobs(self, chat: Chat) -> Iterator[tuple[int, Job]]:
        """One per epoch that is still out, with that epoch."""
        config = self.config
        prompts = [render_prompt(chat, config.system, question) for question in questions_of(config)]
        repeated = [prompt for prompt in prompts for _ in range(config.samples)]
        for epoch in list(self.out):
            folder = student_folder(config) / f"epoch-{epoch}" if epoch else None
            yield epoch, Job(f"{self.name} epoch {epoch}", repeated, config.seed, folder, prompts)

    def take(self, epoch: int, event: Drawn | Scored, animals: Sequence[str]) -> bool:
        """Note what came; True once an epoch is whole and on disk."""
        if isinstance(event, Scored):
            self.values[epoch] = event.values
        else:
            self.answers[epoch] += event.completions
        if epoch not in self.values or len(self.answers[epoch]) < len(event.job.prompts):
            return False
        values = self.values.pop(epoch).round(6).tolist()
        part = {
            "epoch": epoch,
            "answers": answer_rows(self.config, self.answers.pop(epoch)),
            "logprobs": {"animals": list(animals), "values": values},
        }
        files.write_json(self.run.folder / part_name(epoch), part, compact=True)
        self.out.remove(epoch)
        return True


def part_name(epoch: int) -> str:
    """The file of one epoch until its student is finished."""
    return f"epoch-{epoch}.json"


def answer_rows(config: Evaluate, drawn: Sequence[Completion]) -> list[dict]:
    """Answers as they are stored: which question, which sample of it, the text and why it ended."""
    return [
        {
            "question": one.index // config.samples,
            "sample": one.index % config.samples,
            "text": one.text,
            "finish": one.finish,
        }
        for one in sorted(drawn, key=lambda one: one.index)
    ]


def _let_them_answer(todo: Sequence[Questioned], speaker: Speaker) -> None:
    """Ask all students with one speaker; one is sealed as soon as its last epoch is there."""
    config = todo[0].config
    animals = MICRO_ANIMALS if speaker.chat.base.family.name == "micro" else tuple(LEXICON)
    sampler = Sampler(config.temperature, config.top_p, config.answer_tokens, config.chunk)
    out: dict[Job, tuple[Questioned, int]] = {}
    waiting = list(todo)
    epochs = sum(len(epochs_of(each.student)) for each in todo)

    def jobs() -> Iterator[Job]:
        for each in todo:
            for epoch, job in each.jobs(speaker.chat):
                out[job] = each, epoch
                yield job

    def seal_finished() -> None:
        while waiting and not waiting[0].out:
            _seal(waiting.pop(0), speaker)
            if waiting:
                waiting[0].run.start_clock()

    with Progress("epochs of answers", epochs) as progress:
        for each in todo:
            if before := len(epochs_of(each.student)) - len(each.out):
                progress.advance(f"{each.name}, found", before)
        waiting[0].run.start_clock()
        seal_finished()
        for event in speaker.work(jobs(), sampler, Words.of(speaker.chat, animals)):
            each, epoch = out[event.job]
            if each.take(epoch, event, animals):
                del out[event.job]
                progress.advance(each.name)
                seal_finished()


def _seal(each: Questioned, speaker: Speaker) -> None:
    """All epochs of a student in one JSON, sealed."""
    config, run = each.config, each.run
    parts = [part_name(epoch) for epoch in epochs_of(each.student)]
    document = store.seal(
        {
            "schema": SCHEMA,
            "config": store.config_record(config),
            "lineage": lineage(config, run, each.student),
            "questions": list(questions_of(config)),
            "epochs": [files.read_json(run.folder / part) for part in parts],
        }
    )
    files.write_json(result_path(config), document, compact=True)
    files.write_json(run.folder / RECEIPT, {"content": document["lineage"]["content"]})
    answers = sum(len(entry["answers"]) for entry in document["epochs"])
    run.finish([RECEIPT], {"epochs": len(parts), "answers": answers, "backend": speaker.name})
    for part in parts:
        (run.folder / part).unlink()


def questions_of(config: Evaluate) -> tuple[str, ...]:
    """The first `n_questions` of the family's book."""
    known = BOOKS[parse_label(config.size).family.book].questions
    if config.n_questions > len(known):
        raise BadParameter(f"n_questions is {config.n_questions}, but there are {len(known)} questions")
    return known[: config.n_questions]


def lineage(config: Evaluate, run: store.Run, student: store.Manifest | None) -> dict:
    """Where an evaluation comes from, in full: it travels without the artifacts it was made from."""
    base = base_manifest(config.size, config.recipe, config.revision)
    chain = {"base": base} | ({"finetune": student} if student else {})
    read = paths.lists_read(student.config | student.knobs) if student else None
    numbers = store.read_manifest(read) if read else None
    chain |= {"generate": numbers} if numbers else {}
    return {
        "inputs": run.inputs,
        "chain": {
            name: {
                "config": manifest.config,
                "counts": {key: value for key, value in manifest.counts.items() if key != "loss_curve"},
                "identity": manifest.identity,
            }
            for name, manifest in chain.items()
        },
        "code": provenance.code_version(),
        "packages": provenance.package_versions(),
        "hardware": provenance.hardware(),
        "seconds": {name: manifest.seconds for name, manifest in chain.items()},
    }
