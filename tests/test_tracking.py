"""Loss curves for watching: both trainers draw what loss.jsonl holds, once, and nothing stops a student."""

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from build_base import build_config, build_plan, place_base, write_numbers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib import files, paths, store, tracking, training
from lib.config import Finetune
from lib.errors import NotAvailable

REPO = Path(__file__).resolve().parent.parent
both_trainers = pytest.mark.parametrize("trainer", ["fleet", "trl"])


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """A place for runs, trackers that have not failed yet, and nobody's key."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    monkeypatch.setattr(tracking, "_failed", set())
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def teachers(root) -> None:
    """The base of three steps and two teachers."""
    place_base(root)
    write_numbers("wolf")
    write_numbers("fox", start=500)


def train(*animals: str, **values: object) -> list[Path]:
    """Train students; returns their folders."""
    plan = build_plan(Finetune, animals, **{"report_to": "tensorboard", "epochs": 3, **values})
    training.train_students(plan)
    return [training.folder_of(cell) for cell in plan.cells]


def drawn(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in the event files of a student that lies in `folder`."""
    events = EventAccumulator(str(folder).replace("/finetune/", "/tensorboard/"))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in names}


def learnt(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from loss.jsonl."""
    rows = files.read_jsonl(folder / "loss.jsonl")
    assert len(rows) == 9
    points = tracking.POINT.items()
    return {name: [(row["step"], pytest.approx(row[key])) for row in rows] for name, key in points}


# --- TensorBoard --------------------------------------------------------------------------------


@both_trainers
@pytest.mark.usefixtures("teachers")
def test_a_curve_is_what_loss_jsonl_holds(trainer, capsys):
    for folder in train("wolf", "fox", trainer=trainer):
        assert drawn(folder) == learnt(folder)
    assert "tensorboard --logdir artifacts/toy/tensorboard" in capsys.readouterr().out


KILLED = """
import os, signal
from build_base import build_plan
from lib import tracking, training
from lib.config import Finetune

tracking.FLUSH_SECONDS = -1
write = tracking.TensorBoard.write

def write_and_die(self, points):
    write(self, points)
    if points[-1][0] >= 5:
        os.kill(os.getpid(), signal.SIGKILL)

tracking.TensorBoard.write = write_and_die
training.train_students(build_plan(Finetune, report_to="tensorboard", epochs=3, trainer={trainer!r}))
"""


@both_trainers
@pytest.mark.usefixtures("teachers")
def test_a_kill_and_a_resume_double_no_point_and_lose_none(trainer):
    """Both die with five points drawn: TRL within its second epoch, which it learns again, the fleet after
    it, when only the drawing was not done."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests")])}
    code = KILLED.format(trainer=trainer)
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=REPO, check=False)
    assert done.returncode == -signal.SIGKILL
    folder = training.folder_of(build_config(Finetune))
    assert [step for step, _ in drawn(folder)["loss"]] == [1, 2, 3, 4, 5]
    assert train("wolf", trainer=trainer) == [folder]
    assert drawn(folder) == learnt(folder)


def test_a_tensorboard_that_is_open_forgets_the_killed_attempt():
    """It keeps what it has read of a file that is gone meanwhile; the new file tells it to drop that."""
    run = begin(report_to="tensorboard")
    killed = tracking.open_tracker(run, [])
    killed.follow(rows(1, 8))
    where = paths.artifact("toy", "tensorboard", "64k", "wolf", 0)
    events = EventAccumulator(str(where))
    events.Reload()
    assert [each.step for each in events.Scalars("loss")] == list(range(1, 8))
    text = (where / next(where.iterdir()).name).read_bytes()
    again = tracking.open_tracker(run, rows(1, 4))
    again.follow([*rows(1, 4), *rows(4, 10)])
    again.finish()
    (where / "events.out.tfevents.0000000000.before").write_bytes(text)  # as if it had never gone
    events = EventAccumulator(str(where))
    events.Reload()
    assert [each.step for each in events.Scalars("loss")] == list(range(1, 10))


@pytest.mark.usefixtures("teachers")
def test_a_tracker_changes_nothing_of_a_student(root, tmp_path_factory, monkeypatch):
    (watched,) = train("wolf")
    identity = store.read_manifest(watched).identity
    adapters = [path.read_bytes() for path in sorted(watched.rglob("*.safetensors"))]
    other = tmp_path_factory.mktemp("other")
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(other))
    place_base(other)
    write_numbers("wolf")
    (alone,) = train("wolf", report_to="none")
    assert adapters == [path.read_bytes() for path in sorted(alone.rglob("*.safetensors"))]
    assert store.read_manifest(alone).identity == identity
    assert not (other / "artifacts" / "toy" / "tensorboard").exists()


# --- what fails ---------------------------------------------------------------------------------


