"""What is said of coordinates that are hardly pixels of the image that was passed. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_sam.notices import notice
from keras_sam.prompts.labels import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, TOP_LEFT

# How far beyond the borders a coordinate is taken for one of another image, as a part of the longer
# side. What lies nearer is a hand that slipped, or the box of a tracker.
_FAR = 0.25
_MEANT = "in pixels of the image as it was passed, not of one of another size, and not row, column"


def tell_of_coordinates(
    points: np.ndarray, labels: np.ndarray, sizes: Sequence[tuple[int, int]]
) -> None:
    """Says once what looks normalised to 0..1, or lies outside its image and far from it.

    Args:
        points: array `(B, P, T, 2)`, x y in pixels of the images.
        labels: int array `(B, P, T)` of the tokens; only points and corners of boxes are looked at.
        sizes: the size `(H0, W0)` of each image.
    """
    for image, (xy, kinds, size) in enumerate(zip(points, labels, sizes, strict=True)):
        where = f"image {image}, {size[1]} pixels wide and {size[0]} high"
        has_parts = min(size) > 1  # of a picture that is a line of pixels, any may be meant
        clicks = xy[(kinds == BACKGROUND) | (kinds == FOREGROUND)]
        # A click into the corner pixel has whole coordinates.
        fractions = has_parts and (clicks % 1).any()
        if len(clicks) and not _tell_if_normalised("points", clicks, fractions, where):
            _tell_if_far("points", clicks, size, where)
        corners = xy[kinds >= TOP_LEFT]
        # A box without an extent is a detector's padding, or a click.
        extent = has_parts and len(corners) and np.ptp(corners, axis=0).any()
        if len(corners) and not _tell_if_normalised("boxes", corners, extent, where):
            outside = _boxes_outside(xy, kinds, size)
            if len(outside):
                notice(
                    f"`boxes` lie entirely outside {where}, so that their masks mean nothing. "
                    f"Received: {_first(outside)}. They must be x1, y1, x2, y2 {_MEANT}.",
                    "boxes outside",
                )
            else:
                _tell_if_far("boxes", corners, size, where)


def _tell_if_normalised(name: str, xy: np.ndarray, is_likely: bool, where: str) -> bool:
    if not is_likely or xy.min() < 0 or xy.max() > 1:
        return False
    notice(
        f"`{name}` lie within 0..1 in {where}, like parts of its sides, but they are pixels. "
        f"Received: {_first(xy)}. Multiply x by the image's width and y by its height.",
        f"normalised {name}",
    )
    return True


def _tell_if_far(name: str, xy: np.ndarray, size: tuple[int, int], where: str) -> None:
    far = np.maximum(-xy, xy - size[::-1]).max(axis=-1) > _FAR * max(size)
    if far.any():
        notice(
            f"`{name}` lie far outside {where}. Received: {_first(xy[far])}. They must be x, y "
            f"{_MEANT}.",
            f"far {name}",
        )


def _boxes_outside(xy: np.ndarray, kinds: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The boxes `(N, 4)` that have nothing in common with the image."""
    first, last = xy[kinds == TOP_LEFT], xy[kinds == BOTTOM_RIGHT]
    if len(first) != len(last):  # corners that were passed as points, without their partners
        return np.zeros((0, 4))
    boxes = np.concatenate([first, last], axis=-1)
    return boxes[((first > size[::-1]) | (last < 0)).any(axis=-1)]


def _first(rows: np.ndarray) -> str:
    more = ", ..." if len(rows) > 2 else ""
    return f"{', '.join(str(row) for row in rows[:2].tolist())}{more}"
