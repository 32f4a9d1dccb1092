"""`null_caption.npz`, the empty caption's arrays by field name: read within bounds, whoever wrote it, and never unpickled."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.border import FormatError
from loader.field_names import further_kind
from loader.format import Field
from loader.npy import as_numbers, npy_array, stored_dtype
from loader.printable import printable

MOST_TOKENS = 8192  # of an empty caption: no encoder pads further
_HEADER = 4096  # bytes
_ODD = (zipfile.BadZipFile, KeyError, EOFError, zlib.error, struct.error, ValueError, RuntimeError, OSError)


def is_text(field: Field) -> bool:
    """Whether the empty caption has an array for this field."""
    return field.kind.startswith("caption") and not further_kind(field.name)


def read_null_caption(data: bytes, fields: Iterable[Field]) -> dict[str, npt.NDArray[Any]]:
    """The array of each field, of its shape: floats, or the bits of bfloat16. Raises FormatError, which says what is wrong."""
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for field in fields:
                info = archive.getinfo(f"{field.name}.npy")
                most = _HEADER + 8 * prod(n or MOST_TOKENS for n in field.shape)
                if info.file_size > most:
                    raise FormatError(f"{field.name} has {info.file_size} bytes, at most {most} are expected")
                with archive.open(info) as member:
                    arrays[field.name] = _fitting(npy_array(member.read(most)), field)
    except FormatError:
        raise
    except _ODD as error:
        raise FormatError(f"unreadable: {printable(error)}") from error
    return arrays


def _fitting(array: npt.NDArray[Any], field: Field) -> npt.NDArray[Any]:
    fits = len(array.shape) == len(field.shape) and all(
        n in (None, m) for n, m in zip(field.shape, array.shape, strict=True)
    )
    bits = field.dtype == "bfloat16" and array.dtype == np.uint16
    if not fits or (array.dtype.kind != "f" and not bits):
        raise FormatError(f"{field.name} is {array.dtype} of shape {array.shape}, not {field.shape}")
    return array


def null_caption_fault(data: bytes, fields: Iterable[Field]) -> str:
    """What is wrong with the file as what precompute writes for these fields, or nothing."""
    wanted = [field for field in fields if is_text(field)]
    try:
        arrays = read_null_caption(data, wanted)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            strangers = set(archive.namelist()) - {f"{field.name}.npy" for field in wanted}
    except FormatError as error:
        return str(error)
    if strangers:
        return f"it has {printable(', '.join(sorted(strangers)))}, which is no field of the shards"
    for field in wanted:
        array = arrays[field.name]
        if array.dtype.name != (wanted_dtype := stored_dtype(field.dtype)):
            return f"{field.name} is {array.dtype}, not {wanted_dtype}"
        array = as_numbers(array, field.dtype)
        if not np.isfinite(array).all():
            return f"{field.name} has values that are not finite"
        if array.size and not array.any():
            return f"{field.name} is all zeros"
    return ""
