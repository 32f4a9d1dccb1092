"""What became of captions from elsewhere, once a run has read all rows: counted out of the sidecars, whoever wrote them."""

import json
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from builders.core.account import Account, Matched
from builders.core.joined_captions import JoinedCaptions
from loader.field_names import further_name
from loader.format import Shard
from precompute.shards.destination import Destination

COLUMNS = ("key", "source", "extras", "status", "caption_kinds")


def told_of_captions(
    files: Sequence[JoinedCaptions], destination: Destination, shards: Iterable[Shard]
) -> str:
    """One line: how many rows of each file match no row of these shards, and how many samples have none of its captions.

    Empty where there is no file, or a sidecar is not at hand.
    """
    account = Account()
    for shard in shards if files else ():
        data = destination.get(f"{shard.name}.parquet")
        if data is None:
            return ""
        further = [further_name("captions", file.name) for file in files]
        parquet = pq.ParquetFile(pa.BufferReader(data))
        columns = [*COLUMNS, *(name for name in further if name in parquet.schema_arrow.names)]
        for batch in parquet.iter_batches(columns=columns):
            for row in batch.to_pylist():
                extras = json.loads(row["extras"] or "{}")
                for file in files:
                    if found := file.find(row["key"], row["source"] or "", extras):
                        account.matched.setdefault(file.name, Matched()).mark(found[0])
                    has = row.get(further_name("captions", file.name)) or file.name in row["caption_kinds"]
                    if row["status"] == "ok" and not has:
                        account.without[file.name] += 1
    return account.told_captions({file.name: len(file.join) for file in files}, True)
