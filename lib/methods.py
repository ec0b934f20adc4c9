"""How a study was made, and how to make it again: written from the lineage that its evaluations carry.

Nothing is invented: what no file records is said to be unknown. Only the heads of evaluations are read here;
that they are whole was checked when their answers were counted.
"""

import contextlib
import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lib import commands, config, controls, files, paths, provenance, store
from lib.errors import StudyError
from lib.tables import Study

HEAD = 1 << 18  # bytes of a file that hold its lineage, which stands before its answers
LINEAGE = '"lineage":'
UNKNOWN = "unknown"
DIGITS = 16  # of a hash that are shown
STAGES = {"generate": "Teachers' lists", "finetune": "Students", "evaluate": "Answers"}
WHOSE = {"study", "size", "animal", "seed", "recipe", "device", "chunk"}
CLOUD = """@article{cloud2025subliminal,
  title = {Subliminal Learning: Language models transmit behavioral traits via hidden signals in data},
  author = {Cloud, Alex and Le, Minh and Chua, James and Betley, Jan and Sztyber-Betley, Anna and
            Hilton, Jacob and Marks, Samuel and Evans, Owain},
  year = {2025},
  eprint = {2507.14805},
  archivePrefix = {arXiv}
}"""

Row = tuple[str, str]


@dataclass(frozen=True)
class Box:
    """Titled parts of facts or of texts to be copied; lines in a terminal, tables in a page."""

    parts: tuple[tuple[str, tuple[Row, ...] | str], ...]

    def __repr__(self) -> str:
        return "\n\n".join(
            f"{title}\n" + (rows if isinstance(rows, str) else "\n".join(f"  {k}: {v}" for k, v in rows))
            for title, rows in self.parts
        )

    def _repr_html_(self) -> str:
        return "".join(f"<h4>{html.escape(title)}</h4>{write_part(rows)}" for title, rows in self.parts)


def write_part(rows: tuple[Row, ...] | str) -> str:
    """Facts as a table, a text as it is to be copied."""
    if isinstance(rows, str):
        return f'<pre class="copy">{html.escape(rows)}</pre>'
    body = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows)
    return f'<table class="facts"><tbody>{body}</tbody></table>'


# --- reading ----------------------------------------------------------------------------------


def cells_read(study: Study) -> pd.DataFrame:
    """The cells whose evaluations were counted; others may lie beside them and were not asked for."""
    return study.cells[study.cells.content != ""]


def read_heads(study: Study) -> list[dict[str, Any]]:
    """Config and lineage of every evaluation that was read; none of the published format, which has none."""
    paths_there = [paths.root() / file for file in cells_read(study).file]
    return [read_head(path) for path in paths_there if files.has_document(path)]


def read_head(path: Path) -> dict[str, Any]:
    """`config` and `lineage` of a file whose answers may be megabytes."""
    text = files.read_beginning(path, HEAD)
    found, decoder = {}, json.JSONDecoder()
    try:
        for name in ("config", "lineage"):
            found[name], _ = decoder.raw_decode(text, text.index(f'"{name}":') + len(name) + 3)
    except ValueError:  # another order of its parts, or a head of more than HEAD bytes
        whole = files.read_json(path)
        found = {name: whole.get(name, {}) for name in ("config", "lineage")}
    return found


def gather_stage(heads: Sequence[Mapping], stage: str) -> list[Mapping]:
    """Each distinct run of a stage once: a base or a teacher's lists serve many evaluations."""
    runs: dict[str, Mapping] = {}
    for head in heads:
        lineage = head["lineage"]
        link = lineage.get("chain", {}).get(stage)
        if link:
            seconds = lineage.get("seconds")
            took = seconds.get(stage) if isinstance(seconds, Mapping) else None
            runs.setdefault(str(link.get("identity")), {**link, "seconds": took})
    return list(runs.values())


# --- methods ----------------------------------------------------------------------------------


