"""Drawing on a photograph: colours, tints, outlines, boxes, marks and text.

Every `paint` function draws on a uint8 `(H0, W0, 3)` array in place, clips at its borders, and
does not check its arguments: `visualization` has done so.
"""

import dataclasses
import functools
import math
import statistics

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from keras_sam.masks import mask_to_box

LIGHT = (255, 255, 255)
DARK = (17, 19, 26)
FOREGROUND = (38, 203, 72)
BACKGROUND = (240, 52, 60)


def mask_colors(count: int) -> np.ndarray:
    """Colours that differ as much as they can, on dark and on bright photographs.

    Args:
        count: int. How many. After 256 they repeat.

    Returns:
        uint8 array `(count, 3)`, RGB. A smaller `count` gives the first of these colours.
    """
    palette = _palette()
    return palette[np.arange(count) % len(palette)]


@functools.lru_cache(maxsize=1)
def _palette(count=256):
    """Picks colours that are neither pale nor dark, each the farthest from all before it."""
    levels = np.arange(0, 256, 15)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(colors)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    keep = (lab[:, 0] > 0.62) & (lab[:, 0] < 0.85) & (chroma > 0.14) & (chroma < 0.2)
    colors, lab = colors[keep], lab[keep]
    chosen = [np.array([30, 144, 255])]  # the blue of masks in Meta's notebooks
    distance = np.linalg.norm(lab - _oklab(chosen[0]), axis=1)
    while len(chosen) < count:
        farthest = int(distance.argmax())
        chosen.append(colors[farthest])
        distance = np.minimum(distance, np.linalg.norm(lab - lab[farthest], axis=1))
    palette = np.stack(chosen).astype("uint8")
    palette.setflags(write=False)
    return palette


def _oklab(rgb):
    """sRGB 0..255 to Oklab, https://bottosson.github.io/posts/oklab."""
    rgb = np.asarray(rgb, "float64") / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


@dataclasses.dataclass(frozen=True)
class Patch:
    """A bool mask `(h, w)` cut down to the box around its pixels, and that box's place."""

    mask: np.ndarray
    top: int
    left: int

    @classmethod
    def of(cls, mask: np.ndarray) -> "Patch":
        """Cuts a full-size bool mask `(H0, W0)` down to its pixels."""
        x1, y1, x2, y2 = mask_to_box(mask, inclusive=False).tolist()
        return cls(mask[y1:y2, x1:x2].copy(), y1, x1)

    @functools.cached_property
    def area(self) -> int:
        return int(np.count_nonzero(self.mask))

    @functools.cached_property
    def thickness(self) -> float:
        """Twice the area divided by the edge length: a strip's width, a disc's radius. Pixels."""
        picture = Image.fromarray(np.pad(self.mask, 1).astype("uint8"))
        inner = np.asarray(picture.filter(ImageFilter.MinFilter(3)))
        return 2 * self.area / max(self.area - int(np.count_nonzero(inner)), 1)

    @property
    def crown(self) -> tuple[float, int]:
        """x y of the middle of the topmost row of pixels, in pixels of the photograph."""
        return self.left + float(np.flatnonzero(self.mask[0]).mean()), self.top


def paint_mask(canvas: np.ndarray, patch: Patch, color, alpha: float, line_width: float) -> None:
    """Tints a mask's pixels, and outlines it unless `line_width` is 0."""
    if not patch.area:
        return
    height, width = patch.mask.shape
    inside = canvas[patch.top : patch.top + height, patch.left : patch.left + width]
    _blend(inside, patch.mask * np.float32(alpha), color)
    if line_width:
        _outline(canvas, patch, color, line_width)


def _outline(canvas, patch, color, line_width):
    """Draws a dark edge outside the mask, a light one inside it, and the colour within that.

    On any background at least one of the two edges stands out.
    """
    # Outlines of full width would hide small and thin masks.
    line_width = min(line_width, max(0.75, patch.thickness / 8))
    margin = math.ceil(2 * line_width) + 2
    height, width = patch.mask.shape
    top, left = max(patch.top - margin, 0), max(patch.left - margin, 0)
    view = canvas[top : patch.top + height + margin, left : patch.left + width + margin]
    mask = np.zeros(view.shape[:2], bool)
    row, column = patch.top - top, patch.left - left
    mask[row : row + height, column : column + width] = patch.mask
    distance = _signed_distance(mask, line_width)
    _blend(view, 0.8 * _band(distance, -0.8 * line_width, 0), DARK)
    _blend(view, _band(distance, line_width, 2 * line_width), color)
    _blend(view, _band(distance, 0, line_width), LIGHT)


def _signed_distance(mask, line_width):
    """Pixels to the mask's edge, positive inside, exact enough within two lines of the edge.

    A blurred step edge is the normal distribution's integral over the distance, so its inverse is
    the distance, to a fraction of a pixel, which makes the lines smooth.
    """
    picture = Image.fromarray(mask.astype("uint8") * 255)
    # Blurring erases what is one or two pixels thin, so that is thickened first.
    opened = picture.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.MaxFilter(3))
    thin = mask & (np.asarray(opened) == 0)
    thick = np.asarray(Image.fromarray(thin.astype("uint8") * 255).filter(ImageFilter.MaxFilter(3)))
    # Replicated borders, so that no outline runs along the photograph's border.
    margin = math.ceil(4 * line_width)
    field = np.pad(np.maximum(np.asarray(picture), thick), margin, mode="edge")
    blurred = np.asarray(Image.fromarray(field).filter(ImageFilter.GaussianBlur(line_width)))
    return (line_width * _inverse_normal())[blurred[margin:-margin, margin:-margin]]