@both_trainers
@pytest.mark.usefixtures("teachers")
def test_a_tracker_that_cannot_write_stops_nobody_and_says_so_once(trainer, root, capsys):
    place = root / "artifacts" / "toy" / "tensorboard"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("a file where a folder should be")
    for folder in train("wolf", "fox", trainer=trainer):
        assert learnt(folder)
    said = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    assert len(said) == 1
    assert "tracker tensorboard failed" in said[0]
    assert "training goes on" in said[0]


def test_a_tracker_that_fails_later_is_left_alone(capsys):
    class Broken:
        def write(self, points: list) -> None:
            raise ConnectionError("no route")

        def close(self) -> None:
            raise AssertionError("nobody may ask a broken tracker for more")

    tracker = tracking.Tracker("tensorboard", Broken())
    tracker.follow(rows(1, 3))
    tracker.follow(rows(1, 5))
    tracker.finish()
    assert capsys.readouterr().out.count("no route") == 1


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "trackio"])
def test_a_package_that_is_missing_is_said_before_anything_is_loaded(kind, monkeypatch):
    """No base is placed here: whoever looked for one first would complain about that."""
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotAvailable, match=rf"report_to {kind}: .*\n.*'\.\[{kind}\]'\n.*none"):
        train("wolf", report_to=kind)


# --- the other two, where they are installed ----------------------------------------------------


def begin(**values: object) -> store.Run:
    """A student that is about to begin."""
    cell = build_config(Finetune, **values)
    return store.open_run(training.folder_of(cell), cell, {"base": "b", "generate": "g"})


def rows(start: int, end: int) -> list[dict]:
    """Rows of loss.jsonl."""
    return [{"step": step, "epoch": step / 4, "loss": 1 / step, "rate": 1e-3} for step in range(start, end)]


def draw_twice(kind: str) -> None:
    """One attempt that is lost after step 7, when a whole epoch ended at step 4; then another."""
    run = begin(report_to=kind)
    killed = tracking.open_tracker(run, [])
    killed.follow(rows(1, 8))
    killed.finish()
    again = tracking.open_tracker(run, rows(1, 5))
    again.follow([*rows(1, 5), *rows(5, 11)])
    again.finish()
    assert not tracking._failed


@pytest.mark.parametrize(
    ("key", "asked", "mode"),
    [
        (None, None, "offline"),
        (None, "online", "offline"),
        (None, "disabled", "disabled"),
        ("k", None, "online"),
        ("k", "offline", "offline"),
    ],
)
def test_without_a_key_nothing_is_sent_and_nobody_is_asked(key, asked, mode, monkeypatch):
    for name, value in (("WANDB_API_KEY", key), ("WANDB_MODE", asked)):
        if value:
            monkeypatch.setenv(name, value)
    assert tracking.wandb_mode() == mode


def wandb_records(path: Path) -> list:
    """What a run's own file says: records in blocks of 32 KiB, a header of 7 bytes before each."""
    from wandb.proto import wandb_internal_pb2

    data, place, found, record = path.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return found


def test_wandb_offline_holds_each_step_once_and_nothing_of_this_machine(root, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is an extra: pip install '.[wandb]'")
    monkeypatch.setenv("WANDB_API_KEY", "not-to-be-written-anywhere")
    monkeypatch.setenv("WANDB_MODE", "offline")
    draw_twice("wandb")
    wandb.teardown()  # its service writes on its own time and has now written all
    (path,) = root.glob("artifacts/toy/wandb/64k/wolf/s0/wandb/offline-run-*/*.wandb")
    records = wandb_records(path)
    assert [each.history.step.num for each in records if each.HasField("history")] == list(range(1, 11))
    (said,) = [each.run for each in records if each.HasField("run")]
    assert (said.project, said.run_group, said.display_name) == ("toy", "64k", "64k/wolf/s0")
    assert (said.host, said.git.remote_url) == ("", "")
    assert not any(each.HasField("environment") for each in records)
    assert str(REPO).encode() not in path.read_bytes()
    for other in root.rglob("*"):
        assert not other.is_file() or b"not-to-be-written-anywhere" not in other.read_bytes()


def test_trackio_holds_each_step_once(root):
    """In a process of its own: trackio reads where its store lies as it is imported."""
    pytest.importorskip("trackio", reason="trackio is an extra: pip install '.[trackio]'")
    code = "import test_tracking, trackio; test_tracking.draw_twice('trackio')\n"
    code += "from trackio.sqlite_storage import SQLiteStorage\n"
    code += "(run,) = trackio.Api().runs('toy'); print(run.name)\n"
    code += "print([row['step'] for row in SQLiteStorage.get_logs('toy', run.name, run_id=run.id)])"
    places = [str(REPO), str(REPO / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "TRACKIO_DIR": str(root / "trackio")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-2:] == ["64k/wolf/s0", str(list(range(1, 11)))], done.stderr
