"""Caption cleaning as pure functions of one string.

    clean_caption("A <b>caf&eacute;</b> &amp; bar  http://x.com", "light")  ->  "A café & bar"

Three profiles. `none` only strips. `light` repairs mojibake, unescapes HTML, drops tags and URLs and normalises whitespace; case,
punctuation and every script stay, and cleaning twice changes nothing. `deepfloyd` gives, byte for byte, what the caption cleaning of
`diffusers`' IFPipeline gives when it is applied twice, as the DeepFloyd IF recipe does: lower case, no CJK, no product codes.
"""

import html
import io
import re
import unicodedata
from collections.abc import Callable
from urllib.parse import unquote_plus

import ftfy

from builders.core.errors import ConfigError

__all__ = ["PROFILES", "clean_caption", "says_something"]


def clean_caption(text: str, profile: str = "light") -> str:
    """The cleaned caption, possibly empty. Raises ConfigError for a profile that is not in PROFILES."""
    try:
        clean = PROFILES[profile]
    except KeyError:
        raise ConfigError(f"caption_cleaning={profile!r}: choose one of {', '.join(PROFILES)}") from None
    return clean(text)


def says_something(text: str) -> bool:
    """True where a letter or digit of any script, or an emoji, is in the text: punctuation and signs (©, €, +, →) alone are no caption.

    An emoji is a symbol of category So from U+2600 on, which is where Unicode has the pictographs.
    """
    return _WORD.search(text) is not None or any(
        character >= "\u2600" and character not in "\ufffc\ufffd" and unicodedata.category(character) == "So"
        for character in text
    )


_WORD = re.compile(r"[^\W_]")

# --- light ------------------------------------------------------------------------------------------------------------------------

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_URL = re.compile(  # ASCII only: 看http://x.com/图 keeps both ideographs
    r"(?<![a-zA-Z0-9])(?:https?://|www\.)[!-~]+", re.IGNORECASE
)
_PERSON = re.compile(r"<person>", re.IGNORECASE)  # CC12M's stand-in for a name
_INLINE = (
    "a|abbr|b|big|cite|code|del|em|font|i|ins|kbd|mark|q|s|samp|small|span|strike|strong|sub|sup|tt|u|var|wbr"
)
_BLOCK = (
    "blockquote|body|br|center|dd|div|dl|dt|figcaption|figure|footer|form|h[1-6]|head|header|hr|html|iframe|img|input|li|link|"
    "meta|nav|noscript|ol|option|p|pre|script|section|select|style|table|tbody|td|tfoot|th|thead|title|tr|ul|video"
)
_ATTRIBUTES = r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+))*\s*/?"""
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE}){_ATTRIBUTES}>", re.IGNORECASE)
_BLOCK_TAG = re.compile(rf"<!--.*?-->|</?(?:{_BLOCK}){_ATTRIBUTES}>", re.IGNORECASE | re.DOTALL)
_MAX_PASSES = 8  # nested entities such as &amp;amp;lt; take one pass a level

_FTFY = ftfy.TextFixerConfig(
    unescape_html=False,  # done here, and only where a semicolon ends the entity
    uncurl_quotes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    explain=False,
)


def _is_plain(text: str) -> bool:
    """True where no step can change anything but spaces: most captions, and a twentieth of the time."""
    return (
        text.isascii()
        and text.isprintable()  # no control characters
        and "&" not in text
        and "<" not in text
        and "://" not in text
        and "www." not in text.lower()
    )


def _light(text: str) -> str:
    text = text.strip()
    if _is_plain(text):
        return " ".join(text.split())
    for _ in range(_MAX_PASSES):
        before = text
        text = _light_once(text)
        if text == before:
            break
    return text


def _light_once(text: str) -> str:
    text = _URL.sub(" ", text)
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    text = ftfy.fix_text(text, _FTFY)
    if "<" in text:
        text = _BLOCK_TAG.sub(" ", _INLINE_TAG.sub("", _PERSON.sub("person", text)))
    return " ".join(text.split())


# --- deepfloyd --------------------------------------------------------------------------------------------------------------------
# Each step is (needs, pattern, replacement): the pattern runs only where one of the characters or words in `needs` occurs, which is
# what makes this several times as fast as running all of them on every caption. The order is part of the definition.

_TLD = r"(?:com|co|ru|net|org|edu|gov|it)"
_HOST = rf"[a-zA-Z0-9.\-]+[.]{_TLD}[\w/-]*\b\/?(?!@)"
_DASHES = "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
_BAD_PUNCTUATION = "[#®•©™&@·º½¾¿¡§~)(\\]\\[}{|\\\\/*]{1,}"
_FILE_TYPES = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DIGITS = ("digit",)  # the step needs a decimal digit of any script
_TLDS = (".co", ".ru", ".net", ".org", ".edu", ".gov", ".it")
_TYPES = ("png", "jpg", "jpeg", "bmp", "webp", "eps", "pdf", "apk", "mp4")

_Step = tuple[tuple[str, ...], re.Pattern[str], str]


def _steps(*rows: tuple[tuple[str, ...], str, str]) -> list[_Step]:
    return [(needs, re.compile(pattern), replacement) for needs, pattern, replacement in rows]


_URLS = _steps(
    (("<person>",), "<person>", "person"),
    (("http", *_TLDS), rf"\b((?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_HOST}))", ""),
    (("www:", *_TLDS), rf"\b((?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_HOST}))", ""),
)
_SCRIPTS = _steps(  # only where a character is not ASCII
    (
        ("",),
        "[\u31c0-\u9fff]+",
        "",
    ),  # CJK strokes, phonetic extensions, enclosed, compatibility, ideographs, Yijing
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
    (tuple(f".{kind}" for kind in _TYPES), rf"[\S]+\.{_FILE_TYPES}", ""),
    (('"', "'"), r"[\"\']{2,}", '"'),
    (("..",), r"[\.]{2,}", " "),
    (("",), _BAD_PUNCTUATION, " "),
    ((".",), r"\s+\.\s+", " "),
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
    (_DIGITS, r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (_DIGITS, r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # Latin x, Cyrillic х, ×
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


def _deepfloyd(text: str) -> str:
    return _deepfloyd_once(_deepfloyd_once(text))


def _deepfloyd_once(text: str) -> str:
    if "%" in text or "+" in text:
        text = unquote_plus(text)
    text = _run(_URLS, text.strip().lower())
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
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _run(_CODES, text).strip()


def _run(steps: list[_Step], text: str) -> str:
    has_digits = _DIGIT.search(text) is not None
    for needs, pattern, replacement in steps:
        if has_digits if needs is _DIGITS else any(word in text for word in needs):
            text = pattern.sub(replacement, text)
    return text


def _strip_markup(text: str) -> str:
    """The text of a piece of HTML as BeautifulSoup reads it; markup that it refuses stays as it is."""
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    try:
        return str(
            BeautifulSoup(io.StringIO(text), features="html.parser").text
        )  # a str could draw "looks like a file name"
    except ParserRejectedMarkup:
        return text


PROFILES: dict[str, Callable[[str], str]] = {"none": str.strip, "light": _light, "deepfloyd": _deepfloyd}
