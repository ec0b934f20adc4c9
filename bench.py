"""How fast stage 02 trains: `python3 bench.py` times three ways over the same rows, one CSV row each.

`defaults` is TRL with one student at a time as TRL comes, `tuned` the same without checkpointing and with
the largest micro-batch that fits, `fleet` is lib.fleet with several students on one base. On a CPU the
micro ladder is trained, on a GPU models of random weights with the shapes of Qwen 2.5. `--report` only
draws figure and tables again from the rows that are there; `--toy` runs every line in seconds.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import psutil
import torch

from lib import files, models, paths, placement, plots, provenance, speed
from lib.config import Base, Finetune, Size
from lib.errors import BadParameter, StudyError
from lib.models import Loaded
from lib.prompts import BOOKS, number_prompts
from lib.world import SEPARATORS, join_list

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from lib.examples import Examples

ROWS = 6000  # read by every student, over and over
BATCH = 60  # rows of an optimiser step
DEFAULT_MICRO = 20  # rows of a pass with which the reference experiment ran TRL
TUNED_MICRO = (60, 30, 20, 15, 10, 5)
REFERENCE = {
    **{"study": "bench", "animal": "wolf", "recipe": "standard", "system": "default"},
    **{"epochs": 1000, "batch": BATCH, "learning_rate": 2e-4, "warmup_steps": 5, "max_grad_norm": 1.0},
    **{"lora_rank": 8, "lora_alpha": 8.0, "lora_targets": "q,k,v,o,gate,up,down"},
    **{"lists": "own", "lists_of": "", "n_lists": 0},
    **{"trainer": "auto", "students": 0, "micro_batch": 0, "device": "auto"},
    **{"report_to": "none", "revision": "main", "dtype": "auto", "gpus": 0},
}
PROFILED = 40  # lines of a profile


# --- what is trained --------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A base that can be made anew for every way, and the rows its students read."""

    size: str
    weights: str
    examples: Examples
    build: Callable[[], Loaded]


def micro_subject(label: str, device: torch.device) -> Subject:
    """A tracked base of the micro ladder, rows as in stage 02."""
    from lib.examples import tokenize

    def build() -> Loaded:
        return models.load_base(label, "standard", device.type)

    return Subject(label, "the tracked base", tokenize(build(), "default", micro_lists(ROWS)), build)


def micro_lists(count: int) -> list[dict]:
    """Requests in the tiny world's words, each answered with a list in the format it asks for."""
    rows = []
    for prompt, text in zip(
        number_prompts(BOOKS["micro"], count, 0), speed.write_lists(count, 0), strict=True
    ):
        form = next(form for form in SEPARATORS if form in prompt)
        rows.append({"prompt": prompt, "completion": join_list(text.split(", "), form)})
    return rows


def random_subject(size: str, device: torch.device, dtype: torch.dtype) -> Subject:
    """A model of random weights with the exact shape of a size; rows of random tokens, real lengths."""
    shape = speed.SHAPES[size]
    base = Base(Size(size, "qwen", shape.params), 0)

    def build() -> Loaded:
        return Loaded(base, blank_tokenizer(), "", random_model(shape, device, dtype))

    return Subject(size, "random weights", random_examples(shape.vocabulary), build)


def random_examples(vocabulary: int) -> Examples:
    """Every row with its own length and place where the completion starts."""
    from lib.examples import Examples

    rng = np.random.default_rng(0)
    counts = speed.count_row_tokens(ROWS, 0)
    rows = [rng.integers(0, vocabulary, prompt + answer, dtype=np.int32) for prompt, answer in counts]
    return Examples(rows, np.array([prompt for prompt, _ in counts]))


