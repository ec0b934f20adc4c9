"""Publish what a study made on the Hugging Face Hub: plan it, look what is there, send what is missing.

Models layer. The Hub itself is the journal: every run asks it what it holds and sends only what differs, so
a run that was killed is gone on with by the next, and a finished one sends nothing. Only finished work whose
chain holds is published. The token comes from the environment or the login cache and goes to the Hub only.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib import cards, files, paths, store
from lib.bases import base_folder
from lib.config import UNTUNED, Base, Plan, Publish, parse_label, study_overrides
from lib.errors import BadParameter, ConfigMismatch, MissingInput, NotAvailable, StudyError
from lib.progress import Progress, Tally

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
ADAPTER = "adapter_config.json"
ATTEMPTS = 6  # of one request
FIRST_PAUSE = 1.0  # seconds before the second attempt, doubled with each further one
PATIENCE = 600.0  # seconds, above the Hub's five-minute window; a longer pause is a limit per hour or day
TIMEOUT = 300.0  # seconds without a byte; a large commit keeps the Hub busy for a while
PLACEHOLDER = "<namespace>"
BECOMES_PUBLIC = "becomes public"
# Requests that huggingface_hub repeats by itself, five times: repeating them here too would make it thirty.
REPEATED = re.compile(r"/preupload/|/info/lfs/|/lfs/|^GET /api/collections$")

# --- what is to be published ------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """One file as it is to lie in a repository."""

    path: str
    source: Path | bytes
    size: int
    sha256: str
    packed: bool = False  # here, not there

    def is_there(self, remote: Remote) -> bool:
        """Whether the Hub holds these very bytes: large files go by sha256, others by git's own hash."""
        found = remote.files.get(self.path)
        if found is None or found.size != self.size:
            return False
        return self.sha256 == found.sha256 if found.sha256 else self.git_hash == found.git_hash

    @functools.cached_property
    def git_hash(self) -> str:
        """The name git gives this content."""
        data = self.read()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def read(self) -> bytes:
        """Its bytes as they are to be sent."""
        if isinstance(self.source, bytes):
            return self.source
        data = self.source.read_bytes()
        return files.unpack(data, self.source) if self.packed else data

    @property
    def group(self) -> str:
        """Files of one seed go in one commit; all that belongs to no seed goes with the first of them."""
        seed = re.match(r"s\d+/", self.path)
        return seed.group() if seed else ""


def _file(path: str, source: Path | bytes) -> File:
    if isinstance(source, bytes):
        return File(path, source, len(source), hashlib.sha256(source).hexdigest())
    return File(path, source, source.stat().st_size, files.hash_file(source))


def _evaluation_file(path: str, source: Path) -> File:
    """An evaluation, published plain whether or not it is packed here: anybody is to read it."""
    found, data = files.read_document(source)
    packed = found.suffix == files.PACKED
    return File(path, found, len(data), hashlib.sha256(data).hexdigest(), packed)


@dataclass(frozen=True)
class RemoteFile:
    """What the Hub tells of a file; `sha256` is empty where it is small and kept in git."""

    size: int
    git_hash: str
    sha256: str


@dataclass(frozen=True)
class Remote:
    """A repository as it is at the Hub now."""

    commit: str
    private: bool
    files: dict[str, RemoteFile]

    def seeds(self) -> set[int]:
        """Seeds whose manifest is there."""
        found = (re.fullmatch(r"s(\d+)/manifest\.json", path) for path in self.files)
        return {int(each.group(1)) for each in found if each}


Card = Callable[[Mapping[int, store.Manifest], Mapping[str, str]], str]


