"""The jobs of a study in the order of the plan: which notebook, for which cells, after which other jobs.

Ground layer. Knows the study's file and what a job is expected to cost, and starts nothing: grid.py and
workflow/Snakefile run what is listed here. What a job costs comes from whoever asks (`Costs`).
"""

import ast
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib import config, files, paths, provenance
from lib.errors import BadParameter

STAGES = ("pretrain", "generate", "finetune", "evaluate", "analyse")
NOTEBOOKS = dict(
    zip(STAGES, ("00_pretrain", "01_generate", "02_finetune", "03_evaluate", "04_analysis"), strict=True)
)
BY_CELL = ("generate", "finetune", "evaluate")  # stages whose jobs cover cells of the grid
GROUP_HOURS = 4.0  # a job that is killed or fails holds up no more than this
LEAST_STARTS = 10  # a job takes at least as long as so many starts of its engine, or starting is the work
AXES = "axes"
DIALS = {field.name for field in dataclasses.fields(config.Pretrain)} - {"size", "recipe", "device"}


@dataclass(frozen=True)
class Cost:
    """What a job needs. `minutes` and `start` (of them, until work begins) are None where nobody measured."""

    gpus: int = 0
    gpu_memory: float = 0  # GB of each of them
    ram: float = 2  # GB
    minutes: float | None = None
    start: float | None = None


# stage, label, number of cells, the stage's settings -> what a job of them costs
Costs = Callable[[str, str, int, Mapping[str, Any]], Cost]


@dataclass(frozen=True)
class Job:
    """One run of one notebook. Its study is that of its point, where a study has further axes."""

    study: str
    stage: str
    label: str = ""  # the base; empty for the analysis
    animals: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    axes: tuple[tuple[str, Any], ...] = ()
    part: str = ""  # which of a base's groups, where there are several
    needs: tuple[str, ...] = ()  # names of the jobs that must be done before
    gpus: int = 0
    gpu_memory: float = 0  # GB of each of them
    ram: float = 2  # GB
    minutes: float | None = None
    start: float | None = None
    why: str = ""
    trainer: str = ""  # the study whose students an evaluation asks
    asked: str = ""  # a hash of the settings that its notebook is run with: other settings are not done yet
    results: str = ""  # of an analysis: a folder in the published format

    @property
    def name(self) -> str:
        """Safe as a file name, and no other job of the plan has it."""
        point = (name_point(self.axes),) if self.axes and self.stage != "pretrain" else ()
        return "-".join(filter(None, (self.stage, self.label, self.part, *point)))

    @property
    def notebook(self) -> str:
        return NOTEBOOKS[self.stage]

    @property
    def cells(self) -> list[tuple[str, int]]:
        """Animal and seed of each cell, in the order in which the notebook takes them."""
        return [(animal, seed) for seed in self.seeds for animal in self.animals]

    @property
    def receipt(self) -> Path:
        """What says that the job is done, and with which results."""
        return paths.root() / "artifacts" / self.study / ".grid" / f"{self.name}.json"

    @property
    def stem(self) -> str:
        """The name of its executed notebook, log and benchmark, without ending; by hand it is the same."""
        return "-".join(filter(None, (self.notebook, self.label, self.part)))

    def arguments(self) -> list[str]:
        """What papermill is told after its two paths. The study by name: its file need not say its own."""
        words = ["-f", str(paths.params_file(self.study))]
        words += ["-p", "size", self.label] if self.label else []
        if self.stage in BY_CELL:
            whole = not self.part
            words += ["-p", "animal", "all" if whole else ",".join(self.animals)]
            seeds = ",".join(map(str, self.seeds))
            words += ["-p", "seed", "all" if whole else seeds]
        words += ["-p", "results", self.results] if self.results else []
        return [*words, "-p", "study", self.study] if self.stage != "pretrain" else words


