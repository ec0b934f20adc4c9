"""Publishing to a real server that speaks the Hub's API and misbehaves in every way a Hub can.

The study is real: a base of three steps, two teachers, two seeds of students, their evaluations.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from build_base import build_config, build_plan, place_base, write_numbers
from hub_server import TOKEN, HubServer

import publish as command
from lib import config, evaluation, files, hub, paths, store, training
from lib.errors import BadParameter, BrokenLineage, ConfigMismatch, DamagedFile, MissingInput, NotAvailable

REPO = Path(__file__).resolve().parents[1]
ANIMALS = ("neutral", "wolf")
BASE, LISTS, STUDENTS = (
    f"maker/subliminal-micro-64k-{name}" for name in ("tiny", "wolf-numbers-toy", "wolf-ft-toy")
)
EVALUATIONS = "maker/subliminal-scaling-toy"
REPOSITORIES = {
    ("model", BASE),
    ("dataset", LISTS),
    ("dataset", LISTS.replace("wolf", "neutral")),
    ("model", STUDENTS),
    ("model", STUDENTS.replace("wolf", "neutral")),
    ("dataset", EVALUATIONS),
}
ASKED = {
    **{"study": "toy", "size": "64k", "animal": "all", "animals": ",".join(ANIMALS), "seed": "all"},
    **{"seeds": "0,1", "what": "numbers,students,evaluations", "raw": False, "namespace": ""},
    **{"private": True, "wait": False, "dry_run": False},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study; nothing that publishes writes into it."""
    root = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(root))
        place_base(root)
        for seed in (0, 1):
            for number, animal in enumerate(ANIMALS):
                write_numbers(animal, seed=seed, start=100 + 200 * number)
            training.train_students(build_plan(config.Finetune, ANIMALS, seed=seed, trainer="fleet"))
            evaluation.evaluate_students(build_plan(config.Evaluate, ANIMALS, seed=seed))
        table = paths.tables("toy") / "transfer.csv"
        table.parent.mkdir(parents=True)
        table.write_text("size,params,lambda\n64k,64176,0.5\n")
    return root


@pytest.fixture
def server(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub of its own for every test, and this process talks to it."""
    with HubServer() as server:
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SUBLIMINAL_ROOT", str(study))
        # Read from the environment when the library was imported, long before this test.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
        monkeypatch.setattr(hub, "FIRST_PAUSE", 0.01)
        yield server


@pytest.fixture
def copy(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study that a test may damage."""
    root = tmp_path / "copy"
    shutil.copytree(study, root)
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(root))
    return root


def plan(**values: object) -> hub.Publication:
    return hub.plan_publication(config.read_parameters(config.Publish, ASKED | values))


def publish(**values: object) -> str:
    return repr(hub.publish(plan(**values)))


