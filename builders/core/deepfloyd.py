"""The caption cleaning of DeepFloyd IF, as `diffusers`' IFPipeline does it twice: lower case, no CJK, no product codes.

The values are theirs, byte for byte; the time is not: every step takes time in proportion to the length of the caption, where four of
their patterns take the square of it (a caption of 100,000 characters of `<a ` took minutes). Two absurd kinds of text come out
otherwise: where the number of `<` times the length is over 2**18, tags are cut out by a pattern instead of by BeautifulSoup, and of
combining marks 30 in a row are kept.
"""

import html
import io
import re
from collections.abc import Callable
from urllib.parse import unquote_plus

import ftfy

from builders.core.marks import without_piles

__all__ = ["clean"]

# Each step is (needs, pattern, replacement): the pattern runs only where one of the characters or words in `needs` occurs, which is
# what makes this several times as fast as running all of them on every caption. The order is part of the definition.

_TLD = r"(?:com|co|ru|net|org|edu|gov|it)"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_BAD_PUNCTUATION = "[#®•©™&@·º½¾¿¡§~)(\\]\\[}{|\\\\/*]{1,}"
_FILE_TYPES = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DIGITS = ("digit",)  # the step needs a decimal digit of any script
_TLDS = (".co", ".ru", ".net", ".org", ".edu", ".gov", ".it")
_TYPES = ("png", "jpg", "jpeg", "bmp", "webp", "eps", "pdf", "apk", "mp4")

_Replacement = str | Callable[[re.Match[str]], str]
_Step = tuple[tuple[str, ...], re.Pattern[str], _Replacement]
_FILE_NAME = re.compile(rf"\S+\.{_FILE_TYPES}")


def _without_file_name(word: re.Match[str]) -> str:
    found = _FILE_NAME.match(word[0])
    return word[0][found.end() :] if found else word[0]


def _steps(*rows: tuple[tuple[str, ...], str, _Replacement]) -> list[_Step]:
    return [(needs, re.compile(pattern), replacement) for needs, pattern, replacement in rows]


