"""Drawn scenes with known objects: flat shapes in the cells of a grid, some with a part inside."""

import numpy as np
from PIL import Image, ImageDraw

_SCALE = 4  # shapes are drawn so much larger and scaled down: smooth edges


def scene(size, cells, seed, filled=0.9, parts=0.4, noise=6.0):
    """Draws shapes in the cells of a grid, some with a part of another colour inside.

    Args:
        size: pair of ints, `(H0, W0)`.
        cells: pair of ints, rows and columns of the grid.
        seed: int, or sequence of ints.
        filled: float. Chance of a cell to hold a shape.
        parts: float. Chance of a shape to have a part inside.
        noise: float. Standard deviation of the pixels' noise, grey levels.

    Returns:
        uint8 image `(H0, W0, 3)`, and bool masks `(M, H0, W0)` of shapes and parts.
    """
    rng = np.random.default_rng(seed)
    (h, w), (rows, columns) = size, cells
    background = rng.uniform(0, 255, 3)
    image = Image.new("RGB", (w * _SCALE, h * _SCALE), tuple(background.astype(int)))
    brush = ImageDraw.Draw(image)
    labels = [Image.new("L", (w, h)) for _ in range(2)]  # of shapes, and of parts
    count = 0
    cell = np.array([w / columns, h / rows])
    for place in np.ndindex(rows, columns):
        if rng.random() > filled:
            continue
        radii = cell * rng.uniform(0.25, 0.46, 2)
        centre = (np.array(place[::-1]) + 0.5) * cell + rng.uniform(-1, 1, 2) * (cell / 2 - radii)
        outline = _outline(rng, centre, radii)
        colour = _colour(rng, background)
        outlines = [(outline, colour)]
        if rng.random() < parts and min(radii) > 7:
            inner = centre + (outline - centre) * rng.uniform(0.4, 0.6)
            outlines.append((inner, _colour(rng, colour)))
        for (points, fill), of_kind in zip(outlines, labels, strict=False):
            count += 1
            brush.polygon([tuple(p) for p in points * _SCALE], fill=tuple(fill.astype(int)))
            ImageDraw.Draw(of_kind).polygon([tuple(p) for p in points - 0.5], fill=count)
    pixels = np.asarray(image.resize((w, h), Image.Resampling.BOX), "float32")
    pixels = pixels + noise * rng.standard_normal(pixels.shape)
    shapes, inner = (np.asarray(of_kind) for of_kind in labels)
    numbers = np.arange(1, count + 1)[:, None, None]
    masks = (shapes == numbers) | (inner == numbers)
    return np.clip(pixels, 0, 255).astype("uint8"), masks


def _outline(rng, centre, radii):
    corners = rng.choice([3, 4, 5, 40])  # the last is an ellipse
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * (2 * np.pi / corners)
    return centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _colour(rng, other):
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.linalg.norm(colour - other) > 90:
            return colour