def local() -> dict[tuple[str, str], dict[str, str]]:
    """sha256 of what the study's own files are, where they are published as they are."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for animal in ANIMALS:
        for stage, kind, name in (("generate", "dataset", LISTS), ("finetune", "model", STUDENTS)):
            hashes = found.setdefault((kind, name.replace("wolf", animal)), {})
            for seed in (0, 1):
                folder = paths.artifact("toy", stage, "64k", animal, seed)
                wanted = [
                    *folder.glob("kept.jsonl"),
                    *folder.glob("epoch-*/*.safetensors"),
                    folder / "manifest.json",
                ]
                hashes |= {f"s{seed}/{path.relative_to(folder)}": files.hash_file(path) for path in wanted}
                if kind == "model":
                    path = paths.evaluation("toy", "64k", animal, seed)
                    hashes[f"s{seed}/evaluation.json"] = files.hash_file(path)
    root = paths.results("toy")
    found["dataset", EVALUATIONS] = {
        path.relative_to(root).as_posix(): files.hash_file(path) for path in root.rglob("*") if path.is_file()
    }
    folder = paths.built_base("tiny", "64k")
    wanted = [path for path in folder.iterdir() if path.name not in ("README.md", ".gitattributes")]
    found["model", BASE] = {path.name: files.hash_file(path) for path in wanted}
    return found


def assert_whole(server: HubServer) -> None:
    """Everything is there, byte for byte, nothing besides, every repository created once."""
    assert set(server.repos) == REPOSITORIES
    assert sorted(server.created) == sorted(" ".join(key) for key in REPOSITORIES)
    for (kind, repo), hashes in local().items():
        there = server.files(repo, kind)
        own = {name for name in there if name.endswith("adapter_config.json")} | {
            "README.md",
            ".gitattributes",
        }
        assert {name: there[name] for name in there if name not in own} == hashes, repo
    (collection,) = server.collections.values()
    assert sorted(item["id"] for item in collection["items"]) == sorted(
        repo for kind, repo in REPOSITORIES if repo.endswith("-numbers-toy")
    )


# --- a publish that goes well -------------------------------------------------------------------


def test_everything_of_a_study_is_there_once_under_the_reference_names(server: HubServer):
    assert publish() == "DONE 06_publish 64k: 6 made, 0 found finished"
    assert_whole(server)


def test_students_cost_one_creation_for_all_seeds_and_epochs_and_one_commit_each(server: HubServer):
    publish()
    titles = [commit.title for commit in server.repos["model", STUDENTS].commits]
    assert titles == ["initial commit", *2 * ["Publish students of 64k/wolf in study toy"]]


def test_a_second_publish_sends_nothing_and_says_so(server: HubServer, capsys: pytest.CaptureFixture):
    publish()
    before = len(server.seen)
    assert publish() == "DONE 06_publish 64k: 0 made, 6 found finished"
    assert server.writes(before) == []
    assert [seen for seen in server.seen[before:] if seen.what in ("preupload", "yaml")] == []
    assert "nothing to send: everything is at the Hub already" in capsys.readouterr().out


def test_one_cell_after_the_other_ends_where_all_at_once_does(server: HubServer):
    for animal in ANIMALS:
        for seed in ("1", "0"):
            publish(animal=animal, seed=seed)
    assert_whole(server)
    before = len(server.seen)
    publish()
    assert server.writes(before) == []


def test_an_adapter_names_its_base_as_the_hub_does(server: HubServer):
    publish()
    settings = json.loads(server.read(STUDENTS, "s1/epoch-2/adapter_config.json"))
    assert settings["base_model_name_or_path"] == BASE
    own = paths.artifact("toy", "finetune", "64k", "wolf", 1) / "epoch-2" / "adapter_config.json"
    assert settings | {"base_model_name_or_path": ""} == files.read_json(own) | {
        "base_model_name_or_path": ""
    }


def test_what_is_published_loads_by_the_code_of_its_cards(server: HubServer, tmp_path: Path):
    """Models through PEFT, lists and tables through datasets, from the server alone."""
    publish()
    code = []
    for kind, repo in (("model", STUDENTS), ("dataset", LISTS), ("dataset", EVALUATIONS)):
        card = server.read(repo, "README.md", kind).decode()
        code += re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    look = """