# --- the study ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What one study, or one point of a study with further axes, asks for."""

    study: str
    bases: tuple[config.Base, ...]  # the largest first
    animals: tuple[str, ...]
    seeds: tuple[int, ...]
    recipe: str
    measure: str
    overrides: dict[str, Any]
    axes: tuple[tuple[str, Any], ...] = ()

    @property
    def writer(self) -> str:
        """The study whose lists are read: its own, or another one's, which then are not written here."""
        return str(self.overrides.get("lists_of") or self.study)

    @property
    def trainer(self) -> str:
        """The study whose students are asked: its own, or another one's, which then are not made here."""
        return str(self.overrides.get("students_of") or self.study)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of a base."""
        if self.trainer != self.study:
            return ("evaluate",)
        return BY_CELL if self.writer == self.study else tuple(each for each in BY_CELL if each != "generate")

    def settings(self, stage: str) -> dict[str, Any]:
        """A stage's settings, and those of its neighbours for its cost: an evaluation asks every epoch."""
        values: dict[str, Any] = {}
        for each in (*BY_CELL, stage):
            values |= read_defaults(NOTEBOOKS[each])
        if self.writer != self.study:  # how long lists take to read depends on how many were written there
            written = read_defaults("01_generate").keys() - set(config.PLAN_NAMES)
            theirs = config.study_overrides(self.writer)
            values |= {name: value for name, value in theirs.items() if name in written}
        if self.trainer != self.study:
            values |= {"epochs": config.study_overrides(self.trainer).get("epochs", values["epochs"])}
        return values | self.overrides


def read_study(study: str) -> list[Asked]:
    """The study, checked before any work; one for each point where its file names further axes."""
    overrides, axes = read_file(study)
    try:
        asked = [_read_point(study, overrides, point) for point in _list_points(axes)]
        for each in asked:
            _check_writer(each)
            _check_trainer(each)
            _check_settings(each)
    except BadParameter as error:
        raise BadParameter(f"params/{study}.yaml: {error}") from None
    return _share_lists(asked)


def _read_point(study: str, overrides: dict[str, Any], point: tuple[tuple[str, Any], ...]) -> Asked:
    overrides = overrides | dict(point)
    values = read_defaults("01_generate") | read_defaults("04_analysis") | overrides
    bases = config.expand_sizes(str(values["sizes"]))
    return Asked(
        study=f"{study}-{name_point(point)}" if point else study,
        bases=tuple(sorted(bases, key=lambda base: -base.size.params)),
        animals=config.expand_animals("all", str(values["animals"])),
        seeds=config.expand_seeds("all", str(values["seeds"])),
        recipe=str(values["recipe"]),
        measure=str(values["measure"]),
        overrides=overrides,
        axes=point,
    )


def _list_points(axes: Mapping[str, Sequence[Any]]) -> Iterable[tuple[tuple[str, Any], ...]]:
    """Every combination of an axis' values with those of the others; without axes one that is empty."""
    return itertools.product(*([(name, value) for value in values] for name, values in axes.items()))


def _share_lists(asked: Sequence[Asked]) -> list[Asked]:
    """Points that differ in nothing that 01_generate takes read the lists of the first of them."""
    writers: dict[tuple, str] = {}
    shared = []
    for each in asked:
        written = tuple((name, value) for name, value in each.axes if name in read_defaults("01_generate"))
        writer = writers.setdefault(written, each.study)
        if writer not in (each.study, each.writer) and each.writer == each.study:
            each = replace(each, overrides=each.overrides | {"lists_of": writer})
        shared.append(each)
    return shared


def _check_writer(asked: Asked) -> None:
    """A study whose lists are to be read has a file here, or lists; and it writes lists itself."""
    writer, file = asked.writer, paths.params_file(asked.writer)
    if writer == asked.study:
        return
    if not file.is_file():
        written = paths.artifact(writer, "generate", "-", "-", 0).parents[2]
        known = sorted(each.stem for each in file.parent.glob("*.yaml"))
        if not written.is_dir():
            raise BadParameter(
                f"lists_of is {writer!r}, and no study has that name: there is no params/{file.name} and no "
                f"{written}{config.suggest(writer, known)}"
            )
        return
    theirs, axes = read_file(writer)
    if axes:
        points = (name_point(each) for each in _list_points(axes))
        raise BadParameter(
            f"lists_of is {writer!r}, which has axes: each of its points is a study of its own, so name one: "
            f"{', '.join(f'{writer}-{point}' for point in points)}"
        )
    if theirs.get("lists_of"):
        raise BadParameter(
            f"lists_of is {writer!r}, which itself reads the lists of {theirs['lists_of']!r}: name that one"
        )


