"""Make every dataset of a recipe: download, precompute, verify, preview and push, one after the other.

    python precompute/make.py micro_budget --plan      # what it takes, from a measured sample
    python precompute/make.py micro_budget --small     # about 1 %

A recipe is a TOML file of precompute/recipes, or any other. Each step is a command that you could type, is printed before it
runs, and goes on where it was: after a fault, mend it and run the same line again.
"""

import shlex
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from precompute.commands import executable, parse, script, words
from precompute.errors import PrecomputeError, UsageError, one_line_errors
from precompute.hub.dataset_card import known_source
from precompute.shards.markers import marker_paths, read_marker

RECIPES = Path(__file__).parent / "recipes"
TERABYTE = 1e12


@dataclass(frozen=True)
class Config:
    recipe: tyro.conf.Positional[str]
    """Name of a file in precompute/recipes, or path of a TOML file."""

    plan: bool = False
    """Only estimate rows, disk and device hours; encodes a small sample to measure."""

    small: bool = False
    """The `small` config of each dataset, about 1 %."""

    only: tuple[str, ...] = ()
    """Names of datasets; default: all of the recipe."""

    raw: Path = Path("raw")
    """Folder for the raw archives, RAW/NAME each."""

    latents: Path = Path("latents")
    """Folder for the shards, LATENTS/NAME each."""

    stream: bool = False
    """Read the archives in place, on the Hub, instead of downloading them first."""

    push_to: str | None = None
    """User or organisation of the Hub: pushes to PUSH_TO/RECIPE-NAME."""

    private: bool = False
    """Make the pushed datasets private, and not only those whose licence forbids to share them."""

    launch: str = "accelerate launch"
    """How a run is started."""

    flags: str = ""
    """More flags of the run, as in --flags="--batch-size 64". They come last, and win."""

    sample: str = "builders/demo"
    """Dataset that --plan encodes to measure bytes and images/s."""


@dataclass(frozen=True)
class Dataset:
    """One dataset of a recipe. rows, gigabytes: published size of all splits and of the archives.

    links: name of a file in its folder of raw archives that says where they are, as SA-1B's publisher hands out.
    """

    name: str
    config: str | None
    splits: tuple[str, ...]
    rows: int
    gigabytes: float
    links: str | None = None


@dataclass(frozen=True)
class Recipe:
    name: str
    flags: tuple[str, ...]
    datasets: tuple[Dataset, ...]


@dataclass(frozen=True)
class Step:
    """One command of one dataset."""

    dataset: str
    verb: str
    command: list[str]


