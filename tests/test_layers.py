"""The house as DESIGN draws it: imports point down, notebooks hold no logic, the tree is what git keeps."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import papermill
import pytest

import lib
from lib import config

REPO = Path(__file__).resolve().parent.parent
MODULES = sorted(path for path in (REPO / "lib").glob("*.py") if path.stem != "__init__")
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))

# Seconds to import, or a GPU needed: only the models layer, and only once they are used.
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "tokenizers",
    "accelerate",
    "safetensors",
    "gguf",
    "huggingface_hub",
    "vllm",
    "wandb",
    "trackio",
}
# Modules of layers and autograd functions need torch at hand: they are imported where they are used.
LAZY = {"fleet", "decoding", "scheduling"}
NEVER = {"IPython", "papermill", "ipykernel", "study", "notebooks", "tests"}
# What a layer may use beside the standard library, lib and (models) HEAVY.
FOREIGN = {
    "ground": {"yaml"},
    "pure": {"numpy", "scipy", "statsmodels"},
    "models": {"numpy", "psutil"},
    "reading": {
        *("numpy", "pandas", "scipy", "statsmodels", "matplotlib", "seaborn", "PIL"),
        *("nbformat", "nbconvert", "pygments", "bleach", "anywidget"),
    },
}


def layers() -> dict[str, tuple[int, str, int]]:
    """module -> (level, layer, place in it), as lib's own docstring tells."""
    rows = re.findall(r"^(\d) (\w+): (.+(?:\n  .+)*)$", lib.__doc__, flags=re.MULTILINE)
    return {
        module: (int(level), layer, place)
        for level, layer, modules in rows
        for place, module in enumerate(modules.split())
    }


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every dotted name a module imports, and whether it does so as soon as it is itself imported."""

    def walk(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import; say lib.<module>"
            yield from ((f"{node.module}.{alias.name}", at_once) for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            inside = True
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_once and not inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def own_imports(path: Path) -> set[str]:
    """The modules of lib that a module imports."""
    stems = {module.stem for module in MODULES}
    names = {name.split(".")[1] for name, _ in imports(path) if name.startswith("lib.")}
    return names & stems


def foreign_imports(path: Path) -> set[str]:
    """Packages a module imports that are neither ours nor Python's."""
    packages = {name.partition(".")[0] for name, _ in imports(path)}
    return packages - sys.stdlib_module_names - {"lib", "__future__"}


each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# --- lib ----------------------------------------------------------------------------------------


def test_every_module_has_its_layer():
    assert set(layers()) == {path.stem for path in MODULES}


@each_module
def test_an_import_points_down_or_left(path: Path):
    level, layer, place = layers()[path.stem]
    for other in own_imports(path):
        there, name, position = layers()[other]
        assert (there, position) < (level, place) if there == level else there < level, (
            f"{path.stem} ({layer}) imports {other} ({name})"
        )


@each_module
def test_reading_and_models_never_meet(path: Path):
    layer = layers()[path.stem][1]
    met = {layers()[other][1] for other in own_imports(path)} | {layer}
    assert not {"reading", "models"} <= met


@each_module
def test_a_module_uses_only_its_layers_packages(path: Path):
    layer = layers()[path.stem][1]
    allowed = FOREIGN[layer] | (HEAVY if layer == "models" else set())
    assert foreign_imports(path) <= allowed
    assert not foreign_imports(path) & NEVER


@each_module
def test_heavy_packages_and_yaml_are_imported_where_they_are_used(path: Path):
    at_once = {name.partition(".")[0] for name, now in imports(path) if now}
    assert not at_once & ({"yaml"} if path.stem in LAZY else HEAVY | {"yaml"})


@each_module
def test_a_lazy_module_is_itself_imported_where_it_is_used(path: Path):
    at_once = {name for name, now in imports(path) if now}
    assert not at_once & {f"lib.{name}" for name in LAZY}


def test_importing_all_of_lib_loads_no_model_library():
    names = ", ".join(f"lib.{path.stem}" for path in MODULES if path.stem not in LAZY)
    look = f"import sys, {names}; print(sorted(set({sorted(HEAVY)!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", look], cwd=REPO, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@each_module
