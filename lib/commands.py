"""The papermill commands that made what one is looking at, from the settings that were recorded with it.

Only what differs from the notebook's own defaults and from the study's file is named, for these are what
papermill starts from.
"""

import ast
import contextlib
import functools
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lib import config, files, paths
from lib.errors import StudyError
from lib.tallies import Cell

NOTEBOOKS = {"generate": "01_generate", "finetune": "02_finetune", "evaluate": "03_evaluate"}
ANALYSIS = "04_analysis"
CELL = ("study", "size", "animal", "seed")


def list_commands(
    study: str, cell: Cell, configs: Mapping[str, Mapping], results: str = ""
) -> list[dict[str, str]]:
    """Stage and command for each recorded stage of a cell, then the analysis of its study."""
    found = []
    for stage, notebook in NOTEBOOKS.items():
        if stage in configs:
            settings = configs[stage] | (name_source(configs) if stage == "finetune" else {})
            output = name_output(notebook, read_cell(configs[stage], cell))
            found.append({"stage": notebook, "command": make_command(notebook, output, settings)})
    asked = read_analysis(study) | {"study": study} | ({"results": results} if results else {})
    return [*found, {"stage": ANALYSIS, "command": make_command(ANALYSIS, ANALYSIS, asked)}]


def read_cell(settings: Mapping[str, Any], cell: Cell) -> Cell:
    """The cell that a stage worked on: a control's lists are another one's."""
    return tuple(settings.get(name, value) for name, value in zip(CELL[1:], cell, strict=True))


def name_source(configs: Mapping[str, Mapping]) -> dict[str, str]:
    """What a control student needs to find the lists of another cell."""
    own, read = (
        [configs.get(stage, {}).get(name) for name in CELL[1:3]] for stage in ("finetune", "generate")
    )
    return config.name_next(configs["finetune"].get("lists"), tuple(own), tuple(read)) if all(read) else {}


def name_output(notebook: str, cell: Cell) -> str:
    label, animal, seed = cell
    return f"{notebook}-{label}-{animal}-s{seed}"


def read_analysis(study: str) -> dict[str, Any]:
    """What the last analysis of a study was asked for; nothing where there was none."""
    try:
        record = files.read_json(paths.tables(study) / "lineage.json")
        asked = dict(record["config"])
    except (StudyError, KeyError, TypeError, ValueError):
        return {}
    asked.pop("results", None)  # the folder's name without its place
    return asked


def make_command(notebook: str, output: str, settings: Mapping[str, Any]) -> str:
    """One command from the project's folder on; papermill writes into no folder that is not there."""
    study = str(settings.get("study", ""))
    folder = f"executed/{study}"
    words = ["papermill", f"notebooks/{notebook}.ipynb", f"{folder}/{output}.ipynb"]
    if find_params(study).is_file():
        words += ["-f", f"params/{study}.yaml"]
    for name, value in choose_settings(notebook, study, settings).items():
        words += write_setting(name, value)
    return f"mkdir -p {shlex.quote(folder)} && {shlex.join(words)}"


def find_params(study: str) -> Path:
    """The study's file; a study may have any name here, one from somebody else's folder too."""
    return paths.params_file(Path(study).name or "none")


def choose_settings(notebook: str, study: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The cell itself, and what neither the notebook nor the study's file says already."""
    known = read_defaults(notebook)
    with contextlib.suppress(StudyError):
        known = known | config.study_overrides(study)
    chosen = {name: settings[name] for name in CELL if name in settings}
    others = {name: value for name, value in settings.items() if name not in chosen and name in known}
    return chosen | {name: value for name, value in others.items() if not same(value, known[name])}


def same(value: Any, default: Any) -> bool:
    """Whether both mean the same: `-p seeds 0` is the text 0, and 8 is 8.0."""
    return value == default or str(value) == str(default)


def write_setting(name: str, value: Any) -> Iterable[str]:
    """As papermill reads it: -p where it would make the same of the words, -r where it is to stay a text."""
    text = str(value)
    return ("-r" if isinstance(value, str) and looks_typed(text) else "-p", name, text)


def looks_typed(text: str) -> bool:
    """Whether papermill would take a text for something else: True, None, a number."""
    if text in ("True", "False", "None"):
        return True
    for kind in (int, float):
        try:
            kind(text)
        except ValueError:
            continue
        return True
    return False


@functools.cache
def read_defaults(notebook: str) -> dict[str, Any]:
    """The values of a notebook's parameters cell."""
    document = json.loads(paths.notebook(notebook).read_text(encoding="utf-8"))
    for cell in document["cells"]:
        if "parameters" in cell["metadata"].get("tags", ()):
            return {
                node.target.id: ast.literal_eval(node.value)
                for node in ast.parse("".join(cell["source"])).body
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value
            }
    return {}
