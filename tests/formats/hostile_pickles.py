"""Pickles that do something, or stand for far more than they are; none may be followed."""

import functools
import os
import pickle
import struct

import numpy as np

CANARY = "canary"
"""File that appears where a pickle is obeyed."""
TWICE = b"2\x86"
"""Opcodes that put a pair of what lies on the stack in its place."""
THRICE = b"22\x87"


class _Call:
    """Pickles as a call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _array(shape: bytes, data: bytes, kind: str = "f2") -> bytes:
    """A pickle of one array with any shape over any bytes."""
    dtype = _global("numpy", "dtype") + _text(kind) + b"\x85R"
    return (
        b"\x80\x04" + _global("numpy._core.numeric", "_frombuffer") + b"(" + data + dtype + shape + _text("C") + b"tR."
    )


def _bytes(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


TOUCH = f"touch {CANARY}"
SHAPE = b"J" + struct.pack("<i", 2**31 - 1) + TWICE

HOSTILE_PICKLES: tuple[bytes, ...] = (
    *(pickle.dumps([_Call(os.system, TOUCH)], protocol=protocol) for protocol in range(6)),
    pickle.dumps(_Call(eval, f"open('{CANARY}', 'w')")),
    pickle.dumps(_Call(exec, f"open('{CANARY}', 'w')")),
    pickle.dumps({0: _Call(os.popen, TOUCH)}),
    b"(S'" + TOUCH.encode() + b"'\nios\nsystem\n.",
    _global("os", "system") + b"(" + _text(TOUCH) + b"tR.",
    _global("posix", "system") + b"(" + _text(TOUCH) + b"o.",
    _global("builtins", "getattr") + b"(" + _global("os", "system") + _text("__call__") + b"tR.",
    b"\x80\x04" + _text("os") + _text("system") + b"\x93" + _text(TOUCH) + b"\x85R.",
    b"\x80\x04" + _text("numpy") + _text("load") + b"\x93" + _text(CANARY) + b"\x85R.",
    _global("numpy", "fromfile") + b"(" + _text("/etc/passwd") + b"tR.",
    _global("numpy.testing._private.utils", "runstring") + b"(" + _text(f"open('{CANARY}','w')") + b"}tR.",
    _global("numpy", "A" * 1_000_000) + b".",
    _global("numpy", "dtype") + b"(" + _text("O") + b"tR.",
    pickle.dumps([np.array([_Call(os.system, TOUCH)], dtype=object)]),
    pickle.dumps([np.zeros(2, dtype=[("a", "f2")])]),
    pickle.dumps(functools.reduce(lambda inner, _: [inner, inner, inner], range(20), [])),
    pickle.dumps(functools.reduce(lambda inner, _: {0: inner, 1: inner}, range(40), {})),
    b"\x80\x02N" + THRICE * 40 + b".",
    b"\x80\x02}N" + TWICE * 60 + b"Ns.",
    b"\x80\x04\x8f(N" + TWICE * 60 + b"\x90.",
    b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    b"\x80\x02" + b"(" * 100_000 + b".",
    b"\x80\x02]\x94" + b"h\x00a" * 1000 + b".",
    b"\x80\x05\x96" + b"\xff" * 8 + b".",
    b"\x80\x05\x8e" + struct.pack("<Q", 1 << 40) + b".",
    b"\x80\x04\x8d" + struct.pack("<Q", (1 << 63) - 1) + b".",
    b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20) + b".",
    b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
    b"I" + b"9" * 100_000 + b"\n.",
    b"\x80\x04Pabc\n.",
    b"\x80\x02\x82\x01.",
    _array(SHAPE, _bytes(b"")),
    _array(b"K\x01" * 100 + b"(" + b"K\x01" * 100 + b"t", _bytes(b"\0\0")),
    _array(b"K\x01\x85", _bytes(b"\0" * 16), "c16"),
    _array(b"K\x01\x85", _bytes(b"\0" * 8), "O"),
    # Each call of the last two would make the same few bytes anew.
    b"\x80\x02]("
    + _text("x" * 100_000)
    + b"q\x00"
    + (_global("_codecs", "encode") + b"h\x00" + _text("latin1") + b"\x86R") * 40_000
    + b"e.",
    b"\x80\x05](\x96"
    + struct.pack("<Q", 200_000)
    + b"\0" * 200_000
    + b"q\x00"
    + _global("numpy", "dtype")
    + _text("f2")
    + b"\x85Rq\x01"
    + (_global("numpy._core.numeric", "_frombuffer") + b"(h\x00h\x01J\xa0\x86\x01\x00\x85" + _text("C") + b"tR")
    * 20_000
    + b"e.",
)
"""Bytes of each; what they hold is in no format."""

ODD_PICKLES: tuple[bytes, ...] = (
    b"\x80\x02]r\xff\xff\xff\xff.",
    b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    _array(b"K\x00J" + struct.pack("<i", 2**31 - 1) + b"\x86", _bytes(b"")),
)
"""They state large numbers of which nothing comes: a list, nothing, an array without elements."""
