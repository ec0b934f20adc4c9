"""Writing that is whole or absent and reading that names the line: real kills, a real full disk."""

import errno
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy
import pytest

from lib import files
from lib.errors import DamagedFile, MissingInput, StorageFailed

ROOT = Path(__file__).resolve().parents[1]


def in_new_mount(folder: Path, options: str, code: str) -> str:
    """Run Python with a small file system of its own on `folder`; it vanishes with the process."""
    script = f'mount -t tmpfs -o {options} tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1"'
    space = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here, so no file system of our own")
    done = subprocess.run(
        [*space, "sh", "-c", script, "sh", str(folder), sys.executable, code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"this machine lets us mount nothing: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


TRY_TO_WRITE = """
import sys
from pathlib import Path
from lib import files
from lib.errors import StorageFailed
folder = Path(sys.argv[1])
{before}
try:
    files.write_text(folder / "big.txt", "x" * 100_000)
except StorageFailed as error:
    print(error)
print(sorted(each.name for each in folder.iterdir()))
{after}
"""


# --- writing ----------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path):
    rows = [{"text": "dög \u2028 \U0001f43a\r", "n": 1.5}, {"text": "lone \ud83d", "none": None}]
    files.write_jsonl(tmp_path / "new" / "deep" / "rows.jsonl", rows)
    assert files.read_jsonl(tmp_path / "new" / "deep" / "rows.jsonl") == rows
    for compact in (True, False):
        files.write_json(tmp_path / "rows.json", rows, compact=compact)
        assert files.read_json(tmp_path / "rows.json") == rows


def test_json_keeps_the_order_of_fields_and_ends_its_line(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    assert (tmp_path / "a.json").read_text() == '{\n "b": 1,\n "a": [\n  2\n ]\n}\n'
    files.write_json(tmp_path / "a.json", {"b": 1, "a": [2]}, compact=True)
    assert (tmp_path / "a.json").read_text() == '{"b":1,"a":[2]}\n'


def test_numpy_and_paths_have_a_json_form(tmp_path):
    row = {
        "f": numpy.float32(0.5),
        "i": numpy.int64(3),
        "a": numpy.arange(2),
        "b": numpy.bool_(True),
        "p": Path("x/y"),
    }
    files.write_jsonl(tmp_path / "a.jsonl", [row])
    assert files.read_jsonl(tmp_path / "a.jsonl") == [{"f": 0.5, "i": 3, "a": [0, 1], "b": True, "p": "x/y"}]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), numpy.float32("nan"), {1}, object()])
def test_what_json_cannot_hold_is_refused_by_its_place(tmp_path, bad):
    files.write_json(tmp_path / "a.json", "old")
    with pytest.raises(
        StorageFailed, match=r"a\.json: it\.epochs\[1\]\.loss is .*None where a number is missing"
    ):
        files.write_json(tmp_path / "a.json", {"epochs": [{"loss": 1.0}, {"loss": bad}]})
    assert files.read_json(tmp_path / "a.json") == "old"


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "study").write_text("I am a file")
    for path in (tmp_path / "study" / "a.json", tmp_path / "study" / "s0" / "deep" / "a.json"):
        with pytest.raises(StorageFailed, match=r"a file stands where a folder should be: .*/study\."):
            files.write_json(path, {})


