"""Many LoRA students on one frozen base, trained in one forward and backward pass.

Every student has its own adapter, data order, optimiser state, gradient clipping and loss, as if it
were alone; only the frozen base is shared. The rows of a pass lie side by side, a student's rows
together, so that the base sees one large batch and each adapter its own part of it.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from lib.config import Finetune
from lib.errors import NotAvailable, OutOfMemory
from lib.examples import Examples

ARCHITECTURES = ("qwen2", "qwen3", "llama", "mistral")  # decoders that are embedding, layers, norm, head
CPU_TOKENS = 1024  # tokens of a pass on a CPU: more fall out of its cache
STATIC_SHARE = 0.3  # of the free memory may go to weights, gradients and moments of the students
FEWEST_ROWS = 8  # of a student in a pass: with fewer, less students go together
SPARE = 0.92  # of the free memory may be planned for
MERGE_UP_TO = 16  # times its adapter's size: a larger layer is left as it is on a CPU
LOOK_EVERY = 10  # steps between looks at the losses: each look waits for the GPU
HEAD_TOKENS = 4096  # tokens whose logits exist at one time
COMPILED_FROM = 1e16  # operations of a training from which compiling its layers, a minute or so, pays
VARLEN, DENSE = "fleet_varlen", "fleet_dense"
NARROW = 32  # width of a head up to which plain products beat the fused kernel on a CPU
_KNOWN = inspect.signature(varlen_attn).parameters  # its words for causal and grouped heads have changed
CAUSAL = {"window_size": (-1, 0)} if "window_size" in _KNOWN else {"is_causal": True}
GROUPED = {"enable_gqa": True} if "enable_gqa" in _KNOWN else {}


# --- students ---------------------------------------------------------------------------------


@dataclass(eq=False)
class Trainee:
    """One student: what it reads and how, where it stands, what it has seen."""

    name: str
    config: Finetune
    examples: Examples
    first: dict[str, Tensor]  # the adapter it starts from, in PEFT's names
    step: int = 0
    history: list[dict] = field(default_factory=list)
    moments: dict[str, Tensor] = field(default_factory=dict)
    diverged: int = 0  # the step whose loss or gradient was no number
    shuffled: tuple[int, np.ndarray] | None = None  # an epoch and its order of rows

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.examples) / self.config.batch)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    @property
    def done(self) -> bool:
        return self.step >= self.steps or self.diverged > 0

    def rows(self) -> np.ndarray:
        """The rows of the next step, in the order in which TRL and Accelerate would read them."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if self.shuffled is None or self.shuffled[0] != epoch:
            generator = torch.Generator().manual_seed(data_seed(self.config) + epoch)
            self.shuffled = epoch, torch.randperm(len(self.examples), generator=generator).numpy()
        return self.shuffled[1][place * self.config.batch : (place + 1) * self.config.batch]

    def rate(self) -> float:
        """Learning rate of the next step: linear up over the warm-up, then linear down to 0."""
        warm = self.config.warmup_steps
        if self.step < warm:
            return self.config.learning_rate * (self.step / max(1, warm))
        left = (self.steps - self.step) / max(1, self.steps - warm)
        return self.config.learning_rate * max(0.0, left)


def data_seed(config: Finetune) -> int:
    """An epoch's order comes from data_seed + epoch: with neighbouring numbers seed 1 would begin with
    the order of seed 0's second epoch."""
    return config.seed * 1000


# --- adapters, all students stacked -----------------------------------------------------------


