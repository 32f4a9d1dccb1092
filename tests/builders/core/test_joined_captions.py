"""The URL by which captions from elsewhere are joined to a row."""

from typing import Any

import pytest

from builders.core.joined_captions import url_of


@pytest.mark.parametrize(
    ("extras", "url"),
    [
        ({"url": "u", "json": '{"url": "v"}'}, "u"),
        ({"json": '{"url": "v"}'}, "v"),
        ({"json": {"url": "v"}}, "v"),  # as `load_dataset("webdataset")` gives it
        ({"json": '{"url": 3}'}, None),
        ({"json": "[1]"}, None),
        ({"json": "no json"}, None),
        ({"json": "[" * 100_000}, None),
        ({}, None),
    ],
)
def test_the_url_of_a_row(extras: dict[str, Any], url: str | None) -> None:
    assert url_of(extras) == url
