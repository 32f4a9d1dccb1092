"""Train a diffusers model on latent shards: SDXL's UNet or SD3's transformer, whichever the config names. Of ours it imports the
loader only.

    accelerate launch examples/train_diffusers.py latents/cc12m --model stabilityai/stable-diffusion-xl-base-1.0 --output runs/sdxl
    accelerate launch examples/train_diffusers.py latents/cc12m --layers latents/cc12m-t5 --model sd3.json --output runs/sd3
    accelerate launch examples/train_diffusers.py latents/cc12m --model ... --output runs/sdxl --resume

The UNet learns the noise (DDPM), the transformer a velocity (rectified flow with logit-normal times, Esser et al. 2024). Dropped
captions are the empty caption's embedding, as the pipelines guide. Some samples are held out, by the hash of their key, and tell
the validation loss. A resumed run goes on in the same order of samples, with any number of processes that divides the batch.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration
from torch import Tensor

from loader import make_loader


def captions_of(text: str) -> str | dict[str, float]:
    """Weights where they are given as JSON. Raises ValueError where it is none."""
    weights: dict[str, float] | None = json.loads(text) if text.startswith("{") else None
    return text if weights is None else weights


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a diffusers model on latent shards.")
    parser.add_argument("shards", help="folder of shards, or hf://datasets/USER/REPO")
    parser.add_argument("--layers", nargs="+", default=[], help="layers beside the shards")
    parser.add_argument(
        "--model",
        required=True,
        help="Hub id or folder of a pipeline, for its weights; or a config.json, to begin from nothing",
    )
    parser.add_argument("--resolution", type=int, help="pixels; needed where the shards have several")
    parser.add_argument("--where", help="SQL over the columns, for the samples to train on")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for checkpoints and the final weights"
    )
    parser.add_argument(
        "--steps", type=int, default=1000, help="optimiser steps in all, resumed ones included"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="samples per step, over all processes")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument(
        "--captions",
        type=captions_of,
        default="first",
        help='which of several is drawn: first, random, or weights by kind, as in \'{"llava": 0.7, "alt": 0.3}\'',
    )
    parser.add_argument("--caption-drop-prob", type=float, default=0.1, help="for classifier-free guidance")
    parser.add_argument(
        "--dropped", choices=("null", "zeros"), default="null", help="what stands for a dropped caption"
    )
    parser.add_argument(
        "--held-out", type=float, default=0.01, help="share of the samples that are not trained on"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=10, help="steps")
    parser.add_argument(
        "--save-every", type=int, default=500, help="steps; the held-out loss is told then too"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT")
    return parser.parse_args()


# --- model ------------------------------------------------------------------------------------------------------------


def open_model(name: str) -> Any:
    """The denoiser of a pipeline with its weights, or a fresh one of a config file."""
    path = Path(name)
    if path.suffix == ".json":
        config = json.loads(path.read_text())
        return getattr(diffusers, config["_class_name"]).from_config(config)
    for family, subfolder in (
        (diffusers.UNet2DConditionModel, "unet"),
        (diffusers.SD3Transformer2DModel, "transformer"),
    ):
        try:
            return family.from_pretrained(name, subfolder=subfolder)
        except OSError:
            continue
    raise SystemExit(
        f"--model {name}: neither a unet nor a transformer of SD3 in it; name a pipeline, or a config.json"
    )


def text_of(batch: dict[str, Tensor], width: int) -> tuple[Tensor, Tensor]:
    """States (B, T, width) and pooled (B, P), as both pipelines join their encoders.

    Those that have a pooled vector lie beside each other, padded to `width`; the others' tokens follow theirs.
    """
    names = sorted(
        name.removeprefix("caption_latents") for name in batch if name.startswith("caption_latents")
    )
    pooled = [batch[f"caption_pooled{name}"] for name in names if f"caption_pooled{name}" in batch]
    states = {name: batch[f"caption_latents{name}"][:, 0].float() for name in names}
    clips = [states[name] for name in names if states[name].shape[-1] != width]
    rest = [states[name] for name in names if states[name].shape[-1] == width]
    if clips:
        joined = torch.cat(clips, dim=-1)
        rest.insert(0, F.pad(joined, (0, width - joined.shape[-1])))
    return torch.cat(rest, dim=1), torch.cat(pooled, dim=-1).float() if pooled else torch.zeros(
        len(rest[0]), 0
    )


# --- training ---------------------------------------------------------------------------------------------------------


def unet_loss(
    unet: Any, config: Any, batch: dict[str, Any], generator: torch.Generator, scheduler: Any
) -> Tensor:
    """Mean squared error of the predicted noise, with SDXL's conditions on text and sizes."""
    latents = batch["image_latents"].float()
    text, pooled = text_of(batch, config.cross_attention_dim)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    steps = len(scheduler.alphas_cumprod)
    time = torch.randint(steps, (len(latents),), generator=generator, device=latents.device)
    conditions = {"text_embeds": pooled, "time_ids": batch["size_conditioning"]}
    noisy = scheduler.add_noise(latents, noise, time)
    return F.mse_loss(unet(noisy, time, text, added_cond_kwargs=conditions).sample, noise)


