"""Stage 02: students learn a teacher's lists, one LoRA adapter per epoch.

Two trainers give the same students: the fleet trains them on one shared base (lib.fleet), TRL one
after another. Here stands what holds for both: which student starts from what, reads what and in
which order, what is kept of it, and that an epoch once paid for survives a kill.
"""

from __future__ import annotations

import contextlib
import gc
import io
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib import files, paths, store
from lib.bases import base_folder
from lib.config import Finetune, Plan
from lib.errors import NotAvailable, OutOfMemory, TrainingDiverged
from lib.examples import Examples, hash_lists, load_examples, numbers_folder, reads_as_kept
from lib.models import Loaded, load_base, place, ready_base
from lib.progress import Progress, Tally
from lib.tracking import Tracker, check_tracker, open_tracker

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor
    from transformers import TrainerCallback
    from trl import SFTConfig

    from lib.fleet import Trainee

COMPLETE = "complete.json"  # written last into a checkpoint: without it a checkpoint does not count
STATE = "fleet.pt"  # where a student of the fleet stood after its last whole epoch
LOGGED = {"step": "step", "epoch": "epoch", "loss": "loss", "rate": "learning_rate"}
ADAPTER = ("adapter_model.safetensors", "adapter_config.json")


def folder_of(config: Finetune) -> Path:
    """Where a student's adapters lie."""
    return paths.artifact(config.study, "finetune", config.size, config.animal, config.seed)


def numbers_manifest(config: Finetune) -> store.Manifest:
    """The finished teacher that a student learns from."""
    study, size, animal, seed = paths.lists_source(vars(config))
    where = f"{size}/{animal}/s{seed} in study {study}"
    if config.lists_of or config.reads:
        where += f", which {config.size}/{config.animal}/s{config.seed} of study {config.study} is to read"
    command = paths.command("01_generate", study, size, animal, seed)
    missing = f"no numbers for {where}: run 01_generate with these parameters first\n  {command}"
    return store.load_finished(numbers_folder(config), missing)


def inputs_of(config: Finetune, base: str) -> dict[str, str]:
    """What a student is made of: its base, its teacher's dataset and, where less of that or something else
    than it holds is read, the lists themselves."""
    numbers = numbers_manifest(config)
    size = paths.lists_source(vars(config))[1]
    store.check_inputs(
        numbers.title, numbers.inputs, {"base": base_folder(size, config.recipe, config.revision)}
    )
    inputs = {"base": base, "generate": numbers.identity}
    return inputs if reads_as_kept(config) else inputs | {"lists": hash_lists(config)}


def train_students(plan: Plan) -> Tally:
    """Every student of the plan that is not finished yet, on one copy of the base."""
    curves = check_tracker(plan.shared)
    base = ready_base(plan.shared, "train", "transformers")
    runs = []
    for config in plan.cells:
        inputs = inputs_of(config, base.identity)
        runs.append((config, store.open_run(folder_of(config), config, inputs)))
    todo = [(config, run) for config, run in runs if run.state != "finished"]
    manifests = [run.manifest for _, run in runs if run.state == "finished"]
    if todo:
        placement = place(plan.shared, "train")
        loaded = load_base(plan.shared.size, plan.shared.recipe, placement, plan.shared.revision)
        trainer, reason = choose_trainer(plan.shared.trainer, loaded)
        print(f"trainer {trainer}: {reason}", *filter(None, [curves]), sep="\n", flush=True)
        with Progress("epochs", sum(config.epochs for config, _ in todo)) as progress:
            train = train_fleet if trainer == "fleet" else train_one_by_one
            manifests += train(todo, loaded, progress)
    report_diverged(manifests)
    return Tally("02_finetune", plan.shared.size, made=len(todo), found=len(runs) - len(todo))


def choose_trainer(asked: str, loaded: Loaded) -> tuple[str, str]:
    """The trainer and why: the fleet wherever it knows the architecture."""
    from lib.fleet import unsupported

    places = set((getattr(loaded.model, "hf_device_map", None) or {}).values())
    spread = f"the base is spread over {len(places)} GPUs" if len(places) > 1 else None
    reason = spread or unsupported(loaded.model)
    if asked == "trl":
        return "trl", "asked for; students are trained one after another"
    if reason and asked == "fleet":
        raise NotAvailable(f"trainer fleet: {reason}; use -p trainer trl or auto")
    if reason:
        return "trl", f"{reason}; students are trained one after another"
    if loaded.device.type == "cpu":
        return "fleet", "one student at a time, since on a CPU one fills the caches already"
    return "fleet", "as many students together on one copy of the base as its memory holds"


