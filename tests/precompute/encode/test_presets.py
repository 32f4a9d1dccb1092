"""`--for MODEL`: the table is whole, what it stands for is printed, and every flag overrides it."""

import inspect
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import diffusers
import numpy as np
import pytest

from loader import make_loader
from precompute import verify
from precompute.encode.presets import PRESETS, Model, choose_models
from precompute.encode.text import open_text_encoder
from precompute.encode.text_spec import parse_text_encoder
from precompute.errors import ModelError, UsageError
from precompute.runtime.session import Session
from tests.support import encoders_page, tiny_models
from tests.support.hub_cache import COMMIT, cached
from tests.support.launching import few_of_demo, run_here
from tests.support.tiny_pipelines import PARTS, sdxl_parts


@pytest.mark.parametrize("name", get_args(Model))
def test_every_entry_can_be_read_and_names_a_pipeline_that_the_suite_holds(name: Any) -> None:
    preset = PRESETS[name]
    specs = [parse_text_encoder(value) for value in choose_models(name, None, None, ()).text_encoders]
    assert specs[0].name == "" and len({spec.name for spec in specs}) == len(specs)
    assert choose_models(name, None, None, ()).vae.removesuffix("?shift=0") == preset.model
    if name != "micro-diffusion":
        assert hasattr(diffusers, preset.pipeline) and name in PARTS


# The transformer that is trained on it, and what its arguments are called and default to, of a latent's channels and the encoders' widths.
TAKES: dict[str, tuple[str, Callable[[int, tuple[int, ...]], dict[str, int]]]] = {
    "sd3": ("SD3Transformer2DModel", lambda c, w: {"in_channels": c, "joint_attention_dim": w[2], "pooled_projection_dim": w[0] + w[1]}),
    "flux1": ("FluxTransformer2DModel", lambda c, w: {"in_channels": 4 * c, "joint_attention_dim": w[0], "pooled_projection_dim": w[1]}),
    "flux2-dev": ("Flux2Transformer2DModel", lambda c, w: {"in_channels": c, "joint_attention_dim": 3 * w[0]}),
    "qwen-image": ("QwenImageTransformer2DModel", lambda c, w: {"in_channels": 4 * c, "joint_attention_dim": w[0]}),
    "z-image": ("ZImageTransformer2DModel", lambda c, w: {"in_channels": c, "cap_feat_dim": w[0]}),
    "sana": ("SanaTransformer2DModel", lambda c, w: {"in_channels": c, "caption_channels": w[0]}),
    "pixart-sigma": ("PixArtTransformer2DModel", lambda c, w: {"in_channels": c}),
    "hunyuan-image": ("HunyuanImageTransformer2DModel", lambda c, w: {"in_channels": c, "text_embed_dim": w[0]}),
    "wan": ("WanTransformer3DModel", lambda c, w: {"in_channels": c, "text_dim": w[0]}),
    "chroma": ("ChromaTransformer2DModel", lambda c, w: {"in_channels": 4 * c, "joint_attention_dim": w[0]}),
    "kandinsky5": ("Kandinsky5Transformer3DModel", lambda c, w: {"in_text_dim": w[0], "in_text_dim2": w[1]}),
    "hidream": ("HiDreamImageTransformer2DModel", lambda c, w: {"in_channels": 4 * c, "text_emb_dim": w[2] + w[3]}),
    "auraflow": ("AuraFlowTransformer2DModel", lambda c, w: {"in_channels": c, "joint_attention_dim": w[0]}),
    "cogview4": ("CogView4Transformer2DModel", lambda c, w: {"in_channels": c, "text_embed_dim": w[0]}),
    "ltx": ("LTXVideoTransformer3DModel", lambda c, w: {"in_channels": c, "caption_channels": w[0]}),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKES)