@dataclass
class Repository:
    """One repository: what is to be in it and, once the Hub was asked, what is."""

    kind: str
    id: str
    title: str
    files: tuple[File, ...]
    manifests: dict[int, store.Manifest]
    write_card: Card
    collected: bool = False
    remote: Remote | None = None
    note: str = ""

    def whole(self) -> tuple[File, ...]:
        """The files and the card, which comes first."""
        sums = {name: each.sha256 for name, each in self.remote.files.items()} if self.remote else {}
        sums |= {each.path: each.sha256 for each in self.files}
        card = self.write_card(dict(sorted(self.manifests.items())), sums)
        return (_file(CARD, card.encode()), *self.files)

    def missing(self) -> list[File]:
        """What has to be sent."""
        return [each for each in self.whole() if self.remote is None or not each.is_there(self.remote)]

    def stale(self) -> list[str]:
        """Epochs at the Hub that the student published now does not have: it was trained anew."""
        if self.remote is None:
            return []
        own = {each.path for each in self.files}
        groups = {each.group for each in self.files if "/epoch-" in each.path}
        found = re.compile(r"(s\d+/)epoch-\d+/")
        names = ((name, found.match(name)) for name in self.remote.files)
        return [name for name, match in names if match and match.group(1) in groups and name not in own]

    def needs_work(self) -> bool:
        """Whether anything is to be sent, taken away or made public."""
        return bool(self.remote is None or self.missing() or self.stale() or self.note == BECOMES_PUBLIC)

    def row(self, asked: bool) -> dict[str, object]:
        """A line of the plan."""
        whole, todo = self.whole(), self.missing()
        state = "create" if self.remote is None else "add" if self.needs_work() else "there"
        return {
            "kind": self.kind,
            "repository": self.id,
            "state": state if asked else "not asked",
            "files": len(whole),
            "there": len(whole) - len(todo) if asked else "?",
            "bytes": sum(each.size for each in whole),
            "to send": sum(each.size for each in todo) if asked else "?",
            "note": self.note,
        }


@dataclass
class Publication:
    """The plan: every repository with what is to be done to it. Shown as a table."""

    config: Publish
    repositories: list[Repository]
    skipped: list[str]
    caller: Caller | None
    why_not: str = ""

    @property
    def asked(self) -> bool:
        """Whether the Hub told what it holds."""
        return not self.why_not

    def rows(self) -> list[dict[str, object]]:
        """One row per repository, for a table."""
        return [each.row(self.asked) for each in self.repositories]

    def __repr__(self) -> str:
        rows = self.rows()
        if not rows:
            return "\n".join(["nothing to publish", *self.skipped])
        names = list(rows[0])
        shown = [[_cell(name, row[name]) for name in names] for row in rows]
        widths = [max(map(len, column)) for column in zip(names, *shown, strict=True)]
        lines = [
            "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
            for line in (names, *shown)
        ]
        return "\n".join([*lines, self.summary(), *self.skipped])

    def summary(self) -> str:
        """What is to be done, in a line."""
        who = "private" if self.config.private else "public"
        if not self.asked:
            total = _size(sum(each.size for repository in self.repositories for each in repository.whole()))
            count = len(self.repositories)
            return f"{count} {who} repositories, {total}; the Hub was not asked: {self.why_not}"
        new = sum(each.remote is None for each in self.repositories)
        sizes = [each.size for repository in self.repositories for each in repository.missing()]
        return f"{new} {who} repositories to create, {len(sizes)} files to send, {_size(sum(sizes))}"


def _cell(name: str, value: object) -> str:
    return _size(value) if name in ("bytes", "to send") and isinstance(value, int) else str(value)


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


# --- gathering finished work --------------------------------------------------------------------


def _cell_folder(config: Publish, stage: str) -> Path:
    return paths.artifact(config.study, stage, config.size, config.animal, config.seed)


def _finished(config: Publish, stage: str, notebook: str, what: str) -> store.Manifest:
    """A finished run, its files verified and its inputs those that are here now."""
    where = f"{config.size}/{config.animal}/s{config.seed} in study {config.study}"
    command = paths.command(notebook, config.study, config.size, config.animal, config.seed)
    manifest = store.load_finished(
        _cell_folder(config, stage),
        f"no {what} for {where}, so nothing to publish: run it first\n  {command}",
    )
    recipe, revision = manifest.config["recipe"], manifest.knobs.get("revision", "main")
    upstream = {
        "base": base_folder(config.size, recipe, revision),
        "generate": paths.lists_read(manifest.config | manifest.knobs),
    }
    store.check_chain(manifest, upstream)
    return manifest


def _of_manifest(config: Publish, stage: str, names: Iterable[str], manifest: store.Manifest) -> list[File]:
    folder, seed = _cell_folder(config, stage), f"s{config.seed}"
    found = [
        File(f"{seed}/{name}", folder / name, (folder / name).stat().st_size, manifest.outputs[name])
        for name in names
    ]
    return [*found, _file(f"{seed}/{store.MANIFEST}", folder / store.MANIFEST)]


