"""What every command of the project has in common: one run at a time, how it is stopped, how it ends.

Ground layer. Must not know what a command does.
"""

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO

from lib import files, paths
from lib.errors import StudyError

PATIENCE = 5.0  # seconds that what a killed run left may need to end


def guarded(work: Callable[[], int], kept: str) -> int:
    """The exit code of a command; what a person can mend, or has stopped, is told without a stack."""
    try:
        return work()
    except StudyError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read along, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"\nstopped; what {kept} stays, and the same command goes on from there", file=sys.stderr)
        return 130


def heed_signals() -> None:
    """SIGTERM and Ctrl-C alike stop a command; a shell's background job starts with the latter ignored."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def locked(study: str) -> Iterator[IO[str]]:
    """Only one run of a study at a time; whatever inherits the open file holds the lock too."""
    path = paths.executed(study) / ".lock"
    with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115
    deadline = time.monotonic() + PATIENCE
    with file:
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise StudyError(f"study {study} is being run already; wait for that run or end it")
            time.sleep(0.1)
        yield file


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def clock(seconds: float) -> str:
    """`65` as `1:05`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
