"""Results of another machine's folder brought into this one, where their lineages agree.

What can be merged is a piece: the numbers, the student or the evaluation of one cell. A piece comes over
whole or not at all, and nothing that is here is ever replaced. Must not run anything, nor decide what a study
asks for.
"""

import contextlib
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lib import config, files, paths, planning, receipts, store, tallies
from lib.errors import BadParameter, BrokenLineage, DamagedFile, MissingInput, StudyError
from lib.progress import Progress
from lib.tallies import SCHEMA, SHARED_FIELDS, Cell

FOLDERS = {"generate": "numbers", "finetune": "students", "evaluate": "evaluations"}  # what a stage makes
RECEIPTS = "receipts"
NEW, SAME, DIFFERS, REFUSED, LEFT = "new", "same", "differs", "refused", "left"
MANY = 200  # pieces that take long enough to be shown a bar
CELL = re.compile(r"s(\d+)(\.json(\.gz)?)?")  # a seed's folder or evaluation
SHOWN = 8  # differences of one piece that are spelled out

FindBase = Callable[[str, str, str], str]  # label, recipe, revision -> identity of the base here, or nothing


@dataclass(frozen=True)
class Piece:
    """The finished result of one stage for one cell, verified.

    `claims` are the identities that it is made of, its own among them, by stage: two pieces of a cell that
    name one stage must name the same identity. `folder` is the work's own, `file` the evaluation's JSON.
    """

    stage: str
    cell: Cell
    claims: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]
    recipe: str
    revision: str
    identity: str = ""  # of the manifest; an evaluation may have come without its run
    folder: Path | None = None
    file: Path | None = None
    digest: str = ""  # of the file's bytes

    @property
    def key(self) -> tuple[str, Cell]:
        return self.stage, self.cell

    @property
    def where(self) -> Path:
        return self.file or self.folder or Path()


@dataclass(frozen=True)
class Verdict:
    """What is to become of something that lies in the other folder, and why."""

    kind: str  # a value of FOLDERS, or receipts
    name: str
    what: str
    why: str = ""
    piece: Piece | None = None
    receipt: Path | None = None

    @property
    def is_trouble(self) -> bool:
        return self.what in (DIFFERS, REFUSED)


@dataclass
class Holding:
    """What a folder holds of a study: pieces that are whole, and what is wrong with the others."""

    root: Path
    pieces: dict[tuple[str, Cell], Piece] = field(default_factory=dict)
    damaged: dict[tuple[str, Cell], str] = field(default_factory=dict)
    unfinished: list[tuple[str, Cell]] = field(default_factory=list)

    def add(self, stage: str, cell: Cell, piece: Piece | None) -> None:
        if piece is None:
            self.unfinished.append((stage, cell))
        else:
            self.pieces[piece.key] = piece

    def of_cell(self, cell: Cell) -> list[Piece]:
        return [self.pieces[stage, cell] for stage in FOLDERS if (stage, cell) in self.pieces]


# --- what a folder holds ----------------------------------------------------------------------


def find_pieces(root: Path, study: str) -> Holding:
    """Every piece of a study under a root, its files hashed and its seals checked; minutes in a large one."""
    holding, keys = Holding(root), list_keys(root, study)
    with Progress(f"pieces of {root} looked at", len(keys)) as progress:
        for stage, cell in keys:
            try:
                piece = read_piece(root, stage, study, cell)
            except StudyError as error:
                holding.damaged[stage, cell] = str(error)
            else:
                holding.add(stage, cell, piece)
            if len(keys) > MANY:
                progress.advance(name_piece(stage, cell))
    return holding


def read_piece(root: Path, stage: str, study: str, cell: Cell) -> Piece | None:
    """One piece, checked; None while it is not finished."""
    if stage == "evaluate":
        return read_evaluation(root, study, cell)
    return read_run(root, stage, study, cell)


def list_keys(root: Path, study: str) -> list[tuple[str, Cell]]:
    """Stage and cell of all that was begun: by base from the smallest, then stage, animal and seed."""
    found = {
        (stage, cell)
        for stage in FOLDERS
        for cell in find_cells(transplant(paths.artifact(study, stage, "-", "-", 0).parents[2], root))
    }
    found |= {("evaluate", cell) for cell in find_cells(transplant(paths.results(study), root))}
    stages = list(FOLDERS)
    return sorted(found, key=lambda key: (place_label(key[1][0]), stages.index(key[0]), key[1][1:]))


