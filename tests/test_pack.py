"""pack.py: evaluations packed for git, read as before; killed anywhere, nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import build_study
import pytest
from build_study import ANIMALS, build_document, write_document

import pack
from lib import books, config, explore, files, merging, paths, shelf, store, tables
from lib.errors import BrokenLineage, DamagedFile, MissingInput, StudyError
from lib.explore import Explorer
from lib.planning import read_defaults
from lib.terminal import locked

LABELS = ("64k", "166k")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy study of plain evaluations in an empty place."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    build_study.build_study(labels=LABELS)
    return tmp_path


def pack_study(*flags: str) -> subprocess.CompletedProcess:
    """The command as somebody types it."""
    words = [sys.executable, str(paths.CODE / "pack.py"), *flags]
    return subprocess.run(words, cwd=paths.CODE, capture_output=True, text=True, check=False)


def pack_here() -> int:
    """The same in this process."""
    return pack.run("toy", pack.pack_one, "packed")


def contents(folder: Path) -> dict[str, bytes]:
    """Every evaluation below a folder as it was before packing, by its plain name."""
    found = files.list_documents(folder, "*/*/s*.json")
    return {path.relative_to(folder).as_posix(): files.read_document(path)[1] for path in found}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def load() -> tables.Study:
    return tables.load_study("toy", ",".join(LABELS), ",".join(ANIMALS), "0")


# --- the command ----------------------------------------------------------------------------------


def test_packing_keeps_content_and_unpacking_brings_every_byte_back(root: Path):
    folder, before = paths.results("toy"), contents(paths.results("toy"))
    size = sum(map(len, before.values())) / 1e6
    done = pack_study("toy")
    assert done.returncode == 0, done.stderr
    assert names(folder) == {"s0.json.gz"} and contents(folder) == before
    packed = sum(path.stat().st_size for path in folder.rglob("*.gz")) / 1e6
    assert f"{len(before)} packed: {size:.2f} MB before, {packed:.2f} MB now" in done.stdout
    first = {path: path.read_bytes() for path in folder.rglob("*.gz")}
    again = pack_study("toy")
    assert f"0 packed, {len(before)} were already" in again.stdout
    assert pack_study("toy", "--unpack").returncode == 0
    assert names(folder) == {"s0.json"} and contents(folder) == before
    pack_study("toy")
    assert {path: path.read_bytes() for path in folder.rglob("*.gz")} == first


def test_make_knows_how_to_pack():
    for words, flag in ((["STUDY=toy"], ""), (["STUDY=toy", "UNPACK=1"], " --unpack")):
        command = ["make", "-n", "-o", ".venv/.ready", "pack", *words]
        outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        done = subprocess.run(command, cwd=paths.CODE, env=outer, capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith(f"pack.py toy{flag}")


@pytest.mark.parametrize("study", ["tyo", "to/y", ""])
def test_a_study_that_is_not_there_is_told(root: Path, study: str):
    done = pack_study(study)
    assert done.returncode == 1 and "no evaluation in" in done.stderr and "Traceback" not in done.stderr


def test_what_cannot_be_packed_is_named_and_stays_and_all_else_is_packed(root: Path):
    folder = paths.results("toy")
    changed, cut, unfinished = (paths.evaluation("toy", "64k", name, 0) for name in ANIMALS[:3])
    changed.write_text(changed.read_text().replace('"stop"', '"length"', 1))
    cut.write_bytes(cut.read_bytes()[:1000])
    files.write_json(paths.artifact("toy", "evaluate", "64k", ANIMALS[2], 0) / store.BEGUN, {})
    before = {path: path.read_bytes() for path in (changed, cut, unfinished)}
    done = pack_study("toy")
    assert done.returncode == 1
    assert done.stdout.count("NOT packed: ") == 3
    assert f"{changed} was changed after it was written" in done.stdout
    assert f"NOT packed: {cut}, line " in done.stdout
    assert f"{unfinished} is not finished: run 03_evaluate" in done.stdout
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(folder.rglob("*.gz"))) == 2 * (len(ANIMALS) + 2) - 3


def test_a_damaged_packed_evaluation_stays_as_it_is_when_unpacked(root: Path):
    pack_study("toy")
    path = files.packed_name(paths.evaluation("toy", "64k", "cat", 0))
    path.write_bytes(path.read_bytes()[:-9])
    done = pack_study("toy", "--unpack")
    assert done.returncode == 1 and f"NOT unpacked: {path} is cut short" in done.stdout
    assert path.exists() and not files.plain_name(path).exists()


@pytest.mark.parametrize("flags", [(), ("--unpack",)], ids=["packing", "unpacking"])
def test_both_forms_of_one_evaluation_become_one(root: Path, flags: tuple[str, ...]):
    path = paths.evaluation("toy", "64k", "cat", 0)
    data = path.read_bytes()
    files.write_bytes(files.packed_name(path), files.pack(data))
    assert pack_study("toy", *flags).returncode == 0
    assert path.exists() != files.packed_name(path).exists()
    assert files.read_document(path)[1] == data


def test_an_evaluation_written_anew_while_it_was_packed_stays(root: Path, monkeypatch: pytest.MonkeyPatch):
    path = paths.evaluation("toy", "64k", "cat", 0)
    real = files.pack

    def pack_slowly(data: bytes) -> bytes:
        path.write_bytes(data + b"\n")  # as by another process
        return real(data)

    monkeypatch.setattr(files, "pack", pack_slowly)
    with pytest.raises(StudyError, match="written anew while it was packed"):
        pack.pack_one("toy", ("64k", "cat", 0), path)
    assert path.exists()


KILLED = """
import os, random, signal, sys, threading
sys.argv = sys.argv[1:]
left = int(sys.argv.pop(1))
from lib import files
import pack
def count(function):
    def counted(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return counted
os.replace, os.fsync, os.open = map(count, (os.replace, os.fsync, os.open))
sys.exit(pack.main())
"""


@pytest.mark.parametrize("flags", [(), ("--unpack",)], ids=["packing", "unpacking"])
def test_killed_between_any_two_steps_nothing_is_lost_and_a_rerun_ends_it(root: Path, flags: tuple[str, ...]):
    folder = paths.results("toy")
    for path in list(folder.glob("*/*"))[3:]:
        shutil.rmtree(path)
    if flags:
        pack_study("toy")
    before = contents(folder)
    kept = {path: path.read_bytes() for path in folder.rglob("s0*")}
    killed = 0
    for step in range(1, 40):
        for path in folder.rglob("*"):
            if path.is_file():
                path.unlink()
        for path, data in kept.items():
            path.write_bytes(data)
        words = [sys.executable, "-c", KILLED, "pack.py", str(step), "toy", *flags]
        done = subprocess.run(words, cwd=paths.CODE, capture_output=True, text=True, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        killed += done.returncode != 0
        assert contents(folder) == before
        if done.returncode == 0:
            break
    assert killed > 8 and done.returncode == 0
    assert pack_study("toy", *flags).returncode == 0
    assert names(folder) == {"s0.json" if flags else "s0.json.gz"} and contents(folder) == before


def test_leftovers_of_a_killed_packing_are_swept_by_the_next(root: Path):
    folder = paths.evaluation("toy", "64k", "cat", 0).parent
    code = KILLED.replace("os.replace, os.fsync, os.open = map(count, (os.replace, os.fsync, os.open))", "")
    code = code.replace("sys.exit(", "os.replace = count(os.replace)\nsys.exit(")
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, "pack.py", "1", "toy"], cwd=paths.CODE, check=False)
    assert len([name for name in names(paths.results("toy")) if name.endswith(".tmp")]) == 1
    assert pack_study("toy").returncode == 0
    assert names(paths.results("toy")) == {"s0.json.gz"} and names(folder) == {"s0.json.gz"}


def test_a_study_that_is_at_work_is_not_packed(root: Path):
    with locked("toy"):
        done = pack_study("toy")
    assert done.returncode == 1 and "is being run already" in done.stderr
    assert names(paths.results("toy")) == {"s0.json"}


def test_git_keeps_packed_evaluations_even_of_somebody_who_ignores_such_files(tmp_path: Path):
    """The usual list of things to ignore holds *.gz."""
    if not (paths.CODE / ".git").exists():
        pytest.skip("no git checkout")
    (tmp_path / "ignore").write_text("*.gz\n")
    for name, kept in (
        ("results/ladder/64k/wolf/s0.json.gz", True),
        ("results/micro/64k/wolf/s0.json", True),
        ("results/smoke/64k/wolf/s0.json.gz", False),
        ("artifacts/micro/explore/a.gz", False),
    ):
        words = ["git", "-c", f"core.excludesFile={tmp_path / 'ignore'}", "check-ignore", "--no-index", "-q"]
        done = subprocess.run([*words, name], cwd=paths.CODE, check=False)
        assert done.returncode == (1 if kept else 0), name


# --- reading what was packed ----------------------------------------------------------------------


def test_tables_and_lineage_are_the_same_byte_for_byte(root: Path):
    def write() -> dict[str, bytes]:
        study = load()
        asked = {"study": "toy", "sizes": ",".join(LABELS), "animals": ",".join(ANIMALS), "seeds": "0"}
        values = read_defaults("04_analysis") | asked
        settings = config.build(config.Analysis, values)
        frames = {"answers": study.answers, "cells": study.cells, "all": study.frame}
        written = tables.write_tables(study, settings, frames)
        return {path.name: path.read_bytes() for path in (*written, written[0].parent / "lineage.json")}

    plain = write()
    assert pack_here() == 0
    assert write() == plain and b"results/toy/64k/cat/s0.json" in plain["lineage.json"]
    one = files.packed_name(paths.evaluation("toy", "64k", "cat", 0))  # some packed, some not
    files.write_bytes(files.plain_name(one), files.read_document(one)[1])
    assert write() == plain  # and one of them in both forms


def test_an_evaluation_in_two_forms_that_differ_stops_the_analysis(root: Path):
    path = paths.evaluation("toy", "64k", "cat", 0)
    files.write_bytes(files.packed_name(path), files.pack(path.read_bytes()))
    document = build_document("toy", "64k", "cat", 0, transfer=3.0)
    path.write_text(json.dumps(store.seal(document)))
    with pytest.raises(DamagedFile, match=r"cat/s0\.json and s0\.json\.gz beside it hold different"):
        load()


def test_a_packed_evaluation_of_another_cell_or_a_cut_one_is_refused_by_its_own_name(root: Path):
    assert pack_here() == 0
    cat, dog = (files.packed_name(paths.evaluation("toy", "64k", name, 0)) for name in ("cat", "dog"))
    whole = cat.read_bytes()
    cat.write_bytes(dog.read_bytes())
    with pytest.raises(BrokenLineage, match=r"cat/s0\.json\.gz holds another cell"):
        load()
    cat.write_bytes(whole[:-20])
    with pytest.raises(DamagedFile, match=r"cat/s0\.json\.gz is cut short"):
        load()


def test_a_missing_evaluation_of_a_packed_study_is_listed_by_its_plain_name(root: Path):
    assert pack_here() == 0
    files.packed_name(paths.evaluation("toy", "64k", "cat", 0)).unlink()
    assert load().missing.file.tolist() == ["results/toy/64k/cat/s0.json"]
    shutil.rmtree(paths.results("toy"))
    with pytest.raises(MissingInput, match="run 03_evaluate"):
        load()


def test_the_profile_of_a_packed_student_is_that_of_the_plain_one(root: Path):
    plain = tables.profile_table("toy", "64k", "cat", 0)
    assert pack_here() == 0
    assert len(plain) and tables.profile_table("toy", "64k", "cat", 0).equals(plain)


# --- the explorer ---------------------------------------------------------------------------------


def ask(explorer: Explorer, what: str, **query: object) -> dict:
    reply = explorer.ask({"what": what, **query})
    assert "error" not in reply, reply
    reply.pop("ms")
    return reply


CELL = {"label": "64k", "animal": "cat", "seed": 0, "epoch": 2}


def test_the_explorer_shows_a_packed_study_as_it_shows_the_plain_one(root: Path):
    questions = (("matrix", {"size": "64k", "measure": "logprob"}), ("answers", CELL))
    questions += (("answers", CELL | {"scope": "study", "search": "dog"}),)

    def tell() -> list[dict]:
        explorer = Explorer("toy", index=False)
        return [ask(explorer, what, **query) for what, query in questions]

    plain = tell()
    assert pack_here() == 0
    packed = tell()
    assert packed == json.loads(json.dumps(plain).replace("s0.json", "s0.json.gz"))
    assert plain[1]["total"] == 60


def test_the_explorer_goes_on_when_a_study_is_packed_under_its_eyes(root: Path, monkeypatch):
    monkeypatch.setattr(shelf, "LOOK_AGAIN", 0.0)
    explorer = Explorer("toy", index=False)
    before = ask(explorer, "student", **CELL)
    assert (before["state"], before["about"]["file"]) == ("fine", "results/toy/64k/cat/s0.json")
    assert pack_here() == 0
    after = ask(explorer, "student", **CELL)
    assert after["about"].pop("file") == before["about"].pop("file") + ".gz"
    assert after == before
    rows = ask(explorer, "files")["files"]
    assert {row["state"] for row in rows} <= {"fine", "unread"} and all(row["bytes"] for row in rows)


def test_the_index_reads_every_packed_file(root: Path):
    assert pack_here() == 0
    explorer = Explorer("toy")
    deadline = time.monotonic() + 60
    while (told := ask(explorer, "progress")) and told["read"] < told["of"]:
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
    assert told["of"] == len(LABELS) * (len(ANIMALS) + 2)
    for each in explorer.shelves.values():
        each.close()


@pytest.mark.parametrize(
    ("spoil", "state", "word"),
    [
        (lambda data: data[:-30], "damaged", "is cut short after"),
        (lambda _: b"", "damaged", "is empty"),
        (lambda _: b"no gzip at all", "damaged", "cannot be unpacked"),
        (lambda _: files.pack(b'{"schema": "x"}'), "foreign", "schema 'x'"),
        (lambda _: files.pack(b'{"schema": '), "damaged", "half-written"),
    ],
    ids=["cut", "empty", "garbled", "foreign", "half"],
)
def test_the_explorer_says_what_is_wrong_with_a_packed_file(root: Path, spoil, state: str, word: str):
    assert pack_here() == 0
    path = files.packed_name(paths.evaluation("toy", "64k", "cat", 0))
    path.write_bytes(spoil(path.read_bytes()))
    told = ask(Explorer("toy", index=False), "student", **CELL | {"epoch": None})
    assert told["state"] == state and word in told["word"], told


def test_the_explorer_tells_of_two_forms_that_differ(root: Path):
    path = paths.evaluation("toy", "64k", "cat", 0)
    files.write_bytes(files.packed_name(path), files.pack(b"{}"))
    told = ask(Explorer("toy", index=False), "student", **CELL | {"epoch": None})
    assert told["state"] == "damaged" and "hold different documents" in told["word"]


def test_a_packed_file_that_would_fill_the_memory_is_not_opened(root: Path, monkeypatch):
    monkeypatch.setattr(books, "LARGEST", 100_000)
    path = paths.evaluation("toy", "64k", "cat", 0)
    path.unlink()
    files.write_bytes(files.packed_name(path), files.pack(b" " * 10_000_000))
    told = ask(Explorer("toy", index=False), "student", **CELL | {"epoch": None})
    assert told["state"] == "damaged" and "are not opened here" in told["word"]


def test_packed_studies_are_found_in_results_and_in_a_folder_that_was_mailed(root: Path):
    assert pack_here() == 0
    assert shelf.list_studies() == {"toy": "ours"}
    mailed = root / "mailed"
    shutil.copytree(paths.results("toy"), mailed)
    assert ask(Explorer(results=str(mailed), index=False), "student", **CELL)["state"] == "fine"
    assert explore.open_folder(str(mailed)) == mailed


# --- merging --------------------------------------------------------------------------------------


def test_a_packed_evaluation_is_merged_as_it_is_and_known_as_the_same(root: Path, monkeypatch):
    assert pack_here() == 0
    other = root / "other"
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(other))
    write_document(build_document("toy", "64k", "cat", 0))  # here plain already

    def merge() -> dict[str, int]:
        here, there = (merging.find_pieces(each, "toy") for each in (other, root))
        verdicts = merging.judge(here, there, lambda *_: "", students=False)
        done = [merging.take(each) if each.what == merging.NEW else each for each in verdicts]
        return {what: sum(each.what == what for each in done) for what in (merging.NEW, merging.SAME)}

    count = len(LABELS) * (len(ANIMALS) + 2)
    assert merge() == {merging.NEW: count - 1, merging.SAME: 1}
    assert merge() == {merging.NEW: 0, merging.SAME: count}
    folder = paths.results("toy")
    assert contents(folder) == contents(root / "results/toy")
    assert len(list(folder.rglob("*.gz"))) == count - 1 and (folder / "64k/cat/s0.json").exists()


def test_a_packed_evaluation_with_other_answers_is_told_apart(root: Path, monkeypatch):
    assert pack_here() == 0
    other = root / "other"
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(other))
    write_document(build_document("toy", "64k", "cat", 0, transfer=2.0))
    here, there = (merging.find_pieces(each, "toy") for each in (other, root))
    verdicts = merging.judge(here, there, lambda *_: "", students=False)
    wrong = [each for each in verdicts if each.is_trouble]
    assert [each.name for each in wrong] == ["evaluate 64k/cat/s0"]
    assert "epochs" in wrong[0].why
