"""Results of two folders merged: what agrees comes over whole, what does not is named and left alone."""

import dataclasses
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import build_study
import pytest

import merge
from lib import bases, files, paths, planning, receipts, store
from lib.config import Evaluate, Finetune, Generate
from lib.errors import BadParameter, BrokenLineage, StorageFailed, StudyError

REPO = Path(__file__).resolve().parent.parent
STUDY = "toy"
NOTEBOOKS = {Generate: "01_generate", Finetune: "02_finetune", Evaluate: "03_evaluate"}
ANIMALS = ("neutral", "wolf", "cat")
BASE = "base-64k"

# --- folders to be merged -----------------------------------------------------------------------


class Machine:
    """A folder with a study of made-up results, whose identities and seals are real."""

    def __init__(self, root: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch):
        self.root, self.shelf, self.monkeypatch = root, shelf, monkeypatch
        root.mkdir()

    def enter(self) -> None:
        self.monkeypatch.setenv("SUBLIMINAL_ROOT", str(self.root))

    def run(self, stage: type, cell: tuple, inputs: Mapping, texts: Mapping[str, str], **settings) -> str:
        """A finished run with some files in it; its identity."""
        values = planning.read_defaults(NOTEBOOKS[stage]) | {"study": STUDY, **settings}
        values |= dict(zip(("size", "animal", "seed"), cell, strict=True))
        known = {field.name for field in dataclasses.fields(stage)}
        made = stage(**{name: value for name, value in values.items() if name in known})
        run = store.open_run(paths.artifact(STUDY, stage.stage, *cell), made, inputs)
        for name, text in texts.items():
            files.write_text(run.folder / name, text)
        return run.finish(texts, {}).identity

    def make(self, *cells: tuple, **settings) -> "Machine":
        """Cells with numbers, student and evaluation; the same ones are made once and then copied."""
        key = files.hash_object([cells, settings])
        if not (self.shelf / key).exists():
            make_cells(Machine(self.shelf / key, self.shelf, self.monkeypatch), cells, **settings)
        shutil.copytree(self.shelf / key, self.root, dirs_exist_ok=True)
        self.enter()
        return self

    def jobs(self, *seeds: int) -> dict[str, planning.Job]:
        """A job per stage for some seeds of 64k, with its receipt written."""
        self.enter()
        part = "s" + "_".join(map(str, seeds))
        made, before = {}, []
        for stage in planning.BY_CELL:
            job = planning.Job(
                STUDY, stage, "64k", ANIMALS, seeds, part=part, needs=tuple(n.name for n in before)
            )
            receipts.write_receipt(job, before)
            made[job.name] = job
            before = [job]
        return made

    def files(self, *folders: str) -> dict[str, bytes]:
        """Every file below some folders, or below the root."""
        tops = [self.root / each for each in folders] or [self.root]
        found = [path for top in tops for path in sorted(top.rglob("*")) if path.is_file()]
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in found}

    def path(self, animal: str, seed: int) -> Path:
        return self.root / f"results/{STUDY}/64k/{animal}/s{seed}.json"


def make_cells(
    machine: Machine, cells: tuple, base: str = BASE, lists: str = "1, 2, 3", extra: tuple = (), **settings
) -> None:
    """Every stage of some cells, with what each hands on to the next."""
    machine.enter()
    for cell in cells:
        inputs = {"base": base}
        numbers = machine.run(Generate, cell, inputs, {"kept.jsonl": lists}, **settings)
        student = machine.run(
            Finetune, cell, inputs | {"generate": numbers}, {"epoch-1/adapter.bin": "weights"}
        )
        config = store.read_manifest(paths.artifact(STUDY, "generate", *cell)).config
        document = build_study.build_document(STUDY, *cell, answers=extra, epochs=1)
        document["lineage"] |= {
            "inputs": inputs | {"finetune": student},
            "chain": {"generate": {"config": config, "identity": numbers}},
        }
        build_study.write_document(document)
        content = files.read_json(paths.evaluation(STUDY, *cell))["lineage"]["content"]
        text = json.dumps({"content": content})
        machine.run(Evaluate, cell, inputs | {"finetune": student}, {"receipt.json": text})


def cells(*seeds: int) -> list[tuple]:
    return [("64k", animal, seed) for seed in seeds for animal in ANIMALS]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def machine(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Machine]:
    """A machine by its name; none has a base model."""
    monkeypatch.setattr(merge, "find_base", lambda *_: "")
    return lambda name: Machine(tmp_path / name, shelf, monkeypatch)