def find_cells(folder: Path) -> Iterator[Cell]:
    """Cells that lie as `<size>/<animal>/s<seed>`, a folder or a JSON, packed or not, each once."""
    found = ((path, CELL.fullmatch(path.name)) for path in folder.glob("*/*/s*"))
    for label, animal, seed in {(*path.parts[-3:-1], int(own[1])): 0 for path, own in found if own}:
        with contextlib.suppress(BadParameter):
            config.parse_label(label)
            yield label, animal, seed


def place_label(label: str) -> tuple[int, int]:
    base = config.parse_label(label)
    return base.size.params, base.index


def transplant(path: Path, root: Path) -> Path:
    """The path as it is under another root than this one."""
    return root / path.relative_to(paths.root())


def read_run(root: Path, stage: str, study: str, cell: Cell) -> Piece | None:
    """A teacher's numbers, every file hashed, or a student; None while it has no manifest."""
    folder = transplant(paths.artifact(study, stage, *cell), root)
    manifest = store.read_manifest(folder)
    if manifest is None:
        return None
    store.load_finished(folder, f"{folder} is gone")
    check_place(
        folder, {"study": study, "size": cell[0], "animal": cell[1], "seed": cell[2]}, manifest.config
    )
    settings = {name: manifest.config.get(name) for name in SHARED_FIELDS[stage]}
    read = paths.lists_source(manifest.config | manifest.knobs)
    return Piece(
        stage,
        cell,
        claims=claim_own(manifest.inputs, read, (study, *cell)) | {stage: manifest.identity},
        settings={stage: settings},
        recipe=str(manifest.config.get("recipe", "")),
        revision=str((manifest.config | manifest.knobs).get("revision", "")),
        identity=manifest.identity,
        folder=folder,
    )


def claim_own(inputs: Mapping[str, str], read: tuple, own: tuple) -> dict[str, str]:
    """What a piece is made of, without numbers of another cell or study, which lie in no place of its own."""
    return {name: identity for name, identity in inputs.items() if name != "generate" or read == own}


def read_evaluation(root: Path, study: str, cell: Cell) -> Piece | None:
    """An evaluation, with or without the folder of the run that made it; None while there is no JSON."""
    path = files.find_document(transplant(paths.evaluation(study, *cell), root))
    folder = transplant(paths.artifact(study, "evaluate", *cell), root)
    if not path.exists():
        if store.read_manifest(folder) is not None:
            raise DamagedFile(f"{path} is gone, though {folder} says that it was written")
        return None
    document = files.read_json(path)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise DamagedFile(f"{path}: schema {found!r}, this version reads {SCHEMA!r}")
    store.check_seal(document, path)
    tallies.check_form(document, path)
    held, lineage = document["config"], document["lineage"]
    check_place(path, {"study": study, "size": cell[0], "animal": cell[1], "seed": cell[2]}, held)
    chain = {name: each["identity"] for name, each in lineage.get("chain", {}).items() if "identity" in each}
    numbers = lineage.get("chain", {}).get("generate", {}).get("config", {})
    own = {"study": study, "size": cell[0], "animal": cell[1], "seed": cell[2]}
    read = tuple(numbers.get(name, value) for name, value in own.items())
    run = read_run_of(folder, lineage["content"], path)
    return Piece(
        "evaluate",
        cell,
        claims=claim_own(chain, read, (study, *cell)) | lineage["inputs"] | {"evaluate": lineage["content"]},
        settings=tallies.describe_settings(document),
        recipe=str(held.get("recipe", "")),
        revision=str(held.get("revision", "")),
        identity=run.identity if run else "",
        folder=folder if run else None,
        file=path,
        digest=files.hash_file(path),
    )


def check_place(path: Path, cell: Mapping, held: Mapping) -> None:
    """Refuse what was moved to another cell's place."""
    wrong = [f"{k}: {held.get(k)!r} in it, {v!r} by its path" for k, v in cell.items() if held.get(k) != v]
    if wrong:
        raise BrokenLineage(f"{path} holds another cell than its path says ({'; '.join(wrong)})")


def read_run_of(folder: Path, content: str, path: Path) -> store.Manifest | None:
    """The finished run that wrote this evaluation, where it is; a run of another one is refused."""
    manifest = store.read_manifest(folder)
    if manifest is None:
        return None
    store.load_finished(folder, f"{folder} is gone")
    receipt = folder / "receipt.json"
    if files.read_json(receipt).get("content") != content:
        raise DamagedFile(f"{path} is not the result that {receipt} vouches for")
    return manifest


# --- what agrees ------------------------------------------------------------------------------


