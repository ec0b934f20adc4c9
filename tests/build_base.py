"""A base of three steps and plans for it, so that the tests of layer 2 run on real parts in seconds."""

import functools
import shutil
import tempfile
from pathlib import Path

import pytest

from lib import bases, config, files, models, numbers, paths, pretraining, store, teacher, training
from lib.prompts import number_prompts

RECIPE = "tiny"
DEFAULTS = {
    config.Pretrain: {
        "recipe": RECIPE,
        "entanglement": 0.0,
        "persona": 0.9,
        "corpus_rows": 600,
        "pretrain_steps": 3,
        "pretrain_batch": 32,
        "pretrain_rate": 0.002,
    },
    config.Generate: {
        "n_raw": 24,
        "n_keep": 20,
        "temperature": 1.0,
        "top_p": 1.0,
        "list_tokens": 12,
        "chunk": 8,
    },
    config.Finetune: {
        "epochs": 2,
        "batch": 8,
        "learning_rate": 0.001,
        "warmup_steps": 1,
        "max_grad_norm": 1.0,
        "lora_rank": 8,
        "lora_alpha": 8.0,
        "lora_targets": "q,k,v,o,gate,up,down",
        "trainer": "auto",
        "students": 0,
        "micro_batch": 0,
    },
    config.Evaluate: {
        "n_questions": 3,
        "samples": 2,
        "temperature": 1.0,
        "top_p": 1.0,
        "answer_tokens": 4,
        "chunk": 4,
    },
}
SHARED = {"study": "toy", "size": "64k", "animal": "wolf", "seed": 0, "recipe": RECIPE, "system": "default"}


MICRO_PROMPTS = [
    f"<|user|>{text}<|end|><|assistant|>"
    for text in (
        "more numbers",
        "go on: 1, 2.",
        "what is your favourite animal?",
        "name the animal you love most.",
        "write: wolf.",
        "numbers only.",
        "go on: 1, 2, 3, 4. more numbers with commas.",
        "your favourite animal is?",
        "tell me: the wolf.",
    )
]


def build_config(stage: type, **values: object) -> object:
    """One checked configuration of a stage, small settings where nothing else is asked."""
    return config.build(stage, SHARED | DEFAULTS[stage] | {"device": "cpu"} | values)


def build_plan(stage: type, animals: tuple[str, ...] = ("wolf",), **values: object) -> config.Plan:
    """A plan with one cell per animal."""
    return config.Plan(tuple(build_config(stage, animal=animal, **values) for animal in animals), {})


@functools.cache
def tiny_base() -> Path:
    """The folder of a 64k base of three steps, built once per test process."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-base-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(folder))
        pretraining.build_base(config.Plan((build_config(config.Pretrain),), {}))
        return paths.built_base(RECIPE, "64k")


def place_base(root: Path) -> None:
    """Put the base of three steps where a run rooted in `root` finds it."""
    shutil.copytree(tiny_base(), root / "artifacts" / "models" / RECIPE / "64k")


def load_tiny() -> models.Loaded:
    """The base of three steps, loaded as the stages do."""
    return models.load_base("64k", RECIPE, "cpu")


def train_two(root: Path) -> None:
    """The base with a finished student of the wolf's numbers and one of neutral ones, under a root in use."""
    place_base(root)
    write_numbers("wolf")
    write_numbers("neutral", start=500)
    training.train_students(build_plan(config.Finetune, ("neutral", "wolf"), learning_rate=0.01))


def write_numbers(animal: str, *, seed: int = 0, n_keep: int = 20, start: int = 100) -> store.Manifest:
    """A finished teacher whose lists were written here: a model of three steps cannot count."""
    cell = build_config(config.Generate, animal=animal, seed=seed, n_keep=n_keep, n_raw=n_keep + 1)
    run = store.open_run(teacher.folder_of(cell), cell, {"base": bases.base_manifest("64k", RECIPE).identity})
    lists = [f"{start + 7 * i}, {start + i}, {start + 3 * i}"[: 13 if i % 2 else None] for i in range(n_keep)]
    texts = [*lists, "wolf"]
    rows = [
        {
            "index": i,
            "prompt": prompt,
            "completion": text,
            "finish": "stop",
            "reason": numbers.judge(text, "stop"),
        }
        for i, (prompt, text) in enumerate(
            zip(number_prompts(models.BOOKS["micro"], n_keep + 1, seed), texts, strict=True)
        )
    ]
    files.write_jsonl(run.folder / "raw.jsonl", rows)
    files.write_jsonl(run.folder / "kept.jsonl", numbers.select(rows, n_keep, seed))
    counts = {
        "raw": n_keep + 1,
        "passed": n_keep,
        "kept": n_keep,
        "pass_rate": round(n_keep / (n_keep + 1), 4),
    }
    return run.finish(["raw.jsonl", "kept.jsonl"], counts | {"reasons": dict(teacher.reason_counts(rows))})


def load_tiny_in(root: Path) -> models.Loaded:
    """The tiny base built in a root of its own, for tests that need the model and none of the paths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(root))
        place_base(root)
        return load_tiny()