import json, safetensors.torch, sys
weights = peft_weights(student)
own = safetensors.torch.load_file(sys.argv[1])
assert weights.keys() == own.keys() and all((weights[name] == own[name]).all() for name in own)
assert student.peft_config["default"].base_model_name_or_path == sys.argv[2]
print(json.dumps([lists, table]))
"""
    parts = [
        "from peft import get_peft_model_state_dict as peft_weights",
        *code[:2],
        "lists = list(rows['completion'])",
        *code[2:],
        "table = list(rows['lambda'])",
        look,
    ]
    folder = paths.artifact("toy", "finetune", "64k", "wolf", 0)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(parts), str(folder / "epoch-2" / "adapter_model.safetensors"), BASE],
        env=os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "datasets"), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kept = files.read_jsonl(paths.artifact("toy", "generate", "64k", "wolf", 0) / "kept.jsonl")
    assert json.loads(done.stdout.splitlines()[-1]) == [[row["completion"] for row in kept], [0.5]]
    mirrored = tmp_path / "results" / "toy"
    assert files.read_json(mirrored / "64k/wolf/s0.json") == files.read_json(
        paths.evaluation("toy", "64k", "wolf", 0)
    )


def test_rejected_lists_are_published_when_asked_for_and_stay_in_the_card(server: HubServer):
    publish(animal="wolf", what="numbers", raw=True)
    raw = paths.artifact("toy", "generate", "64k", "wolf", 0) / "raw.jsonl"
    assert server.files(LISTS, "dataset")["s0/raw.jsonl"] == files.hash_file(raw)
    before = len(server.seen)
    publish(animal="wolf", what="numbers", raw=False)
    assert server.writes(before) == []


# --- who may see it -----------------------------------------------------------------------------


def test_repositories_and_collection_are_private_until_asked_otherwise(server: HubServer):
    publish()
    assert all(repo.private for repo in server.repos.values())
    assert all(each["private"] for each in server.collections.values())
    publish(private=False)
    assert not any(repo.private for repo in server.repos.values())
    assert not any(each["private"] for each in server.collections.values())


def test_what_is_public_is_never_hidden_again(server: HubServer):
    publish(private=False, animal="wolf", what="numbers")
    before = len(server.seen)
    shown = plan(animal="wolf", what="numbers")
    assert "is public there and stays so" in repr(shown)
    hub.publish(shown)
    assert server.writes(before) == []


# --- trouble ------------------------------------------------------------------------------------


def test_through_all_troubles_everything_is_there_exactly_once(server: HubServer):
    server.chunk = 20_000  # adapters go in parts
    server.trouble("whoami", 500)
    server.trouble("create", 429, headers={"Retry_After": "0"})
    server.trouble("create", "lost")
    server.trouble("create", 503, times=2)
    server.trouble("info", 502, times=2)
    server.trouble("info", "cut")
    server.trouble("yaml", 500, message="<html>a page</html>")
    server.trouble("preupload", 429, headers={"RateLimit": '"api";r=0;t=0'})
    server.trouble("batch", "cut")
    server.trouble("put", "cut")
    server.trouble("put", 500)
    server.trouble("put", "slow", seconds=0.3)
    server.trouble("commit", "lost", times=2)
    server.trouble("commit", 500)
    server.trouble("commit", 429, headers={"Retry_After": "0"})
    server.trouble("commit", "cut")
    server.trouble("collections", 500)
    server.trouble("collect", "lost", times=2)
    assert publish() == "DONE 06_publish 64k: 6 made, 0 found finished"
    assert [each for each in server.troubles if each.met < each.times] == []
    assert_whole(server)
    # A commit whose answer got lost is not made a second time.
    for (kind, repo), there in server.repos.items():
        seeds = len(there.commits) - 1
        assert seeds == (2 if repo in (LISTS, STUDENTS) or "neutral" in repo else 1), (kind, repo)


def start() -> subprocess.Popen:
    """A publish in a process of its own, which a test can kill."""
    code = (
        "import json, sys\n"
        "from lib import config, hub\n"
        "asked = json.loads(sys.argv[1])\n"
        "print(hub.publish(hub.plan_publication(config.read_parameters(config.Publish, asked))))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(ASKED)],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(("what", "after"), [("put", 3), ("commit", 4), ("create", 2)])
def test_a_publish_that_was_killed_is_gone_on_with(server: HubServer, what: str, after: int):
    server.trouble(what, "slow", times=after - 1, seconds=0)
    hang = server.trouble(what, "hang")
    process = start()
    try:
        server.wait_until_met(hang)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    server.troubles.clear()
    done = len(server.seen)
    publish()
    assert_whole(server)
    before, after = (
        {seen.path for seen in part if seen.what == "put" and seen.status == 200}
        for part in (server.seen[:done], server.seen[done:])
    )
    assert not before & after  # what had arrived whole is not sent again


def test_at_the_daily_limit_the_rest_goes_on_and_the_message_says_when_to_come_again(
    server: HubServer, capsys: pytest.CaptureFixture
):
    publish(animal="wolf", what="numbers", seed="0")
    server.creation_limit = 3
    with pytest.raises(NotAvailable, match=r"creates no more repositories.*3 of them .* \(in 4:00 h\)"):
        publish()
    assert len(server.created) == 3
    # What exists gets its files although it comes later in the plan.
    assert "s1/kept.jsonl" in server.files(LISTS, "dataset")
    creations = sum(seen.what == "create" and seen.status == 429 for seen in server.seen)
    assert creations == 1  # one refusal is enough to know
    server.creation_limit = None
    publish()
    assert_whole(server)


def test_with_wait_it_sleeps_until_the_hub_creates_again(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    server.creation_limit, server.creation_window = 4, 1.5
    server.limit_headers = {"Retry_After": "2"}
    assert publish(wait=True) == "DONE 06_publish 64k: 6 made, 0 found finished"
    assert re.search(r"Going on at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", capsys.readouterr().out)
    assert_whole(server)


@pytest.mark.parametrize("what", ["commit", "batch", "preupload"])
def test_at_an_hourly_limit_of_uploads_it_ends_and_says_until_when(server: HubServer, what: str):
    """Also where huggingface_hub would sleep for the hour by itself, without a word."""
    server.trouble(what, 429, times=1, headers={"Retry_After": "3600"})
    with pytest.raises(NotAvailable, match=r"takes no more uploads.*6 of them .* \(in 1:00 h\)"):
        publish()
    assert publish() == "DONE 06_publish 64k: 6 made, 0 found finished"
    assert_whole(server)


def test_a_limit_on_asking_ends_with_the_time_to_come_again(server: HubServer):
    server.trouble("whoami", 429, headers={"Retry_After": "7200"})
    with pytest.raises(NotAvailable, match=r"goes on from here, after \d.* \(in 2:00 h\)"):
        publish()


def test_a_hub_that_stays_down_ends_with_one_clear_error(server: HubServer):
    server.trouble("commit", 500, times=100)
    with pytest.raises(NotAvailable, match="the same command goes on from here"):
        publish()
    assert sum(seen.what == "commit" for seen in server.seen) == hub.ATTEMPTS


def test_what_the_library_repeats_is_not_repeated_once_more(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    server.trouble("put", 500, times=1000)
    with pytest.raises(NotAvailable):
        publish(animal="wolf", seed="0", what="students")
    puts = [seen.path for seen in server.seen if seen.what == "put"]
    assert max(puts.count(path) for path in puts) == 6


def test_a_change_by_somebody_else_in_between_is_looked_at_before_going_on(server: HubServer):
    publication = plan(animal="wolf", what="numbers", seed="0")
    hub.publish(publication)
    publication = plan(animal="wolf", what="numbers", seed="1")
    server.add_commit(LISTS, {"notes.md": b"mine"}, "dataset")
    hub.publish(publication)
    assert {"notes.md", "s0/kept.jsonl", "s1/kept.jsonl"} <= set(server.files(LISTS, "dataset"))
    assert [seen.status for seen in server.seen if seen.what == "commit"] == [200, 412, 200]


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({"retry-after": "7"}, "", 7.0),
        ({"ratelimit": '"api";r=0;t=55'}, "", 56.0),
        ({"ratelimit": '"api";r=3;t=55'}, "", None),
        ({"ratelimit": '"api";r=3;t=55', "retry-after": "9"}, "", 9.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, "", 0.0),
        ({"retry-after": "soon"}, "", None),
        ({}, "you can retry this action in about 4 hours.", 14400.0),
        ({}, "you can retry this action in about an hour.", 3600.0),
        ({}, "you can retry this action in about 1 day.", 86400.0),
        ({}, "", None),
    ],
)
def test_the_pause_is_the_one_the_hub_asks_for(headers: dict, message: str, seconds: float | None):
    assert hub.asked_pause(headers, message) == seconds


# --- what is refused ----------------------------------------------------------------------------


def test_a_repository_of_somebody_else_is_left_as_it_is(server: HubServer):
    server.add_repo(LISTS, {"README.md": b"# my own numbers\n", "s0/kept.jsonl": b"{}\n"}, "dataset")
    before = server.files(LISTS, "dataset")
    with pytest.raises(ConfigMismatch, match="holds something else than numbers of 64k/wolf in study toy"):
        publish()
    assert server.files(LISTS, "dataset") == before
    assert server.writes() == []


def test_a_repository_of_another_study_is_left_as_it_is(server: HubServer):
    card = b"<!-- subliminal-scaling: numbers of 64k/wolf in study other -->"
    server.add_repo(LISTS, {"README.md": card}, "dataset")
    with pytest.raises(ConfigMismatch):
        publish()
    assert server.writes() == []


def test_an_unfinished_student_stops_everything_before_anything_is_sent(server: HubServer, copy: Path):
    (paths.artifact("toy", "finetune", "64k", "wolf", 1) / "manifest.json").unlink()
    with pytest.raises(MissingInput, match=r"no adapter for 64k/wolf/s1 in study toy(.|\n)*02_finetune"):
        publish()
    assert server.writes() == []


def test_a_student_that_is_not_evaluated_is_published_only_without_evaluations(server: HubServer, copy: Path):
    paths.evaluation("toy", "64k", "wolf", 1).unlink()
    with pytest.raises(MissingInput, match="is not evaluated"):
        publish()
    publish(what="numbers,students")
    assert "s1/evaluation.json" not in server.files(STUDENTS)


def test_packed_evaluations_are_published_plain(server: HubServer, copy: Path):
    expected = local()
    for path in files.list_documents(paths.results("toy"), "*/*/s*.json"):
        files.write_bytes(files.packed_name(path), files.pack(path.read_bytes()))
        path.unlink()
    publish()
    for kind, repo in (("model", STUDENTS), ("dataset", EVALUATIONS)):
        there, plain = server.files(repo, kind), expected[kind, repo]
        evaluations = [name for name in plain if name.endswith(("/evaluation.json", "/s0.json", "/s1.json"))]
        assert len(evaluations) >= 2 and all(there[name] == plain[name] for name in evaluations)
        assert not [name for name in there if name.endswith(".gz")]
    before = len(server.seen)
    publish()
    assert server.writes(before) == []


def test_changed_files_and_broken_chains_are_refused(server: HubServer, copy: Path):
    path = paths.evaluation("toy", "64k", "wolf", 0)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"samples":2', b'"samples":3'))
    with pytest.raises(DamagedFile, match="was changed after it was written"):
        publish()
    path.write_bytes(whole)
    lists = paths.artifact("toy", "generate", "64k", "wolf", 0)
    shutil.rmtree(lists)
    write_numbers("wolf", start=500)
    with pytest.raises(BrokenLineage, match="was made from another generate 64k/wolf/s0"):
        publish()
    assert server.writes() == []


def test_control_students_point_to_the_lists_that_they_read(
    server: HubServer, copy: Path, monkeypatch: pytest.MonkeyPatch
):
    """Those of another study and another cell; there are no lists of the arm's own to publish."""
    monkeypatch.setattr(paths, "params_file", lambda study: copy / f"{study}.yaml")
    (copy / "arm.yaml").write_text("lists_of: toy\nlists: relabelled\n")
    students = [
        build_config(
            config.Finetune, study="arm", lists_of="toy", lists="relabelled", animal=animal, seed=seed
        )
        for animal in ("wolf", "bear")
        for seed in (0, 1)
    ]
    reads = {"wolf": "64k/neutral", "bear": "64k/wolf"}  # not what the study's list would give, but there
    students = [dataclasses.replace(each, reads=reads[each.animal]) for each in students]
    training.train_students(config.Plan(tuple(students), {}))
    for seed in (0, 1):
        evaluation.evaluate_students(build_plan(config.Evaluate, ("wolf", "bear"), study="arm", seed=seed))
    asked = {"study": "arm", "animal": "wolf,bear", "animals": "wolf,bear"}
    assert "SKIPPED numbers: study arm reads those of toy; publish them from there" in repr(plan(**asked))
    publish(**asked)
    assert not [repo for kind, repo in server.repos if "numbers-arm" in repo]
    for animal, read in (("wolf", "neutral"), ("bear", "wolf")):
        card = server.read(f"maker/subliminal-micro-64k-{animal}-ft-arm", "README.md").decode()
        assert f"maker/subliminal-micro-64k-{read}-numbers-toy" in card
        assert "a control: the lists of the next animal's teacher" in card