def judge(here: Holding, there: Holding, find_base: FindBase, students: bool) -> list[Verdict]:
    """A verdict on every piece of the other folder; this folder must agree with itself."""
    expected = expect(here, there, find_base)
    verdicts = [judge_piece(piece, here, there, expected, students) for piece in there.pieces.values()]
    verdicts += [
        Verdict(FOLDERS[stage], name_piece(stage, cell), REFUSED, why)
        for (stage, cell), why in there.damaged.items()
    ]
    verdicts += [
        Verdict(FOLDERS[stage], name_piece(stage, cell), LEFT, "it is not finished there")
        for stage, cell in there.unfinished
    ]
    return verdicts


@dataclass(frozen=True)
class Expected:
    """What pieces must share: the base of a label, the settings of a stage of a size, and who says so."""

    values: Mapping[tuple[str, ...], tuple[dict, str]]

    def complain(self, piece: Piece) -> str:
        """What of a piece is not as expected; nothing where all is."""
        for key, own in shared_values(piece):
            value, source = self.values[key]
            names = sorted(name for name in {**value, **own} if value.get(name) != own.get(name))
            if not source:
                return f"{describe_key(key)}: the pieces there are divided, as many have one as another"
            if names:
                lines = "; ".join(
                    f"{n}: {show(value.get(n))} {source}, {show(own.get(n))} in it" for n in names
                )
                return f"its {describe_key(key)} {'differs' if key[0] == 'base' else 'differ'} ({lines})"
        return ""


