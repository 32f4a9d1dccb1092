"""Arrays as `.npy` members: written by precompute, read in place by the loader, never pickled."""

import ast
import functools
import io
import re
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.border import FormatError
from loader.printable import printable

LONGEST_HEADER = 4096
_ODD = (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError, OverflowError)
PLAIN = re.compile(
    rb"\{'descr': '([<>|=]?[a-zA-Z]\d+)', 'fortran_order': (True|False), "
    rb"'shape': \((\d*,?|\d+(?:, \d+)+)\), \}\s*"
)


@functools.lru_cache(maxsize=4096)
def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Header of a version 1.0, C-ordered, little-endian `.npy` file; its length is a multiple of 64 bytes."""
    out = io.BytesIO()
    descr = np.dtype(dtype).newbyteorder("<").str
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()


def npy_parts(array: npt.NDArray[Any]) -> tuple[bytes, memoryview]:
    """Header and data of a `.npy` file that `numpy.load(..., allow_pickle=False)` opens. Nothing is copied, if it is
    contiguous."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return npy_header(little.dtype.str, array.shape), little.reshape(-1).view(np.uint8).data


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """The array as a `.npy` file, whole."""
    return b"".join(npy_parts(array))


def _read_plain(header: bytes) -> dict[str, Any] | None:
    """Read a header as numpy writes it; None of any other. Threads of some Pythons must not build syntax trees at once."""
    found = PLAIN.fullmatch(header)
    if found is None:
        return None
    shape = tuple(int(number) for number in found[3].split(b",") if number.strip())
    return {"descr": found[1].decode(), "fortran_order": found[2] == b"True", "shape": shape}


@functools.lru_cache(maxsize=4096)
def _parse_npy_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    meta = _read_plain(header) or ast.literal_eval(header.decode("latin1"))
    dtype, shape = np.dtype(meta["descr"]), meta["shape"]
    plain = not dtype.hasobject and dtype.itemsize > 0 and isinstance(shape, tuple) and len(shape) <= 8
    if not plain or not all(type(n) is int and 0 <= n < 1 << 31 for n in shape):
        raise ValueError(f"dtype {dtype}, shape of {len(shape)} axes")
    return dtype, shape, bool(meta["fortran_order"])


def parse_npy(buffer: bytes | memoryview) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """dtype, shape and byte offset of the data in a `.npy` file, without unpickling or copying anything.

    Raises FormatError unless it is version 1.0, C-ordered, of a plain dtype, and exactly as long as its header says.
    """
    dtype, shape, start, fortran = _parse(buffer)
    if fortran:
        raise FormatError("a .npy in Fortran order")
    return dtype, shape, start


def stored_dtype(name: str) -> str:
    """dtype of the `.npy` members of a field: numpy has no bfloat16, whose bits are stored as uint16."""
    return "uint16" if name == "bfloat16" else name


def bits16(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float16]:
    """A member of a field of this dtype in 16 bits a value, which are typed float16 even where they are of bfloat16.

    Raises FormatError for another dtype.
    """
    if dtype == "bfloat16" and array.dtype == np.uint16:
        return array.view(np.float16)
    if dtype == "bfloat16" or array.dtype.kind != "f":
        raise FormatError(
            f"of dtype {array.dtype}, not {'float' if dtype != 'bfloat16' else stored_dtype(dtype)}"
        )
    return array.astype(np.float16)


def as_numbers(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """A member of a field of this dtype as numbers that numpy knows: float32 where the field is bfloat16."""
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else array


def npy_array(buffer: bytearray | bytes | memoryview) -> npt.NDArray[Any]:
    """The array of a `.npy` file, of either order, in the buffer's memory. Raises FormatError as `parse_npy`."""
    dtype, shape, start, fortran = _parse(memoryview(buffer))
    return np.frombuffer(buffer, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


def _parse(buffer: bytes | memoryview) -> tuple[np.dtype[Any], tuple[int, ...], int, bool]:
    if bytes(buffer[:8]) != b"\x93NUMPY\x01\x00":
        raise FormatError("not a version 1.0 .npy file")
    start = 10 + int.from_bytes(buffer[8:10], "little")
    if start > LONGEST_HEADER:
        raise FormatError(f"a .npy header of {start} bytes")
    try:
        dtype, shape, fortran = _parse_npy_header(bytes(buffer[10:start]))
    except _ODD as error:
        raise FormatError(f"unreadable .npy header: {printable(error)}") from error
    size = start + prod(shape) * dtype.itemsize
    if len(buffer) != size:
        raise FormatError(f".npy of {printable(dtype)} {shape} holds {len(buffer)} bytes, not {size}")
    return dtype, shape, start, fortran
