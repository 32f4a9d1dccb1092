"""A recipe of the verb make: the datasets of a TOML file, and the flags that their runs share."""

import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precompute.commands import flag_words, merge_flags
from precompute.errors import UsageError

RECIPES = Path(__file__).parent


@dataclass(frozen=True)
class Dataset:
    """One dataset of a recipe. rows, gigabytes: published size of all splits and of the archives.

    links: name of a file in its folder of raw archives that says where they are, as SA-1B's publisher hands out.
    gated: its repository on the Hub, where that wants its terms accepted.
    """

    name: str
    config: str | None
    splits: tuple[str, ...]
    rows: int
    gigabytes: float
    links: str | None = None
    gated: str | None = None


@dataclass(frozen=True)
class MakeRecipe:
    """flags: of the run, each with its values. sample_bytes: of one sample made with them; None where unknown."""

    name: str
    flags: tuple[tuple[str, ...], ...]
    datasets: tuple[Dataset, ...]
    sample_bytes: float | None = None

    def run_flags(self, given: str) -> list[str]:
        """The flags of a run: those of the recipe, but for what is given on the command line."""
        return merge_flags(self.flags, shlex.split(given))


def read_recipe(name: str, small: bool, only: Sequence[str] = ()) -> MakeRecipe:
    """Raises UsageError naming the file and the key at fault."""
    path = RECIPES / f"{name}.toml" if (RECIPES / f"{name}.toml").is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise UsageError(f"{name}: no such recipe or file; there are {known}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        datasets = tuple(_dataset(name, entry, small) for name, entry in content["datasets"].items())
        flags = tuple(flag_words(content.get("flags", {})))
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: {error!r} is missing or wrong; compare with precompute/recipes") from error
    unknown = set(only) - {dataset.name for dataset in datasets}
    if unknown:
        raise UsageError(
            f"--only {' '.join(sorted(unknown))}: the recipe has {', '.join(d.name for d in datasets)}"
        )
    chosen = tuple(d for d in datasets if not only or d.name in only)
    return MakeRecipe(path.stem, flags, chosen, content.get("sample_bytes"))


def _dataset(name: str, entry: dict[str, Any], small: bool) -> Dataset:
    size = entry["small" if small else "full"]
    splits = tuple(entry.get("splits", ["train"]))
    config = size.get("name", entry.get("name"))
    return Dataset(
        name, config, splits, size["rows"], size["gigabytes"], entry.get("links"), entry.get("gated")
    )