def test_a_module_says_what_it_holds(path: Path):
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert doc
    assert len(doc.split("\n\n")[0].splitlines()) <= 6


@each_module
def test_every_signature_is_typed(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [
                each.arg for each in arguments if each.annotation is None and each.arg not in ("self", "cls")
            ]
            assert not bare, f"{path.name}:{node.lineno} {node.name}({', '.join(bare)})"
            assert node.returns is not None, f"{path.name}:{node.lineno} {node.name} -> ?"


# --- notebooks ------------------------------------------------------------------------------------


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@each_notebook
def test_a_notebook_imports_lib_and_the_display_only(path: Path):
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.partition(".")[0] == "lib" or name == "IPython.display", name


@each_notebook
def test_a_notebook_defines_nothing_and_decides_nothing(path: Path):
    logic = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.If, ast.While, ast.Try)
    for cell in code_cells(path):
        found = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, logic)]
        assert not found, f"{type(found[0]).__name__} belongs in lib:\n{cell.source}"


@each_notebook
def test_a_source_notebook_has_no_outputs_and_short_cells(path: Path):
    for cell in code_cells(path):
        assert cell.outputs == []
        assert cell.execution_count is None
        lines = cell.source.splitlines()
        if "parameters" in cell.metadata.get("tags", ()):  # a table: a line for each and nothing else
            assert len(lines) == len(ast.parse(cell.source).body)
        else:
            assert len(lines) <= 25


@each_notebook
def test_a_notebook_opens_with_a_title_and_its_parameters(path: Path):
    first, second = nbformat.read(path, as_version=4).cells[:2]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert second.metadata.get("tags") == ["parameters"]
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in code_cells(path)) == 1


@each_notebook
def test_parameters_are_annotated_scalars_that_papermill_can_explain(path: Path):
    cell = code_cells(path)[0]
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.AnnAssign), ast.unparse(node)
        assert type(ast.literal_eval(node.value)).__name__ == ast.unparse(node.annotation)
        assert node.target.id in config.KNOWN_NAMES
    for name, found in papermill.inspect_notebook(str(path)).items():
        assert found["help"].strip(), f"{name} has no trailing comment"


@each_notebook
def test_every_kernel_can_run_it(path: Path):
    """`python3` is the kernel of whatever environment runs papermill; other names exist on one machine."""
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


# --- the tree -------------------------------------------------------------------------------------


def test_lib_is_ours():
    assert Path(lib.__file__).resolve() == REPO / "lib" / "__init__.py"


def test_lib_is_ours_from_any_folder(tmp_path: Path):
    """A wheel may drop a stray top-level `lib` into site-packages; our editable install has to win."""
    importlib.metadata.distribution("subliminal-scaling")  # fails where nobody installed it: `make test` does
    look = [sys.executable, "-c", "import lib; print(lib.__file__)"]
    done = subprocess.run(look, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).resolve() == REPO / "lib" / "__init__.py"


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("lib/anything.py", False),
        ("models/64k/model.safetensors", False),
        ("models/64k/manifest.json", False),
        ("results/micro/64k/wolf/s0.json", False),
        ("results/micro/tables/transfer.csv", False),
        ("figures/micro/scaling.png", False),
        ("params/micro.yaml", False),
        ("artifacts/micro/finetune/64k/wolf/s0/manifest.json", True),
        ("executed/micro/report.html", True),
        (".venv/bin/python", True),
    ],
)
def test_git_keeps_what_is_ours_and_no_more(path: str, ignored: bool):
    if not (REPO / ".git").exists():
        pytest.skip("no git checkout")
    done = subprocess.run(["git", "check-ignore", "--no-index", "-q", path], cwd=REPO, check=False)
    assert done.returncode == (0 if ignored else 1)


def test_every_dependency_is_pinned_and_no_pin_contradicts_another():
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    whole = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in (*direct, *whole))
    assert set(direct) <= set(whole)
    names = [re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in whole]
    assert len(set(names)) == len(names)
