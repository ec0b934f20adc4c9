"""Bases from a Hub that cuts, lies and forgets: whole, pinned, or a clear refusal."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, HubServer
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from lib import bases, downloads, paths, store
from lib.errors import BadParameter, DamagedFile, MissingInput, NotAvailable, StorageFailed

REPO = "Qwen/Qwen2.5-0.5B-Instruct"


def prepare(label: str = "0.5b", revision: str = "main") -> store.Manifest:
    return bases.prepare_base(label, "standard", revision)


def folder(revision: str = "main") -> Path:
    return bases.base_folder("0.5b", "standard", revision)


# --- a Hub with a tiny Qwen -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_qwen(tmp_path_factory) -> dict[str, bytes]:
    """A repository as Qwen's are: shards with an index, a tokenizer, a licence, and things nobody needs."""
    there = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings = Qwen2Config(**shape, num_hidden_layers=2, vocab_size=200, tie_word_embeddings=True)
    Qwen2ForCausalLM(settings).save_pretrained(there, max_shard_size="40KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(paths.CODE / "models" / "64k" / name, there)
    found = {each.name: each.read_bytes() for each in there.iterdir()}
    named = json.loads(found["tokenizer_config.json"])
    named.pop("auto_map", None)  # the micro ladder's names no code, but a stranger's may
    found["tokenizer_config.json"] = json.dumps(named).encode()
    assert "model.safetensors.index.json" in found and len(shards(found)) >= 2
    extra = {"README.md": b"# a card", "LICENSE": b"do as you like", "original/weights.pth": b"pickle"}
    return found | extra


def shards(found: dict[str, bytes]) -> list[str]:
    return sorted(name for name in found if name.endswith(".safetensors"))


@pytest.fixture
def hub(tiny_qwen, tmp_path, monkeypatch) -> Iterator[HubServer]:
    """The Hub that this process asks; a cache, a root and impatience of its own."""
    from huggingface_hub import constants

    with HubServer() as server:
        server.add_repo(REPO, tiny_qwen)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        address = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(downloads, "PAUSE", 0.0)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path / "root"))
        yield server


def fetched(server: HubServer, since: int = 0) -> list[str]:
    """Names of files whose bytes were sent, LFS ones as their storage is asked."""
    names = {downloads.hashlib.sha256(entry.data).hexdigest(): name for name, entry in listing(server)}
    sent = [each for each in server.seen[since:] if each.method == "GET" and each.status in (200, 206)]
    plain = [each.path.rpartition("/")[2] for each in sent if each.what == "resolve"]
    return sorted(plain + [names[each.path.rpartition("/")[2]] for each in sent if each.what == "get"])


def listing(server: HubServer):
    return [pair for commit in server.repos["model", REPO].commits for pair in commit.files.items()]


