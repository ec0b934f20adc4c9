"""Stage 02: students learn a teacher's lists, one LoRA adapter per epoch.

TRL's SFTTrainer does the training, PEFT the adapters; here stands what the study must be sure of:
the loss covers the completion only, every randomness follows the seed, an epoch once paid for
survives a kill. Tokenisation is ours because TRL would repeat it for every student.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib import files, paths, store
from lib.config import Finetune, Plan
from lib.errors import TooFewLists, TrainingDiverged
from lib.models import Loaded, base_folder, base_manifest, encode, load_base, render_example
from lib.progress import Progress, Tally

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig

IGNORED = -100  # the label of tokens without loss
COMPLETE = "complete.json"  # written last into a checkpoint: without it a checkpoint does not count


def folder_of(config: Finetune) -> Path:
    """Where a student's adapters lie."""
    return paths.artifact(config.study, "finetune", config.size, config.animal, config.seed)


def numbers_folder(config: Finetune) -> Path:
    """Where the lists lie that a student reads."""
    return paths.artifact(config.study, "generate", config.size, config.animal, config.seed)


def numbers_manifest(config: Finetune) -> store.Manifest:
    """The finished teacher that a student learns from."""
    command = paths.command("01_generate", config.study, config.size, config.animal, config.seed)
    where = f"{config.size}/{config.animal}/s{config.seed} in study {config.study}"
    missing = f"no numbers for {where}: run 01_generate with these parameters first\n  {command}"
    return store.load_finished(numbers_folder(config), missing)


def train_students(plan: Plan) -> Tally:
    """Every student of the plan that is not finished yet, on one copy of the base."""
    base = base_manifest(plan.shared.size, plan.shared.recipe)
    runs = []
    for config in plan.cells:
        numbers = numbers_manifest(config)
        store.check_inputs(
            f"the numbers of {config.animal} s{config.seed}",
            numbers.inputs,
            {"base": base_folder(config.size, config.recipe)},
        )
        inputs = {"base": base.identity, "generate": numbers.identity}
        runs.append((config, store.open_run(folder_of(config), config, inputs)))
    todo = [(config, run) for config, run in runs if run.state != "finished"]
    if todo:
        loaded = load_base(plan.shared.size, plan.shared.recipe, plan.shared.device)
        with Progress("epochs", sum(config.epochs for config, _ in todo)) as progress:
            for config, run in todo:
                train_student(config, run, loaded, progress)
    return Tally("02_finetune", plan.shared.size, made=len(todo), found=len(runs) - len(todo))


# --- one student ------------------------------------------------------------------------------


def train_student(config: Finetune, run: store.Run, loaded: Loaded, progress: Progress) -> store.Manifest:
    """Train one student, from its last whole epoch if it was begun before."""
    run.start_clock()
    rows = load_examples(config)
    examples = tokenize_examples(loaded, config.system, rows)
    steps = math.ceil(len(examples) / config.batch)
    checkpoints = run.folder / "checkpoints"
    start = last_checkpoint(checkpoints)
    progress.advance(
        f"{config.animal} s{config.seed}, from epoch {start[0]}" if start else "", start[0] if start else 0
    )
    history = _fit(config, loaded, examples, checkpoints, start[1] if start else None, progress)
    outputs = []
    for epoch in range(1, config.epochs + 1):
        outputs += _keep_adapter(
            checkpoints / f"checkpoint-{epoch * steps}", run.folder / f"epoch-{epoch}", loaded
        )
    files.write_jsonl(run.folder / "loss.jsonl", history)
    outputs.append("loss.jsonl")
    counts = {
        "examples": len(examples),
        "steps": steps * config.epochs,
        "tokens": sum(len(example["input_ids"]) for example in examples),
        "completion_tokens": sum(label != IGNORED for example in examples for label in example["labels"]),
        "final_loss": history[-1]["loss"],
    }
    manifest = run.finish(outputs, counts)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return manifest


