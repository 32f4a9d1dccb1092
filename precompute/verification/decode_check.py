"""Do latents decode to their own photograph, and do the embeddings belong to their own caption?

A threshold alone would have to know the VAE. So each decoded image is held against rivals too: its source mirrored, upside
down, with red and blue swapped, and the sources of the samples around it. Whoever wins is the fault's name. A wrong scale
shows as contrast, a wrong shift as brightness.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from builders.core.record import Record
from loader.format import Field, Manifest, Marker
from loader.recipe import Recipe
from precompute.encode.image import ImageEncoder
from precompute.errors import PrecomputeError
from precompute.input.recorded_source import Where, open_recorded, tell_opened
from precompute.shards.sample_reader import Sample, per_channel, pick_samples, raw_latents
from precompute.shards.store import Store
from precompute.verification.caption_check import check_caption_states, check_null, check_texts
from precompute.verification.check_folder import Finding, redo
from precompute.verification.feature_check import Crops, check_features
from precompute.verification.observation import Likeness, Note, Observation
from precompute.verification.recipe_models import (
    Models,
    recipe_feature_encoders,
    recipe_image_encoder,
    recipe_text_encoders,
)
from precompute.verification.source_check import find_records, source_pixels

UInt8 = npt.NDArray[np.uint8]

MARGIN = 1.0  # dB by which a rival must win: a symmetrical photograph is as much like its mirror image
FLOOR = 12.0  # dB; a grey card has about as much likeness to a photograph
CONTRAST = (0.85, 1.2)  # of the sources over that of the decoded images, by least squares; median
BRIGHTNESS = 8.0  # of 255; median
SPREAD = (0.4, 2.5)  # standard deviation of latents over many samples; a VAE's scale is chosen to make it 1


def check_likeness(
    store: Store,
    manifest: Manifest,
    markers: dict[str, Marker],
    count: int,
    where: Where,
    models: Models,
    base: Store | None = None,
) -> Iterator[Observation]:
    """Look at `count` samples of every split. base: of a layer, which says where its crops lie.

    Raises PrecomputeError where there is no model to decode with.
    """
    # A layer may be of text alone, or of pictures alone.
    has_images = bool(manifest.recipe.get("image_encoder"))
    encoder = recipe_image_encoder(manifest.recipe, models) if has_images else None
    if encoder:
        yield from check_encoder(encoder, manifest)
    crops = Crops(manifest.recipe, base)
    text_encoders, notes = recipe_text_encoders(manifest.recipe, models)
    feature_encoders, others = recipe_feature_encoders(manifest.recipe, models)
    yield from map(Note, (*notes, *others))
    for split in manifest.splits:
        samples = pick_samples(store, markers, split, count)
        records, untold = source_records(manifest, split, samples, where)
        yield from map(Note, untold)
        images = {key: record.image for key, record in records.items() if record.image is not None}
        for spec in manifest.fields:
            if encoder and spec.kind in ("moments", "latents"):
                yield from check_images(samples, images, spec, encoder, manifest.recipe)
        for one in feature_encoders:
            yield from check_features(samples, images, one, manifest.recipe, crops)
        yield from check_texts(samples, records)
        for text_encoder in text_encoders:
            yield from check_caption_states(samples, text_encoder, manifest.fields)
            if not manifest.recipe.get("captions"):
                yield from check_null(store, text_encoder)


def check_encoder(encoder: ImageEncoder, manifest: Manifest) -> Iterator[Finding]:
    """Scale and shift in recipe and fields against those of the model itself."""
    recipe = manifest.recipe["image_encoder"]
    cure = "give the --vae that made the shards, or make them again"
    if encoder.recipe["dtype"] == recipe.get("dtype") and encoder.recipe.get("weights") != recipe.get(
        "weights"
    ):
        yield Finding("manifest.json", "", "the VAE at hand has other weights than the recipe's", cure)
    for name in ("scale", "shift"):
        true = per_channel(getattr(encoder, name))
        stated = [("the recipe", recipe.get(name))]
        stated += [(f.name, getattr(f, name)) for f in manifest.fields if f.kind == "moments"]
        for place, value in stated:
            if value is None or not np.allclose(per_channel(value), true, rtol=1e-4, atol=1e-6):
                yield Finding(
                    "manifest.json",
                    "",
                    f"{name} of {place} is {value}, that of the VAE {getattr(encoder, name)}",
                    cure,
                )


def source_images(
    manifest: Manifest, split: str, samples: Sequence[Sample], where: Where
) -> tuple[dict[str, bytes], list[str]]:
    """Source image bytes by key, and notes as `source_records` has them."""
    records, notes = source_records(manifest, split, samples, where)
    return {key: record.image for key, record in records.items() if record.image is not None}, notes


def source_records(
    manifest: Manifest, split: str, samples: Sequence[Sample], where: Where
) -> tuple[dict[str, Record], list[str]]:
    """The samples' records, read again, by key; none, and a note, where the source is not at hand and nobody said that it is."""
    wanted: dict[int, set[str]] = {}
    for sample in samples:
        wanted.setdefault(sample.unit, set()).add(sample.key)
    try:
        opened = open_recorded(manifest, split, where)
        if not where.is_named:
            tell_opened(f"--source {opened.source.dataset}, split {split}")
        return find_records(opened, wanted), []
    except (PrecomputeError, OSError, IndexError) as error:
        if where.is_named:
            raise
        return {}, [f"no source images: {str(error).splitlines()[0]}"]


