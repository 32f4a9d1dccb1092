"""The columns of `train-00000.parquet`, by the members that its samples have."""

import re
from collections.abc import Sequence

import pyarrow as pa

from loader.field_names import further_kind, further_name

PHASH = "phash"


def sidecar_schema(members: Sequence[str]) -> pa.Schema:
    """Columns of `train-00000.parquet`: one row per source row, in source order.

    status is "ok" or the reject reason; extras is a JSON object; `offset_M` and `size_M` (bytes) give the data of
    member M of an ok row in the tar, null in a rejected row. Members are named without their `.npy`.
    """
    columns = [("key", pa.string()), ("status", pa.string()), ("caption", pa.string()), ("width", pa.int32())]
    columns += [("height", pa.int32()), ("source", pa.string()), ("extras", pa.string())]
    columns += described_columns(members).items()
    for member in members:
        columns += [(f"offset_{member}", pa.int64()), (f"size_{member}", pa.int64())]
    return pa.schema(columns)


def described_columns(members: Sequence[str]) -> dict[str, pa.DataType]:
    """The columns that say more of a sample than where it lies. Shards from before there were any lack all of them.

    captions, caption_kinds: all captions of the source, and where each is from. caption_tokens, caption_tokens_NAME: tokens of
    each caption that is embedded, of the first so many captions; 1 of each where no states are stored beside pooled outputs. crop_R:
    left, top, right, bottom in pixels of the source, of resolution R. phash: perceptual hash of the source's picture. captions+KIND:
    those that were added later, which have fields of their own.
    """
    texts, numbers = pa.list_(pa.string()), pa.list_(pa.int32())
    columns = {"captions": texts, "caption_kinds": texts}
    for member in members:
        kind, _, name = member.partition("_")
        if kind in ("moments", "latents"):
            columns[f"crop_{name.removesuffix('_flipped')}"] = numbers
            columns[PHASH] = pa.uint64()
        elif member.startswith("caption_"):
            columns[tokens_column(member)] = numbers
        if further := further_kind(member):
            columns[further_name("captions", further)] = texts
    return columns


def tokens_column(field: str) -> str:
    """`caption_tokens_NAME`, `caption_tokens_NAME+KIND`, beside `caption_latents_NAME` or `caption_pooled_NAME`."""
    return re.sub("^caption_(latents|pooled)", "caption_tokens", field)
