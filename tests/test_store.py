"""Runs, manifests and the hash chain: every refusal, and a run killed at random until it is done."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest

from lib import files, store
from lib.errors import BrokenLineage, ConfigMismatch, DamagedFile, MissingInput, StorageFailed

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Bake:
    """A toy stage."""

    stage: typing.ClassVar[str] = "bake"
    study: str = "kitchen"
    size: str = "64k"
    animal: str = "wolf"
    seed: int = 0
    epochs: int = 3
    rate: float = 0.1
    device: str = dataclasses.field(default="cpu", metadata={"identity": False})


INPUTS = {"flour": "a" * 64}


def finish(folder, config=None, inputs=INPUTS, text="bread\n"):
    """Run the toy stage in one go."""
    run = store.open_run(folder, config or Bake(), inputs)
    files.write_text(folder / "loaf.txt", text)
    files.write_text(folder / "crumbs" / "one.txt", "x")
    return run.finish(["loaf.txt", "crumbs/one.txt"], {"loaves": 1})


def edit(path, change):
    """Edit a JSON file by hand."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


# --- states -----------------------------------------------------------------------------------


def test_empty_folder_is_fresh_and_finishes(tmp_path):
    manifest = finish(tmp_path / "s0")
    again = store.open_run(tmp_path / "s0", Bake(), INPUTS)
    assert again.state == "finished" and again.manifest == manifest
    assert manifest.counts == {"loaves": 1} and set(manifest.outputs) == {"loaf.txt", "crumbs/one.txt"}
    assert manifest.config["epochs"] == 3 and "device" not in manifest.config
    assert manifest.knobs == {"device": "cpu"}
    assert manifest.title == "bake 64k/wolf/s0 of study kitchen"


def test_finished_folder_holds_outputs_and_manifest_only(tmp_path):
    finish(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"loaf.txt", "crumbs", "manifest.json"}


def test_begun_run_is_resumed(tmp_path):
    store.open_run(tmp_path, Bake(), INPUTS)
    assert store.open_run(tmp_path, Bake(), INPUTS).state == "resumed"


def test_folder_with_files_but_no_record_is_fresh(tmp_path):
    files.write_text(tmp_path / "loaf.txt", "somebody's\n")
    assert store.open_run(tmp_path, Bake(), INPUTS).state == "fresh"


def test_files_found_at_the_start_are_not_the_runs_own_even_when_resumed(tmp_path):
    files.write_text(tmp_path / "part-0.txt", "of another run")
    run = store.open_run(tmp_path, Bake(), INPUTS)
    assert not run.has("part-0.txt") and not run.has("part-1.txt")
    files.write_text(tmp_path / "part-1.txt", "ours")
    resumed = store.open_run(tmp_path, Bake(), INPUTS)
    assert not resumed.has("part-0.txt") and resumed.has("part-1.txt")
    files.write_text(tmp_path / "part-0.txt", "rewritten")
    assert resumed.has("part-0.txt")


def test_knobs_do_not_make_another_run(tmp_path):
    first = finish(tmp_path)
    assert store.open_run(tmp_path, Bake(device="cuda"), INPUTS).manifest == first


def test_seconds_add_up_over_a_resume(tmp_path):
    begun = time.time()
    store.open_run(tmp_path, Bake(), INPUTS)
    time.sleep(0.4)
    files.write_text(tmp_path / "part.txt", "x")  # the last sign of life of the first attempt
    left = (tmp_path / "part.txt").stat().st_mtime
    time.sleep(0.4)
    idle = time.time() - left  # nobody at work
    manifest = store.open_run(tmp_path, Bake(), INPUTS).finish(["part.txt"], {})
    assert 0.3 <= manifest.seconds <= time.time() - begun - idle + 0.05


def test_finish_refuses_an_output_that_was_not_written(tmp_path):
    run = store.open_run(tmp_path, Bake(), INPUTS)
    with pytest.raises(MissingInput, match=r"loaf\.txt"):
        run.finish(["loaf.txt"], {})
    assert not (tmp_path / "manifest.json").exists()


def test_finish_refuses_a_count_that_is_no_number(tmp_path):
    run = store.open_run(tmp_path, Bake(), INPUTS)
    with pytest.raises(StorageFailed, match=r"it\.loss is nan"):
        run.finish([], {"loss": float("nan")})


# --- identity ---------------------------------------------------------------------------------


def test_identity_does_not_depend_on_field_order():
    there = dataclasses.make_dataclass("There", [("size", str), ("epochs", int)])("64k", 3)
    turned = dataclasses.make_dataclass("Turned", [("epochs", int), ("size", str)])(3, "64k")
    records = store.identity_record(there), store.identity_record(turned)
    assert files.hash_object(records[0]) == files.hash_object(records[1])


def test_identity_is_the_same_across_knobs_and_time(tmp_path):
    one = finish(tmp_path / "a", Bake(device="cpu"))
    time.sleep(0.2)
    other = finish(tmp_path / "b", Bake(device="cuda"))
    assert one.identity == other.identity


