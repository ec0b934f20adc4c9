"""Publish a study on the Hugging Face Hub: `python publish.py smollm2 --dry-run` shows what would be sent.

What 06_publish does for one size, for every size of a study in turn. The token is that of HF_TOKEN or of
`hf auth login`. Any run may be ended at any moment: the same command goes on from there.
"""

import argparse
import sys

from lib import config, hub, paths, planning
from lib.errors import BadParameter
from lib.terminal import guarded


def read_plans(asked: argparse.Namespace) -> list[config.Plan]:
    """One plan per size of the study's file, its animals and seeds."""
    study = config.study_overrides(asked.study)
    if not paths.params_file(asked.study).is_file():
        known = sorted(path.stem for path in paths.params_file(asked.study).parent.glob("*.yaml"))
        raise BadParameter(
            f"no study {asked.study!r}: there is no params/{asked.study}.yaml; studies here: "
            f"{', '.join(known)}{config.suggest(asked.study, known)}"
        )
    sizes = asked.sizes or str(study.get("sizes", ""))
    if not sizes:
        raise BadParameter(f"params/{asked.study}.yaml names no sizes; say which with --sizes")
    given = {"study": asked.study, "animal": "all", "seed": "all", "private": not asked.public}
    given |= {name: getattr(asked, name) for name in ("what", "raw", "namespace", "wait", "dry_run")}
    return [read_plan(given | {"size": base.label}) for base in config.expand_sizes(sizes)]


def read_plan(given: dict[str, object]) -> config.Plan:
    """As the notebook would read it: what is given here goes before the study's file, as with papermill."""
    passed = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in given.items())
    return config.read_parameters(
        config.Publish, planning.read_defaults("06_publish") | given | {"In": [passed]}
    )


def publish(plans: list[config.Plan]) -> int:
    """All sizes; the plans of all are made, and refused where they must be, before anything is sent."""
    publications: list[hub.Publication] = []
    planned: set[str] = set()
    for plan in plans:
        caller = publications[0].caller if publications else None
        publication = hub.plan_publication(plan, caller)
        # The evaluations of a study are one repository, whatever the size.
        new = [each for each in publication.repositories if f"{each.kind} {each.id}" not in planned]
        publication.repositories = new
        planned |= {f"{each.kind} {each.id}" for each in new}
        publications.append(publication)
        print(publication, flush=True)
    for publication in publications:
        print(hub.publish(publication), flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument(
        "study", nargs="?", default="micro", help="a file of params/, without .yaml (%(default)s)"
    )
    parser.add_argument("--sizes", default="", help="a comma list; otherwise the study's own")
    parser.add_argument(
        "--what", default=",".join(config.PUBLISHED), help="a comma list of these: %(default)s"
    )
    parser.add_argument("--raw", action="store_true", help="rejected lists too")
    parser.add_argument("--namespace", default="", help="user or organisation; otherwise the token's user")
    parser.add_argument("--public", action="store_true", help="for everybody to see; otherwise private")
    parser.add_argument(
        "--wait", action="store_true", help="at a daily limit sleep and go on, instead of ending"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan, send nothing")
    asked = parser.parse_args()
    return guarded(lambda: publish(read_plans(asked)), "was sent")


if __name__ == "__main__":
    sys.exit(main())
