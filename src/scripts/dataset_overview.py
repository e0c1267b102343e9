"""Write the overview of a dataset as one HTML file; also of one that failed its validation.

python src/scripts/dataset_overview.py --dataset my_videos
"""

import argparse
import logging
from pathlib import Path

from worldtune.common.script import run
from worldtune.evaluate.notebook import execute_notebook
from worldtune.evaluate.places import dataset_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="name of the dataset")
    parser.add_argument("--output", type=Path, help="HTML file; default: results/datasets/NAME/overview.html")
    parser.add_argument("--root", default=Path(), type=Path, help="repository with datasets/; default: here")
    parser.add_argument("--notebook", default=Path("notebooks/dataset_overview.ipynb"), type=Path, help="the notebook")
    args = parser.parse_args()
    dataset_folder(args.root, args.dataset)
    output = args.output or args.root / "results" / "datasets" / args.dataset / "overview.html"
    execute_notebook(
        args.notebook, output, title=f"Dataset: {args.dataset}", root=args.root, parameters={"dataset": args.dataset}
    )
    logging.info("overview: %s", output)


if __name__ == "__main__":
    run(main)
