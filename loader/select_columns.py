"""What of the sidecars a batch takes; errors name the option and what the shards have."""

from collections.abc import Mapping, Sequence

from loader.captions import CaptionChoice, Captions
from loader.extras import columns_of, read_extras
from loader.format import FormatError
from loader.joined import Source
from loader.select import Selection
from loader.sidecar import column_type
from loader.sidecar_schema import tokens_column
from loader.tar_source import TarSource

LOOKED_AT = 8  # shards whose extras are looked at, for the name of one


def columns_to_read(sources: Sequence[Source], select: Selection, captions: Captions) -> tuple[str, ...]:
    """Raises ValueError for kinds or extras that the shards do not have, and for a choice where there is none."""
    fields = {field.name for field in (*select.text, *select.pooled)}
    several = [f.name for source in sources for f in source.fields if f.name in fields and f.captions > 1]
    _check_captions(sources, captions, bool(several or select.further))
    columns = columns_of(select.extras, select.image, bool(several), select.further)
    _check_extras(sources, select.extras, columns)
    if several := [*several, *select.further_text]:
        columns += [*CaptionChoice(captions).columns, *map(tokens_column, several)]
    return tuple(dict.fromkeys(columns))


def _check_captions(sources: Sequence[Source], captions: Captions, several: bool) -> None:
    if captions == "first":
        return
    if not several:
        raise ValueError(
            f"captions={captions!r}: {sources[0].files.url} has one caption of a sample; make it with --max-captions"
        )
    known = sorted({kind for source in sources for kind in source.caption_kinds})
    for kind in captions if isinstance(captions, Mapping) else ():
        if kind not in known:
            raise ValueError(
                f"captions={captions!r}: no caption of kind {kind!r}; there are {', '.join(known) or 'none told'}"
            )


def _check_extras(sources: Sequence[Source], extras: Sequence[str], columns: Sequence[str]) -> None:
    if not columns or set(extras) <= {"key", "caption"}:
        return
    for source in sources:
        if isinstance(source, TarSource):
            raise ValueError(
                f"extras={list(extras)!r}: the tars of {source.files.url} have no sidecars; 'key' and 'caption' work"
            )
    names = [name for name in extras if name not in ("key", "caption", "caption_kind", "size_conditioning")]
    unknown = {name for name in names if column_type(name) is None}
    known = _names(sources) if unknown else set()
    for name in sorted(unknown - known):
        raise ValueError(
            f"extras={list(extras)!r}: {name!r} is neither a column of the sidecars nor one of their extras; there are key, "
            f"caption, caption_kind, size_conditioning, {', '.join(sorted(COLUMNS | known))}"
        )


COLUMNS = {"captions", "caption_kinds", "width", "height", "source"}


def _names(sources: Sequence[Source]) -> set[str]:
    """Collect the names of the extras of the first shards of each path."""
    found = set[str]()
    for source in sources:
        for number in range(min(LOOKED_AT, len(source.names))):
            assert not isinstance(source, TarSource)
            try:
                rows = source.ok_rows(number, ["extras", "status"])["extras"].to_pylist()
                found |= {name for text in rows for name in read_extras(text)}
            except (OSError, FormatError):
                continue
    return found
