"""What one `--text-encoder` says: a model, and which of its states are stored.

    --text-encoder [NAME=]ID[@REVISION][?subfolder=S&layer=N&length=T&padding=P&template=T&skip=N&pooled&...]

layer: which hidden state, counted as transformers does (-1 the last, after the final norm; -2 the one before). Several, as
    in layer=9,18,27, are joined along the channels.
length: tokens at most, those of `skip` aside.
padding: `trim` hides the padding behind a mask, and stores the real tokens alone; `masked` hides it and stores its states
    too; `full` neither masks nor trims. Default: `full` for CLIP, else `trim`.
template: text around the caption, which stands for {}; \\n is a line end. template=@FILE takes it from a file.
    A line end that the file closes with is part of it, and is told of.
skip: tokens at the start that are not stored: those of an instruction that is the same for all. `skip=template` counts those
    before {}, `skip=template-1` one less.
pooled: store the pooled vector too; `pooled=only` stores no states beside it.
side: of the padding, `right` (default) or `left`.
multiple: pad each caption to the next multiple of so many tokens, which are all stored and none hidden.
mask: of padded text, `real` stores the real tokens alone, so that the loader gives a mask; `one-more` one padding token too.
norm: apply the model's final norm to earlier layers, as clip skip in SD 1.5 does.
case: `lower` makes captions lower-case, and strips them.
clean: `ftfy` mends text as Wan's pipeline does: ftfy, which straightens curly quotes too, HTML entities, white space;
    `deepfloyd` cleans it as PixArt's does by default: lower case, no links, no CJK, no codes.
keep: `first` stores the first token (BOS) too, ahead of what `skip` leaves.
empty: `bare` reads the empty caption without template and skip, as some pipelines do for guidance.
quoted: read only what stands in quotation marks, as `Text "A". Text "B". `; a caption without any has no rows at all.
"""

import html
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import parse_qs, quote

import ftfy

from builders.core.captions import clean_caption
from precompute.errors import UsageError

logger = logging.getLogger("precompute")

Padding = Literal["full", "masked", "trim"]
# Each as the recipe puts it.
PADDINGS: dict[Padding, str] = {"full": "max_length", "masked": "masked", "trim": "trimmed"}
CHOICES = {
    "padding": get_args(Padding),
    "pooled": ("", "only"),
    "side": ("left", "right"),
    "mask": ("real", "one-more"),
    "case": ("lower",),
    "clean": ("ftfy", "deepfloyd"),
    "keep": ("first",),
    "empty": ("bare",),
}
VALUES = ("subfolder", "layer", "length", "template", "skip", "multiple")
SWITCHES = ("norm", "quoted")
RARE = ("side", "multiple", "mask", "norm", "case", "clean", "keep", "empty", "quoted")
MASKED = ("subfolder", "side", "multiple", "mask", "quoted")  # what takes a tokenizer of transformers
QUOTED = ("'(.*?)'", '"(.*?)"', "\u2018(.*?)\u2019", "\u201c(.*?)\u201d")


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
    counted: bool = False
    side: str = "right"
    multiple: int | None = None
    mask: str | None = None
    norm: bool = False
    case: str | None = None
    clean: str | None = None
    keep: str | None = None
    empty: str | None = None
    quoted: bool = False
    states: bool = True

    def fill(self, caption: str) -> str:
        """What the model reads."""
        caption = self.read(caption)
        return caption if self.is_bare(caption) else self.template.replace("{}", caption)

    def read(self, caption: str) -> str:
        """What of a caption the model reads, the template aside; with `quoted` nothing where nothing is quoted."""
        if self.clean == "ftfy":
            caption = " ".join(html.unescape(html.unescape(ftfy.fix_text(caption))).split())
        elif self.clean == "deepfloyd":
            caption = clean_caption(caption, "deepfloyd")
        if self.quoted:
            found = [text for pattern in QUOTED for text in re.findall(pattern, caption)]
            caption = "".join(f'Text "{text}". ' for text in found)
        return caption.lower().strip() if self.case == "lower" else caption

    def is_bare(self, caption: str) -> bool:
        """Whether this caption is read without template and skip."""
        return self.empty == "bare" and not self.read(caption)

    @property
    def extras(self) -> dict[str, Any]:
        """The rarer options that are not at their default, as the recipe holds them."""
        values = {name: getattr(self, name) for name in RARE}
        return {name: value for name, value in values.items() if value not in (None, False, "right")}


def split_value(value: str) -> tuple[str, str, str]:
    """NAME, ID and the options of `[NAME=]ID?OPTIONS`. A `=` that stands behind no NAME, as in ./run=1, is the folder's."""
    front, _, query = value.partition("?")
    found = re.fullmatch(r"(?:([A-Za-z0-9_-]+)=)?(.*)", front, re.DOTALL)
    assert found is not None
    return found[1] or "", found[2], query


