"""The figure of all studies and the command that draws it."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import overview as command
from lib import drivers, overview
from lib.errors import MissingInput

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.concat([command.read_study(name, measure) for name, _, measure, *_ in overview.FAMILIES])


def test_every_size_of_the_tracked_studies_is_drawn_once_on_the_axis_of_its_measure(table: pd.DataFrame):
    left, right = overview.overview_figure(table).axes
    names = [[tick.get_text() for tick in ax.get_xticklabels()] for ax in (left, right)]
    assert names[0] == ["64k", "166k", "368k", "864k", "2.4m", "5.1m", "11m", "21m", "135m"]
    assert names[1] == ["0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b"]
    assert "nats" in left.get_ylabel() and "percentage points" in right.get_ylabel()
    lowest, highest = left.get_ylim()
    shown = table[table.measure == "logprob"]
    assert lowest < shown["lambda"].min() and highest > shown.ci_high[shown.level == "size"].max()


def test_only_what_holds_after_the_correction_has_a_star(table: pd.DataFrame):
    for ax, measure in zip(overview.overview_figure(table).axes, ("logprob", "rate"), strict=True):
        own = table[(table.measure == measure) & (table.level == "size")].set_index("params")
        told = {text.xy[0]: text.get_text() for text in ax.texts}
        assert {params: words == "*" for params, words in told.items()} == (own.p_adjusted <= 0.05).to_dict()


def test_bases_of_a_size_are_points_of_their_own_and_an_only_base_is_none(table: pd.DataFrame):
    assert set(table[table.level == "base"].study) == {"ladder"}  # elsewhere a size has one
    left, _ = overview.overview_figure(table).axes
    points = [len(each.get_offsets()) for each in left.collections if len(each.get_offsets()) > 1]
    assert sorted(points, reverse=True) == [8, 8, 8, 8, 4, 4, 2, 2]


@pytest.fixture(scope="module")
def panels() -> pd.DataFrame:
    return pd.concat(map(command.read_panel, drivers.PANELS), ignore_index=True)


def test_every_panel_has_each_of_its_values_at_each_of_its_sizes(panels: pd.DataFrame):
    for panel in drivers.PANELS:
        own = panels[panels.panel == panel.title]
        sizes = set(own["size"])
        wanted = [(value, size) for value in panel.points for size in own["size"].unique()]
        if panel.title == "reach of the persona":
            wanted.remove(("1", "368k"))  # bases of persona 1 were trained at 64k alone
        assert wanted == list(zip(own.value, own["size"], strict=True))
        assert {"64k", "368k"} <= sizes <= set(drivers.SIZES)
        assert set(own.measure) == {"logprob"}


def test_what_is_drawn_stands_at_its_value_with_its_interval(panels: pd.DataFrame):
    for panel, ax in zip(drivers.PANELS, drivers.drivers_figure(panels).axes, strict=True):
        own = panels[panels.panel == panel.title]
        assert ax.get_title(loc="left") == panel.title
        drawn = {each.get_label(): each for each in ax.containers}
        assert sum(text.get_text() == "n.s." for text in ax.texts) == (own.p_adjusted > 0.05).sum()
        assert set(drawn) == set(own["size"])
        for size, (line, _, (bars,)) in drawn.items():
            rows = own[own["size"] == size]
            assert line.get_ydata() == pytest.approx(rows["lambda"])
            ends = [tuple(bar[:, 1]) for bar in bars.get_segments()]
            assert ends == [pytest.approx(pair) for pair in zip(rows.ci_low, rows.ci_high, strict=True)]
            assert (line.get_linestyle() != "None") == panel.joined
        labels = [tick.get_text() for tick in ax.get_xticklabels()]
        assert labels == [f"{float(v):g}" if v[0].isdigit() else v for v in dict.fromkeys(own.value)]


def test_a_panel_without_tables_names_the_study_that_makes_them(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    with pytest.raises(MissingInput, match="run make report STUDY=doses first"):
        command.read_panel(drivers.PANELS[0])


def test_a_study_without_tables_is_named_with_the_command_that_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    with pytest.raises(MissingInput, match="run make report STUDY=ladder first"):
        command.read_study("ladder", "logprob")
    done = subprocess.run([sys.executable, "overview.py"], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "STUDY=ladder" in done.stderr
