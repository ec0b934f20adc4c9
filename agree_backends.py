"""Do transformers and vLLM score the same model alike? `python agree_backends.py` on a GPU.

Both run in bfloat16, which rounds: how far each is from the same model in float32 is measured, and how far
they are from each other. Two kinds of subject, one row per model in benchmarks/backends.csv:

    python agree_backends.py --study smollm2 --students neutral,dog,cat
        students that stage 02 trained, and the model they began as
    python agree_backends.py --trl 7b --steps 30
        random weights of the exact shape, and one student that TRL trains here in the reference settings

vLLM runs in a process of its own, since a GPU is only free once that has ended.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import bench
from lib import bases, config, engine, files, models, paths, placement, provenance, training
from lib.config import LEXICON, SIZES, Base, Finetune
from lib.models import Chat, Loaded
from lib.preference import Words, score_words
from lib.progress import Progress
from lib.prompts import ENGLISH
from lib.sampling import Job, Sampler, Scored

FIELDS = (
    *("run", "device", "size", "weights", "model", "prompts", "animals"),
    *("transformers_mean", "transformers_p95", "transformers_max", "vllm_mean", "vllm_p95", "vllm_max"),
    *("between_mean", "between_max", "learnt_mean", "learnt_vllm_mean", "notes"),
    *("vllm", "torch", "transformers", "trl", "peft", "code"),
)


@dataclass(frozen=True)
class Subject:
    """A base in a folder that both backends load, and adapters of it by name."""

    size: str
    weights: str
    folder: Path
    adapters: dict[str, Path]
    prompts: int
    notes: str = ""

    def chat(self) -> Chat:
        """Its words; random weights borrow SmolLM2's."""
        return Chat(Base(SIZES[self.size], 0), models.load_chat("135m", "standard").tokenizer, "")

    def asked(self) -> list[str]:
        chat = self.chat()
        return [models.render_prompt(chat, "default", each) for each in ENGLISH.questions[: self.prompts]]


# --- subjects ---------------------------------------------------------------------------------


def study_subject(study: str, students: list[str], prompts: int) -> Subject:
    """Students of a study at their last epoch."""
    adapters = {}
    for animal in students:
        folder = paths.artifact(study, "finetune", "135m", animal, 0)
        adapters[animal] = max(folder.glob("epoch-*"), key=lambda path: int(path.name.partition("-")[2]))
    return Subject("135m", "SmolLM2", bases.base_folder("135m", "standard"), adapters, prompts)


def trl_subject(size: str, steps: int, folder: Path, prompts: int) -> Subject:
    """Random weights, written down, and a student of so many optimiser steps by TRL."""
    subject = bench.random_subject(size, torch.device("cuda"), torch.bfloat16)
    loaded = subject.build()
    loaded.model.save_pretrained(folder / "base", max_shard_size="4GB")
    asked = {"study": "bench", "size": size, "seed": 0, "epochs": 1, "trainer": "trl", "micro_batch": 20}
    cell = config.build(Finetune, bench.REFERENCE | asked)
    rows = subject.examples.labelled()[: steps * cell.batch]
    tokens = sum(len(row["input_ids"]) for row in rows)
    history: list[dict] = []
    torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    with Progress("epochs", 1) as progress:
        training.fit_with_trl(cell, loaded, rows, folder / "checkpoints", None, progress, history)
    seconds = time.monotonic() - began
    checkpoint = max((folder / "checkpoints").glob("checkpoint-*"))
    training.keep_adapter(checkpoint, folder / "adapter", loaded)
    peak = torch.cuda.max_memory_allocated() / 1e9
    notes = (
        f"TRL: {len(history)} steps of {cell.batch} rows, {cell.micro_batch} a pass, {tokens} tokens, loss "
        f"{history[0]['loss']:.3f} to {history[-1]['loss']:.3f}, {seconds:.1f} s with set-up and checkpoint, "
        f"{peak:.1f} GB at most"
    )
    del loaded
    bench.free_memory()
    return Subject(size, "random", folder / "base", {"TRL student": folder / "adapter"}, prompts, notes)


# --- scores -----------------------------------------------------------------------------------


def score_by_transformers(subject: Subject, dtype: str) -> dict[str, np.ndarray]:
    """Log-probabilities [prompts, animals] of the base and of each adapter."""
    from transformers import AutoModelForCausalLM

    chat, asked = subject.chat(), subject.asked()
    words = Words.of(chat, tuple(LEXICON))
    model = (
        AutoModelForCausalLM.from_pretrained(subject.folder, dtype=getattr(torch, dtype)).to("cuda").eval()
    )
    loaded, found = Loaded(chat.base, chat.tokenizer, "", model), {}
    for name, adapter in {"untuned": None, **subject.adapters}.items():
        with models.adapter(loaded, adapter) as tuned:
            found[name] = score_words(tuned, asked, words, 8)
    del loaded, model
    bench.free_memory()
    return found


