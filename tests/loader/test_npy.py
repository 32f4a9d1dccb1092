"""Values of `.npy` members, bfloat16's above all, against numpy and torch."""

import io

import numpy as np
import pytest
import torch

from loader.border import FormatError
from loader.npy import as_numbers, bits16, npy_array, npy_bytes, stored_dtype


def bfloat16() -> tuple[torch.Tensor, np.ndarray]:
    """Values as torch has them, and their bits as a tar has them."""
    values = torch.tensor([0.0, -0.0, 1.0, -1.5, 3e38, 1e-38, float("inf")], dtype=torch.bfloat16)
    return values, values.view(torch.int16).numpy().view(np.uint16)


def test_bits_of_bfloat16_become_torchs_numbers() -> None:
    values, bits = bfloat16()
    assert bits.dtype == stored_dtype("bfloat16")
    numbers = as_numbers(npy_array(npy_bytes(bits)), "bfloat16")
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers, values.float().numpy())
    taken = torch.from_numpy(bits16(bits, "bfloat16").view(np.int16).copy()).view(torch.bfloat16)
    assert torch.equal(taken.view(torch.int16), values.view(torch.int16))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_other_floats_are_the_numbers_that_they_are(dtype: str) -> None:
    array = np.array([0.5, -2.0, 65504.0], dtype)
    assert stored_dtype(dtype) == dtype
    assert as_numbers(array, dtype) is array
    found = bits16(array, "float16")
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("stored", "field", "expected"),
    [
        ("float16", "bfloat16", "of dtype float16, not uint16"),
        ("uint16", "float16", "of dtype uint16, not float"),
        ("int64", "float16", "of dtype int64, not float"),
        ("int16", "bfloat16", "of dtype int16, not uint16"),
    ],
)
def test_a_member_of_another_dtype_is_told(stored: str, field: str, expected: str) -> None:
    with pytest.raises(FormatError, match=expected):
        bits16(np.zeros(3, stored), field)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_arrays_of_either_order_come_back(order: str, byteorder: str) -> None:
    array = np.asarray(np.arange(12).reshape(3, 4), f"{byteorder}f4", order=order)  # type: ignore[call-overload]
    np.testing.assert_array_equal(np.load(io.BytesIO(npy_bytes(array)), allow_pickle=False), array)
    theirs = io.BytesIO()
    np.save(theirs, array)
    np.testing.assert_array_equal(npy_array(theirs.getvalue()), array)


def test_a_header_beyond_all_measure_is_refused() -> None:
    for length in (4096 - 10, 4096 - 9):
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }".ljust(length - 1) + b"\n"
        data = b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + header + bytes(4)
        if 10 + length <= 4096:
            assert npy_array(data) == [0]
        else:
            with pytest.raises(FormatError, match="header of 4097 bytes"):
                npy_array(data)