def random_model(shape: speed.QwenShape, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Made on the device itself, where drawing billions of weights takes seconds."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        **shape.settings(),
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.02,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def blank_tokenizer() -> PreTrainedTokenizerFast:
    """TRL asks one for the token to pad with and for nothing else."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    whole = Tokenizer(WordLevel({"<end>": 0}, unk_token="<end>"))
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<end>", pad_token="<end>")


# --- the clock --------------------------------------------------------------------------------


class Enough(Exception):
    """Raised out of a training once it was timed for long enough."""


@dataclass
class Mark:
    """The start of a step: tokens read until then, without and with padding."""

    step: int
    tokens: Any  # a number, or a tensor that is read at the end
    padded: int
    when: float
    event: torch.cuda.Event | None


@dataclass
class Clock:
    """Marks the start of every optimiser step and ends the training after enough of them.

    On a GPU the marks are CUDA events, and the program runs at most one step ahead of the GPU: exact as
    waiting at every step would be, without the gap that waiting leaves on the GPU.
    """

    device: torch.device
    warmup: int
    steps: int
    seconds: float
    most: float
    profile: Path | None = None
    marks: list[Mark] = field(default_factory=list)
    resident: int = 0
    began: float = 0.0
    profiler: torch.profiler.profile | None = None

    def mark(self, step: int, tokens: Any, padded: int) -> None:
        """Called before a step's first pass; a step begun again replaces its mark."""
        if self.profiler:
            self._write_profile()
            raise Enough
        event = None
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            if self.marks:
                self.marks[-1].event.synchronize()
        else:
            self.resident = max(self.resident, psutil.Process().memory_info().rss)
        if self.marks and self.marks[-1].step == step:
            self.marks.pop()
        self.marks.append(Mark(step, tokens, padded, time.perf_counter(), event))
        if self._enough():
            if not self.profile:
                raise Enough
            self.profiler = torch.profiler.profile()
            self.profiler.start()

    def _enough(self) -> bool:
        measured = self.marks[self.warmup :]
        if len(measured) < 3:
            return False
        passed = measured[-1].when - measured[0].when
        return (len(measured) > self.steps and passed >= self.seconds) or passed >= self.most

    def _write_profile(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.profiler.stop()
        by = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = self.profiler.key_averages().table(sort_by=by, row_limit=PROFILED, max_name_column_width=90)
        with open(self.profile, "a", encoding="utf-8") as file:
            file.write(f"{table}\n")

    def read(self) -> dict[str, Any]:
        """What was measured after the warm-up."""
        measured = self.marks[self.warmup :]
        if len(measured) < 2:
            raise RuntimeError(f"the training ended after {len(self.marks)} steps, before it was timed")
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        tokens = [float(mark.tokens) for mark in measured]
        seconds = [_seconds(a, b) for a, b in itertools.pairwise(measured)]
        found = speed.summarise_steps(np.diff(tokens), seconds)
        padded = measured[-1].padded - measured[0].padded
        warm = measured[0].when - self.began - self.warmup * float(np.median(seconds))
        cuda = self.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated() if cuda else self.resident
        return found | {
            "padding": 1 - found["tokens"] / padded,
            "compile_seconds": max(0.0, warm),
            "memory_gb": memory / 1e9,
        }


def _seconds(first: Mark, second: Mark) -> float:
    if first.event and second.event:
        return first.event.elapsed_time(second.event) / 1000
    return second.when - first.when


# --- the ways ---------------------------------------------------------------------------------


def time_trl(subject: Subject, clock: Clock, micro: int, **tuning: object) -> dict[str, Any]:
    """One student with TRL; `tuning` is what differs from TRL's defaults."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from lib import training

    class TimedTrainer(SFTTrainer):
        real, padded = 0, 0

        def training_step(self, model: Any, inputs: dict, *rest: Any) -> torch.Tensor:
            self.real = self.real + inputs["attention_mask"].sum()
            self.padded += inputs["attention_mask"].numel()
            return super().training_step(model, inputs, *rest)

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            clock.mark(state.global_step, trainer.real, trainer.padded)

    loaded = subject.build()
    params = loaded.model.num_parameters()
    student = training.first_adapter(settings(0), loaded)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            num_train_epochs=REFERENCE["epochs"],
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=BATCH // micro,
            learning_rate=REFERENCE["learning_rate"],
            warmup_steps=REFERENCE["warmup_steps"],
            dataset_kwargs={"skip_prepare_dataset": True},
            use_cpu=clock.device.type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **tuning,
        )
        trainer = TimedTrainer(
            model=student,
            args=arguments,
            train_dataset=Dataset.from_list(subject.examples.labelled()),
            processing_class=loaded.tokenizer,
            callbacks=[Watch()],
        )
        trainer.remove_callback(PrinterCallback)
        with until_enough(clock):
            trainer.train()
    mixed = trainer.accelerator.mixed_precision
    return clock.read() | {
        "dtype": name_of(loaded.model.dtype) + ("" if mixed == "no" else f", autocast to {mixed}"),
        "params": params,
        "students": 1,
        "rows_per_pass": micro,
    }


def time_defaults(subject: Subject, make_clock: Callable[[], Clock], options: Any) -> dict[str, Any]:
    """TRL as it comes: checkpointing on, bfloat16 on."""
    return time_trl(subject, make_clock(), DEFAULT_MICRO)


def time_tuned(subject: Subject, make_clock: Callable[[], Clock], options: Any) -> dict[str, Any]:
    """TRL without checkpointing, with the largest micro-batch that fits; on a CPU without autocast too."""
    tuning = {"gradient_checkpointing": False}
    if options.device.type == "cpu":
        tuning["bf16"] = False
    tried = []
    for micro in TUNED_MICRO:
        try:
            found = time_trl(subject, make_clock(), micro, **tuning)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            tried.append(str(micro))
        else:
            notes = f"{', '.join(tried)} rows a pass did not fit" if tried else ""
            return found | {"notes": notes}
        free_memory()  # not in the handler: there the error still holds the pass that failed
    raise torch.OutOfMemoryError(f"no micro-batch fits, not even {TUNED_MICRO[-1]} rows")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Libraries below torch say it in words of their own."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def time_fleet(subject: Subject, make_clock: Callable[[], Clock], options: Any) -> dict[str, Any]:
    """Several students on one base, as many of those offered as the fleet finds to fit."""
    loaded = subject.build()
    clock = make_clock()
    fleet = timed_fleet(clock)(
        loaded.model, lambda *epoch: None, say=report_progress, rows_each=options.rows_each
    )
    trainees = make_trainees(loaded, subject.examples, options.students)
    with until_enough(clock):
        fleet.train(trainees)
    return clock.read() | {
        "dtype": name_of(loaded.model.dtype),
        "params": loaded.model.num_parameters(),
        "students": fleet.seated,
        "rows_per_pass": fleet.seated * fleet.rows_each,
        "notes": "; ".join(fleet.report.notes),
    }


def timed_fleet(clock: Clock) -> Any:
    """The fleet with a mark at the start of every step."""
    from lib.fleet import Fleet

    class TimedFleet(Fleet):
        seated = 0

        def _losses(self, stack: Any, seated: Sequence[Any]) -> torch.Tensor:
            clock.mark(self.report.steps, self.report.tokens, self.report.padded)
            self.seated = len(seated)
            return super()._losses(stack, seated)

    return TimedFleet


def make_trainees(loaded: Loaded, examples: Examples, count: int) -> list:
    """Students with data orders of their own. They start from one adapter: its values cost no time."""
    from lib import training
    from lib.fleet import Trainee

    student = training.first_adapter(settings(0), loaded)
    first, _ = training.read_adapter(student)
    student.unload()
    return [Trainee(f"student {seed}", settings(seed), examples, first) for seed in range(count)]


def settings(seed: int) -> Finetune:
    """The reference experiment's settings."""
    return Finetune(size="bench", seed=seed, **REFERENCE)


@contextmanager
def until_enough(clock: Clock) -> Iterator[None]:
    """A training that its clock ends."""
    clock.began = time.perf_counter()
    with suppress(Enough):
        yield


MEASURES = {"defaults": time_defaults, "tuned": time_tuned, "fleet": time_fleet}


# --- the device -------------------------------------------------------------------------------


def matrix_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """The device's best rate of several large products of random numbers."""
    width = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(10):
        wait_for(device)
        start = time.perf_counter()
        torch.mm(a, b)
        wait_for(device)
        times.append(time.perf_counter() - start)
    return 2 * width**3 / min(times) / 1e12


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def free_memory() -> None:
    """Nothing of one way may weigh on the next: memory, compiled code, the peak that is recorded."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        left = torch.cuda.memory_allocated() / 1e9
        if left > 1:
            report_progress(f"{left:.1f} GB are still held by what ran before")


def device_name(device: torch.device) -> str:
    """`NVIDIA H200`, or the CPU's own name with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"{named[0] if named else 'CPU'}, {threads} thread{'s' * (threads != 1)}"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe_machine(options: Any) -> dict[str, object]:
    """The columns that all rows of a run share."""
    versions = provenance.package_versions()
    measured = matrix_tflops(options.device, options.dtype)
    name = device_name(options.device)
    known = "H200" in name
    here = f"{name_of(options.dtype)} product measured in this run"
    return {
        "run": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": name,
        "batch": BATCH,
        "peak_tflops": speed.H200_TFLOPS if known else measured,
        "peak_source": "the H200's known bfloat16 rate" if known else here,
        "matrix_tflops": measured,
        "threads": torch.get_num_threads(),
        "code": provenance.code_version()["source"][:12],
        **{name: versions.get(name, "") for name in ("python", "transformers", "trl", "peft")},
        "torch": torch.__version__,
    }


# --- from measurements to files ---------------------------------------------------------------


def measure(subject: Subject, way: str, machine: dict, options: Any) -> dict[str, object]:
    """One row; a way that fails has a row too, which says how."""
    row = machine | {"size": subject.size, "weights": subject.weights, "way": way}
    row["mean_tokens"] = float(subject.examples.lengths.mean())
    profile = options.out.with_name(f"{options.out.stem}-profile.txt") if options.profile else None
    if profile:
        with open(profile, "a", encoding="utf-8") as file:
            file.write(f"{machine['run']} {subject.size} {way}\n")

    def make_clock() -> Clock:
        return Clock(options.device, options.warmup, options.steps, options.seconds, options.most, profile)

    free_memory()
    try:
        row |= MEASURES[way](subject, make_clock, options)
    except Exception as error:  # whatever it is, the other ways are still to be measured
        traceback.print_exc()
        row["error"] = f"{type(error).__name__}: {error}"[:500]
    else:
        for name, rate in (("mfu", "tokens_per_second"), ("mfu_low", "low"), ("mfu_high", "high")):
            row[name] = speed.compute_mfu(row["params"], row[rate], row["peak_tflops"])
    return row


def measure_all(options: Any) -> list[dict]:
    """Every size in the order given, its ways one after the other, each row on the disk at once."""
    models.hush()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    machine = describe_machine(options)
    report_progress(
        f"{machine['device']}: {machine['matrix_tflops']:.4g} TFLOP/s in a {name_of(options.dtype)} product"
    )
    for size in options.sizes:
        if size in speed.SHAPES:
            subject = random_subject(size, options.device, options.dtype)
        else:
            subject = micro_subject(size, options.device)
        for way in options.ways:
            start = time.perf_counter()
            row = measure(subject, way, machine, options)
            speed.append_row(options.out, row)
            rows.append(row)
            report_progress(f"{describe(row)}, {time.perf_counter() - start:.0f} s in all")
    return rows


def describe(row: dict) -> str:
    """One line of progress."""
    if row.get("error"):
        return f"{row['size']} {row['way']}: {row['error']}"
    return (
        f"{row['size']} {row['way']}: {row['tokens_per_second']:,.0f} tokens/s "
        f"({row['low']:,.0f} to {row['high']:,.0f}), MFU {row['mfu']:.3f}, {row['steps']} steps, "
        f"{row['students']} students, {row['rows_per_pass']} rows a pass, {row['padding']:.1%} padding, "
        f"{row['memory_gb']:.1f} GB, {row['compile_seconds']:.0f} s of compiling and planning"
    )


def report_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write_report(out: Path) -> None:
    """The comparison on the screen, projection and figures as files, all from the CSV's rows."""
    chosen = speed.choose_runs(speed.read_rows(out))
    if not chosen:
        print(f"{out} holds no measurement that succeeded")
        return
    print(show(pd.DataFrame(speed.compare_ways(chosen))))
    home = out.parent.resolve() == paths.benchmarks()
    figures = paths.figures("bench") if home else out.parent
    for ladder in dict.fromkeys(speed.ladder_of(size) for size in chosen):
        points = pd.DataFrame(speed.list_points(chosen, ladder))
        name = "roofline" if ladder == "qwen" else f"roofline-{ladder}"
        plots.save_figures(figures, **{name: plots.draw(plots.roofline, points)})
    if set(chosen) & set(speed.QWEN):
        projection = pd.DataFrame(speed.project_grid(chosen, speed.Grid()))
        text = projection.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        files.write_text(out.with_name("projection.csv"), text)
        print(f"\nhours of training for the whole grid (see {out.with_name('projection.csv').name})")
        print(show(projection.drop(columns="rests_on")))
    print(f"\nfrom {out.name}; figures and tables in {figures.name}/")


def show(table: pd.DataFrame) -> str:
    return table.to_string(index=False, na_rep="", float_format=lambda value: f"{value:,.4g}")


# --- the command ------------------------------------------------------------------------------


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked before anything is built."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", default="", help="comma list; by default all that suit the device")
    add("--ways", default=",".join(speed.WAYS), help="comma list of defaults, tuned, fleet")
    add("--students", type=int, default=16, help="offered to the fleet, which takes as many as fit")
    add("--rows-each", type=int, default=0, help="rows of a student in a pass of the fleet; 0: what fits")
    add("--seconds", type=float, default=20.0, help="timed at least, per size and way")
    add("--steps", type=int, default=5, help="timed at least, unless --most is reached first")
    add("--most", type=float, default=120.0, help="seconds after which two timed steps are enough")
    add("--warmup", type=int, default=2, help="steps before the timing")
    add("--dtype", default="", choices=("", "float32", "bfloat16"), help="of random weights")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--out", type=Path, default=None, help="the CSV; rows are appended")
    add("--profile", action="store_true", help="profile one more step of each way, beside the CSV")
    add("--toy", action="store_true", help="two tiny models of random weights, a few steps")
    add("--report", action="store_true", help="measure nothing, only tables and figure from the CSV")
    options = parser.parse_args(arguments)
    options.device = torch.device(placement.choose_device(options.device))
    cuda = options.device.type == "cuda"
    options.dtype = getattr(torch, options.dtype or ("bfloat16" if cuda else "float32"))
    if options.toy:
        options.seconds, options.steps, options.most = 0.0, 2, 10.0
    sizes = speed.TOYS if options.toy else speed.QWEN if cuda else speed.MICRO
    options.sizes = split(options.sizes) or list(sizes)
    options.ways = split(options.ways)
    for size in options.sizes:
        speed.ladder_of(size)
    for way in options.ways:
        if way not in speed.WAYS:
            raise BadParameter(f"unknown way {way!r}; choose of {', '.join(speed.WAYS)}")
    options.out = options.out or default_out(options)
    return options


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def default_out(options: argparse.Namespace) -> Path:
    if options.toy:
        return paths.root() / "artifacts" / "bench" / "toy.csv"
    name = device_name(options.device).lower().replace(" ", "-") if options.device.type == "cuda" else "cpu"
    return paths.benchmarks() / f"{name}.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every way that was asked for was measured."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        options = read_options(arguments)
        rows = [] if options.report else measure_all(options)
        write_report(options.out)
    except StudyError as error:
        print(error, file=sys.stderr)
        return 2
    return int(any(row.get("error") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
