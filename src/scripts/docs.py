"""Generate config/README.md and the graph in README.md, or check that they are current.

python src/scripts/docs.py [--check]
"""

import argparse
from pathlib import Path

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import write_text
from worldtune.common.script import run
from worldtune.workflow.docs import config_readme, readme


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail where a file is not current instead of writing it")
    arguments = parser.parse_args()
    root = Path()
    texts = {
        root / "config/README.md": config_readme(root),
        root / "README.md": readme(root),
    }
    for path, text in texts.items():
        if arguments.check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            raise WorldtuneError(f"{path} is not what its sources give; run `make docs` and commit the result.")
        if not arguments.check:
            write_text(path, text)


if __name__ == "__main__":
    run(main)