def parse_text_encoder(value: str) -> TextSpec:
    """Raises UsageError, naming the part that is wrong."""

    def refuse(what: str) -> UsageError:
        return UsageError(f"--text-encoder {value}: {what}")

    name, model, query = split_value(value)
    if not model or "?" in model:
        raise refuse("write it [NAME=]ID[?layer=-2&length=77&pooled]; NAME is letters, digits, _ -")
    options = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
    known = tuple(dict.fromkeys((*VALUES, *SWITCHES, *CHOICES)))
    if unknown := options.keys() - set(known):
        raise refuse(f"unknown {sorted(unknown)}; there are {', '.join(known)}")
    try:
        layers = tuple(int(layer) for layer in options.get("layer", "-1").split(","))
        length = int(options["length"]) if "length" in options else None
        counted = re.fullmatch(r"template(-\d+)?", options.get("skip", ""))
        skip = int(counted[1] or 0) if counted else int(options.get("skip", 0))
        multiple = int(options["multiple"]) if "multiple" in options else None
    except ValueError as error:
        raise refuse("layer, length, skip and multiple are whole numbers") from error
    if length is not None and length < 2:
        raise refuse("length must be at least 2 tokens")
    if multiple is not None and multiple < 1:
        raise refuse("multiple must be at least 1 token")
    if skip < 0 and not counted:
        raise refuse("skip counts tokens from the start, 0 or more")
    for option, choices in CHOICES.items():
        if option in options and options[option] not in choices:
            raise refuse(f"{option} is one of {', '.join(sorted(filter(None, choices)))}")
    if options.get("side") == "left" and ("skip" in options or "keep" in options):
        raise refuse("side=left puts padding where skip and keep count tokens; leave one of them out")
    if multiple and options.get("padding", "full") != "full":
        raise refuse("multiple hides no padding; leave padding out")
    if "quoted" in options and ({"mask", "multiple"} & options.keys() or "padding" in options):
        raise refuse("quoted stores the rows of what is quoted alone; leave padding, mask and multiple out")
    if options.get("pooled") == "only" and {"layer", "norm", "mask", "skip", "keep"} & options.keys():
        raise refuse("pooled=only stores no states; leave layer, norm, mask, skip and keep out")
    if model == "toy" or model.startswith("openclip:"):
        refused = [option for option in MASKED if option in options]
        refused += ["padding"] if options.get("padding", "full") != "full" else []
        refused += [f"skip={options['skip']}"] if counted else []
        if refused:
            raise refuse(
                f"{model} has no mask, side or token that could be counted; leave {', '.join(refused)} out"
            )
    padding: Any = "full" if multiple else "trim" if "quoted" in options else options.get("padding")
    template = _template(options.get("template", "{}"), refuse)
    return TextSpec(
        name,
        model,
        options.get("subfolder"),
        layers,
        length,
        padding,
        template,
        skip,
        "pooled" in options,
        counted=counted is not None,
        side=options.get("side", "right"),
        multiple=multiple,
        mask=options.get("mask"),
        norm="norm" in options,
        case=options.get("case"),
        clean=options.get("clean"),
        keep=options.get("keep"),
        empty=options.get("empty"),
        quoted="quoted" in options,
        states=options.get("pooled") != "only",
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
    if recipe.get("pooled") == "only":
        options["layer"] = None
    if recipe.get("quoted"):
        options["padding"] = None
    query = [f"{name}={value}" for name, value in options.items() if value]
    query += {True: ["pooled"], "only": ["pooled=only"]}.get(recipe.get("pooled"), [])
    query += [f"{name}={recipe[name]}" for name in RARE if name in recipe and name not in SWITCHES]
    query += [name for name in SWITCHES if recipe.get(name)]
    prefix = f"{recipe['name']}=" if recipe.get("name") else ""
    return f"{prefix}{'auto:' if recipe.get('auto') else ''}{model}?{'&'.join(query)}"


def _template(given: str, refuse: Any) -> str:
    template = given.replace("\\n", "\n")
    if given.startswith("@"):
        try:
            template = Path(given[1:]).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise refuse(f"cannot read the template ({error})") from error
        if template.endswith("\n"):
            logger.warning(
                "--text-encoder: the template in %s closes with a line end, which is part of it; is it the editor's, take it "
                "out (printf '%%s' TEXT > FILE)",
                given[1:],
            )
    if template.count("{}") != 1:
        raise refuse("template must hold {} once, where the caption goes")
    return template
