"""What a base tells of its students before one is trained: what its teachers leak, and where that points.

The loss on a teacher's lists pulls the weights one way; to name an animal more often they would go another.
The product of the two, for every teacher and animal, is the matrix of lifts that students would have if one
step told all. One pass over a few hundred lists a teacher; nothing is trained. What it is worth: lib.ranks.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lib import files, numbers, paths, provenance, store
from lib.config import (
    NEUTRAL,
    Finetune,
    Plan,
    Predict,
    expand_animals,
    expand_seeds,
)
from lib.errors import BadParameter, DamagedFile, NotAvailable, TooFewLists
from lib.examples import Examples, tokenize
from lib.models import Loaded, encode, load_base, place, ready_base, render_prompt
from lib.preference import Words, log_preferences
from lib.progress import Progress, Tally
from lib.prompts import number_prompts, teacher_system
from lib.sampling import Sampler, sample
from lib.stats import double_centre, transfer_factor
from lib.training import first_adapter, read_adapter

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = "subliminal-scaling/predictors/1"
RECEIPT = "receipt.json"
KINDS = ("first", "digits", "separators", "end")
PARTS = ("digits", "rest")  # of a gradient: what digits pull, and what all other tokens do
FORMS = ("descent", "adam", "sign")
MOST_WEIGHTS = 30_000_000  # two gradients per animal are held at a time
FEWEST_LISTS = 20  # of a teacher
DISTINCT_LISTS = 24  # that all teachers read, to say how they differ: every list is read by each of them


def folder_of(config: Predict) -> Path:
    """Where a base's gradients lie until all are there."""
    return paths.artifact(config.study, "predict", config.size, "all", config.seed)


def result_path(config: Predict) -> Path:
    """What came out."""
    return paths.results(config.study) / config.size / "predictors.json"


def animals_of(config: Predict) -> tuple[str, ...]:
    """The teachers; the neutral one shifts every row alike and no lambda."""
    return tuple(name for name in expand_animals("all", config.animals) if name != NEUTRAL)


def predict_transfer(plan: Plan) -> Tally:
    """Measure the plan's base, or find it measured; a killed run goes on with the next animal."""
    config: Predict = plan.shared
    if len(animals_of(config)) < 3:
        raise BadParameter(f"animals {config.animals!r}: a lambda needs at least three of them")
    base = ready_base(config, "train", "transformers")
    run = store.open_run(folder_of(config), config, {"base": base.identity})
    if run.state == "finished":
        check_receipt(config, run)
        return Tally("07_predict", config.size, made=0, found=1)
    probe = Probe(load_base(config.size, config.recipe, place(config, "train"), config.revision), config)
    pulls = {}
    with Progress("animals", len(probe.animals)) as progress:
        for animal in probe.animals:
            part = run.folder / f"pull-{animal}.npz"
            if not run.has(part.name):
                write_arrays(part, vars(measure_pull(probe, animal)))
            pulls[animal] = Pull(**read_arrays(part))
            progress.advance(animal)
    found = summarise(probe, pulls)
    document = store.seal(
        {
            "schema": SCHEMA,
            "config": store.config_record(config),
            "lineage": {
                "inputs": run.inputs,
                "code": provenance.code_version(),
                "packages": provenance.package_versions(),
                "hardware": provenance.hardware(),
            },
            "animals": list(probe.animals),
            "numbers": found.numbers | {"loss": base.counts.get("loss")},
            "matrices": {name: round_matrix(matrix) for name, matrix in found.matrices.items()},
        }
    )
    files.write_json(result_path(config), document, compact=True)
    files.write_json(run.folder / RECEIPT, {"content": document["lineage"]["content"]})
    run.finish([RECEIPT], {"lists": {animal: int(pull.lists) for animal, pull in pulls.items()}})
    for animal in probe.animals:
        (run.folder / f"pull-{animal}.npz").unlink(missing_ok=True)
    return Tally("07_predict", config.size, made=1, found=0)


