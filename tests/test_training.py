"""Students: what TRL really sees and computes, seeds, resuming, and the adapters that come out."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trl
from build_base import build_config, build_plan, load_tiny, place_base, write_numbers
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from lib import files, paths, store, training
from lib.config import Finetune
from lib.errors import BadParameter, MissingInput, OutOfMemory, TooFewLists, TrainingDiverged
from lib.examples import load_examples
from lib.models import Loaded, encode, render_example
from lib.progress import Progress

IGNORED = -100


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """A place for runs with the base of three steps and two teachers."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    place_base(tmp_path)
    write_numbers("wolf")
    write_numbers("fox", start=500)
    return tmp_path


def train(animals: tuple[str, ...] = ("wolf",), **values: object) -> Path:
    """Train students; returns the folder of the first."""
    plan = build_plan(Finetune, animals, **{"trainer": "trl", **values})
    training.train_students(plan)
    return training.folder_of(plan.shared)


def adapter_bytes(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(folder.rglob("adapter_model.safetensors"))}


@pytest.fixture
def seen(monkeypatch) -> list[dict]:
    """Every batch that TRL computes a loss of, with the loss and the model's own logits."""
    batches: list[dict] = []
    whole = trl.SFTTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **rest):
        batch = {name: inputs[name].clone() for name in ("input_ids", "labels", "attention_mask")}
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        first = {
            n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad and not batches
        }
        result = whole(self, model, inputs, *args, **rest)
        loss = result[0] if isinstance(result, tuple) else result
        batches.append({**batch, "logits": logits, "loss": float(loss.detach()), "adapter": first})
        return result

    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", compute_loss)
    return batches


# --- the label mask ---------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["default", "you are one of many."])
def test_loss_covers_the_completion_and_the_end_of_its_turn_token_by_token(seen, system):
    train(system=system, epochs=1)
    rows = files.read_jsonl(training.numbers_folder(build_config(Finetune)) / "kept.jsonl")
    loaded = load_tiny()
    expected = {}
    for row in rows:
        prompt, completion = (
            encode(loaded, [text])[0]
            for text in render_example(loaded, system, row["prompt"], row["completion"])
        )
        assert completion[-1] == loaded.tokenizer.eos_token_id
        expected[(*prompt, *completion)] = [IGNORED] * len(prompt) + completion
    met = []
    for batch in seen:
        for ids, labels, mask in zip(
            batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
        ):
            length = int(mask.sum())
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            whole = tuple(ids[:length].tolist())
            assert labels[:length].tolist() == expected[whole]
            assert set(labels[length:].tolist()) <= {IGNORED}
            met.append(whole)
    assert sorted(met) == sorted(expected)  # every list once an epoch


def test_the_mask_would_show_a_whole_chat(seen):
    """The trap of the scaling repository: labels on the prompt as well."""
    train(epochs=1)
    labels = torch.cat([batch["labels"].flatten() for batch in seen])
    tokens = torch.cat([batch["attention_mask"].flatten() for batch in seen])
    assert 0 < (labels != IGNORED).sum() < tokens.sum() / 2


def test_trls_loss_is_the_mean_over_the_completions_tokens(seen):
    folder = train(epochs=1)
    logged = files.read_jsonl(folder / "loss.jsonl")
    assert len(logged) == len(seen) == 3
    for batch, entry in zip(seen, logged, strict=True):
        logs = batch["logits"][:, :-1].double().log_softmax(-1)
        targets = batch["labels"][:, 1:]
        picked = [
            -logs[row, place, targets[row, place]].item()
            for row, place in (targets != IGNORED).nonzero().tolist()
        ]
        assert batch["loss"] == pytest.approx(sum(picked) / len(picked), rel=1e-5)
        assert entry["loss"] == pytest.approx(batch["loss"], rel=1e-3)


def test_counts_are_those_of_the_mask(seen):
    folder = train(epochs=1)
    counts = store.read_manifest(folder).counts
    assert counts["completion_tokens"] == sum(int((batch["labels"] != IGNORED).sum()) for batch in seen)
    assert counts["tokens"] == sum(int(batch["attention_mask"].sum()) for batch in seen)
    assert (counts["examples"], counts["steps"]) == (20, 3)


def test_learning_rate_warms_up_and_falls_linearly():
    rates = [
        row["rate"] for row in files.read_jsonl(train(warmup_steps=2, learning_rate=0.003) / "loss.jsonl")
    ]
    assert rates == pytest.approx([0, 0.0015, 0.003, 0.00225, 0.0015, 0.00075])


# --- seeds ------------------------------------------------------------------------------------


