"""Fields: the arrays that every sample of some shards has, and what of their description a reader takes at its word."""

import re
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Self

from loader import border
from loader.border import FormatError

FIELD_NAME = re.compile(r"[A-Za-z0-9_+-]{1,100}")
DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
LARGEST_MEMBER = 1 << 28  # bytes of one array: no field of any model comes near
MOST_CAPTIONS = 1000  # of a sample

Kind = Literal["moments", "latents", "caption_latents", "caption_pooled", "features"]
# Of each kind: how its fields are named, and how many axes they have, least and most.
KINDS = {
    **{kind: (re.compile(kind + r"_\d{1,6}(_flipped)?"), 3, 3) for kind in ("moments", "latents")},
    "caption_latents": (re.compile(r"caption_latents(_[^+]+)?(\+[A-Za-z0-9]+)?"), 2, 2),
    "caption_pooled": (re.compile(r"caption_pooled(_[^+]+)?(\+[A-Za-z0-9]+)?"), 1, 2),
    "features": (re.compile(r"features_[^+]+"), 2, 2),
}


@dataclass(frozen=True)
class Field:
    """One array member of every sample: `KEY.{name}.npy`.

    shape: of one sample, channels first; None where it varies from sample to sample (a trimmed token axis).
    scale, shift: `latents = (raw - shift) * scale`; one number, or one per channel. Only `moments` fields have them;
        a `latents` field is scaled already.
    captions: of a text field, how many captions of a sample may lie in its member at most. Where more than one, they lie end to
        end, each of `shape`, pooled ones as rows; how many tokens each has is in the sidecar's `caption_tokens`. In a field
        NAME+KIND, of captions that were added later, there may be none.
    """

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int | None, ...]
    scale: float | tuple[float, ...] | None = None
    shift: float | tuple[float, ...] | None = None
    captions: int = 1

    @property
    def member(self) -> str:
        return f"{self.name}.npy"

    @property
    def stored_shape(self) -> tuple[int | None, ...]:
        """The shape of the member: with several captions their number, or that of all their tokens, varies."""
        if self.captions == 1:
            return self.shape
        return (None, *(self.shape[1:] if self.kind == "caption_latents" else self.shape))

    @property
    def known_bytes(self) -> int:
        """Bytes that the data of a sample takes at least."""
        return prod(n for n in self.shape if n is not None) * DTYPES.get(self.dtype, 1)

    @classmethod
    def from_json(cls, obj: Any, place: str = "field") -> Self:
        """Raises FormatError for what no reader could make an array of."""
        obj = border.mapping(obj, place)
        name = border.text(border.part(obj, "name", place), f"{place}.name", FIELD_NAME)
        place = f"field {name}"
        axes = border.sequence(border.part(obj, "shape", place), f"{place}.shape", 8)
        shape = tuple(None if n is None else border.count(n, f"{place}.shape", LARGEST_MEMBER) for n in axes)
        made = cls(
            name=name,
            kind=border.one_of(border.part(obj, "kind", place), f"{place}.kind", KINDS),
            dtype=border.one_of(border.part(obj, "dtype", place), f"{place}.dtype", DTYPES),
            shape=shape,
            scale=_per_channel(obj.get("scale"), f"{place}.scale", shape),
            shift=_per_channel(obj.get("shift"), f"{place}.shift", shape),
            captions=border.count(obj.get("captions", 1), f"{place}.captions", MOST_CAPTIONS),
        )
        names, least, most = KINDS[made.kind]
        if not names.fullmatch(name) or not least <= len(shape) <= most:
            raise FormatError(f"{place}: shape {list(shape)} or name is not one of kind {made.kind}")
        if not made.captions or (made.captions > 1 and not made.kind.startswith("caption_")):
            raise FormatError(f"{place}: {made.captions} captions in a field of kind {made.kind}")
        if shape[0 if made.kind in ("moments", "latents") else -1] is None:
            raise FormatError(f"{place}: shape {list(shape)} tells no number of channels")
        if made.kind == "moments" and (not shape[0] or shape[0] % 2):
            raise FormatError(
                f"{place}: shape {list(shape)} does not begin with means and as many deviations"
            )
        if 0 in shape or made.known_bytes > LARGEST_MEMBER:
            raise FormatError(
                f"{place}: an array of shape {list(shape)} is not of 1 to {LARGEST_MEMBER} bytes"
            )
        return made


def _per_channel(value: Any, place: str, shape: tuple[int | None, ...]) -> float | tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        return border.number(value, place)
    numbers = tuple(border.number(v, place) for v in value)
    if len(shape) != 3 or shape[0] not in (len(numbers), 2 * len(numbers)):
        raise FormatError(f"{place}: {len(numbers)} numbers do not fit the channels of shape {list(shape)}")
    return numbers


def parse_fields(obj: dict[str, Any], place: str) -> tuple[Field, ...]:
    """The `fields` of a marker or manifest. Raises FormatError."""
    listed = border.sequence(border.part(obj, "fields", place), f"{place}.fields", 1000)
    fields = tuple(Field.from_json(one, f"{place}.fields") for one in listed)
    if len({one.name for one in fields}) != len(fields):
        raise FormatError(f"{place}.fields: two of the same name")
    return fields
