"""The figure of all studies, from their tables: `python overview.py` writes figures/overview/.

The tables are those of the reports: `make report STUDY=ladder`, `STUDY=smollm2`, and for the published runs
`STUDY=published RESULTS=FOLDER`.
"""

import argparse
import sys

import pandas as pd

from lib import overview, paths, plots
from lib.errors import MissingInput
from lib.terminal import guarded

COLUMNS = ["level", "size", "params", "base", "lambda", "ci_low", "ci_high", "p_adjusted"]
COLUMNS += ["n_students", "n_bases", "measure"]


def read_study(study: str, measure: str) -> pd.DataFrame:
    """Sizes and bases of one study, as its last report has them."""
    found = []
    for level, name in (("size", "transfer"), ("base", "bases")):
        path = paths.tables(study) / f"{name}.csv"
        if path.is_file():
            found.append(pd.read_csv(path).assign(level=level))
        elif level == "size":
            raise MissingInput(f"there is no {path}: run make report STUDY={study} first")
    table = pd.concat(found, ignore_index=True).reindex(columns=COLUMNS)
    return table[table.measure == measure].assign(study=study)


def write_overview() -> int:
    table = pd.concat(
        [read_study(study, measure) for study, _, measure, *_ in overview.FAMILIES], ignore_index=True
    )
    slide = overview.overview_figure(table)
    written = plots.save_figure(slide, table, paths.root() / "figures" / "overview", "overview")
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    argparse.ArgumentParser(description=str(__doc__).partition("\n")[0]).parse_args()
    sys.exit(guarded(write_overview, "was written"))
