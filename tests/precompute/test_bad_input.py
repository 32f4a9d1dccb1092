"""Bad input: one clear line that names the flag or file and the cure, or a counted rejection; never a traceback."""

import os
from pathlib import Path

import pytest

from loader.format import Manifest
from precompute import run
from tests.support.launching import TOY, run_precompute
from tests.support.raw.photos import jpeg
from tests.support.tiny_models import save_clip


@pytest.fixture
def fail(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
):
    """Run the command in this process, expect an exit code that is not 0, and return the one line it prints."""

    def run_and_fail(*arguments: str | Path) -> str:
        monkeypatch.setattr(run, "stop_on_sigterm", lambda: None)
        given = [str(argument) for argument in arguments]
        if "--output" not in given:
            given += ["--output", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", ["precompute/run.py", *given])
        with pytest.raises(SystemExit) as stopped:
            run.main()
        assert stopped.value.code not in (0, None)
        progress, _, error = capsys.readouterr().err.rpartition("error: ")
        assert not progress or progress.endswith("\n")
        assert error and "Traceback" not in progress + error
        return error

    return run_and_fail


def test_unknown_builder_lists_the_known_ones(fail) -> None:
    error = fail("builders/cocoa", *TOY)
    assert "builders/cocoa" in error
    assert "demo" in error and "folder" in error


def test_unknown_split(fail) -> None:
    error = fail("builders/demo", "--split", "validation", *TOY)
    assert "validation" in error and "train" in error


def test_unknown_option_of_a_builder(fail) -> None:
    error = fail("builders/demo", "--options", "colour=red", *TOY)
    assert "--options colour=...: builders/demo has no such option; it has caption_cleaning, " in error
    assert "min_image_size" in error and "data_fingerprint" not in error
    error = fail("builders/webdataset", "--options", "colour=red", *TOY)
    assert "--options colour=...: builders/webdataset has no such option; it has " in error
    assert "NAME=VALUE" in fail("builders/demo", "--options", "parts", *TOY)


def test_missing_data_dir(fail, tmp_path: Path) -> None:
    assert f"--data-dir {tmp_path / 'nowhere'}" in fail(
        "builders/folder", "--data-dir", tmp_path / "nowhere", *TOY
    )


def test_empty_folder(fail, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = fail("builders/folder", "--data-dir", tmp_path / "empty", *TOY)
    assert str(tmp_path / "empty") in error


@pytest.mark.parametrize("flag", ["--vae", "--text-encoder"])
def test_model_folder_that_does_not_exist(fail, flag: str, tmp_path: Path) -> None:
    toys = {"--vae": "toy", "--text-encoder": "toy", flag: str(tmp_path / "model")}
    error = fail("builders/demo", *(part for pair in toys.items() for part in pair))
    assert f"{flag} {tmp_path / 'model'}" in error


def test_model_folder_without_a_model(fail, tmp_path: Path) -> None:
    error = fail("builders/demo", "--vae", tmp_path, "--text-encoder", "toy")
    assert f"--vae {tmp_path}" in error and "config.json" in error


def test_model_of_an_unknown_family(fail, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    error = fail("builders/demo", "--vae", tmp_path, "--text-encoder", "toy")
    assert "UNet2DModel" in error and "AutoencoderKL" in error


def test_model_whose_weights_are_cut_short(fail, tmp_path: Path) -> None:
    from tests.support.tiny_models import save_kl

    weights = save_kl(tmp_path / "model") / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "--vae" in fail("builders/demo", "--vae", tmp_path / "model", "--text-encoder", "toy")


def test_hub_model_without_a_network(fail) -> None:
    error = fail("builders/demo", "--vae", "nobody/no-model", "--text-encoder", "toy")
    assert "--vae nobody/no-model" in error


def test_output_that_cannot_be_written(fail, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    # root may write anywhere but where there is no folder to make
    output = folder / "out" if os.geteuid() else Path("/proc/latents")
    error = fail("builders/demo", "--output", output, *TOY)
    assert f"--output {output}" in error


def test_output_that_is_a_file(fail, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "--output" in fail("builders/demo", "--output", tmp_path / "file", *TOY)


@pytest.mark.parametrize(
    "flag", ["--batch-size", "--samples-per-shard", "--num-threads", "--limit", "--lease-timeout"]
)
def test_zero_where_it_makes_no_sense(fail, flag: str) -> None:
    assert f"{flag} 0" in fail("builders/demo", *TOY[:-2], flag, "0")


def test_resolution_that_the_factor_does_not_divide(fail) -> None:
    error = fail("builders/demo", *TOY, "--resolutions", "250")
    assert "--resolutions 250" in error and "8" in error and "248" in error


def test_resolution_named_twice(fail) -> None:
    assert "--resolutions" in fail("builders/demo", *TOY, "--resolutions", "256", "256")


@pytest.mark.parametrize("flag", ["--options", "--resolutions"])
def test_list_flag_given_twice(fail, flag: str) -> None:
    value = {"--options": "min_image_size=10", "--resolutions": "64"}[flag]
    assert flag in fail("builders/demo", *TOY, flag, value, flag, value)


def test_split_that_is_a_slice(fail) -> None:
    assert "--split train[:5]" in fail("builders/demo", *TOY, "--split", "train[:5]", "--prepare")


def test_column_flags_with_a_dataset_of_ours(fail) -> None:
    assert "--image-column" in fail("builders/demo", *TOY, "--image-column", "picture")


def test_secret_in_the_options(fail, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    error = fail("imagefolder", "--data-dir", tmp_path, *TOY, "--options", "token=hf_secret")
    assert "--options token" in error and "hf_secret" not in error


def test_run_that_writes_nothing(fail) -> None:
    error = fail("builders/demo", *TOY, "--options", "min_image_size=5000")
    assert "no row of split train became a sample" in error


def test_two_text_encoders_of_one_name(fail) -> None:
    error = fail("builders/demo", "--vae", "toy", "--text-encoder", "toy", "--text-encoder", "toy")
    assert "--text-encoder" in error and "NAME" in error


@pytest.mark.parametrize(
    "value",
    ["toy?layers=2", "toy?layer=two", "toy?length=1", "=toy", "toy?length=200", "toy?layer=9", "a.b=toy"],
)
def test_text_encoder_that_cannot_be_parsed(fail, value: str) -> None:
    assert "--text-encoder" in fail("builders/demo", "--vae", "toy", "--text-encoder", value)


def test_missing_columns_of_a_dataset_that_is_not_ours(fail, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    error = fail("imagefolder", "--data-dir", tmp_path, *TOY)
    assert "--caption-column caption" in error and "image" in error


def test_a_table_without_rows(fail, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("image,caption\n")
    assert f"{tmp_path}: split train has no rows" in fail(tmp_path, *TOY)


def test_a_table_of_paths(tmp_path: Path) -> None:
    """The types of the columns of a stream of CSV are not known before it is read."""
    photo, table = tmp_path / "a.jpg", tmp_path / "table"
    photo.write_bytes(jpeg())
    table.mkdir()
    (table / "table.csv").write_text(f"image,caption\n/no/such.jpg,b\n{photo},a photograph\n{photo},\n,c\n")
    done = run_precompute(table, "--output", tmp_path / "out", *TOY)
    train = Manifest.from_json((tmp_path / "out" / "manifest.json").read_bytes()).splits["train"]
    assert (train.samples, train.rejected) == (1, {"missing_image": 2, "missing_caption": 1})
    assert "nothing was left to do" not in done.stdout
    again = run_precompute(table, "--output", tmp_path / "out", *TOY)
    assert "all of it by earlier runs; nothing was left to do" in again.stdout


def test_a_text_encoder_without_its_tokenizer(fail, tmp_path: Path) -> None:
    folder = save_clip(tmp_path)
    error = fail("builders/demo", "--vae", "toy", "--text-encoder", folder / "text_encoder")
    assert "no tokenizer that can be loaded in the same folder" in error
    assert (
        "Name the folder that has the model and the tokenizer, or one with text_encoder/ and tokenizer/"
        in error
    )


def test_manifest_that_is_damaged(fail, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "manifest.json").write_text('{"format": 1')
    assert "manifest.json" in fail("builders/demo", "--output", output, *TOY)


def test_bad_rows_are_counted_and_cost_nothing_else(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    good, bad = jpeg(0), jpeg(1)
    rows = {
        "a": (good, "a cat in a cup"),
        "b": (b"<html>404</html>", "not an image at all"),
        "c": (jpeg(2), "<br> https://example.com"),
        "d": (bad[: len(bad) // 2], "cut in half"),
        "e": (jpeg(3, (100, 80)), "too small"),
        "f": (b"", "no bytes"),
        "g": (jpeg(4), "the last one"),
    }
    for name, (data, caption) in rows.items():
        (photos / f"{name}.jpg").write_bytes(data)
        (photos / f"{name}.txt").write_text(caption)
    (photos / "h.jpg").write_bytes(good)  # no caption file
    done = run_precompute("builders/folder", "--data-dir", photos, "--output", tmp_path / "out", *TOY)
    train = Manifest.from_json((tmp_path / "out" / "manifest.json").read_bytes()).splits["train"]
    assert (train.rows, train.samples) == (8, 2)
    assert train.rejected == {"undecodable": 3, "empty_caption": 1, "too_small": 1, "missing_caption": 1}
    for reason, count in train.rejected.items():
        assert any(line.split() == [reason, str(count)] for line in done.stdout.splitlines())