def run_elsewhere(code: str, server: HubServer, home: Path, **environment: str) -> subprocess.Popen:
    """Another process of the same study on the same machine."""
    env = os.environ | server.environment(home) | environment
    return subprocess.Popen(
        [sys.executable, "-c", code],
        **{"env": env, "cwd": paths.CODE, "text": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
    )


PREPARE = "from lib import bases; print(bases.prepare_base('0.5b', 'standard').identity)"


# --- from the Hub ---------------------------------------------------------------------------------


def test_a_base_is_fetched_once_and_loads_as_it_lies(hub, tiny_qwen):
    made = prepare()
    loaded = AutoModelForCausalLM.from_pretrained(folder())
    tokenizer = AutoTokenizer.from_pretrained(folder())
    assert loaded.config.hidden_size == 32 and tokenizer.chat_template
    unwanted = {"README.md", "original/weights.pth"}
    assert fetched(hub) == sorted(tiny_qwen.keys() - unwanted)
    asked = len(hub.seen)
    assert prepare() == made == bases.base_manifest("0.5b", "standard")
    assert len(hub.seen) == asked


def test_a_large_download_tells_how_far_it_is_in_whole_lines(hub, monkeypatch, capsys):
    monkeypatch.setattr(downloads, "MB", 100)  # so that the tiny weights count as large
    prepare()
    lines = [line for line in capsys.readouterr().out.splitlines() if "MB fetched" in line]
    assert lines and all(re.match(r"\[#+-*\] \d+/\d+ MB fetched, \d+:\d\d gone", line) for line in lines)
    done, total = re.search(r"(\d+)/(\d+)", lines[-1]).groups()
    assert done == total


def test_nothing_is_fetched_by_asking_for_the_manifest(hub):
    with pytest.raises(MissingInput, match=r"0\.5b is not here yet.*01_generate"):
        bases.base_manifest("0.5b", "standard")
    assert not hub.seen


def test_the_second_run_needs_no_network(hub, tmp_path):
    made = prepare()
    hub.close()
    env = {"HF_HUB_OFFLINE": "1"}
    done = run_elsewhere(PREPARE, hub, tmp_path / "home", **env)
    assert done.communicate()[0].strip() == made.identity


def test_a_branch_is_pinned_to_the_commit_of_its_first_use(hub, tiny_qwen):
    first = prepare()
    hub.add_commit(REPO, {"config.json": tiny_qwen["config.json"] + b"\n"}, tag="v2")
    assert prepare() == first
    second = prepare(revision="v2")
    assert second.identity != first.identity and second.counts["commit"] != first.counts["commit"]
    assert folder("v2") != folder()


def test_the_identity_is_that_of_the_files_not_of_commit_time_or_place(hub, tmp_path, monkeypatch):
    first = prepare()
    hub.add_commit(REPO, {"README.md": b"# another card"}, tag="v2")
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path / "elsewhere"))
    again = prepare(revision="v2")
    assert again.identity == first.identity and again.counts["commit"] != first.counts["commit"]


def test_a_file_that_came_damaged_is_fetched_once_more(hub, tiny_qwen, monkeypatch):
    damaged = shards(tiny_qwen)[0]
    hub.corrupt(REPO, damaged)
    drop = downloads.drop
    monkeypatch.setattr(downloads, "drop", lambda path: (path.exists() and hub.heal(), drop(path)))
    prepare()
    assert fetched(hub).count(damaged) == 2
    assert (folder() / damaged).read_bytes() == tiny_qwen[damaged]


@pytest.mark.parametrize("which", ["model-00001", "tokenizer.json"])
def test_a_file_that_stays_damaged_is_named_removed_and_fetched_alone_next_time(hub, tiny_qwen, which):
    damaged = next(name for name in sorted(tiny_qwen) if name.startswith(which))
    hub.corrupt(REPO, damaged)
    with pytest.raises(DamagedFile, match=rf"{re.escape(damaged)} of {REPO}.*should be [0-9a-f]+ and is"):
        prepare()
    with pytest.raises(MissingInput, match="it was begun, but is not finished"):
        bases.base_manifest("0.5b", "standard")
    hub.heal()
    asked = len(hub.seen)
    prepare()
    weights = set(shards(tiny_qwen)) if which == "tokenizer.json" else set()  # they come after small files
    assert set(fetched(hub, asked)) == {damaged} | weights


def test_a_connection_that_breaks_goes_on(hub, tiny_qwen):
    hub.trouble("get", "cut", times=2)
    hub.trouble("info", "500")
    hub.trouble("resolve", "cut", path="tokenizer.json")
    prepare()
    assert (folder() / shards(tiny_qwen)[0]).read_bytes() == tiny_qwen[shards(tiny_qwen)[0]]


def test_a_connection_that_stays_broken_is_told_and_what_came_is_kept(hub, tiny_qwen, monkeypatch):
    monkeypatch.setattr(downloads, "CONNECTIONS", 1)
    last = shards(tiny_qwen)[-1]
    digest = downloads.hashlib.sha256(tiny_qwen[last]).hexdigest()
    trouble = hub.trouble("get", "cut", times=1000, path=digest)
    with pytest.raises(NotAvailable, match=r"What was fetched is kept.*HF_ENDPOINT"):
        prepare()
    trouble.times = 0
    asked = len(hub.seen)
    prepare()
    assert fetched(hub, asked) == [last]


def test_a_file_cut_short_in_the_cache_is_named_and_fetched_alone(hub, tiny_qwen, capsys):
    made = prepare()
    cut = shards(tiny_qwen)[1]
    os.truncate(folder() / cut, 1000)
    asked = len(hub.seen)
    assert prepare() == made
    assert f"{cut} missing or cut short" in capsys.readouterr().out
    assert fetched(hub, asked) == [cut]
    assert (folder() / cut).read_bytes() == tiny_qwen[cut]


