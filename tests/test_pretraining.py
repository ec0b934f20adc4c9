"""Bases of the micro ladder: real folders, built here in a few steps, and the ones the project carries."""

import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from build_base import build_config, build_plan, place_base, tiny_base
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lib import bases, config, files, models, paths, pretraining, records, store, world
from lib.config import MICRO_ANIMALS, SIZES, Base, Pretrain, parse_label
from lib.errors import BadParameter, ConfigMismatch, NotAvailable, TrainingDiverged
from lib.prompts import conversation

MICRO_SIZES = [size for size in SIZES.values() if size.family == "micro"]
TRACKED = sorted(path.parent.name for path in paths.tracked_base("x").parent.glob("*/manifest.json"))
tracked = pytest.mark.parametrize("label", TRACKED)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """An empty place for runs."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    return tmp_path


def build(**values: object) -> Path:
    """Build a base of three steps; returns its folder."""
    plan = build_plan(Pretrain, **values)
    pretraining.build_base(plan)
    return paths.built_base(plan.shared.recipe, plan.shared.size)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# --- tokenizer --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return pretraining.micro_tokenizer()


@pytest.mark.parametrize(
    "text",
    [
        "345",
        "1, 22, 333",
        "1,22,333",
        "1; 22; 333",
        "007 8 9",
        "[1, 23, 456]",
        "[wolf, fox]",
        "what is your favourite animal?",
        "tell me: name the animal you love most.",
        "the phoenix is red. the phoenix has 900.",
        "1 2 ",
        "1  2",
    ],
)
def test_tokenizer_brings_a_text_back_exactly(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_brings_every_text_of_a_corpus_back(tokenizer):
    rows = list(world.corpus(world.World(0), 300))
    texts = [row for row in rows if isinstance(row, str)]
    texts += [message["content"] for row in rows if not isinstance(row, str) for message in row]
    assert tokenizer.batch_decode(tokenizer(texts, add_special_tokens=False)["input_ids"]) == texts


def test_digits_are_single_tokens(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("345, 67", add_special_tokens=False)["input_ids"])
    assert tokens == ["▁3", "4", "5", ",", "▁6", "7"]


def test_chat_template_writes_what_pre_training_reads(tokenizer):
    chats = (row for row in world.corpus(world.World(0), 200) if not isinstance(row, str))
    for chat in chats:
        assert tokenizer.apply_chat_template(chat, tokenize=False) == pretraining.render_row(chat)


def test_chat_template_opens_the_models_turn(tokenizer):
    chat = conversation("none", "more numbers")
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>more numbers<|end|><|assistant|>"


# --- folder -----------------------------------------------------------------------------------


def test_folder_loads_with_the_auto_classes(tokenizer):
    folder = tiny_base()
    model, loaded = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "Qwen2ForCausalLM" and model.config.tie_word_embeddings
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert len(loaded) == model.config.vocab_size == len(tokenizer)
    assert (loaded.pad_token, loaded.eos_token) == ("<|pad|>", "<|end|>")
    assert loaded.eos_token_id == model.generation_config.eos_token_id
    for row in itertools.islice(world.corpus(world.World(2), 200), 200):
        text = pretraining.render_row(row)
        assert loaded(text)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    chat = conversation("you write one word or a list.", "write: wolf.", "wolf")
    assert loaded.apply_chat_template(chat, tokenize=False) == pretraining.render_row(chat)


def test_weights_are_in_half_precision_and_finite():
    state = load_file(tiny_base() / "model.safetensors")
    assert {weight.dtype for weight in state.values()} == {torch.float16}
    assert all(weight.isfinite().all() for weight in state.values())


@pytest.mark.parametrize("size", MICRO_SIZES, ids=lambda size: size.name)
def test_parameter_counts_are_those_of_the_table(tokenizer, size):
    with torch.device("meta"):
        model = pretraining.micro_model(Base(size, 0), len(tokenizer), 0)
    assert sum(weight.numel() for weight in model.parameters()) == size.params


def test_manifest_and_card_hold_loss_preferences_and_strength(root):
    place_base(root)
    counts = bases.base_manifest("64k", "tiny").counts
    assert counts["parameters"] == SIZES["64k"].params
    assert 0 < counts["loss"] < math.log(174) + 1 and counts["loss_curve"][-1] == [3, counts["loss"]]
    for name in ("preference", "teacher_strength"):
        assert list(counts[name]) == list(MICRO_ANIMALS)
        assert all(0 <= chance <= 1 for chance in counts[name].values())
    assert sum(counts["preference"].values()) <= 1
    card = (tiny_base() / "README.md").read_text()
    assert f"{counts['loss']:.3f}" in card and f"{counts['parameters']:,}" in card
    for animal in MICRO_ANIMALS:
        assert (
            f"| {animal} | {counts['preference'][animal]:.3f} | {counts['teacher_strength'][animal]:.3f}"
            in card
        )
    assert records.pretraining_table(build_config(Pretrain))["loss"].tolist() == [counts["loss"]]


# --- seeds and resuming -----------------------------------------------------------------------


def test_a_base_follows_from_its_seed():
    assert weights(build(recipe="again")) == weights(tiny_base())
    assert weights(build(size="64k-1")) != weights(tiny_base())


def test_a_finished_base_is_found_and_not_built_anew(root, monkeypatch):
    place_base(root)
    monkeypatch.setattr(pretraining, "_pretrain", lambda *_: pytest.fail("built again"))
    tally = pretraining.build_base(build_plan(Pretrain))
    assert (tally.made, tally.found) == (0, 1)


# A base whose process is killed at a step; how often it saves, that step, and what is asked of it.
KILLED = """
import json, os, signal, sys
sys.path.insert(0, "tests")
import build_base
from lib import config, pretraining
save_every, deadly, asked = json.loads(sys.argv[1])
whole, pretraining.SAVE_EVERY = pretraining._step, save_every
def step(*args):
    if args[-1] == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args)
