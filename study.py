"""Run a whole study: `python study.py micro` takes params/micro.yaml from missing bases to its report.

This is the study's grid on this machine, as `python grid.py run micro --profile laptop` runs it, or its
analysis alone. Anything may be killed at any moment: the same command goes on from there.
"""

import argparse
import dataclasses
import os
import sys

import grid
from lib import planning, receipts, resources
from lib.errors import StudyError
from lib.planning import Job
from lib.terminal import guarded, heed_signals, locked
from workflow import job as worker


def run_report(study: str, results: str) -> int:
    """The analysis of the evaluations that are there, at each point of a study with further axes."""
    worker.write_points(study)
    for job in planning.list_jobs(study, resources.read_costs(study)):
        if job.stage == "analyse":
            analyse(dataclasses.replace(job, results=results))
    return 0


def analyse(job: Job) -> None:
    """Run the analysis and tell its answer. No receipt comes of it: evaluations may be missing."""
    with locked(job.study) as lock, receipts.locked(job) as own:
        print(f"study {job.study}: {job.notebook}", flush=True)
        worker.clear_log(job)
        if worker.run_notebook(job, {}, [lock, own]):
            log = os.path.relpath(worker.log_path(job))
            raise StudyError(f"{job.name} failed:\n  {worker.find_error(job)}\nits log is {log}")
        worker.export_report(job)
        grid.tell_report(job, worker.find_words(job))


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument(
        "study", nargs="?", default="micro", help="a file of params/, without .yaml (%(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, help="jobs at a time; without it one per core, published models one by one"
    )
    parser.add_argument("--report-only", action="store_true", help="analyse the evaluations that are there")
    parser.add_argument("--results", default="", help="a folder of published evaluations, to be reported on")
    asked = parser.parse_args()
    if asked.jobs is not None and asked.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {asked.jobs}")
    heed_signals()
    if asked.report_only or asked.results:
        folder = os.path.abspath(os.path.expanduser(asked.results)) if asked.results else ""
        return guarded(lambda: run_report(asked.study, folder), grid.KEPT)
    return guarded(
        lambda: grid.run_grid(grid.ask_grid(asked.study, profile="laptop", jobs=asked.jobs)), grid.KEPT
    )


if __name__ == "__main__":
    sys.exit(main())
