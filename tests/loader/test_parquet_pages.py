"""A parquet that lies about its size costs no memory: pages, dictionaries and lists are held to what they unpack to, whatever the footer says."""

import io
import itertools
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loader.format import FormatError
from loader.parquet_pages import read_columns
from precompute.shards.sidecar_table import read_sidecar_table

ROWS = 20_000
MOST = 1 << 26


def stored(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, store_schema=False, **options)
    return out.getvalue()


def read(data: bytes, most: int = MOST) -> pa.Table:
    metadata = pq.read_metadata(io.BytesIO(data))
    return read_columns(io.BytesIO(data), metadata, metadata.schema.to_arrow_schema().names, most, 4096)


def repeated(text: str, nested: bool) -> pa.Table:
    """One text in a dictionary, and ROWS rows that name it: a few bytes for any length."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), pa.array([text]))
    lists = pa.ListArray.from_arrays(pa.array(range(ROWS + 1), pa.int32()), texts)
    return pa.table({"captions" if nested else "caption": lists if nested else texts})


@pytest.mark.parametrize("nested", [False, True])
def test_a_long_text_that_all_rows_repeat_is_refused_before_it_is_written_out(nested: bool) -> None:
    data = stored(repeated("x" * (1 << 20), nested))
    assert len(data) < 1 << 20
    pool = pa.default_memory_pool()
    before = pool.max_memory()
    for reader in (read, read_sidecar_table):
        with pytest.raises(FormatError, match="unpacks to more"):
            reader(data)
    assert pool.max_memory() - before < MOST


@pytest.mark.parametrize("nested", [False, True])
def test_a_short_text_that_all_rows_repeat_is_read(nested: bool) -> None:
    data = stored(repeated("x" * 2_000, nested))
    assert read(data).equals(pq.read_table(io.BytesIO(data)))


@pytest.mark.parametrize("claim", [1 << 27, (1 << 31) - 1])
def test_a_page_that_claims_gigabytes_is_refused(claim: int) -> None:
    """The page's own header claims them; the footer tells of 1 kB."""
    data = stored(
        pa.table({"caption": pa.array(["x" * 1_000])}), use_dictionary=False, write_statistics=False
    )
    # type=DATA_PAGE, then uncompressed_page_size.
    at = data.index(b"\x15\x00\x15")
    end = next(place for place in itertools.count(at + 3) if data[place] < 128) + 1
    zigzag = bytearray()
    number = 2 * claim
    while number:
        zigzag.append(number & 127 | (128 if number > 127 else 0))
        number >>= 7
    with pytest.raises(FormatError, match="unpacks to more"):
        read(data[: at + 3] + bytes(zigzag) + data[end:])


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}])
def test_a_footer_with_any_bit_flipped_ends_no_process(options: dict[str, Any]) -> None:
    """Pages before the file or behind it, columns without facts: of these pyarrow's own way to a column chunk ends in abort()."""
    data = stored(pa.table({"offset": pa.array([1, 2, 3]), "caption": pa.array(["a", "b", "b"])}), **options)
    length = int.from_bytes(data[-8:-4], "little")
    refused = 0
    for place in range(len(data) - 8 - length, len(data) - 8):
        for bit in (0, 1, 5):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            try:
                read(bytes(changed), 1 << 20)
            except FormatError:
                refused += 1
            except (pa.ArrowException, OSError, UnicodeError, KeyError, OverflowError, MemoryError):
                pass
    assert refused


def test_a_row_of_a_million_values_in_a_few_bytes_is_refused() -> None:
    data = stored(pa.table({"crop_256": pa.array([[0] * 1_000_000], pa.list_(pa.int32()))}))
    assert len(data) < 1 << 12
    with pytest.raises(FormatError, match="unpacks to more"):
        read(data, 1 << 20)
    assert len(read(data)["crop_256"][0]) == 1_000_000


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize(
    "options", [{}, {"use_dictionary": False}, {"row_group_size": 7}, {"data_page_size": 64}]
)
def test_what_is_read_is_what_arrow_reads(version: str, compression: str, options: dict[str, Any]) -> None:
    """Also where the texts could unpack to more than there may be, and so stay dictionaries until that is known."""
    texts = [None if n % 7 == 3 else f"text {n % 9}" * (n % 5) for n in range(50)]
    table = pa.table(
        {
            "caption": pa.array(texts, pa.string()),
            "captions": pa.array(
                [None if n % 5 == 1 else texts[: n % 4] for n in range(50)], pa.list_(pa.string())
            ),
            "crop_256": pa.array([[n, -n] if n % 3 else None for n in range(50)], pa.list_(pa.int32())),
            "offset": pa.array([n << 40 if n % 11 else None for n in range(50)], pa.int64()),
            "small": pa.array([n if n % 3 else None for n in range(50)], pa.uint8()),
            "nothing": pa.array([None] * 50, pa.string()),
        }
    )
    data = stored(table, compression=compression, data_page_version=version, **options)
    theirs = pq.read_table(io.BytesIO(data))
    for most in (MOST, 14_000):
        assert read(data, most).equals(theirs)


def test_a_sidecar_without_rows_has_none() -> None:
    """A unit may give none, as an empty archive; its pages begin nowhere."""
    table = repeated("x", nested=True).slice(0, 0)
    assert read(stored(table)).num_rows == 0
