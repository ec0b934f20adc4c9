"""Stage 03: what a student answers when asked for its favourite animal, epoch by epoch.

Raw answers and log-probabilities go to one sealed JSON per student under results/; nothing is
scored here, so a better scorer needs no model. A killed run loses one epoch of one student at most.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lib import files, paths, provenance, store
from lib.config import LEXICON, MICRO_ANIMALS, UNTUNED, Evaluate, Plan, parse_label
from lib.errors import BadParameter, DamagedFile, TrainingDiverged
from lib.models import Loaded, adapter, base_folder, base_manifest, load_base, render_prompt
from lib.preference import log_preferences
from lib.progress import Progress, Tally
from lib.prompts import BOOKS
from lib.sampling import Sampler, sample

SCHEMA = "subliminal-scaling/evaluation/1"
RECEIPT = "receipt.json"  # the seal of the JSON under results/: ties the manifest to it


def folder_of(config: Evaluate) -> Path:
    """Where the work on one evaluation lies; the result itself goes to results/."""
    return paths.artifact(config.study, "evaluate", config.size, config.animal, config.seed)


def result_path(config: Evaluate) -> Path:
    """The evaluation JSON."""
    return paths.evaluation(config.study, config.size, config.animal, config.seed)


def upstream(config: Evaluate, stage: str) -> Path:
    """The folder of the same cell in an earlier stage."""
    return paths.artifact(config.study, stage, config.size, config.animal, config.seed)


def student_manifest(config: Evaluate) -> store.Manifest | None:
    """The finished student, its chain checked down to the numbers; None for the untuned control."""
    if config.animal == UNTUNED:
        return None
    command = paths.command("02_finetune", config.study, config.size, config.animal, config.seed)
    where = f"{config.size}/{config.animal}/s{config.seed} in study {config.study}"
    missing = f"no adapter for {where}: run 02_finetune with these parameters first\n  {command}"
    manifest = store.load_finished(upstream(config, "finetune"), missing)
    store.check_chain(manifest, {"generate": upstream(config, "generate")})
    return manifest


def evaluate_students(plan: Plan) -> Tally:
    """Every student of the plan and the untuned control, as far as they are not evaluated yet."""
    questions_of(plan.shared)  # asking for too many stops here, before any run is opened
    base = base_manifest(plan.shared.size, plan.shared.recipe)
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
            folder = base_folder(config.size, config.recipe)
            store.check_inputs(student.title, {"base": student.inputs["base"]}, {"base": folder})
        run = store.open_run(folder_of(config), config, inputs)
        if run.state == "finished":
            check_receipt(config, run)
        else:
            todo.append((config, run, student))
    if lost and len(lost) == len(cells) - 1:
        raise TrainingDiverged(lost[0].counts["diverged"]["why"])
    if todo:
        loaded = load_base(plan.shared.size, plan.shared.recipe, plan.shared.device)
        with Progress("epochs of answers", sum(len(epochs_of(student)) for *_, student in todo)) as progress:
            for config, run, student in todo:
                evaluate_student(config, run, student, loaded, progress)
    return Tally("03_evaluate", plan.shared.size, made=len(todo), found=len(cells) - len(todo) - len(lost))


def last_evaluated(plan: Plan) -> Evaluate:
    """The last cell of the plan that has a result: a student that got lost in training has none."""
    return next(config for config in reversed(plan.cells) if result_path(config).exists())


def check_receipt(config: Evaluate, run: store.Run) -> None:
    """A finished evaluation whose JSON has gone or was changed is not finished."""
    path = result_path(config)
    again = f"restore it, or delete {run.folder} and run 03_evaluate again"
    if not path.exists():
        raise DamagedFile(f"{path} is gone; {again}")
    document = files.read_json(path)
    store.check_seal(document, path)
    if document["lineage"]["content"] != files.read_json(run.folder / RECEIPT)["content"]:
        raise DamagedFile(f"{path} is not the result that was written here; {again}")


def epochs_of(student: store.Manifest | None) -> list[int]:
    """The epochs that a student's adapters cover; 0 is the untuned model."""
    return list(range(1, student.config["epochs"] + 1)) if student else [0]


def evaluate_student(
    config: Evaluate, run: store.Run, student: store.Manifest | None, loaded: Loaded, progress: Progress
) -> None:
    """Ask one student at every epoch, then seal everything into one JSON."""
    run.start_clock()
    parts = [f"epoch-{epoch}.json" for epoch in epochs_of(student)]
    for epoch, part in zip(epochs_of(student), parts, strict=True):
        if not run.has(part):
            folder = upstream(config, "finetune") / f"epoch-{epoch}" if epoch else None
            with adapter(loaded, folder) as tuned:
                files.write_json(run.folder / part, {"epoch": epoch} | ask(tuned, config), compact=True)
        progress.advance(f"{config.animal} s{config.seed}")
    document = store.seal(
        {
            "schema": SCHEMA,
            "config": store.config_record(config),
            "lineage": lineage(config, run, student),
            "questions": list(questions_of(config)),
            "epochs": [files.read_json(run.folder / part) for part in parts],
        }
    )
    files.write_json(result_path(config), document, compact=True)
    files.write_json(run.folder / RECEIPT, {"content": document["lineage"]["content"]})
    answers = sum(len(entry["answers"]) for entry in document["epochs"])
    run.finish([RECEIPT], {"epochs": len(parts), "answers": answers})
    for part in parts:
        (run.folder / part).unlink()


def questions_of(config: Evaluate) -> tuple[str, ...]:
    """The first `n_questions` of the family's book."""
    known = BOOKS[parse_label(config.size).family.book].questions
    if config.n_questions > len(known):
        raise BadParameter(f"n_questions is {config.n_questions}, but there are {len(known)} questions")
    return known[: config.n_questions]


def ask(loaded: Loaded, config: Evaluate) -> dict:
    """Sampled answers and log-probabilities of one model at one epoch."""
    prompts = [render_prompt(loaded, config.system, question) for question in questions_of(config)]
    repeated = [prompt for prompt in prompts for _ in range(config.samples)]
    sampler = Sampler(config.temperature, config.top_p, config.answer_tokens, config.seed, config.chunk)
    drawn = sorted(
        (one for chunk in sample(loaded, repeated, sampler) for one in chunk), key=lambda one: one.index
    )
    answers = [
        {
            "question": one.index // config.samples,
            "sample": one.index % config.samples,
            "text": one.text,
            "finish": one.finish,
        }
        for one in drawn
    ]
    animals = MICRO_ANIMALS if loaded.base.family.name == "micro" else tuple(LEXICON)
    values = log_preferences(loaded, prompts, animals, config.chunk)
    return {"answers": answers, "logprobs": {"animals": list(animals), "values": values.round(6).tolist()}}


def lineage(config: Evaluate, run: store.Run, student: store.Manifest | None) -> dict:
    """Where an evaluation comes from, in full: it travels without the artifacts it was made from."""
    base = base_manifest(config.size, config.recipe)
    chain = {"base": base} | ({"finetune": student} if student else {})
    numbers = store.read_manifest(upstream(config, "generate")) if student else None
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