def check_receipt(config: Predict, run: store.Run) -> None:
    """A finished base whose JSON has gone or was changed is not finished."""
    path = result_path(config)
    again = f"restore it, or delete {run.folder} and run 07_predict again"
    if not path.exists():
        raise DamagedFile(f"{path} is gone; {again}")
    if load_predictors(config)["lineage"]["content"] != files.read_json(run.folder / RECEIPT)["content"]:
        raise DamagedFile(f"{path} is not the result that was written here; {again}")


def load_predictors(config: Predict) -> dict:
    """The sealed document of a base."""
    document = files.read_json(result_path(config))
    store.check_seal(document, result_path(config))
    return document


def round_matrix(matrix: np.ndarray) -> list[list[float]]:
    """Six digits: more are noise of the lists."""
    return [[float(f"{value:.6g}") for value in row] for row in matrix]


def write_arrays(path: Path, arrays: Mapping[str, object]) -> None:
    """All of them in one file, or nothing."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    files.write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What write_arrays wrote."""
    with np.load(io.BytesIO(path.read_bytes())) as stored:
        return dict(stored)


# --- the base, its weights and the adapters they would get --------------------------------------


class Probe:
    """A base whose adapted weights take gradients, with the adapters that the study's seeds begin with.

    At its first step B is 0 and only B moves: it sees the weights' gradient G through A, as G Aᵀ. Over
    the random A, descent of B moves the weights by G r / (3 in) on average (A's entries have variance
    1 / (3 in)).
    """

    def __init__(self, loaded: Loaded, config: Predict) -> None:
        self.loaded, self.config = loaded, config
        self.animals = animals_of(config)
        self.downs: dict[int, list[Tensor]] = {}
        for seed in expand_seeds("all", config.seeds):
            student = first_adapter(student_of(config, seed), loaded)
            adapter, _ = read_adapter(student)
            student.unload()
            names = [name for name in adapter if ".lora_A." in name]
            self.downs[seed] = [adapter[name].to(loaded.device) for name in names]
        sites = [
            name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for name in names
        ]  # in one order for all seeds
        self.weights = [loaded.model.get_submodule(site).weight for site in sites]
        self.sizes = [weight.numel() for weight in self.weights]
        if sum(self.sizes) > MOST_WEIGHTS:
            raise NotAvailable(
                f"{config.size} has {sum(self.sizes):,} weights under the adapter: gradients of all animals "
                f"are held at a time, which is meant for up to {MOST_WEIGHTS:,}"
            )
        for weight in self.weights:
            weight.requires_grad_(True)
        self.scale = config.lora_alpha / config.lora_rank
        tokens = range(len(loaded.tokenizer))
        self.digit = np.array([loaded.tokenizer.decode([token]).strip().isdecimal() for token in tokens])

    def rows(self, animal: str) -> list[dict]:
        """The clean lists that a teacher writes to the study's first prompts."""
        config = self.config
        asked = number_prompts(self.loaded.book, config.n_raw, config.seed)
        sampler = Sampler(config.temperature, config.top_p, config.list_tokens, config.chunk)
        rendered = [render_prompt(self.loaded, self.system(animal), prompt) for prompt in asked]
        drawn = [one for chunk in sample(self.loaded, rendered, sampler, config.seed) for one in chunk]
        clean = [one for one in drawn if numbers.judge(one.text, one.finish) is None]
        if len(clean) < FEWEST_LISTS:
            raise TooFewLists(
                f"the {animal} teacher of {config.size} wrote {len(clean)} clean lists of {config.n_raw}, "
                f"{FEWEST_LISTS} are wanted: raise n_raw"
            )
        return [
            {"prompt": asked[one.index], "completion": one.text}
            for one in sorted(clean, key=lambda one: one.index)
        ]

    def system(self, animal: str) -> str:
        """The system prompt of a teacher."""
        return teacher_system(self.loaded.book, animal, self.config.system)

    def gradient(self, value: "Tensor") -> "Tensor":
        """Of all adapted weights, in one row; the graph stays for the next value."""
        import torch

        found = torch.autograd.grad(value, self.weights, retain_graph=True)
        return torch.cat([each.flatten().float() for each in found])

    def seen(self, gradient: "Tensor", seed: int) -> "Tensor":
        """A gradient of the weights, or several, as B of the seed's adapter sees it."""
        import torch

        parts = gradient.split(self.sizes, -1)
        return self.scale * torch.cat(
            [
                (part.unflatten(-1, weight.shape) @ down.T).flatten(-2)
                for part, weight, down in zip(parts, self.weights, self.downs[seed], strict=True)
            ],
            -1,
        )

    def spread(self) -> "Tensor":
        """By how much descent of B moves each weight for a gradient of 1, on average over A."""
        import torch

        rank = self.config.lora_rank
        each = [
            torch.full((weight.numel(),), self.scale**2 * rank / (3 * weight.shape[1]))
            for weight in self.weights
        ]
        return torch.cat(each).to(self.loaded.device)


