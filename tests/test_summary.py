"""lib.summary: one page for slides, whole, readable and twice the same; and the sentences on it."""

import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from lib import config, report, summary

SENTENCES = ("Yes, at 2 of 3 sizes.", "It is largest at 14b.", "How it scales is not settled.")


def make_sizes(count=3):
    names = ["0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b"][:count]
    values = np.linspace(-0.1, 20, count)
    return pd.DataFrame({
        "level": "size", "size": names, "params": 5e8 * 3.0 ** np.arange(count), "lambda": values,
        "ci_low": values - 3, "ci_high": values + 5, "p": 0.001,
        "p_adjusted": [0.0123] * (count - 1) + [np.nan], "n_bases": 1, "n_students": 45,
        "n_seeds": 3, "n_animals": 15, "measure": "rate", "epoch": 10,
        "base": np.nan,
    })  # fmt: skip


@pytest.fixture(scope="module")
def ask():
    return config.Analysis(
        study="mine", results="", scorer="answers", repeats=5, sizes="0.5b", animals="grid", seeds="1",
        epoch="last", measure="rate", beside="", about="", permutations=500, analysis_seed=0,
    )  # fmt: skip


def texts(slide):
    return [text for text in slide.findobj(Text) if text.get_text().strip() and text.get_visible()]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_page_holds_question_answer_table_and_making_within_its_edges(ask, count):
    sizes = make_sizes(count)
    slide = summary.draw_summary(ask, (*SENTENCES, "Many animals among them. " * 12), sizes, sizes)
    slide.canvas.draw()
    words = " ".join(text.get_text() for text in texts(slide)).replace("\n", " ")
    for told in (*SENTENCES, summary.QUESTION, "qwen", f"{45 * count} students", "make report STUDY=mine"):
        assert told in words
    for at, row in enumerate(sizes.to_dict("records")):
        assert f"{row['lambda']:+.3g}" in words
        assert (".012" if at < count - 1 else "none") in words
    width, height = slide.bbox.size
    for text in texts(slide):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()


def test_columns_of_the_table_do_not_run_into_one_another(ask):
    sizes = make_sizes(7).assign(ci_low=-0.000123, ci_high=-0.0000456, **{"lambda": -0.0000789})
    slide = summary.draw_summary(ask, SENTENCES, sizes, sizes)
    slide.canvas.draw()
    table = slide.axes[1]
    boxes = [text.get_window_extent() for text in table.texts]
    for at, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[at + 1 :]), table.texts[at].get_text()


def test_picture_and_pdf_are_the_same_bytes_twice_and_16_to_9(ask, tmp_path):
    for name in ("one", "two"):
        sizes = make_sizes()
        summary.save_summary(summary.draw_summary(ask, SENTENCES, sizes, sizes), tmp_path / name)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in first] == ["summary.pdf", "summary.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    height, width = plt.imread(io.BytesIO(first[1].read_bytes())).shape[:2]
    assert width / height == pytest.approx(16 / 9)
    assert re.search(rb"/MediaBox \[ 0 0 1152 648 \]", first[0].read_bytes())


# --- the sentences ----------------------------------------------------------------------------


def make_laws(**weights):
    return pd.DataFrame({"law": list(weights), "weight": list(weights.values())})


def headline(p_adjusted, laws, values=(1.0, 2.0, 30.0)):
    sizes = make_sizes().assign(p_adjusted=p_adjusted)
    sizes["lambda"] = values
    return report.say_headline(sizes, laws, "rate").sentences


def test_the_headline_names_the_sizes_that_pass_the_largest_and_the_laws_left():
    laws = make_laws(none=0.004, power=0.3, saturating=0.65, linear=0.046)
    verdict, largest, scale = headline([0.2, 0.01, 0.003], laws)
    assert verdict.startswith("Yes, at 2 of 3 sizes (1.5b, 3b)")
    assert "p after Holm .01 or less" in verdict
    assert largest.startswith("It is largest at 3b: lambda +30.0 percentage points, 95 % interval +17.0 to")
    assert "saturating (.65), power (.3) cannot be told apart" in scale
    assert "a constant is ruled out (weight .004)" in scale


def test_nothing_found_is_said_as_plainly():
    verdict, _, scale = headline([0.2, 0.9, 1.0], make_laws(none=0.7, power=0.3))
    assert verdict.startswith("No: at none of 3 sizes")
    assert "smallest p after Holm .2" in verdict
    assert "ruled out" not in scale


def test_what_cannot_be_tested_or_fitted_is_not_known():
    verdict, _, scale = headline([np.nan] * 3, make_laws())
    assert verdict == "Not known: none of 3 sizes has animals enough for a test."
    assert scale == "How it scales cannot be said from these sizes."
    assert len(headline([np.nan] * 3, make_laws(), [np.nan] * 3)) == 2


def test_one_law_left_is_named_alone():
    assert "one is left: power (.97)" in headline([0.01] * 3, make_laws(none=0.03, power=0.97))[2]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.0000386, 0.01596, "-0.00004 to 0.01596"),
        (6.4, 52.4, "6.4 to 52.4"),
        (-1.69, 1.66, "-1.69 to 1.66"),
        (0.0, 0.05, "0.0000 to 0.0500"),
    ],
)
def test_an_interval_is_written_to_one_place_and_no_end_vanishes(low, high, said):
    assert summary.write_interval(low, high) == said