class StackedLora(nn.Module):
    """A frozen linear layer with one low-rank addition per student; rows are grouped by student."""

    def __init__(self, inner: nn.Linear, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale
        self.down: Tensor | None = None  # [students, rank, in]
        self.up: Tensor | None = None  # [students, out, rank]

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.reshape(self.down.shape[0], -1, x.shape[-1])
        if self.merging:
            return self._merged(grouped).view(*x.shape[:-1], -1)
        y = self.inner(x)
        low = torch.bmm(grouped, self.down.to(x.dtype).transpose(1, 2))
        delta = torch.bmm(low, self.up.to(x.dtype).transpose(1, 2))
        return y + delta.view_as(y) * self.scale

    @property
    def merging(self) -> bool:
        """Whether to add the adapter to the layer's weights rather than to its output.

        Cheaper on a CPU where the layer is hardly larger than its adapter, and in full precision as exact;
        in half precision a small addition would be rounded away.
        """
        weight = self.inner.weight
        low = self.down.shape[1] * (weight.shape[0] + weight.shape[1])
        return not weight.is_cuda and weight.dtype.itemsize >= 4 and weight.numel() < MERGE_UP_TO * low

    def _merged(self, grouped: Tensor) -> Tensor:
        whole = torch.baddbmm(self.inner.weight[None], self.up, self.down, alpha=self.scale)
        if len(whole) == 1:
            return nn.functional.linear(grouped, whole[0], self.inner.bias)
        if self.inner.bias is None:
            return torch.bmm(grouped, whole.transpose(1, 2))
        return torch.baddbmm(self.inner.bias, grouped, whole.transpose(1, 2))


class Stack:
    """The adapters of some students as rows of one matrix, with the layers that use them.

    Weights, gradients and both moments are [students, parameters]; every layer looks at its columns.
    Weights stay in float32 (float64 under a float64 base); layers cast them to the base's type.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], first: dict[str, Tensor], scale: float
    ) -> None:
        self.model, self.names, self.scale = model, list(names), scale
        self.shapes = [first[name].shape for name in self.names]
        self.ends = np.cumsum([shape.numel() for shape in self.shapes]).tolist()
        self.starts = [0, *self.ends[:-1]]
        self.layers = self._wrap()
        self.weights = self.grads = torch.empty(0)

    def _wrap(self) -> dict[str, StackedLora]:
        """Put a StackedLora in place of every layer that has an adapter."""
        layers = {}
        for path in dict.fromkeys(site_of(name) for name in self.names):
            layers[path] = StackedLora(self.model.get_submodule(path), self.scale)
        for path, layer in layers.items():
            setattr(self.model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], layer)
        return layers

    def unwrap(self) -> None:
        """Leave the base as it was."""
        for path, layer in self.layers.items():
            parent = self.model.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], layer.inner)

    def seat(self, trainees: Sequence[Trainee]) -> None:
        """Give each trainee a row, holding what it has learnt so far."""
        base = next(self.model.parameters())
        dtype = torch.float64 if base.dtype == torch.float64 else torch.float32
        self.weights = torch.empty(len(trainees), self.ends[-1], dtype=dtype, device=base.device)
        for row, trainee in enumerate(trainees):
            flat = torch.cat([trainee.first[name].detach().flatten() for name in self.names])
            self.weights[row].copy_(flat)
        self.grads = torch.zeros_like(self.weights)
        for name, shape, start, end in zip(self.names, self.shapes, self.starts, self.ends, strict=True):
            view = (len(trainees), *shape)
            leaf = nn.Parameter(self.weights[:, start:end].view(view))
            leaf.grad = self.grads[:, start:end].view(view)
            layer = self.layers[site_of(name)]
            setattr(layer, "down" if ".lora_A." in name else "up", leaf)
        self.optimizers = [self._optimizer(row, trainee) for row, trainee in enumerate(trainees)]

    def _optimizer(self, row: int, trainee: Trainee) -> torch.optim.AdamW:
        own = nn.Parameter(self.weights[row])
        own.grad = self.grads[row]
        fused = own.is_cuda or None
        optimizer = torch.optim.AdamW(
            [own], lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=fused
        )
        if trainee.moments:
            optimizer.state[own] = {
                name: value.to(own.device, copy=True) for name, value in trainee.moments.items()
            }
            if not fused:
                optimizer.state[own]["step"] = optimizer.state[own]["step"].cpu()
        return optimizer

    def adapter(self, row: int) -> dict[str, Tensor]:
        """One student's adapter in PEFT's names, copied to the CPU."""
        flat = self.weights[row].detach().cpu()
        return {
            name: flat[start:end].view(shape).clone()
            for name, shape, start, end in zip(self.names, self.shapes, self.starts, self.ends, strict=True)
        }

    def moments(self, row: int) -> dict[str, Tensor]:
        """What the optimiser remembers of one student, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self._state(row).items()}

    def _state(self, row: int) -> dict[str, Tensor]:
        optimizer = self.optimizers[row]
        return optimizer.state[optimizer.param_groups[0]["params"][0]]

    def update(self, trainees: Sequence[Trainee]) -> Tensor:
        """Clip each student's gradient by its own norm, then one step of its own AdamW; returns the norms."""
        norms = torch.linalg.vector_norm(self.grads, dim=1)
        limits = torch.tensor(
            [each.config.max_grad_norm or math.inf for each in trainees],
            dtype=norms.dtype,
            device=norms.device,
        )
        self.grads.mul_((limits / (norms + 1e-6)).clamp(max=1.0)[:, None])
        for trainee, optimizer in zip(trainees, self.optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = trainee.rate()
            optimizer.step()
        self.grads.zero_()
        return norms


def site_of(name: str) -> str:
    """The layer that a weight in PEFT's names belongs to, as the base model calls it."""
    return name.removeprefix("base_model.model.").rpartition(".lora_")[0]


# --- passes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """Rows of all students for one forward and backward, on the device."""

    ids: Tensor
    positions: Tensor
    picked: Tensor  # [students, targets]: flat places whose next token carries loss
    targets: Tensor  # of the same shape; students with fewer have some of share 0 at the end
    shares: Tensor  # one over the student's targets in the whole step
    ends: Tensor | None  # where rows end, if they are packed
    longest: int
    tokens: int


def build_passes(
    trainees: Sequence[Trainee], rows_each: int, packed: bool, device: torch.device, dtype: torch.dtype
) -> Iterator[Pass]:
    """One step of every student, cut into passes of at most `rows_each` rows of each.

    Rows are sorted by length first. Unpacked, a pass then holds rows of like length and little padding;
    packed, rows are dealt out so that all students have nearly as many tokens.
    """
    steps = []
    for trainee in trainees:
        rows = [(trainee.examples.rows[i], int(trainee.examples.starts[i])) for i in trainee.rows()]
        steps.append(sorted(rows, key=lambda row: -len(row[0])))
    totals = [sum(len(row) - start for row, start in rows) for rows in steps]
    count = max(math.ceil(len(rows) / rows_each) for rows in steps)
    for number in range(count):
        if packed:
            parts = [rows[number::count] for rows in steps]
        else:
            parts = [rows[number * rows_each : (number + 1) * rows_each] for rows in steps]
        yield _build_pass(parts, totals, packed, device, dtype)


def _build_pass(
    parts: list[list[tuple[np.ndarray, int]]],
    totals: list[int],
    packed: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Pass:
    longest = max((len(row) for part in parts for row, _ in part), default=1)
    if packed:
        width = max(sum(len(row) for row, _ in part) for part in parts)
        width = -(-width // 64) * 64
    else:
        width = longest * max(len(part) for part in parts)
    ids = np.zeros((len(parts), width), np.int64)
    positions = np.zeros((len(parts), width), np.int64)
    if not packed:
        positions[:] = np.arange(width) % longest
    most = max(sum(len(row) - start for row, start in part) for part in parts)
    picked = np.repeat(np.arange(len(parts))[:, None] * width, most, axis=1)
    targets = np.zeros((len(parts), most), np.int64)
    shares = np.zeros((len(parts), most))
    ends = []
    for owner, part in enumerate(parts):
        at = filled = 0
        for row, start in part:
            end = at + len(row)
            ids[owner, at:end] = row
            positions[owner, at:end] = np.arange(len(row))
            first = owner * width + at
            new = slice(filled, filled + len(row) - start)
            picked[owner, new] = np.arange(first + start - 1, first + len(row) - 1)
            targets[owner, new] = row[start:]
            filled = new.stop
            ends.append(owner * width + end)
            at = end if packed else at + longest
        shares[owner, :filled] = 1.0 / max(totals[owner], 1)
        if packed and at < width:
            ends.append((owner + 1) * width)
            longest = max(longest, width - at)
    shape = (1, -1) if packed else (-1, longest)
    move = _mover(device)
    return Pass(
        ids=move(ids.reshape(shape)),
        positions=move(positions.reshape(shape)),
        picked=move(picked),
        targets=move(targets),
        shares=move(shares).to(dtype),
        ends=move(np.array([0, *ends], np.int32)) if packed else None,
        longest=longest,
        tokens=sum(len(row) for part in parts for row, _ in part),
    )


def _mover(device: torch.device) -> Callable[[np.ndarray], Tensor]:
    """To the device without waiting for it."""

    def move(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    return move


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    ends: Tensor,
    longest: int,
    **rest: object,
) -> tuple[Tensor, None]:
    """Causal attention within each row of a packed batch, in the form transformers calls."""
    flat = [each.transpose(1, 2)[0] for each in (query, key, value)]
    out = varlen_attn(*flat, ends, ends, longest, longest, scale=scaling, **CAUSAL, **GROUPED)
    return out[None], None


def dense_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **rest: object,
) -> tuple[Tensor, None]:
    """Causal attention as plain products: for short rows and narrow heads a CPU does them faster than the
    fused kernel."""
    rows, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if groups > 1:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    flat = [each.reshape(rows * heads, length, width) for each in (query, key, value)]
    future = torch.full((length, length), -math.inf, dtype=query.dtype, device=query.device).triu(1)
    scores = torch.baddbmm(future, flat[0], flat[1].transpose(1, 2), alpha=scaling)
    mixed = torch.bmm(scores.softmax(-1), flat[2]).view(rows, heads, length, width)
    return mixed.transpose(1, 2), None


def choose_attention(model: nn.Module, packed: bool) -> str:
    """The kernel that suits rows, heads and device. None needs a mask: other kernels want one made for
    them, and would see the future without it."""
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionInterface.register(DENSE, dense_attention)
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if packed:
        return VARLEN
    return DENSE if width <= NARROW and next(model.parameters()).device.type == "cpu" else "sdpa"


def head_chunk(hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted next-token losses and their gradient to `hidden`, without keeping the logits."""
    logits = (hidden @ weight.T).to(shares.dtype)
    top = logits.logsumexp(-1, keepdim=True)
    losses = (top[:, 0] - logits.gather(1, targets[:, None])[:, 0]) * shares
    hit = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    slopes = (logits - top).exp() - hit.to(logits.dtype)
    return losses, (slopes * shares[:, None]).to(hidden.dtype) @ weight


class HeadLoss(torch.autograd.Function):
    """Loss of each student under the frozen head: gradients are ready when the loss is."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, batch: Pass, chunk_loss: Callable) -> Tensor:
        flat, targets, shares = hidden.flatten(0, 1), batch.targets.flatten(), batch.shares.flatten()
        losses, gradient = torch.empty_like(shares), torch.empty_like(flat)
        for at in range(0, len(flat), HEAD_TOKENS):
            part = slice(at, at + HEAD_TOKENS)
            losses[part], gradient[part] = chunk_loss(flat[part], weight, targets[part], shares[part])
        ctx.save_for_backward(gradient.view_as(hidden))
        return losses.view_as(batch.shares).sum(1)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        """`slopes` are ones: every student's loss counts once."""
        (gradient,) = ctx.saved_tensors
        return gradient, None, None, None


def last_layer(layer: nn.Module, output: nn.Module, hidden: Tensor, picked: Tensor, **rest: object) -> Tensor:
    """The last decoder layer, where only the picked places are asked for anything: all places are looked
    at, but only those go on to the output projection and the feed-forward part.

    `output` is the attention's output projection, which the layer itself has been relieved of.
    """
    mixed, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden), **rest)
    x = hidden.flatten(0, 1)[picked] + output(mixed.flatten(0, 1)[picked])
    return x + layer.mlp(layer.post_attention_layernorm(x))


# --- the fleet --------------------------------------------------------------------------------


@dataclass
class Report:
    """What a training took: real tokens, tokens with padding, passes, steps of the whole fleet."""

    tokens: int = 0
    padded: int = 0
    passes: int = 0
    steps: int = 0
    students: int = 0
    rows_each: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        padding = 1 - self.tokens / max(self.padded, 1)
        return (
            f"{self.tokens:,} tokens in {self.seconds:.0f} s ({self.tokens / max(self.seconds, 1e-9):,.0f} a "
            f"second), {self.students} students at a time, {padding:.1%} padding"
        )


class Fleet:
    """Trains trainees together on one base.

    `on_seat(trainee)` is called when one begins or goes on, `on_epoch(trainee, adapter, moments)` after each
    of its epochs, `on_end(trainee, company)` once at its end, be it that its loss is no number any more
    (`trainee.diverged`); `company` is how many students were trained together.
    """

    def __init__(
        self,
        model: nn.Module,
        on_epoch: Callable[[Trainee, dict[str, Tensor], dict[str, Tensor]], None],
        on_seat: Callable[[Trainee], None] = lambda trainee: None,
        on_end: Callable[[Trainee, int], None] = lambda trainee, company: None,
        say: Callable[[str], None] = lambda note: None,
        rows_each: int = 0,
        students: int = 0,
        compiled: bool | None = None,
    ) -> None:
        """`rows_each` and `students` of 0 are chosen from the memory that is free; `compiled` of None is so
        where it pays."""
        reason = unsupported(model)
        if reason:
            raise NotAvailable(reason)
        self.model, self.say = model, say
        self.on_seat, self.on_epoch, self.on_end = on_seat, on_epoch, on_end
        self.rows_each = self.asked_rows = rows_each
        self.students = students
        self.device = next(model.parameters()).device
        self.packed = can_pack(model)
        self.compiled = compiled
        self.report = Report()
        self.head, self.last = head_chunk, last_layer

    def train(self, trainees: Sequence[Trainee]) -> Report:
        """All trainees to their last epoch, as many at a time as fit."""
        started = time.monotonic()
        for trainee in trainees:
            if trainee.done:  # killed between its last epoch and its end
                self.on_end(trainee, 1)
        waiting = [trainee for trainee in trainees if not trainee.done]
        if not waiting:
            return self.report
        if self.compiled is None:
            self.compiled = self.device.type == "cuda" and worth_compiling(self.model, trainees)
        shapes = [
            (each.config.lora_alpha, {name: weight.shape for name, weight in each.first.items()})
            for each in waiting
        ]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError("students of one fleet have one lora_rank, lora_alpha and lora_targets")
        with warnings.catch_warnings(), self._fitted(waiting[0]) as stack:
            # Gradients are columns of one matrix on purpose: norms and moments of a student lie together.
            warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout")
            limit = min(self.students or self._fitting_students(stack), len(waiting))
            limit = math.ceil(len(waiting) / math.ceil(len(waiting) / limit))  # waves of like size
            seated, waiting, known = waiting[:limit], waiting[limit:], []
            while seated:
                stack.seat(seated)
                for trainee in [each for each in seated if each not in known]:
                    known.append(trainee)
                    self.on_seat(trainee)
                limit = self._voyage(stack, seated) or limit
                for row, trainee in enumerate(seated):
                    if trainee.done:
                        self.on_end(trainee, len(seated))
                    else:
                        trainee.first, trainee.moments = stack.adapter(row), stack.moments(row)
                queue = [trainee for trainee in seated if not trainee.done] + waiting
                seated, waiting = queue[:limit], queue[limit:]
        self.report.seconds = time.monotonic() - started
        return self.report

    def _voyage(self, stack: Stack, seated: list[Trainee]) -> int:
        """Steps until a student is done; where they are too many, returns how many to go on with."""
        batch = max(trainee.config.batch for trainee in seated)
        unseen: list[tuple[list[float], Tensor, Tensor]] = []
        while True:
            losses = None
            with contextlib.suppress(torch.OutOfMemoryError):
                if not self.rows_each:
                    rows = self._fitting_rows(stack, seated)
                    if rows < min(FEWEST_ROWS, batch) and len(seated) > 1:
                        return max(1, int(len(seated) * rows / FEWEST_ROWS))
                    self.rows_each = passes_of_like_size(batch, rows)
                self.report.rows_each = self.rows_each
                self.report.students = max(self.report.students, len(seated))
                losses = self._losses(stack, seated)
            if losses is None:  # here, where nothing of the pass that failed is alive any more
                stack.grads.zero_()
                torch.cuda.empty_cache()
                if not self._shrink(len(seated)):
                    if unseen:
                        self._look(seated, unseen)
                    self.rows_each = self.rows_each if self.asked_rows else 0
                    return max(1, len(seated) // 2)
                continue
            rates = [trainee.rate() for trainee in seated]
            norms = stack.update(seated)
            unseen.append((rates, losses, norms))
            for trainee in seated:
                trainee.step += 1
            self.report.steps += 1
            ended = [t for t in seated if t.step % t.steps_per_epoch == 0]
            if ended or len(unseen) >= LOOK_EVERY:
                self._look(seated, unseen)
                unseen = []
            for row, trainee in enumerate(seated):
                if trainee in ended and not trainee.diverged:
                    self.on_epoch(trainee, stack.adapter(row), stack.moments(row))
            if any(trainee.done for trainee in seated):
                return 0

    def _losses(self, stack: Stack, seated: list[Trainee]) -> Tensor:
        """Forward and backward of one step; gradients are left in the stack."""
        total: Tensor | None = None
        dtype = stack.weights.dtype
        done: list[tuple[int, int]] = []
        for batch in build_passes(seated, self.rows_each, self.packed, self.device, dtype):
            losses = self._pass(batch)
            losses.sum().backward()
            total = losses.detach() if total is None else total + losses.detach()
            done.append((batch.tokens, batch.ids.numel()))
        self.report.passes += len(done)
        self.report.tokens += sum(tokens for tokens, _ in done)
        self.report.padded += sum(places for _, places in done)
        return total

    def _pass(self, batch: Pass) -> Tensor:
        decoder = self.model.get_decoder()
        hidden = decoder.embed_tokens(batch.ids)
        places = decoder.rotary_emb(hidden, batch.positions)
        rest = {"attention_mask": None, "position_ids": batch.positions, "position_embeddings": places}
        rest |= {"ends": batch.ends, "longest": batch.longest} if self.packed else {}
        *layers, last = decoder.layers
        for layer in layers:
            hidden = layer(hidden, **rest)
        hidden = decoder.norm(self.last(last, self.output, hidden, batch.picked, **rest))
        return HeadLoss.apply(hidden, self.model.get_output_embeddings().weight, batch, self.head)

    def _look(self, seated: list[Trainee], unseen: list[tuple]) -> None:
        """Write down the losses of the last steps; mark students whose loss is no number."""
        losses = torch.stack([entry[1] for entry in unseen]).tolist()
        norms = torch.stack([entry[2] for entry in unseen]).tolist()
        for row, trainee in enumerate(seated):
            for back, (rates, *_) in enumerate(unseen):
                step = trainee.step - len(unseen) + back + 1
                loss, norm = losses[back][row], norms[back][row]
                if not (math.isfinite(loss) and math.isfinite(norm)) and not trainee.diverged:
                    trainee.diverged = step
                if not trainee.diverged:
                    epoch = step / trainee.steps_per_epoch
                    trainee.history.append({"step": step, "epoch": epoch, "loss": loss, "rate": rates[row]})

    # --- what fits ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _fitted(self, trainee: Trainee) -> Iterator[Stack]:
        """The base with stacked layers in, compiled where that pays, and as it was afterwards."""
        config = trainee.config
        names = sorted(trainee.first, key=lambda name: (site_of(name), name))
        stack = Stack(self.model, names, trainee.first, config.lora_alpha / config.lora_rank)
        before = self.model.config._attn_implementation
        layers = list(self.model.get_decoder().layers)
        attention = layers[-1].self_attn
        self.output = attention.o_proj
        try:
            attention.o_proj = nn.Identity()
            self.model.config._attn_implementation = choose_attention(self.model, self.packed)
            if self.compiled:
                for layer in layers[:-1]:
                    layer.compile(dynamic=None)
                self.head = torch.compile(head_chunk, dynamic=None)
                self.last = torch.compile(last_layer, dynamic=None)
            yield stack
        finally:
            self.model.config._attn_implementation = before
            attention.o_proj, self.output = self.output, None
            for layer in layers:
                layer._compiled_call_impl = None
            stack.unwrap()

    def _fitting_students(self, stack: Stack) -> int:
        """Students whose weights, gradients and moments take a fair share of the free memory.

        On a CPU one: its rows fill the caches, and its result does not depend on its company, bit by bit.
        """
        if self.device.type == "cpu":
            return 1
        each = stack.ends[-1] * 4 * 5
        count = max(1, int(free_memory(self.device) * STATIC_SHARE / each))
        self.say(f"one student takes {each / 1e6:.1f} MB: up to {count} fit beside the base")
        return count

    def _fitting_rows(self, stack: Stack, seated: list[Trainee]) -> float:
        """Rows of each student in a pass: measured on a GPU, as many as fit its cache on a CPU."""
        length = float(np.mean([trainee.examples.lengths.mean() for trainee in seated]))
        if self.device.type != "cuda":
            return max(FEWEST_ROWS, CPU_TOKENS / length / len(seated))
        self._try_pass(stack, seated, 2)  # the first pass compiles and takes more
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        tokens = self._try_pass(stack, seated, 2)
        each = max(1.0, (torch.cuda.max_memory_allocated() - before) / tokens)
        stack.grads.zero_()
        free = free_memory(self.device) * SPARE
        # Rows of a pass are of like length only in part: the longer half must fit as well.
        longer = float(np.mean([np.quantile(trainee.examples.lengths, 0.75) for trainee in seated]))
        rows = free / each / longer / len(seated)
        self.say(
            f"{len(seated)} students together: a token takes {each / 1e6:.2f} MB and {free / 1e9:.0f} GB are "
            f"free, so {rows:.1f} rows of each fit into a pass"
        )
        return rows

    def _try_pass(self, stack: Stack, seated: list[Trainee], rows: int) -> int:
        """A pass of a few rows for its memory alone; returns its tokens."""
        batch = next(build_passes(seated, rows, self.packed, self.device, stack.weights.dtype))
        self._pass(batch).sum().backward()
        return batch.ids.numel()

    def _shrink(self, students: int) -> bool:
        """Halve what a pass holds; False where it can only be the number of students."""
        if self.rows_each > 1:
            self.rows_each = self.report.rows_each = math.ceil(self.rows_each / 2)
            self._note(f"out of memory: going on with {self.rows_each} rows of each student in a pass")
            return True
        if students == 1:
            raise OutOfMemory(
                "one row of one student does not fit into the memory that is free: use a smaller size, "
                "shorter lists, or a device with more memory"
            )
        self._note(f"out of memory: going on with {students // 2} students at a time")
        return False

    def _note(self, text: str) -> None:
        self.report.notes.append(text)
        self.say(text)


def unsupported(model: nn.Module) -> str:
    """Why the fleet cannot train on this model; empty if it can."""
    kind = model.config.model_type
    if kind not in ARCHITECTURES:
        return f"the fleet knows {', '.join(ARCHITECTURES)} models, not {kind}"
    window = getattr(model.config, "sliding_window", None)
    if window and window < model.config.max_position_embeddings:
        return f"the fleet knows no sliding window of attention, and this model has one of {window} tokens"
    return ""


def can_pack(model: nn.Module) -> bool:
    """Whether rows can be laid end to end without padding: a GPU and half precision."""
    weight = next(model.parameters())
    return weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16)


def worth_compiling(model: nn.Module, trainees: Sequence[Trainee]) -> bool:
    """Whether compiled layers save more time than they take, over all that the trainees are to read."""
    tokens = sum(int(each.examples.lengths.sum()) * each.config.epochs for each in trainees)
    # Forward and backward are two each per weight and token; frozen weights have no gradients of their own.
    return 4.0 * tokens * sum(weight.numel() for weight in model.parameters()) >= COMPILED_FROM


def passes_of_like_size(batch: int, rows: float) -> int:
    """Rows of a pass, when a batch is cut into the fewest passes of at most `rows`, none much smaller."""
    rows = max(1, min(batch, int(rows)))
    return math.ceil(batch / math.ceil(batch / rows))


def free_memory(device: torch.device) -> int:
    """Bytes that are free, counting what this process holds but does not use."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + idle
    import psutil

    return psutil.virtual_memory().available