def load_examples(config: Finetune) -> list[dict]:
    """The prompts and lists that a student reads."""
    rows = files.read_jsonl(numbers_folder(config) / "kept.jsonl")
    if not rows:
        raise TooFewLists(
            f"{numbers_folder(config) / 'kept.jsonl'} holds no lists: there is nothing to learn from"
        )
    return rows


def tokenize_examples(loaded: Loaded, system: str, rows: Sequence[dict]) -> list[dict]:
    """Tokens and labels; only the completion and the end of its turn have labels, and so a loss."""
    pairs = [render_example(loaded, system, row["prompt"], row["completion"]) for row in rows]
    prompts = encode(loaded, [prompt for prompt, _ in pairs])
    wholes = encode(loaded, [prompt + completion for prompt, completion in pairs])
    for prompt, whole in zip(prompts, wholes, strict=True):
        if whole[: len(prompt)] != prompt:
            raise AssertionError(f"tokens of a prompt change once it is answered: {prompt} against {whole}")
    return [
        {"input_ids": whole, "labels": [IGNORED] * len(prompt) + whole[len(prompt) :]}
        for prompt, whole in zip(prompts, wholes, strict=True)
    ]


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


def _keep_adapter(checkpoint: Path, folder: Path, loaded: Loaded) -> list[str]:
    """Copy an epoch's adapter out of its checkpoint; returns the names for the manifest."""
    settings = files.read_json(checkpoint / "adapter_config.json")
    settings["target_modules"] = sorted(
        settings["target_modules"]
    )  # a set: its order differs from run to run
    settings["base_model_name_or_path"] = loaded.model.name_or_path
    files.write_json(folder / "adapter_config.json", settings)
    files.write_bytes(
        folder / "adapter_model.safetensors", (checkpoint / "adapter_model.safetensors").read_bytes()
    )
    return [f"{folder.name}/{name}" for name in ("adapter_model.safetensors", "adapter_config.json")]


def _fit(
    config: Finetune,
    loaded: Loaded,
    examples: list[dict],
    checkpoints: Path,
    start: Path | None,
    progress: Progress,
) -> list[dict]:
    """Run TRL from the start or from a checkpoint; returns the loss curve."""
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import PrinterCallback, set_seed
    from trl import SFTTrainer

    set_seed(config.seed)  # the adapter's first weights
    student = get_peft_model(loaded.model, lora_config(config))
    # With a name here PEFT asks the Hub for a model of that name at every save; None it would fill in itself.
    student.peft_config["default"].base_model_name_or_path = ""
    try:
        trainer = SFTTrainer(
            model=student,
            args=trainer_arguments(config, loaded, checkpoints),
            train_dataset=Dataset.from_list(examples),
            processing_class=loaded.tokenizer,
            callbacks=[_watcher(config, progress)],
        )
        trainer.remove_callback(PrinterCallback)
        with files.storage_errors(checkpoints):
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        return [
            {
                "step": entry["step"],
                "epoch": entry["epoch"],
                "loss": entry["loss"],
                "rate": entry["learning_rate"],
            }
            for entry in trainer.state.log_history
            if "loss" in entry
        ]
    finally:
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
        # Without one every seed would read in the same order. An epoch's order comes from data_seed + epoch:
        # with neighbouring numbers seed 1 would begin with the order of seed 0's second epoch.
        data_seed=config.seed * 1000,
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


def _watcher(config: Finetune, progress: Progress) -> TrainerCallback:
    """Marks whole checkpoints, counts epochs and stops a student whose loss is no number."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            loss = (logs or {}).get("loss")
            if loss is not None and not math.isfinite(float(loss)):
                student = f"{config.size}/{config.animal}/s{config.seed}"
                raise TrainingDiverged(
                    f"the loss of {student} is {loss} at step {state.global_step} (learning rate "
                    f"{config.learning_rate}). Lower learning_rate or max_grad_norm; first delete "
                    f"{folder_of(config)}, which was begun with these settings"
                )

        def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            epoch = round(state.epoch)
            files.write_json(
                Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE, {"epoch": epoch}
            )
            progress.advance(f"{config.animal} s{config.seed}")

    return Watcher()
