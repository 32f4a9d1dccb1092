"""See at a glance whether shards are right: a contact sheet (preview.png) and a report (report.html).

    python precompute/preview.py latents/cc12m
    python precompute/preview.py hf://datasets/USER/cc12m-latents --to .

Both go into the folder itself, those of shards elsewhere into that of --to. Source images are shown where the dataset that
the recipe names can be opened.
"""

import datetime
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from loader.format import Manifest
from loader.printable import printable
from precompute.cloud.place import check_options, open_shards
from precompute.commands import parse
from precompute.errors import PrecomputeError, UsageError, one_line_errors
from precompute.flags.preview import Config as Config
from precompute.input.recorded_source import Where
from precompute.report.figures import gather
from precompute.report.page import render
from precompute.report.sheet import draw_sheet
from precompute.report.tiles import make_cards, make_pair
from precompute.shards.output_folder import open_folder, write_file
from precompute.shards.sample_reader import pick_samples
from precompute.shards.store import expected_manifest
from precompute.verification.check_folder import REPORT, SHEET
from precompute.verification.decode_check import source_images
from precompute.verification.read_folder import read_markers
from precompute.verification.recipe_models import Models, recipe_image_encoder
from precompute.verification.verdict import last_verdict


def run(config: Config) -> list[Path]:
    """Write both files; their paths. Raises UsageError."""
    if config.num_samples < 1:
        raise UsageError(f"--num-samples {config.num_samples}: give at least 1")
    check_options(config.store_option, config.output)
    store = open_shards(config.output, config.store_option)
    if config.to is None and not store.local:
        raise UsageError("--to: name a folder for preview.png and report.html")
    there = read_markers(store)
    markers, manifest = there.markers, there.manifest
    if not markers:
        raise UsageError(
            f"{config.output}: no unit is finished yet, there is nothing to show. Come back later"
        )
    manifest = expected_manifest(markers, manifest)
    split = config.split or next(iter(manifest.splits))
    if split not in manifest.splits:
        raise UsageError(f"--split {split}: there are {', '.join(manifest.splits)}")
    folder = config.to or Path(config.output).expanduser()
    open_folder("--to", folder)

    where, notes = Where(config.source, config.data_dir, config.options), list[str]()
    samples = pick_samples(store, markers, split, config.num_samples)
    encoder = None
    try:
        if manifest.recipe.get("image_encoder"):
            encoder = recipe_image_encoder(manifest.recipe, Models(config.vae))
    except PrecomputeError as error:
        if config.vae:
            raise
        notes.append(f"latents are shown in false colours: {error}")
    images, told = source_images(manifest, split, samples, where)
    cards = make_cards(samples, images, manifest, encoder)
    figures = gather(store, manifest, markers, split, where)
    figures = replace(figures, notes=[*notes, *told, *figures.notes])
    twins = [make_pair(pair, manifest, encoder) for pair in figures.twins]

    title, subtitle = headline(manifest, split)
    verdict = last_verdict(Path(config.output).expanduser()) if store.local else ""
    out = io.BytesIO()
    draw_sheet(title, subtitle, cards).save(out, "PNG", optimize=True)
    write_file(folder / SHEET, out.getvalue())
    write_file(
        folder / REPORT, render(title, subtitle, cards, twins, figures, manifest.recipe, verdict).encode()
    )
    return [folder / SHEET, folder / REPORT]


def headline(manifest: Manifest, split: str) -> tuple[str, str]:
    """Title and subtitle of sheet and report."""
    recipe, done = manifest.recipe, manifest.splits[split]
    dataset: dict[str, Any] = recipe.get("dataset", {})
    name = str(dataset.get("path", "latents")).removeprefix("builders/")
    config = dataset.get("name")
    title = f"{name} · {split}" if config in (None, "default") else f"{name} ({config}) · {split}"
    rejected = sum(done.rejected.values())
    facts = [
        f"{done.samples:,} samples",
        f"{rejected:,} rejected ({rejected / max(done.rows, 1):.1%})",
        f"{len(done.shards):,} shards",
    ]
    facts += [
        str((recipe.get("image_encoder") or {}).get("model", "")),
        f"recipe {manifest.fingerprint[:12]}",
    ]
    facts += [f"{datetime.date.today():%Y-%m-%d}"]
    # A stranger may have written the recipe.
    return printable(title), printable("   ·   ".join(filter(None, facts)))


def main(config: Config | None = None) -> None:
    config = config or parse("preview", Config, __doc__)
    with one_line_errors():
        for path in run(config):
            print(path)


if __name__ == "__main__":
    main()