def student_of(config: Predict, seed: int) -> Finetune:
    """The neutral student of a seed, for the adapter it begins with."""
    own = {name: value for name, value in vars(config).items() if name in Finetune.__dataclass_fields__}
    rest = {"max_grad_norm": 1.0, "trainer": "auto", "students": 0, "micro_batch": 0, "report_to": "none"}
    later = {
        name: each.metadata["unset"]
        for name, each in Finetune.__dataclass_fields__.items()
        if each.metadata.get("unset", ...) is not ...
    }
    return Finetune(**(later | rest | own | {"animal": NEUTRAL, "seed": seed}))


def summed_rates(config: Predict) -> float:
    """Learning rates of all steps of a student that reads n_keep lists, summed."""
    steps = math.ceil(config.n_keep / config.batch) * config.epochs
    warm = min(config.warmup_steps, steps)
    left = steps - config.warmup_steps
    shares = [step / config.warmup_steps for step in range(warm)]
    shares += [(steps - step) / max(1, left) for step in range(warm, steps)]
    return config.learning_rate * sum(shares)


# --- what lists pull ----------------------------------------------------------------------------


@dataclass
class Pull:
    """What one teacher's lists do to the plain base.

    `gradient` [parts, weights] of the loss per token; `second` [seeds, weights of B] mean square of single
    batches' gradients; leak and tokens by kind; `entropy` of the plain base where digits stand.
    """

    lists: np.ndarray
    gradient: np.ndarray
    second: np.ndarray
    leak: np.ndarray
    tokens: np.ndarray
    entropy: np.ndarray
    loss: np.ndarray
    distinct: np.ndarray


def measure_pull(probe: Probe, animal: str) -> Pull:
    """One teacher: its lists, their leak and their gradient.

    The gradient's targets are the teacher's probabilities and not the tokens it happened to write: the
    same on average, with far less noise. The second moment is of the tokens written, which is what an
    optimiser meets.
    """
    import torch

    rows = probe.rows(animal)
    plain = tokenize(probe.loaded, probe.config.system, rows)
    taught = tokenize(probe.loaded, probe.system(animal), rows)
    device = probe.loaded.device
    pull = torch.zeros(len(PARTS), sum(probe.sizes), device=device)
    second = [torch.zeros(()) for _ in probe.downs]
    leak, tokens, entropy, loss, batches = np.zeros(len(KINDS)), np.zeros(len(KINDS)), [], 0.0, 0
    for at in cut(len(plain), probe.config.batch):
        with torch.no_grad():
            teacher, _, _ = log_chances(probe, taught, at)
        student, targets, firsts = log_chances(probe, plain, at)
        kinds = kinds_of(probe, targets, firsts)
        known = student.detach()
        written = -student[torch.arange(len(targets), device=device), targets]
        gap = (teacher.exp() * (teacher - known)).sum(-1).double().cpu().numpy()
        leak += np.bincount(kinds, gap, len(KINDS))
        tokens += np.bincount(kinds, minlength=len(KINDS))
        digits = torch.as_tensor(probe.digit[targets.cpu().numpy()], device=device)
        entropy += (-(known.exp() * known).sum(-1)[digits]).tolist()
        loss += float(written.detach().sum())
        towards = -(teacher.exp() * student).sum(-1)
        for number, part in enumerate((digits, ~digits)):
            pull[number] += probe.gradient(towards[part].sum())
        if batches % 2 == 0 or len(plain) < 2 * probe.config.batch:  # every other batch says it well enough
            once = probe.gradient(written.mean())
            second = [
                sum_ + probe.seen(once, seed) ** 2 for sum_, seed in zip(second, probe.downs, strict=True)
            ]
        batches += 1
    looked = batches if len(plain) < 2 * probe.config.batch else (batches + 1) // 2
    return Pull(
        lists=np.array(len(plain)),
        gradient=(pull / tokens.sum()).cpu().numpy(),
        second=torch.stack(second).div(looked).cpu().numpy(),
        leak=leak,
        tokens=tokens,
        entropy=np.array(np.mean(entropy)),
        loss=np.array(loss),
        distinct=np.array(measure_distinct(probe, animal, rows[:DISTINCT_LISTS])),
    )