def flow_loss(
    transformer: Any, config: Any, batch: dict[str, Any], generator: torch.Generator, _: Any
) -> Tensor:
    """Mean squared error of the predicted velocity."""
    latents = batch["image_latents"].float()
    text, pooled = text_of(batch, config.joint_attention_dim)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    time = torch.randn(len(latents), generator=generator, device=latents.device).sigmoid()
    mix = time[:, None, None, None]
    velocity = transformer((1 - mix) * latents + mix * noise, text, pooled, 1000 * time).sample
    return F.mse_loss(velocity, noise - latents)


class Progress:
    """How many steps are done, in the checkpoint."""

    step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def endless(batches: Any, device: torch.device) -> Iterator[dict[str, Any]]:
    """One epoch after another, on the device."""
    while True:
        for batch in batches:
            yield {
                k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
            }


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    torch.manual_seed(args.seed)
    if args.batch_size % accelerator.num_processes:
        raise SystemExit(
            f"--batch-size {args.batch_size}: not divisible by {accelerator.num_processes} processes"
        )
    saved = sorted(
        args.output.glob("checkpoints/checkpoint_*"), key=lambda path: int(path.name.split("_")[1])
    )
    if args.resume and not saved:
        raise SystemExit(f"--resume: no checkpoint in {args.output}; leave it out")
    if saved and not args.resume:
        raise SystemExit(
            f"--output {args.output}: there are checkpoints of an earlier run; go on with --resume, or name another folder"
        )
    model = open_model(args.model)
    config, is_unet = model.config, isinstance(model, diffusers.UNet2DConditionModel)
    loss_of = unet_loss if is_unet else flow_loss
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    options: dict[str, Any] = {
        "resolution": args.resolution,
        "where": args.where,
        "captions": args.captions,
        "pooled": True,
        "extras": ["size_conditioning"] if is_unet else [],
        "seed": args.seed,
        "pin_memory": accelerator.device.type == "cuda",
    }
    paths = [(args.shards, *args.layers)] if args.layers else [args.shards]
    size = args.batch_size // accelerator.num_processes
    batches = make_loader(
        paths,
        size,
        subset=(0, 1 - args.held_out),
        caption_drop_prob=args.caption_drop_prob,
        dropped=args.dropped,
        **options,
    )
    held_out = make_loader(
        paths, size, subset=(1 - args.held_out, 1), from_start=True, drop_last=False, **options
    )
    model, optimizer = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    )
    progress = Progress()
    accelerator.register_for_checkpointing(batches, progress)
    if saved:
        accelerator.load_state(str(saved[-1]))
        accelerator.project_configuration.iteration = int(saved[-1].name.split("_")[1]) + 1
    generator = torch.Generator(accelerator.device)
    stream, total = endless(batches, accelerator.device), torch.zeros((), device=accelerator.device)
    for step in range(progress.step + 1, args.steps + 1):
        generator.manual_seed((args.seed * 1_000_003 + step) * 4096 + accelerator.process_index)
        loss = loss_of(model, config, next(stream), generator, scheduler)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()
        if step % args.log_every == 0:
            accelerator.print(
                f"step {step:6d}  loss {accelerator.reduce(total, 'mean').item() / args.log_every:.4f}",
                flush=True,
            )
            total.zero_()
        if step % args.save_every == 0:
            progress.step = step
            accelerator.save_state()
            told = validation_loss(model, config, held_out, accelerator, loss_of, scheduler)
            accelerator.print(f"step {step:6d}  held out {told:.4f}", flush=True)
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(args.output / "model")
    accelerator.print(f"{args.steps} steps; {args.output / 'model'}")
    batches.close()
    held_out.close()
    accelerator.end_training()


@torch.no_grad()
def validation_loss(
    model: Any, config: Any, held_out: Any, accelerator: Accelerator, loss_of: Any, scheduler: Any
) -> float:
    """The loss on the held-out samples, with the same noise each time."""
    generator, losses = torch.Generator(accelerator.device), []
    for number, batch in enumerate(held_out):
        generator.manual_seed(number * 4096 + accelerator.process_index)
        moved = {k: v.to(accelerator.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        losses.append(loss_of(model, config, moved, generator, scheduler))
    return float(accelerator.reduce(torch.stack(losses).mean(), "mean"))


def main() -> None:
    args = parse_args()
    if not torch.cuda.is_available():
        PartialState(cpu=True)  # `accelerate launch --multi_gpu` without a GPU: several processes on the CPU
    project = ProjectConfiguration(str(args.output), automatic_checkpoint_naming=True, total_limit=2)
    train(args, Accelerator(project_config=project))


if __name__ == "__main__":
    main()