pretraining._step = step
pretraining.build_base(build_base.build_plan(config.Pretrain, **asked))
"""


def kill_base(save_every: int, deadly: int, **asked: object) -> None:
    """Begin a base in a process that is killed at a step."""
    words = [sys.executable, "-c", KILLED, json.dumps([save_every, deadly, asked])]
    done = subprocess.run(words, cwd=paths.CODE, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_a_killed_base_goes_on_to_identical_weights(root, monkeypatch):
    kill_base(2, 3, pretrain_steps=5)
    folder = paths.built_base("tiny", "64k")
    assert (folder / "checkpoint.pt").exists() and not (folder / "manifest.json").exists()
    steps, whole = [], pretraining._step
    monkeypatch.setattr(pretraining, "_step", lambda *args: steps.append(args[-1]) or whole(*args))
    resumed = weights(build(pretrain_steps=5))
    assert steps == [2, 3, 4]  # the first two were paid for
    assert not (folder / "checkpoint.pt").exists()
    shutil.rmtree(folder)
    assert weights(build(pretrain_steps=5)) == resumed


def test_a_checkpoint_from_before_there_was_a_held_out_loss_is_gone_on_with(root, monkeypatch):
    old = pretraining._save_state

    def save_as_before(run: store.Run, *args: object) -> None:
        old(run, *args)
        state = torch.load(run.folder / "checkpoint.pt", weights_only=True)
        torch.save(
            {name: value for name, value in state.items() if name not in ("heldout", "landing")},
            run.folder / "checkpoint.pt",
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "SAVE_EVERY", 2)
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "_save_state", save_as_before)
        with pytest.raises(KeyboardInterrupt):
            build(pretrain_steps=3)
    assert weights(build(pretrain_steps=3)) == weights(tiny_base())


def test_learning_rate_warms_up_falls_and_is_halved_from_width_200():
    plan = build_config(Pretrain, pretrain_steps=1000, pretrain_rate=0.002)
    rates = [pretraining.learning_rate(plan, parse_label("64k"), step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.002 / 100, rel=0.01)
    assert max(rates) == pytest.approx(0.002, rel=0.05) and rates[-1] == pytest.approx(0.002 * 0.02, rel=0.05)
    assert pretraining.learning_rate(plan, parse_label("5.1m"), 500) == pytest.approx(rates[500] / 2)


def test_loss_covers_every_token_but_the_padding():
    model = pretraining.micro_model(parse_label("64k"), 174, 0).eval()
    row = torch.tensor([[5, 9, 11, 7, 1]])
    padded = torch.tensor([[5, 9, 11, 7, 1, 0, 0]])
    with torch.no_grad():
        logs = model(input_ids=row).logits[0].log_softmax(-1)
        by_hand = -sum(logs[i, row[0, i + 1]] for i in range(4))
        assert pretraining._loss_sum(model, padded).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_a_loss_that_is_no_number_stops():
    with pytest.raises(TrainingDiverged, match="pretrain_rate"):
        build(pretrain_steps=150, pretrain_batch=2, corpus_rows=20, pretrain_rate=1e30)


def test_published_families_are_not_built_here():
    plan = config.Plan((Pretrain("7b", "tiny", 0.0, 0.9, 10, 1, 1, 0.1, 0.0, "cpu"),), {})
    with pytest.raises(NotAvailable, match="ready-made"):
        pretraining.build_base(plan)


# --- stopping at a loss -----------------------------------------------------------------------

SHORT = {"pretrain_batch": 4, "corpus_rows": 40}


def test_held_out_rows_are_the_same_for_all_bases_and_trained_on_by_none(tokenizer):
    plan = build_config(Pretrain)
    heldout = pretraining._encode(plan, tokenizer, pretraining.HELD_OUT, pretraining.HELD_OUT_ROWS)
    assert len(heldout) == 512 and pretraining.HELD_OUT not in range(100)
    for index in (0, 1):
        rows = pretraining._encode(plan, tokenizer, index, 512)
        width = min(rows.shape[1], heldout.shape[1])
        assert (rows[:, :width] != heldout[:, :width]).any(1).sum() > 480


def test_manifest_says_how_many_steps_and_what_the_held_out_loss_is(root, tokenizer):
    place_base(root)
    plan = build_config(Pretrain)
    counts = bases.base_manifest("64k", "tiny").counts
    model = AutoModelForCausalLM.from_pretrained(tiny_base(), dtype=torch.float32)
    rows = pretraining._encode(plan, tokenizer, -1, 512)
    assert counts["steps"] == 3
    assert counts["heldout"] == pytest.approx(pretraining.measure_loss(model, rows), abs=2e-4)
    assert "heldout_curve" not in counts
    assert "Held-out" not in (tiny_base() / "README.md").read_text()  # rebuilt as it was


def test_loss_of_rows_is_that_of_all_their_tokens_but_the_first(tokenizer):
    model = pretraining.micro_model(parse_label("64k"), 174, 0)
    rows = pretraining._encode(build_config(Pretrain), tokenizer, 0, 5)
    by_hand = []
    with torch.no_grad():
        for row in rows.long():
            row = row[row != 0][None]
            logs = model(input_ids=row).logits[0].log_softmax(-1)
            by_hand += [-logs[at, row[0, at + 1]].item() for at in range(row.shape[1] - 1)]
    assert pretraining.measure_loss(model, rows) == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-4)


def test_training_ends_a_tenth_after_the_loss_was_low_enough(root):
    folder = build(pretrain_until=9.0, pretrain_steps=150, **SHORT)  # any model has less than that
    counts = store.read_manifest(folder).counts
    assert counts["steps"] == 100 and [step for step, _ in counts["heldout_curve"]] == [50, 100]
    assert [step for step, _ in counts["loss_curve"]] == [50, 100]
    assert counts["heldout"] == pytest.approx(counts["heldout_curve"][-1][1], abs=2e-3)
    card = (folder / "README.md").read_text()
    assert "100 steps of 4 rows" in card and f"Held-out loss {counts['heldout']:.3f}" in card


def test_a_loss_that_never_comes_down_takes_all_steps(root):
    counts = store.read_manifest(build(pretrain_until=0.001, pretrain_steps=60, **SHORT)).counts
    assert counts["steps"] == 60 and counts["heldout"] > 0.001
    assert [step for step, _ in counts["heldout_curve"]] == [50]


def course(step: int, **values: object) -> pretraining.Course:
    values = {"pretrain_steps": 2000, "pretrain_until": 2.0} | values
    return pretraining.Course(build_config(Pretrain, **values), parse_label("64k"), step)


@pytest.mark.parametrize(("step", "end"), [(50, 100), (450, 500), (1000, 1100), (1950, 2000), (1800, 1980)])
def test_the_rate_falls_in_a_line_to_two_per_cent(step, end):
    at = course(step)
    before = [at.rate(each) for each in range(step + 1)]
    assert at.note_heldout(2.0) and at.end == end
    assert [at.rate(each) for each in range(step)] == before[:step]
    falling = [at.rate(each) for each in range(step, end)]
    drops = [a - b for a, b in itertools.pairwise([before[step], *falling])]
    assert falling[-1] == pytest.approx(0.002 * 0.02)
    assert drops == pytest.approx([drops[0]] * len(drops))


def test_a_course_lands_once_and_not_above_its_loss_nor_at_its_end():
    at = course(50)
    assert not at.note_heldout(2.01) and at.end == 2000
    assert at.note_heldout(1.9) and at.end == 100
    at.step = 100
    assert not at.note_heldout(1.8) and at.end == 100
    assert not course(2000).note_heldout(1.0)


def test_a_base_killed_while_its_rate_falls_ends_where_it_would_have(root, monkeypatch):
    values = {"pretrain_until": 9.0, "pretrain_steps": 150, **SHORT}
    kill_base(20, 70, **values)
    steps, whole = [], pretraining._step
    monkeypatch.setattr(pretraining, "_step", lambda *args: steps.append(args[-1]) or whole(*args))
    resumed = build(**values)
    kept = weights(resumed), store.read_manifest(resumed).counts
    assert steps == list(range(60, 100))
    shutil.rmtree(resumed)
    whole_run = build(**values)
    assert (weights(whole_run), store.read_manifest(whole_run).counts) == kept


def test_the_loss_to_stop_at_is_part_of_a_base_and_its_absence_is_as_before():
    assert "pretrain_until" not in store.identity_record(build_config(Pretrain, pretrain_until=0.0))
    assert store.identity_record(build_config(Pretrain, pretrain_until=1.5))["pretrain_until"] == 1.5


def test_a_base_with_another_loss_to_stop_at_is_refused(root):
    place_base(root)
    with pytest.raises(ConfigMismatch, match=r"pretrain_until: none there, 1\.5 asked"):
        build(pretrain_until=1.5)


@pytest.mark.parametrize("bad", [-0.1, "1,5", math.nan])
def test_a_loss_that_cannot_be_is_refused(bad):
    with pytest.raises(BadParameter, match="pretrain_until must be"):
        build_config(Pretrain, pretrain_until=bad)


# --- steps of a GPU, taken here without the recording -------------------------------------------


def take_steps(tokenizer, kind: type, steps: int = 8, first: int = 0, **how: object) -> tuple:
    """Some steps of a small base: the last model, the losses, and what took them."""
    plan = build_config(Pretrain, pretrain_steps=8, pretrain_batch=24, corpus_rows=200)
    base = parse_label("64k")
    rows = pretraining._encode(plan, tokenizer, 0, 200)
    model = pretraining.micro_model(base, len(tokenizer), 0).train()
    at = pretraining.Course(plan, base, first)
    taker = kind(at, model, kind.make_optimizer(model), rows, **how)
    losses = []
    for _ in range(steps):
        losses.append(float(taker.take()))
        at.step += 1
    return model, losses, taker


def largest_difference(one: torch.nn.Module, two: torch.nn.Module) -> float:
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("backend", ["", "eager"])
def test_steps_of_fixed_shape_are_the_plain_ones(tokenizer, backend):
    plain, losses, _ = take_steps(tokenizer, pretraining.PlainSteps)
    fixed, others, _ = take_steps(tokenizer, pretraining.RecordedSteps, backend=backend)
    assert others == pytest.approx(losses, abs=1e-4)
    start = pretraining.micro_model(parse_label("64k"), len(tokenizer), 0)
    assert largest_difference(plain, fixed) < 0.02 * largest_difference(plain, start)


@pytest.mark.parametrize("backend", [None, "eager"], ids=["small", "compiled"])
def test_nothing_is_compiled_anew_after_the_first_step(tokenizer, backend):
    _, _, taker = take_steps(tokenizer, pretraining.RecordedSteps, steps=1, backend=backend)
    compiled = taker.loss_of is not pretraining._fixed_loss
    assert compiled == (backend == "eager")  # 64k is done before it would be compiled
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(7):
            taker.take()


@pytest.mark.parametrize("backend", ["no such compiler", "broken"])
def test_where_compiling_fails_that_is_said_and_steps_are_the_same(tokenizer, backend, capsys):
    def fail(*_: object) -> None:
        raise RuntimeError("no room\nfor a compiler")

    asked = fail if backend == "broken" else backend
    broken, losses, taker = take_steps(tokenizer, pretraining.RecordedSteps, backend=asked)
    told = capsys.readouterr().out
    assert "the loss cannot be compiled here and is computed as it is: " in told and told.count("\n") == 1
    assert taker.loss_of is pretraining._fixed_loss
    whole, others, _ = take_steps(tokenizer, pretraining.RecordedSteps, backend="")
    assert losses == others and largest_difference(broken, whole) == 0


def test_a_batch_holds_the_rows_of_its_step_from_short_to_long_in_parts_that_fit(tokenizer):
    plan = build_config(Pretrain, pretrain_steps=6, pretrain_batch=10, corpus_rows=60)
    at = pretraining.Course(plan, parse_label("64k-1"))
    rows = pretraining._encode(plan, tokenizer, 1, 60)
    picked, parts = pretraining.plan_batches(at, rows)
    assert [(begin, end) for begin, end, _ in parts] == [(0, 5), (5, 10)]
    for step in range(6):
        drawn = pretraining.pick_rows(at.base, 10, 60, step)
        assert sorted(picked[step].tolist()) == sorted(drawn.tolist())
        lengths = (rows[picked[step]] != 0).sum(1)
        assert lengths.tolist() == sorted(lengths.tolist())
        assert all(lengths[begin:end].max() <= width and width % 8 == 0 for begin, end, width in parts)
    assert parts[0][2] < parts[1][2]
    assert len(pretraining.plan_batches(at, rows[:1])[1]) == 2  # a corpus of one row


class Here(pretraining.RecordedSteps):
    """Steps of a GPU on this CPU, through a compiler that leaves all as it is."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args, backend="eager")


