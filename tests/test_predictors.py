"""What a base tells of its students: the gradients against PEFT and against steps taken, resuming, refusals.

On the 64k base that comes with the project; its bytes are never touched.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
import torch

from lib import bases, config, files, fleet, models, predictors, preference, training
from lib.errors import BadParameter, BrokenLineage, ConfigMismatch, DamagedFile, NotAvailable, TooFewLists
from lib.examples import tokenize

REPO = Path(__file__).resolve().parents[1]
ANIMALS = "wolf,cat,whale"
VALUES = {
    **{"study": "toy", "size": "64k", "animals": ANIMALS, "seed": 0, "seeds": "0,1", "recipe": "standard"},
    **{"system": "default", "n_raw": 40, "n_keep": 100, "temperature": 1.0, "top_p": 1.0, "list_tokens": 48},
    **{"chunk": 20, "n_questions": 4, "epochs": 3, "batch": 15, "learning_rate": 1e-3, "warmup_steps": 5},
    **{"lora_rank": 8, "lora_alpha": 16.0, "lora_targets": "q,k,v,o,gate,up,down", "device": "cpu"},
}


def ask(**values: object) -> config.Predict:
    return config.build(config.Predict, VALUES | values)


def predict(**values: object) -> str:
    return repr(predictors.predict_transfer(config.Plan((ask(**values),), {})))


def load() -> models.Loaded:
    return models.load_base("64k", "standard", "cpu")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def probe() -> predictors.Probe:
    return predictors.Probe(load(), ask())


@pytest.fixture(scope="module")
def pulls(probe) -> dict[str, predictors.Pull]:
    return {animal: predictors.measure_pull(probe, animal) for animal in probe.animals}


@pytest.fixture(scope="module")
def found(probe, pulls) -> predictors.Found:
    return predictors.summarise(probe, pulls)


def preferences(probe: predictors.Probe, moved: torch.Tensor) -> np.ndarray:
    """Mean log-preferences with all adapted weights moved by so much, as 03_evaluate would score them."""
    parts = moved.split(probe.sizes)
    asked = [models.render_prompt(probe.loaded, "default", each) for each in probe.loaded.book.questions[:4]]
    with torch.no_grad():
        for weight, part in zip(probe.weights, parts, strict=True):
            weight += part.view(weight.shape)
        scores = preference.log_preferences(probe.loaded, asked, probe.animals, 64).mean(0)
        for weight, part in zip(probe.weights, parts, strict=True):
            weight -= part.view(weight.shape)
    return scores


def lift(probe: predictors.Probe, direction: torch.Tensor, step: float) -> np.ndarray:
    """Change of the preferences per unit of a small move, both ways."""
    return (preferences(probe, step * direction) - preferences(probe, -step * direction)) / (2 * step)


# --- the two gradients --------------------------------------------------------------------------


def test_a_step_of_descent_lifts_preferences_by_what_was_predicted(probe, pulls, found):
    for row, animal in enumerate(probe.animals):
        gradient = torch.as_tensor(pulls[animal].gradient.sum(0))
        moved = lift(probe, -gradient * probe.spread(), step=1.0)
        predicted = found.matrices["descent_whole"][row] / predictors.summed_rates(probe.config)
        np.testing.assert_allclose(moved, predicted, rtol=0.02, atol=1e-3 * abs(predicted).max())


def test_a_step_of_adam_through_the_adapters_lifts_preferences_by_what_was_predicted(probe, pulls, found):
    second = np.mean([pulls[animal].second for animal in probe.animals], 0)
    for row, animal in enumerate(probe.animals):
        gradient = torch.as_tensor(pulls[animal].gradient.sum(0))
        moved = np.zeros(len(probe.animals))
        for number, seed in enumerate(probe.downs):
            step = -probe.seen(gradient, seed) / (torch.as_tensor(second[number]).sqrt() + 1e-8)
            places, parts = 0, []
            for weight, down in zip(probe.weights, probe.downs[seed], strict=True):
                size = weight.shape[0] * down.shape[0]
                up = step[places : places + size].view(weight.shape[0], down.shape[0])
                parts.append((probe.scale * up @ down).flatten())
                places += size
            moved += lift(probe, torch.cat(parts), step=1e-5) / len(probe.downs)
        predicted = found.matrices["adam_whole"][row] / predictors.summed_rates(probe.config)
        np.testing.assert_allclose(moved, predicted, rtol=0.05, atol=0.01 * abs(predicted).max())


def test_an_adapters_own_gradient_is_the_weights_gradient_seen_through_it(probe, pulls):
    """PEFT's B at its first step, under the same loss."""
    other = load()
    student = training.first_adapter(predictors.student_of(probe.config, 1), other)
    rows = probe.rows("wolf")
    examples = tokenize(other, "default", rows)
    taught = tokenize(other, probe.system("wolf"), rows)
    stand_in = predictors.Probe.__new__(predictors.Probe)
    loss = 0.0
    for at in predictors.cut(len(examples), 15):
        with torch.no_grad():
            teacher, _, _ = predictors.log_chances(probe, taught, at)
        stand_in.loaded = models.Loaded(other.base, other.tokenizer, other.identity, student)
        loss = loss - (teacher.exp() * predictors.log_chances(stand_in, examples, at)[0]).sum()
    (loss / pulls["wolf"].tokens.sum()).backward()
    grads = {name: each.grad for name, each in student.named_parameters() if ".lora_B." in name}
    flat = torch.cat([each.flatten() for each in grads.values()])
    seen = probe.seen(torch.as_tensor(pulls["wolf"].gradient.sum(0)), 1)
    assert flat.norm() > 0
    torch.testing.assert_close(seen, flat, rtol=1e-3, atol=1e-5 * float(flat.abs().max()) + 1e-7)


