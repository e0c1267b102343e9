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
    parser.add_argument("--run", required=True, help="recipe's name, or the original experiment's")
    arguments = parser.parse_args()
    name = recipe_path(arguments.run).stem
    targets = [f"results/{name}/model", f"results/{name}/report.html"]
    print(describe(planned_jobs(targets, Path())))


if __name__ == "__main__":
    run(main)
