"""Stage 02 with the fleet: students side by side in folders of their own, cut short, lost, found again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from build_base import build_config, build_plan, load_tiny, place_base, write_numbers
from peft import PeftModel
from safetensors.torch import load_file

from lib import evaluation, examples, files, fleet, paths, plots, records, store, training
from lib.config import Evaluate, Finetune
from lib.errors import NotAvailable, RowTooLong, TrainingDiverged

ANIMALS = ("wolf", "fox", "bear")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """The base of three steps and three teachers, one of whom wrote less than the others."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path / "first"))
    place()
    return tmp_path


def place() -> None:
    place_base(paths.root())
    for number, animal in enumerate(ANIMALS):
        write_numbers(animal, start=100 + 200 * number, n_keep=20 if animal != "bear" else 13)


@pytest.fixture
def elsewhere(root, monkeypatch) -> Callable[[str], None]:
    """The same base and teachers under another root."""

    def move(name: str) -> None:
        monkeypatch.setenv("SUBLIMINAL_ROOT", str(root / name))
        place()

    return move


def train(animals: tuple[str, ...] = ANIMALS, **values: object) -> dict[str, Path]:
    """Train students together; returns their folders."""
    plan = build_plan(Finetune, animals, **{"trainer": "fleet", "epochs": 3, **values})
    training.train_students(plan)
    return {config.animal: training.folder_of(config) for config in plan.cells}


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, which knows how long it took."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in found if path.name != "manifest.json"
    }


def distance(one: Path, other: Path) -> float:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return max(float((weight - second[name]).abs().max()) for name, weight in first.items())


# --- what comes out ---------------------------------------------------------------------------


def test_students_together_are_those_of_trl(elsewhere):
    """Files, settings, counts, losses and weights: nothing tells a student of the fleet from one of TRL."""
    together = train(students=3)
    elsewhere("trl")
    alone = train(trainer="trl")
    for animal, folder in together.items():
        other = alone[animal]
        assert outputs(folder).keys() == outputs(other).keys()
        for epoch in (1, 2, 3):
            name = f"epoch-{epoch}/adapter_config.json"
            assert (folder / name).read_bytes() == (other / name).read_bytes()
            name = f"epoch-{epoch}/adapter_model.safetensors"
            assert epoch == 1 or distance(folder / name, folder / "epoch-1" / name[8:]) > 0
            assert distance(folder / name, other / name) < 2e-5
        ours, theirs = (files.read_jsonl(each / "loss.jsonl") for each in (folder, other))
        assert [row["step"] for row in ours] == [row["step"] for row in theirs]
        for row, expected in zip(ours, theirs, strict=True):
            assert row == pytest.approx(expected, rel=1e-5)
        one, two = (store.read_manifest(each) for each in (folder, other))
        assert one.config == two.config
        assert one.inputs.keys() == two.inputs.keys() == {"base", "generate"}
        both = ("examples", "steps", "tokens", "completion_tokens")
        assert [one.counts[name] for name in both] == [two.counts[name] for name in both]
        assert (one.counts["trainer"], two.counts["trainer"]) == ("fleet", "trl")
        assert one.counts["together"] in (1, 2, 3)


def test_peft_loads_a_student_of_the_fleet():
    folder = train(("wolf",))["wolf"]
    weights = load_file(folder / "epoch-3" / "adapter_model.safetensors")
    state = PeftModel.from_pretrained(load_tiny().model, folder / "epoch-3").state_dict()
    assert all(torch.equal(state[n.replace(".weight", ".default.weight")], w) for n, w in weights.items())


def test_on_a_cpu_company_changes_no_bit(elsewhere):
    together = {animal: outputs(folder) for animal, folder in train().items()}
    for animal in ANIMALS:
        elsewhere(animal)
        assert outputs(train((animal,))[animal]) == together[animal]


