"""The flags of a verb as `--help` shows them: in groups, with what each takes and what it does.

A verb's dataclass may have bases: each is a group, called by its class, and the verb has one flat Config all the same.
"""

import dataclasses
import difflib
import inspect
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

T = TypeVar("T")

WIDEST = 100  # columns of a paragraph


def takes(value: str) -> Any:
    """What stands behind a flag in --help, instead of its type."""
    return tyro.conf.arg(metavar=value)


def read_flags(config: type[T], program: str, description: str, words: Sequence[str] | None = None) -> T:
    """The config that a command line describes. words: default, those of this process.

    Prints --help and what is wrong with a flag, and then raises SystemExit.
    """
    for slip in slips(config, sys.argv[1:] if words is None else words):
        print(f"error: {slip}", file=sys.stderr)
        sys.exit(2)
    bases = {name: _documented(base) for name, base in groups(config).items()}
    nested = [(name, Annotated[base, tyro.conf.OmitArgPrefixes]) for name, base in bases.items()]
    flags: Any = dataclasses.make_dataclass("Flags", nested) if len(bases) > 1 else bases[""]
    given = tyro.cli(
        flags,
        prog=program,
        description=_wrapped(description),
        args=words,
        config=(tyro.conf.DisallowNone,),
    )
    parts = vars(given).values() if len(bases) > 1 else [given]
    return config(**{name: value for part in parts for name, value in vars(part).items()})


def groups(config: type) -> dict[str, type]:
    """The bases that declare flags, by name, in the order of the flags; of a class without such bases, itself."""
    found = [one for one in reversed(config.__mro__) if dataclasses.is_dataclass(one) and one is not config]
    return {one.__name__.removesuffix("Flags").lower(): one for one in found} or {"": config}


def slips(config: type, words: Sequence[str]) -> Iterator[str]:
    """What is wrong with single words, a line each: a flag that there is not, a list given twice, a value that is none of its choices."""
    hints = {
        name: hint
        for group in groups(config).values()
        for name, hint in get_type_hints(group, include_extras=True).items()
    }
    flags = {"help": None} | {_called(name, hint): hint for name, hint in hints.items()}
    seen = set[str]()
    for place, word in enumerate(words):
        flag, given, value = word.partition("=")
        if not flag.startswith("--") or " " in flag:
            continue
        name = flag.removeprefix("--").replace("_", "-")
        hint = flags.get(name, flags.get(name.removeprefix("no-"), ""))
        if hint == "":
            yield f"{flag}: there is no such flag; {_meant(name, flags, '--') or '--help lists them'}"
            continue
        if name in seen and "tuple[" in str(hint) and tyro.conf.UseAppendAction not in get_args(hint):
            yield f"{flag}: give it once, with all values behind it, as in {flag} A B"
        seen.add(name)
        value = value if given else words[place + 1] if place + 1 < len(words) else ""
        choices = _choices(hint)
        if choices and value and value not in choices and not value.startswith("-"):
            meant = _meant(value, choices) or f"there are {', '.join(choices)}"
            yield f"{flag} {value}: there is none of that name; {meant}"


def _called(name: str, hint: Any) -> str:
    """A field's name on the command line."""
    named = [getattr(one, "name", None) for one in getattr(hint, "__metadata__", ())]
    return str([*filter(None, named), name][0]).replace("_", "-")


def _choices(hint: Any) -> tuple[str, ...]:
    """The values of a flag that takes one of some words."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(one for part in get_args(hint) for one in _choices(part))


def _meant(word: str, known: Collection[str], front: str = "") -> str:
    """`did you mean A or B?`, or nothing where none is near."""
    near = [one for one in known if one.startswith(word)] or difflib.get_close_matches(word, known, 3)
    return f"did you mean {' or '.join(front + one for one in near)}?" if near else ""


def _documented(group: type) -> Any:
    """A group whose flags carry their own texts: left to itself, tyro keeps the line breaks of docstrings."""
    texts = {one.arg_name: one.description or "" for one in docstring_parser.parse_from_object(group).params}
    hints = get_type_hints(group, include_extras=True)
    return dataclasses.make_dataclass(
        group.__name__,
        [
            (
                one.name,
                Annotated[
                    hints[one.name],
                    tyro.conf.arg(help=" ".join(texts[one.name].split()), help_behavior_hint=_default),
                ],
                one,
            )
            for one in dataclasses.fields(group)
        ],
        namespace={"__doc__": group.__doc__},
        frozen=True,
    )


def _default(value: str) -> str:
    """What is not set, its text explains."""
    return "" if value in ("", "''", "None", "False") else f"(default: {value})"


def _wrapped(text: str) -> str:
    """Paragraphs that fit the terminal. Lines that begin with a space stay lines."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        one if one.startswith(" ") else textwrap.fill(one, width, subsequent_indent=" ") for one in paragraphs
    )
