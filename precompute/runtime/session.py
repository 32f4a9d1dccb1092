"""What a process opens once, and then works on any units with: records, models, and the place of the shards.

    session = Session.open(config, destination)
    session.work(leases, on_batch)

An engine may hold one in each of its workers and deal units by a `UnitLeases` of its own (precompute/runtime/leases.py).
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import cast

import numpy as np
import torch

from builders.core.record import Record
from loader.format import NULL_CAPTION, as_json
from loader.npy import as_numbers
from loader.recipe import Recipe
from precompute.commands import retyped
from precompute.config import Config
from precompute.encode.batch_encoder import BatchEncoder
from precompute.encode.devices import pick_device
from precompute.encode.features import FeatureEncoder, open_feature_encoder
from precompute.encode.image import ImageEncoder, open_image_encoder
from precompute.encode.presets import DEFAULT, ChosenModels, choose_models
from precompute.encode.text import TextEncoder, open_text_encoder
from precompute.errors import ModelError, UsageError
from precompute.input import pixels
from precompute.input.base_records import BaseRecords
from precompute.input.open_records import open_records
from precompute.input.records import Records, SourceOptions
from precompute.input.stamps import Stamp
from precompute.input.units import Unit
from precompute.runtime.beside import NOTHING, check_new, layer_recipe, layer_records, like_base, open_base
from precompute.runtime.edited import check_base, look, redo_changed
from precompute.runtime.leases import UnitLeases
from precompute.runtime.pipeline import Pipeline
from precompute.runtime.progress import default_threads
from precompute.runtime.stats import Stats
from precompute.runtime.unit_output import Output
from precompute.shards.destination import Destination
from precompute.shards.manifest import ManifestKeeper


@dataclass(frozen=True)
class Session:
    """A run as one process holds it. Where engines deal the units, each worker has its own, and they agree by the recipe.

    resolutions: of the pictures that are encoded. features: the size of the picture that each is made of, by the shape of its crop.
    recipe: everything that determines a value; reopened: how many finished units --retry-rejected has taken up again;
    sources: by unit what its files look like now; changed: what is to be said of those that were edited, if anything.
    """

    config: Config
    records: Records | BaseRecords
    device: torch.device
    encoder: BatchEncoder
    destination: Destination
    resolutions: tuple[int, ...]
    features: Mapping[str, Callable[[float, float], tuple[int, int]]]
    recipe: Recipe
    keeper: ManifestKeeper
    reopened: int
    sources: dict[int, Stamp]
    changed: str

    @classmethod
    def open(cls, config: Config, destination: Destination) -> "Session":
        """Open records and models, and hold what lies at the destination against them. Raises PrecomputeError, above all
        RecipeMismatch."""
        base = open_base(config) if config.beside else None
        config = like_base(config, base) if base else config
        device, models = pick_device(), models_of(config)
        records: Records | BaseRecords = (
            layer_records(config, base, models.vae != NOTHING or bool(config.features))
            if base
            else open_records(source_of(config))
        )
        image_encoder = None
        if models.vae != NOTHING:
            image_encoder = open_image_encoder(models.vae, device, config.dtype)
            check_factor(config, image_encoder)
        if image_encoder and config.compile:
            image_encoder.compile()
        texts = open_text_encoders(config, models, device)
        added = records.added if isinstance(records, BaseRecords) else None
        features = open_features(config, device)
        encoder = BatchEncoder(
            image_encoder,
            texts,
            config.resolutions,
            config.posterior,
            config.seed,
            config.flip,
            fixed_size=config.buckets is None,
            fill_to=config.batch_size if config.compile else None,
            max_captions=config.max_captions,
            store=config.store,
            features=features,
            kind="".join(file.name for file in added or ()),
        )
        recipe = make_recipe(config, records, image_encoder, texts, features)
        if base:
            check_new(encoder.fields, recipe, base)
            recipe = layer_recipe(recipe, base, added, config.max_captions)
        keeper = ManifestKeeper(destination, recipe, encoder.fields, records.plan)
        sources, since_base = look(records), ""
        if isinstance(records, BaseRecords):
            keeper.look()
            since_base = check_base(records, keeper, sources, config.redo_changed)
        keeper.start()
        reopened = keeper.reopen(config.retry_rejected)
        changed = redo_changed(records, keeper, sources, config.redo_changed)
        changed = "\n".join(line for line in (changed, since_base) if line)
        # What stands for a caption that is dropped, the base has.
        write_null_caption(destination, [] if added else texts, keeper.null_caption)
        resolutions = config.resolutions if image_encoder else ()
        sizes = {one.spec.name: one.size_of for one in features}
        return cls(
            config,
            records,
            device,
            encoder,
            destination,
            resolutions,
            sizes,
            recipe,
            keeper,
            reopened,
            sources,
            changed,
        )

    @property
    def units(self) -> list[Unit]:
        return self.records.units

    @property
    def num_rows(self) -> int | None:
        """Rows of all units, where they are known before they are read."""
        return self.records.num_rows

    def work(
        self,
        leases: UnitLeases,
        on_batch: Callable[[Stats], None] = lambda stats: None,
        on_commit: Callable[[], object] = lambda: None,
    ) -> Stats:
        """Finish units until `leases` has no more. May be called again, with other leases.

        on_batch is called in this thread, on_commit in others, after each unit. Raises what stopped the work.
        """
        config = self.config
        output = Output(
            self.destination,
            config.samples_per_shard,
            self.recipe,
            self.records.plan,
            config.batch_size,
            on_commit,
            self.records.left_out,
            layer=self.records.shards if isinstance(self.records, BaseRecords) else None,
            sources=self.sources,
        )
        threads = config.num_threads or default_threads()
        return Pipeline(self.records, leases, self.encoder, output, self._read, threads, on_batch).run()

    def _read(self, record: Record) -> pixels.Picture:
        config = self.config
        if not self.encoder.reads_images or record.image is None:
            return pixels.BLANK
        place = pixels.place_of(config.crop, config.seed, record.key)
        shape = self.records.shape(record.shard) if isinstance(self.records, BaseRecords) else None
        return pixels.read_picture(
            record.image,
            self.resolutions,
            config.buckets,
            place,
            color_profile(self.records),
            shape,
            self.features,
            self.records.covering if isinstance(self.records, BaseRecords) else (),
            (record.width, record.height) if record.width and record.height else None,
        )


def source_of(config: Config) -> SourceOptions:
    """The flags that say what to read."""
    return SourceOptions(**{field.name: getattr(config, field.name) for field in fields(SourceOptions)})


def check_factor(config: Config, encoder: ImageEncoder) -> None:
    edges = [("--resolutions", resolution) for resolution in config.resolutions]
    for flag, edge in edges + ([("--buckets", config.buckets)] if config.buckets else []):
        if edge % encoder.factor:
            near = max(1, round(edge / encoder.factor)) * encoder.factor
            raise UsageError(
                f"{flag} {edge}: not divisible by {encoder.factor}, the factor of the --vae; use {near}"
            )


def models_of(config: Config) -> ChosenModels:
    """The models that the flags name."""
    if config.beside and not config.for_model and not config.model:
        return ChosenModels(config.vae or NOTHING, config.text_encoder)
    return choose_models(config.for_model, config.model, config.vae, config.text_encoder)


def told_of_models(config: Config) -> str:
    """The models of a run as flags, which typed give the same recipe; empty where the user has typed all of them."""
    models, typed = models_of(config), ChosenModels(config.vae or NOTHING, config.text_encoder)
    if models == typed and not (config.for_model or config.model):
        return ""
    others = ", and what other flags say" if config.vae or config.text_encoder else ""
    return f"--for {config.for_model or DEFAULT}{others}:\n{models}"


def open_text_encoders(config: Config, models: ChosenModels, device: torch.device) -> list[TextEncoder]:
    encoders = [
        open_text_encoder(value, device, config.dtype, config.store) for value in models.text_encoders
    ]
    names = [field.name for encoder in encoders for field in encoder.fields]
    if len(set(names)) != len(names):
        raise UsageError(
            "--text-encoder: give every encoder but one a NAME of its own, as in t5=google/t5-v1_1-xxl"
        )
    return encoders


def open_features(config: Config, device: torch.device) -> list[FeatureEncoder]:
    encoders = [open_feature_encoder(value, device, config.dtype) for value in config.features]
    names = [encoder.spec.name for encoder in encoders]
    if len(set(names)) != len(names):
        raise UsageError(f"--features {' '.join(config.features)}: give each a NAME of its own")
    return encoders


def make_recipe(
    config: Config,
    records: Records | BaseRecords,
    image: ImageEncoder | None,
    texts: list[TextEncoder],
    features: list[FeatureEncoder],
) -> Recipe:
    """Everything that determines a value; equal recipes may share a folder."""
    posterior = config.posterior if image is None or image.has_posterior else "mode"
    recipe = {
        "dataset": records.recipe,
        "image_encoder": image.recipe if image else None,
        "text_encoders": [encoder.recipe for encoder in texts],
        **({"features": [encoder.recipe for encoder in features]} if features else {}),
        "resolutions": list(config.resolutions),
        "posterior": posterior,
        "seed": config.seed if posterior == "sample" or config.crop == "random" else None,
        "flip": config.flip,
        **({"max_captions": config.max_captions} if config.max_captions > 1 else {}),
        **({"store": config.store} if config.store != "float16" else {}),
        **pixels.recipe(config.buckets, config.crop, color_profile(records)),
    }
    return cast(Recipe, as_json(recipe))


def color_profile(records: Records | BaseRecords) -> str:
    """What becomes of pixels that are not sRGB: an option of our datasets; those of others are converted."""
    return str(records.recipe.get("color_profile", "srgb"))


def write_null_caption(output: Destination, texts: list[TextEncoder], known: str | None) -> None:
    """`null_caption.npz`: the empty caption's arrays by field name, for classifier-free guidance. known: sha256 of the one
    that belongs to the shards; where it is there, it stays."""
    there = output.get(NULL_CAPTION)
    if there is not None and hashlib.sha256(there).hexdigest() == known:
        return
    arrays = {}
    for encoder in texts:
        arrays.update(encoder.encode([""])[0])
        for field in encoder.fields:
            if not np.isfinite(as_numbers(arrays[field.name], field.dtype)).all():
                raise ModelError(
                    f"--text-encoder: {field.name} of the empty caption does not fit into {field.dtype}: "
                    f"{retyped(store='bfloat16')}, or take layer=-1, whose states are normalised, or add norm to its options"
                )
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    if arrays:
        output.put(NULL_CAPTION, out.getvalue())
