"""Caption cleaning: `deepfloyd` equals diffusers' own, `light` keeps what people wrote and cleaning twice changes nothing."""

import random
import re
import time
import warnings
from typing import Any

import pytest

from builders.core.captions import PROFILES, clean_caption, says_something
from builders.core.errors import ConfigError

# What captions are made of in the wild, and what each rule of the DeepFloyd cleaning looks for.
WRITTEN = """<PERSON>|<b>|</b>|<br/>|<script>x|</script>|&amp;|&quot;|&lt;|&#39;|&eacute|&nbsp;|&#x41;|&#128;|<!--c-->|<!doctype x>|<p|<|&
http://x.com/a?b=1|https:%41|www:a|www.foo.co.uk|foo.it|info@bar.com|@nick|1.2.3.4|photo.jpg|IMG_2034.JPG|a.mp4| webp|mp4|png images
#123|#1234|#12345|123456|12:30 |jc6640|jc6640vc|6640vc231|j2d1a2a|10x20|10×20.5|10х3|٣٤٥٦٧٨|page 12|free shipping|worldwide free shipping
download free|click on here|a-b-c-d-e|a_b_c_d|...|""|''|“hi”|‘x’|—|–|`|´|¨|½|©|™|(|)|[x]|{|}|*|~|'|"|-|_|:|;|.|,|/|\\n| : | . |,a|a,b|a.b
+|%20|%C3%A9|图片|日本語|ｆｕｌｌ＆|Ã©|â€™|CafÃ© |é|ñ|ﬁ|İ|🙂|red|Dog|a house|on the beach|old photo of|1950s|2014|\t|\r|\x1b[31m|\x85|\x00"""
PIECES = [*re.split(r"[|\n]", WRITTEN), "|", "\n", "\u2028", "\u3000"]


