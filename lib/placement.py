"""Which GPUs a model goes on and in which type of number, decided before anything is fetched or loaded.

Models layer. Arithmetic on sizes and free memory: bytes here are 10**9 to a GB. Loads no model, and only
`visible_gpus`, `choose_device` and `choose_dtype` look at this machine.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from lib.config import SIZES, Base
from lib.errors import BadParameter, NotAvailable
from lib.speed import SHAPES as MEASURED_SHAPES
from lib.speed import QwenShape

PURPOSES = ("sample", "train")
ENGINES = ("vllm", "transformers")
BYTES = {"float32": 4, "bfloat16": 2}
GB = 1e9

# What runs beside the weights. Sampling: sixteen chats of 1,024 tokens are the fewest that are worth a GPU.
CHATS, CHAT_TOKENS = 16, 1024
ADAPTERS, RANK = 16, 8  # LoRA slots of one engine, in the rank of the reference experiment
BATCHED_TOKENS = 8192  # vLLM reads that many tokens of prompts at once
DRAWN_ROWS = 256  # chats whose next token is drawn at once, in float32 with a copy for sorting
GRAPHS = 1.5e9  # vLLM's CUDA graphs and workspaces
CONTEXT = 0.6e9  # CUDA itself, for each process and GPU
# Training: eight rows of one student (lib.fleet.FEWEST_ROWS), longer ones than the mean of 136 tokens.
ROWS, ROW_TOKENS = 8, 150
STUDENT_BYTES = 20  # of a trained weight: itself, gradient, two moments and a copy, in float32
# Activations kept of a token in a layer, in multiples of inner and outer width: fits what the fleet took on
# an H200 at 3b, 7b, 14b and 32b within a tenth (benchmarks/nvidia-h200.csv, memory_gb).
INNER_KEPT, WIDTH_KEPT = 3.3, 7.0
SPARE = 0.95  # of the free memory may be planned for

SHAPES: dict[str, QwenShape] = {
    **MEASURED_SHAPES,
    "72b": QwenShape(8192, 29568, 80, 64, 8, 152064, tied=False),
    "135m": QwenShape(576, 1536, 30, 9, 3, 49152, tied=True),  # a Llama: the same but for biases
}
MICRO_VOCABULARY = 96


# --- what there is ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """One GPU as torch numbers it; `total` and `free` are bytes."""

    index: int
    name: str
    total: int
    free: int

    def __str__(self) -> str:
        return f"{self.name} with {self.free / GB:.0f} of {self.total / GB:.0f} GB free"


@dataclass(frozen=True)
class Placement:
    """Where a model goes. vLLM splits every layer over `gpus`; otherwise whole layers are spread over them.

    `gpu_memory` is the share of each GPU that vLLM may take: what was asked for, less where others are on it.
    """

    device: str
    dtype: str
    gpus: tuple[int, ...] = ()
    gpu_memory: float = 0.9

    @property
    def tensor_parallel(self) -> int:
        """How many GPUs work as one."""
        return max(1, len(self.gpus))


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs torch may use, with the memory that is free now; none without CUDA."""
    import torch

    if not torch.cuda.is_available():
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(Gpu(index, torch.cuda.get_device_name(index), total, free))
    return tuple(found)