@pytest.mark.parametrize(
    "change", [{"config": Bake(epochs=4)}, {"inputs": {"flour": "b" * 64}}, {"text": "cake\n"}]
)
def test_identity_follows_config_inputs_and_outputs(tmp_path, change):
    assert finish(tmp_path / "a").identity != finish(tmp_path / "b", **change).identity


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False])
def test_another_config_is_refused_with_every_field_that_differs(tmp_path, finished):
    finish(tmp_path) if finished else store.open_run(tmp_path, Bake(), INPUTS)
    with pytest.raises(ConfigMismatch) as caught:
        store.open_run(tmp_path, Bake(epochs=10, rate=0.2), INPUTS)
    message = str(caught.value)
    assert "epochs: 3 there, 10 asked" in message and "rate: 0.1 there, 0.2 asked" in message
    assert "animal" not in message
    assert "another study name" in message and "delete the folder" in message and str(tmp_path) in message


def test_a_field_that_only_one_side_has_is_listed(tmp_path):
    finish(tmp_path)
    wider = dataclasses.make_dataclass("Wider", [("oven", str, "gas")], bases=(Bake,), frozen=True)
    config = wider()
    with pytest.raises(ConfigMismatch, match="oven: none there, 'gas' asked"):
        store.open_run(tmp_path, config, INPUTS)


@pytest.mark.parametrize("finished", [True, False])
def test_other_inputs_are_refused(tmp_path, finished):
    finish(tmp_path) if finished else store.open_run(tmp_path, Bake(), INPUTS)
    with pytest.raises(BrokenLineage, match="flour: 'aaaaaaaaaaaa' there, 'bbbbbbbbbbbb' asked"):
        store.open_run(tmp_path, Bake(), {"flour": "b" * 64})


def test_an_output_altered_after_finish_is_refused(tmp_path):
    finish(tmp_path)
    (tmp_path / "loaf.txt").write_text("stale\n")
    with pytest.raises(
        DamagedFile, match=r"loaf\.txt is not what its manifest says; delete .* run the bake stage"
    ):
        store.open_run(tmp_path, Bake(), INPUTS)
    with pytest.raises(DamagedFile, match=r"loaf\.txt"):
        store.load_finished(tmp_path, "run bake first")


def test_an_output_removed_after_finish_is_refused(tmp_path):
    finish(tmp_path)
    (tmp_path / "crumbs" / "one.txt").unlink()
    with pytest.raises(DamagedFile, match=r"one\.txt is missing"):
        store.load_finished(tmp_path, "run bake first")


def test_nothing_there_is_missing_with_the_callers_advice(tmp_path):
    with pytest.raises(MissingInput, match=r"^no loaf: run bake first$"):
        store.load_finished(tmp_path / "none", "no loaf: run bake first")


def test_a_half_done_upstream_is_missing_and_said_to_be_begun(tmp_path):
    store.open_run(tmp_path, Bake(), INPUTS)
    with pytest.raises(MissingInput, match=r"run bake first.*begun, but is not finished"):
        store.load_finished(tmp_path, "no loaf: run bake first")


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["config"].update(epochs=4),
        lambda record: record["inputs"].update(flour="c" * 64),
        lambda record: record.update(identity="d" * 64),
        lambda record: record["counts"].update(loaves=2),
    ],
    ids=["config", "inputs", "identity", "counts"],
)
def test_a_hand_edited_manifest_is_refused(tmp_path, change):
    finish(tmp_path)
    edit(tmp_path / "manifest.json", change)
    with pytest.raises(BrokenLineage, match=r"manifest\.json was changed after it was written"):
        store.load_finished(tmp_path, "run bake first")
    with pytest.raises(BrokenLineage):
        store.open_run(tmp_path, Bake(), INPUTS)


def test_an_edit_that_mends_the_content_hash_still_breaks_the_identity(tmp_path):
    finish(tmp_path)

    def forge(record):
        record["config"]["epochs"] = 4
        del record["content"]
        record["content"] = files.hash_object(record)

    edit(tmp_path / "manifest.json", forge)
    with pytest.raises(BrokenLineage):
        store.read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda record: record.pop("counts"), "counts"),
        (lambda record: record.update(extra=1), "extra"),
        (lambda record: record.update(schema="other/9"), "subliminal-scaling/manifest/1"),
    ],
    ids=["lacking", "unknown", "schema"],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path, change, what):
    finish(tmp_path)
    edit(tmp_path / "manifest.json", change)
    with pytest.raises(DamagedFile, match=what):
        store.read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "begun.json"])
def test_a_damaged_record_is_refused_not_taken_for_absent(tmp_path, name):
    (tmp_path / name).write_text('{"stage": "ba')
    with pytest.raises(DamagedFile, match=rf"{name}, line 1"):
        store.open_run(tmp_path, Bake(), INPUTS)


# --- chain ------------------------------------------------------------------------------------


