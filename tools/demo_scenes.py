"""Drawn scenes with known objects, which `sam_tiny_demo` was trained on and is measured on.

Shapes of many kinds, flat, striped, cut from photographs, shaded like balls, cones and coins, lie
on even, uneven and textured grounds, one over another; then come light, blur, noise and JPEG.
Everything about a scene depends on its seed alone, so scenes of seeds that training never used
are held out.

The photographs are the ones in scikit-image's wheel except `coins`, `chelsea`, `astronaut`,
`coffee` and `rocket`, which stay unseen.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

_SCALE = 3  # outlines are drawn so much larger and scaled down: smooth edges
_GREY_PHOTOGRAPHS = ("brick", "camera", "cell", "clock", "grass", "gravel", "moon", "page", "text")
_COLOUR_PHOTOGRAPHS = ("hubble_deep_field", "immunohistochemistry", "retina", "stereo_motorcycle")
_LETTERS = "ABCDEFGHJKLMNOPQRSTUVWXYZabdeghkmnpqrstuwxyz0123456789&?@"
SIDE = 256  # the longest of a scene
SMALLEST = 200  # pixels of the smallest object that is asked for
KINDS = ("easy", "few", "many", "disks", "mosaic")


@functools.cache
def photographs():
    """The textures, uint8 `(H0, W0, 3)`."""
    from skimage import data

    found = []
    for name in (*_GREY_PHOTOGRAPHS, *_COLOUR_PHOTOGRAPHS):
        image = getattr(data, name)()
        image = image[0] if isinstance(image, tuple) else image
        found.append(np.stack([image] * 3, axis=-1) if image.ndim == 2 else image[..., :3])
    return found


def scene(seed, kind=None):
    """One scene.

    Args:
        seed: int, or sequence of ints.
        kind: one of `KINDS`, or None for any.

    Returns:
        uint8 image `(H0, W0, 3)`, sides up to `SIDE`, and uint8 masks `(M, H0, W0)`: of every
        object what can be seen of it, and of parts that lie on an object.
    """
    rng = np.random.default_rng(seed)
    while True:
        drawn = _Scene(rng, kind or rng.choice(KINDS, p=(0.1, 0.25, 0.15, 0.45, 0.05)))
        masks = drawn.masks()
        if len(masks):
            return drawn.developed(), masks


class _Scene:
    def __init__(self, rng, kind):
        self.rng = rng
        self.size = [(256, 256), (256, 192), (192, 256), (202, 256)][
            rng.choice(4, p=(0.55, 0.15, 0.15, 0.15))
        ]
        h, w = self.size
        self.labels = np.zeros((h, w), "int32")  # which object is on top
        self.parts = np.zeros((h, w), "int32")  # which part of it
        self.areas = {}  # of objects and parts before anything covered them
        self.easy = kind == "easy"
        self.grey = rng.random() < (0.5 if kind == "disks" else 0.3)
        self.canvas = np.empty((h, w, 3), "float32")
        self.canvas[:] = self._ground()
        getattr(self, f"_draw_{kind}")()

    # --- what lies where ---

    def _draw_easy(self):
        self._scatter(self.rng.integers(1, 5), (0.12, 0.32))

    def _draw_few(self):
        self._scatter(self.rng.integers(2, 9), (0.06, 0.30))

    def _draw_many(self):
        self._scatter(self.rng.integers(6, 17), (0.05, 0.14))

    def _scatter(self, count, sizes):
        h, w = self.size
        for _ in range(count):
            radius = np.exp(self.rng.uniform(*np.log(sizes))) * SIDE
            centre = self.rng.uniform(0, 1, 2) * (w, h)
            self._add(self._outline(radius), centre, radius, self._style())

    def _draw_disks(self):
        """Things of one sort side by side on one ground: coins, buttons, fruit, cells."""
        h, w = self.size
        rng = self.rng
        cell = np.exp(rng.uniform(np.log(30), np.log(85)))
        rows, columns = max(1, int(h / cell)), max(1, int(w / cell))
        cells = np.array([w / columns, h / rows])
        like = self._disk_style()
        shape = rng.choice(["disk", "ellipse", "any"], p=(0.6, 0.25, 0.15))
        spread, filled = rng.uniform(0.0, 0.4), rng.uniform(0.6, 1.0)
        room, wave = rng.uniform(0.65, 0.95), rng.uniform(0, 0.04)
        for place in np.ndindex(rows, columns):
            if rng.random() > filled:
                continue
            radius = cells.min() / 2 * room * rng.uniform(1 - spread, 1.0)
            slack = np.maximum(cells / 2 - radius, 0)
            centre = (np.array(place[::-1]) + 0.5) * cells + rng.uniform(-1, 1, 2) * slack
            style = {
                **like,
                "seed": rng.integers(2**31),
                "tone": like["tone"] + rng.normal(0, 8, 3),
            }
            if shape == "any":
                outline = self._outline(radius)
            else:
                flat = 1.0 if shape == "disk" else rng.uniform(0.6, 1.0)
                outline = _turned(_circle() * (radius, radius * flat), rng.uniform(0, np.pi))
                angle = np.linspace(0, 2 * np.pi, len(outline), endpoint=False)
                waves = [wave * np.cos(n * angle + rng.uniform(0, 6.3)) for n in (2, 3, 5)]
                outline = outline * (1 + sum(waves))[:, None]
            self._add(outline, centre, radius, style, parts=False)

    def _draw_mosaic(self):
        """Regions that touch each other, and something on them."""
        h, w = self.size
        count = self.rng.integers(3, 9)
        seeds = self.rng.uniform(0, 1, (count, 2)) * (h, w)
        y, x = np.mgrid[0:h, 0:w].astype("float32")
        bend = self.rng.uniform(0, 12)
        phase = self.rng.uniform(0, 6.3, 2)
        y, x = y + bend * np.sin(x / 17 + phase[0]), x + bend * np.sin(y / 19 + phase[1])
        distance = np.stack([(y - a) ** 2 + (x - b) ** 2 for a, b in seeds])
        regions = distance.argmin(axis=0)
        for region in range(count):
            inside = regions == region
            if inside.any():
                self._paint(inside.astype("float32"), (0, 0), self._style(shade=False))
        self._scatter(self.rng.integers(0, 6), (0.06, 0.2))

    # --- one object ---

    def _add(self, outline, centre, radius, style, parts=True):
        """Draws an outline `(N, 2)`, or a picture of it, around its centre."""
        placed = self._rasterized(outline, centre)
        if placed is None:
            return
        alpha, corner = placed
        if style["shadow"] and not self.easy:
            self._shadow(alpha, corner, radius)
        number = self._paint(alpha, corner, style)
        if parts and radius > 22 and self.rng.random() < 0.25:
            for _ in range(self.rng.integers(1, 4)):
                small = radius * self.rng.uniform(0.2, 0.5)
                at = centre + self.rng.uniform(-0.5, 0.5, 2) * radius
                placed = self._rasterized(self._outline(small), at)
                if placed is not None:
                    self._paint(*placed, self._style(), within=number)

    def _rasterized(self, outline, centre):
        """Coverage 0..1 of the pixels around an outline, and the corner they start from."""
        h, w = self.size
        if isinstance(outline, Image.Image):
            half = np.array(outline.size) / _SCALE / 2
            low = np.floor(centre - half).astype(int)
            wide = -(-np.array(outline.size) // _SCALE)
            large = Image.new("L", tuple(int(n) for n in wide * _SCALE))
            large.paste(outline)
        else:
            points = outline + centre
            low = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, -2)
            high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, (w + 2, h + 2))
            wide = high - low
            if (wide < 2).any():
                return None
            large = Image.new("L", tuple(int(n) for n in wide * _SCALE))
            corners = [tuple(p) for p in (points - low) * _SCALE]
            ImageDraw.Draw(large).polygon(corners, fill=255)
        alpha = np.asarray(large.reduce(_SCALE), "float32") / 255
        x0, y0 = np.maximum(low, 0)
        x1, y1 = np.minimum(low + wide, (w, h))
        if x1 - x0 < 2 or y1 - y0 < 2:
            return None
        return alpha[y0 - low[1] : y1 - low[1], x0 - low[0] : x1 - low[0]], (y0, x0)

    def _paint(self, alpha, corner, style, within=None):
        """Lays a fill over the canvas; a new object, or a part of the object `within`."""
        (y, x), (h, w) = corner, alpha.shape
        window = np.s_[y : y + h, x : x + w]
        if within is not None:
            alpha = alpha * (self.labels[window] == within)
        inside = alpha > 0.5
        number = len(self.areas) + 1
        self.areas[number] = np.count_nonzero(inside)
        under = self.canvas[window]
        fill = self._fill(inside, alpha, style)
        if not style["shade"] and self.areas[number]:
            # What looks just as the ground below it cannot be found by anyone.
            gap = fill[inside].mean(axis=0) - under[inside].mean(axis=0)
            distance = float(np.abs(gap.mean() if self.grey else gap).mean())
            least = 45 if self.easy else style["contrast"]
            if distance < least:
                sign = np.where(fill[inside].mean() < 127, 1.0, -1.0)
                fill = fill + sign * (least - distance + 5)
        under += alpha[..., None] * (fill - under)
        if within is None:
            self.labels[window][inside] = number
            self.parts[window][inside] = 0
        else:
            self.parts[window][inside] = number
        return number

    def _shadow(self, alpha, corner, radius):
        offset = np.round(self.rng.uniform(-0.2, 0.2, 2) * radius).astype(int)
        (y, x), (h, w) = np.array(corner) + offset, alpha.shape
        y0, x0 = max(y, 0), max(x, 0)
        y1, x1 = min(y + h, self.size[0]), min(x + w, self.size[1])
        if y1 <= y0 or x1 <= x0:
            return
        soft = Image.fromarray(np.uint8(255 * alpha)).filter(
            ImageFilter.BoxBlur(float(max(1, 0.08 * radius)))
        )
        dark = np.asarray(soft, "float32")[y0 - y : y1 - y, x0 - x : x1 - x, None] / 255
        self.canvas[y0:y1, x0:x1] *= 1 - self.rng.uniform(0.1, 0.45) * dark

    # --- shapes ---

    def _outline(self, radius):
        rng = self.rng
        kind = rng.choice(
            ["regular", "ellipse", "box", "blob", "star", "stroke", "letter", "convex"],
            p=(0.12, 0.22, 0.14, 0.2, 0.08, 0.08, 0.08, 0.08),
        )
        if kind == "letter":
            return _letter(rng, radius)
        if kind == "stroke":
            return _stroke(rng, radius)
        stretch = (radius, radius * rng.uniform(0.45, 1.0))
        turn = rng.uniform(0, 2 * np.pi)
        if kind == "ellipse":
            points = _circle()
        elif kind == "blob":
            angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
            waves = [
                rng.normal(0, 0.35 / n**1.2) * np.cos(n * angle + rng.uniform(0, 6.3))
                for n in (2, 3, 4, 5, 7)
            ]
            points = _circle(48) * np.clip(1 + sum(waves), 0.3, 1.6)[:, None] / 1.2
        elif kind == "box":
            power = rng.choice([0.0, 0.15, 0.4])
            circle = _circle(64)
            points = np.sign(circle) * np.abs(circle) ** max(power, 0.02)
            points = points if power else np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.9
        elif kind == "star":
            tips = rng.integers(4, 9)
            radii = np.tile([1.0, rng.uniform(0.4, 0.75)], tips)
            points = _circle(2 * tips) * radii[:, None]
        elif kind == "regular":
            points = _circle(rng.integers(3, 8))
        else:
            points = _circle(9)[np.sort(rng.choice(9, 5, replace=False))]
        return _turned(points * stretch, turn)

    # --- looks ---

    def _style(self, shade=True):
        rng = self.rng
        kinds = ["flat", "gradient", "photograph", "tinted", "pattern"]
        kind = rng.choice(kinds, p=(0.35, 0.2, 0.12, 0.18, 0.15)) if not self.easy else "flat"
        return {
            "kind": kind,
            "tone": rng.uniform(10, 245, 3),
            "other": rng.uniform(10, 245, 3),
            "texture": rng.uniform(0.15, 0.7),
            "shade": shade and not self.easy and rng.random() < 0.3,
            "light": rng.uniform(0, 2 * np.pi),
            "depth": rng.uniform(0.2, 0.6),
            "rim": 0.0,
            "relief": 0.0,
            "shadow": rng.random() < 0.25,
            "contrast": rng.uniform(35, 60),
            "seed": rng.integers(2**31),
        }

    def _disk_style(self):
        """Lighter or darker than the ground, by more than that varies; embossed, with a rim."""
        rng = self.rng
        ground = self.canvas.mean(axis=(0, 1))
        gap = rng.uniform(28, 110) * (1 if ground.mean() < rng.uniform(60, 190) else -1)
        tint = rng.normal(0, 1, 3) * (25 if rng.random() < 0.5 else 4)
        return {
            **self._style(),
            "kind": rng.choice(["flat", "tinted"], p=(0.6, 0.4)),
            "tone": np.clip(ground + gap + tint, 5, 250),
            "texture": rng.uniform(0.05, 0.35),
            "shade": rng.random() < 0.6,
            "depth": rng.uniform(0.05, 0.35),
            "rim": rng.choice([0.0, rng.uniform(-40, 40)]),
            "relief": rng.choice([0.0, rng.uniform(8, 60)], p=(0.3, 0.7)),
            "shadow": rng.random() < 0.5,
            "contrast": 15,
        }

    def _fill(self, inside, alpha, style):
        """Colours `(h, w, 3)` of an object's window."""
        rng = np.random.default_rng(style["seed"])
        h, w = inside.shape
        tone, other = style["tone"], style["other"]
        kind = style["kind"]
        y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j].astype("float32")
        turn = rng.uniform(0, 2 * np.pi)
        along = x * np.cos(turn) + y * np.sin(turn)
        if kind == "flat":
            fill = np.broadcast_to(np.float32(tone), (h, w, 3)).copy()
        elif kind == "gradient":
            fill = tone + (along[..., None] + 1) / 2 * (other - tone)
        elif kind == "pattern":
            fill = np.where(_pattern(rng, h, w)[..., None], tone, tone + 0.6 * (other - tone))
        else:
            texture = _texture(rng, h, w)
            if kind == "tinted":
                grey = texture.mean(axis=-1, keepdims=True)
                texture = tone + style["texture"] * (grey - grey.mean())
            fill = texture
        fill = fill.astype("float32")
        if style["relief"]:
            fill += style["relief"] * _relief(rng, h, w)[..., None]
        if style["rim"] or style["shade"]:
            r2 = np.minimum(x * x + y * y, 1.0)
            if style["rim"]:
                fill += style["rim"] * ((r2 > 0.72) & (r2 < 0.93))[..., None]
            if style["shade"]:
                height = np.sqrt(1 - r2)
                lit = x * np.cos(style["light"]) + y * np.sin(style["light"])
                fill *= (1 + style["depth"] * (0.8 * lit + 0.6 * (height - 0.6)))[..., None]
        return fill

    def _ground(self):
        rng = self.rng
        h, w = self.size
        tone = rng.uniform(15, 240, 3)
        if rng.random() < 0.4:
            tone = tone.mean() + rng.normal(0, 6, 3)
        kind = (
            "flat"
            if self.easy
            else rng.choice(["flat", "clouds", "photograph", "tinted"], p=(0.25, 0.4, 0.1, 0.25))
        )
        if kind == "flat":
            return np.float32(tone)
        if kind == "clouds":
            return tone + rng.uniform(8, 45) * _clouds(rng, h, w, rng.integers(2, 9))[..., None]
        texture = _texture(rng, h, w)
        if kind == "photograph":
            return texture
        grey = texture.mean(axis=-1, keepdims=True)
        return tone + rng.uniform(0.1, 0.5) * (grey - grey.mean())

    # --- the picture ---

    def developed(self):
        """The canvas as a camera would give it."""
        rng = self.rng
        h, w = self.size
        image = self.canvas
        if not self.easy:
            if rng.random() < 0.6:  # light from one side, or in spots
                y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
                turn = rng.uniform(0, 2 * np.pi)
                light = x * np.cos(turn) + y * np.sin(turn)
                light = light + rng.uniform(0, 0.5) * _clouds(rng, h, w, 3)
                image = image * (1 + rng.uniform(0, 0.4) * light)[..., None]
            if self.grey:
                image = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
            elif rng.random() < 0.2:
                image = image * rng.uniform(0.75, 1.1, 3)
        pixels = Image.fromarray(np.clip(image, 0, 255).astype("uint8"))
        if not self.easy and rng.random() < 0.6:
            pixels = pixels.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 1.2))))
        noisy = np.asarray(pixels, "float32")
        channels = 3 if rng.random() < 0.5 else 1
        strength = np.float32(rng.uniform(0, 4 if self.easy else 10) ** 1.0 * rng.random())
        noisy = noisy + strength * rng.standard_normal((h, w, channels), "float32")
        noisy = np.clip(noisy, 0, 255).astype("uint8")
        if not self.easy and rng.random() < 0.35:
            buffer = io.BytesIO()
            Image.fromarray(noisy).save(buffer, "JPEG", quality=int(rng.integers(30, 95)))
            noisy = np.asarray(Image.open(buffer))
        return noisy

    def masks(self):
        """Objects and parts of which enough can be seen, `(M, H0, W0)`."""
        found = []
        whole = np.bincount(self.labels.ravel(), minlength=len(self.areas) + 1)
        part = np.bincount(self.parts.ravel(), minlength=len(self.areas) + 1)
        limit = 0.7 * self.labels.size
        for number, area in self.areas.items():
            for seen, places in ((whole, self.labels), (part, self.parts)):
                if max(SMALLEST, 0.3 * area) <= seen[number] <= limit:
                    found.append(places == number)
        if not found:
            return np.zeros((0, *self.size), "uint8")
        return np.stack(found).astype("uint8")