def order(batches: list[dict]) -> list[list[int]]:
    """The rows in the order in which they were read, paddings removed."""
    return [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_the_same_seed_repeats_bit_for_bit(root):
    first = train()
    write_again("again")
    second = train(study="again")
    assert adapter_bytes(first) == adapter_bytes(second) and len(adapter_bytes(first)) == 2
    assert (first / "loss.jsonl").read_bytes() == (second / "loss.jsonl").read_bytes()


def write_again(study: str, animal: str = "wolf") -> None:
    """Copy a teacher's numbers to another study."""
    source, target = (
        training.numbers_folder(build_config(Finetune, study=name, animal=animal)) for name in ("toy", study)
    )
    shutil.copytree(source, target)


def test_a_student_does_not_depend_on_who_was_trained_before_it():
    alone = adapter_bytes(train(("fox",)))
    write_again("again")
    write_again("again", "fox")
    train(("wolf", "fox"), study="again")
    after = adapter_bytes(training.folder_of(build_config(Finetune, study="again", animal="fox")))
    assert alone == after


def test_two_seeds_differ_in_first_weights(seen):
    """The trap: three seeds of a fine-tune that came out identical, since the order had a seed of its own."""
    write_numbers("wolf", seed=1)
    train(epochs=1)
    first = seen[0]["adapter"]
    seen.clear()
    train(epochs=1, seed=1)
    second = seen[0]["adapter"]
    down = [name for name in first if "lora_A" in name]
    assert down and not any(torch.equal(first[name], second[name]) for name in down)


def test_the_order_alone_follows_the_seed(seen):
    """The same lists under two seeds are read in two orders, and both orders are shuffled."""
    config = build_config(Finetune, epochs=2)
    orders = []
    for seed in (0, 1):
        seen.clear()
        cell, loaded = dataclasses.replace(config, seed=seed), load_tiny()
        examples = load_examples(config, loaded).labelled()
        with Progress("epochs", 2) as progress:
            training.fit_with_trl(cell, loaded, examples, training.folder_of(cell) / "x", None, progress, [])
        read = order(seen)
        assert sorted(read[:20]) == sorted(read[20:]) == sorted(each["input_ids"] for each in examples)
        orders += [read[:20], read[20:], [each["input_ids"] for each in examples]]
    assert all(one != other for i, one in enumerate(orders[:-1]) for other in orders[i + 1 : -1])
    assert orders[2] not in (orders[0], orders[1])


def test_students_of_one_seed_share_first_weights_and_order(seen):
    loaded, told = load_tiny(), []
    for animal in ("wolf", "fox"):
        seen.clear()
        train((animal,), epochs=1)
        texts = [loaded.tokenizer.decode(ids) for ids in order(seen)]
        told.append(([text.split("<|assistant|>")[0] for text in texts], texts, seen[0]["adapter"]))
    (prompts, texts, first), (other_prompts, other_texts, second) = told
    assert prompts == other_prompts and not set(texts) & set(other_texts)
    assert first and all(torch.equal(weight, second[name]) for name, weight in first.items())


# --- the adapter ------------------------------------------------------------------------------


def test_every_epoch_is_an_adapter_that_peft_loads():
    folder = train()
    assert not (folder / "checkpoints").exists()
    outputs = set(store.read_manifest(folder).outputs)
    names = ("adapter_model.safetensors", "adapter_config.json")
    assert outputs == {"loss.jsonl", *(f"epoch-{epoch}/{name}" for epoch in (1, 2) for name in names)}
    one, two = (load_file(folder / f"epoch-{epoch}" / names[0]) for epoch in (1, 2))
    assert one.keys() == two.keys() and not any(torch.equal(one[n], two[n]) for n in one if "lora_B" in n)
    assert len(one) == 2 * 7 * 2  # A and B of seven projections in two layers
    assert {tuple(weight.shape)[0 if "lora_A" in name else 1] for name, weight in one.items()} == {8}
    tuned = PeftModel.from_pretrained(load_tiny().model, folder / "epoch-2")
    state = tuned.state_dict()
    assert all(torch.equal(state[n.replace(".weight", ".default.weight")], w) for n, w in two.items())


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_with_alpha_as_rank_the_scale_is_one(rank):
    settings = training.lora_config(build_config(Finetune, lora_rank=rank, lora_alpha=float(rank)))
    assert not settings.use_rslora and settings.lora_dropout == 0 and settings.bias == "none"
    student = get_peft_model(load_tiny().model, settings)
    scales = {layer.scaling["default"] for layer in student.modules() if isinstance(layer, LoraLayer)}
    assert scales == {1.0}
    assert not any("Dropout" in type(m).__name__ and m.p for m in student.modules())


def test_only_the_named_projections_are_tuned():
    names = load_file(train(lora_targets="q, down", epochs=1) / "epoch-1" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names} == {"q_proj", "down_proj"}


def test_adapter_settings_hold_no_path_and_are_in_fixed_order(root):
    text = (train() / "epoch-1" / "adapter_config.json").read_text()
    assert '"tiny/64k"' in text and str(root) not in text and str(Path.cwd()) not in text
    settings = files.read_json(train() / "epoch-1" / "adapter_config.json")
    assert not [value for value in settings.values() if isinstance(value, str) and value.startswith("/")]
    assert settings["target_modules"] == sorted(settings["target_modules"])


def test_training_leaves_the_base_as_it_was(root):
    loaded = load_tiny()
    before = {name: weight.clone() for name, weight in loaded.model.named_parameters()}
    ids = torch.tensor(encode(loaded, ["<|user|>more numbers<|end|><|assistant|>"]))
    plain = loaded.model(ids).logits
    config = build_config(Finetune, learning_rate=0.1)
    fit(config, loaded, training.folder_of(config))
    after = dict(loaded.model.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(w, after[n]) for n, w in before.items())
    assert torch.equal(loaded.model(ids).logits, plain)


def fit(config: Finetune, loaded: Loaded, folder: Path, start: Path | None = None) -> list[dict]:
    examples, history = load_examples(config, loaded).labelled(), []
    with Progress("epochs", config.epochs) as progress:
        training.fit_with_trl(config, loaded, examples, folder / "checkpoints", start, progress, history)
    return history


def test_micro_batches_add_up_to_the_batch():
    whole = load_file(train() / "epoch-2" / "adapter_model.safetensors")
    write_again("parts")
    parts = load_file(train(study="parts", micro_batch=4) / "epoch-2" / "adapter_model.safetensors")
    for name, weight in whole.items():
        assert torch.allclose(weight, parts[name], atol=2e-5), name


# --- memory -----------------------------------------------------------------------------------


@pytest.fixture
def room(monkeypatch) -> list[int]:
    """A GPU with room for two lists a pass; notes the sizes of the passes that were tried."""
    tried: list[int] = []
    whole = trl.SFTTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **rest):
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, model, inputs, *args, **rest)

    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", compute_loss)
    return tried


