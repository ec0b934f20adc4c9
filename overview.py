"""The figures of all studies, from their tables: `python overview.py` writes figures/overview/.

One of transfer over model size, one of what drives it. The tables are those of the reports, such as of
`make report STUDY=ladder`, and for the published runs `STUDY=published RESULTS=FOLDER`.
"""

import argparse
import sys

import pandas as pd

from lib import drivers, overview, paths, plots
from lib.errors import MissingInput
from lib.terminal import guarded

COLUMNS = ["level", "size", "params", "base", "lambda", "ci_low", "ci_high", "p_adjusted"]
COLUMNS += ["n_students", "n_bases", "measure"]
DRIVERS = ["panel", "value", "study", "size", "lambda", "ci_low", "ci_high", "p_adjusted"]
DRIVERS += ["n_bases", "n_students", "n_seeds", "measure"]


def read_study(study: str, measure: str) -> pd.DataFrame:
    """Sizes of one study as its last report has them, and their bases where a size has several."""
    found = []
    for level, name in (("size", "transfer"), ("base", "bases")):
        path = paths.tables(study) / f"{name}.csv"
        if path.is_file():
            found.append(pd.read_csv(path).assign(level=level))
        elif level == "size":
            raise MissingInput(f"there is no {path}: run make report STUDY={study} first")
    table = pd.concat(found, ignore_index=True).reindex(columns=COLUMNS)
    several = table[(table.level == "size") & (table.n_bases > 1)]["size"]  # one base says what its size says
    kept = (table.level == "size") | table["size"].isin(several)
    return table[kept & (table.measure == measure)].assign(study=study)


def read_panel(panel: drivers.Panel) -> pd.DataFrame:
    """Each size at each value of what a panel varies; of the usual setting, the sizes that others have."""
    found = []
    for value, study in panel.points.items():
        path = paths.tables(study) / f"{panel.table}.csv"
        if not path.is_file():
            whole = study.split("-")[0]  # a study with further axes makes one of its own for each value
            raise MissingInput(f"there is no {path}: run make report STUDY={whole} first")
        table = pd.read_csv(path)
        kept = table.measure == drivers.MEASURE
        if panel.table == "epochs":
            kept &= table.epoch.astype(str) == value
        found.append(table[kept].assign(value=value, study=study))
    table = pd.concat(found, ignore_index=True)
    varied = table[table.study != drivers.USUAL]["size"]
    return table[table["size"].isin(varied)].assign(panel=panel.title).reindex(columns=DRIVERS)


def write_overview() -> int:
    sizes = pd.concat(
        [read_study(study, measure) for study, _, measure, *_ in overview.FAMILIES], ignore_index=True
    )
    panels = pd.concat(map(read_panel, drivers.PANELS), ignore_index=True)
    folder = paths.root() / "figures" / "overview"
    for name, slide, table in (
        ("overview", overview.overview_figure(sizes), sizes),
        ("drivers", drivers.drivers_figure(panels), panels),
    ):
        print("\n".join(map(str, plots.save_figure(slide, table, folder, name))))
    return 0


if __name__ == "__main__":
    argparse.ArgumentParser(description=str(__doc__).partition("\n")[0]).parse_args()
    sys.exit(guarded(write_overview, "was written"))
