"""verify --decode and --source on real photographs: what does not belong to its image, its caption or its row is named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from loader.format import npy_bytes
from precompute import run, verify
from precompute.errors import ModelError, UsageError
from precompute.input import recorded_source
from precompute.input.options import parse_option
from precompute.shards.markers import manifest_of, marker_paths, read_marker
from precompute.shards.output_folder import OutputFolder, write_file
from precompute.shards.sample_reader import pick_samples, spread
from precompute.shards.store import Store
from precompute.shards.unit_writer import SidecarRow, UnitWriter
from precompute.verification import read_folder
from precompute.verification.caption_check import check_caption_states
from precompute.verification.check_folder import Finding
from precompute.verification.decode_check import compare, psnr
from precompute.verification.source_check import compare_unit
from tests.support.finished_folder import FIELDS
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg
from tests.support.tiny_models import save_clip

Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's photographs, as precompute writes them."""
    output = tmp_path_factory.mktemp("demo") / "latents"
    config = run.Config(
        "builders/demo", output, vae="toy", text_encoder=("toy",), resolutions=(128, 256), dtype="float32"
    )
    run.run(config)
    return output


@pytest.fixture(scope="module")
def mode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with `--posterior mode`: scaled latents."""
    output = tmp_path_factory.mktemp("demo") / "mode"
    toys = {"vae": "toy", "text_encoder": ("toy",), "dtype": "float32"}
    run.run(run.Config("builders/demo", output, posterior="mode", resolutions=(256,), **toys))
    return output


def test_gravel_is_not_taken_for_a_smooth_grey_neighbour() -> None:
    """What a VAE makes of it is nearer to the grey, pixel by pixel; seen from afar it is still its own."""
    random = np.random.default_rng(0)
    light = np.linspace(90, 160, 256)[None, :, None]
    gravel = np.broadcast_to(light + random.normal(0, 50, (256, 256, 1)), (256, 256, 3)).clip(0, 255)
    grey = np.broadcast_to(light[:, ::-1] * 0.2 + 100, (256, 256, 3))
    sources = {"gravel": gravel.astype(np.uint8), "grey": grey.astype(np.uint8)}
    blurred = gravel.reshape(32, 8, 32, 8, 3).mean((1, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    assert psnr(blurred, sources["grey"]) > psnr(blurred, sources["gravel"]) - 3, "hardly told apart in large"
    assert compare(blurred, "gravel", sources)[0] == ""
    what, _ = compare(sources["grey"], "gravel", sources)
    assert what.startswith("decodes to the source of grey")


def report_of(output: Path, **flags: object) -> verify.Report:
    return verify.verify(verify.Config(str(output), **flags))


def remake(
    source: Path,
    output: Path,
    change: Callable[[list[Arrays]], list[Arrays]],
    recaption: Callable[[list[str]], list[str]] = lambda captions: captions,
) -> list[Finding]:
    """Shards whose arrays, or captions, are changed and whose hashes are right; what verify finds in them."""
    output.mkdir()
    markers = {path.stem: read_marker(path) for path in marker_paths(source)}
    for marker in markers.values():
        only = {"unit": marker}
        samples = pick_samples(Store(str(source)), only, "train", marker.samples)
        members = [*(field.name for field in marker.fields), "txt", "json"]
        writer = UnitWriter(OutputFolder(output), marker.unit, members, 4096, "token")
        captions = recaption([sample.caption for sample in samples])
        samples = [replace(s, caption=caption) for s, caption in zip(samples, captions, strict=True)]
        for sample, arrays in zip(samples, change([s.arrays for s in samples]), strict=True):
            files = {f"{name}.npy": npy_bytes(np.ascontiguousarray(array)) for name, array in arrays.items()}
            files |= {"txt": sample.caption.encode(), "json": json.dumps(sample.facts).encode()}
            writer.write(SidecarRow(sample.key, sample.caption), files)
        writer.commit(marker.recipe, marker.fields, marker.plan, {})
        writer.discard()
    made = [read_marker(path) for path in marker_paths(output)]
    manifest = manifest_of(made[0].recipe, made[0].fields, made)
    write_file(output / "manifest.json", manifest.to_json().encode())
    shutil.copy(source / "null_caption.npz", output)
    return report_of(output, decode=100).findings


def each(**changes: Callable[[Any], Any]) -> Callable[[list[Arrays]], list[Arrays]]:
    """Change the named arrays of every sample."""
    return lambda samples: [
        {n: changes.get(n, lambda a: a)(a) for n, a in sample.items()} for sample in samples
    ]


def turned(name: str) -> Callable[[list[Arrays]], list[Arrays]]:
    """Give each sample the array of the one before it."""
    return lambda samples: [{**s, name: samples[i - 1][name]} for i, s in enumerate(samples)]


def test_the_demo_is_whole_and_looks_like_its_photographs(demo: Path) -> None:
    report = report_of(demo, decode=100, source="builders/demo")
    assert [str(finding) for finding in report.findings] == [] and report.notes == []
    assert len(report.psnr) == 2 * report.splits["train"]["samples"]
    assert min(report.psnr.values()) > 15


def test_scaled_latents_are_unscaled_to_be_decoded(mode: Path) -> None:
    report = report_of(mode, decode=100)
    assert [str(finding) for finding in report.findings] == [] and min(report.psnr.values()) > 15


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (each(moments_256=lambda a: a[:, :, ::-1]), "its source mirrored"),
        (each(moments_256=lambda a: a[:, ::-1]), "its source upside down"),
        (each(moments_256=lambda a: a.transpose(0, 2, 1)), "its source on its side"),
        (each(moments_256=lambda a: a[[2, 1, 0, 3, 4, 5, 6, 7]]), "red and blue swapped"),
        (turned("moments_256"), "the source of"),
    ],
)
def test_latents_of_something_else_are_named(
    demo: Path, tmp_path: Path, change: Callable[[list[Arrays]], list[Arrays]], what: str
) -> None:
    def no_negative_std(samples: list[Arrays]) -> list[Arrays]:
        return each(moments_256=lambda a: np.concatenate([a[:4], np.abs(a[4:])]))(change(samples))

    found = remake(demo, tmp_path / "out", no_negative_std)
    named = [finding for finding in found if what in finding.what]
    assert len(named) >= 5, [str(finding) for finding in found]
    assert all(f.what.startswith("moments_256") and f.key and "remove train-" in f.cure for f in named)
    assert not any("caption" in finding.what or "moments_128" in finding.what for finding in found)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda a: a * np.float16(1.4), "the scale is wrong"),
        (lambda a: a * np.float16(0.6), "the scale is wrong"),
        (lambda a: a - np.float16(0.25), "the shift is wrong"),
    ],
)
def test_a_wrong_scale_or_shift_is_named(
    demo: Path, tmp_path: Path, change: Callable[[Any], Any], what: str
) -> None:
    found = remake(demo, tmp_path / "out", each(moments_256=lambda a: np.concatenate([change(a[:4]), a[4:]])))
    assert [finding.shard for finding in found if what in finding.what] == ["moments_256"]
    assert not any("caption" in finding.what or "moments_128" in finding.what for finding in found)


def test_a_wrong_scale_is_found_without_the_photographs(
    mode: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: Any) -> None:
        raise UsageError("builders/demo: its archives are not here")

    remake(mode, tmp_path / "out", each(latents_256=lambda a: a * np.float16(3)))
    monkeypatch.setattr("precompute.verification.decode_check.open_recorded", gone)
    report = report_of(tmp_path / "out", decode=100)
    assert report.psnr == {} and "no source images" in report.notes[0]
    assert [f.shard for f in report.findings] == ["latents_256"] and "standard deviation" in report.findings[
        0
    ].what


def test_a_source_that_was_named_and_is_not_there_is_an_error(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data_dir"):
        report_of(demo, decode=2, source="builders/folder", data_dir=tmp_path)
    with pytest.raises(UsageError, match="no_such_option"):
        report_of(demo, decode=2, options=("no_such_option=1",))
    with pytest.raises(ModelError, match=f"--text-encoder {tmp_path}/no"):
        report_of(demo, decode=2, text_encoder=(f"{tmp_path}/no",))
    with pytest.raises(ModelError, match=f"--vae {tmp_path}/no"):
        report_of(demo, decode=2, vae=f"{tmp_path}/no")


def test_the_parts_of_the_run_are_those_that_are_read_again(tmp_path: Path) -> None:
    raw, output = tmp_path / "raw", tmp_path / "out"
    for part in (0, 3):
        members = [
            (f"{i}.{suffix}", data)
            for i in range(4)
            for suffix, data in (("jpg", jpeg(part + i)), ("txt", f"photo {part} {i}".encode()))
        ]
        write_tar(raw / f"cc12m-train-{part:04d}.tar", members)
    models = {"vae": "toy", "text_encoder": ("toy",), "resolutions": (128,), "dtype": "float32"}
    run.run(run.Config("builders/cc12m", output, data_dir=raw, options=("parts=3",), **models))
    report = report_of(output, decode=4, source="builders/cc12m", data_dir=raw)
    assert report.findings == [] and report.notes == [] and len(report.psnr) == 4


def test_embeddings_of_the_next_caption_are_named(demo: Path, tmp_path: Path) -> None:
    found = remake(demo, tmp_path / "out", turned("caption_latents"))
    assert len(found) >= 10 and all("caption_latents is not that of its caption" in f.what for f in found)
    assert any("nearest to that of" in finding.what for finding in found)


def test_a_caption_that_moved_together_with_its_embedding_is_named(demo: Path, tmp_path: Path) -> None:
    found = remake(
        demo, tmp_path / "out", turned("caption_latents"), lambda captions: [captions[-1], *captions[:-1]]
    )
    assert len(found) >= 10 and {f.what for f in found} == {
        "its caption is not the one that the source has for it"
    }


def test_the_embedding_of_another_empty_caption_is_named(demo: Path, tmp_path: Path) -> None:
    remake(demo, tmp_path / "out", lambda samples: samples)
    path = tmp_path / "out" / "null_caption.npz"
    with np.load(path) as file:
        np.savez(path, caption_latents=file["caption_latents"][::-1])
    (finding,) = report_of(tmp_path / "out", decode=1).findings
    assert finding.shard == path.name and "not that of the empty caption" in finding.what


def test_a_text_encoder_given_by_folder_is_opened_as_the_recipe_had_it(tmp_path: Path) -> None:
    model, output = save_clip(tmp_path / "clip"), tmp_path / "out"
    texts = (f"{model}?layer=-2&length=20&template=a photo of {{}}", f"g={model}?layer=1")
    options: dict[str, Any] = {"vae": "toy", "dtype": "float32", "resolutions": (64,), "limit": 4}
    run.run(run.Config("builders/demo", output, text_encoder=texts, **options))
    report = report_of(output, decode=4)
    assert report.findings == [] and "give that folder as --text-encoder" in report.notes[-1]
    report = report_of(output, decode=4, text_encoder=(str(model), f"g={model}"))
    assert report.findings == [] and report.notes == []
    assert report_of(output, decode=4, text_encoder=(f"g={model}?layer=-1",)).findings
    with pytest.raises(UsageError, match="give FOLDER, g=FOLDER"):
        report_of(output, decode=4, text_encoder=(f"t5={model}",))


def test_no_path_of_this_machine_is_published(tmp_path: Path) -> None:
    folder, output = tmp_path / "private" / "pictures", tmp_path / "out"
    write_tar(folder / "a.tar", [("0.jpg", jpeg(0)), ("0.txt", b"a photo")])
    (folder / "b.tar").write_bytes((folder / "a.tar").read_bytes()[:-2000])
    options: dict[str, Any] = {"vae": "toy", "text_encoder": ("toy",), "resolutions": (64,)}
    columns = {"image_column": "jpg", "caption_column": "txt"}
    run.run(run.Config(str(folder), output, dtype="float32", **columns, **options))
    rows = [row for path in sorted(output.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["source"] for row in rows if row["status"] == "ok"] == ["pictures/a.tar", "pictures/b.tar"]
    for path in output.iterdir():
        assert b"private" not in path.read_bytes(), path
    for row in rows:
        assert "private" not in json.dumps(row)


def test_a_manifest_with_another_scale_is_named(demo: Path) -> None:
    store = Store(str(demo))
    there = read_folder.read_markers(store)
    markers, manifest = there.markers, there.manifest
    assert manifest is not None
    recipe = {**manifest.recipe, "image_encoder": {**manifest.recipe["image_encoder"], "scale": 0.18215}}
    changed = SimpleNamespace(recipe=recipe, fields=manifest.fields, splits=manifest.splits)
    config = verify.Config(str(demo), decode=2)
    told = verify.check_meaning(store, changed, markers, config)
    found = [finding for finding in told if isinstance(finding, Finding)]
    assert [(f.shard, f.what.split(",")[0]) for f in found] == [
        ("manifest.json", "scale of the recipe is 0.18215")
    ]


def test_a_source_that_has_other_rows(demo: Path, tmp_path: Path) -> None:
    """Every row of the source is written or rejected: shards that lack one, and have a caption of another, are found out."""
    output = tmp_path / "out"
    remake(demo, output, lambda samples: samples)
    report = report_of(output, source="builders/demo")  # remade shards carry no rejected rows
    lost = [finding for finding in report.findings if "neither written nor rejected" in finding.what]
    assert len(lost) == report_of(demo).splits["train"]["rejected"] > 0


def test_rows_are_compared_with_their_source() -> None:
    """What compare_unit says of a unit, for every way in which shards and source can differ."""
    row = {"key": "a", "status": "ok", "caption": "one"}
    other = {"key": "b", "status": "too_small", "caption": None}
    source = [("a", None, "one", ["one"]), ("b", "too_small", None, [])]

    def said(
        ours: list[dict[str, Any]], theirs: list[tuple[str, str | None, str | None, list[str]]]
    ) -> list[tuple[str, str]]:
        return [(finding.key, finding.what) for finding in compare_unit("train-00000", ours, theirs)]

    assert said([row, other], source) == []
    assert said([row], source) == [("b", "a source row that is neither written nor rejected")]
    assert said([row, other], source[:1]) == [("b", "no row of the source has this key")]
    assert said([other, row], source) == [("", "its rows are not in the order of the source")]
    changed = {**row, "caption": "two"}
    assert said([changed, other], source) == [("a", "its caption is not the one that the source has for it")]
    further = {**row, "captions": ["one", "another"]}
    assert said([further, other], source) == [("a", "its caption is not the one that the source has for it")]
    written = {**other, "status": "ok"}
    assert said([row, written], source) == [("b", "written, though the source rejects it (too_small)")]
    assert said([row, row], [source[0]]) == [("", "its rows are not in the order of the source")]


def test_samples_are_spread_over_the_units(demo: Path) -> None:
    markers = {path.stem: read_marker(path) for path in marker_paths(demo)}
    total = sum(marker.samples for marker in markers.values())
    for count in (1, 3, 4, 7, total, 10 * total):
        shares = [share for *_, share in spread(markers, "train", count)]
        assert sum(shares) == min(count, total)
        assert max(shares) - min(shares) <= 1 or count > 2 * len(markers)


def test_buckets_are_decoded_in_their_own_shape(tmp_path: Path) -> None:
    """Shards by aspect ratio: whole, every photograph compared, and none of them cut square."""
    output = tmp_path / "latents"
    toys: dict[str, Any] = {"vae": "toy", "text_encoder": ("toy",), "dtype": "float32", "resolutions": (128,)}
    run.run(run.Config("builders/demo", output, buckets=32, **toys))
    report = report_of(output, decode=100, source="builders/demo")
    assert [str(finding) for finding in report.findings] == [] and len(report.psnr) == 20
    assert min(report.psnr.values()) > 15
    markers = {path.stem: read_marker(path) for path in marker_paths(output)}
    samples = pick_samples(Store(str(output)), markers, "train", 100)
    shapes = {sample.arrays["moments_128"].shape for sample in samples}
    assert any(height != width for _, height, width in shapes)


def test_psnr() -> None:
    black, grey = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 51, np.uint8)
    assert psnr(black, black) == 99 and round(psnr(black, grey), 3) == 13.979


@pytest.mark.parametrize(("off", "is_told"), [(0.0, False), (0.001, False), (0.2, True)])
def test_an_embedding_that_is_off_is_told_though_it_is_nearest_to_its_own_caption(
    off: float, is_told: bool
) -> None:
    class Encoder:
        fields = (SimpleNamespace(name="caption_latents", dtype="float16"),)

        def encode(self, captions: list[str]) -> list[Arrays]:
            states = np.eye(8, dtype=np.float16)[:, :4]
            return [{"caption_latents": states * (number + 1)} for number in range(len(captions))]

    captions = ["a", "b", "c"]
    samples = [
        SimpleNamespace(
            captions=(caption,),
            of_caption=lambda spec, number, arrays=arrays: (
                arrays["caption_latents"] + np.float16(off)
            ).astype(np.float16),
            arrays={"caption_latents": (arrays["caption_latents"] + np.float16(off)).astype(np.float16)},
            shard="train-00000",
            key=caption,
            stem="train-00000",
        )
        for caption, arrays in zip(captions, Encoder().encode(captions), strict=True)
    ]
    found = list(check_caption_states(samples, Encoder(), FIELDS[1:]))  # type: ignore[arg-type]
    assert ("a" in [finding.key for finding in found]) == is_told


def test_options_of_the_command_line_win_over_those_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Seen:
        units = (0,)

        def __init__(self, source: Any) -> None:
            seen.append(dict(map(parse_option, source.options)))

    monkeypatch.setattr(recorded_source, "open_records", Seen)
    for dataset in ({"path": "x", "options": ["a=1", "b=1"]}, {"path": "builders/demo", "a": 1, "b": 1}):
        split = SimpleNamespace(plan={"units": 1})
        manifest: Any = SimpleNamespace(recipe={"dataset": dataset}, splits={"train": split})
        recorded_source.open_recorded(manifest, "train", recorded_source.Where(options=("a=2",)))
    assert [(options["a"], options["b"]) for options in seen] == [(2, 1), (2, 1)]
