"""Loss curves that can be followed while students train: TensorBoard, Weights & Biases or trackio.

A tracker is a copy for watching; what counts is loss.jsonl beside the adapters. So it never stops a
training: one that fails says so once and falls silent. Whoever opens one passes what the student has
learnt so far and the curve is written from its start: a kill and a resume double no point.
It is given the curve and the settings of the manifest: no host, no user, no code, no key.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lib import files, paths, store
from lib.config import TRACKERS, Finetune
from lib.errors import NotAvailable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_SECONDS = 10.0  # points wait no longer: people watch
POINT = {"loss": "loss", "learning_rate": "rate", "epoch": "epoch"}  # name in trackers -> in loss.jsonl
Point = tuple[int, dict[str, float]]

# Kinds that failed in this process (one notebook): each further student would wait for a timeout as well.
_failed: set[str] = set()


class Writer(Protocol):
    """One student's curve in one tracker. May raise whatever it likes: a Tracker stands before it."""

    def write(self, points: Sequence[Point]) -> None:
        """Add points to the curve, for all to see."""

    def close(self) -> None:
        """No more points come."""


class Tracker:
    """One student's curve, for those who train. Nothing here raises."""

    def __init__(self, kind: str, writer: Writer | None) -> None:
        self.kind, self.writer = kind, writer
        self.waiting: list[Point] = []
        self.seen, self.flushed = 0, time.monotonic()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A point of the curve; steps only grow. It is seen within FLUSH_SECONDS of the next one."""
        self.waiting.append((step, dict(values)))
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def add(self, rows: Sequence[Mapping]) -> None:
        """Log rows of loss.jsonl."""
        for row in rows:
            self.log(row["step"], {name: row[key] for name, key in POINT.items()})

    def follow(self, history: Sequence[Mapping]) -> None:
        """Log what is new in a student's whole history and show it at once."""
        self.add(history[self.seen :])
        self.seen = len(history)
        self.flush()

    def flush(self) -> None:
        """Let every point be seen."""
        points, self.waiting, self.flushed = self.waiting, [], time.monotonic()
        if points and self.writer:
            self._try(lambda writer: writer.write(points))

    def finish(self) -> None:
        """The student is done, or is interrupted and will be resumed with a tracker of its own."""
        self.flush()
        self._try(lambda writer: writer.close())
        self.writer = None

    def _try(self, act: Callable[[Writer], None]) -> None:
        if (writer := self.writer) and not attempt(self.kind, lambda: act(writer)):
            self.writer = None


def attempt(kind: str, act: Callable[[], object]) -> bool:
    """Whether it could be done; says once that a tracker failed, and students train on without it."""
    try:
        act()
    except Exception as error:  # no failure of a tracker is worth a student
        if kind not in _failed:
            _failed.add(kind)
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(
                f"tracker {kind} failed ({why}); training goes on without it, loss.jsonl has all", flush=True
            )
        return False
    return True


def check_tracker(config: Finetune) -> str:
    """Where the curves of this study can be watched; refuses a tracker that is not installed.

    To be asked before anything is loaded or trained.
    """
    kind = config.report_to
    if kind == "none":
        return ""
    if importlib.util.find_spec(kind) is None:
        others = ", ".join(each for each in TRACKERS if each == "none" or importlib.util.find_spec(each))
        raise NotAvailable(
            f"report_to {kind}: the package is not installed; install it with\n"
            f"  python -m pip install -e '.[{kind}]'\n"
            f"or use -p report_to with one of: {others}"
        )
    return f"loss curves: {_where(kind, config)}"


def _where(kind: str, config: Finetune) -> str:
    folder = _folder(config, kind).parents[2].relative_to(paths.root())
    if kind == "tensorboard":
        return f"tensorboard --logdir {folder}"
    if kind == "trackio":
        return f"trackio show --project {config.study}"
    mode = wandb_mode()
    why = "" if os.environ.get("WANDB_API_KEY") else ", as WANDB_API_KEY is not set"
    later = f"{why}; send them later with: wandb sync {folder}/*/*/s*/wandb/*"
    return f"wandb {mode}, project {config.study}{later if mode == 'offline' else ''}"


def _folder(config: Finetune, kind: str) -> Path:
    return paths.artifact(config.study, kind, config.size, config.animal, config.seed)


