"""Write the report of a run as one HTML file.

python src/scripts/report.py --run demo_edge_posttrain --output results/demo_edge_posttrain/report.html
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.evaluate.notebook import execute_notebook
from worldtune.evaluate.places import run_folder
from worldtune.training.manifest import read_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--output", required=True, type=Path, help="HTML file to write")
    parser.add_argument(
        "--root", default=Path(), type=Path, help="repository with results/ and datasets/; default: here"
    )
    parser.add_argument("--notebook", default=Path("notebooks/run_report.ipynb"), type=Path, help="the notebook")
    parser.add_argument("--expect-trained", metavar="FINGERPRINT", help="refuse if other values were trained with")
    args = parser.parse_args()
    read_manifest(run_folder(args.root, args.run), args.expect_trained)
    execute_notebook(
        args.notebook, args.output, title=f"Run report: {args.run}", root=args.root, parameters={"run": args.run}
    )


if __name__ == "__main__":
    run(main)