def read_recipe(name: str, small: bool, only: Sequence[str] = ()) -> Recipe:
    """Raises UsageError naming the file and the key at fault."""
    path = RECIPES / f"{name}.toml" if (RECIPES / f"{name}.toml").is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise UsageError(f"{name}: no such recipe or file; there are {known}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        datasets = tuple(_dataset(name, entry, small) for name, entry in content["datasets"].items())
        flags = tuple(_arguments(content.get("flags", {})))
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: {error!r} is missing or wrong; compare with precompute/recipes") from error
    unknown = set(only) - {dataset.name for dataset in datasets}
    if unknown:
        raise UsageError(
            f"--only {' '.join(sorted(unknown))}: the recipe has {', '.join(d.name for d in datasets)}"
        )
    return Recipe(path.stem, flags, tuple(d for d in datasets if not only or d.name in only))


def _dataset(name: str, entry: dict[str, Any], small: bool) -> Dataset:
    size = entry["small" if small else "full"]
    splits = tuple(entry.get("splits", ["train"]))
    config = size.get("name", entry.get("name"))
    return Dataset(name, config, splits, size["rows"], size["gigabytes"], entry.get("links"))


def _arguments(flags: dict[str, Any]) -> Iterator[str]:
    """`{"vae": "x", "text-encoder": ["a", "b"], "resolutions": [256, 512]}` as a command line has them."""
    for flag, value in flags.items():
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            for item in value:
                yield from (f"--{flag}", item)
        else:
            yield from (f"--{flag}", *map(str, value if isinstance(value, list) else [value]))


def steps(config: Config, recipe: Recipe) -> Iterator[Step]:
    """The commands of a recipe, in order. Raises UsageError where a dataset's links are not there."""
    for dataset in recipe.datasets:
        yield from _steps(config, recipe, dataset)


def _steps(config: Config, recipe: Recipe, dataset: Dataset) -> Iterator[Step]:
    raw, output = config.raw / dataset.name, str(config.latents / dataset.name)
    named = ["--name", dataset.config] if dataset.config else []
    links = _links(raw, dataset) if dataset.links else []
    where = ["--options", *(f"links={path}" for path in links)] if links else []
    if not config.stream:
        where = ["--data-dir", str(raw)]
        command = [*words("download"), dataset.name, *named, *where]
        yield Step(dataset.name, "download", [*command, *(f"--links={path}" for path in links)])
    for split in dataset.splits:
        command = [*shlex.split(config.launch), *script("run"), f"builders/{dataset.name}", *named]
        command += ["--split", split, "--output", output, *where]
        yield Step(dataset.name, f"precompute {split}", [*command, *recipe.flags, *shlex.split(config.flags)])
    yield Step(dataset.name, "verify", [*words("verify"), output])
    yield Step(dataset.name, "preview", [*words("preview"), output, *where])
    if config.push_to:
        repository = f"{config.push_to}/{recipe.name.replace('_', '-')}-{dataset.name}"
        command = [*words("push"), output, repository]
        private = config.private or known_source(f"builders/{dataset.name}").forbids_sharing
        yield Step(dataset.name, "push", [*command, *(["--private"] if private else [])])


def _links(raw: Path, dataset: Dataset) -> list[Path]:
    """Raises UsageError where there is no such file."""
    path = raw / str(dataset.links)
    if not path.is_file():
        raise UsageError(
            f"{path}: not there. Save the publisher's list of links under this name (builders/{dataset.name}.py says "
            "where to get it), or name the other datasets with --only"
        )
    return [path]


def run(step: Step) -> None:
    """Print the command as one would type it, and run it to its end. Raises PrecomputeError if it fails."""
    print(f"\n== {step.dataset}: {step.verb}\n{shlex.join(step.command)}", flush=True)
    code = subprocess.run(executable(step.command)).returncode
    if code:
        raise PrecomputeError(
            f"{step.dataset}: {step.verb} ended with exit code {code}; mend it and run the same line again: "
            "what is finished stays finished"
        )


@dataclass(frozen=True)
class Measured:
    """Of one sample: bytes in the shards, and images a second of one process."""

    bytes: float
    images_per_second: float


def measure(config: Config, recipe: Recipe) -> Measured:
    """Encode a small dataset with the recipe's flags, and take the numbers from its markers. The first unit warms up."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["python", *script("run"), config.sample, "--output", folder]
        run(Step("sample", "precompute", [*command, *recipe.flags, *shlex.split(config.flags)]))
        markers = sorted(
            (read_marker(path) for path in marker_paths(Path(folder))), key=lambda marker: marker.unit
        )
        markers = [marker for marker in markers if marker.samples]
        if not markers:
            raise PrecomputeError(f"--sample {config.sample}: no sample of it passes; name another dataset")
        size = sum(p.stat().st_size for p in Path(folder).iterdir() if p.name.startswith(markers[0].split))
        samples = sum(marker.samples for marker in markers)
        warm = markers[1:] or markers
        seconds = sum(marker.timings["seconds"] for marker in warm)
        speed = sum(marker.samples for marker in warm) / max(seconds, 1e-9)
        return Measured(bytes=size / samples, images_per_second=speed)


def plan(recipe: Recipe, measured: Measured, raw: bool) -> str:
    """A table of what the recipe takes. Rejected rows are counted as written: an upper bound."""
    lines = [f"{'dataset':<14}{'rows':>14}{'raw':>12}{'latents':>12}{'device hours':>15}"]
    total = [0.0, 0.0, 0.0, 0.0]
    for dataset in recipe.datasets:
        cells = [
            dataset.rows,
            dataset.gigabytes / 1000 if raw else 0,
            dataset.rows * measured.bytes / TERABYTE,
            dataset.rows / measured.images_per_second / 3600,
        ]
        total = [a + b for a, b in zip(total, cells, strict=True)]
        lines.append(_line(dataset.name, cells))
    lines.append(_line("all", total))
    lines.append(
        f"measured: {measured.bytes / 1024:,.1f} KiB a sample, {measured.images_per_second:,.1f} images/s on one process"
    )
    return "\n".join(lines)


def _line(name: str, cells: Sequence[float]) -> str:
    rows, raw, latents, hours = cells
    return f"{name:<14}{rows:>14,.0f}{raw:>9,.2f} TB{latents:>9,.2f} TB{hours:>15,.1f}"


def free_space(config: Config) -> str:
    lines = []
    for flag, folder in (("--raw", config.raw), ("--latents", config.latents)):
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        lines.append(f"free at {flag} {folder}: {shutil.disk_usage(there).free / TERABYTE:,.2f} TB")
    return "\n".join(lines)


def main() -> None:
    with one_line_errors():
        config = parse("make", Config, __doc__)
        recipe = read_recipe(config.recipe, config.small, config.only)
        if config.plan:
            print(f"\n{plan(recipe, measure(config, recipe), raw=not config.stream)}\n{free_space(config)}")
            return
        for step in list(steps(config, recipe)):  # all of them first, so that what is missing is said at once
            run(step)
        print(f"\n{recipe.name}: all of {', '.join(d.name for d in recipe.datasets)} in {config.latents}")


if __name__ == "__main__":
    main()
