"""How fields are named, by what they hold."""

from typing import Literal


def image_field_name(kind: Literal["moments", "latents"], resolution: int, flipped: bool = False) -> str:
    """`moments_256`, `latents_512_flipped`: what the image encoder gives at one resolution (pixels, shorter edge)."""
    return f"{kind}_{resolution}" + ("_flipped" if flipped else "")


def text_field_name(kind: Literal["latents", "pooled"], encoder: str = "") -> str:
    """`caption_latents` of the first text encoder, `caption_latents_NAME` of one called NAME."""
    return f"caption_{kind}" + (f"_{encoder}" if encoder else "")
