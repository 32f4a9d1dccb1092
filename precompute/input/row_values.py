"""Values of a source row as a record holds them: image bytes, keys, and what JSON can hold."""

import contextlib
import datetime
import hashlib
import json
from typing import Any

import aiohttp
import datasets
from huggingface_hub.utils import httpx

from builders.archives.backoff import Patience
from builders.archives.read_errors import describe, status_of, without_query
from builders.core.base import make_key
from precompute.errors import SourceError
from precompute.input.faults import may_pass
from precompute.input.units import Unit

# With its unit and extension a key of this length fits into the 100 characters of a plain tar header.
LONGEST_KEY = 64


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def image_bytes(image: dict[str, Any] | None) -> bytes | None:
    if image is None:
        return None
    if image.get("bytes") is None and image.get("path"):
        return read_image(image["path"])
    return image.get("bytes")


def read_image(path: str) -> bytes | None:
    """A file on disk or on a server; None where it is gone, or refused to all. Raises SourceError for other failures."""
    patience = Patience()
    while True:
        try:
            with datasets.utils.file_utils.xopen(path, "rb") as file:
                return bytes(file.read())
        except (OSError, aiohttp.ClientError, httpx.HTTPError) as error:
            passing, what = may_pass(error), f"{without_query(path)}: {describe(error)}"
            if status_of(error) in (403, 404, 410, 451) or (
                isinstance(error, FileNotFoundError) and not passing
            ):
                return None
            if not passing or not patience.wait(what):
                raise SourceError(f"{what}: cannot be read. Mend that and run again") from error


def unit_key(unit: Unit, number: int, values: dict[str, Any] | None = None) -> str:
    """Key of the row at `number` (from 1) of a unit of a dataset that is not ours: unique over all units.

    A WebDataset's own key is kept behind the unit's number: two of its tars may use the same.
    """
    own = str((values or {}).get("__key__") or f"{unit.start + number - 1:07d}")
    key = make_key(own)
    if len(key) > LONGEST_KEY:
        digest = hashlib.sha256(own.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        key = f"{key[: LONGEST_KEY - 9]}-{digest}"
    return f"{unit.index:05d}-{key}"


def _utf8(text: str) -> str:
    """JSON can hold half a character (a lone surrogate); nothing else can."""
    return text.encode("utf-8", "replace").decode()


def jsonable(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out the members that JSON cannot hold (bytes, arrays, NaN), and write dates as text."""
    kept = {}
    for name, value in values.items():
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            kept[name] = json.loads(
                _utf8(json.dumps(value, default=_iso, allow_nan=False, ensure_ascii=False))
            )
    return kept


def _iso(value: Any) -> str:
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")