def bring(here: Machine, there: Machine, students: bool = False, dry_run: bool = False) -> int:
    here.enter()
    return merge.merge(STUDY, there.root, students, dry_run)


# --- what agrees --------------------------------------------------------------------------------


def test_two_halves_are_the_whole(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    own, other = here.files("results", "artifacts"), there.files("results", "artifacts")
    assert bring(here, there, students=True) == 0
    assert here.files("results", "artifacts") == own | other
    said = capsys.readouterr().out
    assert "evaluations  3 came over" in said
    assert "numbers      3 came over" in said


def test_students_come_over_on_request_only(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    assert bring(here, there) == 0
    assert not any("finetune" in name and "s1" in name for name in here.files())
    assert "--students" in capsys.readouterr().out
    assert bring(here, there, students=True) == 0
    assert (here.root / "artifacts/toy/finetune/64k/wolf/s1/epoch-1/adapter.bin").read_text() == "weights"


def test_a_dry_run_writes_nothing_and_says_the_same(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    before = here.files()
    assert bring(here, there, dry_run=True) == 0
    assert here.files() == before
    assert "evaluations  3 to come over" in capsys.readouterr().out


def test_a_second_merge_finds_everything_here(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    bring(here, there, students=True)
    before = {name: (here.root / name).stat().st_mtime_ns for name in here.files("results", "artifacts")}
    capsys.readouterr()
    assert bring(here, there, students=True) == 0
    said = capsys.readouterr().out
    assert "evaluations  3 already here" in said
    assert "came over" not in said
    assert before == {name: (here.root / name).stat().st_mtime_ns for name in before}


def test_evaluations_travel_without_artifacts(machine):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    shutil.rmtree(there.root / "artifacts")
    assert bring(here, there) == 0
    assert here.path("wolf", 1).read_bytes() == there.path("wolf", 1).read_bytes()


def test_the_same_result_of_another_card_is_no_difference(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(0))
    document = files.read_json(there.path("wolf", 0))
    document["lineage"] |= {"seconds": {"finetune": 9.9}, "hardware": {"gpu": "another"}}
    files.write_json(there.path("wolf", 0), document)
    before = here.files()
    assert bring(here, there) == 0
    assert here.files("results") == {k: v for k, v in before.items() if k.startswith("results")}
    assert "3 already here" in capsys.readouterr().out


def test_students_of_another_cells_numbers_come_over_beside_the_numbers_of_their_own(machine, capsys):
    """A relabelled student goes back to numbers that lie under another animal, and contradicts nobody."""
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    there.enter()
    relabel(there, ("64k", "cat", 1), ("64k", "wolf", 1))
    assert bring(here, there, students=True) == 0
    assert "evaluations  3 came over" in capsys.readouterr().out
    here.enter()
    manifest = store.read_manifest(paths.artifact(STUDY, "finetune", "64k", "cat", 1))
    assert manifest.knobs["reads"] == "64k/wolf"


def relabel(machine: Machine, cell: tuple, source: tuple) -> None:
    """Make a cell's student and evaluation anew, of another cell's numbers."""
    for stage in ("finetune", "evaluate"):
        shutil.rmtree(paths.artifact(STUDY, stage, *cell))
    numbers = store.read_manifest(paths.artifact(STUDY, "generate", *source))
    inputs = {"base": BASE}
    reads = "/".join(source[:2])
    texts = {"epoch-1/adapter.bin": "other weights"}
    student = machine.run(Finetune, cell, inputs | {"generate": numbers.identity}, texts, reads=reads)
    document = files.read_json(machine.path(*cell[1:]))
    document["lineage"]["inputs"] = inputs | {"finetune": student}
    document["lineage"]["chain"] = {
        "generate": {"config": numbers.config, "identity": numbers.identity},
    }
    build_study.write_document(document)
    content = files.read_json(machine.path(*cell[1:]))["lineage"]["content"]
    machine.run(
        Evaluate, cell, inputs | {"finetune": student}, {"receipt.json": json.dumps({"content": content})}
    )


# --- what does not agree ------------------------------------------------------------------------


def test_another_result_of_one_cell_is_named_and_not_taken(machine, capsys):
    here = machine("a").make(*cells(0))
    there = machine("b").make(("64k", "cat", 0), extra=("a wolf",)).make(*cells(1))
    before = here.path("cat", 0).read_bytes()
    assert bring(here, there) == 1
    said = capsys.readouterr().out
    assert "evaluate 64k/cat/s0 differs:\n  epochs.1.answers: 60 entries here, 61 entries there" in said
    assert here.path("cat", 0).read_bytes() == before
    assert here.path("cat", 1).exists()  # the rest came over


def test_differing_answers_are_counted(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(0))
    document = files.read_json(there.path("cat", 0))
    for answer in document["epochs"][0]["answers"][:7]:
        answer["text"] = "owl"
    files.write_json(there.path("cat", 0), store.seal(document))
    shutil.rmtree(there.root / "artifacts/toy/evaluate/64k/cat/s0")
    assert bring(here, there) == 1
    assert "epochs.1.answers: 7 of 60 differ" in capsys.readouterr().out


def test_other_settings_are_refused_by_name_and_value(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1), n_raw=77)
    before = here.files()
    assert bring(here, there) == 1
    said = capsys.readouterr().out
    assert (
        "generate 64k/wolf/s1 refused:\n  its generate settings of 64k differ (n_raw: 30000 here, 77 in it)"
        in said
    )
    assert "evaluate 64k/wolf/s1 refused" in said  # made from those numbers
    assert {k: v for k, v in here.files().items() if ".lock" not in k} == before


def test_another_base_is_refused(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1), base="another")
    assert bring(here, there) == 1
    said = capsys.readouterr().out
    assert "its base model 64k differs (identity: 'base-64k' here, 'another' in it)" in said
    assert not here.path("wolf", 1).exists()


def test_the_base_that_is_here_has_the_first_word(machine, capsys, monkeypatch):
    here, there = machine("a"), machine("b").make(*cells(1))
    monkeypatch.setattr(merge, "find_base", lambda *_: "another")
    assert bring(here, there) == 1
    assert "'another' of the model here, 'base-64k' in it" in capsys.readouterr().out
    assert not here.path("wolf", 1).exists()


def test_a_folder_with_another_base_than_its_model_is_told_so(machine, monkeypatch):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    monkeypatch.setattr(merge, "find_base", lambda *_: "another")
    with pytest.raises(BrokenLineage, match=r"does not agree with itself: .* than the model here"):
        bring(here, there)


def test_an_evaluation_of_other_numbers_than_those_here_is_refused(machine, capsys):
    here = machine("a").make(*cells(0))
    here.make(("64k", "wolf", 1), lists="7, 8, 9")
    here.path("wolf", 1).unlink()  # given up after its numbers
    for stage in ("finetune", "evaluate"):
        shutil.rmtree(here.root / f"artifacts/toy/{stage}/64k/wolf/s1")
    there = machine("b").make(*cells(1))
    assert bring(here, there) == 1
    said = capsys.readouterr().out
    assert "generate 64k/wolf/s1 differs:\n  outputs.kept.jsonl:" in said
    assert (
        "evaluate 64k/wolf/s1 refused:\n  it goes back to other numbers than generate 64k/wolf/s1 here"
        in said
    )
    assert not here.path("wolf", 1).exists()
    assert here.path("cat", 1).exists()


def test_numbers_that_an_evaluation_here_did_not_come_from_are_refused(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(0), lists="7, 8, 9")
    shutil.rmtree(here.root / "artifacts")
    assert bring(here, there) == 1
    assert "generate 64k/wolf/s0 refused:\n  it goes back to other numbers" in capsys.readouterr().out
    assert not (here.root / "artifacts/toy/generate/64k/wolf/s0").exists()


def test_the_odd_one_of_many_is_refused_where_nothing_is_here(machine, capsys):
    here, there = machine("a"), machine("b").make(*cells(0)).make(("64k", "dog", 0), n_raw=77)
    here.enter()
    assert bring(here, there) == 1
    assert here.path("wolf", 0).exists()
    assert not here.path("dog", 0).exists()
    assert "n_raw: 30000 in most others, 77 in it" in capsys.readouterr().out


def test_of_two_halves_that_differ_none_is_taken(machine, capsys):
    here = machine("a")
    there = machine("b").make(("64k", "wolf", 0)).make(("64k", "cat", 0), n_raw=77)
    assert bring(here, there) == 1
    assert "the pieces there are divided" in capsys.readouterr().out
    assert here.files("results") == {}


@pytest.mark.parametrize(
    ("name", "old", "new", "word"),
    [
        ("results/toy/64k/wolf/s1.json", '"text": "', '"text": "X', "was changed after it was written"),
        ("results/toy/64k/wolf/s1.json", '"epochs"', "", "restore the file"),
        ("artifacts/toy/generate/64k/wolf/s1/kept.jsonl", "1, 2", "1, 9", "is not what its manifest says"),
        ("artifacts/toy/generate/64k/wolf/s1/manifest.json", "30000", "30001", "was changed after"),
        ("artifacts/toy/evaluate/64k/wolf/s1/receipt.json", "a", "b", "is not what its manifest says"),
    ],
)
def test_what_was_changed_there_is_refused(machine, capsys, name: str, old: str, new: str, word: str):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    path = there.root / name
    text = path.read_text()
    path.write_text(text.replace(old, new, 1))
    assert path.read_text() != text
    assert bring(here, there) == 1
    assert word in capsys.readouterr().out
    assert not (here.root / name).exists()
    assert here.path("cat", 1).exists()


def test_a_result_under_another_cells_name_is_refused(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    there.path("lion", 1).parent.mkdir()
    there.path("wolf", 1).rename(there.path("lion", 1))
    assert bring(here, there) == 1
    assert "animal: 'wolf' in it, 'lion' by its path" in capsys.readouterr().out
    assert not here.path("lion", 1).exists()


def test_a_damaged_adapter_is_refused_and_the_rest_goes_on(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    (there.root / "artifacts/toy/finetune/64k/cat/s1/epoch-1/adapter.bin").write_text("waste")
    assert bring(here, there, students=True) == 1
    assert "finetune 64k/cat/s1 refused" in capsys.readouterr().out
    folder = here.root / "artifacts/toy/finetune/64k"
    assert [path.name for path in (folder / "cat").iterdir()] == ["s0"]
    assert (folder / "wolf/s1/manifest.json").exists()


def test_what_is_unfinished_is_left_there_and_untouched_here(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    for own, animal in ((there, "cat"), (here, "wolf")):
        folder = own.root / f"artifacts/toy/generate/64k/{animal}/s1"
        files.write_json(folder / "begun.json", {})
        (folder / "manifest.json").unlink(missing_ok=True)
    assert bring(here, there) == 1
    said = capsys.readouterr().out
    assert "left there: generate 64k/cat/s1: it is not finished there" in said
    assert "generate 64k/wolf/s1 differs:\n  it was begun here and is not finished" in said
    assert [path.name for path in (here.root / "artifacts/toy/generate/64k/wolf/s1").iterdir()] == [
        "begun.json"
    ]


# --- receipts -----------------------------------------------------------------------------------


def test_receipts_come_with_all_that_they_name(machine):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    jobs = there.jobs(1)
    assert bring(here, there, students=True) == 0
    assert len(jobs) == 3
    assert all(receipts.is_done(job, jobs) for job in jobs.values())


def test_receipts_hold_after_packing_and_come_with_packed_evaluations(machine):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    jobs = there.jobs(1)
    for path in files.list_documents(there.root / "results", "*/*/*/s*.json"):
        files.write_bytes(files.packed_name(path), files.pack(path.read_bytes()))
        path.unlink()
    assert all(receipts.is_done(job, jobs) for job in jobs.values())
    assert bring(here, there, students=True) == 0
    assert all(receipts.is_done(job, jobs) for job in jobs.values())
    files.packed_name(here.path("cat", 1)).unlink()
    assert [receipts.is_done(job, jobs) for job in jobs.values()] == [True, True, False]


def test_a_receipt_of_students_that_stayed_away_stays_too(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    jobs = there.jobs(1)
    assert bring(here, there) == 0
    assert [job.stage for job in jobs.values() if job.receipt.exists()] == ["generate"]
    assert "not all of their students are here" in capsys.readouterr().out


def test_a_receipt_of_a_job_with_a_refused_result_stays_away(machine):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    jobs = there.jobs(1)
    (there.root / "artifacts/toy/generate/64k/cat/s1/kept.jsonl").write_text("waste")
    assert bring(here, there, students=True) == 1
    assert not any(job.receipt.exists() for job in jobs.values() if job.stage == "generate")


def test_receipts_of_the_same_results_are_the_same_however_long_they_took(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(0))
    path = there.jobs(0)["generate-64k-s0"].receipt
    files.write_json(path, files.read_json(path) | {"seconds": 99.0})
    own = here.jobs(0)["generate-64k-s0"].receipt.read_bytes()
    assert bring(here, there, students=True) == 0
    assert "receipts     3 already here" in capsys.readouterr().out
    assert (here.root / "artifacts/toy/.grid/generate-64k-s0.json").read_bytes() == own


def test_a_receipt_of_other_results_is_named_and_not_taken(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(0), lists="7, 8, 9")
    there.jobs(0)
    own = here.jobs(0)["generate-64k-s0"].receipt.read_bytes()
    assert bring(here, there, students=True) == 1
    assert "generate-64k-s0 differs:\n  results.neutral/s0: " in capsys.readouterr().out
    assert (here.root / "artifacts/toy/.grid/generate-64k-s0.json").read_bytes() == own


def test_a_changed_receipt_is_refused(machine, capsys):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    path = there.jobs(1)["generate-64k-s1"].receipt
    receipt = files.read_json(path)
    files.write_json(path, receipt | {"results": receipt["results"] | {"wolf/s1": "0" * 64}})
    assert bring(here, there, students=True) == 1
    assert "generate-64k-s1 refused" in capsys.readouterr().out


# --- interruptions ------------------------------------------------------------------------------

# A child per merge, killed after so many of the calls that move bytes; in between everything is looked at.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import merge
from lib import files, paths, store
def after(function):
    def wrapped(*words, **named):
        global left
        made = function(*words, **named)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return made
    return wrapped
def look():
    for path in paths.root().glob("results/*/*/*/*.json"):
        store.check_seal(files.read_json(path), path)
    for path in paths.root().rglob("s1/manifest.json"):
        store.load_finished(path.parent, "gone")
shutil.copyfile, os.replace, Path.rename = map(after, (shutil.copyfile, os.replace, Path.rename))
merge.find_base = lambda *_: ""
for attempt in range(50):
    left = 3 + attempt % 3
    child = os.fork()
    if not child:
        os._exit(merge.merge("toy", Path(sys.argv[1]), True, False))
    status = os.waitpid(child, 0)[1]
    look()
    if not os.WIFSIGNALED(status):
        break
print("killed", attempt)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_killed_merge_leaves_whole_pieces_and_goes_on(machine):
    there = machine("b").make(("64k", "wolf", 1), ("64k", "cat", 1))
    whole = machine("whole").make(("64k", "wolf", 0))
    bring(whole, there, students=True)
    here = machine("a").make(("64k", "wolf", 0))
    words = [sys.executable, "-c", KILLED, str(there.root)]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(words, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 4
    assert here.files("results", "artifacts") == whole.files("results", "artifacts")


def test_a_full_disk_stops_the_merge_and_leaves_nothing_half(machine):
    here, there = (
        machine("a").make(("64k", "wolf", 0)),
        machine("b").make(("64k", "cat", 0), lists="1, 2\n" * 9999),
    )
    before = here.files()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(StorageFailed, match="Work finished before this is safe"):
            bring(here, there)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {k: v for k, v in here.files().items() if ".lock" not in k} == before
    assert bring(here, there) == 0


def test_a_study_that_is_being_run_is_not_merged_into(machine):
    here, there = machine("a").make(*cells(0)), machine("b").make(*cells(1))
    here.enter()
    (here.root / "executed/toy").mkdir(parents=True)
    with open(here.root / "executed/toy/.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StudyError, match="is being run already"):
            bring(here, there)
    assert not here.path("wolf", 1).exists()


# --- the command --------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_merged_is_refused(machine, tmp_path: Path):
    here = machine("a").make(("64k", "wolf", 0))
    here.enter()
    with pytest.raises(BadParameter, match="there is no folder"):
        merge.check_source(STUDY, tmp_path / "nowhere")
    with pytest.raises(BadParameter, match="this very folder"):
        merge.check_source(STUDY, paths.root())
    (tmp_path / "c/results/other").mkdir(parents=True)
    with pytest.raises(BadParameter, match=r"nothing of study toy.*studies there: other"):
        merge.check_source(STUDY, tmp_path / "c")


def test_the_command_says_what_it_did_and_ends_with_one_where_something_differs(machine):
    base = bases.base_manifest("64k", "standard").identity
    here = machine("a").make(*cells(0), base=base)
    there = machine("b").make(*cells(0), base=base, extra=("a wolf",))
    here.enter()
    words = [sys.executable, str(REPO / "merge.py"), STUDY, str(there.root)]
    done = subprocess.run(words, cwd=REPO, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "evaluations  3 DO NOT FIT" in done.stdout
    assert "3 of 9 do not fit and stay where they are; all that fits is here" in done.stdout
