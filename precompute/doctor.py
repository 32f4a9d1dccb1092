"""What is installed here, in lines that one can paste into an issue: versions, extras, token, GPU, cache, disk.

    python precompute/doctor.py

No secret and no name of a user is among them.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants, get_token

from loader.cache import cache_folder
from loader.printable import printable
from precompute.commands import parse
from precompute.errors import one_line_errors
from precompute.flags.doctor import Config as Config

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "webdataset",
    "pillow",
)
# Extra -> a module that comes with it.
EXTRAS = {"demo": "skimage", "openclip": "open_clip", "select": "duckdb", "cloud": "obstore", "ray": "ray"}


def report() -> list[str]:
    """The lines."""
    here, cores = Path(__file__).parents[1], os.cpu_count()
    installed = "a checkout" if (here / "pyproject.toml").is_file() else "a wheel"
    extras = ", ".join(f"{name} {'yes' if _is_there(module) else 'no'}" for name, module in EXTRAS.items())
    memory = psutil.virtual_memory()
    offline = " (offline: HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    return [
        f"latentmill  {_version('latentmill')}, from {installed}; Python {platform.python_version()}",
        f"system      {platform.system()} {platform.machine()}, {cores} cores, {memory.total / 1e9:,.0f} GB of memory",
        f"libraries   {', '.join(f'{name} {_version(name)}' for name in LIBRARIES)}",
        f"extras      {extras}",
        f"GPU         {_devices()}",
        f"Hub         {printable(constants.ENDPOINT)}{offline}; token {'yes' if get_token() else 'no'}",
        f"models      {_folder(Path(constants.HF_HUB_CACHE))}",
        f"cache       {_folder(cache_folder())}",
        f"disk        {_folder(Path.cwd(), 'here')}",
    ]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _devices() -> str:
    if not torch.cuda.is_available():
        return (
            "none that torch sees"
            if not torch.accelerator.is_available()
            else str(torch.accelerator.current_accelerator())
        )
    found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return "; ".join(f"{device.name}, {device.total_memory / 1e9:,.0f} GB" for device in found)


def _folder(path: Path, name: str = "") -> str:
    """A folder, its home cut, and what is free there."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    shown = name or str(path).replace(str(Path.home()), "~", 1)
    rights = "" if os.access(there, os.W_OK) else ", not writable"
    return f"{printable(shown)}, {shutil.disk_usage(there).free / 1e9:,.0f} GB free{rights}"


def main(config: Config | None = None) -> None:
    config or parse("doctor", Config, __doc__)
    with one_line_errors():
        print("\n".join(report()))


if __name__ == "__main__":
    main()
