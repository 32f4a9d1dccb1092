"""The report needs nothing but itself, and nothing in a caption runs. In a real browser, where there is one."""

import base64
import html
import html.parser
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from precompute import preview, run
from precompute.report import charts
from precompute.report.figures import Figures, Reject
from precompute.report.formatting import flatten
from precompute.report.page import render
from precompute.report.tiles import Card, Tile
from tests.support.finished_folder import RECIPE, write_shards
from tests.support.six_scripts import LONG, PHRASES, save_photos
from tests.support.worker import TOY

ATTACK = "<script>document.title='owned'</script>\"'><img src=https://example.invalid/x onerror=alert(1)>{{recipe}}"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which everything that comes from outside is an attack."""
    pixels = np.full((64, 64, 3), 128, np.uint8)
    figures = Figures(
        samples=10,
        bytes=10**9,
        units=(1, 2),
        rows=12,
        latents_of=10,
        speed=[1.0, 2.0],
        edges=np.array([256, 512, 512]),
        aspects=np.array([1.0, 1.5, 0.7]),
        characters=np.array([3, 5, 9]),
        tokens={ATTACK: np.array([5, 9])},
        channels={ATTACK: [(0.0, 1.0), (0.1, 0.9)]},
        rejected={ATTACK: 2},
        examples={ATTACK: [Reject(ATTACK, None)]},
        repeated=[(ATTACK, 3)],
        notes=[ATTACK],
    )
    cards = [Card(ATTACK, ATTACK, [Tile(ATTACK, pixels), Tile(ATTACK, pixels, 20.0)])]
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(
        render(ATTACK, ATTACK, cards, cards, figures, {**RECIPE, ATTACK: [ATTACK, {"a": ATTACK}]})
    )
    return path


def test_an_attack_stays_text(attacked: Path) -> None:
    page = Page(attacked.read_text())
    assert "script" not in page.tags
    assert page.tags.count("img") == 4  # two cards of two pictures: no image of the attack's making
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("document.title='owned'") >= 12
    assert page.text.count("{{recipe}}") >= 12  # nor is anything filled into what was filled in


def test_without_tokens_captions_are_measured_in_characters() -> None:
    page = render("t", "s", [], [], Figures(rows=1, characters=np.array([8])), RECIPE)
    assert "Caption length, characters" in page


def test_the_page_asks_for_nothing(attacked: Path) -> None:
    page = Page(attacked.read_text())
    links = [
        value or "" for name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")
    ]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    anchors = [value for name, value in page.attributes if name == "id"]
    assert sorted(link[1:] for link in links if link.startswith("#")) == sorted(anchors)
    style = re.search(r"<style>(.*?)</style>", attacked.read_text(), re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_is_read_against_its_ground(theme: int, attacked: Path) -> None:
    """The ratio of WCAG 2 for text of any size."""
    colours = dict(re.findall(r"--(\w+): (#\w{6})\b", attacked.read_text().split("--paper: ")[1 + theme]))
    grounds = [re.findall(r"--paper: (#\w+)", attacked.read_text())[theme], colours.get("card", "#ffffff")]

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for ground in grounds:
        for text in ("ink", "quiet", "accent"):
            dark, bright = sorted((light(colours[text]), light(ground)))
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_a_rejected_row_is_shown_with_its_picture(tmp_path: Path) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name, edge, colour in (("kept", 300, "green"), ("small", 40, "red")):
        Image.new("RGB", (edge, edge), colour).save(photos / f"{name}.png")
        (photos / f"{name}.txt").write_text(f"a {colour} square")
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / "broken.txt").write_text("broken")
    run.run(run.Config("builders/folder", output, data_dir=photos, **TOY))
    preview.run(preview.Config(str(output), data_dir=photos))
    page = (output / "report.html").read_text()
    figures = dict(re.findall(r'<figure title="([^"]*)">(.*?)</figure>', page, re.DOTALL))
    assert figures.keys() == {"small", "broken"}
    shown = Image.open(io.BytesIO(base64.b64decode(figures["small"].split("base64,")[1].split('"')[0])))
    red, green, _ = shown.convert("RGB").resize((1, 1)).getpixel((0, 0))
    assert red > 200 > 50 > green
    assert "no image" in figures["broken"]


def test_every_placeholder_is_filled(tmp_path: Path) -> None:
    output = write_shards(tmp_path / "latents")
    preview.run(preview.Config(str(output)))
    text = (output / "report.html").read_text()
    assert "{{" not in text
    page = Page(text)
    for part in ("15", "too_small", "caption u0-0", "moments_32", "image_encoder.scale", "u1-small"):
        assert part in page.text


def test_a_repeated_caption_is_counted(tmp_path: Path) -> None:
    output = write_shards(tmp_path / "latents", caption="the same")
    preview.run(preview.Config(str(output)))
    assert "15 ×" in Page((output / "report.html").read_text()).text


def test_a_histogram_counts_every_value() -> None:
    values = np.random.default_rng(0).lognormal(5, 1, 1000)
    for chart in (charts.histogram(values, "px"), charts.histogram(np.round(values), "px")):
        counts = [int(n.replace(",", "")) for n in re.findall(r": ([\d,]+)</title>", chart)]
        above = re.search(r"and (\d+) above", chart)
        assert above and sum(counts) + int(above[1]) == 1000
    assert "nothing to count" in charts.histogram(np.zeros(0), "px")
    assert "<svg" in charts.histogram(np.full(5, 7.0), "px")


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 77, [0, 20, 40, 60, 80]),
        (256, 2250, [0, 500, 1000, 1500, 2000, 2500]),
        (0.66, 1.5, [0.6, 0.8, 1.0, 1.2, 1.4, 1.6]),
        (3, 3, [3, 3.5]),
        (0, 0, [0, 0.1]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    found = charts.round_ticks(low, high)
    assert found[0] <= low and (found[-1] >= high or low == high) and len(found) <= 7
    assert found == ticks or low == high


def test_a_few_long_captions_leave_the_others_to_be_seen() -> None:
    chart = charts.histogram(np.array([8, 9, 10, 11, 12] * 100 + [2000, 1500]), "tokens")
    assert "and 2 above, up to 2,000" in chart and chart.count("<rect") >= 5


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0], list(range(1000))])
def test_a_series_takes_any_length(values: list[float]) -> None:
    assert "NaN" not in charts.series(values, "images/s") and "nan" not in charts.series(values, "images/s")


def test_a_recipe_is_listed_leaf_by_leaf() -> None:
    leaves = dict(flatten({"a": {"b": 1, "c": None}, "d": [1, 2], "e": [{"f": "x"}], "g": {}}))
    assert leaves == {"a.b": "1", "a.c": "none", "d": "1, 2", "e[0].f": "x", "g": "{}"}


# --- in a browser -----------------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium installed")


def browse(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    quiet = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    )
    quiet += "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [str(CHROMIUM), *quiet.split(), offline, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def hosts(log: Path) -> set[str]:
    """Hosts that Chromium asked for, its own among them."""
    return set(re.findall(r'"url":"https?://([^/"]+)', log.read_text()))


@needs_browser
def test_a_browser_runs_nothing_logs_nothing_and_asks_for_nothing(attacked: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank.html"
    blank.write_text("<link rel=icon href=data:,>")
    browse(blank, tmp_path / "0", "--dump-dom", f"--log-net-log={tmp_path / '0.json'}")
    result = browse(attacked, tmp_path / "1", "--dump-dom", f"--log-net-log={tmp_path / '1.json'}")
    assert "CONSOLE" not in result.stderr
    page = Page(result.stdout)
    assert "script" not in page.tags and "document.title='owned'" in page.text
    own = {host for host in hosts(tmp_path / "0.json") | hosts(tmp_path / "1.json") if "google" in host}
    assert hosts(tmp_path / "1.json") <= own


@needs_browser
def test_the_browser_test_can_fail(tmp_path: Path) -> None:
    """The same look at a page that does misbehave: it is seen."""
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('seen')</script><img src=http://example.invalid/x>")
    result = browse(page, tmp_path / "profile", "--dump-dom", f"--log-net-log={tmp_path / 'log.json'}")
    assert "CONSOLE" in result.stderr and "example.invalid" in hosts(tmp_path / "log.json")


# For each frame: its paper, how wide its page is, what reaches over its right edge or is hard to read, captions without a direction.
LOOK = """onload = () => {
  const numbers = colour => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a] }
  const light = colour => { const [r, g, b] = numbers(colour).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b }
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, view = frame.contentWindow, look = one => view.getComputedStyle(one)
    const cut = one => { while ((one = one.parentElement)) if (look(one).overflowX !== "visible") return true }
    const ground = one => { while (one && numbers(look(one).backgroundColor)[3] === 0) one = one.parentElement
      return one ? look(one).backgroundColor : "rgb(255, 255, 255)" }
    const all = [...page.body.querySelectorAll("*")], name = one => one.outerHTML.slice(0, 80)
    const says = all.filter(one => !one.closest("svg") && [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    const against = (one, colour) => { const [a, b] = [light(colour), light(ground(one))].sort((a, b) => a - b); return (b + .05) / (a + .05) }
    const ratio = one => against(one, look(one).color)
    const labels = [...page.querySelectorAll("svg text")], box = one => one.getBoundingClientRect()
    const holds = (around, one) => { const [a, b] = [box(around), box(one)]
      return b.left >= a.left - .5 && b.right <= a.right + .5 && b.top >= a.top - .5 && b.bottom <= a.bottom + .5 }
    const meet = (one, two) => { const [a, b] = [box(one), box(two)]
      return a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom }
    const drawn = one => { const style = look(one), fill = style.fill, line = style.stroke
      const colour = one.tagName === "I" ? style.backgroundColor : line !== "none" ? line : fill
      const found = against(one.closest("svg") ? one.ownerSVGElement : one.parentElement, colour)
      return found < (one.tagName === "text" ? 4.5 : 3) ? found.toFixed(2) + name(one) : "" }
    const backwards = one => /^[^\\p{L}]*[\\p{Script=Arabic}\\p{Script=Hebrew}]/u.test(one.textContent)
    return {
      paper: light(ground(page.body)), width: page.documentElement.scrollWidth, view: page.documentElement.clientWidth,
      narrow: view.innerWidth, texts: says.length,
      over: all.filter(one => one.getBoundingClientRect().right > view.innerWidth + 0.5 && !cut(one)).map(name),
      faint: says.filter(one => ratio(one) < 4.5).map(one => ratio(one).toFixed(2) + name(one)),
      captions: page.querySelectorAll("p.caption").length,
      undirected: [...page.querySelectorAll("p.caption")].filter(one => one.dir !== "auto").map(name),
      turned: [...page.querySelectorAll("p.caption, bdi")].filter(one => look(one).direction !== (backwards(one) ? "rtl" : "ltr")).map(name),
      labels: labels.length, outside: labels.filter(one => !holds(one.ownerSVGElement, one) || box(one).right > view.innerWidth).map(name),
      overlapping: labels.filter(one => labels.some(two => two !== one && two.ownerSVGElement === one.ownerSVGElement && meet(one, two))).map(name),
      pale: [...page.querySelectorAll("svg text, svg .bar, svg .line, svg .median, svg .limit, .reason i")].map(drawn).filter(Boolean),
    } })
  document.body.textContent = JSON.stringify(found)
}"""


def looked_at(page: str, scheme: str, tmp_path: Path) -> list[dict[str, Any]]:
    """The page in frames of 390 and 1280 pixels, as a telephone and a desk have it: no window of Chromium is narrower than 500."""
    frames = "".join(f'<iframe srcdoc="{html.escape(page)}" width={w} height=900></iframe>' for w in WIDTHS)
    around = tmp_path / "around.html"
    around.write_text(
        f"<meta name=color-scheme content={scheme}><style>iframe {{ border: 0 }}</style>{frames}<script>{LOOK}</script>"
    )
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    done = browse(around, tmp_path / "profile", "--window-size=1400,2000", "--dump-dom", *dark)
    found: list[dict[str, Any]] = json.loads(Page(done.stdout.partition("<body>")[2]).text)
    return found


WIDTHS = (390, 1280)
SPOILT = "<style>p.caption { color: #888; background: #777; width: 1400px } svg .bar { fill: var(--card) } svg text { font-size: 90px }</style>"
FAULTS = ["over", "faint", "undirected", "turned", "outside", "overlapping", "pale"]


@pytest.fixture(scope="module")
def six_scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of three hundred photographs."""
    photos, output = save_photos(tmp_path_factory.mktemp("photos")), tmp_path_factory.mktemp("six") / "out"
    run.run(run.Config("builders/folder", output, data_dir=photos, samples_per_shard=64, **TOY))
    preview.run(preview.Config(str(output), data_dir=photos, num_samples=72))
    return output / "report.html"


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["attacked", "six_scripts"])
def test_the_page_fits_its_window_and_can_be_read(
    kind: str, scheme: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    page = request.getfixturevalue(kind).read_text()
    for width, found in zip(WIDTHS, looked_at(page, scheme, tmp_path), strict=True):
        assert found["narrow"] == width and (found["paper"] < 0.05) == (scheme == "dark")
        assert found["width"] <= width and found["captions"] and found["texts"] > 20 and found["labels"] > 20
        assert {fault: found[fault] for fault in FAULTS if found[fault]} == {}
    # The same look at a page that is spoilt: it is seen.
    spoilt = page.replace("</head>", f"{SPOILT}</head>").replace('dir="auto"', "").replace("bdi>", "b>")
    for found in looked_at(spoilt, scheme, tmp_path):
        expected = [fault for fault in FAULTS if fault != "turned" or kind == "six_scripts"]
        assert all(found[fault] for fault in expected), {fault: found[fault] for fault in FAULTS}


def test_a_report_of_six_scripts_has_its_long_captions_and_its_pairs(six_scripts: Path) -> None:
    page = six_scripts.read_text(encoding="utf-8")
    captions = re.findall(r'<p class="caption" dir="auto">(.*?)</p>', page)
    assert len(captions) == 72 and sum(len(caption) == LONG for caption in captions) >= 2
    for word in (phrases[0] for phrases in PHRASES.values()):
        assert any(word in caption for caption in captions), word
    assert "rejected (4.0%)" in page
    # It is published: `latentmill verify out`, and no folder of this machine.
    assert "<code>latentmill verify out</code>" in page and str(six_scripts.parents[1]) not in page
    assert re.search(r"\d+ samples share their caption", page) and "look alike; the 12 nearest" in page
