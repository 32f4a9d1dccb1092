"""report.html: one file that needs no network and runs no script.

Captions come from the internet. Everything that is not a number goes through `html.escape`, and the page's own
Content-Security-Policy forbids whatever might get past it.
"""

import io
import re
import statistics
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from loader.printable import one_line, printable
from loader.recipe import Recipe
from precompute.report import charts
from precompute.report.figures import Figures, Reject
from precompute.report.formatting import file_size, flatten
from precompute.report.tiles import Card, Tile

TEMPLATE = Path(__file__).with_name("report.html")
PIXELS = 320  # edge of a picture on the page


def render(
    title: str,
    subtitle: str,
    cards: Sequence[Card],
    twins: Sequence[Card],
    figures: Figures,
    recipe: Recipe,
    verdict: str = "",
) -> str:
    """The page. twins: a card of two pictures for each pair of nearly equal images. verdict: of the last verify."""
    parts = {
        "title": escape(title),
        "kind": "" if figures.channels else "without-latents",
        "subtitle": escape(subtitle),
        "verdict": _verdict(verdict),
        "tiles": "".join(_tile(name, value) for name, value in _numbers(figures)),
        "notes": _notes(figures.notes),
        "cards": "".join(_card(card) for card in cards),
        "charts": "".join(_panel(name, chart) for name, chart in _row_charts(figures, recipe)),
        "latents_of": f"{figures.latents_of:,}",
        "latents": "".join(_panel(name, charts.channels(stats)) for name, stats in figures.channels.items()),
        "rejects": _rejects(figures),
        "duplicates": _duplicates(figures, twins),
        "recipe": "".join(_leaf(name, value) for name, value in flatten(recipe)),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _numbers(figures: Figures) -> list[tuple[str, str]]:
    (done, units), rejected = figures.units, sum(figures.rejected.values())
    return [
        ("samples", f"{figures.samples:,}"),
        (f"rejected ({rejected / max(rejected + figures.samples, 1):.1%})", f"{rejected:,}"),
        ("units finished", f"{done:,} of {units:,}"),
        ("in shards", file_size(figures.bytes)),
        ("a sample", file_size(figures.bytes / max(figures.samples, 1))),
        ("images/s, median", f"{statistics.median(figures.speed):,.1f}" if figures.speed else "not timed"),
    ]


def _row_charts(figures: Figures, recipe: Recipe) -> list[tuple[str, str]]:
    limits = {spec.get("name", ""): spec.get("length") for spec in recipe.get("text_encoders", [])}
    panels = [
        ("Throughput, images/s by unit", charts.series(figures.speed, "images/s")),
        ("Shorter edge, pixels", charts.histogram(figures.edges, "px")),
        ("Aspect ratio, width over height", charts.histogram(figures.aspects, "")),
    ]
    if not figures.tokens:
        panels.append(("Caption length, characters", charts.histogram(figures.characters, "characters")))
    for name, lengths in figures.tokens.items():
        limit = limits.get(name.removeprefix("caption_latents").removeprefix("_"))
        panels.append((f"{name}, tokens", charts.histogram(lengths, "tokens", mark=limit)))
    return panels


def _verdict(text: str) -> str:
    """The last verify's words; what stands between backticks as what one types."""
    if not text:
        return ""
    kind = " whole" if text.startswith("verified: whole") else ""
    typed = re.sub("`([^`]*)`", r"<code>\1</code>", escape(printable(text)))
    return f'<p class="small verdict{kind}">{typed}</p>'


def _tile(name: str, value: str) -> str:
    return (
        f'<div class="panel tile"><b>{escape(value)}</b><span class="quiet small">{escape(name)}</span></div>'
    )


def _panel(title: str, body: str) -> str:
    return f'<div class="panel"><h3>{escape(title)}</h3>{body}</div>'


def _leaf(name: str, value: str) -> str:
    broken = escape(name).replace(".", ".<wbr>")  # where a phone may break it
    return f"<tr><td>{broken}</td><td>{escape(value) or '–'}</td></tr>"


def _notes(notes: Sequence[str]) -> str:
    lines = "".join(f"<p>{escape(printable(note))}</p>" for note in notes)
    return f'<div class="panel notes small" style="margin-top:16px">{lines}</div>' if lines else ""


def _card(card: Card) -> str:
    pictures = "".join(_picture(picture) for picture in card.pictures)
    return (
        f'<article class="panel"><div class="pictures">{pictures}</div>'
        f'<p class="caption" dir="auto">{escape(card.caption)}</p><code class="key">{escape(card.key)}</code></article>'
    )


def _picture(picture: Tile) -> str:
    image = Image.fromarray(picture.pixels)
    image.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    label = picture.label + ("" if picture.decibels is None else f" · {picture.decibels:.1f} dB")
    return f"<figure>{_image(out.getvalue())}<figcaption>{escape(label)}</figcaption></figure>"


def _image(data: bytes) -> str:
    return f'<img alt="" src="data:image/jpeg;base64,{b64encode(data).decode()}">'


def _rejects(figures: Figures) -> str:
    if not figures.rejected:
        return '<p class="quiet">None: every source row became a sample.</p>'
    most = max(figures.rejected.values())
    rows = []
    for reason, count in sorted(figures.rejected.items(), key=lambda item: -item[1]):
        thumbs = "".join(_reject(reject) for reject in figures.examples.get(reason, []))
        rows.append(
            f'<div class="reason"><b>{escape(reason)}</b><i style="width:{100 * count / most:.1f}%"></i>'
            f'<span>{count:,}</span><div class="thumbs">{thumbs}</div></div>'
        )
    return "".join(rows)


def _reject(reject: Reject) -> str:
    image = _image(reject.thumbnail) if reject.thumbnail else '<div class="none">no image</div>'
    return (
        f'<figure title="{escape(reject.key)}">{image}<figcaption>{escape(reject.key)}</figcaption></figure>'
    )


def _duplicates(figures: Figures, twins: Sequence[Card]) -> str:
    rows = "".join(
        f"<tr><td>{count:,} ×</td><td><bdi>{escape(one_line(c)[:200])}</bdi></td></tr>"
        for c, count in figures.repeated
    )
    captions = '<p class="quiet small">No caption occurs twice.</p>'
    if rows:
        most = ", the most frequent first" if figures.twice > sum(n for _, n in figures.repeated) else ""
        captions = (
            f'<p class="quiet small">{figures.twice:,} samples share their caption with another{most}.</p>'
        )
        captions += f'<table class="captions">{rows}</table>'
    pairs = "".join(
        f'<div class="pictures">{"".join(_picture(p) for p in card.pictures)}</div>' for card in twins
    )
    alike = f"{figures.alike:,} pairs of them look alike" if figures.alike else "No two of them look alike"
    more = f"; the {len(twins)} nearest" if figures.alike > len(twins) else ""
    images = f'<p class="quiet small">{alike}{more}.</p>' + (
        f'<div class="pairs">{pairs}</div>' if pairs else ""
    )
    images = _panel(f"Images, of {figures.latents_of:,} samples", images)
    return _panel(f"Captions, of {figures.rows:,} rows", captions) + (images if figures.latents_of else "")