def _check_trainer(asked: Asked) -> None:
    """A study whose students are to be asked has a file here, or students."""
    if asked.trainer == asked.study:
        return
    trained, file = paths.artifact(asked.trainer, "finetune", "-", "-", 0), paths.params_file(asked.trainer)
    if not file.is_file() and not trained.parents[2].is_dir():
        known = sorted(each.stem for each in file.parent.glob("*.yaml"))
        raise BadParameter(
            f"students_of is {asked.trainer!r}, and no study has that name: there is no params/{file.name} "
            f"and no {trained.parents[2]}{config.suggest(asked.trainer, known)}"
        )


def _find_notebooks() -> Iterable[tuple[type, str]]:
    """Every stage that has a notebook here, those that no grid runs included."""
    for stage in config.STAGES:
        for path in sorted(paths.notebook("-").parent.glob(f"[0-9]*_{stage.stage}.ipynb")):
            yield stage, path.stem


def _check_settings(asked: Asked) -> None:
    """Every setting of every notebook, so that a grid does not begin what the notebook's job would refuse.

    Each base with one animal, and each family with all of them: what an animal may be hangs on that alone.
    """
    animals = ",".join(asked.animals)
    one = next((name for name in asked.animals if name in config.LEXICON), asked.animals[0])
    for stage, notebook in _find_notebooks():
        defaults = read_defaults(notebook)
        values = defaults | {name: value for name, value in asked.overrides.items() if name in defaults}
        values |= {"study": asked.study, "seed": asked.seeds[0]}
        met: set[str] = set()
        for base in asked.bases if "size" in defaults else asked.bases[:1]:
            if stage is config.Pretrain and base.family.name != "micro":
                continue
            cells = {"size": base.label} if "size" in defaults else {}
            cells |= {"animal": one if base.family.name in met else animals} if "animal" in defaults else {}
            met.add(base.family.name)
            config.check_settings(stage, values | cells)


def read_file(study: str) -> tuple[dict[str, Any], dict[str, list]]:
    """What params/<study>.yaml sets, and its further axes: `axes: {lora_rank: [2, 8, 32]}`."""
    import yaml

    path = paths.params_file(study)
    if not path.is_file():
        known = sorted(each.stem for each in path.parent.glob("*.yaml"))
        raise BadParameter(
            f"no study {study!r}: there is no params/{study}.yaml; studies here: {', '.join(known)}"
            f"{config.suggest(study, known)}"
        )
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadParameter(f"params/{path.name} is not valid YAML: {error}") from error
    if not isinstance(loaded, dict) or AXES not in loaded:
        return config.study_overrides(study), {}
    axes = loaded.pop(AXES)
    for name in loaded:
        _check_known(path, name)
    _check_axes(path, axes)
    return loaded, axes


def _check_known(path: Path, name: object) -> None:
    if name not in config.KNOWN_NAMES:
        near = config.suggest(str(name), config.KNOWN_NAMES)
        raise BadParameter(f"params/{path.name}: unknown parameter {name!r}{near}")


def _check_axes(path: Path, axes: object) -> None:
    """An axis is a list of values of one setting; what the grid spans anyway is none."""
    if not isinstance(axes, dict) or not axes:
        raise BadParameter(f"params/{path.name}: axes must be `name: [values]`, got {axes!r}")
    for name, values in axes.items():
        _check_known(path, name)
        if name in config.PLAN_NAMES:
            raise BadParameter(
                f"params/{path.name}: {name} is an axis of every study; say it outside of axes"
            )
        if name in DIALS:
            raise BadParameter(
                f"params/{path.name}: {name} is a dial of the base models and no axis; build each set "
                "of them under a recipe of its own with 00_pretrain, then name those: axes: {recipe: [...]}"
            )
        names = {name_point([(name, each)]) for each in values} if isinstance(values, list) else set()
        if not names or len(names) < len(values):
            raise BadParameter(
                f"params/{path.name}: axis {name} must be a list of different values, got {values!r}"
            )


