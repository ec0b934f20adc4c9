"""Progress that reads well while it runs and later in the executed notebook: whole lines, few of them."""

import time
from dataclasses import dataclass


class Progress:
    """Prints a bar of so many steps about twenty times, however many steps there are."""

    def __init__(self, what: str, total: int, lines: int = 20) -> None:
        self.what, self.total, self.lines = what, max(total, 1), lines
        self.done, self.shown, self.started = 0, 0, time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def advance(self, note: str = "", steps: int = 1) -> None:
        """Count finished steps; `note` says what is in hand."""
        self.done += steps
        due = self.done * self.lines // self.total
        if due > self.shown or self.done == self.total:
            self.shown = due
            print(self.line(note), flush=True)

    def line(self, note: str = "") -> str:
        """`[####------] 12/30 chunks of lists, 0:08 gone, 0:12 left  wolf s0`."""
        gone = time.monotonic() - self.started
        left = gone / max(self.done, 1) * (self.total - self.done)
        bar = "#" * (20 * self.done // self.total)
        clock = f"{_clock(gone)} gone, {_clock(left)} left"
        return f"[{bar:-<20}] {self.done}/{self.total} {self.what}, {clock}  {note}".rstrip()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass(frozen=True)
class Tally:
    """What a stage did: how many cells it made and how many it found finished."""

    stage: str
    size: str
    made: int
    found: int

    def __repr__(self) -> str:
        return f"DONE {self.stage} {self.size}: {self.made} made, {self.found} found finished"