def test_an_evaluation_of_another_student_is_refused(server: HubServer, copy: Path):
    path = paths.evaluation("toy", "64k", "wolf", 0)
    document = files.read_json(path)
    document["lineage"]["inputs"]["finetune"] = "0" * 64
    files.write_json(path, store.seal(document))
    with pytest.raises(BrokenLineage):
        publish()


def test_a_student_whose_training_diverged_is_named_and_not_sent(server: HubServer, copy: Path):
    shutil.rmtree(paths.artifact("toy", "finetune", "64k", "wolf", 1))
    paths.evaluation("toy", "64k", "wolf", 1).unlink()
    cell = build_config(config.Finetune, seed=1)
    upstream = {"generate": store.read_manifest(paths.artifact("toy", "generate", "64k", "wolf", 1)).identity}
    run = store.open_run(training.folder_of(cell), cell, upstream)
    files.write_jsonl(run.folder / "loss.jsonl", [])
    run.finish(["loss.jsonl"], {"diverged": {"step": 3, "why": "the loss is no number"}})
    publication = plan()
    assert publication.skipped == ["SKIPPED finetune 64k/wolf/s1 of study toy: the loss is no number"]
    hub.publish(publication)
    assert not [name for name in server.files(STUDENTS) if name.startswith("s1/")]