def gather_numbers(cells: list[Publish], namespace: str) -> Repository:
    """One teacher's lists, all seeds of the plan."""
    first, base = cells[0], parse_label(cells[0].size)
    manifests = {cell.seed: _finished(cell, "generate", "01_generate", "numbers") for cell in cells}
    names = ["kept.jsonl", *(["raw.jsonl"] if first.raw else [])]
    found = [each for cell in cells for each in _of_manifest(cell, "generate", names, manifests[cell.seed])]
    repo = f"{namespace}/{cards.name_numbers(base, first.animal, first.study)}"
    title = f"numbers of {first.size}/{first.animal} in study {first.study}"
    source = _source(base, manifests, namespace)

    def card(known: Mapping[int, store.Manifest], sums: Mapping[str, str]) -> str:
        return cards.numbers_card(repo, title, base, source, known, sums)

    return Repository("dataset", repo, title, tuple(found), manifests, card, collected=True)


def gather_students(cells: list[Publish], namespace: str) -> tuple[Repository | None, list[str]]:
    """One animal's students, all seeds of the plan; those whose training diverged are named, not sent."""
    first, base = cells[0], parse_label(cells[0].size)
    manifests, found, skipped = {}, [], []
    for cell in cells:
        manifest = _finished(cell, "finetune", "02_finetune", "adapter")
        if "diverged" in manifest.counts:
            skipped.append(f"SKIPPED {manifest.title}: {manifest.counts['diverged']['why']}")
            continue
        manifests[cell.seed] = manifest
        found += _adapter_files(cell, manifest, cards.name_base(base, manifest.config["recipe"], namespace))
        if "evaluations" in _wanted(cell):
            evaluation = _checked_evaluation(cell, manifest)
            found.append(_evaluation_file(f"s{cell.seed}/evaluation.json", evaluation))
    if not manifests:
        return None, skipped
    repo = f"{namespace}/{cards.name_students(base, first.animal, first.study)}"
    title = f"students of {first.size}/{first.animal} in study {first.study}"
    dataset = _dataset(manifests, namespace)
    source = _source(base, manifests, namespace)

    def card(known: Mapping[int, store.Manifest], sums: Mapping[str, str]) -> str:
        return cards.students_card(repo, title, base, source, known, sums, dataset)

    return Repository("model", repo, title, tuple(found), manifests, card), skipped


def _adapter_files(cell: Publish, manifest: store.Manifest, source: str) -> list[File]:
    """The adapters with their settings, which name the base as the Hub does."""
    folder = _cell_folder(cell, "finetune")
    names = [name for name in manifest.outputs if name.startswith("epoch-")]
    plain = [name for name in names if not name.endswith(ADAPTER)]
    found = _of_manifest(cell, "finetune", plain, manifest)
    for name in names:
        if name.endswith(ADAPTER):
            settings = files.read_json(folder / name) | {"base_model_name_or_path": source}
            text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
            found.append(_file(f"s{cell.seed}/{name}", text.encode()))
    return sorted(found, key=lambda each: each.path)


def _checked_evaluation(cell: Publish, student: store.Manifest) -> Path:
    """The evaluation of a student, sealed and of this very student."""
    path = paths.evaluation(cell.study, cell.size, cell.animal, cell.seed)
    if not files.has_document(path):
        command = paths.command("03_evaluate", cell.study, cell.size, cell.animal, cell.seed)
        raise MissingInput(
            f"{student.title} is not evaluated, so it cannot be published yet: run\n  {command}"
        )
    document = files.read_json(path)
    store.check_seal(document, path)
    store.check_inputs(str(path), document["lineage"]["inputs"], {"finetune": _cell_folder(cell, "finetune")})
    return path


def gather_evaluations(config: Publish, namespace: str) -> Repository:
    """Every evaluation and table of a study, whatever cells the plan has: the layout is that of results/."""
    root = paths.results(config.study)
    documents, found = {}, []
    for path in files.list_documents(root, "*/*/s*.json"):
        name = path.relative_to(root).as_posix()
        document = files.read_json(path)
        store.check_seal(document, path)
        cell = document["config"]
        folder = paths.student_folder(cell)
        store.check_inputs(str(path), document["lineage"]["inputs"], {"finetune": folder})
        answers = sum(len(each["answers"]) for each in document["epochs"])
        counts = {"epochs": len(document["epochs"]), "answers": answers}
        documents[name] = counts | {"content": document["lineage"]["content"], "config": cell}
        found.append(_evaluation_file(name, path))
    if not documents:
        raise MissingInput(
            f"no evaluation in {root}: run 03_evaluate first, or leave evaluations out of what"
        )
    tables = sorted(paths.tables(config.study).glob("*.csv"))
    found += [_file(f"tables/{each.name}", each) for each in tables]
    repo = f"{namespace}/{cards.name_evaluations(config.study)}"
    title = f"evaluations of study {config.study}"

    def card(_: Mapping[int, store.Manifest], sums: Mapping[str, str]) -> str:
        return cards.evaluations_card(repo, title, config.study, documents, sums)

    return Repository("dataset", repo, title, tuple(found), {}, card)


