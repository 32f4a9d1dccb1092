"""Which fields of the shards make a batch; errors name the argument and what the shards have."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from loader.field_names import further_kind, further_name
from loader.format import Field, image_field_name, recipe_differences, text_field_name
from loader.joined import Source

Scale = float | Sequence[float]


@dataclass(frozen=True)
class Selection:
    """What a batch is made of. flipped: the mirror image's field, where samples are flipped at random.

    caption_tokens: text of varying length is padded or cut to so many tokens; None: to the longest of the batch.
    columns: of the sidecars, that it takes beside where members lie. Text fields are those of one caption. further: kinds of captions
    that were added later, which have fields of their own, and may be drawn.
    """

    image: Field
    flipped: Field | None = None
    text: tuple[Field, ...] = ()
    pooled: tuple[Field, ...] = ()
    extras: tuple[str, ...] = ()
    caption_tokens: int | None = None
    features: tuple[Field, ...] = ()
    columns: tuple[str, ...] = ()
    further: tuple[str, ...] = ()

    @property
    def members(self) -> list[str]:
        fields = [
            self.image,
            *([self.flipped] if self.flipped else []),
            *self.text,
            *self.pooled,
            *self.features,
        ]
        mirrored = [mirror_of(field) for field in self.features] if self.flipped else []
        return [*(field.name for field in fields), *mirrored, *self.further_text]

    @property
    def further_text(self) -> list[str]:
        """Names of the text fields of captions that were added later."""
        return [
            further_name(field.name, kind) for kind in self.further for field in (*self.text, *self.pooled)
        ]


def select_image(source: Source, resolution: int | None, scale: Scale | None, shift: Scale | None) -> Field:
    """The image field of a resolution, moments before latents; its scale from the manifest, else from the arguments."""
    kinds: tuple[Literal["moments", "latents"], ...] = ("moments", "latents")
    images = {f.name: f for f in source.fields if f.kind in kinds and not f.name.endswith("_flipped")}
    found = sorted({int(name.rsplit("_", 1)[1]) for name in images})
    if resolution is None and len(found) == 1:
        resolution = found[0]
    if resolution not in found:
        raise ValueError(f"resolution={resolution}: {source.files.url} has {found}; choose one")
    field = next(images[n] for kind in kinds if (n := image_field_name(kind, resolution)) in images)
    if field.kind == "moments" and field.scale is None:
        if scale is None:
            raise ValueError(
                f"scale=None: nothing in {source.files.url} says how to scale {field.member}; give scale"
            )
        return replace(field, scale=_numbers(scale), shift=None if shift is None else _numbers(shift))
    if scale is not None or shift is not None:
        raise ValueError(
            f"scale={scale!r}, shift={shift!r}: {field.member} of {source.files.url} needs neither"
        )
    return field


def find_flipped(source: Source, image: Field) -> Field | None:
    """The field of the mirror images, if the shards have one."""
    return next((field for field in source.fields if field.name == f"{image.name}_flipped"), None)


def select_flipped(source: Source, image: Field) -> Field:
    if field := find_flipped(source, image):
        return field
    raise ValueError(
        f"flip_prob: {source.files.url} has no {image.name}_flipped; make it with precompute's --flip"
    )


def select_text(source: Source, encoders: Sequence[str] | None) -> tuple[Field, ...]:
    """The `caption_latents` of the named encoders, in that order; None: all there are."""
    found = _by_encoder(source, "latents")
    wanted = list(found) if encoders is None else encoders
    for name in wanted:
        if name not in found:
            raise ValueError(f"text_encoders={list(wanted)}: {source.files.url} has {sorted(found)}")
    return tuple(found[name] for name in wanted)


def select_pooled(
    source: Source, encoders: Sequence[str] | None, pooled: bool | Sequence[str] | str
) -> tuple[Field, ...]:
    """The `caption_pooled` of the encoders that `pooled` names; True: of those of `encoders` that have one."""
    if pooled is False:
        return ()
    found = _by_encoder(source, "pooled")
    if pooled is True:
        names = [name for name in (found if encoders is None else encoders) if name in found]
    else:
        names = [pooled] if isinstance(pooled, str) else list(pooled)
    make = "make it with precompute's --text-encoder ID?pooled"
    if not names:
        raise ValueError(f"pooled={pooled!r}: {source.files.url} has no caption_pooled of them; {make}")
    if not found.keys() >= set(names):
        raise ValueError(
            f"pooled={pooled!r}: {source.files.url} has caption_pooled of {sorted(found)}; name these, or {make}"
        )
    return tuple(found[name] for name in names)


def select_further(source: Source, text: Sequence[Field]) -> tuple[str, ...]:
    """The kinds of captions that were added later, in their order. text: the fields that are read; each must have them."""
    names = [field.name for field in source.fields]
    kinds = tuple(dict.fromkeys(kind for name in names if (kind := further_kind(name))))
    for kind in kinds:
        for field in text:
            if (name := further_name(field.name, kind)) not in names:
                raise ValueError(
                    f"captions: {source.files.url} has no {name}, the captions of kind {kind!r} by that text encoder; give "
                    "text_encoders= of those that have, leave that layer out, or make one beside the shards with that encoder"
                )
    return kinds if text else ()


def select_features(source: Source, names: Sequence[str], flip: float) -> tuple[Field, ...]:
    """The `features` of the named models. flip: share of mirrored pictures, whose features have to be there too."""
    found = {f.name.removeprefix("features_"): f for f in source.fields if f.kind == "features"}
    known = [name for name in found if not name.endswith("_flipped")]
    for name in names:
        if name not in known:
            raise ValueError(f"features={list(names)}: {source.files.url} has {sorted(known)}")
        if flip and f"{name}_flipped" not in found:
            raise ValueError(
                f"features={list(names)}: pictures are mirrored, and {source.files.url} has no {mirror_of(found[name])}; give "
                "flip_prob=0, or make them with --flip"
            )
    return tuple(found[name] for name in names)


def mirror_of(field: Field) -> str:
    """The name of the field of mirror images."""
    return f"{field.name}_flipped"


def encoder_of(field: Field) -> str:
    """The name of the text encoder that made a field, "" the unnamed one."""
    return field.name.removeprefix(field.kind).removeprefix("_")


def _by_encoder(source: Source, kind: Literal["latents", "pooled"]) -> dict[str, Field]:
    return {
        encoder_of(field): replace(field, captions=1)
        for field in source.fields
        if field.kind == text_field_name(kind) and not further_kind(field.name)
    }


def check_alike(
    sources: Sequence[Source], selections: Sequence[Selection], may_differ: Sequence[str]
) -> None:
    """Raises ValueError where values of different recipes would be mixed, with what differs."""
    first = sources[0]
    for source, selection in zip(sources[1:], selections[1:], strict=True):
        lines = recipe_differences(first.recipe, source.recipe)
        lines = [
            line
            for line in lines
            if not line.startswith(
                tuple(f"{name}{end}" for name in (*may_differ, "max_captions") for end in ".:")
            )
        ]
        if selection != selections[0]:
            lines.append(f"fields: {selections[0]} there, {selection} here")
        if lines:
            raise ValueError(
                f"{source.files.url} and {first.files.url} are of different recipes:\n  "
                + "\n  ".join(lines)
                + "\nIf a difference is harmless, name it in may_differ"
            )


def _numbers(value: Scale) -> float | tuple[float, ...]:
    return value if isinstance(value, int | float) else tuple(value)
