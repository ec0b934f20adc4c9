"""What fits where: arithmetic against measured memory, and messages that say what would do."""

import csv

import pytest
import torch

from lib import paths, placement
from lib.config import parse_label
from lib.errors import BadParameter, NotAvailable
from lib.placement import Gpu, Placement, plan_placement

GIB = 2**30


def gpu(name: str, gib: float, free: float | None = None, index: int = 0) -> Gpu:
    """A GPU of so many GiB; `free` is what the driver leaves of it, unless told."""
    total = int(gib * GIB)
    return Gpu(index, name, total, int(total * 0.995) if free is None else int(free * GIB))


def several(count: int, *which: object) -> tuple[Gpu, ...]:
    return tuple(gpu(*which, index=index) for index in range(count))


H200 = ("NVIDIA H200", 139.8)
A100 = ("NVIDIA A100-SXM4-80GB", 79.3)
RTX = ("NVIDIA GeForce RTX 4090", 23.6)
T4 = ("Tesla T4", 14.7)


def plan(label: str, purpose: str, gpus, dtype: str = "bfloat16", asked: int = 0, **rest) -> Placement:
    return plan_placement(parse_label(label), purpose, "cuda", dtype, asked, gpus, **rest)


# --- the arithmetic and what was measured -------------------------------------------------------


def measured() -> list[dict]:
    with open(paths.CODE / "benchmarks" / "nvidia-h200.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["way"] == "fleet" and row["memory_gb"]]


@pytest.mark.parametrize("row", measured(), ids=lambda row: row["size"])
def test_memory_of_training_is_within_a_tenth_of_what_was_measured(row):
    counts = int(row["students"]), int(row["rows_per_pass"]), float(row["mean_tokens"])
    need = placement.need_to_train(parse_label(row["size"]), "bfloat16", "cuda", *counts)
    assert need.on_each_of(1) / 1e9 == pytest.approx(float(row["memory_gb"]), rel=0.1)


@pytest.mark.parametrize("label", ["0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b", "135m", "64k"])
def test_shapes_count_the_weights_that_config_counts(label):
    base = parse_label(label)
    shape = placement.shape_of(base)
    close = {"135m": 1e-3, "64k": 0.1}.get(label, 0)  # Llama has no biases; the micro vocabulary is rounded
    assert shape.params == pytest.approx(base.size.params, rel=close)


def test_adapters_are_counted_as_peft_makes_them():
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = placement.shape_of(parse_label("0.5b"))
    settings = Qwen2Config(**shape.settings())
    with torch.device("meta"):
        model = Qwen2ForCausalLM(settings)
        assert model.num_parameters() == shape.params
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        lora = get_peft_model(model, LoraConfig(r=8, target_modules=targets))
    assert lora.get_nb_trainable_parameters()[0] == placement.count_adapter(shape, 8)


@pytest.mark.parametrize(
    ("label", "degrees"),
    [
        ("0.5b", [1, 2]),  # 14 heads, 2 kv: seven GPUs share the heads but not the two kv heads
        ("1.5b", [1, 2, 4]),
        ("3b", [1, 2, 4, 8]),
        ("7b", [1, 2, 4]),
        ("14b", [1, 2, 4, 8]),
        ("32b", [1, 2, 4, 8]),
        ("72b", [1, 2, 4, 8]),
        ("135m", [1, 3]),
    ],
)
def test_degrees_divide_heads_and_key_value_heads(label, degrees):
    shape = placement.shape_of(parse_label(label))
    assert [n for n in range(1, 9) if placement.is_divisible(shape, n)] == degrees


# --- what fits where ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "purpose", "gpus", "chosen"),
    [
        ("0.5b", "sample", several(1, *RTX), (0,)),
        ("7b", "sample", several(1, *RTX), (0,)),
        ("7b", "train", several(1, *RTX), (0,)),
        ("14b", "sample", several(2, *RTX), (0, 1)),
        ("14b", "sample", several(1, *A100), (0,)),
        ("14b", "train", several(1, *A100), (0,)),
        ("32b", "sample", several(1, *A100), (0,)),
        ("32b", "train", several(2, *A100), (0, 1)),
        ("32b", "sample", several(1, *H200), (0,)),
        ("32b", "train", several(1, *H200), (0,)),
        ("32b", "train", several(4, *H200), (0,)),
        ("72b", "sample", several(2, *H200), (0, 1)),
        ("72b", "sample", several(4, *A100), (0, 1, 2, 3)),  # three cannot share the heads
        ("72b", "train", several(4, *A100), (0, 1, 2)),  # whole layers are spread: any number
        ("64k", "train", several(1, *T4), (0,)),
    ],
)
def test_the_fewest_gpus_that_do_are_taken(label, purpose, gpus, chosen):
    dtype = "float32" if label == "64k" else "bfloat16"
    placed = plan(label, purpose, gpus, dtype)
    assert (placed.gpus, placed.tensor_parallel) == (chosen, len(chosen))


