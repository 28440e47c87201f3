"""Scenes as images: drawn with Pillow at four times 64 x 64 and reduced.

Light and focus vary a little from image to image, as in photographs.
"""

import math
import random

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from t2i_feedback.datasets.postcards.world import COLOURS, COLUMN_X, GROUND_Y, KINDS, SCALE, SIDE, SKY_Y, Scene

OVERSAMPLING = 4  # drawn at SIDE * OVERSAMPLING, then reduced: smooth edges


def _mix(a: tuple, b: tuple, share: float) -> tuple:
    return tuple(round(x * (1 - share) + y * share) for x, y in zip(a, b, strict=True))


class _Brush:
    """Pillow's drawing calls in the world's 64-pixel units, moved to (x, y) and scaled."""

    def __init__(self, draw: ImageDraw.ImageDraw, x: float = 0.0, y: float = 0.0, scale: float = 1.0, outline=None):
        self.draw, self.x, self.y, self.scale, self.outline = draw, x, y, scale, outline

    def _at(self, points) -> list:
        return [
            ((self.x + px * self.scale) * OVERSAMPLING, (self.y + py * self.scale) * OVERSAMPLING) for px, py in points
        ]

    def _style(self, fill) -> dict:
        return {"fill": fill} if self.outline is None else {"fill": fill, "outline": self.outline, "width": 3}

    def polygon(self, points, fill) -> None:
        self.draw.polygon(self._at(points), **self._style(fill))

    def rectangle(self, x0, y0, x1, y1, fill) -> None:
        self.draw.rectangle(self._at([(x0, y0), (x1, y1)]), **self._style(fill))

    def ellipse(self, x0, y0, x1, y1, fill) -> None:
        self.draw.ellipse(self._at([(x0, y0), (x1, y1)]), **self._style(fill))

    def line(self, x0, y0, x1, y1, fill, width: float) -> None:
        self.draw.line(
            self._at([(x0, y0), (x1, y1)]), fill=fill, width=max(1, round(width * self.scale * OVERSAMPLING))
        )

    def gradient(self, y0: float, y1: float, top: tuple, bottom: tuple) -> None:
        first, last = round(y0 * OVERSAMPLING), round(y1 * OVERSAMPLING)
        for row in range(first, last):
            colour = _mix(top, bottom, (row - first) / max(1, last - first))
            self.draw.line([(0, row), (SIDE * OVERSAMPLING, row)], fill=colour)


def _draw_background(brush: _Brush, background: str, rng: random.Random) -> None:
    horizon = 40 + rng.uniform(-1.5, 1.5)
    hill = rng.uniform(8, 56)
    if background == "meadow":
        brush.gradient(0, horizon, (120, 190, 245), (190, 225, 250))
        brush.rectangle(0, horizon, SIDE, SIDE, (110, 190, 80))
        brush.ellipse(hill - 24, horizon - 5, hill + 24, horizon + 10, (126, 202, 92))
    elif background == "beach":
        brush.gradient(0, horizon, (140, 215, 245), (200, 240, 250))
        brush.rectangle(0, horizon - 5, SIDE, horizon + 4, (40, 150, 190))
        brush.rectangle(0, horizon + 3, SIDE, horizon + 4.2, (245, 250, 250))
        brush.rectangle(0, horizon + 4.2, SIDE, SIDE, (240, 220, 160))
    elif background == "snow":
        brush.gradient(0, horizon, (170, 186, 202), (213, 221, 231))
        brush.polygon([(hill - 21, horizon), (hill, horizon - 14), (hill + 21, horizon)], (148, 163, 184))
        brush.polygon([(hill - 7, horizon - 9.3), (hill, horizon - 14), (hill + 7, horizon - 9.3)], (245, 248, 252))
        brush.rectangle(0, horizon, SIDE, SIDE, (236, 241, 248))
    elif background == "desert":
        brush.gradient(0, horizon, (250, 212, 145), (255, 236, 195))
        brush.rectangle(0, horizon, SIDE, SIDE, (222, 170, 95))
        brush.ellipse(hill - 22, horizon - 5, hill + 22, horizon + 11, (233, 186, 112))
    elif background == "city":
        brush.gradient(0, horizon, (18, 22, 55), (45, 45, 95))
        x = rng.uniform(-4, 0)
        while x < SIDE:
            width, height = rng.choice((7, 8, 9, 10)), rng.choice((8, 11, 14, 17))
            brush.rectangle(x, horizon - height, x + width, horizon, (62, 60, 92))
            for row in range(2, height - 1, 3):
                for column in (1.5, width - 3):
                    if rng.random() < 0.6:
                        top = horizon - height + row
                        brush.rectangle(x + column, top, x + column + 1.3, top + 1.3, (235, 205, 110))
            x += width + rng.choice((0, 1))
        brush.rectangle(0, horizon, SIDE, SIDE, (52, 52, 62))
        for k in range(4):
            brush.rectangle(3 + 17 * k, 60, 11 + 17 * k, 61.2, (200, 200, 190))
    elif background == "sunset":
        brush.gradient(0, horizon, (225, 95, 110), (255, 195, 120))
        brush.rectangle(0, horizon, SIDE, SIDE, (105, 70, 95))
        brush.ellipse(hill - 28, horizon - 6, hill + 28, horizon + 12, (122, 80, 107))
    elif background == "lake":
        brush.gradient(0, horizon - 4, (160, 205, 235), (205, 230, 240))
        brush.rectangle(0, horizon - 8, SIDE, horizon, (70, 125, 85))
        brush.rectangle(0, horizon - 3, SIDE, SIDE, (70, 140, 200))
        for _ in range(5):
            x, y = rng.uniform(2, 54), rng.uniform(43, 62)
            brush.rectangle(x, y, x + 7, y + 0.9, (125, 180, 225))
    else:
        raise ValueError(f"no background is called {background!r}")


