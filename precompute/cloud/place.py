"""`--output`: a folder, or a place in an object store; what neither is, is refused before any work."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from loader.store_options import SCHEMES, storage_options
from precompute.errors import UsageError
from precompute.flags.place import SCHEME
from precompute.shards.destination import Destination
from precompute.shards.output_folder import OutputFolder, open_folder
from precompute.shards.store import Store

STORES = tuple(SCHEMES)


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
        place = f"{flag} {output}".strip()
        raise UsageError(f"{place}: give bucket and prefix, as in {scheme}://BUCKET/PREFIX")


def is_url(output: Path | str) -> bool:
    return isinstance(output, str) and SCHEME.fullmatch(output) is not None


def is_store(output: Path | str) -> bool:
    return _store_of(output) in STORES


def _store_of(output: Path | str) -> str | None:
    """`s3` and its like; None of a folder."""
    match = SCHEME.fullmatch(output) if isinstance(output, str) else None
    return match["scheme"] if match else None


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
    return _open_store("--output", str(output), split, scratch, options, tries=True)


def open_finished(
    output: Path | str, scratch: Path | None = None, options: Sequence[str] = ()
) -> Destination:
    """Open where a run's shards lie already. Raises UsageError."""
    check_place("", output)
    check_options(options, output)
    check_scratch(scratch, output)
    if not is_url(output):
        if not Path(output).is_dir():
            raise UsageError(f"{output}: no such folder. Name the --output folder of a run")
        return OutputFolder(Path(output))
    return _open_store("", str(output), "train", scratch, options)


def _open_store(
    flag: str, url: str, split: str, scratch: Path | None, options: Sequence[str], tries: bool = False
) -> Destination:
    folder = scratch or Path(tempfile.gettempdir())
    open_folder("--scratch", folder)
    try:
        from precompute.cloud.client import Client, try_out
        from precompute.cloud.output_store import OutputStore
    except ImportError as error:
        raise _missing(f"{flag} {url}".strip(), error) from error
    client = Client.open(flag, url, options)
    if tries:
        try_out(client)
    return OutputStore(client, split, folder)


def open_shards(url: str, options: Sequence[str] = (), patience: float | None = None) -> Store:
    """Open shards to read, in a folder, on the Hub or in a store, which `options` are for. Raises UsageError.

    patience: seconds of pauses after which a store is given up; default: a minute, for whoever only reads can come back.
    """
    if not is_store(url):
        return Store(url)
    check_place("", url)
    try:
        from precompute.cloud.store_reader import StoreReader
    except ImportError as error:
        raise _missing(url, error) from error
    return Store(url, StoreReader(url, options, patience))


def options_for(url: str, output: Path | str, options: Sequence[str]) -> Sequence[str]:
    """`--store-option` as far as it is for `url`: it is for `output`, and for all that lies in a store of its kind."""
    return options if not is_store(output) or _store_of(url) == _store_of(output) else ()


def removal(url: str, options: Sequence[str]) -> str:
    """The command that removes a file NAME of a place in a store, by the cloud's own tool. options: `--store-option`."""
    scheme, _, rest = url.rstrip("/").partition("://")
    bucket, _, prefix = rest.partition("/")
    given = dict(option.partition("=")[::2] for option in options)
    commands = {
        "s3": f"aws s3 rm {quote(f's3://{rest}/NAME')}",
        "gs": f"gcloud storage rm {quote(f'gs://{rest}/NAME')}",
        "az": f"az storage blob delete --container-name {bucket} --name {quote(f'{prefix}/NAME'.lstrip('/'))}",
    }
    flags = {"endpoint": "--endpoint-url", "profile": "--profile"} if scheme == "s3" else {}
    flags = {"account_name": "--account-name"} if scheme == "az" else flags
    more = [f"{flag} {quote(given[name])}" for name, flag in flags.items() if name in given]
    return " ".join([commands[scheme], *more])


def store_options(paths: Sequence[str], options: Sequence[str]) -> dict[str, Any]:
    """`--store-option` as fsspec takes them, by which the loader reads; none where no path is in a store. Raises UsageError."""
    stores = [path for path in paths if is_store(path)]
    try:
        return storage_options(stores[0], options) if stores else {}
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_scratch(scratch: Path | None, output: Path | str) -> None:
    """Raises UsageError where --scratch is given, and nothing goes through it."""
    if scratch is not None and not is_url(output):
        raise UsageError(f"--scratch {scratch}: only with a store, as in s3://BUCKET/PREFIX")


def check_options(options: Sequence[str], *places: Path | str | None) -> None:
    """Raises UsageError where options are given, and none of the places is in a store."""
    if options and not any(is_store(place) for place in places if place is not None):
        raise UsageError("--store-option: only with a store, as in s3://BUCKET/PREFIX")


def _missing(place: str, error: ImportError) -> UsageError:
    needs = error.name or "obstore"
    return UsageError(f"{place}: needs {needs}; run `pip install 'latentmill[cloud]'`")
