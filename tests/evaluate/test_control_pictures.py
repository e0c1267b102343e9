from pathlib import Path

import numpy as np
import pytest
from fake_dataset import CONTROLS, FRAMES, HEIGHT, WIDTH, make_dataset

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import digest
from worldtune.dataset.clips import control_path
from worldtune.evaluate.control_pictures import BODY_COLOUR, HAND_COLOUR, colour_of, control_picture

CLIP = digest(0, 16)
SIZE = (WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("pictures"), num_usable=1)


@pytest.mark.parametrize("kind", CONTROLS)
def test_every_kind_gives_a_picture(folder: Path, kind: str) -> None:
    picture = control_picture(folder, CLIP, kind, FRAMES - 1, SIZE)
    assert picture.pixels.shape == (HEIGHT, WIDTH, 3)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.any()


def test_masks_are_coloured_and_named(folder: Path) -> None:
    picture = control_picture(folder, CLIP, "seg", 3, SIZE)
    assert tuple(picture.pixels[15, 40]) == colour_of(0)
    assert not picture.pixels[30, 40].any()
    # The other thing is in the first frame only.
    assert picture.legend == (("a <box>", colour_of(0)),)
    assert len({colour_of(number) for number in range(30)}) == 30


def test_keypoints_are_dots_where_they_are_sure(folder: Path) -> None:
    # The file counts its frames from 5 on.
    pixels = control_picture(folder, CLIP, "keypoint", 0, SIZE).pixels
    assert tuple(pixels[HEIGHT // 2, WIDTH // 4]) == BODY_COLOUR
    assert tuple(pixels[HEIGHT // 4, WIDTH // 2]) == HAND_COLOUR
    assert not pixels[HEIGHT // 2, 3 * WIDTH // 4].any()


@pytest.mark.parametrize("kind", ["seg", "keypoint"])
def test_a_damaged_file_is_named(folder: Path, kind: str) -> None:
    for content in (b"junk", b"N.", b"](K\x01e."):
        control_path(folder, "1" * 16, kind).write_bytes(content)
        with pytest.raises(WorldtuneError, match=f"{kind}/1111111111111111.pickle"):
            control_picture(folder, "1" * 16, kind, 0, SIZE)


def test_a_missing_file_and_a_missing_frame_are_errors(folder: Path) -> None:
    with pytest.raises(WorldtuneError, match=r"edge/0000.*\.mkv does not exist"):
        control_picture(folder, "0" * 16, "edge", 0, SIZE)
    for kind in CONTROLS:
        with pytest.raises(WorldtuneError, match="frame"):
            control_picture(folder, CLIP, kind, FRAMES + 7, SIZE)
