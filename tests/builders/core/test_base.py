"""Keys: legal as file names, and as different as the names they are made of."""

import re
from typing import Any

import pytest

from builders.core.base import make_key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a b", "a/b"),
        ("caf\u00e9", "caf\u00e8"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), b"caf\xe8".decode("utf-8", "surrogateescape")),
        ("", " "),
    ],
    ids=["illegal", "accents", "no utf-8", "empty"],
)
def test_names_that_differ_have_keys_that_differ(one: Any, other: Any) -> None:
    keys = make_key(one), make_key(other)
    assert keys[0] != keys[1] and all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys)
    assert keys == (make_key(one), make_key(other))
