import contextlib
import functools
import os
import pickle
import pickletools
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import worldtune.formats.pickles as pickles
from worldtune.common.errors import WorldtuneError
from worldtune.dataset.text import read_t5, write_t5
from worldtune.formats.pickles import read_pickle

TOKENS = np.random.default_rng(0).standard_normal((7, 16)).astype(np.float16)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("pickles") / "a.pickle"


@pytest.mark.parametrize("suffix", [".pickle", ".safetensors"])
def test_round_trip_with_padding(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_t5(path, TOKENS)
    read = read_t5(path, 10, 16)
    assert read.dtype == np.float32
    assert read.shape == (10, 16)
    assert np.array_equal(read[:7], TOKENS)
    assert not read[7:].any()


def test_file_is_the_original_format(tmp_path):
    write_t5(tmp_path / "a.pickle", TOKENS.astype(np.float32))
    with open(tmp_path / "a.pickle", "rb") as stream:
        value = pickle.load(stream)  # noqa: S301 - written one line above
    assert isinstance(value, list)
    assert len(value) == 1
    assert value[0].dtype == np.float16
    assert np.array_equal(value[0], TOKENS)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [
        TOKENS,
        np.asfortranarray(TOKENS),
        TOKENS.astype(">f2"),
        TOKENS[:, ::2],
        TOKENS.astype("f8"),
        TOKENS.reshape(7, 2, 8).transpose(1, 2, 0),
        TOKENS[:0],
    ],
    ids=["plain", "fortran", "big endian", "strided", "float64", "axes in another order", "empty"],
)
def test_whatever_numpy_writes_is_read(file, protocol, array):
    file.write_bytes(pickle.dumps([array], protocol=protocol))
    (read,) = read_pickle(file, 10**6)
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)


def test_a_pickle_of_very_many_instructions_is_refused(monkeypatch, file):
    # Each empty table takes one byte of the file, and much more memory.
    file.write_bytes(b"\x80\x02" + 1000 * b"}" + b".")
    assert read_pickle(file, 10**6) == {}
    monkeypatch.setattr(pickles, "MAX_STEPS", 500)
    with pytest.raises(WorldtuneError, match="more than 500 instructions"):
        read_pickle(file, 10**6)


@pytest.mark.parametrize("protocol", range(6))
def test_contents_of_keypoint_files_are_read(file, protocol):
    content = {np.int64(0): [{"points": TOKENS, "box": np.arange(4, dtype=np.int16)}], 1: [], "name": ("x", 1.5, None)}
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_pickle(file, 10**6)
    assert list(read) == [0, 1, "name"]
    assert np.array_equal(read[0][0]["points"], TOKENS)
    assert read["name"] == ("x", 1.5, None)


class Command:
    def __reduce__(self):
        return os.system, ("touch executed",)


def build_on_a_global(module: str, name: str) -> bytes:
    """A pickle that sets an attribute on a name that the reader admits."""
    return b"c" + f"{module}\n{name}\n".encode() + b"}X\x01\x00\x00\x00aK\x01s" + b"b."


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps([Command()]),
        pickle.dumps(eval),
        pickle.dumps([np.array([Command()], dtype=object)]),
        pickle.dumps([np.zeros(3, dtype=[("a", "f2")])]),
        pickle.dumps([np.array(["text"])]),
        pickle.dumps({1, 2}),
        pickle.dumps(zlib.crc32),
        build_on_a_global("numpy.core.multiarray", "_reconstruct"),
        build_on_a_global("numpy", "dtype"),
        build_on_a_global("numpy", "ndarray"),
        b"cnumpy\nload\n(X\x01\x00\x00\x00atR.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",
        b"\x80\x04r\xff\xff\xff\xff.",
        b"",
        b".",
        b"K\x01",
    ],
)
def test_anything_else_is_refused_and_not_executed(file, monkeypatch, data):
    monkeypatch.chdir(file.parent)
    file.write_bytes(data)
    with pytest.raises(WorldtuneError, match=r"a\.pickle is no pickle of plain arrays"):
        read_pickle(file, 10**6)
    assert not (file.parent / "executed").exists()


