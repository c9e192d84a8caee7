"""Drawn scenes that are closer to photographs than those of `demo_scenes`.

A room or a landscape with things of every size in it: floor, walls, sky; things out of focus
behind; a few large things made of parts, which have parts of their own; small and thin ones in
front. Their materials have texture at several scales, spots and stripes that are not objects,
shading from one light, highlights and soft shadows. Everything depends on the seed alone.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools import demo_scenes

SIDE = 512  # the longest of a scene, pixels
SMALLEST = 400  # pixels of the smallest object that is asked for
LARGEST = 0.75  # of the scene, the largest
_SCALE = 2  # outlines are drawn so much larger and scaled down: smooth edges
_NUM_CLOUDS = 24


def composition(seed):
    """One scene.

    Args:
        seed: int, or sequence of ints.

    Returns:
        uint8 image `(H0, W0, 3)`, sides up to `SIDE`, and uint8 masks `(M, H0, W0)`: what can be
        seen of every object, of its parts and of theirs, and of the ground and the walls.
    """
    rng = np.random.default_rng(seed)
    while True:
        drawn = _Composition(rng)
        masks = drawn.masks()
        if len(masks):
            return drawn.developed(), masks


@functools.cache
def _clouds():
    """Noise with the spectrum of natural images, float32 `(n, 768, 768)` of unit deviation."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(768), np.fft.rfftfreq(768), indexing="ij"))
    frequency[0, 0] = np.inf
    found = []
    for power in np.linspace(0.6, 1.8, _NUM_CLOUDS):
        noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((768, 768))) / frequency**power)
        found.append((noise / noise.std()).astype("float32"))
    return found


