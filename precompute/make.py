"""Make every dataset of a recipe: download, precompute, verify, preview and push, one after the other.

    python precompute/make.py micro_budget --plan      # what it takes
    python precompute/make.py micro_budget --small     # about 1 %

A recipe is a TOML file of precompute/recipes, or any other. Each step is a command that you could type, is printed before it
runs, and goes on where it was: after a fault, mend it and run the same line again.
"""

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from precompute.cloud.place import is_url
from precompute.commands import executable, parse, script, words
from precompute.errors import PrecomputeError, UsageError, one_line_errors
from precompute.flags.make import Config as Config
from precompute.hub.dataset_card import known_source
from precompute.hub.permissions import reading_lacks, writing_lacks
from precompute.recipes.make_recipe import Dataset, MakeRecipe, read_recipe
from precompute.shards.markers import marker_paths, read_marker

TERABYTE = 1e12


@dataclass(frozen=True)
class Step:
    """One command of one dataset."""

    dataset: str
    verb: str
    command: list[str]


def lacks(config: Config, recipe: MakeRecipe) -> Iterator[str]:
    """What the recipe will need and is not there, a line each: links, terms, a token, extras, the launcher."""
    for dataset in recipe.datasets:
        path = config.raw / dataset.name / str(dataset.links)
        if dataset.links and not path.is_file():
            yield (
                f"{path}: not there. Save the publisher's list of links under this name (builders/{dataset.name}.py says "
                "where to get it), or name the other datasets with --only"
            )
        if dataset.gated:
            yield from reading_lacks(dataset.gated)
    if config.push_to:
        yield from writing_lacks("--push-to", config.push_to)
    if any("openclip:" in word for word in recipe.run_flags(config.flags)) and find_spec("open_clip") is None:
        yield 'openclip: not installed; pip install "latentmill[openclip]", or from a checkout pip install -e ".[openclip]"'
    for flag, folder in (("--raw", config.raw), ("--latents", config.latents)):
        if is_url(str(folder)):
            yield f"{flag} {folder}: a URL, and make writes to folders; name one"
    launcher = shlex.split(config.launch)[:1]
    if not launcher or shutil.which(executable(launcher)[0]) is None:
        yield f"--launch {config.launch}: no such command"


def steps(config: Config, recipe: MakeRecipe) -> Iterator[Step]:
    """The commands of a recipe, in order."""
    for dataset in recipe.datasets:
        yield from _steps(config, recipe, dataset)


def _steps(config: Config, recipe: MakeRecipe, dataset: Dataset) -> Iterator[Step]:
    raw, output = config.raw / dataset.name, str(config.latents / dataset.name)
    named = ["--name", dataset.config] if dataset.config else []
    links = [raw / dataset.links] if dataset.links else []
    where = ["--options", *(f"links={path}" for path in links)] if links else []
    if not config.stream:
        where = ["--data-dir", str(raw)]
        command = [*words("download"), dataset.name, *named, *where]
        yield Step(dataset.name, "download", [*command, *(f"--links={path}" for path in links)])
    for split in dataset.splits:
        command = [*shlex.split(config.launch), *script("run"), f"builders/{dataset.name}", *named]
        command += ["--split", split, "--output", output, *where]
        yield Step(dataset.name, f"precompute {split}", [*command, *recipe.run_flags(config.flags)])
    yield Step(dataset.name, "verify", [*words("verify"), output])
    yield Step(dataset.name, "preview", [*words("preview"), output, *where])
    if config.push_to:
        repository = f"{config.push_to}/{recipe.name.replace('_', '-')}-{dataset.name}"
        command = [*words("push"), output, repository]
        private = config.private or known_source(f"builders/{dataset.name}").forbids_sharing
        yield Step(dataset.name, "push", [*command, *(["--private"] if private else [])])


def run(step: Step) -> None:
    """Print the command as one would type it, and run it to its end. Raises PrecomputeError if it fails."""
    print(f"\n== {step.dataset}: {step.verb}\n{shlex.join(step.command)}", flush=True)
    # No shell, and every word is the user's own: flags, or the recipe that was named.
    code = subprocess.run(executable(step.command)).returncode  # noqa: S603
    if code:
        raise PrecomputeError(
            f"{step.dataset}: {step.verb} ended with exit code {code}; mend it and run the same line again: "
            "what is finished stays finished"
        )


@dataclass(frozen=True)
class Measured:
    """Says of one sample: bytes in the shards, images a second of one process (None: not measured), and where both are from."""

    bytes: float
    images_per_second: float | None
    how: str = "measured"


def measure(config: Config, recipe: MakeRecipe) -> Measured:
    """Encode a small dataset with the recipe's flags, and take the numbers from its markers. The first unit warms up.

    Where that fails, as it does without a network for the models, the recipe's own figure stands for the bytes.
    """
    try:
        return _measure(config, recipe)
    except PrecomputeError as error:
        if recipe.sample_bytes is None:
            raise
        print(f"not measured, for the sample could not be encoded ({error})", file=sys.stderr)
        own = ", for its own flags without --flags" if config.flags else ""
        return Measured(recipe.sample_bytes, None, f"as the recipe states it{own}")


def _measure(config: Config, recipe: MakeRecipe) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        command = ["python", *script("run"), config.sample, "--output", folder]
        run(Step("sample", "precompute", [*command, *recipe.run_flags(config.flags)]))
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


def plan(recipe: MakeRecipe, measured: Measured, raw: bool) -> str:
    """A table of what the recipe takes. Rejected rows are counted as written: an upper bound."""
    lines = [f"{'dataset':<14}{'rows':>14}{'raw':>12}{'latents':>12}{'device hours':>15}"]
    total = [0.0, 0.0, 0.0, 0.0]
    for dataset in recipe.datasets:
        cells = [
            dataset.rows,
            dataset.gigabytes / 1000 if raw else 0,
            dataset.rows * measured.bytes / TERABYTE,
            dataset.rows / measured.images_per_second / 3600 if measured.images_per_second else 0,
        ]
        total = [a + b for a, b in zip(total, cells, strict=True)]
        lines.append(_line(dataset.name, cells))
    lines.append(_line("all", total))
    size, speed = f"{measured.bytes / 1024:,.1f} KiB a sample", measured.images_per_second
    lines.append(
        f"{measured.how}: {size}, {speed:,.1f} images/s on one process"
        if speed
        else f"{measured.how}: {size}; device hours are known once a sample can be encoded"
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


def main(config: Config | None = None) -> None:
    config = config or parse("make", Config, __doc__)
    with one_line_errors():
        recipe = read_recipe(config.recipe, config.small, config.only)
        if config.plan:
            print(f"\n{plan(recipe, measure(config, recipe), raw=not config.stream)}\n{free_space(config)}")
            return
        if missing := list(lacks(config, recipe)):
            raise UsageError("\nerror: ".join(missing))
        for step in steps(config, recipe):
            run(step)
        print(f"\n{recipe.name}: all of {', '.join(d.name for d in recipe.datasets)} in {config.latents}")


if __name__ == "__main__":
    main()