def _draw_house(b: _Brush, colour, dark) -> None:
    b.rectangle(-8, -12, 8, 0, colour)
    b.polygon([(-10, -12), (0, -20), (10, -12)], dark)
    b.rectangle(-2, -7, 2, 0, (90, 60, 45))
    b.rectangle(-6.5, -10, -3.3, -7, (200, 230, 250))
    b.rectangle(3.3, -10, 6.5, -7, (200, 230, 250))


def _draw_tree(b: _Brush, colour, dark) -> None:
    b.rectangle(-1.8, -9, 1.8, 0, (115, 75, 45))
    b.ellipse(-9, -21, 9, -6, colour)


def _draw_car(b: _Brush, colour, dark) -> None:
    b.polygon([(-6, -7), (-4, -13), (4.5, -13), (7, -7)], colour)
    b.polygon([(-4, -7.5), (-2.8, -11.5), (3.5, -11.5), (5, -7.5)], (200, 230, 250))
    b.rectangle(-10, -8, 10, -2.5, colour)
    b.ellipse(-7.6, -5, -2.4, 0, (45, 45, 50))
    b.ellipse(2.4, -5, 7.6, 0, (45, 45, 50))


def _draw_boat(b: _Brush, colour, dark) -> None:
    b.rectangle(-0.7, -20, 0.7, -6, (110, 75, 50))
    b.polygon([(1.4, -20), (9, -8), (1.4, -8)], _mix(colour, (255, 255, 255), 0.55))
    b.polygon([(-10, -7), (10, -7), (6, 0), (-6, 0)], colour)


def _draw_flower(b: _Brush, colour, dark) -> None:
    b.rectangle(-0.8, -11, 0.8, 0, (50, 130, 60))
    for petal in range(5):
        x = 5 * math.sin(petal * 2 * math.pi / 5)
        y = -14 - 5 * math.cos(petal * 2 * math.pi / 5)
        b.ellipse(x - 4, y - 4, x + 4, y + 4, colour)
    b.ellipse(-2.8, -16.8, 2.8, -11.2, (120, 80, 40))


def _draw_fish(b: _Brush, colour, dark) -> None:
    b.polygon([(4, -8), (10.5, -13.5), (10.5, -2.5)], dark)
    b.ellipse(-10, -14, 6, -2, colour)
    b.ellipse(-7.6, -10.8, -5, -8.2, (255, 255, 255))
    b.ellipse(-7, -10.2, -5.6, -8.8, (20, 20, 20))


def _draw_sun(b: _Brush, colour, dark) -> None:
    for ray in range(8):
        x, y = math.cos(ray * math.pi / 4), math.sin(ray * math.pi / 4)
        b.line(5 * x, 5 * y, 10.5 * x, 10.5 * y, colour, 2.2)
    b.ellipse(-6.5, -6.5, 6.5, 6.5, colour)


def _draw_moon(b: _Brush, colour, dark) -> None:
    turns = [-0.8 + 1.6 * i / 24 for i in range(25)]
    outer = [(-9.5 * math.cos(t * math.pi) + 1, 9.5 * math.sin(t * math.pi)) for t in turns]
    inner = [(-5.0 * math.cos(t * math.pi) + 5, 6.2 * math.sin(t * math.pi)) for t in reversed(turns)]
    b.polygon(outer + inner, colour)


def _draw_cloud(b: _Brush, colour, dark) -> None:
    puffs = ((-5.5, 1.5, 4.8), (0, -1.5, 6.4), (5.5, 1.5, 4.8))
    outline, b.outline = b.outline, None
    for rim, fill in ((0.8 / b.scale, outline), (0, colour)):
        for x, y, r in puffs:
            b.ellipse(x - r - rim, y - r - rim, x + r + rim, y + r + rim, fill)


def _draw_balloon(b: _Brush, colour, dark) -> None:
    b.polygon([(-3, 4), (3, 4), (1.8, 7), (-1.8, 7)], dark)
    b.ellipse(-7.5, -10.5, 7.5, 5, colour)
    b.rectangle(-2, 8, 2, 11, (140, 95, 55))


_DRAWINGS = {kind: globals()[f"_draw_{kind}"] for kind in KINDS}


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene as a 64 x 64 RGB image; `rng` moves things by a pixel or two and varies light and focus."""
    side = SIDE * OVERSAMPLING
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    _draw_background(_Brush(draw), scene.background or "", rng)
    for thing in scene.things:
        x = COLUMN_X[thing.column or ""] + rng.uniform(-1.5, 1.5)
        y = (SKY_Y if thing.in_sky else GROUND_Y) + rng.uniform(-1.5, 1.5)
        colour = COLOURS[thing.colour or ""]
        brush = _Brush(draw, x, y, SCALE[thing.size or ""], outline=(35, 30, 40))
        _DRAWINGS[thing.kind](brush, colour, _mix(colour, (0, 0, 0), 0.3))
    image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.72, 1.08))
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    return image