def made_up_captions(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [
        "".join(rng.choice(PIECES) + rng.choice(("", " ", " ")) for _ in range(rng.randint(0, 14)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def diffusers_clean() -> Any:
    """The caption cleaning of the installed diffusers, applied twice as its pipeline does."""
    pytest.importorskip("bs4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import IFPipeline
    pipeline = object.__new__(IFPipeline)  # the method uses no weights

    def clean(text: str) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BeautifulSoup: "looks more like a filename"
            return str(pipeline._clean_caption(pipeline._clean_caption(text)))

    return clean


def test_deepfloyd_equals_diffusers_on_12000_captions(diffusers_clean: Any) -> None:
    captions = made_up_captions(12_000, seed=20)
    different = [text for text in captions if clean_caption(text, "deepfloyd") != diffusers_clean(text)]
    assert not different, different[:5]
    cleaned = {clean_caption(text, "deepfloyd") for text in captions}
    assert len(cleaned) > 6_000, "they do not all clean to the same"


# What the steps that are not diffusers' own patterns look for, in alphabets small enough to meet every case.
NASTY = {
    "links": [*"a1.-/@: é_", ".com", ".co", ".it", "http:", "https:", "www:", "//", "%", "\n"],
    "numbers and codes": [*"1a.x_ ×х٣é", "12", "ab"],
    "file names and dots": [*"a. _é", ".png", ".jpeg", "\u3000", " .", ".  "],
    "markup": [
        "<",
        ">",
        "a",
        "b",
        " ",
        "<a href='http://x.com/y'>",
        "</a>",
        "<!--",
        "-->",
        "<br/>",
        "&lt;",
        "&amp;",
    ],
}


@pytest.mark.parametrize("alphabet", NASTY)
def test_deepfloyd_equals_diffusers_on_nasty_captions(alphabet: Any, diffusers_clean: Any) -> None:
    rng = random.Random(alphabet)
    for _ in range(2_500):
        text = "".join(rng.choice(NASTY[alphabet]) for _ in range(rng.randint(1, 16)))
        assert clean_caption(text, "deepfloyd") == diffusers_clean(text), text


# --- time ---------------------------------------------------------------------------------------------------------------------------

REPEATED = """a| |<|<a |<a b=|<!--|&|&amp;|amp;|&lt;|http://|www.|www:/|a.|a-|a.com@|.com|a.com/|a-.|.|1|1a|1a2b3c|-|"|'|free |worldwide |free  |
png image|a.png|a.pn|1.|111.|page |click on |@a|()[]|1x|1х|%41|%25|+|Ã©|â€œ|Ã¢â‚¬Å“|猫|\u0301|\u0301\u0323|<a>|<div>|<b>|<![CDATA[|<?|<!|
<!DOCTYPE |</|</a|<a b='|<a b="|<a b |<br / |☀|\ud800|\x00|\u202e|&#1;|&#x|_|_a-|<table>|\x1b[31m|\x80|é|Ð|Â |a b=c |1:11 """
# One piece repeated between two others.
FRAMED = [
    ("x", " ", ".x"), ("<a ", "b=c ", ""), ("<a", " ", "x"), ("<a", " b", ""), ("<a", " b=b b", ""), ("&", "amp;", ""),
    ("", "a", "1!"), ("a1a", "1", "_"), ("", "1", "aaa_"), ("", "1", "."), ("1.", "1", "x"), ("1x1.", "1", "a"), ("page", " ", "x"),
    ("", "a", " x.png"), (".png ", "a", ""), ("worldwide", " ", "shipping"), ("free", " ", "download"), ("1:11", " ", "x1"),
    ("a", " ", ": x"), ("a", " ", "x:"), ("", " ", "x."), ("<script>", "</", ""), ("a.com ", "a.", ""), ("", "a.", "co@"),
    ("a.com", "é", "@"), ('"', "a", ""), ("http:", "a.com@", ""), ("a.com", "-", "@"), (".jpg", "é", ""), ("\u0301", "a", "\u0323"),
]  # fmt: skip


def _seconds(clean: Any, text: Any, runs: Any) -> Any:
    best = float("inf")
    for _ in range(runs):
        start = time.process_time()
        clean(text)
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize("profile", ["light", "deepfloyd"])
def test_twice_the_length_takes_at_most_two_and_a_half_times_as_long(profile: Any) -> None:
    pieces = [("", piece, "") for piece in re.split(r"[|\n]", REPEATED) if piece] + FRAMED
    slow = {}
    for before, piece, after in pieces:
        text = [before + piece * (length // len(piece)) + after for length in (16_000, 32_000)]
        if _seconds(PROFILES[profile], text[1], 1) < 0.15:  # a square of this length takes many times as long
            continue
        ratio = _seconds(PROFILES[profile], text[1], 5) / _seconds(PROFILES[profile], text[0], 5)
        if ratio > 2.5:
            slow[before + piece + after] = round(ratio, 1)
    assert not slow


def test_deepfloyd_cleans_4000_captions_a_second() -> None:
    captions = [
        "A man with a red helmet on a small moped on a dirt road.",
        "Young woman in a white dress, holding flowers - stock photo #12345",
        "<PERSON> at the 2014 Grammy Awards & after-party, Los Angeles",
        "Vintage 1950s pickup truck for sale – “restored” condition | www.cars.com",
        "geodesic landscape, john chamberlain, christopher balaskas, tadao ando, 4 k, ",
    ] * 200
    start = time.process_time()
    for text in captions:
        clean_caption(text, "deepfloyd")
    assert len(captions) / (time.process_time() - start) > 4_000


def test_light_is_idempotent() -> None:
    for text in made_up_captions(5_000, seed=21):
        once = clean_caption(text, "light")
        assert clean_caption(once, "light") == once, text


def test_light_on_plain_ascii_equals_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from builders.core import light

    plain = [text for text in made_up_captions(3_000, seed=22) if light.is_plain(text)]
    assert len(plain) > 100
    for text in plain:
        assert clean_caption(text, "light") == light.clean_once(text)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("A <b>caf&eacute;</b> &amp; bar", "A café & bar"),
        ("two<br>lines\n and\ttabs ", "two lines and tabs"),
        ("CafÃ© â€“ MÃ¼nchen", "Café – München"),
        ("see https://x.com/a?b=c&d=e now", "see now"),
        ("看http://x.com/图片", "看 图片"),
        ("&amp;amp;lt; nested", "< nested"),
        ("<PERSON> arrives", "person arrives"),
        ("a <3 b, x < y > z", "a <3 b, x < y > z"),
        ("C++ & C#, 100% ‘quoted’ “text”…", "C++ & C#, 100% ‘quoted’ “text”…"),
        ("一只猫 坐着", "一只猫 坐着"),
        ("قطة جالسة", "قطة جالسة"),
        ("👩‍👩‍👧 🇩🇪 ok", "👩‍👩‍👧 🇩🇪 ok"),
        ("ALL Caps, Kept!", "ALL Caps, Kept!"),
        (" <p></p> https://x.com ", ""),
        ('photo by <a href="https://x.com/y">Jane Doe</a> in Rome', "photo by Jane Doe in Rome"),
        ("by <a href=https://x.com/y rel='nofollow'>Jane</a>", "by Jane"),
        ('by <a download href="https://x.com/y">Jane</a>', "by Jane"),
        ("by &lt;a href=&quot;https://x.com/y&quot;&gt;Jane&lt;/a&gt; 2", "by Jane 2"),
        ("&amp;lt;a href=&amp;quot;https://x.com&amp;quot;&amp;gt;Jane&amp;lt;/a&amp;gt;", "Jane"),
        ('<img src="http://x.com/a.png" alt="a cat"/>a dog', "a dog"),
        ("http://x.com,cat", ",cat"),
        ("a cat (http://x.com/a_b) and a dog", "a cat ( ) and a dog"),
        ('"www.x.com/a"cat', '" "cat'),
        ("see http://x.com/a, a cat. www.x.com.", "see , a cat. ."),
        ("https://user:pw@x.com:80/a?b=[c]#d a cat", "a cat"),
        ("a <b and c> d", "a <b and c> d"),
        ("one <!-- a <b>note</b> --> two <!-- not closed", "one two <!-- not closed"),
    ],
)
def test_light(text: Any, clean: Any) -> None:
    assert clean_caption(text, "light") == clean


def test_none_only_strips() -> None:
    assert clean_caption("  <b>x</b>\n", "none") == "<b>x</b>"


def test_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'heavy'.*none, light, deepfloyd"):
        clean_caption("x", "heavy")


def test_no_profile_raises_on_any_bytes() -> None:
    rng = random.Random(23)
    for _ in range(1_000):
        text = bytes(rng.randrange(256) for _ in range(60)).decode("utf-8", "replace") + rng.choice(
            ("<![x", "<!", "&#9999999999;")
        )
        for profile in PROFILES:
            assert isinstance(clean_caption(text, profile), str)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "7",
        "É",
        "图",
        "日本",
        "مرحبا",
        "กา",
        "🙂",
        "☀",
        " - a - ",
        "C++",
        "½",
        "…x…",
        "♥",
        "👍🏽",
        "a\u0301",
    ],
)
def test_what_says_something(text: Any) -> None:
    assert says_something(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ". . .",
        "! ?",
        "-- , --",
        "…",
        "“”",
        "、。",
        "___",
        "_ _",
        "©",
        "€ + →",
        "\ufffd",
        "\u200b",
        "\n\t",
        "| |",
        "«»",
        "\u0301",
    ],
)
def test_what_does_not(text: Any) -> None:
    assert not says_something(text)