TWICE = b"2\x86"
"""Opcodes that put a pair of what lies on the stack in its place."""
THRICE = b"22\x87"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(functools.reduce(lambda inner, _: [inner, inner, inner], range(15), [])), "items"),
        (b"\x80\x02N" + THRICE * 15 + b".", "items"),
        (b"\x80\x02}N" + TWICE * 60 + b"Ns.", "key"),
        (b"\x80\x02}(N" + TWICE * 60 + b"Nu.", "key"),
        (b"\x80\x02(N" + TWICE * 60 + b"\x4ed.", "key"),
        (b"\x80\x04\x8f(N" + TWICE * 60 + b"\x90.", "set"),
        (b"\x80\x04(N" + TWICE * 60 + b"\x91.", "set"),
        (b"\x80\x02cnumpy\ndtype\nN" + TWICE * 60 + b"\x85R.", "element type"),
        (
            b"\x80\x02cnumpy.core.numeric\n_frombuffer\n(C\x00cnumpy\ndtype\nX\x02\x00\x00\x00f2\x85RN"
            + TWICE * 60
            + b"X\x01\x00\x00\x00CtR.",
            "shape",
        ),
    ],
    ids=["lists", "tuples", "key", "keys", "table", "set", "frozen set", "element type", "shape"],
)
def test_few_bytes_that_stand_for_many_items_are_refused(file, data, message):
    file.write_bytes(data)
    # Followed to their end they would take years; the first two, minutes.
    with pytest.raises(WorldtuneError, match=rf"a\.pickle is no pickle of plain arrays.*{message}"):
        read_pickle(file, 10**6)


def test_content_that_is_shared_is_read(file):
    people = [{"points": TOKENS}]
    file.write_bytes(pickle.dumps(dict.fromkeys(range(1000), people)))
    read = read_pickle(file, 10**6)
    assert len(read) == 1000
    assert np.array_equal(read[999][0]["points"], TOKENS)


def test_array_larger_than_its_bytes_is_refused(file):
    data = pickle.dumps(TOKENS, protocol=2)
    assert b"K\x07K\x10\x86" in data
    file.write_bytes(data.replace(b"K\x07K\x10\x86", b"K\xffK\xff\x86"))
    with pytest.raises(WorldtuneError, match="cannot reshape"):
        read_pickle(file, 10**6)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_raise_only_our_error(file, data):
    raw = bytearray(pickle.dumps([TOKENS[:2, :3]], protocol=data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    with contextlib.suppress(WorldtuneError):
        read_t5(file, 16, 3)


OPCODES = st.sampled_from([opcode.code.encode("latin-1") for opcode in pickletools.opcodes])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(OPCODES, st.binary(max_size=6)), max_size=40))
def test_arbitrary_programs_raise_only_our_error(file, parts):
    file.write_bytes(b"\x80\x04" + b"".join(parts) + b".")
    with contextlib.suppress(WorldtuneError):
        read_pickle(file, 4096)


def test_too_large_files_are_not_read(file):
    file.write_bytes(pickle.dumps([np.zeros((100, 100))]))
    with pytest.raises(WorldtuneError, match="larger than"):
        read_pickle(file, 1000)


@pytest.mark.parametrize(
    "value",
    [
        [TOKENS, TOKENS],
        [],
        [TOKENS[0]],
        [TOKENS.astype(np.int32)],
        [TOKENS[:0]],
        [np.full((2, 16), np.nan, np.float16)],
        [TOKENS[:, :8]],
        [np.zeros((11, 16), np.float16)],
        {"embeddings": TOKENS},
    ],
    ids=["two", "none", "one axis", "integers", "empty", "nan", "narrow", "long", "table"],
)
def test_embeddings_of_another_form_are_refused(file, value):
    file.write_bytes(pickle.dumps(value))
    with pytest.raises(WorldtuneError, match=r"a\.pickle"):
        read_t5(file, 10, 16)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(WorldtuneError, match=r"none\.pickle"):
        read_t5(tmp_path / "none.pickle", 10, 16)
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(WorldtuneError, match=r"a\.safetensors"):
        read_t5(tmp_path / "a.safetensors", 10, 16)


def test_a_type_that_numpy_does_not_know_is_named(tmp_path):
    # Two bfloat16 numbers as the format has them: the header's length, the header, the numbers.
    header = b'{"t5_xxl":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(WorldtuneError, match=r"a\.safetensors holds a tensor of type BF16; expected F16"):
        read_t5(tmp_path / "a.safetensors", 10, 2)


def test_values_beyond_float16_are_not_written(tmp_path):
    with pytest.raises(WorldtuneError, match="not finite"), np.errstate(over="ignore"):
        write_t5(tmp_path / "a.pickle", np.full((1, 4), 1e6))
    assert not any(tmp_path.iterdir())
