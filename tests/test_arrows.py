"""The rooms of the library stand on each other in one direction."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "src/worldtune"
ARROWS: dict[str, set[str]] = {
    "common": set(),
    "formats": {"common"},
    "media": {"common"},
    "parallel": {"common"},
    "kernels": {"common"},
    "recipe": {"common"},
    "controls": {"common", "formats", "media", "recipe"},
    "checkpoint": {"common", "parallel"},
    "annotate": {"checkpoint", "common", "formats", "media"},
    "dataset": {"annotate", "common", "controls", "formats", "media", "recipe"},
    "training": {"checkpoint", "common", "dataset", "parallel", "recipe"},
    "transfer1": {
        *("checkpoint", "common", "controls", "dataset", "kernels", "media", "parallel", "recipe", "training"),
    },
    "demo": {
        *("annotate", "checkpoint", "common", "dataset", "formats", "media", "recipe", "training", "transfer1"),
    },
    "evaluate": {"common", "dataset", "formats", "media", "recipe", "training"},
    "workflow": {"common", "dataset", "formats", "recipe", "training"},
}
"""Room -> the rooms that its modules import, at their head or within a function."""


def imported_rooms(path: Path) -> set[str]:
    """The rooms of the library that a module imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            # "from worldtune import room" names the room last.
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "worldtune" and len(part) > 1}


def test_rooms_import_only_what_they_stand_on() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    wrong = []
    for path in sorted(LIBRARY.rglob("*.py")):
        room = path.relative_to(LIBRARY).parts[0]
        rooms = imported_rooms(path) - {room}
        if room.endswith(".py"):
            assert not rooms, f"{path} imports {rooms}; only rooms hold code"
            continue
        found[room] |= rooms
        wrong += [f"{path.relative_to(LIBRARY)} -> {other}" for other in sorted(rooms - ARROWS.get(room, set()))]
    advice = "move what both need into a room below, or draw the arrow in ARROWS"
    assert not wrong, f"imports against the arrows ({advice}): {', '.join(wrong)}"
    # An arrow that nothing uses any more is removed, so that nothing grows along it unseen.
    assert found == ARROWS


def test_no_arrows_lead_in_a_circle() -> None:
    TopologicalSorter(ARROWS).prepare()
