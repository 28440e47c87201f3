"""Images for the report: small self-contained copies, and the grid of all arms as one image."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from t2i_feedback.reporting.evidence import Evidence, MeasuredArm

LONGEST_SIDE = 256  # pixels of an image in the report; larger ones are reduced
EXACT_SIDE = 96  # up to here an image is kept bit by bit
FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")  # letters of most scripts, Chinese not among them
MARGIN, CAPTION_WIDTH, LINE_HEIGHT = 6, 190, 14  # pixels of the grid image


def thumbnail(path: Path) -> Image.Image:
    """RGB, no side longer than LONGEST_SIDE."""
    with Image.open(path) as image:
        copy = image.convert("RGB")
    copy.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return copy


def data_url(path: Path) -> str:
    """The image as text that a page can hold: PNG if small, else JPEG."""
    image = thumbnail(path)
    exact = max(image.size) <= EXACT_SIDE
    buffer = io.BytesIO()
    if exact:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=88)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{'png' if exact else 'jpeg'};base64,{text}"


def spread_out(ids: Sequence[int], count: int) -> list[int]:
    """`count` of the ids at even distances: a choice that nobody made by looking."""
    count = min(count, len(ids))
    return [ids[i * len(ids) // count] for i in range(count)]


def shared_captions(evidence: Evidence) -> list[int]:
    """The captions that every arm has an image for, in order."""
    drawn = [set(arm.images) for arm in evidence.arms.values()]
    return sorted(set(evidence.captions).intersection(*drawn))


def sheet(captions: Mapping[int, str], arms: Sequence[MeasuredArm], side: int = 96) -> Image.Image:
    """One image: captions down, arms across, names on top. Captions are wrapped to the left of their images."""
    font = ImageFont.truetype(FONT, 10)
    top = LINE_HEIGHT + 2 * MARGIN
    width = CAPTION_WIDTH + len(arms) * (side + MARGIN) + MARGIN
    grid = Image.new("RGB", (width, top + len(captions) * (side + MARGIN)), "white")
    draw = ImageDraw.Draw(grid)
    for column, arm in enumerate(arms):
        left = CAPTION_WIDTH + column * (side + MARGIN)
        draw.text((left, MARGIN), arm.label, fill="black", font=font)
    for row, (caption_id, caption) in enumerate(captions.items()):
        y = top + row * (side + MARGIN)
        lines = wrapped(caption, CAPTION_WIDTH - 2 * MARGIN, font)[: side // LINE_HEIGHT]
        draw.multiline_text((MARGIN, y), "\n".join(lines), fill="black", font=font)
        for column, arm in enumerate(arms):
            image = thumbnail(arm.folder / arm.images[caption_id].image)
            image = image.resize((side, side), Image.Resampling.LANCZOS)
            grid.paste(image, (CAPTION_WIDTH + column * (side + MARGIN), y))
    return grid


def wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines of at most `width` pixels, broken between words, and within one that is longer."""
    lines = [""]
    for word in chain.from_iterable(_fitting(one, width, font) for one in text.split()):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _fitting(word: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Iterator[str]:
    """The word, or pieces of it of at most `width` pixels."""
    start = 0
    for end in range(1, len(word) + 1):
        if end > start + 1 and font.getlength(word[start:end]) > width:
            yield word[start : end - 1]
            start = end - 1
    yield word[start:]
