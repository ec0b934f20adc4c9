"""Students for the tests of the fleet, and the same students trained one by one through TRL and PEFT."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from build_base import build_config
from peft import get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PrinterCallback,
    Qwen2Config,
    Qwen3Config,
    set_seed,
)
from transformers.trainer_utils import SaveStrategy
from trl import SFTTrainer

from lib import examples, fleet, training
from lib.config import Finetune
from lib.examples import IGNORED, Examples
from lib.models import Loaded

SETTINGS = {"batch": 4, "epochs": 15, "learning_rate": 0.005, "warmup_steps": 5, "max_grad_norm": 0.5}
# Animal, seed, lists and micro-batch of TRL: 60 steps with one row in the last of each epoch, 45, and 30.
STUDENTS = (("wolf", 0, 13, 2), ("fox", 1, 12, 0), ("bear", 2, 6, 1))
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.1,
}
SHAPES = {
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=4, tie_word_embeddings=False),
    "mistral grouped": MistralConfig(**SHAPE, num_key_value_heads=1),
    "qwen2 grouped": Qwen2Config(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3 grouped": Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True),
}


# --- what is trained --------------------------------------------------------------------------


def build_model(kind: str, loaded: Loaded) -> PreTrainedModel:
    """A tiny model of another architecture with the vocabulary of `loaded`, no bias of it zero."""
    config = copy.deepcopy(SHAPES[kind])
    config.vocab_size = loaded.model.config.vocab_size
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, weight in model.named_parameters():
            if name.endswith(".bias"):
                nn.init.normal_(weight, std=0.3)
    model.name_or_path = kind
    return model.eval().requires_grad_(False)


def build_examples(loaded: Loaded, seed: int, count: int) -> Examples:
    """Tokenised chats with lists of one to eight numbers: rows of unequal length."""
    rng = np.random.default_rng(seed)
    lists = []
    for _ in range(count):
        given, said = (rng.integers(1000, size=rng.integers(1, most)) for most in (4, 9))
        prompt = f"more numbers after {', '.join(map(str, given))}"
        lists.append({"prompt": prompt, "completion": ", ".join(map(str, said))})
    return examples.tokenize(loaded, "default", lists)


def build_trainees(
    loaded: Loaded, students: Sequence[tuple] = STUDENTS, **values: object
) -> list[fleet.Trainee]:
    """Students of several seeds, each with data and a first adapter of its own."""
    trainees = []
    for animal, seed, count, micro in students:
        config = build_config(Finetune, animal=animal, seed=seed, micro_batch=micro, **SETTINGS | values)
        data = build_examples(loaded, seed + 10, count)
        trainees.append(fleet.Trainee(animal, config, data, first_adapter(loaded, config)))
    return trainees


def first_adapter(loaded: Loaded, config: Finetune) -> dict[str, Tensor]:
    """What PEFT starts this student from."""
    set_seed(config.seed)
    student = get_peft_model(loaded.model, training.lora_config(config))
    student.peft_config["default"].base_model_name_or_path = ""
    try:
        return adapter_of(student)
    finally:
        student.unload()


def adapter_of(student: nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in get_peft_model_state_dict(student).items()}


# --- one by one -------------------------------------------------------------------------------


@dataclass
class Course:
    """One student's training: what was computed at each step, and what came of it."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    adapter: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class Watched(SFTTrainer):
    """TRL's trainer, its losses kept unrounded and added up over the micro-batches of a step."""

    def __init__(self, *args: object, **rest: object) -> None:
        super().__init__(*args, **rest)
        self.losses: list[float] = []

    def compute_loss(self, model: nn.Module, inputs: dict, *args: object, **rest: object) -> Tensor:
        if self.model.dtype == torch.float64:
            loss = loss_in_float64(model, inputs) / rest["num_items_in_batch"]
        else:
            loss = super().compute_loss(model, inputs, *args, **rest)
        self.losses += [0.0] * (self.state.global_step + 1 - len(self.losses))
        self.losses[-1] += loss.item()
        return loss


