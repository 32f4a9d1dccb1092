"""The source of shards, opened again from their recipe.

What neither recipe nor plan knows, where the raw files lie on this machine, comes from the user's flags.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loader.format import Manifest
from loader.printable import printable
from precompute.errors import UsageError
from precompute.input.caption_files import JOINED
from precompute.input.open_records import OURS, open_records
from precompute.input.options import parse_option
from precompute.input.records import Records, SourceOptions

FOREIGN = ("image_column", "caption_column", "caption_cleaning")
PLAIN_OPTION = re.compile(r'\w+=("[\w,+ -]*"|[\d.eE+-]+|true|false|null)')
FILES = "captions_from="
NO_OPTION = {"path", "name", "version", "options", JOINED, *FOREIGN}


@dataclass(frozen=True)
class Where:
    """What only the user knows of a source. dataset: None for the one that the recipe names."""

    dataset: str | None = None
    data_dir: Path | None = None
    options: tuple[str, ...] = ()

    @property
    def is_named(self) -> bool:
        """Whether the user says where it is, so that not to find it is an error."""
        return self.dataset is not None or self.data_dir is not None or bool(self.options)


def tell_opened(what: str) -> None:
    """Tell in a line what is opened because a recipe, maybe a stranger's, names it."""
    print(printable(f"opened, as the recipe of the shards names it: {what}"), file=sys.stderr, flush=True)


def open_recorded(manifest: Manifest, split: str, where: Where) -> Records:
    """The records that a split was made of, in the same units. Raises UsageError where they are not at hand."""
    recipe, plan = manifest.recipe["dataset"], manifest.splits[split].plan
    name = where.dataset or recipe["path"]
    columns: dict[str, Any] = {}
    options = recipe.get("options", [])
    if name.startswith(OURS):
        given = {k: v for k, v in recipe.items() if k not in NO_OPTION} | {"parts": plan.get("parts")}
        given |= {"captions_order": recipe[JOINED]["order"]} if JOINED in recipe else {}
        options = [f"{k}={json.dumps(v)}" for k, v in given.items() if v is not None]
        columns = {"caption_cleaning": recipe.get("caption_cleaning")}
    else:
        columns = {column: recipe[column] for column in FOREIGN if column in recipe}
    if JOINED in recipe and not any(option.startswith(FILES) for option in where.options):
        names = ", ".join(f'"{printable(name)}": "FILE"' for name in recipe[JOINED]["sha256"])
        raise UsageError(
            f"--options: captions of these shards are joined from files; name them: 'captions_from={{{names}}}'"
        )
    given_files, further = () if name.startswith(OURS) else _captions_of(where.options), where.options
    if given_files:
        further = tuple(option for option in further if not option.startswith(FILES))
        columns |= {"captions": given_files, "captions_order": recipe.get(JOINED, {}).get("order", "front")}
    if not where.is_named:
        _refuse_what_only_the_recipe_names(name, options)
    records = open_records(
        SourceOptions(
            dataset=name,
            name=recipe.get("name"),
            split=split,
            data_dir=where.data_dir,
            options=(*options, *further),
            prepare=bool(plan.get("prepared")),
            limit=plan.get("limit"),
            samples_per_shard=plan.get("samples_per_shard", 4096),
            **columns,
        )
    )
    if len(records.units) != plan["units"]:
        raise UsageError(
            f"--source {name}: it has {len(records.units)} units, the shards were made of {plan['units']}; "
            "give --data-dir and --options as the run had them"
        )
    return records


def _captions_of(options: Sequence[str]) -> tuple[str, ...]:
    """What `captions_from={...}` among the options names, as --captions has it. Raises UsageError."""
    files = [parse_option(option)[1] for option in options if option.startswith(FILES)]
    if not all(isinstance(one, dict) for one in files):
        raise UsageError(
            '--options captions_from=...: give files by name, as in \'captions_from={"llava": "FILE"}\''
        )
    return tuple(f"{kind}={file}" for one in files for kind, file in one.items())


def _refuse_what_only_the_recipe_names(name: str, options: Sequence[str]) -> None:
    """The recipe may be a stranger's: what it names on this machine or in this network is not opened because it says so.

    Our builders are published archives, and their options may be numbers and plain words, but no path and no address.
    """
    if not name.startswith(OURS):
        raise UsageError(
            f"--source: the shards' recipe names {printable(name)}; give that yourself to have it opened"
        )
    for option in options:
        if not PLAIN_OPTION.fullmatch(option):
            raise UsageError(
                f"--options: the shards' recipe says {printable(option)}; give that yourself to have it opened"
            )
