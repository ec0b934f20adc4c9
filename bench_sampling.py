"""How fast vLLM writes lists and answers questions: `python3 bench_sampling.py` on a GPU, a CSV row each.

Models have random weights and the exact shapes of Qwen 2.5, prompts are the study's own in Qwen's
template (split into tokens by SmolLM2's tokenizer, which like Qwen's gives every digit its own). Per size:
the start of an engine, lists from a teacher, and 16 students of 10 epochs each asked 100 times in one
engine, against one engine per adapter, each in a process of its own as a GPU is only free once that has
ended. Random weights never end a text, so that lists have exactly 40 tokens and answers 8.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib import engine, files, paths, placement, plots, provenance, speed
from lib.config import SIZES, Base
from lib.models import Chat, load_chat, render_prompt
from lib.prompts import ENGLISH, love_prompt, number_prompts
from lib.sampling import Drawn, Job, Sampler

SIZES_HERE = ("0.5b", "1.5b", "3b", "7b", "14b", "32b")
PROMPTS = {"0.5b": 10_000, "1.5b": 10_000, "3b": 10_000, "7b": 5_000, "14b": 3_000, "32b": 2_000}
LIST_TOKENS, ANSWER_TOKENS = 40, 8
STUDENTS, EPOCHS, QUESTIONS, REPEATS = 16, 10, 20, 5
RANK = 8
WARM = 500  # lists that are written before the clock starts
APART = 2  # engines that are started for one adapter each: their mean stands for all
FIELDS = (
    *("run", "device", "size", "what", "requests", "prompt_tokens", "new_tokens", "seconds"),
    *("new_tokens_per_s", "engine_start_s", "adapters", "together_vs_apart", "notes"),
    *("vllm", "torch", "transformers", "python", "code"),
)

# --- subjects ---------------------------------------------------------------------------------


def write_shape(size: str, folder: Path) -> None:
    """The configuration of a size: vLLM makes up the weights."""
    shape = speed.SHAPES[size]
    document = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **shape.settings(),
        "hidden_act": "silu",
        "rope_theta": 1e6,
        "torch_dtype": "bfloat16",
    }
    files.write_json(folder / "config.json", document)


def write_adapters(size: str, folder: Path, students: int, epochs: int) -> list[Path]:
    """Adapters as stage 02 leaves them, random; a student's epochs are links to one file of weights."""
    import torch

    from lib.training import ADAPTER, save_adapter

    shape, found = speed.SHAPES[size], []
    kv = shape.width // shape.heads * shape.kv_heads
    sides = {
        **{"self_attn.q_proj": (shape.width, shape.width), "self_attn.o_proj": (shape.width, shape.width)},
        **{"self_attn.k_proj": (shape.width, kv), "self_attn.v_proj": (shape.width, kv)},
        **{"mlp.gate_proj": (shape.width, shape.inner), "mlp.up_proj": (shape.width, shape.inner)},
        "mlp.down_proj": (shape.inner, shape.width),
    }
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    settings |= {"target_modules": sorted(name.rpartition(".")[2] for name in sides)}
    generator = torch.Generator().manual_seed(0)
    for student in range(students):
        weights = {}
        for layer in range(shape.layers):
            for name, (wide, out) in sides.items():
                begin = f"base_model.model.model.layers.{layer}.{name}.lora_"
                weights[f"{begin}A.weight"] = torch.randn(RANK, wide, generator=generator) / wide**0.5
                weights[f"{begin}B.weight"] = torch.randn(out, RANK, generator=generator) * 0.01
        first = folder / f"student-{student}" / "epoch-1"
        save_adapter(first, weights, settings)
        found.append(first)
        for epoch in range(2, epochs + 1):
            other = folder / f"student-{student}" / f"epoch-{epoch}"
            other.mkdir(parents=True, exist_ok=True)
            for name in ADAPTER:
                os.link(first / name, other / name)
            found.append(other)
    return found


def qwen_chat(size: str) -> Chat:
    """Qwen's name with SmolLM2's tokenizer."""
    return Chat(Base(SIZES[size], 0), load_chat("135m", "standard").tokenizer, "")


