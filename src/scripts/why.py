"""Show what would run again for a run, and which value, file or code causes it.

python src/scripts/why.py --run edge_posttrain
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.recipe.load import recipe_path
from worldtune.workflow.why import describe, planned_jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="name of the recipe")
    arguments = parser.parse_args()
    recipe_path(arguments.run)
    targets = [f"results/{arguments.run}/model", f"results/{arguments.run}/report.html"]
    print(describe(planned_jobs(targets, Path())))


if __name__ == "__main__":
    run(main)