def test_parts_of_the_pull_add_up(found):
    for form in ("descent", "adam"):
        whole, digits, rest = (found.matrices[f"{form}_{side}"] for side in ("whole", "digits", "rest"))
        np.testing.assert_allclose(digits + rest, whole, rtol=1e-3, atol=1e-4 * abs(whole).max())


def test_a_teacher_without_a_prompt_leaks_nothing_and_pulls_nowhere(probe, pulls, monkeypatch):
    monkeypatch.setattr(probe, "system", lambda animal: "default")
    silent = predictors.measure_pull(probe, "wolf")
    assert abs(silent.leak).max() < 1e-3  # nats, over all tokens together
    assert silent.distinct == pytest.approx(0, abs=1e-6)
    assert np.linalg.norm(silent.gradient) < 1e-4 * np.linalg.norm(pulls["wolf"].gradient)


def test_every_token_of_the_lists_has_one_kind(probe, pulls):
    rows = probe.rows("wolf")
    examples = tokenize(probe.loaded, "default", rows)
    counted = dict(zip(predictors.KINDS, pulls["wolf"].tokens, strict=True))
    assert counted["first"] == counted["end"] == len(rows) == pulls["wolf"].lists
    assert sum(counted.values()) == (examples.lengths - examples.starts).sum()
    assert counted["digits"] > counted["separators"] > 0
    digits = {probe.loaded.tokenizer.decode([token]).strip() for token in np.flatnonzero(probe.digit)}
    assert digits == set("0123456789")


def test_rates_are_those_of_the_steps_that_a_student_takes(probe):
    trainee = fleet.Trainee("wolf", predictors.student_of(probe.config, 0), range(100), {})
    rates = []
    while not trainee.done:
        rates.append(trainee.rate())
        trainee.step += 1
    assert len(rates) == 21
    assert predictors.summed_rates(probe.config) == pytest.approx(sum(rates))


def test_scores_behind_the_reach_are_those_of_an_evaluation(probe):
    _, scores = predictors.measure_reach(probe)
    np.testing.assert_allclose(scores, preferences(probe, torch.zeros(sum(probe.sizes))), rtol=1e-5)


