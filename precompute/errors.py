"""The errors that stop a command. Each message starts with the flag or file at fault and ends with the cure.

PrecomputeError
├── UsageError        a flag that cannot be: exit code 2
│   └── NotListed     a place of shards that rights, a disk or a network keep from being read: exit code 3
├── ModelError        a model that is missing, unreadable or unfit
├── SourceError       reading the dataset fails: the network, a disk, a missing table; not a bad row
├── OutputError       writing fails: a full disk, above all
├── RecipeMismatch    the output folder holds shards of another recipe or plan
└── LostLease         another process took over this unit; never reaches the user
"""

import contextlib
import functools
import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from loader.format import FormatError
from loader.printable import printable_lines


class PrecomputeError(Exception):
    """Base of all: `exit_code` is what the command returns."""

    exit_code = 1


class UsageError(PrecomputeError):
    """A flag's value is impossible."""

    exit_code = 2


class NotListed(UsageError):
    """Shards lie where nothing can be read now: of rights, a disk or a network, and no fault of what was typed."""

    exit_code = 3


class ModelError(PrecomputeError):
    """A model folder or Hub id that cannot be loaded, or is of no known family."""


class SourceError(PrecomputeError):
    """The dataset cannot be read any further, for a reason that is no fault of one row."""


class OutputError(PrecomputeError):
    """The output folder cannot be written to."""


class RecipeMismatch(PrecomputeError):
    """Resuming here would mix values of different recipes."""


class LostLease(PrecomputeError):
    """The unit belongs to another process now; what this one made of it is dropped."""


@contextlib.contextmanager
def output_errors(output: Path | str, scratch: Path | None = None) -> Iterator[None]:
    """Turn what the system says of the output folder into an OutputError. Reading and stores have errors of their own.

    scratch: the folder here where output is in a store; default: the system's.
    """
    try:
        yield
    except PrecomputeError:
        raise
    except OSError as error:
        place, cure = f"--output {output}", "mend that"
        if isinstance(output, str) and error.errno is not None:
            place, cure = f"--scratch {scratch or tempfile.gettempdir()}", "mend that, or name a larger disk,"
        raise OutputError(f"{place}: {error}. Nothing finished is lost: {cure} and run again") from error


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn our errors into one line on stderr and an exit code, and Ctrl-C into one too; everything else keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted. What is finished stays: run the same command again", file=sys.stderr, flush=True)
        sys.exit(130)
    except (PrecomputeError, FormatError) as error:
        print(printable_lines(f"error: {error}"), file=sys.stderr, flush=True)
        sys.exit(getattr(error, "exit_code", 1))


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable_lines(record.getMessage()), ()
    return True


@functools.cache
def _tell_of_the_hub(error: str) -> None:
    logging.getLogger("precompute").warning("the Hub does not answer (%s): trying again", error)


def _retries_are_one_line(record: logging.LogRecord) -> bool:
    """The Hub's client says twice a try what went wrong and how long it waits."""
    said = record.getMessage()
    if tried := re.fullmatch(r"(.*?) thrown while requesting .*", said, re.DOTALL):
        _tell_of_the_hub(tried[1].strip("'"))
    return tried is None and not said.startswith("Retrying in")


logging.getLogger("precompute").addFilter(_make_printable)
logging.getLogger("huggingface_hub.utils._http").addFilter(_retries_are_one_line)