def _circle(corners=40):
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _turned(points, angle):
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


@functools.cache
def _font():
    return ImageFont.load_default(96)


@functools.cache
def _glyph(letter):
    large = Image.new("L", (160, 160))
    ImageDraw.Draw(large).text(
        (80, 80), letter, fill=255, font=_font(), anchor="mm", stroke_width=4, stroke_fill=255
    )
    return large.crop(large.getbbox())


def _letter(rng, radius):
    glyph = _glyph(_LETTERS[rng.integers(len(_LETTERS))])
    scale = 2.4 * radius * _SCALE / max(glyph.size)
    glyph = glyph.resize([max(4, round(n * scale)) for n in glyph.size], Image.Resampling.BILINEAR)
    glyph = glyph.rotate(rng.uniform(-40, 40), expand=True, resample=Image.Resampling.BILINEAR)
    return glyph.point(lambda v: 255 if v > 127 else 0)


def _stroke(rng, radius):
    """A thick bent line, as an outline."""
    t = np.linspace(0, 1, 20)[:, None]
    a, b, c = rng.uniform(-1.2, 1.2, (3, 2)) * radius
    line = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    ahead = np.gradient(line, axis=0)
    side = ahead[:, ::-1] * (1, -1) / np.maximum(np.hypot(*ahead.T), 1e-6)[:, None]
    thick = max(3.0, radius * rng.uniform(0.12, 0.3))
    return np.concatenate([line + thick * side, (line - thick * side)[::-1]])


