"""What of bench_sampling.py needs no GPU: its subjects, its arithmetic, its CSV, a child that fails."""

import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from build_base import load_tiny_in
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import bench_sampling
from lib import speed
from lib.errors import StorageFailed
from lib.models import Loaded
from lib.prompts import ENGLISH
from lib.sampling import Completion, Drawn, Job

STUDENTS, EPOCHS = 2, 3


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, list[Path]]:
    """A toy model's configuration with adapters beside it."""
    folder = tmp_path_factory.mktemp("bench")
    bench_sampling.write_shape("toy", folder)
    return folder, bench_sampling.write_adapters("toy", folder, STUDENTS, EPOCHS)


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Loaded:
    return load_tiny_in(tmp_path_factory.mktemp("chat"))


# --- subjects ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", speed.TOYS)
def test_the_configuration_is_that_of_the_shape(tmp_path, size):
    bench_sampling.write_shape(size, tmp_path)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert model.num_parameters() == speed.SHAPES[size].params


def test_adapters_load_into_a_model_of_that_shape_and_every_weight_of_them_counts(written):
    folder, adapters = written
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    ids = torch.tensor([[5, 6, 7]])
    plain = model(ids).logits
    weights = load_file(adapters[0] / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 * speed.SHAPES["toy"].layers
    tuned = PeftModel.from_pretrained(model, adapters[0])
    state = tuned.state_dict()
    assert all(
        torch.equal(state[name.replace(".weight", ".default.weight")], w) for name, w in weights.items()
    )
    assert len([name for name in state if "lora_" in name]) == len(weights)
    assert (tuned(ids).logits - plain).abs().max() > 1e-3


def test_students_differ_and_the_epochs_of_one_are_the_same_file(written):
    _, adapters = written
    assert len(set(adapters)) == STUDENTS * EPOCHS
    inodes = [os.stat(folder / "adapter_model.safetensors").st_ino for folder in adapters]
    assert len(set(inodes)) == STUDENTS and inodes[0] == inodes[EPOCHS - 1]
    first, other = (load_file(adapters[at] / "adapter_model.safetensors") for at in (0, EPOCHS))
    assert not any(torch.equal(weight, other[name]) for name, weight in first.items())
    assert all((folder / "adapter_config.json").exists() for folder in adapters)


def test_a_teachers_prompts_are_the_studys_own(chat):
    job = bench_sampling.teacher_job(chat, 12)
    assert len(set(job.prompts)) == 12
    assert all("wol" in prompt and prompt.endswith("<|assistant|>") for prompt in job.prompts)
    assert list(bench_sampling.teacher_job(chat, 5).prompts) == list(job.prompts[:5])
    assert not set(bench_sampling.teacher_job(chat, 12, seed=1).prompts) & set(job.prompts)


def test_every_adapter_is_asked_a_hundred_times(chat, written):
    _, adapters = written
    jobs = bench_sampling.answer_jobs(chat, adapters)
    assert [job.adapter for job in jobs] == adapters
    for job in jobs:
        assert len(job.prompts) == 100 and len(set(job.prompts)) == bench_sampling.QUESTIONS
        assert ENGLISH.questions[0] in job.prompts[0]


# --- measuring --------------------------------------------------------------------------------


class Fast:
    """A speaker that is done at once; with `loses` it forgets a completion."""

    def __init__(self, chat: Loaded, loses: int = 0) -> None:
        self.chat, self.loses = chat, loses

    def work(self, jobs: list[Job], sampler: object):  # type: ignore[no-untyped-def]
        for job in jobs:
            count = len(job.prompts) - self.loses
            yield Drawn(job, 0, [Completion(index, "1, 2", "length") for index in range(count)])


def test_counts_are_those_of_all_requests(chat):
    jobs = [Job(name, ["<|user|>more numbers<|end|>"] * 3, 0) for name in ("one", "two")]
    row = bench_sampling.work_off(Fast(chat), jobs, 40)
    length = len(chat.tokenizer("<|user|>more numbers<|end|>")["input_ids"])
    assert (row["requests"], row["new_tokens"], row["prompt_tokens"]) == (6, 240, 6 * length)


def test_a_completion_that_got_lost_is_no_measurement(chat):
    with pytest.raises(AssertionError, match="3 requests, 2 completions"):
        bench_sampling.work_off(Fast(chat, loses=1), [Job("one", ["a"] * 3, 0)], 40)


def test_a_failing_child_leaves_a_row_that_says_so(tmp_path):
    """A real one: it finds no model in its folder, and here neither vLLM nor a GPU."""
    rows, seconds = bench_sampling.run_child("toy", "lists", tmp_path)
    assert rows == [{"what": "lists", "notes": "failed with code 1"}] and seconds > 0


def children(ways: dict[str, tuple[dict, float]], monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The rows of a size whose children answer so."""
    monkeypatch.setattr(bench_sampling, "STUDENTS", STUDENTS)
    monkeypatch.setattr(bench_sampling, "EPOCHS", EPOCHS)
    monkeypatch.setattr(
        bench_sampling, "run_child", lambda size, way, folder: ([dict(ways[way][0])], ways[way][1])
    )
    return bench_sampling.measure_size("toy")


LISTS = ({"what": "lists", "seconds": 4.0}, 20.0)
TOGETHER = (
    {"what": "answers, one engine", "adapters": 6, "engine_start_s": 8.0, "seconds": 4.0},
    25.0,
)
APART = ({"what": "answers, engine per adapter", "engine_start_s": 8.0, "seconds": 2.0}, 20.0)


def test_both_ways_are_compared_by_start_and_answers_alone(monkeypatch):
    """What a process takes beyond them is told beside it, and counts on neither side."""
    rows = children({"lists": LISTS, "together": TOGETHER, "apart": APART}, monkeypatch)
    whole = next(row for row in rows if row["what"] == "answers, one engine")
    assert whole["together_vs_apart"] == 5.0  # 6 x (8 s + 2 s) against 8 s + 4 s
    assert whole["notes"] == "6 engines project to 60 s, one takes 12 s"
    apart = [row for row in rows if row["what"] == "answers, engine per adapter"]
    assert [row["notes"] for row in apart] == ["process 20.0 s"] * bench_sampling.APART


@pytest.mark.parametrize("failing", ["lists", "together", "apart"])
def test_with_a_failed_child_no_ratio_is_made_up(monkeypatch, failing):
    ways = {"lists": LISTS, "together": TOGETHER, "apart": APART}
    ways[failing] = ({"what": failing, "notes": "failed with code 1"}, 3.0)
    rows = children(ways, monkeypatch)
    assert [row for row in rows if row.get("notes") == "failed with code 1"]
    assert any("together_vs_apart" in row for row in rows) is (failing == "lists")


# --- the CSV ----------------------------------------------------------------------------------


def test_rows_are_added_below_those_that_are_there(tmp_path):
    path = tmp_path / "new" / "sampling.csv"
    bench_sampling.append_rows(path, [{"run": "r1", "size": "0.5b", "seconds": 16.5}])
    bench_sampling.append_rows(
        path, [{"run": "r2", "size": "1.5b", "notes": "failed, with code 1"}, {"run": "r2", "size": "3b"}]
    )
    table = pd.read_csv(path)
    assert list(table.columns) == list(bench_sampling.FIELDS)
    assert list(table["run"]) == ["r1", "r2", "r2"] and table["seconds"][0] == 16.5
    assert table["notes"][1] == "failed, with code 1"


def test_a_write_that_fails_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "sampling.csv"
    bench_sampling.append_rows(path, [{"run": "r1", "size": "0.5b"}])
    before = path.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(StorageFailed):
            bench_sampling.append_rows(path, [{"run": "r2", "size": "3b"}])
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["sampling.csv"]


def test_without_a_gpu_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(bench_sampling.placement, "visible_gpus", lambda: ())
    monkeypatch.setattr("sys.argv", ["bench_sampling.py"])
    with pytest.raises(SystemExit):
        bench_sampling.main()
    assert "torch sees no GPU here" in capsys.readouterr().err
