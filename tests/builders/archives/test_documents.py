"""Large JSON documents, element by element: the same elements as `json.loads`, whatever the window, in flat memory."""

import io
import json
import random
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

from builders.archives import documents
from builders.archives.documents import iter_lists, read_document
from builders.core.errors import ArchiveError

TREE: dict[str, Any] = {
    "info": {"year": 2014, "nested": [1, {"a": "]}"}]},
    "empty": [],
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": 'é 😀 \\ " , ] }'}],
    "null": None,
    "numbers": [1, -2.5e3, 12345678901234567890, 0],
    "text": "a, b",
    "mixed": ["x", None, True, [], {}, [[1], [2]]],
}
PAIRS = [(key, value) for key, values in TREE.items() if isinstance(values, list) for value in values]


def lists(data: Any) -> Any:
    return list(iter_lists(io.BytesIO(data)))


@pytest.mark.parametrize("window", [1, 2, 3, 7, 64, 2**18])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii", [True, False])
def test_elements_are_those_of_json(
    window: Any, indent: Any, ascii: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "WINDOW", window)
    data = json.dumps(TREE, indent=indent, ensure_ascii=ascii).encode()
    assert lists(data) == PAIRS
    assert lists(b"\xef\xbb\xbf \n" + data + b"\n") == PAIRS


def test_generated_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(0)

    def value(depth: Any) -> Any:
        kind = generator.randrange(7 if depth else 5)
        if kind < 5:
            return [
                None,
                generator.random() < 0.5,
                generator.randrange(10**9),
                generator.gauss(0, 1e9),
                'x\u00e9\\"]' * generator.randrange(4),
            ][kind]
        many = [value(depth - 1) for _ in range(generator.randrange(4))]
        return many if kind == 5 else {f"k{n}": one for n, one in enumerate(many)}

    for _ in range(300):
        monkeypatch.setattr(documents, "WINDOW", generator.choice([1, 5, 50]))
        tree = {f"key {n}": value(3) for n in range(generator.randrange(5))}
        expected = [(key, one) for key, many in tree.items() if isinstance(many, list) for one in many]
        assert lists(json.dumps(tree).encode()) == expected


def test_an_empty_object_has_none() -> None:
    assert lists(b" { } ") == []


def test_cut_short_anywhere_is_an_error_not_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "WINDOW", 16)
    data = json.dumps(TREE).encode()
    for length in range(len(data)):
        with pytest.raises(ValueError):
            lists(data[:length])


@pytest.mark.parametrize(
    "data", [b"[1, 2]", b"null", b"<html>", b'{"a": [1 2]}', b'{"a" [1]}', b'{"a": [1],}', b'{"a": \xff}']
)
def test_something_else_is_an_error(data: Any) -> None:
    with pytest.raises(ValueError):
        lists(data)


def test_an_element_without_end_is_an_error_before_it_fills_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONGEST", 2**20)
    endless = io.BytesIO(b'{"a": ["' + b"x" * 2**24)
    with pytest.raises(ValueError, match="in the value at character 7"):
        list(iter_lists(endless))
    assert endless.tell() < 2**22


def test_an_element_that_nests_without_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="nested too deep: in the value at character 7"):
        lists(b'{"a": [' + b"[" * 50_000 + b"]" * 50_000 + b"]}")


def test_memory_is_that_of_the_window() -> None:
    row = json.dumps({"image_id": 1, "caption": "a man on a moped" * 4})
    data = io.BytesIO(('{"annotations": [' + ",".join([row] * 200_000) + "]}").encode())
    tracemalloc.start()
    count = sum(1 for _ in iter_lists(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200_000 and peak < 4 * 2**20 < data.tell()


def test_a_document_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations/other.json", "{}")
        archive.writestr("annotations/captions.json", json.dumps(TREE))
    assert list(read_document(str(path), None, "captions.json")) == PAIRS
    with pytest.raises(ArchiveError, match=r"there is no no\.json in it"):
        list(read_document(str(path), None, "no.json"))
