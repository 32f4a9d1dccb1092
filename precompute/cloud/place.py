"""`--output`: a folder, or a place in an object store; what neither is, is refused before any work."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tyro

from precompute.errors import UsageError
from precompute.shards.destination import Destination
from precompute.shards.output_folder import OutputFolder, open_folder

STORES = ("s3", "gs", "az")
SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<rest>/.*|$)")


def place(text: str) -> Path | str:
    """The folder, or the URL as it stands: a Path would swallow one of its slashes."""
    return text if SCHEME.fullmatch(text) else Path(text)


PLACE = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="FOLDER|URL",
    instance_from_str=lambda given: place(given[0]),
    is_instance=lambda value: isinstance(value, (Path, str)),
    str_from_instance=lambda value: [str(value)],
)


def check_place(flag: str, output: Path | str) -> None:
    """Raises UsageError, which starts with `flag`, where it is a URL of no store that can be written to."""
    match = SCHEME.fullmatch(str(output))
    if match is None:
        return
    scheme, known = match["scheme"], ", ".join(f"{name}://BUCKET/PREFIX" for name in STORES)
    if scheme == "hf":
        raise UsageError(
            f"{flag} {output}: the Hub has no conditional writes, by which processes meet. Write to a folder or a store, "
            "and push with --push-to or the push command"
        )
    if scheme not in STORES:
        raise UsageError(f"{flag} {output}: no store of that name. Give a folder, or one of {known}")
    bucket, _, prefix = match["rest"].removeprefix("//").partition("/")
    if not match["rest"].startswith("//") or not bucket or not prefix.strip("/"):
        raise UsageError(f"{flag} {output}: give bucket and prefix, as in {scheme}://BUCKET/PREFIX")


def is_url(output: Path | str) -> bool:
    return isinstance(output, str) and SCHEME.fullmatch(output) is not None


def open_output(
    output: Path | str, split: str, scratch: Path | None = None, options: Sequence[str] = ()
) -> Destination:
    """Open where the shards of a run go, and try it out: it can be written to, and processes can meet there.

    scratch: folder on a disk here in which units grow that go to a store; default: the system's for temporary files.
    options: NAME=VALUE, of the store's client. Raises UsageError or StoreError, with the cure.
    """
    if not is_url(output):
        open_folder("--output", Path(output))
        return OutputFolder(Path(output), split)
    url = str(output)
    folder = scratch or Path(tempfile.gettempdir())
    open_folder("--scratch", folder)
    try:
        from precompute.cloud.client import Client, try_out
        from precompute.cloud.output_store import OutputStore
    except ImportError as error:
        raise UsageError(
            f"--output {output}: needs {error.name or 'obstore'}; run `pip install 'latentmill[cloud]'`"
        ) from error
    client = Client.open("--output", url, options)
    try_out(client)
    return OutputStore(client, split, folder)
