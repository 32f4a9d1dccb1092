"""Midjourney's flags at the end of a prompt: settings of the program, not words about the picture.

without_flags("a cat, Spider -man --no people, dogs --ar 2:3 --v 4")  ->  "a cat, Spider -man"

Only flags that Midjourney has, with two dashes (or the one long dash that phones make of them), and only at the end, where it takes them.
"""

import re

__all__ = ["without_flags"]

_NUMBER = (
    "ar|aspect|c|chaos|cw|exp|h|height|iw|mp|niji|ow|q|quality|r|repeat|s|sameseed|seed|stop|stylize|sv|sw|v|version|"
    "w|weird|width"
)
_BARE = (
    "beta|creative|draft|fast|hd|light|niji|p|public|raw|relax|stealth|test|testp|tile|turbo|upanime|upbeta|uplight|"
    "vibe|video"
)
_WORD = "cref|oref|p|personalize|profile|sref|style"
_FLAG = re.compile(
    rf"(?:--|—)(?:(?:{_NUMBER})\s*[\d.:/]+|(?:{_BARE})|(?:{_WORD})\s+\S+(?:\s+https?://\S+)*)[\s,.;]*|--no\s.*",
    re.IGNORECASE | re.DOTALL,
)
_BEFORE_FLAG = re.compile(r"(?<!\s)\s+(?=(?:--|—)[a-z])", re.IGNORECASE)


def without_flags(prompt: str) -> str:
    """The prompt up to the flags that end it."""
    prompt = prompt.strip()
    if "--" not in prompt and "—" not in prompt:
        return prompt
    end = len(prompt)
    for before, start in reversed([(0, 0), *(spaces.span() for spaces in _BEFORE_FLAG.finditer(prompt))]):
        if not _FLAG.fullmatch(prompt, start, end):
            break
        end = before
    return prompt[:end]
