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
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "NotoSans-Regular.ttf",
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
    texts = {id(card): wrap(drawable(card.caption), TEXT, inner, LINES) for card in cards}
    heights = [TILE + 2 * PAD + 48 + LEADING * max(len(texts[id(card)]) for card in row) for row in rows]
    width = 2 * MARGIN + columns * step - 2 * GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + 84 + sum(heights) + 2 * GAP * (len(rows) - 1)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 8), _clip(title, 30, width - 2 * MARGIN), INK, font_of(title, 30))
    draw.text((MARGIN, MARGIN + 36), _clip(subtitle, TEXT, width - 2 * MARGIN), GREY, font_of(subtitle, TEXT))
    y = MARGIN + 84
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            x = MARGIN + column * step
            draw.rounded_rectangle((x, y, x + inner + 2 * PAD, y + height), 10, CARD)
            _draw_card(sheet, draw, card, texts[id(card)], (x + PAD, y + PAD))
            key = _clip(card.key, SMALL, inner)
            draw.text((x + PAD, y + height - PAD - SMALL), key, GREY, font_of(key, SMALL))
        y += height + 2 * GAP
    return sheet


def _draw_card(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, card: Card, lines: list[str], corner: tuple[int, int]
) -> None:
    x, y = corner
    for place, picture in enumerate(card.pictures):
        left = x + place * (TILE + GAP)
        tile = ImageOps.contain(Image.fromarray(picture.pixels), (TILE, TILE), Image.Resampling.LANCZOS)
        draw.rectangle((left, y, left + TILE - 1, y + TILE - 1), PAPER)
        sheet.paste(tile, (left + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
        label = picture.label + ("" if picture.decibels is None else f"   {picture.decibels:.1f} dB")
        draw.text((left, y + TILE + 5), label, GREY, font_of(label, SMALL))
    for place, line in enumerate(lines):
        font, room = font_of(line, TEXT), len(card.pictures or [0]) * (TILE + GAP) - GAP
        start = x + room - font.getlength(line) if is_backwards(card.caption) else x
        draw.text((start, y + TILE + 26 + place * LEADING), line, INK, font)


def drawable(text: str) -> str:
    """The text, or a word instead of it where a font would draw boxes, or letters from the wrong end."""
    backwards = any(unicodedata.bidirectional(c) in RIGHT_TO_LEFT for c in text) and not features.check(
        "raqm"
    )
    lacking = sum(_missing(font_of(text, TEXT), c) for c in text)
    return UNDRAWN if backwards or lacking > len(text) / 10 else text


def is_backwards(text: str) -> bool:
    """Whether the first letter that has a direction runs from right to left."""
    directions = (unicodedata.bidirectional(c) for c in text)
    return next((one for one in directions if one in ("L", *RIGHT_TO_LEFT)), "L") in RIGHT_TO_LEFT


def wrap(text: str, size: int, width: int, lines: int) -> list[str]:
    """Lines no wider than `width` pixels, the last one cut with an ellipsis. Words too long for a line are broken."""
    result: list[str] = []
    rest = text[:2000]
    while rest and len(result) < lines:
        fits = _fits(rest, size, width)
        if fits < len(rest) and len(result) == lines - 1:
            return [*result, _clip(rest, size, width)]
        if fits < len(rest) and " " in rest[1 : fits + 1]:
            fits = rest.rindex(" ", 1, fits + 1)
        result.append(rest[:fits].strip())
        rest = rest[fits:].strip()
    return result


def _fits(text: str, size: int, width: int) -> int:
    """How many characters of a text fit, at least one."""
    font = font_of(text, size)
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


def _clip(text: str, size: int, width: int) -> str:
    if font_of(text, size).getlength(text) <= width:
        return text
    return text[: max(1, _fits(text, size, width - size))].rstrip() + "…"


def font_of(text: str, size: int) -> Font:
    """Pillow's own font, or of those on this machine the one that lacks the fewest of the text's letters."""
    letters = set(text)
    return min(_fonts(size), key=lambda font: sum(_missing(font, c) for c in letters))


@functools.cache
def _fonts(size: int) -> list[Font]:
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
