"""Files that are whole or absent: atomic writing, strict reading, content hashes.

Ground layer. A reader never sees half a file under its final name, and a damaged one is refused with its
line. Must not know what a file is for (that is store) nor where it lies (that is paths).
"""

import contextlib
import dataclasses
import errno
import glob
import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from lib.errors import DamagedFile, MissingInput, StorageFailed

REPAIR = "restore the file, or delete its folder and run its stage again"

# --- writing ----------------------------------------------------------------------------------


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` under `path` at once: written and synced under a temporary name, then renamed."""
    path = Path(path)
    # Host, pid and a random part: two nodes of a cluster may write the same file of a shared folder.
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with storage_errors(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)  # else a power cut may take the new name back


def write_text(path: Path, text: str) -> None:
    """A whole text in UTF-8."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, obj: Any, *, compact: bool = False) -> None:
    """One document; NaN and infinity are refused, a missing number is None."""
    write_bytes(path, _encode(path, obj, indent=None if compact else 1) + b"\n")


def write_jsonl(path: Path, rows: Iterable[Mapping]) -> None:
    """One object per line, each line ended."""
    write_bytes(path, b"".join(_encode(path, row) + b"\n" for row in rows))


@contextlib.contextmanager
def storage_errors(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn an OSError into StorageFailed that says what is wrong with `path` and what is safe.

    Also for savers of other libraries: `with storage_errors(folder): model.save_pretrained(folder)`.
    """
    try:
        yield
    except OSError as error:
        raise StorageFailed(
            f"cannot write {path}: {_storage_problem(Path(path), error, size)}. Work finished before this is "
            "safe; once this is mended, run the same command again and it goes on from there"
        ) from error


def _storage_problem(path: Path, error: OSError, size: int | None) -> str:
    standing = next((each for each in (path, *path.parents) if os.path.lexists(each)), path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        need = "" if size is None else f", {size:,} needed"
        return f"the disk is full or over its quota ({shutil.disk_usage(standing).free:,} bytes free{need})"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        folder = standing if standing.is_dir() else standing.parent
        return f"the folder {folder} is read-only for this user ({error.strerror})"
    if standing != path and not standing.is_dir():
        return f"a file stands where a folder should be: {standing}"
    if path.is_dir():
        return "a folder stands where the file should be"
    return error.strerror or str(error)


def _sweep(path: Path) -> None:
    """Remove what killed writers of this file left; those of live ones and of other hosts stay."""
    prefix = f".{path.name}.{platform.node()}-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        pid = left.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and not _is_alive(int(pid)):
            with contextlib.suppress(OSError):
                left.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's process, or no number that a process can have
        return True
    return True


def sync(path: Path) -> None:
    """Have the disk keep a file's content, or a folder's names, through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def _encode(path: Path, obj: Any, indent: int | None = None) -> bytes:
    separators = (",", ":") if indent is None else None
    try:
        text = json.dumps(
            obj, default=_to_plain, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators
        )
    except (TypeError, ValueError) as error:
        raise StorageFailed(
            f"cannot write {path}: {_find_unwritable(obj) or error}; JSON holds texts, finite numbers, "
            "lists and objects, and None where a number is missing"
        ) from error
    # A lone surrogate has no UTF-8; its backslash form happens to be the JSON escape of the same character.
    return text.encode("utf-8", "backslashreplace")


def _to_plain(value: Any) -> Any:
    """What json cannot write by itself: numpy and torch values, paths, dataclasses."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, PurePath):
        return value.as_posix()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def _find_unwritable(obj: Any, where: str = "it") -> str | None:
    """Name the first value that JSON cannot hold, such as `it.epochs[2].loss is nan`."""
    if isinstance(obj, Mapping):
        found = (_find_unwritable(value, f"{where}.{key}") for key, value in obj.items())
    elif isinstance(obj, list | tuple):
        found = (_find_unwritable(value, f"{where}[{index}]") for index, value in enumerate(obj))
    else:
        try:
            json.dumps(obj, default=_to_plain, allow_nan=False)
        except (TypeError, ValueError):
            return f"{where} is {repr(obj)[:60]} ({type(obj).__name__})"
        return None
    return next((each for each in found if each), None)


# --- reading ----------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """The document in `path`, or an error that names file and line."""
    return _decode(path, _read_text(path))


def read_jsonl(path: Path) -> list[dict]:
    """The rows of `path`; the first line that is cut, garbled or no object is named."""
    # Not splitlines: a model's answer may hold U+2028 and its like, which end no line of JSONL.
    lines = _read_text(path).split("\n")
    ended = lines[-1] == ""
    rows = []
    for number, line in enumerate(lines[:-1] if ended else lines, start=1):
        cut = not ended and number == len(lines)
        row = _decode(path, line, number, cut)
        if not isinstance(row, dict):
            raise DamagedFile(f"{path}, line {number}: is not an object but {line[:60]!r}; {REPAIR}")
        rows.append(row)
    return rows


def _read_text(path: Path) -> str:
    try:
        data = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInput(f"there is no file {path}; run the stage that writes it first") from error
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}") from error
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise DamagedFile(f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8 text; {REPAIR}") from error


def _decode(path: Path, text: str, line: int | None = None, cut: bool = False) -> Any:
    """Parse one document; `line` is given where it is one line of many."""
    if not text.strip():
        where = f"{path} is empty" if line is None else f"{path}, line {line}: is empty"
        raise DamagedFile(f"{where}; {REPAIR}")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        what = "the last line is cut short" if cut else error.msg
        raise DamagedFile(
            f"{path}, line {line or error.lineno}, column {error.colno}: {what}; {REPAIR}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path}{f', line {line}' if line else ''}: {error}; {REPAIR}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"holds {name}, which is not JSON")


# --- hashes -----------------------------------------------------------------------------------


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInput(f"there is no file {path}; run the stage that writes it first") from error
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}") from error


def hash_object(obj: Any) -> str:
    """sha256 of the canonical JSON: field order, tuple or list, in memory or read back make no difference."""
    canonical = json.dumps(as_read_back(obj), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def hash_read(obj: Any) -> str:
    """As hash_object, in a third of the time, of a document as read_json gave it.

    Such a document is already as it will be read back. Of anything else (numpy values, keys that are no
    texts) this may differ from hash_object or fail with a TypeError or ValueError.
    """
    canonical = json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def hash_folder(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """sha256 per file; without names every file but hidden ones (a killed writer's leftovers among them)."""
    folder = Path(folder)
    if names is None:
        found = (each.relative_to(folder) for each in folder.rglob("*") if each.is_file())
        names = [each.as_posix() for each in found if not any(part.startswith(".") for part in each.parts)]
    return {name: hash_file(folder / name) for name in sorted(names)}


def as_read_back(obj: Any) -> Any:
    """The value as it is once written and read: tuples are lists, keys are texts."""
    return json.loads(_encode(Path("a record"), obj))
