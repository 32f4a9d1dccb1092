"""A bucket: samples of pictures of one size share a shard and a batch, and its name is what the shard has."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Bucket:
    """Width and height of its pictures in pixels, one pair for each resolution. As a string its name: `640x384+1280x768`."""

    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def named(cls, name: str) -> Self:
        """name: of a shard's bucket; empty where there is none."""
        pairs = (size.split("x") for size in name.split("+") if size)
        return cls(tuple((int(width), int(height)) for width, height in pairs))

    def __str__(self) -> str:
        return "+".join(f"{width}x{height}" for width, height in self.sizes)
