"""README.md of a pushed dataset: a YAML header that makes `load_dataset("USER/REPO")` work, and what a reader must know.

The part between the two marks is written anew with each push; what people have written around it, and into the header, stays.
"""

import importlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

import builders
from builders.core.base import ImageCaptionBuilder
from loader.format import Field, Manifest, Split
from loader.printable import printable
from loader.recipe import BASE
from precompute.report.formatting import file_size, flatten

BEGIN = "<!-- latentmill: written by precompute/push.py, which replaces all down to the next mark -->"
END = "<!-- latentmill: end -->"
OURS = ("configs", "size_categories")  # of the header: what follows from the shards, whoever wrote there
MEANING = {
    "moments": "raw mean, then raw std, of the VAE's posterior at {0} pixels; `latents = (mean + std * noise - shift) * scale`",
    "latents": "latents at {0} pixels, scaled and ready to train on",
    "caption_latents": "hidden states of the caption's tokens{1}",
    "caption_pooled": "pooled vector of the caption{1}",
    "features": "a vision model's tokens of the same crop{1}",
}


def render_card(manifest: Manifest, repo: str, existing: str = "", sheet: bool = False) -> str:
    """The card, made of an existing one where there is. sheet: preview.png lies beside it."""
    known = source_info(manifest)
    card = DatasetCard(existing) if existing.strip() else None
    header = _header(manifest, known)
    kept = card.data.to_dict() if card else {}
    if "license" in kept:
        header = {name: value for name, value in header.items() if not name.startswith("license")}
    data = {**header, **kept, **{name: header[name] for name in OURS}}
    body = _body(manifest, repo, known, sheet)
    old = card.text if card else ""
    before, found, rest = old.partition(BEGIN)
    after = rest.partition(END)[2] if found else ""
    text = f"{before.rstrip()}\n\n{BEGIN}\n\n{body}\n{END}{after}".lstrip()
    return f"---\n{DatasetCardData(**data).to_yaml()}\n---\n\n{text.rstrip()}\n"


@dataclass(frozen=True)
class Known:
    """What a builder of ours knows of its dataset."""

    licence: str = ""
    homepage: str = ""

    @property
    def forbids_sharing(self) -> bool:
        return "no redistribution" in self.licence


def source_info(manifest: Manifest) -> Known:
    """Licence and homepage of the source of shards."""
    return known_source(str(manifest.recipe.get("dataset", {}).get("path", "")))


def known_source(dataset: str) -> Known:
    """Licence and homepage of a dataset, where it is one of our builders."""
    package, _, name = dataset.partition("/")
    if package == "builders" and name in builders.names():
        for value in vars(importlib.import_module(f"builders.{name}")).values():
            if inspect.isclass(value) and issubclass(value, ImageCaptionBuilder) and value.HOMEPAGE:
                return Known(value.LICENSE, value.HOMEPAGE)
    return Known()


# --- header -----------------------------------------------------------------------------------------------------------


def _header(manifest: Manifest, known: Known) -> dict[str, Any]:
    samples = sum(split.samples for split in manifest.splits.values())
    source = str(manifest.recipe.get("dataset", {}).get("path", ""))
    ours = source.removeprefix("builders/")
    header: dict[str, Any] = {
        "pretty_name": f"{ours} latents",
        "task_categories": ["text-to-image"],
        "tags": ["latents", "latent-diffusion", "webdataset", "latentmill"],
        "size_categories": [_size_category(samples)],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": name, "path": _pattern(name, s)}
                    for name, s in sorted(manifest.splits.items())
                    if s.samples
                ],
            }
        ],
        "source_datasets": [f"extended|other-{ours}" if ours != source else source],
    }
    if known.licence:
        header |= {"license": "other", "license_name": "of-the-source", "license_link": known.homepage}
    return header


def _pattern(name: str, split: Split) -> str:
    """Matches the split's tars: they lie beside the manifest, or all in folders of units."""
    folders = f"{name}/*/" if any(shard.folder for shard in split.shards) else ""
    return f"{folders}{name}-[0-9]*.tar"


def _size_category(samples: int) -> str:
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B"]
    return next((name for power, name in enumerate(names, 3) if samples < 10**power), "10B<n<100B")


# --- body -------------------------------------------------------------------------------------------------------------


def _body(manifest: Manifest, repo: str, known: Known, sheet: bool) -> str:
    dataset = manifest.recipe.get("dataset", {})
    title = _cell(f"{str(dataset.get('path', '')).removeprefix('builders/')} latents")
    parts = [
        f"# {title}",
        f"VAE latents and text embeddings of `{_code(dataset.get('path', ''))}`, precomputed for latent diffusion training.",
    ]
    if BASE in manifest.recipe:
        parts.append(
            "This is a layer: it adds the fields below to the samples of shards of fingerprint "
            f"`{_code(manifest.recipe['base'])}`, and is read together with them."
        )
    if known.licence:
        parts.append(f"Source: <{known.homepage}>. Licence of the source: {_cell(known.licence)}.")
    if sheet:
        parts.append("![Contact sheet: source images beside what the latents decode to](preview.png)")
    parts += ["## Counts", _counts(manifest), "## Members of a sample", _members(manifest)]
    parts += ["## Load it", _usage(manifest, repo), "## Recipe", _recipe(manifest)]
    return "\n\n".join(parts) + "\n"


