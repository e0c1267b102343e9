"""Names of rendered scenes: a dataset is listed by them, and a scene is drawn by the number in its name."""

from worldtune.common.errors import WorldtuneError

NAME_PREFIX = "scene_"


def scene_names(num_clips: int) -> list[str]:
    """Return the names of the first `num_clips` scenes."""
    return [f"{NAME_PREFIX}{number:04d}" for number in range(num_clips)]


def scene_number(name: str) -> int:
    """Return the number of a scene.

    Raises:
        WorldtuneError: the name is not one of `scene_names`.
    """
    digits = name.removeprefix(NAME_PREFIX)
    if digits == name or not digits.isdecimal():
        raise WorldtuneError(f"{name!r} names no scene; names look like {NAME_PREFIX}0007")
    return int(digits)