def open_tracker(run: store.Run, history: Sequence[Mapping]) -> Tracker:
    """The tracker that a student's config asks for, with what it has learnt before this start.

    `history` is everything up to where it goes on: points of a killed attempt beyond it are dropped.
    """
    kind = run.config.report_to
    tracker = Tracker(kind, None)

    def open_writer() -> None:
        tracker.writer = WRITERS[kind](run)

    if kind != "none" and kind not in _failed and attempt(kind, open_writer):
        tracker.follow(history)
    return tracker


def _fresh_folder(run: store.Run) -> Path:
    """A place of this student's own, without what an interrupted attempt left there."""
    folder = _folder(run.config, run.config.report_to)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _run_name(config: Finetune) -> str:
    return f"{config.size}/{config.animal}/s{config.seed}"


# --- TensorBoard ------------------------------------------------------------------------------


class TensorBoard:
    """Event files in artifacts/<study>/tensorboard/<size>/<animal>/s<seed>."""

    def __init__(self, run: store.Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A TensorBoard that is open meanwhile keeps what it has read; purge_step tells it to forget that.
        self.events: SummaryWriter = SummaryWriter(str(_fresh_folder(run)), purge_step=0)
        settings = json.dumps(store.identity_record(run.config), indent=1)
        self.events.add_text("settings", f"```\n{settings}\n```")

    def write(self, points: Sequence[Point]) -> None:
        for step, values in points:
            for name, value in values.items():
                self.events.add_scalar(name, value, step)
        self.events.flush()

    def close(self) -> None:
        self.events.close()


# --- Weights & Biases -------------------------------------------------------------------------


def wandb_mode() -> str:
    """Online where there is a key: nobody is asked for one, notebooks run unattended."""
    asked = os.environ.get("WANDB_MODE", "online")
    return "offline" if asked == "online" and not os.environ.get("WANDB_API_KEY") else asked


class WeightsAndBiases:
    """A run of project <study>, group <size>. Online a resumed student goes on in the same run, which
    takes no step twice; offline it is written anew."""

    def __init__(self, run: store.Run) -> None:
        import wandb

        config, online = run.config, wandb_mode() == "online"
        nameless = {"host": "", "username": "", "x_disable_meta": True, "x_disable_machine_info": True}
        nothing_else = {"disable_git": True, "disable_code": True, "x_disable_stats": True}
        quiet = {"console": "off", "silent": True, "x_save_requirements": False}
        self.run = wandb.init(
            project=config.study,
            group=config.size,
            name=_run_name(config),
            id=files.hash_object([store.identity_record(config), run.inputs])[:16],
            config=store.identity_record(config),
            dir=str(_folder(config, "wandb") if online else _fresh_folder(run)),
            mode=wandb_mode(),
            resume="allow" if online else None,
            reinit="create_new",  # the students of a fleet train at the same time
            save_code=False,
            settings=wandb.Settings(**nameless, **nothing_else, **quiet, init_timeout=30),
        )
        self.known = self.run.step  # of a resumed run, the first step that it has not seen

    def write(self, points: Sequence[Point]) -> None:
        for step, values in points:
            if step >= self.known:
                self.run.log(values, step=step, commit=True)

    def close(self) -> None:
        self.run.finish()


# --- trackio ----------------------------------------------------------------------------------


class Trackio:
    """A run of project <study>, group <size>, in trackio's own local store.

    trackio has one run open at a time and a fleet has many: each batch of points opens its own.
    """

    def __init__(self, run: store.Run) -> None:
        self.config = run.config
        self._delete()

    def _delete(self) -> None:
        import trackio

        with contextlib.suppress(ValueError):  # no such project yet
            for found in trackio.Api().runs(self.config.study):
                if found.name == _run_name(self.config):
                    found.delete()

    def write(self, points: Sequence[Point]) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):  # several lines at each opening
            run = trackio.init(
                project=self.config.study,
                name=_run_name(self.config),
                group=self.config.size,
                config=store.identity_record(self.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            for step, values in points:
                run.log(values, step=step)
            trackio.finish()

    def close(self) -> None:
        """Every batch was closed already."""


WRITERS: dict[str, Callable[[store.Run], Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}
