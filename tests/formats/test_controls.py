import numpy as np
import pytest

from worldtune.formats.controls import CONTROLS, FILE_CONTROLS


@pytest.mark.parametrize("kind", CONTROLS)
def test_every_kind_says_everything(kind):
    schema = CONTROLS[kind]
    texts = (schema.container, schema.dtype, schema.value_range, schema.sense, schema.invalid)
    assert all(texts)
    assert schema.kind == kind
    assert schema.has_file == (schema.origin != "in training") == (kind in FILE_CONTROLS)
    assert schema.num_frames
    assert schema.alignment


def test_the_sense_of_depth_is_said():
    assert "near is bright" in CONTROLS["depth"].sense
    assert np.unique(CONTROLS["edge"].levels).tolist() == [0, 255]
