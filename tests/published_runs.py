"""Where the published evaluations lie, if they do, and the table that they have to give."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("SUBLIMINAL_SHARED") or Path(__file__).resolve().parents[2] / "shared")
PUBLISHED = SHARED / "published_evals"
needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(),
    reason="no published evaluations here (SUBLIMINAL_SHARED names the folder that has them)",
)
# lambda of runs 0-3 and of runs 1-3 pooled: percentage points, the authors' counts, last epoch.
PUBLISHED_LAMBDA = {
    "0.5b": ("+0.02", "-1.23", "+0.25", "+0.60", "-0.13"),
    "1.5b": ("-0.02", "+1.17", "+0.76", "-0.47", "+0.49"),
    "3b": ("-0.47", "+2.15", "+1.25", "+1.05", "+1.48"),
    "7b": ("-0.24", "+1.36", "+2.74", "+3.05", "+2.38"),
    "14b": ("+22.33", "+23.70", "+37.01", "+15.70", "+25.47"),
    "32b": ("+0.32", "+11.07", "+9.24", "+10.24", "+10.18"),
    "72b": ("+2.44", "+3.60", "+3.31", "+3.23", "+3.38"),
}