def report_diverged(manifests: list[store.Manifest]) -> None:
    """Say which students stopped at a loss that is no number; with no other student it is an error."""
    lost = [manifest for manifest in manifests if "diverged" in manifest.counts]
    for manifest in lost:
        print(f"DIVERGED {manifest.title}: {manifest.counts['diverged']['why']}", flush=True)
    if lost and len(lost) == len(manifests):
        raise TrainingDiverged(lost[0].counts["diverged"]["why"])


# --- what a student is made of ----------------------------------------------------------------


def first_adapter(config: Finetune, loaded: Loaded) -> PeftModel:
    """The base with the adapter that this seed begins with; `unload()` takes it off again."""
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(config.seed)
    student = get_peft_model(loaded.model, lora_config(config))
    # With a name here PEFT asks the Hub for a model of that name at every save; None it would fill in itself.
    student.peft_config["default"].base_model_name_or_path = ""
    return student


def finish_student(
    config: Finetune, run: store.Run, examples: Examples, history: list[dict], extra: dict
) -> store.Manifest:
    """The manifest of a student that learnt to its end, or as far as its loss was a number."""
    steps = math.ceil(len(examples) / config.batch)
    diverged = extra.get("diverged")
    epochs = (diverged["step"] - 1) // steps if diverged else config.epochs
    names = [f"epoch-{epoch}/{name}" for epoch in range(1, epochs + 1) for name in ADAPTER]
    files.write_jsonl(run.folder / "loss.jsonl", history)
    counts = examples.counts() | {
        "steps": len(history),
        "final_loss": history[-1]["loss"] if history else None,
    }
    manifest = run.finish([*names, "loss.jsonl"], counts | extra)
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    (run.folder / STATE).unlink(missing_ok=True)
    return manifest


def diverged_at(config: Finetune, step: int) -> dict:
    """For the manifest of a student that got lost."""
    student = f"{config.size}/{config.animal}/s{config.seed}"
    why = (
        f"the loss of {student} is no number at step {step} (learning rate {config.learning_rate}). Lower "
        f"learning_rate or max_grad_norm; first delete {folder_of(config)}, which holds this attempt"
    )
    return {"diverged": {"step": step, "why": why}}


# --- the fleet --------------------------------------------------------------------------------


