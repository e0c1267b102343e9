"""Reading pickles of numpy arrays without running what they say.

A pickle is a program. The reader here knows only built-in containers, numbers, texts and plain numeric arrays. It never
calls numpy's own reconstruction code: it collects an array's type, shape and bytes, checks them, and builds the array.
"""

import io
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from worldtune.common.errors import WorldtuneError

DTYPES = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})
"""Element types that an array may have."""
MAX_CONTROL_BYTES = 1 << 30
"""Largest pickle of one clip's control that is read."""
MAX_SHARED_ITEMS = 1_000_000
"""Items that a pickle may unfold to where it has fewer bytes: one item may stand in many places."""


class _Ndarray:
    """Stands for the class numpy.ndarray; it is only passed around."""


class _Dtype:
    """Stands for a numpy.dtype while it is read."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or code not in DTYPES:
            # Not the code itself, which may be a tuple of tuples that takes for ever to write.
            name = code if isinstance(code, str) else type(code).__name__
            raise pickle.UnpicklingError(f"element type {name!r} is not admitted")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|"):
            raise pickle.UnpicklingError("an element type has an unknown state")
        self.order = state[1]

    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """Stands for an array while it is read; `value` is the array once its state is known."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array has an unknown state")
        _, shape, dtype, fortran, data = state
        self.value = _build(data, dtype, shape, "F" if fortran else "C")


def _build(data: object, dtype: object, shape: object, order: object) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray) or order not in ("C", "F"):
        raise pickle.UnpicklingError("an array has an unknown state")
    if not isinstance(shape, tuple) or not all(isinstance(side, int) and 0 <= side < 2**40 for side in shape):
        raise pickle.UnpicklingError("an array has a shape that is no tuple of sizes")
    # No copy: the same bytes may stand in many arrays.
    flat = np.frombuffer(data, dtype=dtype.numpy())
    return flat.reshape(shape, order="C" if order == "C" else "F")


def _reconstruct(kind: object, *_: object) -> _Array:
    if kind is not _Ndarray:
        raise pickle.UnpicklingError("an array has an unknown class")
    return _Array()


def _from_buffer(data: object, dtype: object, shape: object, order: object, axes: object = None) -> _Array:
    array = _Array()
    # Order K: `shape` is that of the bytes, and `axes` says which of them become the array's.
    array.value = _build(data, dtype, shape, "C" if order == "K" else order)
    if order == "K":
        if not isinstance(axes, tuple) or not all(isinstance(axis, int) for axis in axes):
            raise pickle.UnpicklingError("an array has an unknown state")
        array.value = array.value.transpose(axes)
    return array


def _no_bytes(*values: object) -> bytes:
    if values:
        raise pickle.UnpicklingError("bytes made of something else")
    return b""


def _scalar(dtype: object, data: object) -> bool | int | float:
    value: bool | int | float = _build(data, dtype, (1,), "C")[0].item()
    return value


GLOBALS: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    # Old protocols call it for empty bytes, those of an array without elements among them.
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}
"""Names that a pickle may ask for, and what it gets."""
ENCODE = ("_codecs", "encode")
"""The last one, by which old protocols write bytes."""
MAX_NUMBER_BITS = 64
"""Bits of a whole number; Python cannot even write very long ones in a message."""
MAX_STEPS = 32_000_000
"""Instructions of a pickle that are followed; an empty table takes one byte of a file and 72 of memory. A person of a
keypoint file has some 200."""
MAX_REASON = 200
"""Characters of what was found wrong in a file: it may name what is in the file, however long that is."""


class _Counted(dict[int, Any]):
    """A table of instructions that are counted as they are looked up."""

    def __init__(self, table: dict[int, Any]) -> None:
        super().__init__(table)
        self.left = MAX_STEPS

    def __getitem__(self, code: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"it has more than {MAX_STEPS} instructions")
        return super().__getitem__(code)