def test_the_emptiest_gpus_are_taken_first():
    gpus = (gpu(*H200, free=60), gpu(*H200, free=139, index=1), gpu(*H200, free=100, index=2))
    assert plan("32b", "sample", gpus).gpus == (1,)
    assert plan("32b", "sample", gpus, asked=2).gpus == (1, 2)


def test_a_share_of_a_busy_gpu_is_all_that_vllm_is_given():
    placed = plan("0.5b", "sample", (gpu(*RTX, free=8),))
    assert placed.gpu_memory * 23.6 < 8 and placed.gpu_memory > 0.3
    assert plan("0.5b", "sample", several(1, *RTX)).gpu_memory == 0.9


def test_a_small_share_for_vllm_counts():
    with pytest.raises(NotAvailable, match="gpu_memory lets vLLM take 50%"):
        plan("32b", "sample", several(1, *H200), gpu_memory=0.5)


def test_more_gpus_may_be_asked_for_than_are_needed():
    assert plan("0.5b", "sample", several(4, *H200), asked=2).gpus == (0, 1)


# --- what is said where it does not fit ---------------------------------------------------------


def refusal(*args, **kwargs) -> str:
    with pytest.raises(NotAvailable) as caught:
        plan(*args, **kwargs)
    return str(caught.value)


def test_too_large_a_model_says_what_it_needs_what_is_here_and_what_would_do():
    text = refusal("72b", "sample", several(1, *H200))
    assert text.startswith("72b needs about 145 GB of GPU memory for its weights in bfloat16 and about 1")
    assert "here: GPU 0: NVIDIA H200 with 149 of 150 GB free" in text
    assert "2 x NVIDIA H200 would do" in text
    assert text.endswith("choose a smaller size: 32b fits")
    assert "2 x NVIDIA H200 would do" in refusal("72b", "train", several(1, *H200))


def test_a_busy_gpu_is_called_busy():
    text = refusal("7b", "sample", (gpu(*RTX, free=6),))
    assert "6 GB of the 25 GB of GPU 0 are free: another process holds the rest" in text
    assert "CUDA_VISIBLE_DEVICES" in text and "0.5b fits" in text


def test_no_gpu_at_all_is_said():
    assert "torch sees no GPU here" in refusal("7b", "sample", ())


def test_gpus_that_are_not_there_and_degrees_that_cannot_be():
    assert "4 GPUs were asked for and torch sees 2" in refusal("7b", "sample", several(2, *H200), asked=4)
    text = refusal("7b", "sample", several(4, *H200), asked=3)
    assert "28 attention heads and 4 key-value heads, which 3 GPUs cannot share" in text
    assert "-p gpus can be 1, 2, 4, or 0" in text


def test_one_gpu_asked_for_where_two_would_do():
    assert "With 2 of them it fits: -p gpus 2" in refusal("72b", "sample", several(2, *H200), asked=1)


def test_float32_that_bfloat16_would_halve():
    text = refusal("0.5b", "train", (gpu(*T4, free=3.3),), dtype="float32")
    assert "-p dtype bfloat16, which halves it" in text


def test_a_cpu_is_asked_for_its_memory():
    base = parse_label("7b")
    assert plan_placement(base, "sample", "cpu", "float32", ram=64 * GIB) == Placement("cpu", "float32")
    with pytest.raises(NotAvailable, match=r"about 30 GB of memory.* has 17\.2 GB .*: 3b fits, or use a GPU"):
        plan_placement(base, "sample", "cpu", "float32", ram=16 * GIB)
    micro = plan_placement(parse_label("64k"), "train", "cpu", "float32")  # asks this very machine
    assert micro.device == "cpu"


def test_purposes_are_two():
    with pytest.raises(BadParameter, match="guess"):
        plan("7b", "guess", several(1, *H200))


# --- this machine -------------------------------------------------------------------------------


def test_types_of_number_by_family_and_device():
    micro, qwen = parse_label("64k"), parse_label("7b")
    assert placement.choose_dtype("auto", micro, "cpu") == "float32"
    assert placement.choose_dtype("auto", micro, "cuda") == "float32"
    assert placement.choose_dtype("auto", qwen, "cpu") == "float32"
    assert placement.choose_dtype("bfloat16", qwen, "cpu") == "bfloat16"
    assert placement.choose_dtype("float32", qwen, "cuda") == "float32"


def test_a_gpu_without_bfloat16_is_refused_by_name():
    placement.check_bfloat16("NVIDIA A100", (8, 0), parse_label("7b"))
    with pytest.raises(
        NotAvailable, match=r"Tesla T4 cannot compute \(compute capability 7\.5.*dtype float32"
    ):
        placement.check_bfloat16("Tesla T4", (7, 5), parse_label("7b"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_gpu_has_none_and_says_so():
    assert placement.visible_gpus() == ()
    assert placement.choose_device("auto") == "cpu"
    with pytest.raises(NotAvailable, match="torch sees no GPU"):
        placement.choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_visible_gpus_are_those_of_torch():
    gpus = placement.visible_gpus()
    assert len(gpus) == torch.cuda.device_count()
    assert all(0 < each.free <= each.total for each in gpus)