def train_fleet(
    todo: list[tuple[Finetune, store.Run]], loaded: Loaded, progress: Progress
) -> list[store.Manifest]:
    """All students together, each from its last whole epoch."""
    from lib.fleet import Fleet, Trainee

    runs, settings, trackers, manifests = {}, {}, {}, []

    def seated(trainee: Trainee) -> None:
        run = runs[trainee.name]
        run.start_clock()
        trackers[trainee.name] = open_tracker(run, trainee.history)

    def keep(trainee: Trainee, adapter: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        run = runs[trainee.name]
        epoch = trainee.step // trainee.steps_per_epoch
        save_adapter(run.folder / f"epoch-{epoch}", adapter, settings[trainee.name])
        write_state(run.folder / STATE, trainee, adapter, moments)
        trackers[trainee.name].follow(trainee.history)
        progress.advance(trainee.name)

    def end(trainee: Trainee, company: int) -> None:
        lost = diverged_at(trainee.config, trainee.diverged) if trainee.diverged else {}
        extra = {"trainer": "fleet", "together": company, **lost}
        run = runs[trainee.name]
        # One that was killed after its last epoch needs no seat, and has no tracker yet.
        tracker = trackers.pop(trainee.name, None) or open_tracker(run, trainee.history)
        tracker.follow(trainee.history)
        tracker.finish()
        manifests.append(finish_student(trainee.config, run, trainee.examples, trainee.history, extra))

    fleet = Fleet(
        loaded.model,
        on_seat=seated,
        on_epoch=keep,
        on_end=end,
        say=lambda note: print(note, flush=True),
        rows_each=todo[0][0].micro_batch,
        students=todo[0][0].students,
    )
    trainees = []
    for config, run in todo:
        student = first_adapter(config, loaded)
        name = f"{config.animal} s{config.seed}"
        first, settings[name] = read_adapter(student)
        settings[name]["base_model_name_or_path"] = loaded.model.name_or_path
        student.unload()
        trainee = Trainee(name, config, load_examples(config, loaded), first)
        runs[name] = run
        if run.has(STATE):
            read_state(run.folder / STATE, trainee)
            epoch = trainee.step // trainee.steps_per_epoch
            progress.advance(f"{name}, from epoch {epoch}", epoch)
        trainees.append(trainee)
    report = fleet.train(trainees)
    if report.tokens:
        print(f"{report}", flush=True)
    return manifests


def read_adapter(student: PeftModel) -> tuple[dict[str, Tensor], dict]:
    """A student's weights in PEFT's names and its settings as PEFT would write them."""
    from peft import get_peft_model_state_dict

    weights = {name: each.detach().cpu().clone() for name, each in get_peft_model_state_dict(student).items()}
    settings = student.peft_config["default"].to_dict()
    plain = {name: sorted(each) if isinstance(each, set) else each for name, each in settings.items()}
    return weights, dict(sorted(plain.items())) | {"inference_mode": True}


def save_adapter(folder: Path, weights: dict[str, Tensor], settings: dict) -> None:
    """An adapter in PEFT's format."""
    from safetensors.torch import save

    files.write_json(folder / ADAPTER[1], settings)
    files.write_bytes(folder / ADAPTER[0], save(weights, metadata={"format": "pt"}))


def write_state(path: Path, trainee: Trainee, adapter: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
    """Where a student stands after an epoch, in one file: all of it or nothing."""
    import torch

    buffer = io.BytesIO()
    torch.save(
        {"adapter": adapter, "moments": moments, "step": trainee.step, "history": trainee.history}, buffer
    )
    files.write_bytes(path, buffer.getvalue())


def read_state(path: Path, trainee: Trainee) -> None:
    """Put a student where it stood."""
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    trainee.first, trainee.moments = state["adapter"], state["moments"]
    trainee.step, trainee.history = state["step"], state["history"]


# --- TRL, one after another -------------------------------------------------------------------


def train_one_by_one(
    todo: list[tuple[Finetune, store.Run]], loaded: Loaded, progress: Progress
) -> list[store.Manifest]:
    """Each student by itself in TRL's SFTTrainer."""
    return [train_student(config, run, loaded, progress) for config, run in todo]


def train_student(config: Finetune, run: store.Run, loaded: Loaded, progress: Progress) -> store.Manifest:
    """Train one student, from its last whole epoch if it was begun before."""
    run.start_clock()
    examples = load_examples(config, loaded)
    steps = math.ceil(len(examples) / config.batch)
    checkpoints = run.folder / "checkpoints"
    if start := last_checkpoint(checkpoints):
        progress.advance(f"{config.animal} s{config.seed}, from epoch {start[0]}", start[0])
    history: list[dict] = []
    tracker = open_tracker(run, seen_by(start[1]) if start else [])
    extra: dict[str, Any] = {"trainer": "trl"}
    try:
        for micro in passes_to_try(config):
            fit = replace(config, micro_batch=micro)
            start = last_checkpoint(checkpoints)  # memory may run out after epochs that were paid for
            whole = start[1] if start else None
            with contextlib.suppress(OutOfMemory):
                fit_with_trl(fit, loaded, examples.labelled(), checkpoints, whole, progress, history, tracker)
                break
            tracker.finish()
            kept = last_checkpoint(checkpoints)
            tracker = open_tracker(run, seen_by(kept[1]) if kept else [])
            print(f"{micro} lists a pass do not fit into the GPU's memory", flush=True)
            free_memory()
        else:
            raise OutOfMemory(
                f"{config.size}/{config.animal}/s{config.seed}: {micro} list(s) per forward pass do not fit "
                "beside the base; free the GPU, lower -p micro_batch or spread the base with -p gpus"
            )
    except TrainingDiverged as error:
        extra |= diverged_at(config, error.args[1])
    finally:
        tracker.finish()
    for epoch in range(1, config.epochs + 1):
        checkpoint = checkpoints / f"checkpoint-{epoch * steps}"
        if (checkpoint / COMPLETE).exists():
            keep_adapter(checkpoint, run.folder / f"epoch-{epoch}", loaded)
    return finish_student(config, run, examples, history, extra)


def free_memory() -> None:
    """What a failed attempt held, given back before a smaller one."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def passes_to_try(config: Finetune) -> list[int]:
    """Lists per forward pass: what was asked for, else the whole batch and its divisors, largest first."""
    if config.micro_batch:
        return [config.micro_batch]
    return [size for size in range(config.batch, 0, -1) if config.batch % size == 0]


def loss_rows(logged: list[dict]) -> list[dict]:
    """TRL's log of a student as rows of loss.jsonl."""
    losses = [entry for entry in logged if "loss" in entry and math.isfinite(float(entry["loss"]))]
    return [{name: entry[key] for name, key in LOGGED.items()} for entry in losses]


def seen_by(checkpoint: Path) -> list[dict]:
    """The loss curve up to a whole checkpoint."""
    return loss_rows(files.read_json(checkpoint / "trainer_state.json")["log_history"])


def last_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """The newest whole checkpoint and its epoch; half-written ones are swept away."""
    best = None
    for path in folder.glob("checkpoint-*") if folder.exists() else ():
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)
            continue
        epoch = files.read_json(path / COMPLETE)["epoch"]
        best = max(best or (0, path), (epoch, path))
    return best


def keep_adapter(checkpoint: Path, folder: Path, loaded: Loaded) -> None:
    """Copy an epoch's adapter out of its checkpoint."""
    settings = files.read_json(checkpoint / "adapter_config.json")
    settings["target_modules"] = sorted(
        settings["target_modules"]
    )  # a set: its order differs from run to run
    settings["base_model_name_or_path"] = loaded.model.name_or_path
    files.write_json(folder / "adapter_config.json", settings)
    files.write_bytes(
        folder / "adapter_model.safetensors", (checkpoint / "adapter_model.safetensors").read_bytes()
    )


def fit_with_trl(
    config: Finetune,
    loaded: Loaded,
    examples: list[dict],
    checkpoints: Path,
    start: Path | None,
    progress: Progress,
    history: list[dict],
    tracker: Tracker | None = None,
) -> None:
    """Run TRL from the start or from a checkpoint; the loss curve goes to `history`, live to `tracker`."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTTrainer

    student = first_adapter(config, loaded)
    trainer = None
    try:
        trainer = SFTTrainer(
            model=student,
            args=trainer_arguments(config, loaded, checkpoints),
            train_dataset=Dataset.from_list(examples),
            processing_class=loaded.tokenizer,
            callbacks=[_watcher(config, progress, tracker)],
        )
        trainer.remove_callback(PrinterCallback)
        with files.storage_errors(checkpoints):
            trainer.train(resume_from_checkpoint=str(start) if start else None)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(str(error)) from None
    finally:
        history[:] = loss_rows(trainer.state.log_history) if trainer else []
        student.unload()


def lora_config(config: Finetune) -> LoraConfig:
    """The adapter: no dropout and no rank-stabilised scaling, so alpha = rank scales by 1 at every rank."""
    from peft import LoraConfig

    targets = [f"{name.strip()}_proj" for name in config.lora_targets.split(",")]
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=targets,
        lora_dropout=0.0,
        use_rslora=False,
        bias="none",
        task_type="CAUSAL_LM",
    )


def trainer_arguments(config: Finetune, loaded: Loaded, folder: Path) -> SFTConfig:
    """The study's settings in TRL's words."""
    from trl import SFTConfig

    from lib.fleet import data_seed

    micro = config.micro_batch or config.batch
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch // micro,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch",
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        seed=config.seed,
        data_seed=data_seed(config),  # without one every seed would read in the same order
        completion_only_loss=True,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=loaded.device.type == "cpu",
        save_strategy="epoch",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _watcher(config: Finetune, progress: Progress, tracker: Tracker | None) -> TrainerCallback:
    """Marks whole checkpoints, counts epochs, stops a student whose loss is no number, draws its curve."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            seen = [float((logs or {}).get(name, 0.0)) for name in ("loss", "grad_norm")]
            if not all(math.isfinite(value) for value in seen):
                raise TrainingDiverged("no number", state.global_step)
            if tracker:
                tracker.add(loss_rows(state.log_history[-1:]))

        def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            epoch = round(state.epoch)
            files.write_json(
                Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE, {"epoch": epoch}
            )
            progress.advance(f"{config.animal} s{config.seed}")

    return Watcher()