# --- images -----------------------------------------------------------------------------------------------------------


def decode(raw: npt.NDArray[np.float32], encoder: ImageEncoder) -> UInt8:
    """Raw latents (C, h, w) to pixels (H, W, 3)."""
    pixels = encoder.decode(torch.from_numpy(np.ascontiguousarray(raw))[None])[0]
    return pixels.permute(1, 2, 0).cpu().numpy()


def psnr(a: UInt8, b: UInt8) -> float:
    """Decibels; 99 for equal images."""
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return min(99.0, 10 * float(np.log10(255**2 / error))) if error else 99.0


def check_images(
    samples: Sequence[Sample],
    images: dict[str, bytes],
    spec: Field,
    encoder: ImageEncoder,
    recipe: Recipe,
) -> Iterator[Observation]:
    """Decode the samples, and hold each against its source and against those around it."""
    sources: dict[str, UInt8] = {}
    for sample in samples:
        height, width = (cells * encoder.factor for cells in sample.arrays[spec.name].shape[1:])
        pixels = source_pixels(images.get(sample.key), sample.facts, height, width, recipe)
        if pixels is not None:
            sources[sample.key] = pixels
        elif images:
            what = "its source image or its crop is not to be had"
            yield Note(f"{sample.key}: {what}; {spec.name} was not compared")
    raws = [raw_latents(spec, sample.arrays[spec.name], recipe) for sample in samples]
    tones = []
    for place, (sample, raw) in enumerate(zip(samples, raws, strict=True)):
        if sample.key in sources:
            decoded = decode(raw, encoder)
            if spec.name.endswith("_flipped"):
                decoded = decoded[:, ::-1]
            around = [s.key for s in samples[max(0, place - 2) : place + 3] if s.key in sources]
            what, decibels = compare(decoded, sample.key, {key: sources[key] for key in around})
            yield Likeness(f"{sample.key} {spec.name}", round(decibels, 2))
            tones.append(_tone(decoded, sources[sample.key]))
            if what:
                yield Finding(sample.shard, sample.key, f"{spec.name} {what}", redo(sample.stem))
    yield from _check_tones(tones, spec)
    yield from _check_spread(raws, spec, encoder)


def compare(decoded: UInt8, key: str, sources: dict[str, UInt8]) -> tuple[str, float]:
    """What is wrong with a decoded image, or nothing, and its PSNR. sources: its own, under `key`, and others.

    Which source it is nearest to is asked of the small picture: a VAE blurs, and what it makes of gravel is nearer to a
    smooth grey than to gravel.
    """
    own = sources[key]
    ours = psnr(decoded, own)
    rivals = {
        "its source mirrored": own[:, ::-1],
        "its source upside down": own[::-1],
        "its source on its side": own.transpose(1, 0, 2),
        "its source with red and blue swapped": own[..., ::-1],
        **{f"the source of {other}": pixels for other, pixels in sources.items() if other != key},
    }
    small = coarse(decoded)
    scores = {
        name: psnr(small, coarse(pixels)) for name, pixels in rivals.items() if pixels.shape == own.shape
    }
    name, best = max(scores.items(), key=lambda item: item[1])
    if best > (true := psnr(small, coarse(own))) + MARGIN:
        return f"decodes to {name} ({best:.1f} dB in small, its own source {true:.1f})", ours
    return (f"decodes to something unlike its source ({ours:.1f} dB)" if ours < FLOOR else ""), ours


def coarse(pixels: UInt8) -> UInt8:
    """(H, W, 3) to about 32 pixels along the shorter edge, each the mean of a square."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.reduce(max(1, min(image.size) // 32)))


def _check_tones(tones: Sequence[tuple[float, float]], spec: Field) -> Iterator[Finding]:
    if not tones:
        return
    contrast, brightness = np.median(np.array(tones), axis=0)
    cure = "make the shards again with the --vae's own scale and shift"
    if not CONTRAST[0] < contrast < CONTRAST[1]:
        what = (
            f"images decode with {1 / contrast:.2f} times the contrast of their sources: the scale is wrong"
        )
        yield Finding(spec.name, "", what, cure)
    if abs(brightness) > BRIGHTNESS:
        what = f"images decode {brightness:+.0f} of 255 brighter than their sources: the shift is wrong"
        yield Finding(spec.name, "", what, cure)


def _tone(decoded: UInt8, source: UInt8) -> tuple[float, float]:
    """Contrast the decoded image lacks (least squares of source on decoded), and brightness it has too much."""
    x, y = decoded.astype(np.float32).reshape(-1), source.astype(np.float32).reshape(-1)
    brightness = float(x.mean() - y.mean())
    x -= x.mean()
    variance = float(x @ x)
    if variance < 25 * x.size:  # a standard deviation under 5: nothing to measure contrast on
        return 1.0, brightness
    return float(x @ (y - y.mean())) / variance, brightness


def _check_spread(
    raws: Sequence[npt.NDArray[np.float32]], spec: Field, encoder: ImageEncoder
) -> Iterator[Finding]:
    if len(raws) < 4:
        return
    scale, shift = per_channel(encoder.scale), per_channel(encoder.shift)
    latents = np.concatenate([((raw - shift) * scale).reshape(-1) for raw in raws])
    deviation = float(latents.std())
    if not SPREAD[0] < deviation < SPREAD[1]:
        what = f"latents have a standard deviation of {deviation:.2f}, where the VAE's scale makes it about 1"
        yield Finding(spec.name, "", what, "check the scale of the --vae, and make the shards again")
