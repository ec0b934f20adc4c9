"""What made a result: code, packages, machine. Ground layer: looks, imports nothing heavy."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import lib
from lib import paths

PACKAGES = (
    *("torch", "transformers", "tokenizers", "peft", "trl", "datasets", "vllm"),
    *("numpy", "scipy", "statsmodels", "pandas", "papermill"),
)
# Only these decide what a run computes; results and figures are tracked too and change with every run.
CODE_FOLDERS = ("lib", "notebooks", "params")


@functools.cache
def code_version() -> dict:
    """Version, commit, whether code differs from the commit, and a hash of lib's sources.

    `commit` and `dirty` are None outside a git checkout or without git; `source` is always there.
    """
    commit, dirty = _git_state(paths.CODE)
    return {"version": lib.__version__, "commit": commit, "dirty": dirty, "source": hash_sources()}


@functools.cache
def hash_sources() -> str:
    """One hash of all sources of lib."""
    digest = hashlib.sha256()
    for module in sorted(Path(lib.__file__).parent.glob("*.py")):
        digest.update(f"{module.name}\0".encode() + module.read_bytes() + b"\0")
    return digest.hexdigest()


def _git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Commit and dirtiness of the checkout whose root is `folder`; a repository further up is not ours."""
    if not (folder / ".git").exists():
        return None, None
    command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--", *CODE_FOLDERS]
    # In a git hook GIT_DIR and its like point at whatever repository is being committed to.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None, None
    lines = done.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    if done.returncode or commit == "(initial)":
        return None, None
    return commit, any(not line.startswith("#") for line in lines)


def package_versions() -> dict[str, str]:
    """Python and those of PACKAGES that are installed, without importing any."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict:
    """CPU and GPU, never the machine's name. The GPU is asked only if torch is loaded already."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None
    return {"system": platform.system(), "machine": platform.machine(), "cpus": usable, "gpu": gpu}