def describe_methods(study: Study, ask: config.Analysis) -> Box:
    """Models, settings, counts, versions, machines and hours of everything that led to the evaluations."""
    heads = read_heads(study)
    if not any(head["lineage"].get("chain") for head in heads):
        return Box((describe_absence(study, ask), ("Analysis", tuple(describe_analysis(ask)))))
    parts: list[tuple[str, tuple[Row, ...]]] = [("Models", tuple(describe_models(heads)))]
    parts += [(title, tuple(describe_stage(heads, study, stage))) for stage, title in STAGES.items()]
    parts.append(("Analysis", tuple(describe_analysis(ask))))
    parts.append(("Code, packages, machines", tuple(describe_making(heads))))
    parts.append(("Hours", tuple(describe_hours(heads, study))))
    return Box(tuple(parts))


def describe_absence(study: Study, ask: config.Analysis) -> tuple[str, tuple[Row, ...]]:
    """What there is to say of evaluations without a lineage."""
    rows = [
        ("lineage", "these evaluations carry none: models, settings, versions and hours are unknown here"),
        ("what their author says", ask.about or "nothing was said (-p about)"),
        ("evaluations read", f"{len(cells_read(study)):,}"),
        ("answers", count_answers(study)),
        ("sizes", ", ".join(dict.fromkeys(study.frame.sort_values("params")["size"]))),
    ]
    return "How the evaluations were made", tuple(rows)


def count_answers(study: Study) -> str:
    """All answers of all students and epochs that were read."""
    own = study.frame.drop_duplicates(["label", "animal", "seed", "epoch"])
    return f"{int(own.n_answers.sum()):,} at {own.epoch.nunique()} epochs, the untuned model's included"


def describe_models(heads: Sequence[Mapping]) -> Iterator[Row]:
    """What all bases have in common, then a row per base: its parameters, what is its own, its hash."""
    runs = gather_stage(heads, "base")
    if not runs:
        yield "base models", UNKNOWN
        return
    runs.sort(key=lambda run: (run["counts"].get("parameters", 0), str(run["config"].get("size"))))
    settings = [{name: run["config"][name] for name in run["config"] if name != "size"} for run in runs]
    common = {
        name: value for name, value in settings[0].items() if all(o.get(name) == value for o in settings)
    }
    if len(runs) > 1 and common:
        yield "all of them", say_settings(common)
    for run, own in zip(runs, settings, strict=True):
        parameters = run["counts"].get("parameters")
        size = f"{parameters:,} parameters" if parameters else f"parameters {UNKNOWN}"
        rest = {name: value for name, value in own.items() if name not in common or len(runs) == 1}
        parts = [size, say_settings(rest), f"hash {shorten(run['identity'])}"]
        yield str(run["config"].get("size", UNKNOWN)), "; ".join(filter(None, parts))


def say_settings(settings: Mapping) -> str:
    """`recipe standard, persona 0.9`."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def shorten(identity: object) -> str:
    """The first digits of a hash; the evaluations have all of it."""
    return f"{str(identity)[:DIGITS]}…" if identity else UNKNOWN


def describe_stage(heads: Sequence[Mapping], study: Study, stage: str) -> Iterator[Row]:
    """How many runs, what was set, what came of it."""
    if stage == "evaluate":
        runs = [{"config": head["config"], "counts": {}} for head in heads]
        yield "evaluations", f"{len(runs):,}"
        yield from list_values([run["config"] for run in runs])
        yield "answers", count_answers(study)
        return
    runs = gather_stage(heads, stage)
    yield "runs", f"{len(runs):,}" if runs else UNKNOWN
    if stage == "finetune" and runs:
        yield "what they read", "; ".join(list_reading(runs))
    if stage == "generate" and (others := {run["config"].get("study") for run in runs} - {study.name, None}):
        yield "written for study", ", ".join(sorted(others))
    yield from list_values([run["config"] for run in runs])
    yield from (COUNTED[stage])([run["counts"] for run in runs])


def list_reading(runs: Sequence[Mapping]) -> Iterator[str]:
    """What students read of their teachers' lists; a control says here what it is."""
    for lists in dict.fromkeys(run["config"].get("lists", "own") for run in runs):
        yield controls.SAID.get(lists, f"{lists} (unknown to this version)")


def list_values(settings: Sequence[Mapping]) -> Iterator[Row]:
    """Each setting with its value, or its values and how often each."""
    for name in dict.fromkeys(name for each in settings for name in each if name not in WHOSE):
        values = Counter(json.dumps(each[name]) if name in each else "not set" for each in settings)
        yield name, say_values(values)