def test_a_cache_that_was_deleted_is_filled_again_at_the_same_commit(hub, tmp_path):
    made = prepare()
    shutil.rmtree(tmp_path / "home")
    hub.add_commit(REPO, {"config.json": b'{"model_type": "another"}'})
    assert prepare() == made
    assert json.loads((folder() / "config.json").read_text())["model_type"] == "qwen2"


def test_a_cut_file_offline_is_told_not_passed_over(hub, tiny_qwen, monkeypatch):
    from huggingface_hub import constants

    prepare()
    os.truncate(folder() / shards(tiny_qwen)[1], 1000)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingInput, match="HF_HUB_OFFLINE"):
        prepare()


def test_a_file_of_the_wrong_size_that_somebody_left_in_the_cache_is_not_believed(hub, tiny_qwen):
    commit = hub.repos["model", REPO].commits[-1].oid
    snapshot = downloads.Snapshot(REPO, commit, ())
    snapshot.folder.mkdir(parents=True)
    snapshot.path("config.json").write_bytes(b"{")
    prepare()
    assert (folder() / "config.json").read_bytes() == tiny_qwen["config.json"]


def test_a_cache_filled_elsewhere_serves_a_machine_without_network(hub, tiny_qwen, tmp_path, monkeypatch):
    from huggingface_hub import constants, snapshot_download

    snapshot_download(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.seen)
    made = prepare()
    assert len(hub.seen) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path / "elsewhere"))
    assert prepare().identity == made.identity


def test_a_cache_that_is_not_whole_does_not_serve_offline(hub, tiny_qwen, monkeypatch):
    from huggingface_hub import constants, snapshot_download

    there = Path(snapshot_download(REPO))
    downloads.drop(there / shards(tiny_qwen)[1])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingInput, match=r"is not in the cache .* HF_HUB_OFFLINE"):
        prepare()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_the_repository_is_refused_before_its_weights_are_fetched(hub, tiny_qwen, name):
    changed = json.loads(tiny_qwen[name]) | {"auto_map": {"AutoModel": "evil.Model"}}
    hub.add_commit(REPO, {name: json.dumps(changed).encode()})
    with pytest.raises(NotAvailable, match=rf"its own code \({name} has auto_map.*evil\.Model"):
        prepare()
    assert not any(each.endswith(".safetensors") for each in fetched(hub))


def test_pickled_weights_are_refused(hub, tiny_qwen):
    rest = {name: data for name, data in tiny_qwen.items() if "safetensors" not in name}
    hub.add_repo(REPO, rest | {"pytorch_model.bin": b"pickle"})
    with pytest.raises(
        NotAvailable, match=r"only as original/weights\.pth, pytorch_model\.bin; only safetensors"
    ):
        prepare()
    assert fetched(hub) == []


def test_a_repository_without_tokenizer_is_refused(hub, tiny_qwen):
    hub.add_repo(REPO, {name: tiny_qwen[name] for name in ("config.json", *shards(tiny_qwen))})
    with pytest.raises(NotAvailable, match=r"lacks tokenizer_config\.json"):
        prepare()


def test_a_gated_repository_says_where_to_accept_its_licence(hub):
    gate = {"headers": {"code": "GatedRepo"}, "times": 100, "message": "Access to model is restricted."}
    hub.trouble("resolve", 403, **gate)
    with pytest.raises(
        NotAvailable, match=rf"gated: accept its licence at \S+/{REPO}, then log in"
    ) as caught:
        prepare()
    assert TOKEN not in str(caught.value)


def test_unknown_repositories_revisions_and_names_of_revisions(hub):
    with pytest.raises(BadParameter, match="has no revision 'v9'"):
        prepare(revision="v9")
    with pytest.raises(NotAvailable, match=r"has no Qwen/Qwen2\.5-1\.5B-Instruct for you \(it answers 40"):
        prepare("1.5b")
    with pytest.raises(BadParameter, match=r"revision must be a branch"):
        prepare(revision="../../etc")


