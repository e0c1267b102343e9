"""A stage's code and its VERSION are pinned together, so that a change of the code is a decision about re-running it.

python tests/workflow/test_stage_versions.py      # records the present digests, once VERSION has been decided on
"""

import json
from pathlib import Path

from worldtune.common.versions import code_digest, stage_version
from worldtune.dataset.parameters import STAGE_MODULES

PINNED = Path(__file__).with_name("stage_versions.json")
MODULES = sorted(
    {*STAGE_MODULES.values(), "demo/checkpoints.py", "checkpoint/splitting.py", "training/trainer.py"}
    | {"transfer1/export.py", "evaluate/report.py"}
)


def present() -> dict[str, dict[str, object]]:
    return {module: {"version": stage_version(module), "code": code_digest(module)} for module in MODULES}


def test_code_and_version_are_as_recorded() -> None:
    recorded = json.loads(PINNED.read_text())
    now = present()
    assert sorted(recorded) == sorted(now)
    changed = [module for module in now if recorded[module] != now[module]]
    assert not changed, (
        f"{', '.join(changed)} changed. If its results change, raise its VERSION, which runs the stage again for "
        f"everybody. Then run `python {Path(__file__).name}` in tests/workflow and commit stage_versions.json."
    )


def test_docstrings_and_comments_do_not_count(tmp_path: Path) -> None:
    source = '"""Old."""\n# old\nVERSION = 1\n\ndef f():\n    """Old."""\n    return 1\n'
    same = '"""New."""\nVERSION = 2\n\n\ndef f():\n    # new\n    return 1\n'
    other = '"""Old."""\nVERSION = 1\n\ndef f():\n    return 2\n'
    digests = []
    for text in (source, same, other):
        path = tmp_path / "module.py"
        path.write_text(text)
        digests.append(code_digest(str(path)))
    assert digests[0] == digests[1] != digests[2]


if __name__ == "__main__":
    PINNED.write_text(json.dumps(present(), indent=1, sort_keys=True) + "\n")