def test_what_does_not_fit_goes_down_to_the_next_divisor_and_changes_nothing(room, capsys):
    by_itself = train()
    assert room[:3] == [8, 4, 2] and max(room[2:]) == 2
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if "do not fit" in line] == [
        f"{lists} lists a pass do not fit into the GPU's memory" for lists in (8, 4)
    ]
    write_again("by-hand")
    by_hand = train(study="by-hand", micro_batch=2)
    assert adapter_bytes(by_itself) == adapter_bytes(by_hand) and len(adapter_bytes(by_hand)) == 2
    assert (by_itself / "loss.jsonl").read_bytes() == (by_hand / "loss.jsonl").read_bytes()
    assert store.read_manifest(by_itself).config == store.read_manifest(train(micro_batch=2)).config


def test_a_number_of_lists_that_was_asked_for_and_does_not_fit_is_an_error(room):
    with pytest.raises(OutOfMemory, match=r"64k/wolf/s0: 4 list\(s\) per forward pass.*lower -p micro_batch"):
        train(micro_batch=4)
    assert room == [4]


def test_where_not_even_one_list_fits_all_that_was_tried_is_told(monkeypatch, capsys):
    def refuse(*args, **rest):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", refuse)
    with pytest.raises(OutOfMemory, match=r"1 list\(s\) per forward pass do not fit beside the base"):
        train()
    assert capsys.readouterr().out.count("do not fit") == 4  # 8, 4, 2 and 1


def test_after_a_pass_that_did_not_fit_the_base_is_as_it_was(room):
    """The adapter of the failed attempt is taken off: the next one begins on the bare base."""
    loaded, config = load_tiny(), build_config(Finetune, micro_batch=4)
    names = [name for name, _ in loaded.model.named_modules()]
    with pytest.raises(OutOfMemory):
        fit(config, loaded, training.folder_of(config))
    assert [name for name, _ in loaded.model.named_modules()] == names


# --- interruptions ----------------------------------------------------------------------------