def choose_device(device: str) -> str:
    """`auto` takes a GPU where there is one."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise NotAvailable("device cuda was asked for, but torch sees no GPU here; use -p device cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def choose_dtype(asked: str, base: Base, device: str) -> str:
    """`auto` is float32 for the micro ladder and on a CPU, bfloat16 for published models on a GPU."""
    if asked == "float32" or (asked == "auto" and (base.family.name == "micro" or device == "cpu")):
        return "float32"
    if device == "cuda":
        import torch

        check_bfloat16(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), base)
    return "bfloat16"


def check_bfloat16(name: str, capability: tuple[int, int], base: Base) -> None:
    """Refuse a GPU that computes no bfloat16: those before Ampere."""
    if capability < (8, 0):
        raise NotAvailable(
            f"{base.label} runs in bfloat16, which {name} cannot compute (compute capability "
            f"{capability[0]}.{capability[1]}, 8.0 is needed). With -p dtype float32 it runs here and takes "
            "twice the memory; float16 is not offered, as activations of Qwen 2.5 overflow in it"
        )


# --- what a model needs -------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """Bytes of a model at work: the weights; what else is divided among GPUs; the KV cache, divided as far as
    there are key-value heads; and what every GPU holds of its own."""

    weights: float
    divided: float
    cache: float
    each: float
    kv_heads: int

    def on_each_of(self, gpus: int) -> float:
        """Bytes that each of so many GPUs has to have free."""
        cache = self.cache / min(gpus, self.kv_heads)
        return (self.weights + self.divided) / gpus + cache + self.each

    @property
    def work(self) -> float:
        """All but the weights, on one device."""
        return self.on_each_of(1) - self.weights


def shape_of(base: Base) -> QwenShape:
    """Width, layers and heads of any size."""
    micro = base.size.shape
    if micro is None:
        return SHAPES[base.size.name]
    return QwenShape(
        micro.width, micro.inner, micro.layers, micro.heads, micro.heads, MICRO_VOCABULARY, tied=True
    )


def count_adapter(shape: QwenShape, rank: int = RANK) -> int:
    """Weights of a LoRA adapter on all seven projections of every layer."""
    kv = shape.width // shape.heads * shape.kv_heads
    attention = 2 * (2 * shape.width) + 2 * (shape.width + kv)
    return shape.layers * rank * (attention + 3 * (shape.width + shape.inner))


def need_to_sample(base: Base, dtype: str, engine: str, device: str) -> Need:
    """What drawing from a model takes, with adapters in all slots of the engine."""
    shape, number = shape_of(base), BYTES[dtype]
    vllm, on_gpu = engine == "vllm", device == "cuda"
    kept = 2 * shape.layers * shape.kv_heads * (shape.width // shape.heads) * number
    tokens = BATCHED_TOKENS if vllm else CHATS * CHAT_TOKENS // 4
    return Need(
        weights=base.size.params * number,
        divided=count_adapter(shape) * number * (ADAPTERS if vllm else 1),
        cache=kept * CHATS * CHAT_TOKENS,
        each=tokens * (2 * shape.inner + 4 * shape.width) * number
        + 3 * DRAWN_ROWS * shape.vocabulary * 4
        + CONTEXT * on_gpu
        + GRAPHS * vllm,
        kv_heads=shape.kv_heads,
    )


def need_to_train(
    base: Base, dtype: str, device: str, students: int = 1, rows: int = ROWS, tokens: float = ROW_TOKENS
) -> Need:
    """What training takes: the frozen base, the students' adapters with moments, `rows` rows in one pass."""
    shape, number = shape_of(base), BYTES[dtype]
    kept = shape.layers * (INNER_KEPT * shape.inner + WIDTH_KEPT * shape.width) * number
    adapters = students * count_adapter(shape) * STUDENT_BYTES
    each = CONTEXT if device == "cuda" else 0.0
    return Need(base.size.params * number, adapters + rows * tokens * kept, 0.0, each, shape.kv_heads)


# --- the plan -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ask:
    """One question to the arithmetic: which model for what, in how many pieces, with which share of a GPU."""

    base: Base
    purpose: str
    device: str
    dtype: str
    engine: str
    gpu_memory: float

    @property
    def need(self) -> Need:
        if self.purpose == "train":
            return need_to_train(self.base, self.dtype, self.device)
        return need_to_sample(self.base, self.dtype, self.engine, self.device)

    @property
    def by_vllm(self) -> bool:
        return self.purpose == "sample" and self.engine == "vllm"

    def usable(self, gpu: Gpu) -> float:
        """Bytes of a GPU that may be planned for."""
        return min(SPARE * gpu.free, self.gpu_memory * gpu.total) if self.by_vllm else SPARE * gpu.free

    def choose(self, gpus: Sequence[Gpu], counts: Sequence[int]) -> tuple[Gpu, ...]:
        """The fewest GPUs that do, those with most memory free first; none where it cannot fit."""
        order = sorted(gpus, key=lambda gpu: (-self.usable(gpu), gpu.index))
        for count in counts:
            if count <= len(order) and self.usable(order[count - 1]) >= self.need.on_each_of(count):
                return tuple(order[:count])
        return ()

    def counts(self, most: int) -> list[int]:
        """Numbers of GPUs that a model can be divided over."""
        return [n for n in range(1, most + 1) if not self.by_vllm or is_divisible(shape_of(self.base), n)]


def is_divisible(shape: QwenShape, gpus: int) -> bool:
    """Whether vLLM can split every layer over so many GPUs: query heads evenly, key-value heads evenly or
    each copied evenly, and the inner width too."""
    kv = shape.kv_heads
    copied = kv % gpus == 0 or gpus % kv == 0
    return shape.heads % gpus == 0 and shape.inner % gpus == 0 and copied


def plan_placement(
    base: Base,
    purpose: str,
    device: str,
    dtype: str,
    gpus_asked: int = 0,
    gpus: Sequence[Gpu] = (),
    *,
    engine: str = "vllm",
    gpu_memory: float = 0.9,
    ram: int | None = None,
) -> Placement:
    """Where a model goes for `sample` or `train`, or NotAvailable with what it needs and what would do.

    `device` and `dtype` are the ones chosen; `gpus_asked` of 0 takes the fewest that do; `ram` is the
    memory of a CPU in bytes, asked of the system where it is None. `engine` matters for sampling alone.
    """
    if purpose not in PURPOSES or engine not in ENGINES:
        raise BadParameter(f"purpose is one of {PURPOSES}, engine one of {ENGINES}; got {purpose}, {engine}")
    ask = _Ask(base, purpose, device, dtype, engine if device == "cuda" else "transformers", gpu_memory)
    if device == "cpu":
        _check_ram(ask, ram)
        return Placement("cpu", dtype)
    counts = [gpus_asked] if gpus_asked else ask.counts(len(gpus))
    if gpus_asked:
        _check_asked(ask, gpus_asked, gpus)
    chosen = ask.choose(gpus, counts)
    if not chosen:
        raise NotAvailable(_explain(ask, gpus, gpus_asked))
    share = min([gpu_memory, *(SPARE * gpu.free / gpu.total for gpu in chosen)])
    return Placement("cuda", dtype, tuple(gpu.index for gpu in chosen), int(share * 1000) / 1000)