def _counts(manifest: Manifest) -> str:
    rows = [
        (_cell(name), f"{s.samples:,}", f"{s.rows:,}", file_size(sum(shard.bytes for shard in s.shards)), f"{len(s.shards):,}",
         f"{s.units_done} of {s.plan['units']}")
        for name, s in sorted(manifest.splits.items())
    ]  # fmt: skip
    table = _table(("split", "samples", "source rows", "size", "shards", "units finished"), rows)
    rejects = [
        (_cell(name), f"`{_code(reason)}`", f"{n:,}")
        for name, s in sorted(manifest.splits.items())
        for reason, n in s.rejected.items()
    ]
    if rejects:
        table += "\n\nEvery source row is either a sample or a rejection:\n\n"
        table += _table(("split", "rejected as", "rows"), rejects)
    return table


def _members(manifest: Manifest) -> str:
    rows = [(f"`KEY.{_code(f.member)}`", f"({_shape(f)}) {f.dtype}", _meaning(f)) for f in manifest.fields]
    if BASE not in manifest.recipe:
        rows += [("`KEY.txt`", "UTF-8", "the caption")]
        rows += [("`KEY.json`", "object", "width, height and crop of the source, where it came from, extras")]
    scaled = [f for f in manifest.fields if f.kind == "moments"]
    note = "\n\nNothing random and no scale is stored in `moments`: "
    note += (
        "; ".join(f"`{f.name}` has scale {_number(f.scale)}, shift {_number(f.shift)}" for f in scaled) + "."
    )
    return _table(("member", "shape, dtype", "meaning"), rows) + (note if scaled else "")


def _usage(manifest: Manifest, repo: str) -> str:
    field = next((f for f in manifest.fields if f.kind in ("moments", "latents")), None)
    resolution = re.sub(r"\D", "", field.name) if field else "256"
    split = next((name for name, s in sorted(manifest.splits.items()) if s.samples), "train")
    tars = _pattern(split, manifest.splits[split]) if split in manifest.splits else f"{split}-[0-9]*.tar"
    paths = f'"hf://datasets/{repo}"'
    if BASE in manifest.recipe:
        paths = f'("BASE", {paths})'  # whoever reads it knows where the base lies
    return f"""```python
from loader import make_loader  # latentmill

for batch in make_loader({paths}, batch_size=256, resolution={resolution}):
    batch["image_latents"], batch["caption_latents"]  # scaled; (B, C, h, w) and (B, 1, T, D)
```

```python
from datasets import load_dataset

rows = load_dataset("{repo}", split="{split}", streaming=True)
```

```python
import io

import numpy as np
import webdataset as wds  # pip install webdataset huggingface_hub
from huggingface_hub import HfFileSystem

def decode(sample):  # not .decode(), which unpickles what it finds
    return {{name: np.load(io.BytesIO(data)) if name.endswith(".npy") else data for name, data in sample.items()}}

urls = [f"https://huggingface.co/datasets/{repo}/resolve/main/{{path.split('/', 3)[3]}}"
        for path in HfFileSystem().glob("datasets/{repo}/{tars}")]
rows = wds.WebDataset(urls, shardshuffle=False).map(decode)
```"""


def _recipe(manifest: Manifest) -> str:
    rows = [(f"`{_code(name)}`", _cell(value)) for name, value in flatten(manifest.recipe)]
    return f"Fingerprint `{manifest.fingerprint}`.\n\n" + _table(("value", ""), rows)


def _shape(field: Field) -> str:
    free = {"caption_latents": ["T"], "features": ["N"]}.get(field.kind, ["h", "w"])
    return ", ".join(free.pop(0) if n is None else str(n) for n in field.shape)


def _meaning(field: Field) -> str:
    resolution = re.sub(r"\D", "", field.name)
    encoder, _, kind = field.name.removeprefix(field.kind).strip("_").partition("+")
    more = f", by encoder `{encoder}`" if encoder else ""
    return MEANING[field.kind].format(resolution, more + (f", of captions of kind `{kind}`" if kind else ""))


def _number(value: Any) -> str:
    return ", ".join(f"{v:.6g}" for v in value) if isinstance(value, (tuple, list)) else f"{value:.6g}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines: list[tuple[str, ...]] = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: Any) -> str:
    """Text that Markdown and HTML leave alone."""
    return re.sub(r"([\\`*_\[\]<>|#!~$&])", r"\\\1", printable(str(text)))


def _code(text: Any) -> str:
    """Text between backticks in a table."""
    return printable(str(text)).replace("`", "'").replace("|", "/")