def loss_in_float64(model: nn.Module, inputs: dict) -> Tensor:
    """Summed over tokens. The loss of TRL and transformers casts logits to float32 on its way."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    targets = inputs["labels"][:, 1:].flatten()
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum"
    )


def train_alone(loaded: Loaded, trainee: fleet.Trainee, folder: Path) -> Course:
    """One student through TRL and PEFT, as lib.training does it."""
    from datasets import Dataset

    config = trainee.config
    set_seed(config.seed)
    student = get_peft_model(loaded.model, training.lora_config(config))
    student.peft_config["default"].base_model_name_or_path = ""  # else PEFT asks the Hub for it
    arguments = training.trainer_arguments(config, loaded, folder)
    arguments.save_strategy = SaveStrategy.NO
    try:
        trainer = Watched(
            model=student,
            args=arguments,
            train_dataset=Dataset.from_list(trainee.examples.labelled()),
            processing_class=loaded.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert [entry["step"] for entry in logged] == list(range(1, len(trainer.losses) + 1))
        return Course(
            trainer.losses,
            [entry["grad_norm"] for entry in logged],
            [entry["learning_rate"] for entry in logged],
            [entry["epoch"] for entry in logged],
            adapter_of(student),
            _moments_of(trainer, student),
        )
    finally:
        student.unload()
        loaded.model.eval()


def _moments_of(trainer: SFTTrainer, student: nn.Module) -> dict[str, dict[str, Tensor]]:
    state = trainer.optimizer.optimizer.state
    named = {name.replace(".default.", "."): weight for name, weight in student.named_parameters()}
    return {
        moment: {name: state[weight][moment] for name, weight in named.items() if weight.requires_grad}
        for moment in ("exp_avg", "exp_avg_sq")
    }


# --- together ---------------------------------------------------------------------------------


@dataclass
class Voyage:
    """What a fleet handed out: adapters, moments and histories by student and epoch, and who ended."""

    adapters: dict[tuple[str, int], dict[str, Tensor]] = field(default_factory=dict)
    moments: dict[tuple[str, int], dict[str, Tensor]] = field(default_factory=dict)
    histories: dict[tuple[str, int], list[dict]] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    report: fleet.Report = field(default_factory=fleet.Report)

    def on_epoch(
        self, trainee: fleet.Trainee, adapter: dict[str, Tensor], moments: dict[str, Tensor]
    ) -> None:
        key = trainee.name, trainee.step // trainee.steps_per_epoch
        assert key not in self.adapters
        self.adapters[key], self.moments[key] = adapter, moments
        self.histories[key] = list(trainee.history)

    def on_end(self, trainee: fleet.Trainee, company: int) -> None:
        self.ended.append(trainee.name)

    def last(self, trainee: fleet.Trainee) -> dict[str, Tensor]:
        return self.adapters[trainee.name, trainee.config.epochs]


def train_together(
    model: PreTrainedModel, trainees: Sequence[fleet.Trainee], students: int = 0, rows_each: int = 3
) -> Voyage:
    """The trainees through the fleet, all at once where `students` does not say otherwise."""
    voyage = Voyage()
    sailing = fleet.Fleet(
        model,
        voyage.on_epoch,
        on_end=voyage.on_end,
        students=students or len(trainees),
        rows_each=rows_each,
        compiled=False,
    )
    voyage.report = sailing.train(trainees)
    return voyage


def fresh(trainees: Sequence[fleet.Trainee]) -> list[fleet.Trainee]:
    """Copies that have not seen a step."""
    return [fleet.Trainee(each.name, each.config, each.examples, each.first) for each in trainees]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of any weight."""
    assert one.keys() == other.keys()
    return max(float((weight.double() - other[name].double()).abs().max()) for name, weight in one.items())


def losses_apart(history: list[dict], losses: Sequence[float]) -> float:
    """The largest relative difference of any step's loss."""
    assert [entry["step"] for entry in history] == list(range(1, len(losses) + 1))
    return max(abs(entry["loss"] - loss) / loss for entry, loss in zip(history, losses, strict=True))
