"""The verbs, and how each is started from here: as `latentmill VERB`, by its file or as a module.

A message that names a command asks `command`, so that what a cure says exists where the user stands.
"""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from precompute.flags.reading import read_flags

T = TypeVar("T")

# Verb -> its module, and what it does.
VERBS = {
    "run": (
        "precompute.run",
        "images and captions into shards; with GPUs: accelerate launch -m precompute.run",
    ),
    "verify": ("precompute.verify", "prove that shards are whole"),
    "preview": ("precompute.preview", "a contact sheet and a report of shards"),
    "pack": ("precompute.pack", "shards and their layers as one dataset, selected and shuffled"),
    "push": ("precompute.push", "shards to the Hub"),
    "make": ("precompute.make", "all datasets of a recipe, from download to push"),
    "select": ("precompute.choose", "how many samples a condition takes"),
    "download": ("builders.download.__main__", "fetch a dataset's raw archives"),
    "bench": ("loader.bench", "how fast the loader reads your shards"),
    "doctor": ("precompute.doctor", "what is installed here, in lines for an issue"),
}
PROGRAM = "latentmill"
# Of --store-option, what is no place, and may be a secret.
SECRET = re.compile(
    r"^((?:--store[-_]option=)?\w*(?:secret|token|key|password|sas)\w*)=.*", re.IGNORECASE | re.DOTALL
)


def words(verb: str) -> list[str]:
    """The words that start a verb, in the way in which this process was started."""
    module = VERBS[verb][0].removesuffix(".__main__")
    first = sys.argv[0] if sys.argv else ""
    if first.split(" ")[0] == PROGRAM:
        return [PROGRAM, verb]
    package, _, name = module.partition(".")
    started = getattr(sys.modules["__main__"], "__spec__", None)  # None where a file was started
    if started is not None and str(started.name).partition(".")[0] == package:
        return ["python", "-m", module]
    if package == "precompute" and Path(first).parent.name == package:
        return ["python", os.path.join(os.path.dirname(first), f"{name}.py")]
    return [PROGRAM, verb] if shutil.which(PROGRAM) else ["python", "-m", module]


def script(verb: str) -> list[str]:
    """What a launcher such as `accelerate launch` or `python` is given to start a verb: its file, or -m and its module."""
    how = words(verb)
    return ["-m", VERBS[verb][0]] if how[0] == PROGRAM else how[1:]


def executable(typed: list[str]) -> list[str]:
    """The words that start with this interpreter what one would type here, whatever the PATH is."""
    if typed[0] == PROGRAM:
        return [sys.executable, "-P", "-m", "precompute", *typed[1:]]
    if typed[0] == "python":
        return [sys.executable, *typed[1:]]
    beside = Path(sys.executable).parent / typed[0]
    return [str(beside), *typed[1:]] if shutil.which(typed[0]) is None and beside.exists() else typed


def command(verb: str, *arguments: object) -> str:
    """A command line as one would type it here."""
    return shlex.join([*words(verb), *map(str, arguments)])


def launched() -> str:
    """The command line that starts a run on all GPUs, up to its arguments."""
    return shlex.join(["accelerate", "launch", *script("run")])


def flags_of(verb: str) -> type[Any]:
    """The Config of a verb, of whose own imports none is made."""
    name = VERBS[verb][0].rpartition(".")[2]
    flags: type[Any] = importlib.import_module(f"precompute.flags.{name}").Config
    return flags


def manual(verb: str) -> str:
    """What a verb's module says of itself."""
    spec = importlib.util.find_spec(VERBS[verb][0])
    assert spec is not None and spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""


def retyped(*more: str, **instead: str) -> str:
    """What was typed here, between backticks: with further words, and with other values of some flags.

    instead: values by flag, of which {} stands for the one that was typed. Where no verb was typed, words for it. No value of a
    store's option is told that could be a secret.
    """
    changes = {flag.replace("_", "-"): value for flag, value in instead.items()}
    first = sys.argv[0] if sys.argv else ""
    verb = next((verb for verb in VERBS if _is_typed(first, verb)), None)
    kept, typed = list[str](), dict[str, str]()
    words_left = iter(sys.argv[1:] if verb else ())
    for word in words_left:
        flag, given, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and flag.replace("_", "-") in changes:
            typed[flag.replace("_", "-")] = value if given else next(words_left, "")
        else:
            kept.append(word)
    for flag, value in changes.items():
        kept += [f"--{flag}", value.replace("{}", typed.get(flag, flag.upper()).rstrip("/"))]
    from loader.printable import printable  # which comes with torch: nothing that reads flags waits for it

    kept = [printable(SECRET.sub(r"\1=...", word)) for word in (*kept, *more)]
    if verb is None:
        return f"the same command with {shlex.join(kept)}"
    launcher = [launched()] if verb == "run" and "ACCELERATE_MIXED_PRECISION" in os.environ else []
    return f"`{' '.join([*(launcher or [command(verb)]), shlex.join(kept)])}`"


def _is_typed(first: str, verb: str) -> bool:
    package, _, name = VERBS[verb][0].partition(".")
    return first == f"{PROGRAM} {verb}" or Path(first).parts[-2:] == (package, f"{name}.py")


def parse(verb: str, config: type[T], description: str | None) -> T:
    """The flags of a verb; its description names commands as they are started here."""
    return read_flags(config, " ".join(words(verb)), as_started(description or ""))


def as_started(text: str) -> str:
    """The text with `python precompute/VERB.py` and `accelerate launch precompute/run.py` as they are typed here."""
    verbs = {module.partition(".")[2]: verb for verb, (module, _) in VERBS.items()}

    def typed(match: re.Match[str]) -> str:
        return launched() if match["launch"] else command(verbs[match["name"]])

    return re.sub(r"(?:(?P<launch>accelerate launch)|python) precompute/(?P<name>\w+)\.py", typed, text)


def flag_words(flags: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """`{"vae": "x", "text-encoder": ["a", "b"], "resolutions": [256, 512]}` as a command line has them."""
    for flag, value in flags.items():
        if isinstance(value, bool):
            yield (f"--{flag}" if value else f"--no-{flag}",)
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            yield from ((f"--{flag}", item) for item in value)
        else:
            yield (f"--{flag}", *map(str, value if isinstance(value, list) else [value]))


def merge_flags(flags: Iterable[tuple[str, ...]], given: list[str]) -> list[str]:
    """The words of some flags, each with its values, and of those given: what is given takes the place of its like."""
    named = {_plain(word) for word in given if word.startswith("--")}
    return [word for flag in flags if _plain(flag[0]) not in named for word in flag] + given


def _plain(flag: str) -> str:
    """`--no_flip=x` is about `flip`."""
    return flag.partition("=")[0].replace("_", "-").removeprefix("--").removeprefix("no-")


def help_text() -> str:
    """What `latentmill --help` prints."""
    lines = [f"  {verb:<10}{what}" for verb, (_, what) in VERBS.items()]
    return "\n".join([f"usage: {PROGRAM} VERB ...   ({PROGRAM} VERB --help is its manual)", "", *lines])