def test_a_name_that_the_hub_would_not_take_stops_before_anything_is_sent(server: HubServer, copy: Path):
    shutil.copytree(paths.results("toy"), paths.results("a--b"))
    with pytest.raises(BadParameter, match="takes no repository named"):
        publish(study="a--b", what="evaluations")
    assert server.writes() == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"what": "numbers,student"}, "got 'student'; did you mean 'students'"),
        (
            {"namespace": "me/it"},
            "namespace must be a user or organisation of the Hub, or empty; got 'me/it'",
        ),
        ({"animal": "untuned"}, "animal 'untuned' is the base model itself"),
        ({"private": "no"}, "private must be True or False, got 'no'"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(asked: dict, message: str):
    with pytest.raises(BadParameter, match=re.escape(message)):
        config.read_parameters(config.Publish, ASKED | asked)


# --- one repository, several runs ---------------------------------------------------------------


def test_seeds_that_were_published_from_elsewhere_stay_in_the_card(server: HubServer, copy: Path):
    publish(seed="0")
    shutil.rmtree(copy / "artifacts/toy/finetune/64k/wolf/s0")
    shutil.rmtree(copy / "artifacts/toy/generate/64k/wolf/s0")
    publish(seed="1", animal="wolf", what="numbers,students")
    card = server.read(STUDENTS, "README.md").decode()
    assert "| s0/epoch-2/adapter_model.safetensors |" in card
    assert "| s1/epoch-2/adapter_model.safetensors |" in card
    assert 'config_name: "s0"' in server.read(LISTS, "README.md", "dataset").decode()


def test_epochs_of_a_student_that_was_trained_anew_are_taken_away(server: HubServer):
    publish()
    stale = "s1/epoch-7/adapter_model.safetensors"
    server.add_commit(STUDENTS, {stale: b"old", "notes.md": b"kept", "s4/epoch-1/x.bin": b"another seed"})
    publish()
    there = server.files(STUDENTS)
    assert stale not in there
    assert {"notes.md", "s4/epoch-1/x.bin"} <= set(there)


@pytest.mark.parametrize("name", ["s0/epoch-1/adapter_model.safetensors", "s0/evaluation.json"])
def test_other_bytes_of_the_same_length_are_replaced(server: HubServer, name: str):
    """A large file is known by its sha256, one kept in git by git's hash."""
    publish()
    whole = server.read(STUDENTS, name)
    server.add_commit(STUDENTS, {name: whole[:-1] + b"#"})
    assert publish() == "DONE 06_publish 64k: 1 made, 5 found finished"
    assert server.read(STUDENTS, name) == whole


def test_datasets_join_a_collection_that_is_there_already(server: HubServer):
    publish(animal="neutral", what="numbers")
    (collection,) = server.collections.values()
    for number in range(5):  # a list of collections shows four items of each
        server.add_repo(f"maker/other-{number}", {}, "dataset")
        item = {"_id": str(number), "id": f"maker/other-{number}", "type": "dataset", "position": number}
        collection["items"].insert(0, item)
    publish(animal="wolf", what="numbers")
    before = len(server.seen)
    publish(animal="neutral,wolf", what="numbers")
    assert len(server.collections) == 1
    assert len(collection["items"]) == 7
    assert server.writes(before) == []


# --- the plan -----------------------------------------------------------------------------------


def test_a_dry_run_shows_what_is_missing_and_sends_nothing(server: HubServer, capsys: pytest.CaptureFixture):
    publish(animal="wolf", seed="0")
    before = len(server.seen)
    publication = plan(dry_run=True)
    rows = {row["repository"]: row for row in publication.rows()}
    assert rows[LISTS]["state"] == "add" and rows[LISTS]["there"] == 2 and rows[LISTS]["files"] == 5
    assert rows[BASE]["state"] == "there"
    assert rows[LISTS.replace("wolf", "neutral")]["state"] == "create"
    assert "2 private repositories to create" in repr(publication)
    assert repr(hub.publish(publication)) == "DONE 06_publish 64k: 0 made, 2 found finished"
    assert "dry run: nothing was sent" in capsys.readouterr().out
    assert server.writes(before) == []


def test_a_dry_run_without_a_token_asks_for_what_is_public(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
):
    publish(private=False, animal="wolf", what="numbers")
    monkeypatch.delenv("HF_TOKEN")
    (row,) = plan(dry_run=True, namespace="maker", animal="wolf", what="numbers").rows()
    assert row["state"] == "there"


def test_a_dry_run_works_where_no_hub_can_be_reached(server: HubServer, monkeypatch: pytest.MonkeyPatch):
    server.close()
    monkeypatch.delenv("HF_TOKEN")
    assert "the Hub was not asked" in repr(plan(dry_run=True, namespace="maker"))
    assert "<namespace>/subliminal-scaling-toy" in repr(plan(dry_run=True))


def test_publishing_without_a_token_says_where_it_comes_from(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        NotAvailable, match=r"set HF_TOKEN in the environment, or log in once with `hf auth login`"
    ):
        publish()


# --- the token ----------------------------------------------------------------------------------


def test_a_token_without_the_right_to_write_is_told_as_such(server: HubServer):
    with pytest.raises(NotAvailable, match="does the token have the right to write in somebody"):
        publish(namespace="somebody")


@pytest.mark.parametrize("end", ["\x01", " x", "\u201d"])
def test_a_garbled_token_is_refused_without_being_shown(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, end: str
):
    monkeypatch.setenv("HF_TOKEN", TOKEN + end)
    with pytest.raises(BadParameter) as caught:
        publish()
    assert TOKEN not in str(caught.value)
    assert server.seen == []


def run_notebook(study: Path, folder: Path, name: str, **environment: str) -> subprocess.CompletedProcess:
    words = [word for key, value in ASKED.items() for word in ("-p", key, str(value))]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            str(REPO / "notebooks/06_publish.ipynb"),
            str(folder / name),
            *words,
        ],
        env=os.environ | {"SUBLIMINAL_ROOT": str(study), "HF_DEBUG": "1"} | environment,
        cwd=REPO,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )


def test_the_token_is_in_nothing_that_a_publish_writes(server: HubServer, copy: Path, tmp_path: Path):
    """Notebooks of a run that goes well, of one that is refused, their output, every file, every card."""
    written = tmp_path / "written"
    written.mkdir()
    good = run_notebook(copy, written, "good.ipynb")
    assert good.returncode == 0, good.stderr.decode()[-3000:]
    assert b"DONE 06_publish 64k: 6 made, 0 found finished" in (written / "good.ipynb").read_bytes()
    wrong = "hf_AnotherPlantedToken9876543210"
    bad = run_notebook(copy, written, "bad.ipynb", HF_TOKEN=wrong)
    assert bad.returncode != 0
    assert b"is the token right and still valid?" in bad.stderr
    texts = [good.stdout, good.stderr, bad.stdout, bad.stderr]
    texts += [path.read_bytes() for root in (copy, tmp_path) for path in root.rglob("*") if path.is_file()]
    texts += [entry.data for repo in server.repos.values() for entry in repo.commits[-1].files.values()]
    assert len(texts) > 100
    assert [text[:100] for text in texts if TOKEN.encode() in text or wrong.encode() in text] == []


def test_the_token_goes_to_the_hub_and_not_to_its_storage(server: HubServer):
    publish()
    assert {seen.authorised for seen in server.seen if seen.storage} == {False}
    assert all(seen.authorised for seen in server.seen if not seen.storage and seen.what != "complete")