def test_finished_students_are_found_and_the_rest_is_trained(monkeypatch):
    train(("fox",))
    fox = training.folder_of(build_config(Finetune, animal="fox"))
    before = (fox / "manifest.json").read_bytes()
    seen: list[str] = []
    whole = fleet.Fleet.train

    def watched(self: fleet.Fleet, trainees: list[fleet.Trainee]) -> fleet.Report:
        seen.extend(trainee.name for trainee in trainees)
        return whole(self, trainees)

    monkeypatch.setattr(fleet.Fleet, "train", watched)
    tally = training.train_students(build_plan(Finetune, ANIMALS, trainer="fleet", epochs=3))
    assert (tally.made, tally.found, seen) == (2, 1, ["wolf s0", "bear s0"])
    assert (fox / "manifest.json").read_bytes() == before
    again = training.train_students(build_plan(Finetune, ANIMALS, trainer="trl", epochs=3))
    assert (again.made, again.found) == (0, 3)  # the trainer is no part of what a student is


# --- interruptions ----------------------------------------------------------------------------


@pytest.mark.parametrize("company", [1, 3])
def test_a_cut_costs_one_epoch_of_each_and_changes_nothing(elsewhere, monkeypatch, company):
    """Stopped in the middle of an epoch; what goes on is seated as it was and ends bit for bit the same."""
    undisturbed = {animal: outputs(folder) for animal, folder in train(students=company).items()}
    elsewhere("cut")
    steps: list[int] = []
    whole = fleet.Fleet._losses

    def losses(self: fleet.Fleet, stack: fleet.Stack, seated: list[fleet.Trainee]) -> torch.Tensor:
        steps.append(len(seated))
        if len(steps) == 8:  # three steps an epoch of wolf and fox, two of bear
            raise KeyboardInterrupt
        return whole(self, stack, seated)

    with monkeypatch.context() as patch:
        patch.setattr(fleet.Fleet, "_losses", losses)
        with pytest.raises(KeyboardInterrupt):
            train(students=company)
    folders = train(students=company)
    for animal, folder in folders.items():
        found = outputs(folder)
        assert found.keys() == undisturbed[animal].keys()
        if company == 1:
            assert found == undisturbed[animal]
    steps.clear()
    with monkeypatch.context() as patch:
        patch.setattr(fleet.Fleet, "_losses", losses)
        train(students=company)
    assert not steps


def test_going_on_starts_at_the_last_whole_epoch(monkeypatch, capsys):
    steps: list[int] = []
    whole = fleet.Fleet._losses

    def losses(self: fleet.Fleet, stack: fleet.Stack, seated: list[fleet.Trainee]) -> torch.Tensor:
        steps.append(seated[0].step)
        if len(steps) == 9:
            raise KeyboardInterrupt
        return whole(self, stack, seated)

    monkeypatch.setattr(fleet.Fleet, "_losses", losses)
    with pytest.raises(KeyboardInterrupt):
        train(("wolf",))
    assert steps == list(range(9))
    steps[:] = []
    train(("wolf",))
    assert steps == [6, 7, 8]
    assert "wolf s0, from epoch 2" in capsys.readouterr().out