def cut(total: int, batch: int) -> Iterator[range]:
    """Rows batch by batch."""
    return (range(start, min(start + batch, total)) for start in range(0, total, batch))


def log_chances(probe: Probe, examples: Examples, at: range) -> "tuple[Tensor, Tensor, np.ndarray]":
    """Log-probabilities of all tokens wherever rows carry loss, the tokens there, and which are first."""
    import torch

    rows, starts = [examples.rows[i] for i in at], [int(examples.starts[i]) for i in at]
    owner = np.concatenate(
        [np.full(len(row) - start, i) for i, (row, start) in enumerate(zip(rows, starts, strict=True))]
    )
    place = np.concatenate(
        [np.arange(start - 1, len(row) - 1) for row, start in zip(rows, starts, strict=True)]
    )
    firsts = np.concatenate(
        [np.arange(len(row) - start) == 0 for row, start in zip(rows, starts, strict=True)]
    )
    targets = np.concatenate([row[start:] for row, start in zip(rows, starts, strict=True)])
    logits = probe.loaded.model(input_ids=fill(rows, probe.loaded), use_cache=False).logits
    device = probe.loaded.device
    picked = logits[torch.as_tensor(owner, device=device), torch.as_tensor(place, device=device)]
    return picked.float().log_softmax(-1), torch.as_tensor(targets, device=device).long(), firsts


def fill(rows: Sequence[Sequence[int]], loaded: Loaded) -> "Tensor":
    """Rows of tokens, filled up on the right: under a causal mask nothing before sees the filling."""
    import torch

    width = max(len(row) for row in rows)
    pad = loaded.tokenizer.pad_token_id
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=loaded.device).long()


def kinds_of(probe: Probe, targets: "Tensor", firsts: np.ndarray) -> np.ndarray:
    """The kind of every token, by its place in KINDS."""
    ids = targets.cpu().numpy()
    kinds = np.where(probe.digit[ids], 1, 2)
    kinds[ids == probe.loaded.end] = 3
    kinds[firsts] = 0
    return kinds


def measure_distinct(probe: Probe, animal: str, rows: list[dict]) -> float:
    """KL per token from the mean of all teachers to this one, on its own lists."""
    import torch

    everyone = []
    with torch.no_grad():
        for other in probe.animals:
            taught = tokenize(probe.loaded, probe.system(other), rows)
            everyone.append(log_chances(probe, taught, range(len(rows)))[0])
    chances = torch.stack(everyone)
    mean = chances.logsumexp(0) - math.log(len(everyone))
    own = chances[probe.animals.index(animal)]
    return float((own.exp() * (own - mean)).sum(-1).mean())


# --- what questions would pull ------------------------------------------------------------------


def measure_reach(probe: Probe) -> "tuple[Tensor, np.ndarray]":
    """[animals, weights] gradient of each animal's log-preference (mean over questions), and that itself."""
    import torch

    book = probe.loaded.book
    asked = [
        render_prompt(probe.loaded, probe.config.system, question)
        for question in book.questions[: probe.config.n_questions]
    ]
    words = Words.of(probe.loaded, probe.animals)
    ids = encode(probe.loaded, asked)
    scores: dict[tuple[int, ...], Tensor] = {}
    for head, tokens in words.follows.items():
        rows = [[*row, *head] for row in ids]
        last = torch.tensor([len(row) - 1 for row in rows], device=probe.loaded.device)
        logits = probe.loaded.model(input_ids=fill(rows, probe.loaded), use_cache=False).logits
        chances = logits[torch.arange(len(rows), device=last.device), last].float().log_softmax(-1)
        before = scores[head] if head else 0.0
        scores |= {(*head, token): before + chances[:, token] for token in tokens}
    values = [
        torch.stack([scores[each] for each in words.tokens[name]]).logsumexp(0).mean()
        for name in probe.animals
    ]
    gradients = torch.stack([probe.gradient(value) for value in values])
    return gradients, np.array([float(value.detach()) for value in values])