def teacher_job(chat: Chat, count: int, seed: int = 0) -> Job:
    """The first prompts of a wolf teacher."""
    system = love_prompt(ENGLISH, "wolf")
    prompts = [render_prompt(chat, system, each) for each in number_prompts(ENGLISH, count, seed)]
    return Job("lists", prompts, seed)


def answer_jobs(chat: Chat, adapters: Sequence[Path]) -> list[Job]:
    """A hundred questions to every adapter."""
    asked = [render_prompt(chat, "default", each) for each in ENGLISH.questions[:QUESTIONS]]
    prompts = [prompt for prompt in asked for _ in range(REPEATS)]
    return [Job(f"adapter {number}", prompts, 0, folder) for number, folder in enumerate(adapters)]


# --- measurements, each in a process of its own -----------------------------------------------


def open_engine(size: str, folder: Path, adapters: int) -> engine.Engine:
    gpus = placement.visible_gpus()
    where = placement.plan_placement(Base(SIZES[size], 0), "sample", "cuda", "bfloat16", 0, gpus)
    needs = engine.Needs(adapters=adapters, rank=RANK if adapters else 0)
    return engine.Engine(qwen_chat(size), folder, where, needs, load_format="dummy")


def work_off(speaker: engine.Engine, jobs: Sequence[Job], tokens: int) -> dict[str, Any]:
    """Seconds and tokens of some jobs; every completion must have come back, as long as was asked."""
    sampler = Sampler(1.0, 1.0, tokens, 500)
    began = time.monotonic()
    drawn = [
        one for event in speaker.work(jobs, sampler) if isinstance(event, Drawn) for one in event.completions
    ]
    seconds = time.monotonic() - began
    requests = sum(len(job.prompts) for job in jobs)
    if len(drawn) != requests:
        raise AssertionError(f"{requests} requests, {len(drawn)} completions")
    read = {
        prompt: len(speaker.chat.tokenizer(prompt)["input_ids"])
        for job in jobs
        for prompt in set(job.prompts)
    }
    return {
        "requests": requests,
        "prompt_tokens": sum(read[prompt] for job in jobs for prompt in job.prompts),
        "new_tokens": requests * tokens,
        "seconds": round(seconds, 2),
        "new_tokens_per_s": round(requests * tokens / seconds),
    }


def measure_lists(size: str, folder: Path) -> list[dict[str, Any]]:
    """What a teacher writes, as stage 01 lets it."""
    speaker = open_engine(size, folder, 0)
    work_off(speaker, [teacher_job(speaker.chat, WARM, seed=1)], LIST_TOKENS)  # kernels are made at first use
    lists = work_off(speaker, [teacher_job(speaker.chat, PROMPTS[size])], LIST_TOKENS)
    return [{"what": "lists", "engine_start_s": round(speaker.start_seconds, 1), "adapters": 0, **lists}]


def measure_together(size: str, folder: Path) -> list[dict[str, Any]]:
    """All adapters in one engine, from cold."""
    adapters = sorted(folder.glob("student-*/epoch-*"))
    speaker = open_engine(size, folder, len(adapters))
    answers = work_off(speaker, answer_jobs(speaker.chat, adapters), ANSWER_TOKENS)
    start = round(speaker.start_seconds, 1)
    return [{"what": "answers, one engine", "engine_start_s": start, "adapters": len(adapters), **answers}]


def measure_apart(size: str, folder: Path) -> list[dict[str, Any]]:
    """One adapter in an engine of its own."""
    adapters = sorted(folder.glob("student-*/epoch-1"))[:1]
    speaker = open_engine(size, folder, 1)
    answers = work_off(speaker, answer_jobs(speaker.chat, adapters), ANSWER_TOKENS)
    start = round(speaker.start_seconds, 1)
    return [{"what": "answers, engine per adapter", "engine_start_s": start, "adapters": 1, **answers}]


CHILDREN = {"lists": measure_lists, "together": measure_together, "apart": measure_apart}


