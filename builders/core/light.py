"""The light caption cleaning: mojibake, HTML, tags and URLs go; case, punctuation and every script stay.

Cleaning twice changes nothing. Each pattern takes time in proportion to the length of the caption.
"""

import html
import re

import ftfy

from builders.core.marks import without_piles

__all__ = ["clean"]

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
# ASCII only: 看http://x.com/图 keeps both ideographs. A comma or a bracket ends the host, not the path; quotes end both.
_URL = re.compile(
    r"(?<![a-zA-Z0-9])(?:https?://|www\.)[a-zA-Z0-9._~%:@\[\]-]*(?:[/?#][!#-&(-;=?-~]*)?", re.IGNORECASE
)
_BEHIND_URL = ".,;:!?)]}'\""  # is of the sentence, not of the URL
_PERSON = re.compile(r"<person>", re.IGNORECASE)  # CC12M's stand-in for a name
_INLINE = (
    "a|abbr|b|big|cite|code|del|em|font|i|ins|kbd|mark|q|s|samp|small|span|strike|strong|sub|sup|tt|u|var|wbr"
)
_BLOCK = (
    "blockquote|body|br|center|dd|div|dl|dt|figcaption|figure|footer|form|h[1-6]|head|header|hr|html|iframe|img|input|li|link|"
    "meta|nav|noscript|ol|option|p|pre|script|section|select|style|table|tbody|td|tfoot|th|thead|title|tr|ul|video"
)
# Words behind the name are attributes only where one has a value: "a <b and c> d" is no tag.
_ATTRIBUTES = (
    r"""(?:(?=[^<>]*=)(?:\s++[\w:-]++(?:\s*+=\s*+(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]++))?+)++)?+\s*+/?"""
)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE}){_ATTRIBUTES}>", re.IGNORECASE)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK}){_ATTRIBUTES}>", re.IGNORECASE)
_MAX_PASSES = 8  # nested entities such as &amp;amp;lt; take one pass a level

_FTFY = ftfy.TextFixerConfig(
    unescape_html=False,  # done here, and only where a semicolon ends the entity
    uncurl_quotes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    explain=False,
)


def clean(text: str) -> str:
    """The cleaned caption, possibly empty."""
    text = text.strip()
    if is_plain(text):
        return " ".join(text.split()) if "  " in text else text
    for _ in range(_MAX_PASSES):
        before = text
        text = clean_once(text)
        if text == before:
            break
    return text


def is_plain(text: str) -> bool:
    """True where no step can change anything but spaces: most captions, and a twentieth of the time."""
    return (
        text.isascii()
        and text.isprintable()  # no control characters
        and "&" not in text
        and "<" not in text
        and "://" not in text
        and "www." not in text.lower()
    )


def clean_once(text: str) -> str:
    """Entities first, then tags, then URLs: the address in a link's tag goes with the tag, and the words between the tags stay."""
    for _ in range(_MAX_PASSES):
        if "&" not in text or (unescaped := _ENTITY.sub(_unescape, text)) == text:
            break
        text = unescaped
    text = ftfy.fix_text(without_piles(text), _FTFY)
    if "<" in text:
        text = _INLINE_TAG.sub("", _PERSON.sub("person", text))
        text = _BLOCK_TAG.sub(" ", _without_comments(text))
    return " ".join(_URL.sub(_behind, text).split())


def _unescape(entity: re.Match[str]) -> str:
    return html.unescape(entity[0])


def _behind(url: re.Match[str]) -> str:
    """What stays of a URL: the signs at its end that belong to the sentence."""
    return " " + url[0][len(url[0].rstrip(_BEHIND_URL)) :]


def _without_comments(text: str) -> str:
    kept, at = [], 0
    while (start := text.find("<!--", at)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        kept += [text[at:start], " "]
        at = end + 3
    return "".join(kept) + text[at:]