def test_chain_holds_while_upstream_is_what_it_was(tmp_path):
    flour = finish(tmp_path / "flour", Bake(animal="fox"))
    bread = finish(tmp_path / "bread", inputs={"flour": flour.identity})
    store.check_chain(bread, {"flour": tmp_path / "flour"})


def test_chain_breaks_when_upstream_was_made_again_differently(tmp_path):
    flour = finish(tmp_path / "flour", Bake(animal="fox"))
    bread = finish(tmp_path / "bread", inputs={"flour": flour.identity})
    (tmp_path / "flour" / "manifest.json").unlink()
    finish(tmp_path / "flour", Bake(animal="fox"), text="another\n")
    with pytest.raises(
        BrokenLineage, match="bake 64k/wolf/s0 of study kitchen was made from another bake 64k/fox/s0"
    ):
        store.check_chain(bread, {"flour": tmp_path / "flour"})


def test_chain_holds_when_upstream_was_made_again_alike(tmp_path):
    flour = finish(tmp_path / "flour", Bake(animal="fox"))
    bread = finish(tmp_path / "bread", inputs={"flour": flour.identity})
    (tmp_path / "flour" / "manifest.json").unlink()
    finish(tmp_path / "flour", Bake(animal="fox"))
    store.check_chain(bread, {"flour": tmp_path / "flour"})


def test_chain_passes_over_an_absent_upstream(tmp_path):
    store.check_chain(finish(tmp_path / "bread"), {"flour": tmp_path / "never"})


# --- seals ------------------------------------------------------------------------------------

DOCUMENT = {
    "schema": "x/1",
    "answers": ["dög"],
    "rates": (0.1, 2),
    "by_epoch": {2: 1, 10: 1},
    "lineage": {"inputs": {}},
}


def test_a_seal_survives_writing_and_reading(tmp_path):
    files.write_json(tmp_path / "s0.json", store.seal(DOCUMENT))
    store.check_seal(files.read_json(tmp_path / "s0.json"), tmp_path / "s0.json")


def test_sealing_leaves_the_document_and_reseals_alike():
    sealed = store.seal(DOCUMENT)
    assert "content" not in DOCUMENT["lineage"] and store.seal(sealed) == sealed


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(answers=["cat"]),
        lambda record: record["lineage"].update(inputs={"finetune": "e" * 64}),
        lambda record: record["lineage"].update(content="0" * 64),
    ],
    ids=["answers", "lineage", "content"],
)
def test_a_changed_document_breaks_its_seal(tmp_path, change):
    path = tmp_path / "s0.json"
    files.write_json(path, store.seal(DOCUMENT))
    edit(path, change)
    with pytest.raises(DamagedFile, match=r"s0\.json was changed after it was written"):
        store.check_seal(files.read_json(path), path)


@pytest.mark.parametrize("document", [{}, [], {"lineage": {}}, {"lineage": 3}])
def test_a_document_without_seal_is_refused(tmp_path, document):
    with pytest.raises(DamagedFile, match="nothing vouches for it"):
        store.check_seal(document, tmp_path / "s0.json")


# --- kill -9 ----------------------------------------------------------------------------------

STAGE = """
import dataclasses, sys, time
from pathlib import Path
from lib import files, store
folder = Path(sys.argv[1])
config = dataclasses.make_dataclass("Config", ["size"], namespace={"stage": "bake"})("64k")
run = store.open_run(folder, config, {"flour": "f" * 64})
print(run.state, flush=True)
names = [f"part-{part}.jsonl" for part in range(6)]
if run.state != "finished":
    for part, name in enumerate(names):
        if not run.has(name):
            time.sleep(0.03)
            files.write_jsonl(folder / name, ({"part": part, "row": row} for row in range(2000)))
            print(name, flush=True)
    run.finish(names, {"parts": len(names)})
"""


def start_stage(folder):
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_a_run_killed_at_random_ends_as_an_undisturbed_one(tmp_path):
    assert start_stage(tmp_path / "calm").wait() == 0
    clock, states, parts = random.Random(0), [], []
    for attempt in range(100):
        process = start_stage(tmp_path / "hunted")
        states.append(process.stdout.readline().strip())  # alive, its run opened
        time.sleep(clock.uniform(0, 0.12 + attempt / 100))  # ever longer, so a slow disk gets there too
        process.send_signal(signal.SIGKILL)
        parts += process.stdout.read().split()
        process.wait()
        for part in (tmp_path / "hunted").glob("part-*.jsonl"):
            assert len(files.read_jsonl(part)) == 2000
        if states[-1] == "finished":
            break
    assert states[0] == "fresh" and set(states[1:-1]) == {"resumed"} and states[-1] == "finished"
    assert len(parts) == len(set(parts)), "a finished part was made again"
    calm, hunted = (store.load_finished(tmp_path / name, "") for name in ("calm", "hunted"))
    assert hunted.outputs == calm.outputs and hunted.identity == calm.identity