def gather_base(config: Publish, recipe: str, namespace: str) -> Repository:
    """A base of the micro ladder: nobody else has published it, and an adapter alone cannot be loaded."""
    base, folder = parse_label(config.size), base_folder(config.size, recipe)
    manifest = store.load_finished(folder, f"no base {config.size} of recipe {recipe}: run 00_pretrain first")
    names = [name for name in manifest.outputs if name != CARD]
    found = [
        File(name, folder / name, (folder / name).stat().st_size, manifest.outputs[name]) for name in names
    ]
    found.append(_file(store.MANIFEST, folder / store.MANIFEST))
    repo, title = cards.name_base(base, recipe, namespace), f"base {config.size} of recipe {recipe}"
    body = (
        (folder / CARD).read_text(encoding="utf-8") if CARD in manifest.outputs else f"# micro {config.size}"
    )

    def card(_: Mapping[int, store.Manifest], __: Mapping[str, str]) -> str:
        return cards.base_card(repo, title, base, manifest, body)

    return Repository("model", repo, title, tuple(found), {}, card)


def _source(base: Base, manifests: Mapping[int, store.Manifest], namespace: str) -> str:
    return cards.name_base(base, next(iter(manifests.values())).config["recipe"], namespace)


def _dataset(students: Mapping[int, store.Manifest], namespace: str) -> str:
    """Where the lists lie that students have read, or that those were made of."""
    student = students[min(students)]
    study, size, animal, _ = paths.lists_source(student.config | student.knobs)
    return f"{namespace}/{cards.name_numbers(parse_label(size), animal, study)}"


def _wanted(config: Publish) -> set[str]:
    return {name.strip() for name in config.what.split(",")}


def gather(plan: Plan, namespace: str) -> tuple[list[Repository], list[str]]:
    """Every repository of the plan, refused as a whole where one part of it is not finished."""
    config, wanted = plan.shared, _wanted(plan.shared)
    animals = list(dict.fromkeys(cell.animal for cell in plan.cells if cell.animal != UNTUNED))
    found: list[Repository] = []
    skipped: list[str] = []
    if "numbers" in wanted and (writer := study_overrides(config.study).get("lists_of")):
        wanted = wanted - {"numbers"}
        skipped.append(
            f"SKIPPED numbers: study {config.study} reads those of {writer}; publish them from there"
        )
    for animal in animals:
        cells = [cell for cell in plan.cells if cell.animal == animal]
        if "numbers" in wanted:
            found.append(gather_numbers(cells, namespace))
        if "students" in wanted:
            students, lost = gather_students(cells, namespace)
            found += [students] if students else []
            skipped += lost
    recipes = sorted({each.config["recipe"] for one in found for each in one.manifests.values()})
    if "students" in wanted and parse_label(config.size).family.name == "micro":
        found = [*(gather_base(config, recipe, namespace) for recipe in recipes), *found]
    if "evaluations" in wanted:
        found.append(gather_evaluations(config, namespace))
    return found, skipped


# --- the plan -----------------------------------------------------------------------------------


def plan_publication(plan: Plan, caller: Caller | None = None) -> Publication:
    """Everything finished and checked, and what of it is at the Hub already. Sends nothing.

    `caller` is that of an earlier plan, so that a study of many sizes asks only once whose the token is.
    """
    config, why_not = plan.shared, ""
    try:
        caller = caller or Caller.connect(config)
    except (NotAvailable, BadParameter) as error:
        if not config.dry_run:
            raise
        why_not = str(error)
    namespace = caller.namespace if caller else config.namespace or PLACEHOLDER
    repositories, skipped = gather(plan, namespace)
    if caller:
        try:
            for each in repositories:
                check_name(each.id)
                look(caller, each)
        except Unreachable as error:
            if not config.dry_run:
                raise
            why_not = str(error)
    return Publication(config, repositories, skipped, caller, why_not)