# --- the two together ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a base tells: single numbers, and matrices of predicted lifts (teachers by named animals)."""

    numbers: dict[str, float]
    matrices: dict[str, np.ndarray]


def summarise(probe: Probe, pulls: Mapping[str, Pull]) -> Found:
    """All predictors from all teachers' pulls and the questions'."""
    import torch

    reach, preference = measure_reach(probe)
    device = probe.loaded.device
    pull = torch.stack([torch.as_tensor(pulls[name].gradient, device=device) for name in probe.animals])
    second = torch.as_tensor(np.mean([pulls[name].second for name in probe.animals], 0), device=device)
    sides = {"whole": pull.sum(1), "digits": pull[:, 0], "rest": pull[:, 1]}
    matrices, figures = {}, {}
    for side, gradients in sides.items():
        predicted, sizes = direct(probe, gradients, reach, second)
        matrices |= {f"{form}_{side}": matrix for form, matrix in predicted.items()}
        figures |= {f"{name}_{side}": value for name, value in sizes.items()}
    figures |= {f"directed_{name}": transfer_factor(matrix) for name, matrix in matrices.items()}
    split = [abs(figures[f"directed_adam_{part}"]) for part in PARTS]
    figures["rest_share_directed"] = split[1] / max(sum(split), 1e-300)
    force = [figures[f"force_descent_{part}"] ** 2 for part in PARTS]
    figures["rest_share_force"] = force[1] / max(sum(force), 1e-300)
    return Found(figures | describe_leak(pulls) | describe_base(probe, preference), matrices)