def _texture(rng, h, w):
    """A piece of a photograph, float32 `(h, w, 3)`."""
    images = photographs()
    image = images[rng.integers(len(images))]
    zoom = rng.uniform(0.5, 2.0)
    high = min(image.shape[0], max(8, round(h * zoom)))
    wide = min(image.shape[1], max(8, round(w * zoom)))
    top = rng.integers(image.shape[0] - high + 1)
    left = rng.integers(image.shape[1] - wide + 1)
    piece = Image.fromarray(image[top : top + high, left : left + wide]).resize(
        (w, h), Image.Resampling.BILINEAR
    )
    piece = np.asarray(piece, "float32")
    if rng.random() < 0.3:
        piece = 255 - piece
    return piece[:, ::-1] if rng.random() < 0.5 else piece


def _clouds(rng, h, w, cells):
    """Smooth noise `(h, w)` of about unit deviation."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype("float32"))
    return np.asarray(coarse.resize((w, h), Image.Resampling.BICUBIC))


def _relief(rng, h, w):
    """Something embossed: the slope of smooth noise, `(h, w)` of about unit deviation."""
    cells = int(rng.integers(5, 14))
    height = _clouds(rng, h + 2, w + 2, cells)
    slope = height[2:, 2:] - height[:-2, :-2]
    return slope / max(float(slope.std()), 1e-6)


def _pattern(rng, h, w):
    """Stripes, checks or dots, bool `(h, w)`."""
    y, x = np.mgrid[0:h, 0:w].astype("float32")
    turn, pitch = rng.uniform(0, np.pi), rng.uniform(5, 16)
    u = (x * np.cos(turn) + y * np.sin(turn)) / pitch
    v = (y * np.cos(turn) - x * np.sin(turn)) / pitch
    kind = rng.integers(3)
    if kind == 0:
        return np.sin(2 * np.pi * u) > 0
    if kind == 1:
        return (np.floor(u) + np.floor(v)) % 2 > 0
    return np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3
