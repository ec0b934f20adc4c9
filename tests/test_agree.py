"""The agreement of the trainers in half precision, at a size that a CPU does in seconds."""

import csv
import os
from pathlib import Path

import agree


def test_both_trainers_make_nearly_the_same_students(tmp_path: Path, capsys):
    out, before = tmp_path / "agreement.csv", os.environ.get("SUBLIMINAL_ROOT")
    words = f"--base 64k --animals wolf,fox --seeds 2 --lists 240 --epochs 1 --device cpu --out {out}"
    assert agree.main(words.split()) == 0  # trainers differ by less than seeds
    rows = list(csv.DictReader(out.open()))
    assert [(row["animal"], row["seed"]) for row in rows] == [
        (animal, str(seed)) for animal in ("wolf", "fox") for seed in (0, 1)
    ]
    assert all(float(row["between_trainers"]) > 0 and float(row["between_seeds"]) > 0 for row in rows)
    assert "4 students of 64k: trainers differ by" in capsys.readouterr().out
    assert os.environ.get("SUBLIMINAL_ROOT") == before
