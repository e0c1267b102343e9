"""Count the memory and the disk that a run needs, and stop it where the recipe does not fit.

python src/scripts/estimate.py --run edge_posttrain --output results/edge_posttrain/estimate.json
"""

import argparse
import shutil
from pathlib import Path

from worldtune.common.files import write_json
from worldtune.common.script import run
from worldtune.recipe.capacity import capacity_report, capacity_values
from worldtune.recipe.identity import check_fingerprint
from worldtune.recipe.load import load_recipe, recipe_path


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the memory and the disk that a run needs.")
    parser.add_argument("--run", required=True, help="name of the recipe")
    parser.add_argument("--output", required=True, type=Path, help="JSON file to write, where the run's results lie")
    parser.add_argument("--expect", metavar="FINGERPRINT", help="refuse if the recipe's values are not these")
    args = parser.parse_args()
    recipe = load_recipe(args.run)
    check_fingerprint(args.expect, capacity_values(recipe), str(recipe_path(args.run)))
    folder = next(path for path in args.output.absolute().parents if path.is_dir())
    free = shutil.disk_usage(folder).free
    # Those of one attempt: another one's make no room.
    held = max((bytes_below(path) for path in args.output.parent.glob("attempts/*/checkpoints")), default=0)
    report = capacity_report(recipe, free_disk_bytes=free, held_bytes=held, results=str(args.output.parent))
    write_json(args.output, report)


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    run(main)