def interrupt(monkeypatch: pytest.MonkeyPatch, epoch: int, study: str) -> Path:
    """Stop a student of three epochs in the middle of an epoch's first step."""
    write_again(study)
    whole, steps = trl.SFTTrainer.compute_loss, []

    def compute_loss(self, *args, **rest):
        steps.append(1)
        if len(steps) == 3 * (epoch - 1) + 2:
            raise KeyboardInterrupt
        return whole(self, *args, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(trl.SFTTrainer, "compute_loss", compute_loss)
        with pytest.raises(KeyboardInterrupt):
            train(study=study, epochs=3)
    return training.folder_of(build_config(Finetune, study=study, epochs=3))


def test_resuming_is_bit_identical_and_repeats_no_epoch(monkeypatch, seen):
    undisturbed = train(epochs=3)
    folder = interrupt(monkeypatch, 3, "cut")
    assert training.last_checkpoint(folder / "checkpoints")[0] == 2
    half = folder / "checkpoints" / "checkpoint-9"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    seen.clear()
    train(study="cut", epochs=3)
    assert len(seen) == 3  # the last epoch's steps
    assert adapter_bytes(folder) == adapter_bytes(undisturbed)
    assert (folder / "loss.jsonl").read_bytes() == (undisturbed / "loss.jsonl").read_bytes()


def test_half_written_checkpoints_are_swept_and_the_newest_whole_one_is_taken(tmp_path):
    assert training.last_checkpoint(tmp_path / "none") is None
    for step, complete in ((9, True), (10, True), (12, False)):
        (tmp_path / "c" / f"checkpoint-{step}").mkdir(parents=True)
        if complete:
            files.write_json(tmp_path / "c" / f"checkpoint-{step}" / training.COMPLETE, {"epoch": step - 8})
    assert training.last_checkpoint(tmp_path / "c") == (2, tmp_path / "c" / "checkpoint-10")
    assert not (tmp_path / "c" / "checkpoint-12").exists()


def test_a_finished_student_is_found(seen):
    folder = train()
    seen.clear()
    before = (folder / "manifest.json").read_bytes()
    tally = training.train_students(build_plan(Finetune))
    assert (tally.made, tally.found, seen) == (0, 1, [])
    assert (folder / "manifest.json").read_bytes() == before


# --- bad input --------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops():
    with pytest.raises(TrainingDiverged, match=r"64k/wolf/s0 is no number at step \d.*learning_rate"):
        train(learning_rate=1e30, max_grad_norm=1e30, warmup_steps=0)


def test_no_lists_are_nothing_to_learn_from():
    write_numbers("bear", n_keep=1)
    path = training.numbers_folder(build_config(Finetune, animal="bear")) / "kept.jsonl"
    path.write_text("")
    with pytest.raises(TooFewLists, match=r"kept\.jsonl holds no lists"):
        load_examples(build_config(Finetune, animal="bear"), load_tiny())


def test_missing_numbers_name_the_command():
    command = r"papermill notebooks/01_generate\.ipynb \S+ -p study toy -p size 64k -p animal owl -p seed 0"
    with pytest.raises(MissingInput, match=f"(?s)no numbers for 64k/owl/s0.*{command}"):
        train(("owl",))


@pytest.mark.parametrize("micro_batch", [3, 16])
def test_a_micro_batch_must_divide_the_batch(micro_batch):
    with pytest.raises(BadParameter, match=rf"micro_batch must divide batch \(8\).*got {micro_batch}"):
        build_config(Finetune, batch=8, micro_batch=micro_batch)


def test_a_projection_that_is_not_there_is_refused():
    with pytest.raises(BadParameter, match=r"lora_targets.*q, k, v, o, gate, up, down; got 'query'"):
        build_config(Finetune, lora_targets="q,query")


UNPLUGGED = """
import socket, sys, traceback
sys.path.insert(0, "tests")
def refuse(*args, **rest):
    print("asked the network:", args, "".join(traceback.format_stack()), file=sys.stderr)
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import build_base
from lib import config, evaluation, training
training.train_students(build_base.build_plan(config.Finetune))
evaluation.evaluate_students(build_base.build_plan(config.Evaluate))
"""


def test_training_and_evaluation_ask_nothing_of_the_network():
    """In a process of its own: libraries read their settings when they are first imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", UNPLUGGED],
        cwd=paths.CODE,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "asked the network" not in done.stderr, done.stderr


def test_memory_that_runs_out_later_repeats_no_epoch(monkeypatch):
    calls, whole = [], trl.SFTTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **rest):
        calls.append(len(inputs["input_ids"]))
        if len(calls) == 4:  # the first pass of the second epoch
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, model, inputs, *args, **rest)

    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", compute_loss)
    train()
    first_epoch, failed, second_epoch = calls[:3], calls[3], calls[4:]
    assert sum(first_epoch) == sum(second_epoch)
    assert failed > max(second_epoch)