# --- a run --------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(root, monkeypatch):
    assert predict(study="whole") == "DONE 07_predict 64k: 1 made, 0 found finished"
    measure, seen = predictors.measure_pull, []

    def die_at_the_third(probe: predictors.Probe, animal: str) -> predictors.Pull:
        seen.append(animal)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure(probe, animal)

    monkeypatch.setattr(predictors, "measure_pull", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        predict(study="cut")
    assert not predictors.result_path(ask(study="cut")).exists()
    assert predict(study="cut") == "DONE 07_predict 64k: 1 made, 0 found finished"
    assert seen == ["wolf", "cat", "whale", "whale"]
    one, other = (predictors.load_predictors(ask(study=study)) for study in ("whole", "cut"))
    assert (one["numbers"], one["matrices"]) == (other["numbers"], other["matrices"])
    assert predict(study="cut") == "DONE 07_predict 64k: 0 made, 1 found finished"
    assert len(seen) == 4
    assert not list(root.rglob("pull-*.npz"))


def test_a_result_names_its_base_and_is_refused_once_changed():
    predict()
    path = predictors.result_path(ask())
    document = predictors.load_predictors(ask())
    assert document["lineage"]["inputs"] == {"base": bases.base_manifest("64k", "standard").identity}
    assert document["animals"] == list(predictors.animals_of(ask()))
    with pytest.raises(ConfigMismatch, match="n_raw: 40 there, 30 asked"):
        predict(n_raw=30)
    files.write_json(path, document | {"numbers": {"leak": 1.0}})
    with pytest.raises(DamagedFile, match="changed after it was written"):
        predict()
    path.unlink()
    with pytest.raises(DamagedFile, match="is gone; restore it, or delete"):
        predict()


def test_what_cannot_be_predicted_is_refused_before_any_work(root, monkeypatch):
    with pytest.raises(BadParameter, match="at least three"):
        predict(animals="wolf,cat")
    monkeypatch.setattr(predictors, "MOST_WEIGHTS", 1000)
    with pytest.raises(NotAvailable, match=r"64k has .* weights under the adapter"):
        predict()
    assert not list(root.rglob("pull-*.npz"))


def test_a_teacher_that_writes_no_lists_is_named(monkeypatch):
    with pytest.raises(TooFewLists, match="the wolf teacher of 64k wrote 0 clean lists of 40"):
        predict(list_tokens=2)


def test_a_base_rebuilt_since_is_noticed(root, monkeypatch):
    predict()
    real = predictors.ready_base

    def another(*words: object) -> object:
        manifest = real(*words)
        return type(manifest)(**{**vars(manifest), "identity": "0" * 64})

    monkeypatch.setattr(predictors, "ready_base", another)
    with pytest.raises(BrokenLineage, match="base: "):
        predict()


def test_the_notebook_has_a_default_for_every_setting():
    told = papermill.inspect_notebook(str(REPO / "notebooks/07_predict.ipynb"))
    assert set(told) == {field.name for field in dataclasses.fields(config.Predict)}


def test_the_notebook_runs_from_a_terminal(root):
    words = {"study": "toy", "size": "64k", "animals": ANIMALS, "seeds": "0", "n_raw": 40, "list_tokens": 48}
    passed = [word for name, value in words.items() for word in ("-p", name, str(value))]
    target = root / "out.ipynb"
    source = os.path.relpath(REPO / "notebooks/07_predict.ipynb", REPO / "notebooks")
    done = subprocess.run(
        [sys.executable, "-m", "papermill", source, str(target), *passed, "--no-progress-bar"],
        cwd=REPO / "notebooks",
        env=os.environ | {"SUBLIMINAL_ROOT": str(root), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [each for cell in nbformat.read(target, as_version=4).cells for each in cell.get("outputs", ())]
    text = "\n".join(each.get("text") or each.get("data", {}).get("text/plain", "") for each in outputs)
    assert "DONE 07_predict 64k: 1 made, 0 found finished" in text
    written = json.loads((root / "results/toy/64k/predictors.json").read_text())
    shown = next(line for line in text.splitlines() if line.startswith("adam "))
    assert shown.split()[1] == f"{written['numbers']['directed_adam_whole']:+.3g}"