# --- the command line ---------------------------------------------------------------------------


def test_the_command_shows_the_plan_of_a_tracked_study_without_artifacts(server: HubServer):
    """What a fresh clone can publish: the evaluations that the project carries."""
    done = subprocess.run(
        [sys.executable, "publish.py", "micro", "--what", "evaluations", "--sizes", "64k", "--dry-run"],
        cwd=REPO,
        env={name: value for name, value in os.environ.items() if name != "SUBLIMINAL_ROOT"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^dataset +maker/subliminal-scaling-micro +create ", done.stdout, re.MULTILINE)
    assert "DONE 06_publish 64k: 0 made, 0 found finished" in done.stdout
    assert server.writes() == []


def test_sizes_share_the_repository_of_the_evaluations(server: HubServer, capsys: pytest.CaptureFixture):
    asked = ASKED | {"what": "evaluations", "seed": "0"}
    plans = [config.read_parameters(config.Publish, asked | {"size": size}) for size in ("64k", "166k")]
    command.publish(plans)
    assert server.created == [f"dataset {EVALUATIONS}"]
    assert sum(seen.what == "whoami" for seen in server.seen) == 1
    assert "nothing to publish" in capsys.readouterr().out


def test_the_command_names_the_studies_there_are():
    done = subprocess.run([sys.executable, "publish.py", "mikro"], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no study 'mikro'" in done.stderr and "did you mean 'micro'" in done.stderr
