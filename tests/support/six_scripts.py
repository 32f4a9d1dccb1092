"""Three hundred photographs with captions in six scripts, from one word to two thousand characters: what a report has to hold."""

import random
from pathlib import Path

from tests.support.raw.photos import encode, photo, truncated

PHRASES = {
    "latin": [
        "a red sofa", "two cats sleeping", "beside a coffee cup", "in the soft light of the morning", "on a wooden table",
        "a small boat", "seen from above", "with snow on the hills", "café in the old town", "photographed on film",
    ],
    "chinese": ["一只猫", "坐在窗台上", "红色的沙发", "远处有雪山", "清晨的阳光", "木桌上的咖啡杯", "一艘小船", "老城区的街道"],
    "japanese": ["窓辺の猫", "赤いソファの上で", "コーヒーカップと本", "雪の積もった山々", "朝の柔らかい光の中", "小さな船が浮かぶ", "古い町の通り"],
    "arabic": ["قارب صغير", "على الشاطئ", "في ضوء الصباح", "قطتان نائمتان", "بجانب فنجان قهوة", "جبال مغطاة بالثلج", "شارع في المدينة القديمة"],
    "hebrew": ["סירה קטנה", "על החוף", "באור הבוקר", "שני חתולים ישנים", "ליד כוס קפה", "הרים מכוסים שלג", "רחוב בעיר העתיקה"],
    "hindi": ["एक छोटी नाव", "समुद्र के किनारे", "सुबह की रोशनी में", "दो सोती हुई बिल्लियाँ", "कॉफ़ी के कप के पास", "बर्फ़ से ढके पहाड़", "पुराने शहर की गली"],
}  # fmt: skip
JOINED = {"chinese": "，", "japanese": "、", "arabic": "، "}
SIZES = [(320, 288), (288, 320), (400, 280), (300, 300), (520, 290), (280, 420)]
LONG = 2000  # characters


def save_photos(folder: Path, count: int = 300) -> Path:
    """`count` photographs, NUMBER.jpg beside NUMBER.txt. Of each fifty one has a caption of 2,000 characters, one is too small,
    one is damaged, and one is another's picture again, with its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for number in range(count):
        script = [*PHRASES][number % len(PHRASES)]
        phrases, joint = PHRASES[script], JOINED.get(script, ", ")
        caption = joint.join(draw.choices(phrases, k=draw.choice([1, 2, 2, 3, 3, 4, 6])))
        kind = number % 50
        if kind == 7 + number // 50:
            while len(caption) < LONG:
                caption += joint + draw.choice(phrases)
            caption = caption[:LONG].rstrip()
        size = (96, 64) if kind == 31 else draw.choice(SIZES)
        data = encode(photo(number, size), "JPEG", quality=85)
        if kind == 43:
            data = truncated(data)
        if kind == 47:
            data = (folder / f"{number - 1:03d}.jpg").read_bytes()
            caption = (folder / f"{number - 1:03d}.txt").read_text(encoding="utf-8")
        (folder / f"{number:03d}.jpg").write_bytes(data)
        (folder / f"{number:03d}.txt").write_text(caption, encoding="utf-8")
    return folder