@functools.lru_cache(maxsize=1)
def _inverse_normal():
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf((level + 0.5) / 256) for level in range(256)], "float32")


def _band(distance, low, high):
    """How much of each pixel lies between two distances, 0..1."""
    return np.clip(np.minimum(distance - low, high - distance) + 0.5, 0, 1)


def _blend(view, coverage, color):
    """Mixes a colour into a view of the canvas; `coverage` is (h, w) in 0..1."""
    weight = np.asarray(coverage, "float32")[..., None]  # (h, w, 1)
    mixed = view + (np.asarray(color, "float32") - view) * weight  # (h, w, 3)
    view[:] = np.rint(mixed).astype("uint8")


def paint_box(canvas: np.ndarray, box: np.ndarray, color, line_width: float) -> None:
    """Draws a box, x1 y1 x2 y2 in pixels, with a dark edge on both sides of the line."""
    line = max(1, round(1.5 * line_width))
    edge = max(1, round(0.5 * line_width))
    x1, y1, x2, y2 = (math.floor(value) for value in box)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    reach = edge + line // 2
    outer = (x1 - reach, y1 - reach, x2 + reach, y2 + reach)
    draw.rectangle(outer, outline=DARK, width=line + 2 * edge)
    inner = tuple(value + step * edge for value, step in zip(outer, (1, 1, -1, -1), strict=True))
    draw.rectangle(inner, outline=tuple(int(value) for value in color), width=line)
    canvas[:] = np.asarray(picture)


def paint_star(canvas: np.ndarray, x: float, y: float, line_width: float) -> None:
    """Draws the green star of a foreground point."""
    radius = 6 * line_width
    angles = np.arange(10) * math.pi / 5 - math.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, radius, 0.48 * radius)
    corners = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)  # (10, 2)
    distance = functools.partial(_polygon_distance, corners)
    _paint_mark(canvas, (x, y), 1.2 * radius, distance, FOREGROUND, line_width)


def paint_disc(canvas: np.ndarray, x: float, y: float, line_width: float) -> None:
    """Draws the red disc of a background point."""
    radius = 4 * line_width

    def distance(rows, columns):
        return radius - np.hypot(rows - y, columns - x)

    _paint_mark(canvas, (x, y), radius, distance, BACKGROUND, line_width)


def _paint_mark(canvas, center, reach, distance, color, line_width):
    """Fills a shape, given as a function to its signed distance, and edges it light and dark."""
    reach = reach + 2 * line_width + 1
    (x, y), (height, width) = center, canvas.shape[:2]
    if not (-reach < x < width + reach and -reach < y < height + reach):
        return
    rows = np.arange(max(math.floor(y - reach), 0), min(math.ceil(y + reach) + 1, height))
    columns = np.arange(max(math.floor(x - reach), 0), min(math.ceil(x + reach) + 1, width))
    if not rows.size or not columns.size:
        return
    view = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    field = distance(rows[:, None].astype("float64"), columns[None, :].astype("float64"))
    _blend(view, 0.8 * _band(field, -1.7 * line_width, math.inf), DARK)
    _blend(view, _band(field, -line_width, math.inf), LIGHT)
    _blend(view, _band(field, 0, math.inf), color)


def _polygon_distance(corners, rows, columns):
    """Pixels to the edge of a closed polygon, positive inside."""
    nearest = np.full(np.broadcast_shapes(rows.shape, columns.shape), np.inf)
    inside = np.zeros(nearest.shape, bool)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        dx, dy = x2 - x1, y2 - y1
        along = ((columns - x1) * dx + (rows - y1) * dy) / (dx * dx + dy * dy)
        along = np.clip(along, 0, 1)
        nearest = np.minimum(nearest, np.hypot(columns - x1 - along * dx, rows - y1 - along * dy))
        if dy:
            inside ^= ((rows >= y1) != (rows >= y2)) & (columns < x1 + (rows - y1) * dx / dy)
    return np.where(inside, nearest, -nearest)


def paint_text(
    canvas: np.ndarray, text: str, anchor, color, line_width: float, taken: list
) -> None:
    """Writes a short text on a plate of the mask's colour.

    The plate sits above `anchor`, x y in pixels, unless that is outside of the photograph or on a
    plate in `taken`, to which it is added.
    """
    font = ImageFont.load_default(size=max(12, round(9 * line_width)))
    left, top, right, bottom = font.getbbox(text)
    pad = max(2, round(2.5 * line_width))
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = int(np.clip(anchor[0] - width // 2, 0, max(canvas.shape[1] - width, 0)))
    y = int(np.clip(anchor[1] - height - pad, 0, max(canvas.shape[0] - height, 0)))
    for x1, y1, x2, y2 in sorted(taken, key=lambda plate: plate[1]):
        overlaps = x < x2 and x1 < x + width and y < y2 and y1 < y + height
        if overlaps and y2 + height < canvas.shape[0]:
            y = y2 + 1
    taken.append((x, y, x + width, y + height))
    color = tuple(int(value) for value in color)
    luminance = np.dot(color, (0.299, 0.587, 0.114))
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    plate = (x, y, x + width - 1, y + height - 1)
    edge = max(1, round(line_width / 2))
    draw.rounded_rectangle(plate, pad, fill=color, outline=DARK, width=edge)
    ink = DARK if luminance > 110 else LIGHT
    draw.text((x + pad - left, y + pad - top), text, fill=ink, font=font)
    canvas[:] = np.asarray(picture)