def name_point(point: Iterable[tuple[str, Any]]) -> str:
    """`lora_rank8`, as part of a study's name; a dot cannot stand in one."""
    return "-".join(f"{name}{re.sub('[^A-Za-z0-9_-]', '_', str(value))}" for name, value in point)


@functools.cache
def read_defaults(notebook: str) -> dict[str, Any]:
    """The values of a notebook's parameters cell, the only place where defaults stand."""
    document = json.loads(paths.notebook(notebook).read_text(encoding="utf-8"))
    cells = [cell for cell in document["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    statements = ast.parse("".join(cells[0]["source"])).body if cells else []
    named = [each for each in statements if isinstance(each, ast.AnnAssign) and each.value is not None]
    return {
        each.target.id: ast.literal_eval(each.value) for each in named if isinstance(each.target, ast.Name)
    }


def _read_sources(notebook: str) -> list[str]:
    """What stands in a notebook's cells."""
    cells = json.loads(paths.notebook(notebook).read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells]


# --- the jobs -------------------------------------------------------------------------------------


def know_nothing(stage: str, label: str, cells: int, settings: Mapping[str, Any]) -> Cost:
    """The costs of a plan that nobody measured: published models take a GPU, for a time unknown."""
    published = bool(label) and config.parse_label(label).family.name != "micro"
    return Cost(gpus=int(published and stage in BY_CELL))


def list_jobs(study: str, costs: Costs = know_nothing, group_hours: float = GROUP_HOURS) -> list[Job]:
    """Every job of a study, largest sizes first and a base's stages in their order; the analysis last.

    The same for everybody who asks with the same numbers, and whatever is done already.
    """
    asked = read_study(study)
    points = {each.study: each for each in asked}
    jobs = [job for each in asked for job in _list_point(each, points, costs, group_hours)]
    once = {job.name: job for job in jobs}  # a base is built once for all points
    order = {base.label: -base.size.params for each in asked for base in each.bases}
    place = {name: i for i, name in enumerate(once)}
    return _put_needs_first(sorted(once.values(), key=lambda job: (order.get(job.label, 1), place[job.name])))


def _put_needs_first(jobs: Sequence[Job]) -> list[Job]:
    """The same order, but no job before one it needs: a base's students may read another base's lists."""
    by_name, placed = {job.name: job for job in jobs}, dict[str, Job]()

    def put(job: Job) -> None:
        if job.name not in placed:
            for name in job.needs:
                put(by_name[name])
            placed[job.name] = job

    for job in jobs:
        put(job)
    return list(placed.values())


def _count_cells(asked: Asked) -> int:
    return len(asked.animals) * len(asked.seeds)


def _hours(minutes: float) -> str:
    return f"{minutes / 60:.3g} h" if minutes >= 60 else f"{minutes:.3g} min"


def _list_point(asked: Asked, points: Mapping[str, Asked], costs: Costs, group_hours: float) -> list[Job]:
    jobs: list[Job] = []
    for base in asked.bases:
        jobs += _list_base(asked, base, points, costs, group_hours)
    needs = tuple(job.name for job in jobs if job.stage == "evaluate")
    cost = costs("analyse", "", _count_cells(asked) * len(asked.bases), asked.settings("analyse"))
    why = "reads all evaluations of the study together"
    jobs.append(_with_cost(Job(asked.study, "analyse", axes=asked.axes, needs=needs, why=why), cost))
    return [replace(job, asked=_hash_asked(asked, job.stage), trainer=asked.trainer) for job in jobs]


def _hash_asked(asked: Asked, stage: str) -> str:
    """What a stage is asked for, besides its cells. An analysis is asked for by the code too: it is cheap,
    and whoever changed a figure wants to see it."""
    names = read_defaults(NOTEBOOKS[stage])
    given = {name: value for name, value in (names | asked.overrides).items() if name in names}
    if stage != "analyse":
        chosen = {"relabelled": "animals", "foreign": "sizes"}.get(str(given.get("lists")))  # whose lists
        grid = set(config.PLAN_NAMES) - {chosen}
        given = {name: value for name, value in given.items() if name not in grid}
    code = [provenance.hash_sources(), _read_sources(NOTEBOOKS[stage])]
    return files.hash_object([given, code if stage == "analyse" else []])


def _list_base(
    asked: Asked, base: config.Base, points: Mapping[str, Asked], costs: Costs, group_hours: float
) -> list[Job]:
    """The chain of one base, itself first where it did not come with the project. `points` are all that are
    planned together: one may read the lists of another."""
    built = []
    carried = asked.recipe == "standard" and paths.tracked_base(base.label).exists()
    if base.family.name == "micro" and not carried:
        why = f"{base.label} of recipe {asked.recipe} does not come with the project; built once"
        cost = costs("pretrain", base.label, 1, asked.settings("pretrain"))
        part = "" if asked.recipe == "standard" else asked.recipe
        job = Job(asked.study, "pretrain", base.label, axes=asked.axes, part=part, why=why)
        built = [_with_cost(job, cost)]
    jobs, before = list(built), built
    for stage in asked.stages:
        groups = _group(asked, base.label, stage, costs, group_hours)
        if stage == "finetune":
            groups = [_tell_writer(group, asked) for group in groups]
            before = [*built, *_list_writers(asked, base, points, costs, group_hours)]
        if stage == "evaluate" and len(groups) > 1:
            # Each evaluation asks the untuned model as well, unless that is done: two at once must not.
            control = replace(groups[0], animals=(config.UNTUNED,), seeds=(0,), part=config.UNTUNED)
            control = _with_cost(control, costs(stage, base.label, 1, asked.settings(stage)))
            why = "the untuned model once, for all evaluations of its base"
            jobs.append(replace(control, needs=tuple(job.name for job in built), why=why))
            groups = [replace(group, needs=(jobs[-1].name,)) for group in groups]
        needed = [_find_needs(asked, group, before) for group in groups]
        before = [replace(g, needs=(*n, *g.needs)) for g, n in zip(groups, needed, strict=True)]
        jobs += before
    return jobs


def _list_writers(
    asked: Asked, base: config.Base, points: Mapping[str, Asked], costs: Costs, group_hours: float
) -> list[Job]:
    """The jobs that write what students of a base read; none where that is a study of another plan."""
    if asked.writer not in points:
        return []
    labels = dict.fromkeys(_find_source(asked, base.label, animal)[0] for animal in asked.animals)
    writer = points[asked.writer]
    return [job for label in labels for job in _group(writer, label, "generate", costs, group_hours)]


def _find_source(asked: Asked, label: str, animal: str) -> tuple[str, str]:
    """Base and animal of the teacher whose lists a student reads."""
    values = read_defaults("02_finetune") | asked.overrides
    reads = config.find_reads(str(values["lists"]), label, animal, values)
    source, whose = (reads or f"{label}/{animal}").split("/")
    return source, whose


def _tell_writer(group: Job, asked: Asked) -> Job:
    """With whose lists are read, where they are not those of the study itself."""
    if asked.writer == asked.study:
        return group
    return replace(group, why=f"{group.why}; reads the lists of study {asked.writer}, so none are written")


def _find_needs(asked: Asked, group: Job, before: Sequence[Job]) -> tuple[str, ...]:
    """The jobs of the stage before that make what a group starts from; a base that is built is for all.

    Lists that students read come after the base that wrote them: a base built for these alone is another one.
    """
    if group.stage == "finetune":
        read = {(*_find_source(asked, group.label, animal), seed) for animal, seed in group.cells}
    else:
        read = {(group.label, animal, seed) for animal, seed in group.cells}
    needs = [job for job in before if {(job.label, *cell) for cell in job.cells} & read]
    if group.label not in {job.label for job in needs}:
        needs = [*(job for job in before if job.stage == "pretrain"), *needs]
    return tuple(job.name for job in needs)


def _group(asked: Asked, label: str, stage: str, costs: Costs, group_hours: float) -> list[Job]:
    """A base's cells in the jobs that take the fewest minutes together, none longer than the limit."""
    settings = asked.settings(stage)
    whole = Job(asked.study, stage, label, asked.animals, asked.seeds, asked.axes)
    cost = costs(stage, label, len(whole.cells), settings)
    shared = {"generate": "one engine", "finetune": "one copy of the base", "evaluate": "one engine"}[stage]
    seeds, animals = _count_parts(
        lambda cells: costs(stage, label, cells, settings),
        len(asked.seeds),
        len(asked.animals),
        group_hours * 60,
    )
    if seeds * animals == 1:
        why = f"all {len(whole.cells)} cells of {label} on {shared}"
        why += "" if cost.minutes is not None else "; how long that takes was not measured"
        return [_with_cost(replace(whole, why=why), cost)]
    parts = []
    for some_seeds in _split(asked.seeds, seeds):
        for nth, some in enumerate(_split(asked.animals, animals), start=1):
            part = "s" + "_".join(map(str, some_seeds)) + (f"-{nth}of{animals}" if animals > 1 else "")
            job = replace(whole, seeds=some_seeds, animals=some, part=part)
            job = _with_cost(job, costs(stage, label, len(job.cells), settings))
            why = f"{len(job.cells)} of {len(whole.cells)} cells of {label} on {shared}, which would take "
            why += f"{_hours(cost.minutes or 0)} for all: no job is to take more than {group_hours:g} h"
            parts.append(replace(job, why=why))
    return parts


def _count_parts(cost: Callable[[int], Cost], seeds: int, animals: int, limit: float) -> tuple[int, int]:
    """Into how many parts seeds and animals fall.

    Of all ways to cut them the one that takes the fewest minutes in all: every part starts an engine of its
    own, and students that are trained together fill whole rounds. A part may be longer than the limit where
    it would do little but start otherwise, and where not even single cells keep to it.
    """
    whole = cost(seeds * animals)
    if not whole.minutes or whole.minutes <= limit:
        return 1, 1
    minutes = functools.cache(lambda cells: cost(cells).minutes or 0.0)
    room = max(limit, (whole.start or 0.0) * LEAST_STARTS)

    def weigh(parts: tuple[int, int]) -> tuple[float, float, int]:
        cells = [
            len(some) * len(others)
            for some in _split(range(seeds), parts[0])
            for others in _split(range(animals), parts[1])
        ]
        longest = max(map(minutes, cells))
        # Thousandths: of cuts whose sums differ in their last digits alone, the one with the fewest parts.
        return max(longest - room, 0.0), round(sum(map(minutes, cells)), 3), len(cells)

    return min(itertools.product(range(1, seeds + 1), range(1, animals + 1)), key=weigh)


def _split(items: Sequence[Any], parts: int) -> list[tuple]:
    """Neighbours together, no part more than one longer than another."""
    edges = [round(i * len(items) / parts) for i in range(parts + 1)]
    return [tuple(items[low:high]) for low, high in itertools.pairwise(edges)]


def _with_cost(job: Job, cost: Cost) -> Job:
    return replace(
        job,
        gpus=cost.gpus,
        gpu_memory=cost.gpu_memory,
        ram=cost.ram,
        minutes=cost.minutes,
        start=cost.start,
    )


def rank_jobs(jobs: Sequence[Job]) -> dict[str, float]:
    """Minutes from a job's start to the end of the longest chain after it: who has most goes first.

    A job of unknown length counts as a minute, and among equals the larger model goes first.
    """
    after: dict[str, list[Job]] = {job.name: [] for job in jobs}
    for job in jobs:
        for name in job.needs:
            after[name].append(job)
    ranks: dict[str, float] = {}

    def rank(job: Job) -> float:
        if job.name not in ranks:
            size = config.parse_label(job.label).size.params / 1e12 if job.label else 0.0
            longest = max((rank(each) for each in after[job.name]), default=0.0)
            ranks[job.name] = (job.minutes or 1.0) + size + longest
        return ranks[job.name]

    for job in jobs:
        rank(job)
    return ranks
