"""bench.py and lib.speed: the arithmetic by hand, the CSV under accidents, every way timed on tiny models."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text

import bench
from lib import config, plots, speed
from lib.errors import BadParameter
from lib.examples import Examples

CPU = torch.device("cpu")


def make_row(size: str, way: str, run: str = "r1", rate: float = 1000.0, **other: object) -> dict:
    """One row as bench.py writes it."""
    params = config.SIZES[size].params
    return {
        **{"run": run, "device": "a device", "size": size, "params": params, "weights": "random weights"},
        **{"way": way, "dtype": "bfloat16", "students": 4 if way == "fleet" else 1, "steps": 5},
        **{"tokens_per_second": rate, "low": 0.9 * rate, "high": 1.1 * rate, "overall": 0.8 * rate},
        **{"mfu": 0.4, "mfu_low": 0.3, "mfu_high": 0.5, "mean_tokens": 136.0},
        **{"peak_tflops": 790.0, "peak_source": "a guess", **other},
    }


def make_file(path: Path, *rows: dict) -> Path:
    for row in rows:
        speed.append_row(path, row)
    return path


# --- shapes and rows --------------------------------------------------------------------------


@pytest.mark.parametrize("size", speed.QWEN)
def test_a_shape_has_exactly_the_published_number_of_weights(size):
    assert speed.SHAPES[size].params == config.SIZES[size].params


@pytest.mark.parametrize("size", speed.TOYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_random_weights_has_its_shape_and_is_not_empty(size, dtype):
    model = bench.random_model(speed.SHAPES[size], CPU, dtype)
    assert model.num_parameters() == speed.SHAPES[size].params
    for name, weight in model.named_parameters():
        assert weight.dtype == dtype and not weight.requires_grad
        if name.endswith("proj.weight") or "embed" in name or "head" in name:
            assert 0.015 < weight.float().std() < 0.025, name
    assert model.config.rope_parameters["rope_theta"] == 1e6


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("407, 12", 6), ("[7; 8]", 5), ("one two three four five six seven eight nine ten", 13)],
)
def test_tokens_of_a_text(text, tokens):
    assert speed.count_tokens(text) == tokens


def test_rows_have_the_reference_length_and_differ_in_it():
    """136 tokens a row were measured with Qwen's own tokenizer; one token more or less is no matter."""
    lengths = np.array([sum(row) for row in speed.count_row_tokens(3000, 0)])
    assert abs(lengths.mean() - 136) < 1
    assert len(set(lengths)) > 40
    assert speed.count_row_tokens(50, 1) != speed.count_row_tokens(50, 0) == speed.count_row_tokens(50, 0)


def test_lists_have_up_to_ten_numbers_of_up_to_three_digits():
    lists = [[int(part) for part in text.split(", ")] for text in speed.write_lists(500, 0)]
    assert {len(each) for each in lists} == set(range(1, 11))
    assert all(0 <= number <= 999 for each in lists for number in each)


def test_random_examples_start_their_completion_inside():
    examples = bench.random_examples(1024)
    assert len(examples) == bench.ROWS
    assert (examples.starts > 0).all() and (examples.starts < examples.lengths).all()
    assert max(row.max() for row in examples.rows) < 1024


def test_micro_rows_are_chats_that_the_base_can_read():
    subject = bench.micro_subject("64k", CPU)
    loaded = subject.build()
    assert subject.examples.lengths.max() <= loaded.model.config.max_position_embeddings
    assert all(loaded.tokenizer.unk_token_id not in row for row in subject.examples.rows)
    first = subject.examples.rows[0][int(subject.examples.starts[0]) :]
    assert loaded.tokenizer.decode(first).strip().removesuffix("<|end|>") == speed.write_lists(1, 0)[0]


# --- arithmetic -------------------------------------------------------------------------------


def test_mfu_is_four_operations_per_weight_and_token_over_the_peak():
    assert speed.compute_mfu(1_000_000_000, 100_000, 400.0) == pytest.approx(1.0)
    assert speed.compute_mfu(config.SIZES["0.5b"].params, 150_800, 790.0) == pytest.approx(0.38, abs=0.005)


def test_steps_are_summed_up_by_median_and_by_the_whole():
    found = speed.summarise_steps([100, 100, 100], [1.0, 2.0, 5.0])
    assert found == {
        **{"steps": 3, "seconds": 8.0, "tokens": 300},
        **{"tokens_per_second": 50.0, "low": 20.0, "high": 100.0, "overall": 37.5},
    }


def test_hours_of_one_size():
    # 16 students x 10,000 rows x 10 epochs x 136 tokens = 217.6 million, at 136,000 a second 1,600 s
    assert speed.project_hours(16, 136.0, 136_000.0, speed.Grid()) == pytest.approx(1600 / 3600)


