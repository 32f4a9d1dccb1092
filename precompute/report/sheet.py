"""preview.png: all cards on one page. Captions are any text at all: they are cleaned of control characters, and wrapped."""

import functools
import unicodedata
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps, features

from precompute.report.tiles import Card

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

TILE, GAP, PAD, MARGIN = 224, 8, 12, 40  # pixels
TEXT, SMALL, LEADING = 15, 12, 20
INK, GREY, PAPER, CARD = (28, 30, 34), (122, 126, 134), (238, 239, 242), (255, 255, 255)
LINES = 3  # of a caption
RIGHT_TO_LEFT = ("R", "AL")
FALLBACK_FONTS = (
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "Arial Unicode.ttf",
)
UNDRAWN = "(its letters are in no font here: see report.html)"


def draw_sheet(title: str, subtitle: str, cards: Sequence[Card]) -> Image.Image:
    """All cards on one page, in as many columns as 1,500 pixels hold; a row is as high as its longest caption."""
    tiles = max((len(card.pictures) for card in cards), default=1)
    inner = tiles * (TILE + GAP) - GAP
    step = inner + 2 * PAD + 2 * GAP
    columns = min(len(cards) or 1, max(1, 1500 // step))
    rows = [cards[i : i + columns] for i in range(0, len(cards), columns)]
    captions = {id(card): drawable(card.caption) for card in cards}
    texts = {id(card): wrap(captions[id(card)], TEXT, inner, LINES) for card in cards}
    heights = [TILE + 2 * PAD + 48 + LEADING * max(len(texts[id(card)]) for card in row) for row in rows]
    width = 2 * MARGIN + columns * step - 2 * GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + 84 + sum(heights) + 2 * GAP * (len(rows) - 1)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for text, size, colour, foot in ((title, 30, INK, MARGIN + 20), (subtitle, TEXT, GREY, MARGIN + 50)):
        text, font = drawable(text), font_of(text, size)
        draw.text((MARGIN, foot), _clip(text, font, width - 2 * MARGIN), colour, font, "ls")
    y = MARGIN + 84
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            x = MARGIN + column * step
            draw.rounded_rectangle((x, y, x + inner + 2 * PAD, y + height), 10, CARD)
            font = font_of(captions[id(card)], TEXT)
            _draw_card(sheet, draw, card, texts[id(card)], font, (x + PAD, y + PAD))
            small = font_of(card.key, SMALL)
            draw.text((x + PAD, y + height - PAD), _clip(card.key, small, inner), GREY, small, "ls")
        y += height + 2 * GAP
    return sheet


def _draw_card(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    card: Card,
    lines: list[str],
    font: Font,
    corner: tuple[int, int],
) -> None:
    x, y = corner
    for place, picture in enumerate(card.pictures):
        left = x + place * (TILE + GAP)
        tile = ImageOps.contain(Image.fromarray(picture.pixels), (TILE, TILE), Image.Resampling.LANCZOS)
        draw.rectangle((left, y, left + TILE - 1, y + TILE - 1), PAPER)
        sheet.paste(tile, (left + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
        label = picture.label + ("" if picture.decibels is None else f"   {picture.decibels:.1f} dB")
        draw.text((left, y + TILE + 16), label, GREY, font_of(label, SMALL), "ls")
    room = len(card.pictures or [0]) * (TILE + GAP) - GAP
    for place, line in enumerate(lines):
        start = x + room - font.getlength(line) if is_backwards(card.caption) else x
        draw.text((start, y + TILE + 40 + place * LEADING), line, INK, font, "ls")


def drawable(text: str) -> str:
    """The text, letters that no font has left out, or a word instead of it where they are many or would run from the wrong end."""
    backwards = any(unicodedata.bidirectional(c) in RIGHT_TO_LEFT for c in text) and not features.check(
        "raqm"
    )
    font = font_of(text, TEXT)
    known = "".join(c for c in text if not _missing(font, c))
    return UNDRAWN if backwards or len(known) < len(text) * 0.9 else known


def is_backwards(text: str) -> bool:
    """Whether the first letter that has a direction runs from right to left."""
    directions = (unicodedata.bidirectional(c) for c in text)
    return next((one for one in directions if one in ("L", *RIGHT_TO_LEFT)), "L") in RIGHT_TO_LEFT


def wrap(text: str, size: int, width: int, lines: int) -> list[str]:
    """Lines no wider than `width` pixels, the last one cut with an ellipsis. Words too long for a line are broken."""
    result, font = list[str](), font_of(text, size)
    rest = text[:2000]
    while rest and len(result) < lines:
        fits = _fits(rest, font, width)
        if fits < len(rest) and len(result) == lines - 1:
            return [*result, _clip(rest, font, width)]
        if fits < len(rest) and " " in rest[1 : fits + 1]:
            fits = rest.rindex(" ", 1, fits + 1)
        result.append(rest[:fits].strip())
        rest = rest[fits:].strip()
    return result


def _fits(text: str, font: Font, width: float) -> int:
    """How many characters of a text fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


def _clip(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    more = "…" if not _missing(font, "…") else "..."
    return text[: _fits(text, font, width - font.getlength(more))].rstrip() + more


def font_of(text: str, size: int) -> Font:
    """Pillow's own font, or of those on this machine the one that lacks the fewest of the text's letters."""
    letters = set(text)
    return min(fonts_of(size), key=lambda font: sum(_missing(font, c) for c in letters))


@functools.cache
def fonts_of(size: int) -> list[Font]:
    """Pillow's own font, and those of this machine that have other scripts."""
    fonts: list[Font] = [ImageFont.load_default(size)]
    for name in FALLBACK_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return fonts


@functools.lru_cache(maxsize=1 << 16)
def _missing(font: Font, character: str) -> bool:
    if character.isspace():
        return False
    return bytes(font.getmask(character)) == bytes(font.getmask("\U0010ffff"))
