"""Write the comparison of two or more runs as one HTML file; the first is the one that the others are compared with.

python src/scripts/comparison.py --runs first second --output results/comparisons/first+second.html
"""

import argparse
import logging
from pathlib import Path

from worldtune.common.errors import WorldtuneError
from worldtune.common.script import run
from worldtune.evaluate.notebook import execute_notebook
from worldtune.evaluate.places import check_runs, run_folder
from worldtune.training.manifest import read_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", required=True, nargs="+", help="names of the runs")
    parser.add_argument("--output", type=Path, help="HTML file; default: results/comparisons/RUN+RUN.html")
    parser.add_argument("--root", default=Path(), type=Path, help="repository with results/; default: here")
    parser.add_argument("--notebook", default=Path("notebooks/run_comparison.ipynb"), type=Path, help="the notebook")
    parser.add_argument(
        "--expect-trained", nargs="+", metavar="FINGERPRINT", help="refuse if other values were trained with; one a run"
    )
    args = parser.parse_args()
    folders = [run_folder(args.root, name) for name in args.runs]
    check_runs(args.runs, args.runs)
    expected = args.expect_trained or [None] * len(args.runs)
    if len(expected) != len(args.runs):
        raise WorldtuneError(f"--expect-trained needs one fingerprint a run: {len(args.runs)}, not {len(expected)}.")
    for folder, fingerprint in zip(folders, expected, strict=True):
        read_manifest(folder, fingerprint)
    output = args.output or args.root / "results" / "comparisons" / f"{'+'.join(args.runs)}.html"
    title = f"Comparison: {', '.join(args.runs)}"
    execute_notebook(args.notebook, output, title=title, root=args.root, parameters={"runs": args.runs})
    logging.info("comparison: %s", output)


if __name__ == "__main__":
    run(main)