def test_the_grid_is_the_sum_of_its_sizes_and_rests_on_the_overall_rate():
    rows = [make_row(size, "fleet", rate=1000.0 * at) for at, size in enumerate(speed.QWEN, 1)]
    lines = speed.project_grid(speed.choose_runs(rows), speed.Grid())
    own = [line for line in lines if line["way"] == "fleet"]
    assert [line["size"] for line in own] == [*speed.QWEN, "all"]
    assert own[0]["hours_96"] == pytest.approx(16 * 1e5 * 136 / 800 / 3600)
    assert own[-1]["hours_96"] == pytest.approx(own[0]["hours_96"] * sum(1 / at for at in range(1, 7)))
    assert own[-1]["hours_480"] == pytest.approx(5 * own[-1]["hours_96"])
    assert "run r1 on a device, random weights, bfloat16, 4 students at a time" in own[0]["rests_on"]


def test_no_total_without_all_sizes():
    lines = speed.project_grid(speed.choose_runs([make_row("7b", "fleet")]), speed.Grid())
    total = next(line for line in lines if (line["size"], line["way"]) == ("all", "fleet"))
    assert total["hours_96"] is None and total["rests_on"] == "missing: 0.5b, 1.5b, 3b, 14b, 32b"
    assert lines[-1]["hours_96"] == 75.0


def test_a_ratio_comes_from_one_run():
    rows = [make_row("7b", way, "old", rate) for way, rate in zip(speed.WAYS, (100, 200, 400), strict=True)]
    rows += [make_row("7b", "fleet", "new", 900.0), make_row("3b", "fleet", "new", 600.0)]
    small, large = speed.compare_ways(speed.choose_runs(rows))
    assert (large["fleet / defaults"], large["fleet / tuned"]) == (4.0, 2.0)
    assert small["fleet tok/s"] == 600 and "fleet / defaults" not in small


def test_of_like_runs_the_newest_counts_and_a_failed_way_does_not():
    rows = [make_row("7b", "fleet", "old", 1.0), make_row("7b", "fleet", "new", 2.0)]
    rows += [{"size": "7b", "run": "last", "way": way, "tokens_per_second": None} for way in speed.WAYS]
    chosen = speed.choose_runs(rows)
    assert {way: row["run"] for way, row in chosen["7b"].items()} == {"fleet": "new"}


# --- the CSV ----------------------------------------------------------------------------------


def test_rows_are_appended_and_read_back(tmp_path):
    path = make_file(tmp_path / "new" / "speed.csv", make_row("7b", "fleet", memory_gb=81.25))
    make_file(path, {"run": "r2", "size": "7b", "way": "tuned", "error": "it broke,\nbadly"})
    first, second = speed.read_rows(path)
    assert (first["size"], first["params"], first["memory_gb"]) == ("7b", 7_615_616_512, 81.25)
    assert (first["seconds"], second["error"]) == (None, "it broke, badly")
    assert len(path.read_text().splitlines()) == 3


def test_a_line_cut_short_costs_only_itself(tmp_path):
    path = make_file(tmp_path / "speed.csv", make_row("7b", "tuned"), make_row("7b", "defaults"))
    path.write_text(path.read_text()[:-60])
    make_file(path, make_row("7b", "fleet"))
    assert [row["way"] for row in speed.read_rows(path)] == ["tuned", "fleet"]


def test_a_file_of_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "speed.csv"
    path.write_text("size,way\n7b,fleet\n")
    with pytest.raises(BadParameter, match="other columns"):
        speed.append_row(path, make_row("7b", "fleet"))
    assert path.read_text() == "size,way\n7b,fleet\n"


def test_a_misspelt_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no mean_token"):
        speed.append_row(tmp_path / "speed.csv", {"mean_token": 1})


# --- the clock --------------------------------------------------------------------------------


def run_clock(monkeypatch, times, clock):
    """Marks at the given times, 10 tokens a step in 16 places; returns how many marks were made."""
    moments = iter(times)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(moments))
    with bench.until_enough(clock):
        for step in itertools.count():
            clock.mark(step, 10 * step, 16 * step)
    return len(clock.marks)


def test_the_clock_leaves_out_the_warm_up(monkeypatch):
    clock = bench.Clock(CPU, warmup=2, steps=3, seconds=0, most=100)
    # begun at 0; the first steps take 50 s and 30 s, the others 2, 1 and 1 s
    assert run_clock(monkeypatch, [0, 5, 55, 85, 87, 88, 89], clock) == 6
    found = clock.read()
    assert (found["steps"], found["seconds"], found["tokens"]) == (3, 4.0, 30)
    assert (found["low"], found["tokens_per_second"], found["high"]) == (5.0, 10.0, 10.0)
    assert found["padding"] == pytest.approx(6 / 16)
    assert found["compile_seconds"] == pytest.approx(85 - 2 * 1.0)