# The unpickler in Python, not the one in C: that one may allocate what a few bytes of the file ask for.
class _Reader(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    # typeshed does not know these.
    stack: list[Any]
    read: Callable[[int], bytes]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.dispatch = _Counted(type(self).dispatch)  # type: ignore[misc]
        self._globals = {**GLOBALS, ENCODE: self._latin1}
        self._encodable = len(data)

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in self._globals:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not admitted")
        return self._globals[module, name]

    def _latin1(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("bytes in an unknown encoding")
        # One text may be encoded many times, each time into new bytes; written out, all of them are in the file.
        self._encodable -= len(text)
        if self._encodable < 0:
            raise pickle.UnpicklingError("it encodes more bytes than it has")
        return text.encode("latin-1")

    def load_build(self) -> None:
        state = self.stack.pop()
        # The ordinary way would set attributes on anything, also on the functions in GLOBALS.
        if not isinstance(self.stack[-1], _Array | _Dtype):
            raise pickle.UnpicklingError("it sets the state of something that is no array")
        self.stack[-1].__setstate__(state)

    def load_bytearray8(self) -> None:
        # The ordinary way allocates the length before it sees whether there is so much data.
        length = int.from_bytes(self.read(8), "little")
        self.stack.append(bytearray(self.read(length)))

    # Tuples and sets are hashed with all that they hold, however often a few bytes make them hold it.
    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()  # type: ignore[misc]

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()  # type: ignore[misc]

    def load_set(self) -> None:
        raise pickle.UnpicklingError("it holds a set")

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch |= dict.fromkeys((pickle.EMPTY_SET[0], pickle.ADDITEMS[0], pickle.FROZENSET[0]), load_set)


def _check_keys(keys: Iterable[object]) -> None:
    for key in keys:
        if isinstance(key, tuple):
            raise pickle.UnpicklingError("a table has a tuple as a key")
        # The hash of a long number is computed anew each time.
        _check_number(key)


def _check_number(value: object) -> None:
    if isinstance(value, int) and value.bit_length() > MAX_NUMBER_BITS:
        raise pickle.UnpicklingError(f"it holds a whole number of more than {MAX_NUMBER_BITS} bits")


def _resolve(value: object, budget: Iterator[int], depth: int = 0) -> object:
    """Replace each _Array by its array; refuse what is no plain data, or unfolds to more items than `budget` has."""
    if depth > 16:
        raise pickle.UnpicklingError("it is nested too deeply")
    if next(budget, None) is None:
        raise pickle.UnpicklingError("it unfolds to too many items")
    if isinstance(value, _Array):
        if value.value is None:
            raise pickle.UnpicklingError("an array has no content")
        return value.value
    if value is None or isinstance(value, bool | int | float | str | bytes):
        _check_number(value)
        return value
    if isinstance(value, list | tuple):
        return type(value)(_resolve(item, budget, depth + 1) for item in value)
    if isinstance(value, dict):
        return {_resolve(key, budget, depth + 1): _resolve(item, budget, depth + 1) for key, item in value.items()}
    raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")


def read_pickle(path: Path, max_bytes: int) -> Any:
    """Return the content of a pickle: containers, numbers, texts and numeric arrays; nothing in it is executed.

    Raises:
        WorldtuneError: the file is larger than `max_bytes`, is damaged, or asks for anything else.
    """
    path = Path(path)
    try:
        # One byte more than is admitted shows a file that is too large, whatever its size is a moment later.
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise WorldtuneError(f"{path} cannot be read ({error.strerror}). Run the rule that makes it.") from error
    if len(data) > max_bytes:
        raise WorldtuneError(f"{path} is larger than the {max_bytes} bytes admitted here. Look at where it came from.")
    try:
        # Every item that is written out takes a byte at least.
        return _resolve(_Reader(data).load(), iter(range(max(len(data), MAX_SHARED_ITEMS))))
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        NotImplementedError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        reason = (str(error) or type(error).__name__)[:MAX_REASON]
        raise WorldtuneError(f"{path} is no pickle of plain arrays: {reason}. Delete it and make it again.") from error