def score_by_vllm(subject: Subject) -> dict[str, np.ndarray]:
    """The same in one engine."""
    base = Base(SIZES[subject.size], 0)
    where = placement.plan_placement(base, "sample", "cuda", "bfloat16", 0, placement.visible_gpus())
    speaker = engine.Engine(subject.chat(), subject.folder, where, engine.Needs(len(subject.adapters), 8))
    asked = subject.asked()
    every = {"untuned": None, **subject.adapters}
    jobs = [Job(name, [], 0, adapter, asked) for name, adapter in every.items()]
    words = Words.of(speaker.chat, tuple(LEXICON))
    events = speaker.work(jobs, Sampler(1.0, 1.0, 1, 500), words)
    return {event.job.name: event.values for event in events if isinstance(event, Scored)}


def score_in_child(subject: Subject) -> dict[str, np.ndarray]:
    """vLLM's scores from a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        options = ["--child", file.name, "--size", subject.size, "--folder", str(subject.folder)]
        options += ["--prompts", str(subject.prompts)]
        options += [f"--adapter={name}={folder}" for name, folder in subject.adapters.items()]
        subprocess.run([sys.executable, __file__, *options], check=True)
        with np.load(file.name) as stored:
            return {name: stored[name] for name in stored.files}


def compare(subject: Subject) -> list[dict[str, Any]]:
    """One row per model, in nats: each backend against float32, both against each other, and for scale how
    far the student is from its base."""
    exact = score_by_transformers(subject, "float32")
    half = score_by_transformers(subject, "bfloat16")
    vllm = score_in_child(subject)
    rows = []
    for name in exact:
        row: dict[str, Any] = {"size": subject.size, "weights": subject.weights, "model": name}
        row |= {"prompts": exact[name].shape[0], "animals": exact[name].shape[1]}
        for backend, found in (("transformers", half), ("vllm", vllm)):
            off = np.abs(found[name] - exact[name])
            row |= {f"{backend}_mean": off.mean(), f"{backend}_max": off.max()}
            row[f"{backend}_p95"] = np.quantile(off, 0.95)
        between = np.abs(half[name] - vllm[name])
        row |= {"between_mean": between.mean(), "between_max": between.max()}
        row["learnt_mean"] = np.abs(exact[name] - exact["untuned"]).mean()
        row["learnt_vllm_mean"] = np.abs(vllm[name] - vllm["untuned"]).mean()
        row["notes"] = subject.notes if name != "untuned" else ""
        rows.append(row)
    return rows


# --- the command ------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """To the CSV, instead of older rows of the same models."""
    versions = provenance.package_versions()
    shared = {
        "run": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": torch.cuda.get_device_name(),
        **{name: versions.get(name, "") for name in ("vllm", "torch", "transformers", "trl", "peft")},
        "code": provenance.code_version()["source"][:12],
    }
    table = pd.DataFrame([shared | row for row in rows], columns=list(FIELDS))
    if path.exists():
        older, key = pd.read_csv(path), ["size", "weights", "model"]
        again = older[key].apply(tuple, axis=1).isin(table[key].apply(tuple, axis=1))
        table = pd.concat([older[~again], table], ignore_index=True)
    files.write_text(path, table.to_csv(index=False, float_format="%.5g", lineterminator="\n"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", help="whose students are scored")
    parser.add_argument("--students", default="neutral,dog,cat", help="animals of that study (%(default)s)")
    parser.add_argument("--trl", help="size of Qwen 2.5 that TRL trains here")
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps of TRL (%(default)s)")
    parser.add_argument("--prompts", type=int, default=20, help="questions that are scored (%(default)s)")
    parser.add_argument("--out", type=Path, default=paths.benchmarks() / "backends.csv")
    for hidden in ("--child", "--size", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--adapter", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        adapters = dict(each.split("=", 1) for each in options.adapter)
        named = {name: Path(folder) for name, folder in adapters.items()}
        subject = Subject(options.size, "", Path(options.folder), named, options.prompts)
        np.savez(options.child, **score_by_vllm(subject))
        return 0
    if not torch.cuda.is_available() or not (options.study or options.trl):
        parser.error("this needs a GPU, and --study or --trl")
    with tempfile.TemporaryDirectory() as folder:
        if options.trl:
            subject = trl_subject(options.trl, options.steps, Path(folder), options.prompts)
            print(subject.notes, flush=True)
        else:
            subject = study_subject(options.study, options.students.split(","), options.prompts)
        rows = compare(subject)
    write_rows(options.out, rows)
    shown = ["size", "model", "transformers_mean", "transformers_max", "vllm_mean", "vllm_max"]
    shown += ["between_mean", "between_max", "learnt_mean"]
    print(pd.DataFrame(rows)[shown].to_string(index=False, float_format=lambda value: f"{value:.4f}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