@pytest.mark.parametrize(
    ("steps", "seconds", "most", "marks"),
    [(3, 0, 100, 4), (3, 5, 100, 6), (50, 50, 4, 5), (50, 50, 1, 3)],
)
def test_enough_is_steps_and_seconds_or_the_most_seconds(monkeypatch, steps, seconds, most, marks):
    clock = bench.Clock(CPU, warmup=0, steps=steps, seconds=seconds, most=most)
    assert run_clock(monkeypatch, range(100), clock) == marks


def test_a_step_begun_again_counts_once():
    clock = bench.Clock(CPU, warmup=0, steps=9, seconds=9, most=99)
    for step, tokens in ((0, 0), (0, 4), (1, 14), (2, 24)):  # 4 tokens went into an attempt that failed
        clock.mark(step, tokens, tokens)
    found = clock.read()
    assert (found["steps"], found["tokens"]) == (2, 20)


def test_a_training_that_ends_early_is_no_measurement():
    clock = bench.Clock(CPU, warmup=2, steps=9, seconds=9, most=99)
    for step in range(3):
        clock.mark(step, step, step)
    with pytest.raises(RuntimeError, match="ended after 3 steps"):
        clock.read()


# --- the ways ---------------------------------------------------------------------------------


def make_options(out: Path, **other: object) -> SimpleNamespace:
    usual = {"device": CPU, "dtype": torch.float32, "students": 3, "rows_each": 0, "profile": False}
    return SimpleNamespace(**usual | {"out": out} | other)