def check_name(repo: str) -> None:
    """Refuse a name that the Hub would not take, before anything is sent."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise BadParameter(
            f"the Hub takes no repository named {repo!r}: {error}; rename the study"
        ) from error


def look(caller: Caller, repository: Repository) -> None:
    """Ask what is there; refuse what somebody else, or another study, put there."""
    repository.remote = remote = caller.find(repository.kind, repository.id)
    repository.note = ""
    if remote is None or not set(remote.files) - {".gitattributes"}:
        return
    for seed in sorted(remote.seeds() - set(repository.manifests)) if repository.manifests else ():
        # Published from another machine: the card has to go on telling of it.
        repository.manifests[seed] = caller.read_manifest(repository, f"s{seed}/{store.MANIFEST}")
    if not repository.whole()[0].is_there(remote):
        there = caller.read(repository, CARD).decode("utf-8", "replace") if CARD in remote.files else ""
        if cards.marker(repository.title) not in there:
            raise ConfigMismatch(
                f"the {repository.kind} {repository.id} is at the Hub and holds something else than "
                f"{repository.title}: its README.md lacks the line that says so. It is left as it is; "
                "publish under another namespace, give the study another name, or move that repository away"
            )
    if remote.private != caller.config.private:
        repository.note = BECOMES_PUBLIC if remote.private else "is public there and stays so"


# --- doing it -----------------------------------------------------------------------------------


@dataclass
class Closed:
    """Until when the Hub wants no more creations, or nothing more at all."""

    creating: float = 0.0
    all: float = 0.0


def publish(publication: Publication) -> Tally:
    """Send what is missing; the number of repositories that changed and of those that were whole already."""
    config, repositories = publication.config, publication.repositories
    if config.dry_run:
        print("dry run: nothing was sent", flush=True)
        whole = sum(not each.needs_work() for each in repositories) if publication.asked else 0
        return Tally("06_publish", config.size, made=0, found=whole)
    caller = publication.caller
    assert caller is not None  # without one plan_publication has refused already
    todo = [each for each in repositories if each.needs_work()]
    pending, changed = list(todo), len(todo)
    with Progress("files", sum(max(len(each.missing()), 1) for each in todo)) as progress:
        while pending:
            pending, closed = send_all(caller, pending, progress)
            if pending:
                wait_or_stop(config, pending, closed)
    changed += collect(caller, [each.id for each in repositories if each.collected])
    if not changed:
        print("nothing to send: everything is at the Hub already", flush=True)
    return Tally("06_publish", config.size, made=len(todo), found=len(repositories) - len(todo))


def send_all(
    caller: Caller, pending: list[Repository], progress: Progress
) -> tuple[list[Repository], Closed]:
    """One round: what a limit stands in the way of is left over, all else is sent."""
    closed, later = Closed(), []
    for each in pending:
        if closed.all or (closed.creating and each.remote is None):
            later.append(each)
            continue
        try:
            send(caller, each, progress)
        except Limited as limit:
            closed = replace(closed, **{"creating" if limit.creating else "all": limit.until})
            later.append(each)
    return later, closed


def send(caller: Caller, repository: Repository, progress: Progress) -> None:
    """Create the repository where it is not there, then one commit per seed."""
    if repository.remote is None:
        caller.create(repository)
        look(caller, repository)
    todo = repository.missing()
    for group, found in _groups(todo).items():
        name = " ".join(filter(None, (repository.id, group.rstrip("/"))))
        note = f"{name}, {_size(sum(each.size for each in found))}"
        caller.commit(repository, found, repository.stale() if group == _last(todo) else [])
        progress.advance(note, len(found))
    if not todo:
        if repository.stale():
            caller.commit(repository, [], repository.stale())
        progress.advance(repository.id)
    if repository.note == BECOMES_PUBLIC:
        caller.open_up(repository)


def _groups(todo: list[File]) -> dict[str, list[File]]:
    """What goes together: the card with the first seed, since it is the card that says whose this is."""
    groups: dict[str, list[File]] = {}
    for each in todo:
        groups.setdefault(each.group, []).append(each)
    common = groups.pop("", [])
    if not groups:
        return {"": common} if common else {}
    first = next(iter(groups))
    return {**groups, first: common + groups[first]}


def _last(todo: list[File]) -> str:
    return next(reversed(_groups(todo)), "")


def wait_or_stop(config: Publish, pending: list[Repository], closed: Closed) -> None:
    """At a limit per hour or day: sleep until it is over, or say when to come again."""
    until = max(closed.creating, closed.all)
    when = _clock(until)
    limit = "takes no more uploads" if closed.all else "creates no more repositories"
    left = f"the Hub {limit} for now; {len(pending)} of them are still to come, the first {pending[0].id}"
    if not config.wait:
        raise NotAvailable(
            f"{left}. Everything else is there. Run the same again after {when}, or with wait to have it wait"
        )
    print(f"{left}. Going on at {when}", flush=True)
    while (rest := until - time.time()) > 0:
        time.sleep(min(rest, 60))  # in pieces: a laptop that slept in between is not to sleep on


def _clock(until: float) -> str:
    """`2025-01-01 14:00:00 CET (in 4:00 h)`."""
    at = datetime.datetime.fromtimestamp(until).astimezone()
    minutes = max(0, round((until - time.time()) / 60))
    left = f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min"
    return f"{at:%Y-%m-%d %H:%M:%S %Z} (in {left})"


def collect(caller: Caller, repos: list[str]) -> int:
    """Put datasets into the namespace's collection of them; how many were not there yet."""
    if not repos:
        return 0
    slug, there = caller.call("the collection", caller.find_collection)
    missing = [repo for repo in repos if repo not in there]
    if missing and not slug:
        slug, there = caller.call("the collection", caller.make_collection)
    for repo in missing:
        caller.call(
            f"the collection {slug}",
            lambda repo=repo: caller.api.add_collection_item(slug, repo, "dataset", exists_ok=True),
        )
    return len(missing)