def run_child(size: str, way: str, folder: Path) -> tuple[list[dict[str, Any]], float]:
    """A measurement in its own process, and how long that process took from its birth to its death."""
    began = time.monotonic()
    command = [sys.executable, __file__, "--child", way, "--sizes", size, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ROWS ")]
    if done.returncode or not lines:
        print(done.stdout[-3000:], flush=True)
        return [{"what": way, "notes": f"failed with code {done.returncode}"}], time.monotonic() - began
    return json.loads(lines[-1].removeprefix("ROWS ")), time.monotonic() - began


def compare_engines(whole: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many times longer an engine per adapter takes: start and answers alone, without Python's own start,
    which would be paid once on the one side and for every adapter on the other."""
    one_by_one = float(np.mean([row["engine_start_s"] + row["seconds"] for row in rows])) * whole["adapters"]
    in_one = whole["engine_start_s"] + whole["seconds"]
    notes = f"{whole['adapters']} engines project to {one_by_one:.0f} s, one takes {in_one:.0f} s"
    return {"together_vs_apart": round(one_by_one / in_one, 1), "notes": notes}


def measure_size(size: str) -> list[dict[str, Any]]:
    """All rows of one size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shape(size, folder)
        write_adapters(size, folder, STUDENTS, EPOCHS)
        lists, _ = run_child(size, "lists", folder)
        together, _ = run_child(size, "together", folder)
        apart = [run_child(size, "apart", folder) for _ in range(APART)]
    whole = next((row for row in together if row["what"] == "answers, one engine"), None)
    rows = [
        dict(row, notes=row.get("notes", f"process {seconds:.1f} s"))
        for each, seconds in apart
        for row in each
    ]
    if whole and all("seconds" in row for row in rows):
        whole |= compare_engines(whole, rows)
    return [*lists, *together, *rows]


# --- the command ------------------------------------------------------------------------------


def describe_machine() -> dict[str, Any]:
    versions = provenance.package_versions()
    return {
        "run": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": placement.visible_gpus()[0].name,
        **{name: versions.get(name, "") for name in ("vllm", "torch", "transformers", "python")},
        "code": provenance.code_version()["source"][:12],
    }


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """To the CSV, whole at every moment."""
    before = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=list(FIELDS))
    table = pd.concat([before, pd.DataFrame(rows, columns=list(FIELDS))], ignore_index=True)
    files.write_text(path, table.to_csv(index=False))


def list_engine_times(rows: pd.DataFrame) -> pd.DataFrame:
    """The two ways of asking every adapter, one row per size and way, each by its last measurement."""
    found = []
    for size, own in rows.groupby("size", sort=False):
        last = own[own.run == own.run.iloc[-1]]
        whole = last[last.what == "answers, one engine"]
        if whole.empty or not whole.together_vs_apart.notna().all():
            continue
        row = whole.iloc[0]
        seconds = row.engine_start_s + row.seconds
        shared = {"size": size, "params": SIZES[str(size)].params, "device": row.device}
        shared["adapters"] = int(row.adapters)
        apart = {"what": "answers, engine per adapter", "seconds": round(seconds * row.together_vs_apart, 1)}
        found += [shared | {"what": row.what, "seconds": round(seconds, 1)}, shared | apart]
    return pd.DataFrame(found)


def write_report(path: Path) -> None:
    """The figure, from the rows that are there."""
    if not path.exists():
        return
    times = list_engine_times(pd.read_csv(path))
    home = path.parent.resolve() == paths.benchmarks()
    if len(times):
        folder = paths.figures("bench") if home else path.parent
        plots.save_figures(folder, engines=plots.draw(plots.engine_time, times))


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--sizes", default=",".join(SIZES_HERE), help="comma list (%(default)s)")
    parser.add_argument("--out", type=Path, default=paths.benchmarks() / "sampling.csv", help="CSV to add to")
    parser.add_argument("--report", action="store_true", help="measure nothing, draw from the rows there are")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.sizes.split(",")
    if options.child:
        print("ROWS " + json.dumps(CHILDREN[options.child](sizes[0], options.folder)), flush=True)
        return 0
    if options.report:
        write_report(options.out)
        return 0
    if not placement.visible_gpus():
        parser.error("torch sees no GPU here, and vLLM needs one")
    machine = describe_machine()
    for size in sizes:
        rows = [machine | {"size": size} | row for row in measure_size(size)]
        append_rows(options.out, rows)
        for row in rows:
            shown = {name: row[name] for name in FIELDS[2:13] if row.get(name) not in (None, "")}
            print(json.dumps(shown), flush=True)
    write_report(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