# Only where a character is not ASCII.
_SCRIPTS = _steps(
    # CJK strokes, phonetic extensions, enclosed, compatibility, ideographs, Yijing.
    (("",), "[\u31c0-\u9fff]+", ""),
    (("",), f"[{_DASHES}]+", "-"),
    (("",), "[´«»“”¨]", '"'),
    (("",), "[‘’]", "'"),
)
_NOISE = _steps(
    (("--",), "--+", "-"),
    (("`",), "`", '"'),
    (("&quot",), "&quot;?", ""),
    (("&amp",), "&amp", ""),
    (_DIGITS, r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP address
    (_DIGITS, r"\d:\d\d\s+$", ""),
    (("\\n",), r"\\n", " "),
    (("#",), r"#\d{1,3}\b", ""),
    (("#",), r"#\d{5,}\b", ""),
    (_DIGITS, r"\b\d{6,}\b", ""),
    (tuple(f".{kind}" for kind in _TYPES), r"\S+", _without_file_name),
    (('"', "'"), r"[\"\']{2,}", '"'),
    (("..",), r"[\.]{2,}", " "),
    (("",), _BAD_PUNCTUATION, " "),
    ((".",), r"(?<!\s)\s++\.\s+", " "),
)
_CODES = _steps(
    (_DIGITS, r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (_DIGITS, r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (_DIGITS, r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (("shipping",), r"(worldwide\s+)?(free\s+)?shipping", ""),
    (("download",), r"(free\s)?download(\sfree)?", ""),
    (("click",), r"\bclick\b\s(?:for|on)\s\w+", ""),
    (_TYPES, rf"\b{_FILE_TYPES}(\simage[s]?)?", ""),
    (("page",), r"\bpage\s+\d+\b", ""),
    (_DIGITS, r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d[a-zA-Z\d]*+\b", " "),
    (_DIGITS, r"\b\d++(?:\.\d*+)?[xх×]\d+(?:\.\d*)?\b", ""),  # Latin x, Cyrillic х, ×
    ((":",), r"\b\s+\:\s+", ": "),
    ((",", ".", "/"), r"(\D[,\./])\b", r"\1 "),
    (("",), r"\s+", " "),
    (('"', "'"), r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (("'", "_", ",", "-", ":", ";"), r"^[\'\_,\-\:;]", ""),
    (("",), r"[\'\_,\-\:\-\+]$", ""),
    ((".",), r"^\.\S+$", ""),
)
_DIGIT = re.compile(r"\d")
_MENTION = re.compile(r"@[\w\d]+\b")
_FTFY_SEES = re.compile(r"[&\x00-\x08\x0b-\x1f\x7f]")  # what ftfy may change in an ASCII text


def clean(text: str) -> str:
    """The cleaned caption, possibly empty."""
    return _clean_once(_clean_once(text))


def _clean_once(text: str) -> str:
    if "%" in text or "+" in text:
        text = unquote_plus(text)
    text = text.strip().lower().replace("<person>", "person")
    for word, scheme in _SCHEMES:
        if word in text or any(end in text for end in _TLDS):
            text = _without_links(scheme, text)
    if "<" in text or "&" in text:
        text = _strip_markup(text)
    if "@" in text:
        text = _MENTION.sub("", text)
    if not text.isascii():
        text = _run(_SCRIPTS, text)
    text = _run(_NOISE, text)
    if text.count("-") + text.count("_") > 3:  # this-is-my-cute-cat
        text = text.replace("-", " ").replace("_", " ")
    if not text.isascii() or _FTFY_SEES.search(text):
        text = html.unescape(html.unescape(ftfy.fix_text(without_piles(text))))
    return _run(_CODES, text).strip()


def _run(steps: list[_Step], text: str) -> str:
    has_digits = _DIGIT.search(text) is not None
    for needs, pattern, replacement in steps:
        if has_digits if needs is _DIGITS else any(word in text for word in needs):
            text = pattern.sub(replacement, text)
    return text


# --- links: what `\b(?:SCHEME|[a-zA-Z0-9.\-]+[.]TLD[\w/-]*\b\/?(?!@))` matches, found in one pass --------------------------------------

_SCHEMES = [
    ("http", re.compile(r"\bhttps?:(?:/{1,3}|[a-zA-Z0-9%])")),
    ("www:", re.compile(r"\bwww:(?:/{1,3}|[a-zA-Z0-9%])")),
]
_RUN, _EDGE = re.compile(r"[a-zA-Z0-9.\-]+"), re.compile(r"\b")
_END_OF_HOST = re.compile(rf"[.]{_TLD}")
_BEHIND_HOST = re.compile(rf"[.]{_TLD}[\w/-]*\b\/?(?!@)")


def _without_links(scheme: re.Pattern[str], text: str) -> str:
    kept, at = [], 0
    link, host = scheme.search(text), _next_host(text, 0)
    while link or host:
        if link and (host is None or link.start() <= host[0]):
            start, end = link.span()
        else:
            start, end = host  # type: ignore[misc]
        kept.append(text[at:start])
        at = end
        if link and link.start() < at:
            link = scheme.search(text, at)
        if host and host[0] < at:
            host = _next_host(text, at)
    return "".join(kept) + text[at:]


def _next_host(text: str, at: int) -> tuple[int, int] | None:
    """Find where the first host begins and ends: at the first edge of a word in a run of its characters, at the last end that fits."""
    while run := _RUN.search(text, at):
        at = run.end()
        edge = _EDGE.search(text, run.start(), at)
        if edge is None or edge.start() + 1 >= at:
            continue
        for dot in reversed(list(_END_OF_HOST.finditer(text, edge.start() + 1, at))):
            if found := _BEHIND_HOST.match(text, dot.start()):
                return edge.start(), found.end()
    return None


# --- markup -----------------------------------------------------------------------------------------------------------------------

_MOST_MARKUP = 2**18  # `<` times characters: html.parser reads on to the end for each that is not closed
_TAG = re.compile(r"<[a-z/!?][^<>]*>")


def _strip_markup(text: str) -> str:
    """The text of a piece of HTML as BeautifulSoup reads it; markup that it refuses stays as it is."""
    if text.count("<") * len(text) > _MOST_MARKUP:
        return html.unescape(_TAG.sub("", text))
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    try:
        # A str could draw the warning that it looks like a file name.
        return str(BeautifulSoup(io.StringIO(text), features="html.parser").text)
    except ParserRejectedMarkup:
        return text
