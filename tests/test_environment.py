"""What is installed and what is read from the environment: two sets of pins that hold together, one list."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib import files

REPO = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHARED, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]
OPTIONAL = ("tensorboard", "wandb", "trackio")  # an extra each
PACKAGE_OF = {"PIL": "pillow", "yaml": "pyyaml"}  # where the name of the import is not that of the package


def versions(pins: list[str]) -> dict[str, str]:
    """Package -> version; whatever is not one exact pin is refused."""
    found = {}
    for pin in pins:
        name, version = re.fullmatch(r"([\w.-]+)==([\w.]+)", pin).groups()
        assert canonicalize_name(name) not in found, f"{name} is named twice"
        found[canonicalize_name(name)] = version
    return found


CPU, GPU = versions([*SHARED, *EXTRAS["cpu"]]), versions([*SHARED, *EXTRAS["gpu"]])

# --- what is installed --------------------------------------------------------------------------


def test_conda_installs_what_the_gpu_extra_names():
    environment = yaml.safe_load((REPO / "environment.yml").read_text(encoding="utf-8"))
    plain = [each for each in environment["dependencies"] if isinstance(each, str)]
    (through_pip,) = [each["pip"] for each in environment["dependencies"] if isinstance(each, dict)]
    assert plain == ["python=3.12", "pip"]
    assert through_pip[-1] == "-e ."  # lib itself
    assert versions(through_pip[:-1]) == GPU


def test_a_package_lib_imports_is_named_in_both_environments():
    imported = set()
    for path in (REPO / "lib").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {"lib"}
    assert {"torch", "vllm", "numpy", "huggingface_hub"} <= foreign
    named = {canonicalize_name(PACKAGE_OF.get(name, name)) for name in foreign} - set(OPTIONAL)
    assert named <= GPU.keys()
    assert named - {"vllm"} <= CPU.keys()


def test_the_two_sets_differ_in_versions_and_in_what_needs_a_gpu():
    """What is the same in both stands in `dependencies`, once."""
    cpu, gpu = versions(EXTRAS["cpu"]), versions(EXTRAS["gpu"])
    assert cpu.keys() <= gpu.keys()
    assert all(version != gpu[name] for name, version in cpu.items())


def test_make_installs_the_cpu_set_exactly_as_it_ran_together():
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    whole = versions([line for line in lines if not line.startswith("#")])
    direct = CPU | versions(EXTRAS["dev"])
    assert direct == {name: whole.get(name) for name in direct}
    assert "-c constraints.txt -e '.[cpu,dev]'" in (REPO / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_tracker_is_an_extra_of_its_own(name):
    assert versions(EXTRAS[name]).keys() == {name}
    for other in ("gpu", "dev"):
        named = versions(EXTRAS[other])
        assert named.get(name) in (None, versions(EXTRAS[name])[name])


# What the packages of the GPU environment, direct or not, ask of those that are pinned there: Requires-Dist
# of `pip install --dry-run --report` on Python 3.12. numba and mistral_common come with vLLM.
REQUIRES: dict[str, list[str]] = files.read_json(REPO / "tests" / "data" / "requires_gpu.json")


@pytest.mark.parametrize("asking", REQUIRES)
def test_no_pin_of_the_gpu_set_contradicts_another(asking):
    name, _, version = asking.partition("==")
    assert GPU.get(canonicalize_name(name), version) == version, (
        "the table is of another version: make it anew"
    )
    for requirement in map(Requirement, REQUIRES[asking]):
        pinned = GPU[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{asking} takes {requirement}, pinned is {pinned}"


def test_the_table_of_requirements_covers_what_decides():
    assert {"vllm==0.26.0", "transformers==5.17.0", "numba==0.65.0", "trl==1.16.0"} <= REQUIRES.keys()


# --- what is read from the environment ----------------------------------------------------------

TEMPLATE = (REPO / ".env.template").read_text(encoding="utf-8")
LISTED = re.findall(r"^#([A-Z][A-Z0-9_]*)=(.*)$", TEMPLATE, flags=re.MULTILINE)
OURS = [
    *(REPO / "lib").glob("*.py"),
    *REPO.glob("*.py"),
    *(REPO / "notebooks").glob("*.ipynb"),
    REPO / "Makefile",
]
ASKED = re.compile(r"(?:environ(?:\.\w+\(|\[)|getenv\()\s*[\"'](\w+)[\"']")
# By their prefixes: names in tables, messages and comments count as well.
PREFIXED = re.compile(r"\b(?:HF|VLLM|WANDB|TRACKIO|CUDA|PIP|SUBLIMINAL|OMP|TOKENIZERS)_[A-Z0-9_]*[A-Z0-9]\b")


def test_every_variable_that_is_read_is_listed():
    listed = {name for name, _ in LISTED}
    for path in OURS:
        text = path.read_text(encoding="utf-8")
        read = {*ASKED.findall(text), *PREFIXED.findall(text)}
        assert read <= listed, f"{path.name} reads {sorted(read - listed)}"


def test_a_listed_variable_says_what_it_does_and_its_default():
    said = ""
    for line in TEMPLATE.splitlines():
        if line.startswith("# ---") or line in ("", "#"):
            said = ""
        elif line.startswith("# "):
            said += line
        else:
            assert re.fullmatch(r"#[A-Z0-9_]+=\S*", line), line
            assert len(said) > 20, f"{line} is not explained"


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY"])
def test_a_secret_is_marked_and_has_no_value(name):
    before = TEMPLATE.partition(f"\n#{name}=")[0].splitlines()[-1]
    assert before.startswith("# SECRET.")
    assert dict(LISTED)[name] == ""


def test_a_copy_loads_in_a_shell_as_its_head_says(tmp_path):
    values = re.sub(r"^#([A-Z])", r"\1", TEMPLATE, flags=re.MULTILINE).replace("HF_TOKEN=", "HF_TOKEN=secret")
    (tmp_path / ".env").write_text(values, encoding="utf-8")
    assert "set -a; . ./.env; set +a" in TEMPLATE
    done = subprocess.run(
        ["sh", "-euc", "set -a; . ./.env; set +a; env"], cwd=tmp_path, env={}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert loaded.keys() >= {name for name, _ in LISTED}
    assert loaded["HF_TOKEN"] == "secret"


def test_git_keeps_the_template_and_never_the_copy():
    if not (REPO / ".git").exists():
        pytest.skip("an unpacked archive has no git to ask")
    for name, ignored in ((".env", True), (".env.template", False), ("environment.yml", False)):
        done = subprocess.run(["git", "check-ignore", "--no-index", "-q", name], cwd=REPO, check=False)
        assert done.returncode == (0 if ignored else 1)
