"""Crops and buckets of any size: inside the picture, of the shape asked for, and as large as can be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precompute.input.pixels import buckets, crop_box, nearest_bucket

edges, places = st.integers(1, 5000), st.tuples(st.floats(0, 1), st.floats(0, 1))


@given(edges, edges, edges, edges, places)
def test_a_crop_is_the_largest_of_its_shape_inside_the_picture(
    width: int, height: int, wide: int, high: int, place: tuple[float, float]
) -> None:
    left, top, right, bottom = crop_box((0, 0, width, height), (wide, high), place)
    slack = 1e-6 * max(width, height)
    assert -slack <= left < right <= width + slack and -slack <= top < bottom <= height + slack
    assert (right - left) * high == pytest.approx((bottom - top) * wide, rel=1e-6)
    fills = (right - left) == pytest.approx(width), (bottom - top) == pytest.approx(height)
    assert any(fills)
    if not fills[0]:
        assert left == pytest.approx((width - (right - left)) * place[0], abs=1e-3)
    if not fills[1]:
        assert top == pytest.approx((height - (bottom - top)) * place[1], abs=1e-3)


@given(edges, edges, st.sampled_from([(256, 32), (512, 64), (1024, 64)]))
def test_the_nearest_bucket_is_one_and_none_is_nearer(width: int, height: int, grid: tuple[int, int]) -> None:
    resolution, step = grid
    wide, high = nearest_bucket(width, height, resolution, step)
    known = buckets(resolution, step)
    assert (wide, high) in known and wide % step == high % step == 0 and wide * high <= resolution**2

    def off(size: tuple[int, int]) -> float:
        ratio = size[0] / size[1] / (width / height)
        return max(ratio, 1 / ratio)

    assert off((wide, high)) <= min(map(off, known)) * (1 + 1e-9)
    turned = nearest_bucket(height, width, resolution, step)
    assert off((turned[1], turned[0])) == pytest.approx(off((wide, high)))
