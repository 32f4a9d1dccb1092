"""What each model's own diffusers pipeline takes, in the words of `--vae` and `--text-encoder`: the table behind `--for MODEL`.

A new model is one entry: its pipeline's class, its Hub id, and a `--text-encoder` for each encoder that the pipeline reads a
prompt with, {} where the model stands. Read the pipeline's `encode_prompt` for them, then add its parts to
tests/support/tiny_pipelines.py, for the suite holds every entry against that method.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote

from precompute.encode.text_spec import split_value
from precompute.errors import UsageError
from precompute.flags.run import Model as Model


@dataclass(frozen=True)
class Preset:
    """pipeline: the class in diffusers whose `encode_prompt` it repeats, called as it calls it. model: where its parts are on the Hub.

    text_encoders: values of `--text-encoder`; {} is the model, {elsewhere} the repository of a part that the model's own does
    not hold. vae: the value of `--vae`.
    """

    pipeline: str
    model: str
    text_encoders: tuple[str, ...]
    elsewhere: str = ""
    vae: str = "{}"

    def values(self, model: str) -> list[str]:
        """`--text-encoder` values whose parts lie in `model`, a folder or a Hub id."""
        return [self._value(value, model) for value in self.text_encoders]

    def _value(self, value: str, model: str) -> str:
        part = dict(parse_qsl(value.partition("?")[2])).get("subfolder", "")
        elsewhere = model if part and Path(model, part).is_dir() else self.elsewhere
        return value.replace("{elsewhere}", elsewhere).replace("{}", model)


DESCRIBE = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the objects "
    "and background:"
)
QWEN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QWEN_IMAGE = f"<|im_start|>system\n{DESCRIBE}<|im_end|>\n{QWEN}"
HUNYUAN = f"<|im_start|>system\n{DESCRIBE}<|im_end|>\n<|im_start|>user\n{{}}<|im_end|>"
KANDINSKY = HUNYUAN.replace("Describe", "You are a prompt engineer. Describe", 1)
FLUX2 = (
    "[SYSTEM_PROMPT]You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation.[/SYSTEM_PROMPT][INST]{}[/INST]"
)
LUMINA2 = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based on "
    "textual prompts or user prompts. <Prompt Start> {}"
)
SANA = (
    "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for image "
    "generation. Evaluate the level of detail in the user prompt:\n"
    "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial relationships to "
    "create vivid and concrete scenes.\n"
    "- If the prompt is already detailed, refine and enhance the existing details slightly without overcomplicating.\n"
    "Here are examples of how to transform or refine prompts:\n"
    "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping peacefully on "
    "a warm sunny windowsill, surrounded by pots of blooming red flowers.\n"
    "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street lamps, a "
    "diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass skyscrapers.\n"
    "Please generate only the enhanced description for the prompt below and avoid including any additional commentary or "
    "evaluations:\nUser Prompt: {}"
)
THINK = "<think>\n\n</think>\n\n"
LLAMA_LAYERS = ",".join(map(str, range(1, 33)))

CLIP_L = "clip={}?pooled=only"
T5_2 = "{}?subfolder=text_encoder_2&length=512&padding=full"
SECOND = "g={}?subfolder=text_encoder_2&layer=-2&pooled"

PRESETS: dict[Model, Preset] = {
    "sd15": Preset("StableDiffusionPipeline", "stable-diffusion-v1-5/stable-diffusion-v1-5", ("{}",)),
    "sdxl": Preset(
        "StableDiffusionXLPipeline", "stabilityai/stable-diffusion-xl-base-1.0", ("{}?layer=-2", SECOND)
    ),
    "sd3": Preset(
        "StableDiffusion3Pipeline",
        "stabilityai/stable-diffusion-3-medium-diffusers",
        ("{}?layer=-2&pooled", SECOND, "t5={}?subfolder=text_encoder_3&length=256&padding=full"),
    ),
    "flux1": Preset("FluxPipeline", "black-forest-labs/FLUX.1-dev", (T5_2, CLIP_L)),
    "flux2-dev": Preset(
        "Flux2Pipeline",
        "black-forest-labs/FLUX.2-dev",
        (f"auto:{{}}?length=512&layer=10,20,30&padding=masked&side=left&template={quote(FLUX2)}",),
    ),
    "flux2-klein": Preset(
        "Flux2KleinPipeline",
        "black-forest-labs/FLUX.2-klein-base-9B",
        (f"auto:{{}}?length=512&layer=9,18,27&padding=masked&template={quote(QWEN + THINK)}",),
    ),
    "qwen-image": Preset(
        "QwenImagePipeline",
        "Qwen/Qwen-Image",
        (f"auto:{{}}?length=512&skip=34&template={quote(QWEN_IMAGE)}",),
    ),
    "z-image": Preset(
        "ZImagePipeline",
        "Tongyi-MAI/Z-Image-Turbo",
        (f"auto:{{}}?length=512&layer=-2&template={quote(QWEN)}",),
    ),
    "sana": Preset(
        "SanaPipeline",
        "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        (f"auto:{{}}?length=300&keep=first&skip=template-1&case=lower&empty=bare&template={quote(SANA)}",),
    ),
    "pixart-sigma": Preset(
        "PixArtSigmaPipeline", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", ("{}?length=300&clean=deepfloyd",)
    ),
    "lumina2": Preset(
        "Lumina2Pipeline",
        "Alpha-VLLM/Lumina-Image-2.0",
        (f"auto:{{}}?length=256&layer=-2&empty=bare&template={quote(LUMINA2)}",),
    ),
    "hunyuan-image": Preset(
        "HunyuanImagePipeline",
        "hunyuanvideo-community/HunyuanImage-2.1-Diffusers",
        (
            f"auto:{{}}?length=1000&layer=-3&skip=34&template={quote(HUNYUAN)}",
            "glyph={}?subfolder=text_encoder_2&length=128&quoted",
        ),
    ),
    "wan": Preset("WanPipeline", "Wan-AI/Wan2.1-T2V-14B-Diffusers", ("{}?length=512&clean=ftfy",)),
    "chroma": Preset(
        "ChromaPipeline", "lodestones/Chroma1-HD", ("{}?length=512&padding=masked&mask=one-more",)
    ),
    "kandinsky5": Preset(
        "Kandinsky5T2IPipeline",
        "kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers",
        (
            f"auto:{{}}?length=512&skip=40&clean=ftfy&template={quote(KANDINSKY)}",
            "clip={}?subfolder=text_encoder_2&pooled=only&clean=ftfy",
        ),
        vae="{}?shift=0",
    ),
    "hidream": Preset(
        "HiDreamImagePipeline",
        "HiDream-ai/HiDream-I1-Full",
        (
            "{}?subfolder=text_encoder_3&length=128&padding=masked",
            f"llama=auto:{{elsewhere}}?subfolder=text_encoder_4&length=128&padding=masked&layer={LLAMA_LAYERS}",
            "clip={}?length=128&pooled=only",
            "g={}?subfolder=text_encoder_2&length=128&pooled=only",
        ),
        elsewhere="meta-llama/Meta-Llama-3.1-8B-Instruct",
    ),
    "auraflow": Preset("AuraFlowPipeline", "fal/AuraFlow", ("{}?length=256",)),
    "cogview4": Preset(
        "CogView4Pipeline",
        "THUDM/CogView4-6B",
        ("auto:{}?length=1024&layer=-2&multiple=16&side=left",),
        vae="{}?shift=0",
    ),
    "ltx": Preset("LTXPipeline", "Lightricks/LTX-Video", ("{}?length=128&padding=full&mask=real",)),
    "micro-diffusion": Preset(
        "",
        "stabilityai/stable-diffusion-xl-base-1.0",
        ("openclip:{elsewhere}",),
        elsewhere="hf-hub:apple/DFN5B-CLIP-ViT-H-14-378",
    ),
}
DEFAULT: Model = "sdxl"


@dataclass(frozen=True)
class ChosenModels:
    """The models of a run, as its flags name them."""

    vae: str
    text_encoders: tuple[str, ...]

    def __str__(self) -> str:
        """The flags that stand for them, a line each."""
        flags = [("--vae", self.vae), *(("--text-encoder", value) for value in self.text_encoders)]
        return "\n".join(f"  {flag} {shlex.quote(value)}" for flag, value in flags)


def choose_models(
    name: Model | None, model: str | None, vae: str | None, given: Sequence[str]
) -> ChosenModels:
    """The models of preset `name`, by default SDXL's, but for what single flags say.

    model: a folder or a Hub id with the pipeline's parts. given: `--text-encoder` values: they stand instead of the preset's; one
    without an ID, as in `t5=?length=256`, changes options of the preset's encoder of that name. Raises UsageError.
    """
    preset = PRESETS[name or DEFAULT]
    model = model or preset.model
    values = preset.values(model)
    changes = [value for value in given if not split_value(value)[1]]
    if given and not changes:
        values = list(given)
    elif len(changes) < len(given):
        raise UsageError(
            f"--text-encoder {changes[0]}: it changes an encoder of --for, which the others replace; give each its ID"
        )
    for change in changes:
        values = _changed(values, change)
    return ChosenModels(vae or preset.vae.replace("{}", model), tuple(values))


def _changed(values: list[str], change: str) -> list[str]:
    name, _, options = split_value(change)
    names = [split_value(value)[0] for value in values]
    if name not in names:
        raise UsageError(
            f"--text-encoder {change}: no ID, and --for has no encoder of that name; it has {sorted(names)}"
        )
    old = values[names.index(name)]
    front, _, query = old.partition("?")
    merged = dict(parse_qsl(query, keep_blank_values=True)) | dict(parse_qsl(options, keep_blank_values=True))
    query = "&".join(f"{key}={quote(value, safe=',')}" if value else key for key, value in merged.items())
    return [f"{front}?{query}" if value == old else value for value in values]
