"""Train a small diffusion transformer on latent shards: one file, of ours it imports the loader only.

    accelerate launch examples/train_dit.py latents/demo --resolution 256 --steps 200 --output runs/demo
    accelerate launch examples/train_dit.py latents/demo --resolution 256 --steps 400 --output runs/demo --resume

Rectified flow: the model sees x_t = (1 - t) * latents + t * noise and predicts noise - latents (Liu et al. 2022, with the
logit-normal times of Esser et al. 2024). Text enters by cross-attention, time by adaptive layer norms that begin as nothing
(Peebles and Xie 2023). A run may be resumed with any number of processes that divides the batch: the loader goes on in
the same order, every sample of an epoch once.
"""

import argparse
import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from torch import Tensor, nn

from loader import make_loader

# Shapes: B batch, N image tokens, T text tokens, W width, C H W of the latents, P patch.


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small diffusion transformer on latent shards.")
    parser.add_argument("shards", nargs="+", help="folders of shards, or hf://datasets/USER/REPO")
    parser.add_argument("--weights", type=float, nargs="+", help="of each folder in the mixture")
    parser.add_argument("--resolution", type=int, help="pixels; needed where the shards have several")
    parser.add_argument("--output", type=Path, default=Path("runs/dit"), help="folder for checkpoint.pt")
    parser.add_argument(
        "--steps", type=int, default=200, help="optimiser steps in all, resumed ones included"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="samples per step, over all processes")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--patch", type=int, default=2, help="latent pixels per token side")
    parser.add_argument("--caption-drop-prob", type=float, default=0.1, help="for classifier-free guidance")
    parser.add_argument(
        "--num-workers", type=int, default=0, help="loader processes; 0: threads, usually faster"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=10, help="steps")
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument(
        "--record-keys", action="store_true", help="append each step's keys to OUTPUT/keys-RANK.txt"
    )
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT/checkpoint.pt")
    return parser.parse_args()


# --- model ------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys; over `context`, or over itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.norm_q, self.norm_k = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        q = self.to_q(x)
        k, v = self.to_kv(x if context is None else context).chunk(2, dim=-1)
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (q, k, v))
        mask = None if mask is None else mask[:, None, None, :]
        x = F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v, attn_mask=mask)
        return self.out(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention, MLP; the first and last scaled, shifted and gated by the time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_3 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.norm_2 = nn.LayerNorm(width)
        self.attention, self.cross = Attention(width, heads), Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        scale_1, shift_1, gate_1, scale_3, shift_3, gate_3 = self.modulation(time)[:, None].chunk(6, dim=-1)
        x = x + gate_1 * self.attention(self.norm_1(x) * (1 + scale_1) + shift_1)
        x = x + self.cross(self.norm_2(x), text, mask)
        return x + gate_3 * self.mlp(self.norm_3(x) * (1 + scale_3) + shift_3)


class DiT(nn.Module):
    """Latents (B, C, H, W), times (B,) in [0, 1] and text (B, T, D) to a velocity (B, C, H, W)."""

    def __init__(
        self, channels: int, text_width: int, width: int, depth: int, heads: int, patch: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.embed_text = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.embed_time = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, patch * patch * channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, latents: Tensor, time: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(latents)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # B N W
        rows, columns = (waves(torch.arange(n, device=x.device), x.shape[2] // 2) for n in (height, width))
        x = x + torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], dim=1)
        time = self.embed_time(waves(1000 * time, x.shape[2]))
        text = self.embed_text(text)
        for block in self.blocks:
            x = block(x, time, text, mask)
        x = self.head(self.norm(x)).transpose(1, 2).unflatten(2, (height, width))
        return F.pixel_shuffle(x, self.patch)


def waves(x: Tensor, width: int) -> Tensor:
    """(n,) numbers to (n, width) sines and cosines of falling frequency."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=x.device) / (width // 2))
    angles = x[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


# --- training ---------------------------------------------------------------------------------------------------------


def flow_loss(model: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
    """Mean squared error of the predicted velocity."""
    latents, text = batch["image_latents"].float(), batch["caption_latents"][:, 0].float()
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    time = torch.randn(len(latents), generator=generator, device=latents.device).sigmoid()
    mix = time[:, None, None, None]
    velocity = model((1 - mix) * latents + mix * noise, time, text, batch.get("caption_mask"))
    return F.mse_loss(velocity, noise - latents)


def endless(batches: Any, device: torch.device) -> Iterator[dict[str, Any]]:
    """One epoch after another, on the device."""
    while True:
        for batch in batches:
            yield {
                k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
            }


def save(path: Path, state: dict[str, Any]) -> None:
    """The old checkpoint stays until the new one is whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    torch.manual_seed(args.seed)
    if args.batch_size % accelerator.num_processes:
        raise SystemExit(
            f"--batch-size {args.batch_size}: not divisible by {accelerator.num_processes} processes"
        )
    args.output.mkdir(parents=True, exist_ok=True)
    batches = make_loader(
        args.shards,
        args.batch_size // accelerator.num_processes,
        weights=args.weights,
        resolution=args.resolution,
        caption_drop_prob=args.caption_drop_prob,
        extras=["key"] if args.record_keys else [],
        num_workers=args.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        seed=args.seed,
    )
    sample = next(iter(batches))
    channels, text_width = sample["image_latents"].shape[1], sample["caption_latents"].shape[-1]
    model = DiT(channels, text_width, args.width, args.depth, args.heads, args.patch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    checkpoint, first = args.output / "checkpoint.pt", 0
    state = {**batches.state_dict(), "epoch": 0, "position": 0}  # the sample above was only a look
    if args.resume:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state, first = saved["loader"], saved["step"]
    batches.load_state_dict(state)
    model, optimizer = accelerator.prepare(model, optimizer)
    generator = torch.Generator(accelerator.device)
    keys = args.output / f"keys-{accelerator.process_index}.txt"
    stream, started = endless(batches, accelerator.device), time.perf_counter()
    total = torch.zeros((), device=accelerator.device)  # loss since the last line
    with keys.open("a" if args.resume else "w") if args.record_keys else contextlib.nullcontext() as record:
        for step in range(first + 1, args.steps + 1):
            batch = next(stream)
            generator.manual_seed((args.seed * 1_000_003 + step) * 4096 + accelerator.process_index)
            loss = flow_loss(model, batch, generator)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
            if record:
                print(step, *batch["key"], file=record, flush=True)
            if step % args.log_every == 0 or step == args.steps:
                mean = accelerator.reduce(total, "mean").item() / ((step - first - 1) % args.log_every + 1)
                total.zero_()
                rate = (step - first) * args.batch_size / (time.perf_counter() - started)
                accelerator.print(f"step {step:6d}  loss {mean:.4f}  {rate:.0f} images/s", flush=True)
            if (step % args.save_every == 0 or step == args.steps) and accelerator.is_main_process:
                weights = accelerator.unwrap_model(model).state_dict()
                progress = {"loader": batches.state_dict(), "step": step}
                save(checkpoint, {"model": weights, "optimizer": optimizer.state_dict(), **progress})
    accelerator.print(f"{args.steps} steps; {checkpoint}")
    accelerator.end_training()


def main() -> None:
    if not torch.cuda.is_available():
        PartialState(cpu=True)  # `accelerate launch --multi_gpu` without a GPU: several processes on the CPU
    train(parse_args(), Accelerator())


if __name__ == "__main__":
    main()
