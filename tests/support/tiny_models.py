"""Small random models, saved to disk as the real ones are and loaded through the real path."""

import json
import shutil
from pathlib import Path

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.models.clip import CLIPTokenizer


def save_kl(folder: Path, channels: int = 4, **config: object) -> Path:
    """`folder/vae`: an AutoencoderKL of factor 4, as a diffusers pipeline has it."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=channels,
        **config,
    )
    vae.save_pretrained(folder / "vae")
    return folder


def save_dc(folder: Path) -> Path:
    torch.manual_seed(0)
    diffusers.AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16, 16),
        decoder_block_out_channels=(8, 16, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        scaling_factor=0.41407,
    ).save_pretrained(folder)
    return folder


def save_tiny(folder: Path) -> Path:
    torch.manual_seed(0)
    diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    ).save_pretrained(folder)
    return folder


@torch.no_grad()
def save_halving(folder: Path) -> Path:
    """An AutoencoderTiny whose latents are the picture at half its size, so that it decodes to nearly what was encoded."""
    vae = diffusers.AutoencoderTiny.from_pretrained(save_tiny(folder), scaling_factor=4.0)
    for name, module in vae.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            for parameter in module.parameters():
                parameter.zero_()
            channels = range(0 if ".conv." in name else min(module.in_channels, module.out_channels))
            for channel in channels:
                taps = module.weight[channel, channel]
                if module.stride == (2, 2):
                    taps[1:, 1:] = 0.25
                else:
                    taps[1, 1] = 1
    vae.save_pretrained(folder)
    return folder


def save_qwen(folder: Path, family: type = diffusers.AutoencoderKLQwenImage, **config: object) -> Path:
    torch.manual_seed(0)
    family(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 0.5, 1.0],
        **config,
    ).save_pretrained(folder)
    return folder


def save_hunyuan(folder: Path) -> Path:
    torch.manual_seed(0)
    diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=4,
        sample_size=64,
        scaling_factor=0.75289,
    ).save_pretrained(folder / "vae")
    return folder


def save_flux2(folder: Path) -> Path:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )
    vae.bn.running_mean.copy_(torch.linspace(-1, 1, 16))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2, 16))
    vae.save_pretrained(folder)
    return folder


def save_ltx(folder: Path) -> Path:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 16),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 16),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("conv",) * 2,
        upsample_residual=(False,) * 2,
        upsample_factor=(1, 1),
        patch_size=2,
    )
    vae.latents_mean.copy_(torch.linspace(-0.3, 0.3, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 2, 8))
    vae.save_pretrained(folder)
    return folder


def save_clip(folder: Path, projection: bool = False) -> Path:
    """`folder/text_encoder` and `folder/tokenizer`: a CLIP text model over single letters, 77 tokens of width 16."""
    torch.manual_seed(1)
    tokenizer_folder = folder / "tokenizer"
    tokenizer_folder.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (tokenizer_folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tokenizer_folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(
        str(tokenizer_folder / "vocab.json"), str(tokenizer_folder / "merges.txt"), model_max_length=77
    ).save_pretrained(tokenizer_folder)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    family = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    family(config).save_pretrained(folder / "text_encoder")
    return folder


def save_clip_of_openai(folder: Path) -> Path:
    """A whole CLIPModel with its tokenizer, both at the top of the folder, as OpenAI's are published."""
    save_clip(folder / "parts")
    transformers.AutoTokenizer.from_pretrained(folder / "parts" / "tokenizer").save_pretrained(folder)
    text = transformers.CLIPTextModel.from_pretrained(folder / "parts" / "text_encoder").config
    shutil.rmtree(folder / "parts")
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def save_word_tokenizer(folder: Path, end: bool) -> int:
    """A tokenizer of words, `<pad>` 0, `</s>` 1 (added with `end`), unknown 2; returns the size of its vocabulary."""
    words = [
        "<pad>",
        "</s>",
        "<unk>",
        *(
            "a",
            "an",
            "and",
            "cat",
            "cup",
            "flag",
            "for",
            "in",
            "man",
            "of",
            "on",
            "photograph",
            "the",
            "with",
            "woman",
        ),
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=32,
    )
    fast.save_pretrained(folder)
    return len(words)


def save_t5(folder: Path) -> Path:
    torch.manual_seed(2)
    size = save_word_tokenizer(folder / "tokenizer", end=True)
    config = transformers.T5Config(
        vocab_size=size,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    transformers.T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return folder


def save_decoder_only(folder: Path) -> Path:
    """A small Llama with its tokenizer at the top of the folder, as language models are published."""
    torch.manual_seed(3)
    size = save_word_tokenizer(folder, end=False)
    config = transformers.LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder
