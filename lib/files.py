"""Files that are whole or absent: atomic writing, strict reading, content hashes.

Ground layer. A reader never sees half a file under its final name, and a damaged one is refused with its
line. A document may lie packed, as `s0.json.gz` instead of `s0.json`: both names read the same. Must not know
what a file is for (that is store) nor where it lies (that is paths).
"""

import contextlib
import dataclasses
import errno
import glob
import gzip
import hashlib
import io
import json
import os
import platform
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from lib.errors import DamagedFile, MissingInput, StorageFailed

REPAIR = "restore the file, or delete its folder and run its stage again"
PACKED = ".gz"  # what the name of a packed document ends in

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
    """One document; NaN and infinity are refused, a missing number is None.

    A packed one of the same name is replaced like a plain one: what was written last is what is read.
    """
    write_bytes(path, _encode(path, obj, indent=None if compact else 1) + b"\n")
    remove(packed_name(path))


def remove(path: Path) -> None:
    """Take a file away, if it is there, and have the disk know."""
    with storage_errors(path):
        try:
            Path(path).unlink()
        except FileNotFoundError:
            return
        sync(Path(path).parent)


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
    """The document in `path`, packed or not, or an error that names file and line."""
    found, data = read_document(path)
    return _decode(found, _to_text(found, data))


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
    return _to_text(path, _read_bytes(path))


def _read_bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInput(f"there is no file {path}; run the stage that writes it first") from error
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}") from error


def _to_text(path: Path, data: bytes) -> str:
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


# --- packed documents -------------------------------------------------------------------------


def packed_name(path: Path) -> Path:
    """`s0.json.gz` of `s0.json`, and of itself."""
    path = Path(path)
    return path if path.suffix == PACKED else path.with_name(path.name + PACKED)


def plain_name(path: Path) -> Path:
    """`s0.json` of `s0.json.gz`, and of itself."""
    path = Path(path)
    return path.with_suffix("") if path.suffix == PACKED else path


def find_document(path: Path) -> Path:
    """The file in which a document lies: plain, or packed where only that is there; plain where none is."""
    plain, packed = plain_name(path), packed_name(path)
    return packed if not plain.exists() and packed.exists() else plain


def has_document(path: Path) -> bool:
    """Whether a document is there, packed or not."""
    return find_document(path).exists()


def list_documents(folder: Path, pattern: str) -> list[Path]:
    """The plain name of each document that fits, such as `*/*/s*.json`, packed or not; sorted, each once."""
    return sorted({plain_name(each) for ending in ("", PACKED) for each in folder.glob(pattern + ending)})


def count_bytes(path: Path) -> int:
    """How large a document is, or would be unpacked: a packed one ends in that number."""
    found = find_document(path)
    if found.suffix != PACKED:
        return found.stat().st_size
    return int.from_bytes(_read_bytes(found)[-4:], "little")


def read_beginning(path: Path, most: int) -> str:
    """The first bytes of a document as text, whatever they are."""
    found = find_document(path)
    if found.suffix == PACKED:
        return unpack(_read_bytes(found), found, most).decode(errors="replace")
    with open(found, "rb") as file:
        return file.read(most).decode(errors="replace")


def read_document(path: Path) -> tuple[Path, bytes]:
    """The file in which a document lies, and its bytes as they were before packing.

    Where it lies there twice the plain one is taken, once it is known that they agree. While somebody packs
    or unpacks, one file goes only after the other came: looking twice finds it.
    """
    plain, packed = plain_name(path), packed_name(path)
    for _ in range(2):
        with contextlib.suppress(MissingInput):
            data = _read_bytes(plain)
            if packed.exists():
                check_twins(plain, data)
            return plain, data
        with contextlib.suppress(MissingInput):
            return packed, unpack(_read_bytes(packed), packed)
    raise MissingInput(f"there is no file {plain}; run the stage that writes it first")


def pack(data: bytes) -> bytes:
    """The same bytes for the same data, whoever packs them and when: no name, no time, no system in them."""
    buffer = io.BytesIO()  # gzip.compress would name the operating system
    with gzip.GzipFile("", "wb", 9, buffer, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


def unpack(data: bytes, path: Path, most: int = -1) -> bytes:
    """What was packed into `data`, at most `most` bytes of it; `path` is named where it is damaged."""
    if not data:
        raise DamagedFile(f"{path} is empty; {REPAIR}")
    try:
        if most < 0:
            return gzip.decompress(data)
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            return file.read(most)
    except EOFError as error:
        raise DamagedFile(f"{path} is cut short after {len(data):,} packed bytes; {REPAIR}") from error
    except (OSError, zlib.error) as error:
        raise DamagedFile(f"{path} cannot be unpacked: {error}; {REPAIR}") from error


def check_twins(plain: Path, data: bytes) -> None:
    """Refuse a document that lies there twice, plain with `data` and packed, and is not the same."""
    packed = packed_name(plain)
    try:
        other = unpack(_read_bytes(packed), packed)
    except MissingInput:  # it has just been unpacked
        return
    except DamagedFile as error:
        what = str(error).removesuffix(f"; {REPAIR}")
        raise DamagedFile(f"{what}, and {plain.name} lies beside it: delete the packed one") from error
    if data != other and not _agree(plain, data, packed, other):
        raise DamagedFile(
            f"{plain} and {packed.name} beside it hold different documents: delete the one that is not wanted"
        )


def _agree(plain: Path, data: bytes, packed: Path, other: bytes) -> bool:
    """The same document in other words, or under the same seal (lib.store) made on another day."""
    one, two = _decode(plain, _to_text(plain, data)), _decode(packed, _to_text(packed, other))
    seals = [_find_seal(each) for each in (one, two)]
    return one == two or (seals[0] is not None and seals[0] == seals[1])


def _find_seal(document: Any) -> Any:
    lineage = document.get("lineage") if isinstance(document, dict) else None
    return lineage.get("content") if isinstance(lineage, dict) else None


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