def test_a_cut_after_the_last_epoch_costs_none(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "finish_student", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(("wolf",))
    monkeypatch.setattr(fleet.Fleet, "_losses", None)
    folder = train(("wolf",))["wolf"]
    assert store.read_manifest(folder).counts["steps"] == 9


def test_a_finished_student_keeps_no_state():
    for folder in train().values():
        assert not (folder / training.STATE).exists() and not (folder / "begun.json").exists()


# --- students that get lost -------------------------------------------------------------------


@pytest.fixture
def poisoned(monkeypatch) -> None:
    """The fox begins with a weight that is no number."""
    whole = training.read_adapter
    seen: list[int] = []

    def read(student: PeftModel) -> tuple[dict, dict]:
        weights, settings = whole(student)
        seen.append(1)
        if len(seen) == 1:  # the first of the plan
            next(iter(weights.values())).view(-1)[0] = torch.nan
        return weights, settings

    monkeypatch.setattr(training, "read_adapter", read)


@pytest.mark.parametrize("students", [1, 3])
def test_a_lost_student_stops_and_the_others_go_on(elsewhere, poisoned, capsys, students):
    folders = train(("fox", "wolf", "bear"), students=students)
    manifests = {animal: store.read_manifest(folder) for animal, folder in folders.items()}
    lost = manifests["fox"].counts["diverged"]
    assert lost["step"] == 1 and "64k/fox/s0 is no number at step 1" in lost["why"]
    assert set(manifests["fox"].outputs) == {"loss.jsonl"}
    assert all(not (folders["fox"] / f"epoch-{epoch}").exists() for epoch in (1, 2, 3))
    assert "DIVERGED finetune 64k/fox/s0" in capsys.readouterr().out
    for animal in ("wolf", "bear"):
        assert "diverged" not in manifests[animal].counts
        assert len(manifests[animal].outputs) == 7
    table = records.student_table(build_plan(Finetune, ("fox", "wolf"), epochs=3))
    assert table.set_index("animal").loc["fox", "diverged"] == "at step 1"
    losses = records.loss_table(build_plan(Finetune, ("fox", "wolf"), epochs=3))
    assert set(losses["student"]) == {"wolf"}
    plots.draw(plots.loss_curve, losses)


def test_a_lost_student_is_not_asked_anything(poisoned, capsys):
    train(("fox", "wolf"), epochs=1)
    plan = build_plan(Evaluate, ("wolf", "fox"), samples=1, n_questions=2)
    tally = evaluation.evaluate_students(plan)
    assert tally.made == 2  # wolf and the untuned control
    assert evaluation.last_evaluated(plan).animal == "wolf"
    assert "SKIPPED finetune 64k/fox/s0" in capsys.readouterr().out
    assert not paths.evaluation("toy", "64k", "fox", 0).exists()


@pytest.mark.parametrize("trainer", ["fleet", "trl"])
def test_where_all_are_lost_it_is_an_error_each_time(trainer):
    settings = {"learning_rate": 1e30, "max_grad_norm": 1e30, "warmup_steps": 0, "trainer": trainer}
    for _ in range(2):
        with pytest.raises(TrainingDiverged, match=r"64k/wolf/s0 is no number at step \d.*first delete"):
            train(("wolf", "fox"), **settings)


# --- the choice of the trainer ----------------------------------------------------------------


def test_auto_explains_itself(capsys):
    train(("wolf",), trainer="auto")
    assert "trainer fleet: one student at a time, since on a CPU" in capsys.readouterr().out


def test_what_the_fleet_does_not_know_goes_to_trl(monkeypatch):
    loaded = load_tiny()
    monkeypatch.setattr(loaded.model.config, "model_type", "gpt2")
    assert training.choose_trainer("auto", loaded)[0] == "trl"
    assert "not gpt2" in training.choose_trainer("auto", loaded)[1]
    with pytest.raises(NotAvailable, match=r"trainer fleet: .*not gpt2; use -p trainer trl or auto"):
        training.choose_trainer("fleet", loaded)


# --- tokens -----------------------------------------------------------------------------------


def test_lists_are_tokenised_once(monkeypatch):
    config, loaded = build_config(Finetune), load_tiny()
    first = examples.load_examples(config, loaded)
    with monkeypatch.context() as patch:
        patch.setattr(examples, "tokenize", None)
        again = examples.load_examples(config, loaded)
        with pytest.raises(TypeError):  # another system prompt is other rows
            examples.load_examples(build_config(Finetune, system="you count"), loaded)
    assert [row.tolist() for row in again.rows] == [row.tolist() for row in first.rows]
    assert again.starts.tolist() == first.starts.tolist()
    (cached,) = (paths.root() / "artifacts" / "tokens").iterdir()
    cached.write_bytes(cached.read_bytes()[:100])
    mended = examples.load_examples(config, loaded)
    assert [row.tolist() for row in mended.rows] == [row.tolist() for row in first.rows]
    assert examples._read_cache(cached) is not None


def test_changed_lists_are_other_tokens():
    config, loaded = build_config(Finetune), load_tiny()
    before = len(examples.load_examples(config, loaded))
    path = examples.numbers_folder(config) / "kept.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    assert (before, len(examples.load_examples(config, loaded))) == (20, 5)


def test_a_row_that_is_too_long_names_its_line():
    config, loaded = build_config(Finetune), load_tiny()
    path = examples.numbers_folder(config) / "kept.jsonl"
    rows = files.read_jsonl(path)
    rows[6]["completion"] = ", ".join(["123"] * 100)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RowTooLong, match=r"line 7 of .*kept\.jsonl is \d+ tokens long and 64k can read 256"):
        examples.load_examples(config, loaded)