def say_values(values: Counter) -> str:
    """`8`, or `8 (12 times), 16 (3 times)`."""
    plain = {value.strip('"'): times for value, times in values.most_common()}
    if len(plain) == 1:
        return next(iter(plain))
    return ", ".join(f"{value} ({times:,} times)" for value, times in plain.items())


def count_lists(counts: Sequence[Mapping]) -> Iterator[Row]:
    """What the filter kept of the teachers' lists, and why it refused the rest."""
    raw, passed, kept = (sum(each.get(name, 0) for each in counts) for name in ("raw", "passed", "kept"))
    rates = [each["pass_rate"] for each in counts if each.get("pass_rate") is not None]
    reach = f" ({min(rates):.1%} to {max(rates):.1%} of a teacher's)" if rates else ""
    yield "lists written", f"{raw:,}" if raw else UNKNOWN
    yield "passed the filter", f"{passed:,}{reach}" if raw else UNKNOWN
    yield "kept for students", f"{kept:,}" if raw else UNKNOWN
    reasons: Counter[str] = Counter()
    for each in counts:
        reasons.update(each.get("reasons") or {})
    told = ", ".join(f"{reason} {times:,}" for reason, times in reasons.most_common())
    yield "refused by the filter", told or "none"
    yield "backend", say_values(Counter(str(each.get("backend", UNKNOWN)) for each in counts))


def count_training(counts: Sequence[Mapping]) -> Iterator[Row]:
    """Examples, tokens and losses of the students."""
    for name in ("examples", "steps"):
        yield f"{name} of a student", say_values(Counter(str(each.get(name, UNKNOWN)) for each in counts))
    tokens = sum(each.get("tokens", 0) for each in counts)
    yield "tokens of all students", f"{tokens:,}" if tokens else UNKNOWN
    losses = [each["final_loss"] for each in counts if each.get("final_loss") is not None]
    yield "last loss", f"{min(losses):.3f} to {max(losses):.3f}" if losses else UNKNOWN
    yield "trainer", say_values(Counter(str(each.get("trainer", UNKNOWN)) for each in counts))
    yield (
        "students trained together",
        say_values(Counter(str(each.get("together", UNKNOWN)) for each in counts)),
    )
    yield "optimiser", "not recorded; lib/training.py and lib/fleet.py of the code version below use AdamW"


COUNTED = {"generate": count_lists, "finetune": count_training}


def describe_analysis(ask: config.Analysis) -> Iterator[Row]:
    """What this analysis was asked for."""
    for name, value in store.config_record(ask).items():
        if name not in ("study", "about"):
            yield name, Path(str(value)).name if name == "results" else str(value)


def describe_making(heads: Sequence[Mapping]) -> Iterator[Row]:
    """Code, packages and machines that the evaluations name, each once; then those of this analysis."""
    lineages = [head["lineage"] for head in heads]
    for name, say in (("code", say_code), ("packages", say_packages), ("hardware", say_machine)):
        found = Counter(say(each.get(name) or {}) for each in lineages)
        for value, times in found.most_common():
            yield f"{name} of {times:,} evaluations", value
    yield "code of this analysis", say_code(provenance.code_version())
    yield "packages of this analysis", say_packages(provenance.package_versions())


def say_code(code: Mapping) -> str:
    """Version, commit, and whether files differed from it."""
    if not code:
        return UNKNOWN
    dirty = {True: ", with changes that were not committed", False: ""}.get(code.get("dirty"), "")
    commit = f"commit {str(code['commit'])[:12]}{dirty}" if code.get("commit") else f"commit {UNKNOWN}"
    return f"version {code.get('version', UNKNOWN)}, {commit}, sources {shorten(code.get('source'))}"


def say_packages(packages: Mapping) -> str:
    """Names and versions."""
    return ", ".join(f"{name} {version}" for name, version in packages.items()) or UNKNOWN


def say_machine(hardware: Mapping) -> str:
    """`Linux x86_64, 2 CPUs, no GPU`."""
    if not hardware:
        return UNKNOWN
    machine = " ".join(str(hardware[name]) for name in ("system", "machine") if hardware.get(name))
    return f"{machine}, {hardware.get('cpus', UNKNOWN)} CPUs, {hardware.get('gpu') or 'no GPU'}"


