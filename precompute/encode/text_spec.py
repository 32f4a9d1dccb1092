"""What one `--text-encoder` says: a model, and which of its states are stored.

    --text-encoder [NAME=]ID[@REVISION][?subfolder=S&layer=N&length=T&padding=P&template=T&skip=N&pooled]

layer: which hidden state, counted as transformers does (-1 the last, after the final norm; -2 the one before). Several, as
    in layer=9,18,27, are joined along the channels.
length: tokens at most, those of `skip` aside.
padding: `trim` hides the padding behind a mask, and stores the real tokens alone; `masked` hides it and stores its states
    too; `full` neither masks nor trims. Default: `full` for CLIP, else `trim`.
template: text around the caption, which stands for {}; \\n is a line end. template=@FILE takes it from a file.
skip: tokens at the start that are not stored: those of an instruction that is the same for all.
pooled: store the pooled vector too.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import parse_qs, quote

from precompute.errors import UsageError

Padding = Literal["full", "masked", "trim"]
PADDINGS: dict[Padding, str] = {
    "full": "max_length",
    "masked": "masked",
    "trim": "trimmed",
}  # as the recipe puts it


@dataclass(frozen=True)
class TextSpec:
    """A parsed `--text-encoder`. None: the model's own default. The first encoder has the empty name."""

    name: str
    model: str
    subfolder: str | None = None
    layers: tuple[int, ...] = (-1,)
    length: int | None = None
    padding: Padding | None = None
    template: str = "{}"
    skip: int = 0
    pooled: bool = False

    def fill(self, caption: str) -> str:
        """What the model reads."""
        return self.template.replace("{}", caption)


def parse_text_encoder(value: str) -> TextSpec:
    """Raises UsageError, naming the part that is wrong."""

    def refuse(what: str) -> UsageError:
        return UsageError(f"--text-encoder {value}: {what}")

    front, _, query = value.partition("?")
    name, separator, model = front.rpartition("=")
    if not model or (separator and not re.fullmatch(r"[A-Za-z0-9_-]+", name)):
        raise refuse("write it [NAME=]ID[?layer=-2&length=77&pooled]; NAME is letters, digits, _ -")
    options = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
    known = ("subfolder", "layer", "length", "padding", "template", "skip", "pooled")
    if unknown := options.keys() - set(known):
        raise refuse(f"unknown {sorted(unknown)}; there are {', '.join(known)}")
    try:
        layers = tuple(int(layer) for layer in options.get("layer", "-1").split(","))
        length = int(options["length"]) if "length" in options else None
        skip = int(options.get("skip", 0))
    except ValueError as error:
        raise refuse("layer, length and skip are whole numbers") from error
    if length is not None and length < 2:
        raise refuse("length must be at least 2 tokens")
    if skip < 0:
        raise refuse("skip counts tokens from the start, 0 or more")
    padding: Any = options.get("padding")
    if padding not in (None, *get_args(Padding)):
        raise refuse(f"padding is one of {', '.join(get_args(Padding))}")
    template = _template(options.get("template", "{}"), refuse)
    return TextSpec(
        name, model, options.get("subfolder"), layers, length, padding, template, skip, "pooled" in options
    )


def text_encoder_value(recipe: dict[str, Any], model: str) -> str:
    """The `--text-encoder` that gives an encoder of this recipe; model: where its `model` is to be found."""
    layers = recipe.get("layer", -1)
    paddings = {put: padding for padding, put in PADDINGS.items()}
    options = {
        "layer": ",".join(map(str, layers if isinstance(layers, list) else [layers])),
        "length": str(recipe["length"]),
        "padding": paddings.get(recipe.get("padding", "")),
        "template": quote(recipe["template"]) if "template" in recipe else None,
        "skip": str(recipe["skip"]) if "skip" in recipe else None,
        "subfolder": recipe.get("subfolder"),
    }
    query = [f"{name}={value}" for name, value in options.items() if value]
    query += ["pooled"] if recipe.get("pooled") else []
    prefix = f"{recipe['name']}=" if recipe.get("name") else ""
    return f"{prefix}{'auto:' if recipe.get('auto') else ''}{model}?{'&'.join(query)}"


def _template(given: str, refuse: Any) -> str:
    template = given.replace("\\n", "\n")
    if given.startswith("@"):
        try:
            template = Path(given[1:]).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise refuse(f"cannot read the template ({error})") from error
    if template.count("{}") != 1:
        raise refuse("template must hold {} once, where the caption goes")
    return template