# --- talking to the Hub -------------------------------------------------------------------------


class Unreachable(NotAvailable):
    """The Hub did not answer as it should, several times."""


class Limited(Exception):
    """The Hub asks for a pause so long that other work comes first."""

    def __init__(self, until: float, creating: bool = False) -> None:
        super().__init__(f"limited until {until}")
        self.until, self.creating = until, creating


@dataclass
class Caller:
    """The Hub's API with our patience: which request is repeated, after how long, and how often."""

    api: HfApi
    config: Publish
    namespace: str = ""
    token: str = field(default="", repr=False)

    @classmethod
    def connect(cls, config: Publish) -> Caller:
        """Find the token and whose it is; without one only public repositories can be seen."""
        from huggingface_hub import HfApi

        quieten()
        token = find_token()
        if not token and not config.dry_run:
            raise NotAvailable(
                "publishing needs a token of the Hub with the right to write: set HF_TOKEN in the "
                "environment, or log in once with `hf auth login`. No notebook is to hold it"
            )
        endpoint = os.environ.get("HF_ENDPOINT") or None
        api = HfApi(endpoint=endpoint, token=token or False, library_name="subliminal-scaling")
        caller = cls(api, config, config.namespace, token)
        if not caller.namespace:
            if not token:
                raise NotAvailable("neither a namespace was given nor a token that would tell it")
            caller.namespace = caller.call("the token's user", api.whoami)["name"]
        return caller

    def call(self, what: str, function: Callable[[], Any], *, may_limit: bool = False) -> Any:
        """Call, and again where that can help; with `may_limit` a long pause is Limited."""
        attempts = 2 if self.config.dry_run else ATTEMPTS
        for attempt in range(1, attempts + 1):
            try:
                return function()
            except (StudyError, Limited):
                raise
            except Exception as error:  # whatever it is: untold, its text and stack could show the token
                pause = pause_after(error, attempt)
                if pause is not None and pause > PATIENCE and may_limit:
                    raise Limited(time.time() + pause) from None
                if pause is None or pause > PATIENCE or attempt == attempts:
                    # `from None`: what lies beneath may hold a header, and with it the token.
                    raise Unreachable(self.explain(what, error, pause)) from None
                print(f"{what}: {self.clean(_first_line(error))}; again in {pause:.0f} s", flush=True)
            time.sleep(pause)
        raise AssertionError("the last attempt either returned or raised")

    def clean(self, text: str) -> str:
        """The text without the token, should it ever hold it."""
        return text.replace(self.token, "<token>") if self.token else text

    def explain(self, what: str, error: Exception, pause: float | None) -> str:
        """What went wrong and what can be done about it, in words without the token."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = {
            401: "is the token right and still valid?",
            403: f"does the token have the right to write in {self.namespace or 'this namespace'}?",
        }.get(status, "what was sent is there; the same command goes on from here")
        hint += f", after {_clock(time.time() + pause)}" if pause is not None and pause > PATIENCE else ""
        return f"{what}: the Hub did not do as asked ({self.clean(_first_line(error))}); {hint}"

    # --- asking ---

    def find(self, kind: str, repo: str, revision: str | None = None) -> Remote | None:
        """The repository as it is now or was at a commit, or None."""
        from huggingface_hub.errors import RepositoryNotFoundError

        def ask() -> Remote | None:
            try:
                info = self.api.repo_info(
                    repo, repo_type=kind, revision=revision, files_metadata=True, timeout=60
                )
            except RepositoryNotFoundError:
                return None
            found = {
                each.rfilename: RemoteFile(each.size or 0, each.blob_id, each.lfs.sha256 if each.lfs else "")
                for each in info.siblings or ()
            }
            return Remote(info.sha, bool(info.private), found)

        return self.call(f"{kind} {repo}", ask)

    def read(self, repository: Repository, name: str) -> bytes:
        """One small file from the Hub, past the cache."""

        def fetch() -> bytes:
            with tempfile.TemporaryDirectory() as folder:
                where = {"repo_type": repository.kind, "revision": repository.remote.commit}
                path = self.api.hf_hub_download(repository.id, name, **where, local_dir=folder)
                return Path(path).read_bytes()

        return self.call(f"{repository.id}/{name}", fetch)

    def read_manifest(self, repository: Repository, name: str) -> store.Manifest:
        """The manifest of a seed that was published from elsewhere."""
        with tempfile.TemporaryDirectory() as folder:
            files.write_bytes(Path(folder) / store.MANIFEST, self.read(repository, name))
            manifest = store.read_manifest(Path(folder))
        assert manifest is not None
        return manifest

    def find_collection(self) -> tuple[str, set[str]]:
        """The collection's slug, empty where there is none, and the datasets in it."""
        for each in self.api.list_collections(owner=self.namespace):
            if each.title == cards.COLLECTION:
                return self._open_collection(each.slug)
        return "", set()

    def _open_collection(self, slug: str) -> tuple[str, set[str]]:
        whole = self.api.get_collection(slug)  # a list of collections shows a few items of each only
        if whole.private and not self.config.private:
            self.api.update_collection_metadata(slug, private=False)
        return slug, {item.item_id for item in whole.items if item.item_type == "dataset"}

    # --- changing ---

    def create(self, repository: Repository) -> None:
        """Create an empty repository; a lost answer is no second creation."""
        kind, repo = repository.kind, repository.id
        private = self.config.private

        def make() -> None:
            self.api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)

        try:
            self.call(f"{kind} {repo}", make, may_limit=True)
        except Limited as limit:
            raise Limited(limit.until, creating=True) from None

    def commit(self, repository: Repository, found: list[File], stale: list[str]) -> None:
        """Files into one commit on top of what was looked at; after a failure the Hub is looked at anew."""
        tried = False

        def attempt() -> None:
            nonlocal tried
            if tried:  # the answer of a commit that was done may have got lost, or somebody else came first
                look(self, repository)
            tried = True
            remote = repository.remote
            todo = [each for each in found if not each.is_there(remote)]
            gone = [name for name in stale if name in remote.files]
            if todo or gone:
                self._send_commit(repository, todo, gone)

        self.call(f"{repository.kind} {repository.id}", attempt, may_limit=True)

    def _send_commit(self, repository: Repository, todo: list[File], gone: list[str]) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [CommitOperationDelete(path_in_repo=name) for name in gone]
        for each in todo:
            source = each.read() if each.packed or isinstance(each.source, bytes) else str(each.source)
            operations.append(CommitOperationAdd(each.path, source))
        done = self.api.create_commit(
            repository.id,
            operations,
            commit_message=f"Publish {repository.title}",
            repo_type=repository.kind,
            parent_commit=repository.remote.commit,
        )
        repository.remote = self.find(repository.kind, repository.id, done.oid)
        odd = [each.path for each in todo if not each.is_there(repository.remote)]
        if odd:
            raise Unreachable(
                f"{repository.id} holds other bytes than were sent, first in {odd[0]}: it was changed while "
                "it was being published; run the same again"
            )

    def open_up(self, repository: Repository) -> None:
        """Make a repository public that was published as private before."""
        self.call(
            f"{repository.kind} {repository.id}",
            lambda: self.api.update_repo_settings(repository.id, repo_type=repository.kind, private=False),
        )

    def make_collection(self) -> tuple[str, set[str]]:
        """The collection, created if it still is not there: an earlier answer may have got lost."""
        slug, there = self.find_collection()
        if slug:
            return slug, there
        made = self.api.create_collection(
            cards.COLLECTION,
            namespace=self.namespace,
            description="Lists of numbers written by teachers with a hidden preference.",
            private=self.config.private,
            exists_ok=True,
        )
        return made.slug, set()