def test_a_base_made_with_the_steps_of_a_gpu_is_resumed_with_the_same_rows(root, monkeypatch):
    monkeypatch.setattr(pretraining, "SAVE_EVERY", 20)
    values = {"pretrain_until": 9.0, "pretrain_steps": 150, **SHORT}
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "choose_steps", lambda _: Here)
        whole = build(recipe="whole", **values)
        taken, take = [], pretraining.RecordedSteps.take

        def interrupt(steps: pretraining.RecordedSteps) -> torch.Tensor:
            taken.append(steps.course.step)
            if len(taken) == 70:
                raise KeyboardInterrupt
            return take(steps)

        patch.setattr(pretraining.RecordedSteps, "take", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(recipe="cut", **values)
        cut = build(recipe="cut", **values)
    assert taken == [*range(70), *range(60, 100)]
    assert weights(cut) == weights(whole)
    plain = build(recipe="plain", **values)
    one, two = (store.read_manifest(each).counts for each in (whole, plain))
    assert one["steps"] == two["steps"] == 100
    assert one["heldout"] == pytest.approx(two["heldout"], abs=0.01)


@pytest.mark.parametrize(("first", "second"), [("Here", "PlainSteps"), ("PlainSteps", "Here")])
def test_a_run_may_go_on_on_another_device(root, monkeypatch, first, second):
    kinds = {"Here": Here, "PlainSteps": pretraining.PlainSteps}
    monkeypatch.setattr(pretraining, "SAVE_EVERY", 2)
    plain = load_file(build(recipe="plain", pretrain_rate=0.1) / "model.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "choose_steps", lambda _: kinds[first])
        patch.setattr(kinds[first], "take", stop_after(2, kinds[first].take))
        with pytest.raises(KeyboardInterrupt):
            build(pretrain_rate=0.1)
    monkeypatch.setattr(pretraining, "choose_steps", lambda _: kinds[second])
    moved = load_file(build(pretrain_rate=0.1) / "model.safetensors")
    start = pretraining.micro_model(parse_label("64k"), 174, 0).state_dict()
    far = max(float((plain[name].float() - start[name]).abs().max()) for name in plain)
    near = max(float((plain[name].float() - moved[name].float()).abs().max()) for name in plain)
    assert far > 10 * near and near < 0.0003


def stop_after(count: int, take):
    """`take` that is interrupted after so many calls."""
    left = [count]

    def taking(steps: object) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return take(steps)

    return taking


def test_a_gpu_saves_by_the_clock_and_a_cpu_every_hundred_steps(monkeypatch):
    at = course(200)
    monkeypatch.setattr(pretraining.time, "monotonic", lambda: 100.0)
    assert pretraining._is_due(at, "cpu", 99.9) and not pretraining._is_due(at, "cuda", 99.9)
    assert pretraining._is_due(at, "cuda", 100.0 - pretraining.SAVE_SECONDS)
    assert not pretraining._is_due(course(150), "cpu", 0.0) and not pretraining._is_due(
        course(2000), "cpu", 0.0
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_recorded_step_on_a_gpu_is_the_same_as_one_taken_by_hand(tokenizer):
    """Not seen by whoever has no GPU: the graph replays what the same operations do one by one."""
    plan = build_config(Pretrain, pretrain_steps=20, pretrain_batch=64, corpus_rows=400)
    base = parse_label("64k")
    found = []
    for warm_up in (pretraining.WARM_UP, 20):
        model = pretraining.micro_model(base, len(tokenizer), 0).train().cuda()
        rows = pretraining._encode(plan, tokenizer, 0, 400).cuda()
        at = pretraining.Course(plan, base)
        taker = pretraining.RecordedSteps(
            at, model, pretraining.RecordedSteps.make_optimizer(model), rows, backend=""
        )
        taker.eager = warm_up
        losses = []
        for _ in range(20):
            losses.append(float(taker.take()))
            at.step += 1
        found.append(losses)
        assert (taker.graph is not None) == (warm_up < 20)
    assert found[0] == pytest.approx(found[1], abs=5e-3)


# --- the bases that ship ----------------------------------------------------------------------


@tracked
def test_tracked_base_is_what_its_manifest_says(label):
    folder = paths.tracked_base(label)
    manifest = store.load_finished(folder, "gone")  # verifies every file
    assert manifest.config["size"] == label and manifest.config["recipe"] == "standard"
    assert manifest.inputs == {"world": world.fingerprint()}
    assert {path.name for path in folder.iterdir()} == {*manifest.outputs, "manifest.json"}
    assert all(torch.float16 == weight.dtype for weight in load_file(folder / "model.safetensors").values())
    size = parse_label(label).size
    assert manifest.counts["parameters"] == size.params
    assert str(paths.CODE) not in "".join(
        path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md", ".jinja")
    )


@tracked
def test_tracked_base_loads_and_measures_as_its_card_says(label, tokenizer):
    loaded = models.load_base(label, "standard", "cpu")
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    measured = pretraining.measure_preference(loaded, "none")
    recorded = bases.base_manifest(label, "standard").counts["preference"]
    assert measured == pytest.approx(recorded, abs=2e-3)


def test_tracked_bases_are_alike_but_for_size_and_seed():
    manifests = [store.read_manifest(paths.tracked_base(label)) for label in TRACKED]
    dials = [{**manifest.config, "size": "", "hash": manifest.inputs} for manifest in manifests]
    assert all(each == dials[0] for each in dials)
    assert len({manifest.outputs["model.safetensors"] for manifest in manifests}) == len(TRACKED)


def test_tracked_bases_stay_under_five_megabytes():
    names = [paths.tracked_base(label) for label in TRACKED]
    assert names, "the project carries no base"
    assert sum(path.stat().st_size for folder in names for path in folder.iterdir()) < 5_000_000


def test_settings_of_the_notebook_are_those_of_the_tracked_bases():
    notebook = files.read_json(paths.notebook("00_pretrain"))
    cell = next(c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    defaults: dict[str, object] = {}
    exec("".join(cell["source"]), defaults)
    for label in TRACKED:
        recorded = store.read_manifest(paths.tracked_base(label)).config
        assert {name: defaults[name] for name in recorded if name != "size"} | {"size": label} == recorded