class _Composition:
    def __init__(self, rng):
        self.rng = rng
        shapes = [(512, 512), (512, 384), (384, 512), (342, 512), (288, 512)]
        self.size = shapes[rng.choice(5, p=(0.3, 0.15, 0.2, 0.25, 0.1))]
        self.canvas = np.zeros((*self.size, 3), "float32")
        # Which object, which part of it and which part of that is on top.
        self.levels = np.zeros((3, *self.size), "int32")
        self.areas = [(0, 0)]  # of each number: its level and its area before anything covered it
        self.light = rng.uniform(0, 2 * np.pi)
        self.dark = rng.uniform(0.15, 0.65)  # of shadows
        self.muted = rng.uniform(0.1, 1.0)  # how colourful things are
        self._draw_surroundings()
        self._scatter(rng.integers(0, 14), (0.03, 0.2), parts=0.4)
        if rng.random() < 0.6:
            blurred = ImageFilter.GaussianBlur(float(rng.uniform(0.5, 4.0)))
            self.canvas = _filtered(self.canvas, blurred)
        self._scatter(rng.integers(1, 6), (0.14, 0.5), parts=0.9)
        self._scatter(rng.integers(0, 10), (0.03, 0.14), parts=0.4)
        if rng.random() < 0.35:
            self._draw_row()

    # --- what lies where ---

    def _draw_surroundings(self):
        """Floor, walls and sky: regions between lines across the whole scene."""
        rng, (h, w) = self.rng, self.size
        y, x = np.mgrid[0:h, 0:w].astype("float32")
        self._paint(np.ones((h, w), "float32"), (0, 0), self._material())
        for _ in range(rng.choice(4, p=(0.2, 0.4, 0.25, 0.15))):
            turn = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)], p=(0.5, 0.2, 0.3))
            turn += rng.normal(0, 0.06)
            along = (x - rng.uniform(0.15, 0.85) * w) * np.sin(turn)
            across = along + (y - rng.uniform(0.25, 0.75) * h) * np.cos(turn)
            if rng.random() < 0.3:
                across += rng.uniform(2, 25) * _window(rng, h, w, rough=False)
            self._paint(np.clip(across + 0.5, 0, 1), (0, 0), self._material())
        if rng.random() < 0.3:  # seams between tiles, planks, bricks
            pitch, wide = rng.uniform(25, 140, 2), rng.uniform(0.6, 2.5)
            shear = rng.uniform(-0.6, 0.6)
            seams = (x + shear * y) % pitch[0] < wide
            if rng.random() < 0.7:
                seams |= y % pitch[1] < wide
            self.canvas[seams] *= rng.uniform(0.5, 0.95)

    def _scatter(self, count, sizes, parts):
        for _ in range(count):
            radius = np.exp(self.rng.uniform(*np.log(sizes))) * SIDE
            centre = self.rng.uniform(-0.05, 1.05, 2) * self.size[::-1]
            self._add(self._outline(radius), centre, radius, self._material(), parts)

    def _draw_row(self):
        """Things of one sort beside or behind each other: cups, books, windows, fruit."""
        rng, (h, w) = self.rng, self.size
        radius = np.exp(rng.uniform(np.log(14), np.log(60)))
        outline, material = self._outline(radius), self._material()
        start, step = rng.uniform(0.1, 0.6, 2) * (w, h), rng.normal(0, 1, 2)
        step *= radius * rng.uniform(1.5, 2.6) / np.hypot(*step)
        for i in range(rng.integers(3, 9)):
            near = {**material, "seed": rng.integers(2**31)}
            near["tone"] = material["tone"] + rng.normal(0, rng.choice([4, 25]), 3)
            jitter = outline * rng.uniform(0.85, 1.15)
            self._add(jitter, start + i * step, radius, near, 0.2)

    # --- one object ---

    def _add(self, outline, centre, radius, material, parts):
        placed = self._rasterized(outline + centre)
        if placed is None:
            return
        if self.rng.random() < 0.6:
            self._shadow(*placed, radius)
        number = self._paint(*placed, material)
        if radius > 18 and self.rng.random() < parts:
            self._divide(outline, centre, radius, material, number, 1)

    def _divide(self, outline, centre, radius, material, number, level):
        """Parts of a thing: panels, ends, bands, knobs, windows in a row; and parts of these."""
        rng = self.rng
        for _ in range(rng.integers(1, 6)):
            kind = rng.choice(["panel", "end", "band", "knob", "row", "any"])
            at, size, inner = centre, radius, None
            turn = rng.uniform(0, 2 * np.pi)
            if kind == "panel":
                size = radius * rng.uniform(0.4, 0.85)
                at = centre + rng.uniform(-0.15, 0.15, 2) * radius
                inner = outline * size / radius
            elif kind == "end":
                off = rng.uniform(0.1, 0.7)
                inner = _turned(np.array([[off, -3], [3, -3], [3, 3], [off, 3]]) * radius, turn)
            elif kind == "band":
                off, wide = rng.uniform(-0.6, 0.5), rng.uniform(0.08, 0.35)
                band = np.array([[off, -3], [off + wide, -3], [off + wide, 3], [off, 3]])
                inner = _turned(band * radius, turn)
            elif kind == "knob":
                size = radius * rng.uniform(0.1, 0.35)
                at = centre + rng.uniform(-0.7, 0.7, 2) * radius
                inner = demo_scenes._circle() * size * (1, rng.uniform(0.5, 1.0))
            else:
                size = radius * rng.uniform(0.15, 0.5)
                at = centre + rng.uniform(-0.6, 0.6, 2) * radius
                inner = self._outline(size)
            look = self._material()
            if rng.random() < 0.35:  # of the same stuff, told apart by a seam and its shading
                look = {**material, "tone": material["tone"] * rng.uniform(0.6, 1.35), "bevel": 0.9}
            copies = rng.integers(2, 5) if kind == "row" else 1
            step = _turned(np.array([[size * rng.uniform(1.6, 2.6), 0.0]]), turn)[0]
            for copy in range(copies):
                placed = self._rasterized(inner + at + copy * step)
                if placed is None:
                    continue
                made = self._paint(*placed, look, within=(number, level))
                if level == 1 and size > 30 and rng.random() < 0.35:
                    self._divide(inner, at + copy * step, size, look, made, 2)

    def _rasterized(self, points):
        """Coverage 0..1 of the pixels in and around an outline, and the corner they start from."""
        h, w = self.size
        low = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
        high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, (w, h))
        wide = high - low
        if (wide < 3).any():
            return None
        large = Image.new("L", tuple(int(n) for n in wide * _SCALE))
        ImageDraw.Draw(large).polygon([tuple(p) for p in (points - low) * _SCALE], fill=255)
        return np.asarray(large.reduce(_SCALE), "float32") / 255, (low[1], low[0])

    def _paint(self, alpha, corner, material, within=None):
        """Lays a material over the canvas: a new object, or a part of the number `within`."""
        (y, x), (h, w) = corner, alpha.shape
        window = np.s_[y : y + h, x : x + w]
        levels = self.levels[:, y : y + h, x : x + w]
        level = 0
        if within is not None:
            number, level = within
            alpha = alpha * (levels[level - 1] == number)
        inside = alpha > 0.5
        number = len(self.areas)
        self.areas.append((level, np.count_nonzero(inside)))
        if not inside.any():
            return number
        under = self.canvas[window]
        fill = self._fill(alpha, material)
        # What looks just as what lies below it cannot be told from it by anyone.
        gap = fill[inside].mean(axis=0) - under[inside].mean(axis=0)
        if np.abs(gap).mean() < material["contrast"]:
            fill += np.where(fill[inside].mean() < 110, 1.0, -1.0) * material["contrast"]
        under += alpha[..., None] * (fill - under)
        levels[level][inside] = number
        levels[level + 1 :][:, inside] = 0
        return number

    def _shadow(self, alpha, corner, radius):
        rng = self.rng
        length = rng.uniform(0.02, 0.35) * radius
        offset = np.round(length * -np.array([np.sin(self.light), np.cos(self.light)])).astype(int)
        soft = max(1, int(rng.uniform(0.03, 0.3) * radius))
        padded = Image.fromarray(np.uint8(255 * np.pad(alpha, soft)))
        dark = np.asarray(padded.filter(ImageFilter.BoxBlur(soft / 2)), "float32") / 255
        (y, x), (h, w) = np.array(corner) + offset - soft, dark.shape
        y0, x0 = max(y, 0), max(x, 0)
        y1, x1 = min(y + h, self.size[0]), min(x + w, self.size[1])
        if y1 > y0 and x1 > x0:
            dark = dark[y0 - y : y1 - y, x0 - x : x1 - x, None]
            self.canvas[y0:y1, x0:x1] *= 1 - self.dark * dark

    # --- shapes ---

    def _outline(self, radius):
        """A closed outline `(N, 2)` around the origin."""
        rng = self.rng
        kind = rng.choice(["blob", "box", "disk", "polygon", "limbs", "thin", "trapezoid"])
        stretch = radius * np.array([1.0, rng.uniform(0.35, 1.0)])
        turn = rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else rng.choice(4) * np.pi / 2
        if kind in ("blob", "limbs"):
            angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
            rough = 0.35 if kind == "blob" else 0.8
            waves = [
                rng.normal(0, rough / n) * np.cos(n * angle + rng.uniform(0, 6.3))
                for n in range(2, 12)
            ]
            points = demo_scenes._circle(96) * np.clip(1 + sum(waves), 0.25, 1.7)[:, None] / 1.2
        elif kind == "box":
            circle, power = demo_scenes._circle(96), rng.choice([0.03, 0.1, 0.25, 0.5])
            points = np.sign(circle) * np.abs(circle) ** power
        elif kind == "disk":
            points = demo_scenes._circle(64)
        elif kind == "polygon":
            points = demo_scenes._circle(9)[np.sort(rng.choice(9, rng.integers(4, 9), False))]
        elif kind == "thin":
            return demo_scenes._stroke(rng, radius * rng.uniform(1, 2.5))
        else:
            top = rng.uniform(0.4, 1.0)
            points = np.array([[-1, 1], [-top, -1], [top, -1], [1, 1]])
            points = points + rng.uniform(-0.15, 0.15, (4, 2))
        return _turned(points * stretch, turn + rng.normal(0, 0.15))

    # --- looks ---

    def _material(self):
        rng = self.rng
        grey, hue = rng.uniform(8, 245), rng.normal(0, 1, 3)
        tone = grey + (hue - hue.mean()) * self.muted * rng.uniform(5, 80)
        return {
            "tone": np.clip(tone, 0, 255),
            "texture": rng.choice(
                ["even", "noise", "photograph", "pattern"], p=(0.3, 0.4, 0.2, 0.1)
            ),
            "strength": np.exp(rng.uniform(np.log(2), np.log(40))),
            "spots": rng.uniform(15, 110) if rng.random() < 0.15 else 0.0,
            "slope": rng.uniform(0, 0.5) if rng.random() < 0.6 else 0.0,
            "bevel": rng.uniform(0.1, 1.2) if rng.random() < 0.6 else 0.0,
            "gloss": rng.uniform(30, 160) if rng.random() < 0.2 else 0.0,
            "contrast": rng.uniform(8, 35),
            "seed": rng.integers(2**31),
        }

    def _fill(self, alpha, material):
        """Colours `(h, w, 3)` of a window."""
        rng = np.random.default_rng(material["seed"])
        h, w = alpha.shape
        grain = np.zeros((h, w), "float32")
        fill = np.broadcast_to(np.float32(material["tone"]), (h, w, 3)).copy()
        if material["texture"] == "noise":
            grain = material["strength"] * _window(rng, h, w)
        elif material["texture"] == "photograph":
            piece = demo_scenes._texture(rng, h, w)
            piece -= piece.mean(axis=(0, 1))
            fill += piece * material["strength"] / max(piece.std(), 1.0)
        elif material["texture"] == "pattern":
            grain = material["strength"] * (demo_scenes._pattern(rng, h, w) - 0.5).astype("float32")
        if material["spots"]:
            grain += material["spots"] * (_window(rng, h, w, rough=False) > rng.uniform(-0.5, 1.5))
        fill += grain[..., None]
        y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j].astype("float32")
        towards = np.float32([np.cos(self.light), np.sin(self.light)])
        shade = 1 + material["slope"] * (x * towards[0] + y * towards[1])
        if material["bevel"] and min(h, w) > 8:
            soft = max(1.5, min(h, w) * rng.uniform(0.04, 0.25))
            height = _filtered(alpha, ImageFilter.BoxBlur(soft))
            slope_y, slope_x = np.gradient(height)
            lit = -(slope_x * towards[0] + slope_y * towards[1]) * soft
            shade = shade + material["bevel"] * lit + 0.25 * material["bevel"] * (height - 1)
        fill *= shade[..., None]
        if material["gloss"]:
            spread = rng.uniform(0.02, 0.2)
            distance = (x - 0.45 * towards[0]) ** 2 + (y - 0.45 * towards[1]) ** 2
            fill += (material["gloss"] * np.exp(-distance / spread))[..., None]
        return np.clip(fill, 0, 300)

    def developed(self):
        """The scene as a camera would give it: light, tone, blur, noise, JPEG."""
        rng, (h, w) = self.rng, self.size
        image = np.clip(self.canvas, 0, 280)
        if rng.random() < 0.6:
            image *= (1 + rng.uniform(0, 0.25) * _window(rng, h, w, rough=False))[..., None]
        image = 255 * (np.clip(image, 0, 255) / 255) ** rng.uniform(0.6, 1.6)
        image *= 1 + rng.uniform(0, 0.12) * rng.standard_normal(3)
        if rng.random() < 0.1:
            image = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
        if rng.random() < 0.6:
            image = _filtered(image, ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.3))))
        noise = rng.standard_normal((h, w, rng.choice([1, 3])), "float32")
        image = np.clip(image + rng.uniform(0, 7) * noise, 0, 255).astype("uint8")
        if rng.random() < 0.5:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=int(rng.integers(40, 96)))
            image = np.asarray(Image.open(buffer))
        return image

    def masks(self):
        """What can be seen of objects, parts and theirs, of which enough is left."""
        found, limit = [], LARGEST * self.levels[0].size
        counts = [np.bincount(level.ravel(), minlength=len(self.areas)) for level in self.levels]
        for number, (level, area) in enumerate(self.areas):
            if number and max(SMALLEST, 0.25 * area) <= counts[level][number] <= limit:
                found.append(self.levels[level] == number)
        if not found:
            return np.zeros((0, *self.size), "uint8")
        return np.stack(found).astype("uint8")


def _turned(points, angle):
    return demo_scenes._turned(points, angle)


def _filtered(image, kernel):
    """An image 0..255, or one channel 0..1, filtered by pillow."""
    if image.ndim == 2:
        return np.asarray(Image.fromarray(np.uint8(255 * image)).filter(kernel), "float32") / 255
    filtered = Image.fromarray(np.clip(image, 0, 255).astype("uint8")).filter(kernel)
    return np.asarray(filtered, "float32")


def _window(rng, h, w, rough=True):
    """Noise `(h, w)` of about unit deviation: of all scales, or smooth."""
    clouds = _clouds()
    rank = rng.integers(len(clouds)) if rough else rng.integers(len(clouds) - 4, len(clouds))
    zoom_y, zoom_x = np.exp(rng.uniform(np.log(0.3), np.log(1.3), 2))
    high, wide = min(768, max(4, round(h * zoom_y))), min(768, max(4, round(w * zoom_x)))
    top, left = rng.integers(768 - high + 1), rng.integers(768 - wide + 1)
    piece = Image.fromarray(clouds[rank][top : top + high, left : left + wide])
    return np.asarray(piece.resize((w, h), Image.Resampling.BILINEAR))