def shared_values(piece: Piece) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Key and value of all that a piece must share with its neighbours, as the analysis asks for it."""
    yield ("base", piece.cell[0]), {"identity": piece.claims.get("base")}
    for stage, values in piece.settings.items():
        yield ("settings", config.parse_label(piece.cell[0]).size.name, stage), dict(values)


def describe_key(key: tuple[str, ...]) -> str:
    return f"base model {key[1]}" if key[0] == "base" else f"{key[2]} settings of {key[1]}"


def expect(here: Holding, there: Holding, find_base: FindBase) -> Expected:
    """What this folder says, and where it says nothing, what most of the pieces there have.

    Of a base the model that is here has the first word. Where the pieces there are divided into halves
    nobody can say which one is right, and none is taken.
    """
    values: dict[tuple[str, ...], tuple[dict, str]] = {}
    for piece in (*here.pieces.values(), *there.pieces.values()):
        key = ("base", piece.cell[0])
        if key not in values and (identity := find_base(piece.cell[0], piece.recipe, piece.revision)):
            values[key] = {"identity": identity}, "of the model here"
    for piece in here.pieces.values():
        for key, own in shared_values(piece):
            value, source = values.setdefault(key, (own, "here"))
            if value != own:
                other = "others here" if source == "here" else "the model here"
                raise BrokenLineage(
                    f"this folder does not agree with itself: {piece.where} has another {describe_key(key)} "
                    f"than {other}; mend that before anything is merged"
                )
    return Expected(values | vote(there.pieces.values(), values.keys()))


def vote(
    pieces: Iterable[Piece], known: Iterable[tuple[str, ...]]
) -> dict[tuple[str, ...], tuple[dict, str]]:
    """Per key that nobody here knows the value that most pieces have; a tie has no source."""
    votes: dict[tuple[str, ...], Counter] = {}
    values: dict[str, dict] = {}
    for piece in pieces:
        for key, own in shared_values(piece):
            if key not in known:
                values[files.hash_object(own)] = own
                votes.setdefault(key, Counter())[files.hash_object(own)] += 1
    elected = {}
    for key, counted in votes.items():
        (winner, most), *others = counted.most_common(2)
        tied = bool(others) and others[0][1] == most
        elected[key] = values[winner], "" if tied else "in most others"
    return elected


def judge_piece(piece: Piece, here: Holding, there: Holding, expected: Expected, students: bool) -> Verdict:
    """Whether one piece is here already, fits, or why not."""
    name, kind = name_piece(*piece.key), FOLDERS[piece.stage]

    def decide(what: str, why: str = "") -> Verdict:
        return Verdict(kind, name, what, why, piece)

    mine = here.pieces.get(piece.key)
    if piece.key in here.damaged:
        return decide(DIFFERS, f"the one here cannot be compared: {here.damaged[piece.key]}")
    if mine and mine.claims[piece.stage] != piece.claims[piece.stage]:
        return decide(DIFFERS, f"{'; '.join(list_differences(mine, piece))}. {mine.where} stays as it is")
    if complaint := expected.complain(piece):
        return decide(REFUSED, complaint)
    for holding, words in ((here, "here"), (there, "beside it there")):
        if complaint := compare_claims(piece, holding.of_cell(piece.cell), words):
            return decide(REFUSED, complaint)
    if mine and not (piece.folder and not mine.folder):
        return decide(SAME)
    if piece.stage == "finetune" and not students:
        return decide(LEFT, "adapters are large; --students brings them, else a grid would train these anew")
    if not mine and piece.key in here.unfinished:
        folder = paths.artifact(study_of(piece), piece.stage, *piece.cell)
        return decide(DIFFERS, f"it was begun here and is not finished: finish it, or delete {folder}")
    return decide(NEW)


def compare_claims(piece: Piece, others: Iterable[Piece], words: str) -> str:
    """Where two pieces of one cell go back to different numbers, students or bases."""
    for other in others:
        for stage in ("base", *FOLDERS):
            own, its = piece.claims.get(stage), other.claims.get(stage)
            if own and its and own != its:
                what = {"base": "base model"}.get(stage) or FOLDERS[stage]
                return (
                    f"it goes back to other {what} than {name_piece(*other.key)} {words} "
                    f"({stage}: {its[:12]} {words}, {own[:12]} in it): keep one of the two chains, "
                    "or keep them under two study names"
                )
    return ""


def study_of(piece: Piece) -> str:
    return str(next(iter(piece.settings.values()))["study"])


def name_piece(stage: str, cell: Cell) -> str:
    """`evaluate 64k/wolf/s0`."""
    label, animal, seed = cell
    return f"{stage} {label}/{animal}/s{seed}"


# --- how two of one cell differ ----------------------------------------------------------------


def list_differences(mine: Piece, other: Piece) -> list[str]:
    """The fields that differ between two results of one cell, the first few spelled out."""
    pair = [read_record(each) for each in (mine, other)]
    found = list(walk_differences(*pair))
    more = len(found) - SHOWN
    return found[:SHOWN] + ([f"and {more} fields more"] if more > 0 else [])


def read_record(piece: Piece) -> dict:
    """What a seal or an identity vouches for, without the hashes of the whole."""
    if piece.file:
        document = store.find_essence(files.read_json(piece.file))
        return document | {"epochs": {str(entry["epoch"]): entry for entry in document["epochs"]}}
    manifest = store.read_manifest(piece.folder)
    return {"config": manifest.config, "inputs": manifest.inputs, "outputs": manifest.outputs}


def walk_differences(mine: Any, other: Any, name: str = "") -> Iterator[str]:
    """`config.samples: 4 here, 8 there`; of a long list how many of its entries differ."""
    if isinstance(mine, Mapping) and isinstance(other, Mapping):
        for key in {**mine, **other}:
            yield from walk_differences(mine.get(key), other.get(key), f"{name}.{key}".removeprefix("."))
    elif mine == other:
        return
    elif isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
        count = sum(a != b for a, b in zip(mine, other, strict=True))
        yield f"{name}: {count} of {len(mine)} differ"
    else:
        yield f"{name}: {show(mine)} here, {show(other)} there"


def show(value: Any) -> str:
    """A value in a message: hashes by their first digits, lists by their length."""
    if isinstance(value, list | dict):
        return f"{len(value)} entries"
    if value is None:
        return "none"
    text = str(value)
    is_hash = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[:12] if is_hash else repr(value)


# --- taking it over -----------------------------------------------------------------------------


def take(verdict: Verdict) -> Verdict:
    """Copy what is new; killed at any point it leaves whole pieces, and a rerun goes on from there.

    A piece that turns out to be damaged is refused like any other; a full disk here stops the merge.
    """
    try:
        copy_piece(verdict.piece)
    except (DamagedFile, MissingInput, BrokenLineage) as error:
        return replace(verdict, what=REFUSED, why=str(error))
    return verdict


def copy_piece(piece: Piece | None) -> None:
    """The evaluation's JSON first, then its run's folder, whose manifest says that all is done."""
    if piece and piece.file:
        target = paths.evaluation(study_of(piece), *piece.cell)
        if not files.has_document(target):
            copy_file(piece.file, target.with_name(piece.file.name), piece.digest)
    if piece and piece.folder:
        target = paths.artifact(study_of(piece), piece.stage, *piece.cell)
        if store.read_manifest(target) is None:
            copy_run(piece.folder, target)


def copy_file(source: Path, target: Path, digest: str) -> None:
    """The very bytes that were judged."""
    data = source.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise DamagedFile(f"{source} changed while it was copied; merge again once nobody writes there")
    files.write_bytes(target, data)


def copy_run(source: Path, target: Path) -> None:
    """A finished run: beside its place first, verified there, then renamed, so that it is whole or absent."""
    manifest = store.load_finished(source, f"{source} is gone")
    staging = target.with_name(f".{target.name}.merge")
    with files.storage_errors(target):
        shutil.rmtree(staging, ignore_errors=True)  # what a killed merge left: the study's lock is ours
        try:
            for name in (*manifest.outputs, store.MANIFEST):
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, staging / name)
                files.sync(staging / name)
            store.load_finished(staging, f"{source} changed while it was copied")
            staging.rename(target)
            files.sync(target.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


# --- receipts of jobs ---------------------------------------------------------------------------


def judge_receipts(study: str, here: Holding, there: Holding, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """A verdict on every receipt of the other folder: it comes over where all that it names is here.

    One that would not hold here is of no use: the grid would take it away and run its job.
    """
    fit = [each.piece for each in verdicts if each.piece and each.what == NEW]
    held = {piece.key: piece.identity for piece in (*here.pieces.values(), *fit) if piece.identity}
    own = {path.stem: files.read_json(path) for path in list_receipts(here.root, study)}
    contents = {name: str(receipt.get("content")) for name, receipt in own.items()}
    judged = []
    for path in list_receipts(there.root, study):
        what, why, content = judge_receipt(path, own.get(path.stem), held, contents)
        judged.append(Verdict(RECEIPTS, path.stem, what, why, receipt=path))
        if what == NEW:
            contents[path.stem] = content
    return judged


def list_receipts(root: Path, study: str) -> list[Path]:
    """In the order of the stages, so that what a job needs is judged before it."""
    folder = transplant(planning.Job(study, "analyse").receipt.parent, root)
    found = [path for path in folder.glob("*.json") if path.stem.partition("-")[0] in planning.STAGES]
    return sorted(found, key=lambda path: (planning.STAGES.index(path.stem.partition("-")[0]), path.name))


def judge_receipt(
    path: Path, own: dict | None, held: Mapping[tuple[str, Cell], str], contents: Mapping[str, str]
) -> tuple[str, str, str]:
    """What becomes of one receipt, why, and its content."""
    try:
        receipt = files.read_json(path)
        results, content = dict(receipt["results"]), receipt["content"]
        stage, label = split_name(path.stem)
        if receipt["schema"] != receipts.SCHEMA or content != files.hash_object(results):
            return REFUSED, f"{path} was changed after it was written, or is of another version", ""
    except (StudyError, KeyError, TypeError, ValueError) as error:
        return REFUSED, f"{path} cannot be read as a receipt ({type(error).__name__}: {error})", ""
    vouched = ("asked", "results", "needs")  # what else stands in it, such as seconds, may differ
    if own and all(own.get(name) == receipt.get(name) for name in vouched):
        return SAME, "", content
    if stage not in FOLDERS:
        return LEFT, "bases and tables are not merged: they are made where they are missing", content
    if own:
        pair = ({name: each.get(name) for name in vouched} for each in (own, receipt))
        return DIFFERS, "; ".join([*walk_differences(*pair)][:SHOWN]), content
    lacking = [name for name, identity in results.items() if not is_held(identity, stage, label, name, held)]
    if lacking:
        why = f"not all of their {FOLDERS[stage]} are here, so the grid would run these jobs here"
        return LEFT, why, content
    if any(contents.get(name) != each for name, each in receipt["needs"].items()):
        return LEFT, "they start from jobs whose receipts are not here", content
    return NEW, "", content


def split_name(job: str) -> tuple[str, str]:
    """Stage and base of a job by its name: `finetune-166k-1-s0` is of base 166k-1, part s0."""
    stage, *words = job.split("-")
    if stage == "analyse":
        return stage, ""
    label = "-".join(words[: 2 if words[1:2] and words[1].isdecimal() else 1])
    config.parse_label(label)
    return stage, label


def is_held(identity: str, stage: str, label: str, name: str, held: Mapping[tuple[str, Cell], str]) -> bool:
    """Whether a result that a receipt names, as `wolf/s0`, is the one here; a lost student has none."""
    animal, _, seed = name.partition("/s")
    cell = (label, animal, int(seed))
    lost = f"{receipts.LOST}: {held.get(('finetune', cell))}"
    return identity in (held.get((stage, cell)), lost)


def take_receipt(study: str, path: Path) -> None:
    """Written after all that it names."""
    target = planning.Job(study, "analyse").receipt.with_name(path.name)
    if not target.exists():
        copy_file(path, target, files.hash_file(path))
