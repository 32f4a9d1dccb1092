"""What is written is read back the same, of whatever shape."""

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from loader.format import Field
from loader.npy import npy_array, npy_bytes, parse_npy

numbers = st.integers(0, 2**40)
shas = st.integers(0, 2**256 - 1).map("{:064x}".format)
FIELDS = (
    Field("moments_32", "moments", "float16", (8, 4, 4), 0.5),
    Field("caption_latents", "caption_latents", "float16", (None, 6)),
)


@given(
    arrays.arrays(
        st.sampled_from([np.float16, np.float32, np.int64, np.uint8]),
        arrays.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=5),
    )
)
def test_an_array_comes_back_and_numpy_reads_it(array: np.ndarray) -> None:
    data = npy_bytes(array)
    theirs = np.load(io.BytesIO(data), allow_pickle=False)
    for found in (theirs, npy_array(data)):
        assert found.dtype == array.dtype and found.shape == array.shape
        assert found.tobytes() == array.tobytes()
    dtype, shape, start = parse_npy(data)
    assert (dtype, shape, len(data) - start) == (array.dtype, array.shape, array.nbytes)