def test_the_widths_on_the_page_are_those_that_the_model_takes(name: str) -> None:
    family, expected = TAKES[name]
    (channels, _), widths = encoders_page.WIDTHS[name]
    takes = inspect.signature(getattr(diffusers, family).__init__).parameters
    said = expected(channels, widths)
    assert {argument: takes[argument].default for argument in said} == said


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL's parts, tiny, in a folder whose name needs quotes."""
    folder = tiny_models.save_kl(tmp_path_factory.mktemp("models") / "a model, 'mine'")
    sdxl_parts(folder)
    return folder


# Flags that name some of the models; M is a folder. The others are SDXL's, from a cache of the Hub.
PARTLY = [
    (),
    ("--vae", "toy"),
    ("--vae", "M?shift=0"),
    ("--text-encoder", "toy"),
    ("--text-encoder", "?length=20"),
    ("--vae", "toy", "--text-encoder", "g=?layer=-1&norm"),
    ("--model", "M"),
    ("--model", "M", "--vae", "toy"),
    ("--model", "M", "--text-encoder", "t=M?layer=-2&template=a picture of {}"),
    ("--model", "M", "--vae", "toy", "--text-encoder", "toy"),
    ("--for", "sd15", "--model", "M"),
    ("--for", "sd15", "--model", "M", "--vae", "toy", "--text-encoder", "?template=a \\n+{}"),
]


# diffusers 0.42 gives huggingface_hub 2 an argument that it no longer takes.
of_a_cache = pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")


@of_a_cache
@pytest.mark.parametrize("given", PARTLY, ids=" ".join)
def test_what_is_printed_is_whole_and_says_the_same_run(
    given: tuple[str, ...],
    sdxl: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(sdxl, cached(tmp_path, PRESETS["sdxl"].model, monkeypatch), dirs_exist_ok=True)
    flags = few_of_demo(1, tmp_path / "out")
    said = run_here(monkeypatch, capsys, *flags, *(word.replace("M", str(sdxl)) for word in given))
    printed = shlex.split(said.partition("\n")[2].partition(" -> ")[0].rpartition("\n")[0])
    recipe = json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]
    assert printed.count("--vae") == 1 and printed.count("--text-encoder") == len(recipe["text_encoders"])
    assert "1 of 1 units finished before" in run_here(monkeypatch, capsys, *flags, *printed)


@of_a_cache
def test_the_autoencoder_that_a_layer_has_of_its_base_is_printed(
    sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sdxl, cached(tmp_path, "org/tiny", monkeypatch), dirs_exist_ok=True)
    base = few_of_demo(1, tmp_path / "base")
    run_here(monkeypatch, capsys, *base, "--vae", "org/tiny?shift=0", "--text-encoder", "toy")
    layer = (
        "--beside",
        tmp_path / "base",
        "--output",
        tmp_path / "layer",
        "--resolutions",
        "32",
        "--dtype",
        "float32",
    )
    said = run_here(monkeypatch, capsys, *layer)
    assert f"--beside {tmp_path / 'base'}:\n  --vae 'org/tiny@{COMMIT}?shift=0'\n" in said
    printed = shlex.split(said.partition("\n")[2].partition("\n")[0])
    again = run_here(monkeypatch, capsys, *layer, *printed)
    assert "1 of 1 units finished before" in again and "--vae" not in again


@pytest.mark.parametrize(
    ("flags", "printed"),
    [((), True), (("--for", "sdxl"), True), (("--vae", "toy", "--text-encoder", "toy"), False)],
)
def test_the_default_preset_is_printed_as_flags(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: Any,
    printed: bool,
) -> None:
    def absent(*args: Any) -> None:
        raise ModelError("no model here")

    monkeypatch.setattr(Session, "open", absent)
    with pytest.raises(SystemExit):
        run_here(monkeypatch, capsys, *few_of_demo(3, tmp_path / "out"), *flags)
    said = capsys.readouterr()
    preset = f"--for sdxl:\n{choose_models('sdxl', None, None, ())}\n"
    assert said.out == (preset if printed else "") and "no model here" in said.err