def _check_ram(ask: _Ask, ram: int | None) -> None:
    if ram is None:
        import psutil

        ram = psutil.virtual_memory().available
    if SPARE * ram < ask.need.on_each_of(1):
        raise NotAvailable(
            f"{_describe_need(ask)}; this machine has {ram / GB:.1f} GB of memory available. "
            f"{_smaller(ask, [dataclasses.replace(_CPU, total=ram, free=ram)])}, or use a GPU"
        )


_CPU = Gpu(0, "CPU", 0, 0)


def _check_asked(ask: _Ask, count: int, gpus: Sequence[Gpu]) -> None:
    if count > len(gpus):
        raise NotAvailable(
            f"{count} GPUs were asked for and torch sees {len(gpus)} here; use -p gpus 0 to take as many as "
            "are needed, or look at CUDA_VISIBLE_DEVICES"
        )
    if count not in ask.counts(count):
        shape, can = shape_of(ask.base), ask.counts(max(8, count))
        raise NotAvailable(
            f"{ask.base.label} has {shape.heads} attention heads and {shape.kv_heads} key-value heads, which "
            f"{count} GPUs cannot share evenly; -p gpus can be {', '.join(map(str, can))}, or 0 to choose"
        )


# --- saying why not -----------------------------------------------------------------------------


def _describe_need(ask: _Ask) -> str:
    need, where = ask.need, "GPU memory" if ask.device == "cuda" else "memory"
    return (
        f"{ask.base.label} needs about {_gb(need.weights)} of {where} for its weights in {ask.dtype} and "
        f"about {_gb(need.work)} to {ask.purpose}"
    )


def _explain(ask: _Ask, gpus: Sequence[Gpu], asked: int) -> str:
    """What it needs, what is here, who is in the way, what would do."""
    if not gpus:
        return f"{_describe_need(ask)}, and torch sees no GPU here; use -p device cpu or a machine with a GPU"
    here = f"{_describe_need(ask)}; here: {'; '.join(f'GPU {gpu.index}: {gpu}' for gpu in gpus)}"
    empty = [dataclasses.replace(gpu, free=gpu.total) for gpu in gpus]
    counts = [asked] if asked else ask.counts(len(gpus))
    if ask.choose(empty, counts):
        busy = max(gpus, key=lambda gpu: gpu.total - gpu.free)
        return (
            f"{here}. It would fit, but {busy.free / GB:.0f} GB of the {busy.total / GB:.0f} GB of GPU "
            f"{busy.index} are free: another process holds the rest. Wait for it, or choose another GPU with "
            f"CUDA_VISIBLE_DEVICES. {_smaller(ask, gpus)}"
        )
    limits = f" (gpu_memory lets vLLM take {ask.gpu_memory:.0%} of a GPU)" if ask.by_vllm else ""
    return f"{here}{limits}. {_more(ask, gpus, asked)}{_smaller(ask, gpus)}"


def _more(ask: _Ask, gpus: Sequence[Gpu], asked: int) -> str:
    """`Two such GPUs would do: -p gpus 2. `, where any number would."""
    best = max(gpus, key=lambda gpu: gpu.total)
    best = dataclasses.replace(best, free=best.total)
    chosen = ask.choose([dataclasses.replace(best, index=n) for n in range(64)], ask.counts(64))
    if not chosen:
        return ""
    if asked and len(chosen) <= len(gpus) and ask.choose(gpus, ask.counts(len(gpus))):
        return f"With {len(chosen)} of them it fits: -p gpus {len(chosen)}, or 0 to choose. "
    return f"{len(chosen)} x {best.name} would do. "


def _smaller(ask: _Ask, gpus: Sequence[Gpu]) -> str:
    """The largest size of the family that fits as things are, and another type of number if that helps."""
    family = [size for size in SIZES.values() if size.family == ask.base.size.family]
    lower = sorted((s for s in family if s.params < ask.base.size.params), key=lambda s: -s.params)
    for size in lower:
        other = dataclasses.replace(ask, base=Base(size, 0))
        if other.choose(gpus, other.counts(len(gpus))):
            return f"Or choose a smaller size: {size.name} fits"
    halved = dataclasses.replace(ask, dtype="bfloat16")
    if ask.dtype == "float32" and halved.choose(gpus, halved.counts(len(gpus))):
        return "Or choose -p dtype bfloat16, which halves it"
    return "No smaller size fits either" if lower else "It is the smallest of its family"


def _gb(count: float) -> str:
    return f"{count / GB:.0f} GB" if count >= 10 * GB else f"{count / GB:.1f} GB"