def test_a_disk_too_small_stops_before_the_download(hub, monkeypatch):
    small = shutil.disk_usage("/")._replace(free=5000)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: small)
    with pytest.raises(StorageFailed, match=r"GB are free there; make room, or set HF_HOME"):
        prepare()
    assert fetched(hub) == []


def test_no_network_at_the_first_use_says_what_can_be_done(hub):
    hub.close()
    with pytest.raises(NotAvailable, match=r"cannot be reached.*HF_ENDPOINT to a mirror; or copy the cache"):
        prepare()


def test_a_hub_that_does_not_answer_is_called_slow(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.trouble("info", "hang", times=100)
    with pytest.raises(NotAvailable, match=r"too slow.*HF_HUB_DOWNLOAD_TIMEOUT=60"):
        prepare()


def test_a_hub_in_trouble_is_named_with_its_status(hub):
    hub.trouble("info", 503, times=100)
    with pytest.raises(NotAvailable, match=r"answers 503 .* again later"):
        prepare()


def test_an_answer_without_metadata_points_to_a_proxy_and_not_to_the_network():
    from huggingface_hub.errors import FileMetadataError, LocalEntryNotFoundError

    error = LocalEntryNotFoundError("no header in an answer from http://somewhere/with?a=signature")
    error.__cause__ = FileMetadataError("no header")
    text = str(downloads.explain(error, REPO, "main"))
    assert "without size or hash of a file: a proxy or mirror" in text and "signature" not in text


# --- processes ------------------------------------------------------------------------------------


def test_two_processes_at_once_fetch_every_file_once(hub, tiny_qwen, tmp_path):
    hub.trouble("get", "slow", times=3, seconds=0.5)
    both = [run_elsewhere(PREPARE, hub, tmp_path / "home") for _ in range(2)]
    said = [each.communicate()[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert said[0].split()[-1] == said[1].split()[-1]
    assert len(fetched(hub)) == len(set(fetched(hub)))


def test_a_killed_download_goes_on_with_the_files_that_were_whole(hub, tiny_qwen, tmp_path):
    held = hub.trouble(
        "get", "hang", path=downloads.hashlib.sha256(tiny_qwen[shards(tiny_qwen)[-1]]).hexdigest()
    )
    killed = run_elsewhere(PREPARE, hub, tmp_path / "home")
    hub.wait_for("get", len(shards(tiny_qwen)) - 1)
    os.kill(killed.pid, signal.SIGKILL)
    said = killed.communicate()[0]
    assert killed.returncode == -signal.SIGKILL, said
    with pytest.raises(MissingInput, match="not finished"):
        bases.base_manifest("0.5b", "standard")
    held.times = 0
    asked = len(hub.seen)
    prepare()
    assert shards(tiny_qwen)[-1] in fetched(hub, asked)
    assert not {"config.json", "tokenizer.json"} & set(fetched(hub, asked))


def test_half_written_files_of_killed_downloads_are_swept_once_old(hub):
    blobs = downloads._storage(REPO) / "blobs"
    blobs.mkdir(parents=True)
    old, new = blobs / "a.12345678.incomplete", blobs / "b.12345678.incomplete"
    for each in (old, new):
        each.write_bytes(b"half")
    os.utime(old, (0, 0))
    prepare()
    assert (old.exists(), new.exists()) == (False, True)


def test_the_token_is_written_nowhere(hub, tmp_path, capsys):
    prepare()
    assert any(each.authorised for each in hub.seen)
    assert TOKEN not in capsys.readouterr().out
    for each in (tmp_path / "root").rglob("*"):
        assert not each.is_file() or TOKEN.encode() not in each.read_bytes()


# --- the micro ladder -----------------------------------------------------------------------------


def test_micro_bases_are_read_and_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    assert bases.base_folder("64k", "standard") == paths.tracked_base("64k")
    assert bases.base_folder("64k", "tiny") == paths.built_base("tiny", "64k")
    assert prepare("64k") == bases.base_manifest("64k", "standard")
    with pytest.raises(MissingInput, match=r"00_pretrain\.ipynb executed/\S+ -p size 166k-7 -p recipe tiny"):
        bases.prepare_base("166k-7", "tiny")