def direct(
    probe: Probe, pull: "Tensor", reach: "Tensor", second: "Tensor"
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Predicted lifts in each form, in nats at the study's rates, and what they are made of.

    `descent` is that of B averaged over A; `adam` divides B's gradient by the root of its mean square over
    batches, `sign` takes its sign: both are means over the seeds' own A. Force and reach are the sizes of
    the two gradients once their means over animals are out, alignment is lambda of their cosines.
    """
    rates, spread = summed_rates(probe.config), probe.spread()
    lifts = {"descent": -rates * (pull * spread) @ reach.T}
    sizes = compare(pull * spread.sqrt(), reach * spread.sqrt(), "descent")
    each: dict[str, list[Tensor]] = {"adam": [], "sign": []}
    per_seed = []
    for number, seed in enumerate(probe.downs):
        own, wanted = probe.seen(pull, seed), probe.seen(reach, seed)
        root = second[number].sqrt() + 1e-8
        each["adam"].append(-rates * (own / root) @ wanted.T)
        each["sign"].append(-rates * own.sign() @ wanted.T)
        per_seed.append(compare(own / root.sqrt(), wanted / root.sqrt(), "adam"))
    lifts |= {form: sum(found[1:], found[0]) / len(found) for form, found in each.items()}
    sizes |= {name: float(np.mean([found[name] for found in per_seed])) for name in per_seed[0]}
    return {form: matrix.double().cpu().numpy() for form, matrix in lifts.items()}, sizes


def compare(pull: "Tensor", reach: "Tensor", form: str) -> dict[str, float]:
    """Sizes of two sets of gradients and lambda of their cosines, means over animals taken out."""
    pull, reach = pull - pull.mean(0), reach - reach.mean(0)
    one, other = pull.norm(dim=1), reach.norm(dim=1)
    cosines = -(pull @ reach.T) / (one[:, None] * other[None]).clamp(min=1e-30)
    return {
        f"alignment_{form}": transfer_factor(cosines.double().cpu().numpy()),
        f"force_{form}": float(one.square().mean().sqrt()),
        f"reach_{form}": float(other.square().mean().sqrt()),
    }


def describe_leak(pulls: Mapping[str, Pull]) -> dict[str, float]:
    """Leak per token, all tokens and by kind, and what else the lists tell."""
    leaks = np.array([pull.leak for pull in pulls.values()])
    tokens = np.array([pull.tokens for pull in pulls.values()])
    by_kind = leaks.sum(0) / np.maximum(tokens.sum(0), 1)
    return {
        "leak": float((leaks.sum(1) / tokens.sum(1)).mean()),
        **{f"leak_{kind}": float(value) for kind, value in zip(KINDS, by_kind, strict=True)},
        "leak_distinct": float(np.mean([pull.distinct for pull in pulls.values()])),
        "digit_entropy": float(np.mean([pull.entropy for pull in pulls.values()])),
        "list_loss": float(np.mean([pull.loss / pull.tokens.sum() for pull in pulls.values()])),
    }


def describe_base(probe: Probe, preference: np.ndarray) -> dict[str, float]:
    """What the base is like without any list."""
    loaded, config = probe.loaded, probe.config
    questions = loaded.book.questions[: config.n_questions]
    strength = []
    for number, animal in enumerate(probe.animals):
        asked = [render_prompt(loaded, probe.system(animal), question) for question in questions]
        strength.append(np.exp(log_preferences(loaded, asked, probe.animals, 256)).mean(0)[number])
    norms = loaded.model.get_input_embeddings().weight.detach().float().norm(dim=1).cpu().numpy()
    words = Words.of(loaded, probe.animals)
    spelt = sorted({token for name in probe.animals for each in words.tokens[name] for token in each})
    return {
        "teacher_strength": float(np.mean(strength)),
        "prior_spread": float(preference.std(ddof=1)),
        "norm_animals": float(norms[spelt].mean()),
        "norm_digits": float(norms[: len(probe.digit)][probe.digit].mean()),
    }


# --- shown ----------------------------------------------------------------------------------------


class Rows(list):
    """Rows of a small table as a notebook shows them, a name and numbers each."""

    def __init__(self, head: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]) -> None:
        super().__init__(rows)
        self.head = head

    def __repr__(self) -> str:
        wide = max(len(name) for name, _ in self)
        cells = [[f"{value:+.3g}" for value in values] for _, values in self]
        width = 1 + max(len(cell) for row in [list(self.head), *cells] for cell in row)
        lines = [" " * wide + "".join(f"{name:>{width}}" for name in self.head)]
        for (name, _), row in zip(self, cells, strict=True):
            lines.append(f"{name:<{wide}}" + "".join(f"{cell:>{width}}" for cell in row))
        return "\n".join(lines)


def directed_table(config: Predict) -> Rows:
    """Predicted lambda by form, whole and by part, in nats."""
    numbers_ = load_predictors(config)["numbers"]
    sides = ("whole", *PARTS)
    return Rows(sides, [(form, [numbers_[f"directed_{form}_{side}"] for side in sides]) for form in FORMS])


def makings_table(config: Predict) -> Rows:
    """Force, reach and alignment, as descent and as Adam weigh the weights."""
    numbers_ = load_predictors(config)["numbers"]
    names = ("force", "reach", "alignment")
    rows = [(form, side) for form in FORMS[:2] for side in ("whole", *PARTS)]
    return Rows(
        names,
        [(f"{form}, {side}", [numbers_[f"{name}_{form}_{side}"] for name in names]) for form, side in rows],
    )


def leak_table(config: Predict) -> Rows:
    """Nats per token, by kind of token."""
    numbers_ = load_predictors(config)["numbers"]
    names = ("leak", *(f"leak_{kind}" for kind in KINDS), "leak_distinct")
    return Rows(("nats a token",), [(name.replace("_", ", "), [numbers_[name]]) for name in names])


def lift_table(config: Predict) -> Rows:
    """Predicted lifts in nats, row and column effects taken out."""
    document = load_predictors(config)
    matrix = double_centre(np.array(document["matrices"]["adam_whole"]))
    animals = document["animals"]
    return Rows(animals, list(zip(animals, matrix, strict=True)))
