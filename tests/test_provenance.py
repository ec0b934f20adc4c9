"""What made a result, looked up in a checkout, in one without git, and outside any."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib import paths, provenance

ROOT = Path(__file__).resolve().parents[1]
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A tree of its own in the place of the project's."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.py").write_text("A = 1\n")
    monkeypatch.setattr(paths, "CODE", tmp_path)
    provenance.code_version.cache_clear()
    yield tmp_path
    provenance.code_version.cache_clear()


def git(folder, *words):
    names = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *names, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit_all(folder):
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


def test_outside_git_there_is_no_commit_but_a_source_hash(code):
    version = provenance.code_version()
    assert version["commit"] is None and version["dirty"] is None
    assert len(version["source"]) == 64 and version["version"]


@needs_git
def test_in_a_checkout_the_commit_is_named(code):
    commit = commit_all(code)
    version = provenance.code_version()
    assert version["commit"] == commit and version["dirty"] is False


@needs_git
@pytest.mark.parametrize("name", ["lib/a.py", "lib/new.py"])
def test_changed_code_is_dirty(code, name):
    commit_all(code)
    (code / name).write_text("A = 2\n")
    assert provenance.code_version()["dirty"] is True


@needs_git
def test_results_written_by_a_run_are_not_dirt(code):
    commit_all(code)
    (code / "results").mkdir()
    (code / "results" / "s0.json").write_text("{}")
    assert provenance.code_version()["dirty"] is False


@needs_git
def test_without_a_commit_yet_there_is_none(code):
    git(code, "init", "-q")
    assert provenance.code_version()["commit"] is None


@needs_git
def test_a_repository_further_up_is_not_ours(code, monkeypatch):
    commit_all(code)
    monkeypatch.setattr(paths, "CODE", code / "lib")
    assert provenance.code_version()["commit"] is None


@needs_git
def test_the_environment_of_a_git_hook_does_not_mislead(code, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    (other / "f").write_text("x")
    commit_all(other)
    commit = commit_all(code)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert provenance.code_version()["commit"] == commit


def test_without_git_installed_there_is_no_commit(code, tmp_path, monkeypatch):
    (code / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert provenance.code_version()["commit"] is None


def test_packages_are_those_installed():
    import numpy

    versions = provenance.package_versions()
    assert versions["numpy"] == numpy.__version__ and versions["python"] == sys.version.split()[0]
    assert None not in versions.values()


def test_nothing_heavy_is_imported():
    look = "import sys; from lib import provenance as p; p.code_version(), p.package_versions()"
    look += (
        "; h = p.hardware(); print(h['cpus'] > 0, h['gpu'], 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True None False False\n", done.stderr