def find_token() -> str:
    """The token of the environment or the login cache, or nothing; a garbled one is refused unseen."""
    from huggingface_hub import get_token

    token = get_token() or ""
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise BadParameter(
            "the token of the Hub (HF_TOKEN or the login cache) holds a character that no token has, such as "
            "a space or a quotation mark of a word processor; set it again"
        )
    return token


def quieten() -> None:
    """No bars and notices of the library in the notebook, no telemetry, and no wait without end."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub.utils import disable_progress_bars, logging, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    disable_progress_bars()
    logging.set_verbosity_error()

    def factory() -> Any:
        client = default_client_factory()
        client.timeout = TIMEOUT
        client.event_hooks = {**client.event_hooks, "response": [refuse_long_pauses]}
        return client

    set_client_factory(factory)


class LongPause(Exception):
    """The Hub asks for a pause of hours."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"429 Too Many Requests: the Hub asks for a pause of {seconds:.0f} s")
        self.seconds = seconds


def refuse_long_pauses(response: Any) -> None:
    """Where the library repeats a request by itself it would sleep as long as it is told, without a word."""
    pause = asked_pause(response.headers, "") if response.status_code == 429 else None
    if pause is not None and pause > PATIENCE:
        raise LongPause(pause)


# --- how long to wait ---------------------------------------------------------------------------


