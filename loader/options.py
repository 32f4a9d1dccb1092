"""What can be asked of a loader: the options by name and type, their defaults, and what is wrong whatever the shards are."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from math import inf
from numbers import Integral, Real
from typing import Any, Literal, TypedDict

from loader.captions import Captions
from loader.condition import Condition, Keys
from loader.select import Scale

Path_ = str | os.PathLike[str]
Layered = tuple[Path_, ...]  # a folder, and the layers that lie beside it
Paths = Path_ | Layered | Sequence[Path_ | Layered]
Chance = float | Mapping[str, float]


class Options(TypedDict, total=False):
    """Options of `make_loader` and `LatentDataset`.

    weights: of each path in the mixture. Each path then has epochs of its own, and an epoch of the mixture is as long as
        all samples together. None: every sample of every path once an epoch.
    split: which split of the paths.
    where: only samples for which this SQL is true, over key, caption, width, height (pixels), source and the extras by name;
        needs the [select] extra. With keys and subset: samples that fulfil all.
    keys: only these, or those of a file: parquet or csv with a column `key`, text with one a line.
    subset: (a, b): only keys whose hash, as a share of all hashes, is at least a and below b: (0, 0.99) to train on,
        (0.99, 1) to hold out.
    may_differ: parts of the recipe (`seed`, `image_encoder.weights`) in which the paths may differ.
    resolution: pixels, shorter edge; may be left out where the shards have one only.
    text_encoders: names of those whose `caption_latents` are read, "" the unnamed first; None: all.
    pooled: read `caption_pooled` as well: True: of the text_encoders; or names of encoders, whose states need not be read.
    features: names of image features that are read, as `features_NAME`.
    captions: which caption, where the shards have several of a sample. "first"; "random": one of them, drawn anew each epoch; or
        weights by kind, {"llava": 0.7, "alt": 0.3}: of the kinds that a sample has each in proportion to its weight, of several
        captions of that kind each as likely, and of one that has none of these kinds any caption. Only the drawn one is read.
    extras: what else of the samples, one or several of "key", "caption" (the drawn one), "caption_kind", "size_conditioning" (B, 6):
        original height and width, top and left of the crop, target height and width, as SDXL takes them; a column of the sidecars
        (width, source, ...), or one of their extras by name. All but the sizes are lists of B.
    posterior: "sample": (mean + std * noise - shift) * scale; "mean": without noise. Of `moments` only.
    scale, shift: for moments in tars without a manifest; one number, or one per channel.
    caption_drop_prob: share of captions that are dropped, and not read; or a share for each encoder by name, drawn one by one.
    dropped: what stands for them: "zeros", or "null": the empty caption's embedding, from null_caption.npz.
    flip_prob: share of images taken from the flipped field; None: half where the shards have one, else none.
    caption_tokens: pad or cut text of varying length to so many tokens; None: pad to the longest of a batch.
    seed: of the order, the noise, the dropped captions and the flips.
    shuffle: order shards, and samples inside of windows, anew each epoch. False: as they lie in the shards.
    shuffle_window: samples; the window's shards are read from at the same time.
    partitions: as many as nodes, if each is to read its own part of remote shards only; divides the world size.
    drop_last: leave out what does not fill a batch on every rank. False: fill up from the epoch's beginning, and mark it.
    from_start: for validation: every `for` begins at the beginning of the same epoch, also after a break.
    on_error: "substitute" an unreadable sample by another of the same dataset, counted and logged, or "raise" DataError.
    rank, world_size: default to torch.distributed's, else to the launcher's environment, asked when iteration begins.
    pin_memory: of batches that are made in this process.
    cache_dir: remote shards, and the indexes of tars without a manifest; default $LATENTMILL_CACHE or ~/.cache/latentmill.
    cache_limit: bytes that remote shards may take there, for all processes of a machine; None: no limit.
    patience: seconds to keep trying a server from which next to nothing comes (less than 64 KiB), before a shard counts as unreadable.
    storage_options: of fsspec's file system for s3://, gs://, az:// and their like (`endpoint_url`, `key`, ...).
    """

    weights: Sequence[float] | None
    split: str
    where: str | None
    keys: Keys | None
    subset: tuple[float, float] | None
    may_differ: Sequence[str]
    resolution: int | None
    text_encoders: Sequence[str] | str | None
    pooled: bool | Sequence[str] | str
    features: Sequence[str] | str
    captions: Captions
    extras: Sequence[str] | str
    posterior: Literal["sample", "mean"]
    scale: Scale | None
    shift: Scale | None
    caption_drop_prob: Chance
    dropped: Literal["zeros", "null"]
    flip_prob: float | None
    caption_tokens: int | None
    seed: int
    shuffle: bool
    shuffle_window: int
    partitions: int
    drop_last: bool
    from_start: bool
    on_error: Literal["substitute", "raise"]
    rank: int | None
    world_size: int | None
    pin_memory: bool
    cache_dir: Path_ | None
    cache_limit: int | None
    patience: float
    storage_options: dict[str, Any] | None


@dataclass(frozen=True)
class Settings:
    """The options with their defaults. Raises ValueError for a value that no shards would fit."""

    batch_size: int
    weights: Sequence[float] | None = None
    split: str = "train"
    where: str | None = None
    keys: Keys | None = None
    subset: tuple[float, float] | None = None
    may_differ: Sequence[str] = ("dataset",)
    resolution: int | None = None
    text_encoders: Sequence[str] | str | None = None
    pooled: bool | Sequence[str] | str = False
    features: Sequence[str] | str = ()
    captions: Captions = "first"
    extras: Sequence[str] | str = ()
    posterior: Literal["sample", "mean"] = "sample"
    scale: Scale | None = None
    shift: Scale | None = None
    caption_drop_prob: Chance = 0.0
    dropped: Literal["zeros", "null"] = "zeros"
    flip_prob: float | None = None
    caption_tokens: int | None = None
    seed: int = 0
    shuffle: bool = True
    shuffle_window: int = 16384
    partitions: int = 1
    drop_last: bool = True
    from_start: bool = False
    on_error: Literal["substitute", "raise"] = "substitute"
    rank: int | None = None
    world_size: int | None = None
    pin_memory: bool = False
    cache_dir: Path_ | None = None
    cache_limit: int | None = None
    patience: float = 900.0
    storage_options: dict[str, Any] | None = None
    encoders: Sequence[str] | None = field(init=False)
    words: tuple[str, ...] = field(init=False)
    feature_names: tuple[str, ...] = field(init=False)
    condition: Condition = field(init=False)

    def __post_init__(self) -> None:
        one_name = isinstance(self.text_encoders, str)
        object.__setattr__(self, "encoders", [self.text_encoders] if one_name else self.text_encoders)
        words = (self.extras,) if isinstance(self.extras, str) else tuple(self.extras)
        object.__setattr__(self, "words", words)
        names = (self.features,) if isinstance(self.features, str) else tuple(self.features)
        object.__setattr__(self, "feature_names", names)
        object.__setattr__(self, "condition", Condition(self.where, self.keys, self.subset))
        for name, least in (
            ("batch_size", 1),
            ("shuffle_window", 1),
            ("partitions", 1),
            ("caption_tokens", 1),
        ):
            number = getattr(self, name)
            if number is not None and (not _whole(number) or number < least):
                raise ValueError(f"{name}={number!r}: expected an int of at least {least}")
        for name, choices in (
            ("posterior", ("sample", "mean")),
            ("dropped", ("zeros", "null")),
            ("on_error", ("substitute", "raise")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {choices[0]!r} or {choices[1]!r}")
        _check_captions(self.captions)
        if not all(isinstance(word, str) for word in self.words):
            raise ValueError(f"extras={self.extras!r}: expected names, as in ['key', 'size_conditioning']")
        if not _whole(self.seed):
            raise ValueError(f"seed={self.seed!r}: expected an int")
        chances = self.caption_drop_prob
        for chance in chances.values() if isinstance(chances, Mapping) else [chances]:
            _check_chance("caption_drop_prob", chances, chance, ", or a dict of such by encoder")
        _check_chance("flip_prob", self.flip_prob, 0.0 if self.flip_prob is None else self.flip_prob, "")


def _check_captions(captions: Any) -> None:
    if isinstance(captions, Mapping):
        weights = list(captions.values())
        numbers = [float(w) for w in weights if not isinstance(w, bool) and isinstance(w, Real)]
        if len(numbers) == len(weights) and all(0 <= n < inf for n in numbers) and sum(numbers) > 0:
            return
    elif captions in ("first", "random"):
        return
    raise ValueError(
        f"captions={captions!r}: expected 'first', 'random', or weights of at least 0 by kind, as in {{'human': 1}}"
    )


def _whole(number: Any) -> bool:
    return isinstance(number, Integral)


def _check_chance(name: str, given: Any, chance: Any, more: str) -> None:
    if isinstance(chance, bool) or not isinstance(chance, Real) or not 0 <= float(chance) <= 1:
        raise ValueError(f"{name}={given!r}: expected a share from 0 to 1, 0.1 for a tenth{more}")


def settings_of(batch_size: int, options: Options) -> Settings:
    """Raises TypeError for an option that is none, with the one that may have been meant."""
    known = [f.name for f in fields(Settings) if f.init]
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise TypeError(f"{name} is no option of a loader; {hint}")
    return Settings(batch_size, **options)
