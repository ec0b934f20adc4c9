"""Pack a study's evaluations, so that git can keep a large one: `python pack.py ladder`; --unpack undoes it.

Each finished `s0.json` becomes `s0.json.gz`, which everything here reads alike; seals are over content and
stay as they are. The same evaluation gives the same bytes. May be killed at any moment: every evaluation is
whole under one of its names, and the same command goes on from there.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from lib import files, merging, paths, store
from lib.errors import DamagedFile, MissingInput, StudyError
from lib.progress import Progress
from lib.tallies import Cell
from lib.terminal import guarded, heed_signals, locked


def find_evaluations(study: str) -> dict[Cell, Path]:
    """Every evaluation of a study by its plain name, packed or not."""
    cells = sorted(set(merging.find_cells(paths.results(study))))
    if not cells:
        raise MissingInput(f"no evaluation in {paths.results(study)}: is {study!r} the name of a study?")
    return {cell: paths.evaluation(study, *cell) for cell in cells}


def pack_one(study: str, cell: Cell, plain: Path) -> bool:
    """Pack one evaluation, checked first; False where it is packed already."""
    if not plain.exists():
        return False
    _, data = files.read_document(plain)
    store.check_seal(files.read_json(plain), plain)
    folder = paths.artifact(study, "evaluate", *cell)
    if (folder / store.BEGUN).exists() and store.read_manifest(folder) is None:
        raise StudyError(f"{plain} is not finished: run 03_evaluate to its end first")
    packed, target = files.pack(data), files.packed_name(plain)
    if files.unpack(packed, target) != data:
        raise DamagedFile(f"{target} would not unpack to {plain.name}; nothing was changed")
    files.write_bytes(target, packed)
    replace(plain, data)
    return True


def unpack_one(_study: str, _cell: Cell, plain: Path) -> bool:
    """Put one evaluation back as it was; False where it is plain already."""
    packed = files.packed_name(plain)
    if not packed.exists():
        return False
    _, data = files.read_document(plain)  # where both lie there: the plain one, once they agree
    if not plain.exists():
        files.write_bytes(plain, data)
    files.remove(packed)
    return True


def replace(path: Path, data: bytes) -> None:
    """Take a file away whose content is safe elsewhere; one that was written anew meanwhile stays."""
    if path.read_bytes() != data:
        raise StudyError(f"{path} was written anew while it was packed: pack again once nobody writes there")
    files.remove(path)


def measure(evaluations: dict[Cell, Path]) -> int:
    """Bytes of all evaluations as they lie there."""
    names = (each for plain in evaluations.values() for each in (plain, files.packed_name(plain)))
    return sum(each.stat().st_size for each in names if each.exists())


def run(study: str, work: Callable[[str, Cell, Path], bool], did: str) -> int:
    """Pack or unpack every evaluation; 1 where one cannot be, which stays as it is."""
    evaluations = find_evaluations(study)
    changed, problems = 0, []
    with locked(study):
        before = measure(evaluations)
        with Progress(f"evaluations {did}", len(evaluations)) as progress:
            for cell, plain in evaluations.items():
                try:
                    changed += work(study, cell, plain)
                except StudyError as error:
                    problems.append(str(error))
                progress.advance("/".join(plain.parts[-3:]))
        after = measure(evaluations)
    found = len(evaluations) - changed - len(problems)
    counts = f"{changed:,} {did}" + f", {found:,} were already" * (found > 0)
    print(f"{counts}: {before / 1e6:,.2f} MB before, {after / 1e6:,.2f} MB now")
    for problem in problems:
        print(f"\nNOT {did}: {problem}")
    return int(bool(problems))


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("study", help="the name of a study in results/")
    parser.add_argument("--unpack", action="store_true", help="back to plain JSON")
    asked = parser.parse_args()
    heed_signals()
    work, did = (unpack_one, "unpacked") if asked.unpack else (pack_one, "packed")
    return guarded(lambda: run(asked.study, work, did), f"was {did}")


if __name__ == "__main__":
    os.nice(5)
    sys.exit(main())