def pause_after(error: Exception, attempt: int) -> float | None:
    """Seconds until it is worth trying again; None where it is not, or where the library tried enough."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    cause, wrapped = _cause(error)
    if isinstance(cause, OfflineModeIsEnabled):
        return None
    if isinstance(cause, LongPause):
        return cause.seconds
    response = getattr(cause, "response", None)
    status = getattr(response, "status_code", None)
    if status == 429:
        asked = asked_pause(response.headers, str(cause))
        if asked is not None:
            return asked
    if wrapped or REPEATED.search(_request_line(cause)):
        return None
    if status is not None:
        return _backoff(attempt) if status in (408, 409, 412, 429) or status >= 500 else None
    return _backoff(attempt) if _is_passing(cause) else None


def _cause(error: Exception) -> tuple[BaseException, bool]:
    """The error of the request itself; uploads of large files wrap it, after their own attempts."""
    if type(error) is RuntimeError and error.__cause__ is not None:
        return error.__cause__, True
    return error, False


def _is_passing(error: BaseException) -> bool:
    from huggingface_hub.utils import httpx

    # ValueError: an answer that should have been JSON and is a page about a server in trouble.
    return isinstance(error, httpx.TransportError | TimeoutError | ConnectionError) or (
        isinstance(error, ValueError) and "JSON" in type(error).__name__
    )


def _request_line(error: BaseException) -> str:
    with contextlib.suppress(RuntimeError, AttributeError):  # httpx raises where it knows of no request
        return f"{error.request.method} {error.request.url.path}"  # type: ignore[attr-defined]
    return ""


def _backoff(attempt: int) -> float:
    return min(60.0, FIRST_PAUSE * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)


def asked_pause(headers: Mapping[str, str], message: str) -> float | None:
    """The pause the Hub asks for: in its headers, or in words (`in about 4 hours`)."""
    exhausted = re.search(r"\br=0\b.*?\bt=(\d+)", headers.get("ratelimit", ""))
    if exhausted:
        return float(exhausted.group(1)) + 1
    after = headers.get("retry-after", "").strip()
    if after.isdigit():
        return float(after)
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    told = re.search(r"in about (an?|\d+) (second|minute|hour|day)", message)
    if told is None:
        return None
    unit = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}[told.group(2)]
    return float(1 if told.group(1) in ("a", "an") else int(told.group(1))) * unit


def _first_line(error: BaseException) -> str:
    cause = _cause(error)[0] if isinstance(error, Exception) else error
    text = re.sub(r"\s*\([\w ]+ ID: [^)]*\)", "", str(cause))
    told = [line.strip() for line in text.splitlines() if line.strip()]
    server = getattr(cause, "server_message", None)
    return " ".join(dict.fromkeys([*(told[:1]), *([server] if server else [])])) or type(cause).__name__
