"""Upload the export of a run to the model hub; without --yes it only shows what would be sent.

python src/scripts/push.py --run demo_edge_posttrain --repo organization/name
python src/scripts/push.py --run demo_edge_posttrain --repo organization/name --yes
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.evaluate.places import check_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--repo", help="organization/name; default: the run's name in the account of the token")
    parser.add_argument("--yes", action="store_true", help="upload")
    parser.add_argument("--public", action="store_true", help="a repository that is made can be seen by everybody")
    parser.add_argument("--results", default=Path("results"), type=Path, help="folder of the runs")
    arguments = parser.parse_args()
    from worldtune.checkpoint.push import plan_push, push
    from worldtune.common.hub import Hub

    check_name(arguments.run, (path.parent.name for path in arguments.results.glob("*/model")), "run", "results/")
    plan = plan_push(arguments.results / arguments.run, arguments.repo or None)
    print(plan.describe())
    if arguments.yes:
        print(f"pushed: {push(plan, hub=Hub(), private=not arguments.public)}")
    else:
        print("\nnothing was sent; YES=1 (--yes) uploads")


if __name__ == "__main__":
    run(main)
