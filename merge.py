"""Bring another machine's results of a study here: `python merge.py micro /mnt/other/subliminal-scaling`.

Evaluations, numbers and receipts come over, students with --students, and only where base, settings and
inputs agree with what is here. Nothing here is replaced; what does not fit is named, with what differs. May
be killed at any moment: the same command goes on from there.
"""

import argparse
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lib import bases, merging, paths
from lib.errors import BadParameter, StudyError
from lib.merging import LEFT, NEW, SAME, Verdict
from lib.terminal import guarded, locked

KINDS = (*merging.FOLDERS.values(), merging.RECEIPTS)


def find_base(label: str, recipe: str, revision: str) -> str:
    """The identity of a base that is on this machine; nothing where it is not."""
    with contextlib.suppress(StudyError):
        return bases.base_manifest(label, recipe or "standard", revision or bases.DEFAULT_REVISION).identity
    return ""


def check_source(study: str, source: Path) -> None:
    """The other folder is one, holds the study, and is not this one."""
    if not source.is_dir():
        raise BadParameter(f"there is no folder {source}")
    if source == paths.root():
        raise BadParameter(f"{source} is this very folder; name that of the other machine, or a copy of it")
    held = {folder: source / folder / study for folder in ("results", "artifacts")}
    if not any(each.is_dir() for each in held.values()):
        known = sorted({each.name for folder in held.values() for each in folder.parent.glob("*/")})
        raise BadParameter(
            f"{source} holds nothing of study {study}: neither results/{study} nor artifacts/{study}; "
            f"studies there: {', '.join(known) or 'none'}"
        )


def tell_verdicts(verdicts: Sequence[Verdict], dry_run: bool) -> None:
    """A line per kind, then what does not fit and what was left."""
    for kind in KINDS:
        counts = Counter(each.what for each in verdicts if each.kind == kind)
        words = {NEW: "to come over" if dry_run else "came over", SAME: "already here", LEFT: "left there"}
        parts = [f"{counts[what]} {words[what]}" for what in words if counts[what]]
        trouble = sum(each.is_trouble for each in verdicts if each.kind == kind)
        parts += [f"{trouble} DO NOT FIT"] * (trouble > 0)
        print(f"{kind:<12} {', '.join(parts) or 'none there'}")
    for why in dict.fromkeys(each.why for each in verdicts if each.what == LEFT):
        names = [each.name for each in verdicts if each.what == LEFT and each.why == why]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        print(f"\nleft there: {', '.join(names[:3])}{more}: {why}")
    for each in verdicts:
        if each.is_trouble:
            print(f"\n{each.name} {each.what}:\n  {each.why}")


def merge(study: str, source: Path, students: bool, dry_run: bool) -> int:
    """Judge everything, then take what fits; 1 where something does not."""
    check_source(study, source)
    with locked(study) if not dry_run else contextlib.nullcontext():
        print(f"study {study}: {source} into {paths.root()}{', nothing is written' * dry_run}", flush=True)
        here, there = (merging.find_pieces(root, study) for root in (paths.root(), source))
        verdicts = merging.judge(here, there, find_base, students)
        if not dry_run:
            verdicts = [merging.take(each) if each.what == NEW else each for each in verdicts]
        verdicts += merging.judge_receipts(study, here, there, verdicts)
        for verdict in verdicts:
            if verdict.receipt and verdict.what == NEW and not dry_run:
                merging.take_receipt(study, verdict.receipt)
    tell_verdicts(verdicts, dry_run)
    trouble = sum(each.is_trouble for each in verdicts)
    if trouble:
        rest = "the rest would come over" if dry_run else "all that fits is here"
        print(f"\n{trouble} of {len(verdicts)} do not fit and stay where they are; {rest}")
    elif not dry_run:
        python = os.path.relpath(sys.executable)
        print(f"\neverything fits; tables from all of it: {python} study.py {study} --report-only")
    return int(trouble > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("study", help="a file of params/, without .yaml")
    parser.add_argument(
        "source", metavar="from", help="the other machine's folder: what holds results/ and artifacts/"
    )
    parser.add_argument("--students", action="store_true", help="adapters too, which are large")
    parser.add_argument("--dry-run", action="store_true", help="say what would come over, and write nothing")
    asked = parser.parse_args()
    source = Path(asked.source).expanduser().resolve()
    return guarded(lambda: merge(asked.study, source, asked.students, asked.dry_run), "had come over")


if __name__ == "__main__":
    sys.exit(main())