def test_a_folder_where_the_file_should_be(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(StorageFailed, match="a folder stands where the file should be"):
        files.write_json(tmp_path / "a.json", {})
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture
def locked_folder():
    """A folder that this process may not write; root, whom no mode stops, acts as nobody meanwhile."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_without_the_right_to_write(locked_folder):
    if not os.path.exists(locked_folder):
        pytest.skip("the temporary folder is closed to other users, and we are root")
    for path in (locked_folder / "a.json", locked_folder / "new" / "a.json"):
        with pytest.raises(StorageFailed) as caught:
            files.write_json(path, {})
        assert f"the folder {locked_folder} is read-only" in str(caught.value)
        assert "finished before this is safe" in str(caught.value)


def test_a_read_only_file_system(tmp_path):
    said = in_new_mount(tmp_path, "ro", TRY_TO_WRITE.format(before="", after=""))
    assert f"the folder {tmp_path} is read-only" in said and said.endswith("[]\n")


def test_a_full_disk_says_how_full_and_leaves_what_was_there(tmp_path):
    before = 'files.write_text(folder / "small.txt", "safe"); files.write_text(folder / "big.txt", "old")'
    after = 'print((folder / "small.txt").read_text(), (folder / "big.txt").read_text())'
    said = in_new_mount(tmp_path, "size=64k", TRY_TO_WRITE.format(before=before, after=after))
    assert re.search(r"the disk is full .*\([\d,]+ bytes free, 100,000 needed\)", said)
    assert "run the same command again" in said
    assert said.endswith("['big.txt', 'small.txt']\nsafe old\n")


def test_a_write_that_stops_half_way_leaves_the_old_file(tmp_path):
    before = "import resource; files.write_text(folder / 'big.txt', 'old')\n"
    before += "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))"
    after = "print((folder / 'big.txt').read_text())"
    code = TRY_TO_WRITE.format(before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert "File too large" in done.stdout and done.stdout.endswith("['big.txt']\nold\n"), done.stderr


def test_another_librarys_full_disk_is_told_alike(tmp_path):
    with pytest.raises(StorageFailed, match="disk is full"), files.storage_errors(tmp_path / "adapter"):
        raise OSError(errno.ENOSPC, "No space left on device")


WRITER = """
import itertools, sys
from pathlib import Path
from lib import files
for n in itertools.count():
    files.write_json(Path(sys.argv[1]), {"n": n, "fill": [n] * 20_000})
    if n == 0:
        print("going", flush=True)
"""


def test_no_kill_leaves_half_a_file(tmp_path):
    path, clock, reads = tmp_path / "a.json", random.Random(0), 0
    for _attempt in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path], cwd=ROOT, stdout=subprocess.PIPE)
        writer.stdout.readline()
        end = time.monotonic() + clock.uniform(0.02, 0.15)
        while time.monotonic() < end:
            assert_whole(path)  # while it is being replaced
            reads += 1
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert_whole(path)
    assert reads > 12
    files.write_json(path, {})
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"], "a killed writer's leftovers stayed"


def assert_whole(path):
    record = files.read_json(path)
    assert record["fill"] == [record["n"]] * 20_000


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f".a.json.{platform.node()}-{pid}-00.tmp").write_text("half")
    (tmp_path / f".a.json.elsewhere-{dead.pid}-00.tmp").write_text("half")
    files.write_json(tmp_path / "a.json", {})
    left = {each.name for each in tmp_path.iterdir()}
    assert left == {
        "a.json",
        f".a.json.{platform.node()}-{os.getpid()}-00.tmp",
        f".a.json.elsewhere-{dead.pid}-00.tmp",
    }


def test_many_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    failed = []

    def write(n):
        try:
            for _ in range(20):
                files.write_json(tmp_path / "a.json", [n] * 5000)
        except Exception as error:  # an error in a thread would pass unseen; the assert below shows it
            failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = files.read_json(tmp_path / "a.json")
    assert not failed and len(record) == 5000 and len(set(record)) == 1
    assert len(list(tmp_path.iterdir())) == 1


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "a.json is empty"),
        (b" \n", "a.json is empty"),
        (b'{"a": 1,\n "b": [1, 2\n', "a.json, line 3, column 1"),
        (b'{"a": 1}\n{"a": 2}\n', "a.json, line 2, column 1: Extra data"),
        (b'{\n"a": "\xff"}', "a.json, line 2: byte 0xff is not UTF-8"),
        (b'{"a": NaN}', "a.json: holds NaN, which is not JSON"),
        (b"[" * 200_000, "a.json: maximum recursion"),
    ],
    ids=["nothing", "blank", "cut", "extra", "utf8", "nan", "deep"],
)
def test_damaged_json_is_refused_by_its_place(tmp_path, data, said):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DamagedFile) as caught:
        files.read_json(tmp_path / "a.json")
    assert said in str(caught.value) and "run its stage again" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": 1}\n{"a": }\n{"a": 3}\n', "rows.jsonl, line 2, column 7"),
        (b'{"a": 1}\n{"a": 2}\n{"a": "cu', "rows.jsonl, line 3, column 7: the last line is cut short"),
        (b'{"a": 1}\n{"a": "\xc3\x28"}\n', "rows.jsonl, line 2: byte 0xc3 is not UTF-8"),
        (b'{"a": 1}\n[1, 2]\n', "rows.jsonl, line 2: is not an object but '[1, 2]'"),
        (b'{"a": 1}\n\n{"a": 3}\n', "rows.jsonl, line 2: is empty"),
        (b'{"a": 1}\n{"a": -Infinity}\n', "rows.jsonl, line 2: holds -Infinity"),
        (b'{"a": 1}\n{"a": 2}{"a": 3}\n', "rows.jsonl, line 2, column 9: Extra data"),
        (b'{"a": 1}\n\x00\x00\x00\x00', "rows.jsonl, line 2"),
    ],
    ids=["garbled", "cut", "utf8", "list", "blank", "infinity", "joined", "zeroes"],
)
def test_damaged_jsonl_is_refused_by_its_line(tmp_path, data, said):
    (tmp_path / "rows.jsonl").write_bytes(data)
    with pytest.raises(DamagedFile) as caught:
        files.read_jsonl(tmp_path / "rows.jsonl")
    assert said in str(caught.value)


def test_jsonl_without_rows_and_without_last_newline_are_whole(tmp_path):
    files.write_jsonl(tmp_path / "rows.jsonl", [])
    assert files.read_jsonl(tmp_path / "rows.jsonl") == []
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\r\n{"a": 2}')
    assert files.read_jsonl(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("read", [files.read_json, files.read_jsonl, files.hash_file])
def test_a_missing_file_is_named(tmp_path, read):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none.json", tmp_path / "file" / "none.json"):
        with pytest.raises(MissingInput, match=r"none\.json; run the stage that writes it"):
            read(path)


@pytest.mark.parametrize("read", [files.read_json, files.read_jsonl, files.hash_file])
def test_a_folder_is_not_read_as_a_file(tmp_path, read):
    with pytest.raises(DamagedFile, match="cannot be read: Is a directory"):
        read(tmp_path)


# --- hashes -----------------------------------------------------------------------------------


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.hash_file(tmp_path / "a") == known


def test_hash_of_an_object_ignores_what_json_does_not_keep():
    one = {"a": (1, 2), "n": {2: "x", 10: numpy.int64(4)}}
    other = json.loads('{"n": {"10": 4, "2": "x"}, "a": [1, 2]}')
    assert files.hash_object(one) == files.hash_object(other) != files.hash_object({"a": [2, 1]})


def test_hash_of_a_folder_takes_nested_files_and_leaves_hidden_ones(tmp_path):
    for name in ("b.txt", "deep/a.txt", ".b.txt.host-1-00.tmp", ".hidden/c.txt"):
        files.write_text(tmp_path / name, name)
    assert list(files.hash_folder(tmp_path)) == ["b.txt", "deep/a.txt"]
    assert list(files.hash_folder(tmp_path, ["b.txt"])) == ["b.txt"]


# --- packed documents -------------------------------------------------------------------------

DOCUMENT = {"lineage": {"content": "abc", "seconds": 1}, "epochs": [{"text": "dög"} for _ in range(500)]}


def pack_beside(path: Path, document: object = DOCUMENT, keep: bool = False) -> Path:
    """The document packed; plain too where `keep` says so."""
    files.write_json(path, document, compact=True)
    packed = files.packed_name(path)
    files.write_bytes(packed, files.pack(path.read_bytes()))
    if not keep:
        path.unlink()
    return packed


@pytest.mark.parametrize("name", ["s0.json", "s0.json.gz"])
def test_a_packed_document_is_read_under_both_its_names(tmp_path, name):
    packed = pack_beside(tmp_path / "s0.json")
    assert files.read_json(tmp_path / name) == DOCUMENT
    assert files.has_document(tmp_path / name) and files.find_document(tmp_path / name) == packed
    assert files.count_bytes(tmp_path / name) == len(files.read_document(tmp_path / name)[1]) > 500
    assert files.read_beginning(tmp_path / name, 10) == '{"lineage"'


def test_packing_gives_the_same_bytes_without_name_time_or_system():
    data = json.dumps(DOCUMENT).encode()
    packed = files.pack(data)
    assert files.pack(data) == packed and len(packed) < len(data) / 10
    assert packed[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"  # no flag, no time, level 9, no system


def test_a_packed_document_that_is_cut_anywhere_is_refused_by_its_name(tmp_path):
    packed = pack_beside(tmp_path / "s0.json")
    whole = packed.read_bytes()
    for length in range(len(whole)):
        packed.write_bytes(whole[:length])
        with pytest.raises(DamagedFile, match=r"s0\.json\.gz (is empty|is cut short|cannot be unpacked)"):
            files.read_json(tmp_path / "s0.json")


def test_a_packed_document_with_any_byte_changed_gives_the_document_or_an_error(tmp_path):
    packed = pack_beside(tmp_path / "s0.json")
    whole = packed.read_bytes()
    refused = 0
    for at in range(len(whole)):
        packed.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            found = files.read_json(tmp_path / "s0.json")
        except DamagedFile:
            refused += 1
        else:
            assert found == DOCUMENT and at < 10  # such as another time in the header
    assert refused > len(whole) - 10


def test_what_was_packed_may_itself_be_damaged_json(tmp_path):
    (tmp_path / "s0.json.gz").write_bytes(files.pack(b'{\n "a": [1, 2,,]}'))
    with pytest.raises(DamagedFile, match=r"s0\.json\.gz, line 2, column 1"):
        files.read_json(tmp_path / "s0.json")


def test_a_document_that_lies_there_twice_is_read_where_both_agree(tmp_path):
    path = tmp_path / "s0.json"
    pack_beside(path, keep=True)
    assert files.read_document(path)[0] == path and files.read_json(path) == DOCUMENT
    path.write_text(json.dumps(DOCUMENT, indent=3))  # other bytes, the same document
    assert files.read_json(path) == DOCUMENT
    again = DOCUMENT | {"lineage": {"content": "abc", "seconds": 2}}  # made again: the same seal
    path.write_text(json.dumps(again))
    assert files.read_json(path) == again


@pytest.mark.parametrize("seal", ["abd", None])
def test_a_document_that_lies_there_twice_and_differs_is_refused(tmp_path, seal):
    path = tmp_path / "s0.json"
    pack_beside(path, keep=True)
    path.write_text(json.dumps({"lineage": {"content": seal}, "epochs": []}))
    with pytest.raises(DamagedFile, match=r"s0\.json and s0\.json\.gz beside it hold different documents"):
        files.read_json(path)


def test_a_damaged_packed_document_beside_a_plain_one_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "s0.json"
    packed = pack_beside(path, keep=True)
    packed.write_bytes(packed.read_bytes()[:30])
    with pytest.raises(
        DamagedFile, match=r"s0\.json\.gz is cut short .* s0\.json lies beside it: delete the"
    ):
        files.read_json(path)


def test_what_is_written_replaces_a_packed_document(tmp_path):
    path = tmp_path / "s0.json"
    packed = pack_beside(path)
    files.write_json(path, {"new": 1})
    assert files.read_json(path) == files.read_json(packed) == {"new": 1} and not packed.exists()


def test_documents_are_listed_once_by_their_plain_names(tmp_path):
    pack_beside(tmp_path / "s0.json", keep=True)
    pack_beside(tmp_path / "s1.json")
    files.write_json(tmp_path / "s2.json", {})
    for name in ("s3.json.bak", "s4.gz", "s5.json.gz.part", ".s6.json.gz.host-1-ab.tmp"):
        (tmp_path / name).write_text("?")
    assert [path.name for path in files.list_documents(tmp_path, "s*.json")] == [
        "s0.json",
        "s1.json",
        "s2.json",
    ]


def test_reading_while_somebody_packs_and_unpacks_always_finds_the_document(tmp_path):
    path = tmp_path / "s0.json"
    files.write_json(path, DOCUMENT)
    stop = threading.Event()

    def pack_and_unpack() -> None:
        while not stop.is_set():
            _, data = files.read_document(path)
            files.write_bytes(files.packed_name(path), files.pack(data))
            path.unlink()
            files.write_bytes(path, data)
            files.packed_name(path).unlink()

    thread = threading.Thread(target=pack_and_unpack)
    thread.start()
    try:
        for _ in range(2000):
            assert files.read_json(path) == DOCUMENT
    finally:
        stop.set()
        thread.join()
