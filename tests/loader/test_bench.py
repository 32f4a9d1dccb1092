"""`python -m loader.bench`: one line for what cannot be, figures for what can."""

import sys
from pathlib import Path

import pytest

from loader import bench
from tests.support.keyed_shards import FIELDS, write_layer, write_shards


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    bench.main()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_no_seconds_are_an_error_that_says_so(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, str(shards), "--seconds", seconds)
    assert f"--seconds {seconds}: give more than 0" in capsys.readouterr().err


def test_a_wrong_name_on_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.support.faulty_server import serve

    with serve(tmp_path) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        with pytest.raises(SystemExit, match=r"hf://datasets/me/nothing.*HTTP 404.*Check the name"):
            run(monkeypatch, "hf://datasets/me/nothing")


def test_a_figure(shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, str(shards), "--seconds", "0.1", "--batch-size", "5", "--resolution", "256")
    assert "samples/s" in capsys.readouterr().out


def test_layers_are_read_with_their_base(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [field for field in FIELDS if field.name.startswith("moments")]
    base = write_shards(tmp_path / "base", [9, 4], prefix="b", fields=images)
    layer = write_layer(tmp_path / "t5", base, ["caption_latents_t5"])
    for layers, there in (([], False), (["--layers", str(layer)], True)):
        run(monkeypatch, str(base), *layers, "--seconds", "0.1", "--batch-size", "3")
        out = capsys.readouterr().out
        assert "image_latents" in out and "samples/s" in out and ("caption_latents" in out) == there
    with pytest.raises(SystemExit, match=f"^{layer} is a layer of other shards .* than {shards} [^\n]*$"):
        run(monkeypatch, str(shards), "--layers", str(layer), "--seconds", "0.1")
    with pytest.raises(SystemExit):
        run(monkeypatch, str(base), str(shards), "--layers", str(layer))
    assert f"--layers {layer}: they lie beside one folder of shards" in capsys.readouterr().err