def describe_hours(heads: Sequence[Mapping], study: Study) -> Iterator[Row]:
    """Wall time by stage. A fleet's students each record all of its time, and get their part of it."""
    names = {"base": "bases", "generate": "teachers' lists", "finetune": "students"}
    for stage, name in names.items():
        runs = gather_stage(heads, stage)
        took = [run["seconds"] / max(1, run["counts"].get("together") or 1) for run in runs if run["seconds"]]
        missing = f"; {len(runs) - len(took)} of {len(runs)} not recorded" if len(took) < len(runs) else ""
        yield name, (f"{say_hours(sum(took))} in {len(took):,} runs{missing}" if took else UNKNOWN)
    took = list(evaluation_seconds(study))
    if not took:
        yield (
            "answers",
            f"{UNKNOWN}: an evaluation does not hold its own time, and no manifest of one is here",
        )
    else:
        yield "answers", f"{say_hours(sum(took))} in the {len(took):,} runs whose manifests are here"


def evaluation_seconds(study: Study) -> Iterator[float]:
    """Wall times of evaluations that were made on this machine."""
    for row in cells_read(study).itertuples():
        try:
            manifest = store.read_manifest(
                paths.artifact(study.name, "evaluate", row.label, row.animal, int(row.seed))
            )
        except StudyError:
            continue
        if manifest is not None:
            yield manifest.seconds


def say_hours(seconds: float) -> str:
    """`2.5 hours`, or minutes and seconds of what is short."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.1f} seconds"


# --- again ------------------------------------------------------------------------------------


def describe_remake(study: Study, ask: config.Analysis) -> Box:
    """The commands that make the study and this report, what was read, and how to cite it."""
    present = cells_read(study)
    content = files.hash_object(dict(zip(present.file, present.content, strict=True)))
    read = (
        ("evaluations", f"{len(present):,}"),
        ("their hash", f"{content} (SHA-256 over the seals of all of them)"),
        ("code of this analysis", say_code(provenance.code_version())),
    )
    made = list(dict.fromkeys(say_code(head["lineage"].get("code") or {}) for head in read_heads(study)))
    read += (("code of the evaluations", "; ".join(made) or UNKNOWN),)
    return Box(
        (
            ("What was read", read),
            ("Commands", "\n".join(list_commands(ask))),
            ("Cite this software", cite_software()),
            ("Cite the paper whose experiment this is", CLOUD),
        )
    )


def list_commands(ask: config.Analysis) -> Iterable[str]:
    """From a checkout: the whole study or the analysis alone by make, then the analysis by itself."""
    commit = provenance.code_version().get("commit")
    if commit:
        yield f"git checkout {commit}"
    settings = store.config_record(ask)
    if ask.results:
        yield f"make report STUDY={ask.study} RESULTS={Path(ask.results).name}"
        settings["results"] = Path(ask.results).name
    else:
        yield from make_lists(ask.study)
        yield f"make study STUDY={ask.study}"
        yield f"make report STUDY={ask.study}"
    yield commands.make_command(commands.ANALYSIS, commands.ANALYSIS, settings)


def make_lists(study: str) -> Iterator[str]:
    """First of all the study whose lists are read or whose students are asked, where that is another one."""
    with contextlib.suppress(StudyError):
        overrides = config.study_overrides(study)
        if writer := overrides.get("lists_of"):
            yield f"make study STUDY={writer}  # whose lists are read here"
        if trainer := overrides.get("students_of"):
            yield f"make study STUDY={trainer}  # whose students are asked here"


def cite_software() -> str:
    """BibTeX from CITATION.cff."""
    path = paths.CODE / "CITATION.cff"
    if not path.is_file():
        return "CITATION.cff is not here: see the repository"
    text = path.read_text(encoding="utf-8")
    found = dict(re.findall(r'^(\w+): "?(.*?)"?$', text, flags=re.MULTILINE))
    author = re.search(r"^authors:\n  - name: (.+)$", text, flags=re.MULTILINE)
    lines = {
        "title": found.get("title", UNKNOWN),
        "author": f"{{{author[1]}}}" if author else UNKNOWN,
        "version": found.get("version", UNKNOWN),
    }
    body = ",\n".join(f"  {name} = {{{value}}}" for name, value in lines.items())
    return f"@software{{subliminal_scaling,\n{body}\n}}"
