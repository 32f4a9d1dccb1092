"""How fields are named, by what they hold."""

import re
from collections.abc import Sequence
from typing import Literal


def image_field_name(kind: Literal["moments", "latents"], resolution: int, flipped: bool = False) -> str:
    """`moments_256`, `latents_512_flipped`: what the image encoder gives at one resolution (pixels, shorter edge)."""
    return f"{kind}_{resolution}" + ("_flipped" if flipped else "")


def text_field_name(kind: Literal["latents", "pooled"], encoder: str = "") -> str:
    """`caption_latents` of the first text encoder, `caption_latents_NAME` of one called NAME."""
    return f"caption_{kind}" + (f"_{encoder}" if encoder else "")


def further_name(name: str, kind: str) -> str:
    """`caption_latents+llava`: the field, or the column, of captions of a kind that were added later; "": that of the first ones."""
    return f"{name}+{kind}" if kind else name


def further_names(name: str, kinds: Sequence[str]) -> list[str]:
    """The field of the first captions, and those of the kinds that were added later."""
    return [further_name(name, kind) for kind in ("", *kinds)]


def picture_place(name: str) -> str:
    """What a sample has one of: `image_256` for moments and for latents of 256 pixels, by whatever autoencoder; else the name."""
    return re.sub("^(moments|latents)_", "image_", name)


def further_kind(name: str) -> str:
    """The kind of the captions that a field is of, where they were added later; else empty."""
    return name.partition("+")[2]
