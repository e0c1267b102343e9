import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
from worldtune.common.errors import WorldtuneError
from worldtune.common.script import run


def main() -> None:
    raise {error}


run(main)
"""


@pytest.mark.parametrize(
    ("error", "last", "has_traceback"),
    [('WorldtuneError("a key is missing.")', "error: a key is missing.", False), ("KeyError(3)", "KeyError: 3", True)],
)
def test_what_a_script_prints_ends_with_the_reason(error: str, last: str, has_traceback: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_ERROR_FILE"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(error=error)],
        env=environment | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == last
    assert ("Traceback" in done.stderr) == has_traceback


def test_every_rule_writes_a_log() -> None:
    for path in sorted((ROOT / "rules").glob("*.smk")):
        _, *blocks = re.split(r"^(?:rule|checkpoint) (?=\w+:)", path.read_text(), flags=re.MULTILINE)
        assert blocks or path.name == "common.smk"
        # A rule without a command only explains why it cannot run.
        for block in (block for block in blocks if "    shell:\n" in block):
            assert "    log:\n" in block, block.split(":")[0]
            assert "{log:q} 2>&1" in block, block.split(":")[0]
