"""What the flags of a run cannot be together, told before anything is loaded."""

from builders.core.account import REASONS
from loader.format import SHARD_NAME
from precompute.cloud.place import check_options, check_place, check_scratch, is_url
from precompute.errors import UsageError
from precompute.flags.run import Config as Config


def check(config: Config) -> None:
    """Refuse impossible flags before anything is loaded. Raises UsageError."""
    if not SHARD_NAME.fullmatch(f"{config.split}-00000"):
        raise UsageError(
            f"--split {config.split}: name one split, whole, as in train; for its first rows use --limit"
        )
    if not config.dataset and not config.beside:
        raise UsageError("DATASET: name one, as builders/demo; only with --beside it may be left out")
    if config.vae == "none" and not config.beside:
        raise UsageError("--vae none: only with --beside, for a layer without an autoencoder")
    check_place("--output", config.output)
    check_store(config)
    positive = {
        "--batch-size": config.batch_size,
        "--samples-per-shard": config.samples_per_shard,
        "--num-threads": config.num_threads,
        "--limit": config.limit,
        "--max-captions": config.max_captions,
        "--lease-timeout": config.lease_timeout,
        "--buckets": config.buckets,
        "--ray-workers": config.ray_workers,
        "--max-disk": config.max_disk,
    }
    for flag, value in positive.items():
        if value is not None and not value > 0:  # nor not a number
            raise UsageError(f"{flag} {value}: give more than 0")
    if not config.resolutions or len(set(config.resolutions)) != len(config.resolutions):
        raise UsageError(f"--resolutions {config.resolutions}: name each resolution once")
    for resolution in config.resolutions:
        if not 8 <= resolution <= 8192:
            raise UsageError(f"--resolutions {resolution}: pixels, from 8 to 8192")
    if config.max_disk and not config.delete_pushed:
        raise UsageError(
            f"--max-disk {config.max_disk:g}: only with --delete-pushed, or it would never be free again"
        )
    if config.ray_workers and config.engine != "ray":
        raise UsageError(f"--ray-workers {config.ray_workers}: only with --engine ray")
    if (config.delete_pushed or config.private) and not config.push_to:
        raise UsageError(f"--{'delete-pushed' if config.delete_pushed else 'private'}: only with --push-to")
    for reason in config.retry_rejected:
        if reason not in (*REASONS, "non_finite"):
            raise UsageError(
                f"--retry-rejected {reason}: the reasons are {', '.join([*REASONS, 'non_finite'])}"
            )


def check_store(config: Config) -> None:
    """Raises UsageError where a flag and the kind of --output do not go together."""
    if not is_url(config.output):
        check_scratch(config.scratch, config.output)
        check_options(config.store_option, config.beside)
    elif config.max_disk:
        raise UsageError(
            f"--max-disk {config.max_disk:g}: a store does not fill up, and --scratch holds three units of a process at most. Leave it out"
        )
