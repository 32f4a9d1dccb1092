"""Cleaned records in, WebDataset shards of VAE latents and text embeddings out."""

from importlib.util import find_spec
from pathlib import Path


def _refuse_namesakes() -> None:
    """A loader.py or builders.py of the user's own would be imported in the place of ours. Raises ImportError."""
    for name in ("loader", "builders"):
        ours, found = Path(__file__).parents[1] / name / "__init__.py", find_spec(name)
        origin = found.origin if found else None
        if origin and Path(origin).resolve() != ours.resolve():
            raise ImportError(
                f"{origin} hides Latentmill's package `{name}`: rename it, or start from another folder"
            )


_refuse_namesakes()