def test_flags_override_a_preset() -> None:
    flux = choose_models("flux1", None, None, ())
    assert choose_models("flux1", "M", "toy", ("toy",)) == choose_models(None, None, "toy", ("toy",))
    short = choose_models("flux1", "M", None, ("?length=256", "clip=?pooled"))
    assert short.vae == "M"
    assert short.text_encoders == ("M?subfolder=text_encoder_2&length=256&padding=full", "clip=M?pooled")
    assert choose_models("flux1", flux.vae, None, ()) == flux
    changed = choose_models("qwen-image", None, None, ("?length=77",)).text_encoders[0]
    whole = parse_text_encoder(choose_models("qwen-image", None, None, ()).text_encoders[0])
    assert parse_text_encoder(changed).template == whole.template and parse_text_encoder(changed).length == 77


@pytest.mark.parametrize(
    ("given", "message"),
    [(("t6=?length=2",), "no encoder of that name; it has"), (("toy", "t5=?length=256"), "give each its ID")],
)
def test_changes_of_no_encoder_are_refused(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=f"--text-encoder .*{message}"):
        choose_models("flux1", None, None, given)


def test_a_part_that_the_repository_lacks_comes_from_elsewhere_or_the_folder(tmp_path: Path) -> None:
    assert "llama=auto:meta-llama/" in choose_models("hidream", str(tmp_path), None, ()).text_encoders[1]
    (tmp_path / "text_encoder_4").mkdir()
    assert f"llama=auto:{tmp_path}?" in choose_models("hidream", str(tmp_path), None, ()).text_encoders[1]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("toy?side=left", "side"),
        ("toy?mask=real", "mask"),
        ("openclip:ViT-B-32/openai?multiple=16", "multiple"),
        ("toy?quoted", "quoted"),
        ("openclip:ViT-B-32/openai?subfolder=x", "subfolder"),
        ("toy?padding=trim", "padding"),
        ("toy?template=the {}&skip=template", "skip=template"),
    ],
)
def test_options_without_a_mask_are_refused_by_name(value: str, named: str) -> None:
    with pytest.raises(UsageError, match=f"--text-encoder .*has no mask.*leave {named} out"):
        open_text_encoder(value)


def test_bare_captions_beside_others_keep_their_first_tokens(tmp_path: Path) -> None:
    folder = tiny_models.save_decoder_only(tmp_path)
    encoder = open_text_encoder(f"auto:{folder}?empty=bare&skip=template&template=the man with {{}}&length=8")
    alone = [encoder.encode([caption])[0] for caption in ("", "cup", " ")]
    for one, together in zip(alone, encoder.encode(["", "cup", " "]), strict=True):
        np.testing.assert_array_equal(one["caption_latents"], together["caption_latents"])


def test_captions_without_quotes_have_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_models.save_t5(tmp_path / "t5")
    flags = ["builders/demo", "--limit", 3, "--resolutions", 64, "--output", tmp_path / "out", "--vae", "toy"]
    run_here(
        monkeypatch,
        capsys,
        *flags,
        "--text-encoder",
        f"{folder}?quoted",
        "--text-encoder",
        "clip=toy?pooled=only",
    )
    assert verify.run(verify.Config(str(tmp_path / "out"))) == 0
    (batch,) = make_loader(tmp_path / "out", 3, pooled=True)
    assert not batch["caption_mask"].any() and not batch["caption_latents"].any()
    assert batch["caption_pooled_clip"].any() and "caption_latents_clip" not in batch


def test_a_folder_may_have_an_equals_sign(tmp_path: Path) -> None:
    for value in (f"{tmp_path}/run=1", f"t5={tmp_path}/run=1", "./run=1"):
        spec = parse_text_encoder(f"{value}?layer=-2")
        assert spec.model.endswith("run=1") and spec.name == ("t5" if value.startswith("t5=") else "")