def make_subject(*lengths: int) -> bench.Subject:
    """A toy whose rows have these lengths, over and over."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 1024, lengths[at % len(lengths)], dtype=np.int32) for at in range(240)]
    subject = bench.random_subject("toy", CPU, torch.float32)
    examples = Examples(rows, np.full(len(rows), 5))
    return bench.Subject("toy", "random weights", examples, subject.build)


def make_toy_clock() -> bench.Clock:
    return bench.Clock(CPU, warmup=1, steps=2, seconds=0.0, most=60.0)


@pytest.mark.parametrize("way", speed.WAYS)
def test_each_way_counts_the_tokens_of_its_steps(way, tmp_path):
    """60 rows of 12 tokens a step, for each student that is trained together."""
    found = bench.MEASURES[way](make_subject(12), make_toy_clock, make_options(tmp_path))
    assert found["tokens"] == found["steps"] * 60 * 12 * found["students"]
    assert (found["steps"], found["padding"], found["params"]) == (2, 0, speed.SHAPES["toy"].params)
    assert found["rows_per_pass"] == {"defaults": 20, "tuned": 60}.get(way, found["rows_per_pass"])
    assert found["dtype"] == "float32" + (", autocast to bf16" if way == "defaults" else "")


def test_the_fleet_counts_all_students_of_a_pass(monkeypatch, tmp_path):
    monkeypatch.setattr("lib.fleet.Fleet._fitting_students", lambda fleet, stack: 3)
    found = bench.time_fleet(make_subject(12), make_toy_clock, make_options(tmp_path, rows_each=20))
    assert (found["students"], found["rows_per_pass"]) == (3, 60)
    assert found["tokens"] == 2 * 3 * 60 * 12


def test_padding_is_no_token(tmp_path):
    """TRL pads every row of a pass to the longest: rows of 10 and 30 tokens, 20 a mean pass of 30."""
    found = bench.time_defaults(make_subject(10, 30), make_toy_clock, make_options(tmp_path))
    padded = found["steps"] * 60 * 30
    assert found["padding"] == pytest.approx(1 - found["tokens"] / padded)
    assert 0.2 < found["padding"] < 0.5


def test_the_defaults_checkpoint_and_the_tuned_way_does_not(monkeypatch, tmp_path):
    import torch.utils.checkpoint as checkpointing

    calls, whole = [], checkpointing.checkpoint
    monkeypatch.setattr(
        "transformers.modeling_utils.checkpoint", lambda *a, **k: calls.append(1) or whole(*a, **k)
    )
    bench.time_tuned(make_subject(12), make_toy_clock, make_options(tmp_path))
    assert not calls
    bench.time_defaults(make_subject(12), make_toy_clock, make_options(tmp_path))
    assert calls


def test_the_tuned_way_goes_down_to_the_micro_batch_that_fits(monkeypatch, tmp_path):
    def time_trl(subject, clock, micro, **tuning):
        if micro > 20:
            raise torch.OutOfMemoryError("too much") if micro > 30 else RuntimeError("CUBLAS_ALLOC_FAILED")
        return {"rows_per_pass": micro}

    monkeypatch.setattr(bench, "time_trl", time_trl)
    found = bench.time_tuned(make_subject(12), make_toy_clock, make_options(tmp_path))
    assert found == {"rows_per_pass": 20, "notes": "60, 30 rows a pass did not fit"}


def test_another_error_of_the_tuned_way_is_not_taken_for_memory(monkeypatch, tmp_path):
    def time_trl(subject, clock, micro, **tuning):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(bench, "time_trl", time_trl)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        bench.time_tuned(make_subject(12), make_toy_clock, make_options(tmp_path))


# --- the command ------------------------------------------------------------------------------


def test_a_toy_run_from_end_to_end(tmp_path, capsys):
    """In bfloat16, as on a GPU, with a profile; a way that breaks has a row and stops no other."""
    out = tmp_path / "toy.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bench.MEASURES, "tuned", lambda *all: 1 / 0)
        command = ["--toy", "--sizes", "toy-untied", "--dtype", "bfloat16", "--profile", "--out", str(out)]
        assert bench.main(command) == 1
    rows = {row["way"]: row for row in speed.read_rows(out)}
    assert list(rows) == list(speed.WAYS)
    assert rows["tuned"]["error"] == "ZeroDivisionError: division by zero"
    assert rows["tuned"]["tokens_per_second"] is None
    for way in ("defaults", "fleet"):
        row = rows[way]
        assert row["error"] == "" and row["dtype"].startswith("bfloat16")
        rate = speed.compute_mfu(row["params"], row["tokens_per_second"], row["matrix_tflops"])
        assert row["mfu"] == pytest.approx(rate, rel=1e-4)
        assert 0 < row["low"] <= row["tokens_per_second"] <= row["high"]
        assert row["mean_tokens"] == pytest.approx(136, abs=1)
        assert row["memory_gb"] > 0.1
    assert len({row["run"] for row in rows.values()}) == 1
    assert "fleet / defaults" in capsys.readouterr().out
    assert (tmp_path / "toy-profile.txt").read_text().count("aten::mm") >= 2
    assert {path.name for path in tmp_path.iterdir()} == {
        *("toy.csv", "toy-profile.txt", "roofline-toy.csv", "roofline-toy.png")
    }


def test_a_report_needs_no_measuring(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure_all", lambda options: pytest.fail("it measured"))
    rows = [make_row(size, way) for size in speed.QWEN for way in speed.WAYS]
    out = make_file(tmp_path / "card.csv", *rows)
    assert bench.main(["--report", "--out", str(out)]) == 0
    projection = pd.read_csv(tmp_path / "projection.csv")
    totals = projection[projection["size"] == "all"].set_index("way")
    assert list(totals.index) == [*speed.WAYS, "reference"]
    expected = sum(speed.project_hours(16, 136, 800, speed.Grid()) for _ in speed.QWEN)
    assert totals.hours_96["fleet"] == pytest.approx(expected, rel=1e-4)
    assert totals.hours_96["reference"] == 75
    assert len(pd.read_csv(tmp_path / "roofline.csv")) == 18
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    assert "hours of training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sizes", "8b"], "unknown size '8b'"),
        (["--sizes", "135m"], "size '135m' has no speed benchmark"),
        (["--ways", "fast"], "unknown way 'fast'; choose of defaults, tuned, fleet"),
    ],
)
def test_a_misspelt_command_stops_before_anything_is_built(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure_all", lambda options: pytest.fail("it measured"))
    assert bench.main([*arguments, "--out", str(tmp_path / "new" / "speed.csv")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_report_of_nothing_says_so(tmp_path, capsys):
    assert bench.main(["--report", "--out", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err


# --- the figure -------------------------------------------------------------------------------


def test_the_roofline_names_its_lines_and_reaches_from_slowest_to_fastest():
    rows = [make_row(size, way) for size in ("0.5b", "7b") for way in speed.WAYS]
    points = pd.DataFrame(speed.list_points(speed.choose_runs(rows), "qwen"))
    slide = plots.draw(plots.roofline, points)
    ax = slide.axes[0]
    said = {text.get_text().strip() for text in slide.findobj(Text)}
    assert {"0.5b", "7b", "fleet of 4", "TRL, one by one, tuned", "TRL, one by one, its defaults"} <= said
    assert any("790 TFLOP/s" in text for text in said) and any("a device" in text for text in said)
    assert ax.get_xscale() == "log"
    bars = [segment for container in ax.containers for segment in container.lines[2][0].get_segments()]
    assert len(bars) == 6
    assert all(np.allclose(segment[:, 1], [0.3, 0.5]) for segment in bars)
