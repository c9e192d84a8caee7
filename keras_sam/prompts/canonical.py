"""`Prompts`, the canonical form: sliced, taken to the model frame, padded to few shapes.

Numpy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from keras_sam.geometry import ResizePlan
from keras_sam.notices import notice
from keras_sam.prompts.labels import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, PADDING, TOP_LEFT
from keras_sam.prompts.mask_logits import binary_to_logits
from keras_sam.prompts.nested import next_power_of_two, not_finite

# What the model takes; people pass `nested.KEYS`. `mask_given` tells the two apart.
CANONICAL_KEYS = ("points", "labels", "masks", "mask_given")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of a batch of images, read and checked.

    `keras_sam.prompts.read` makes them in pixels of the original images; `to_model` takes them
    to the model frame.

    Args:
        points: array `(B, P, T, 2)`, x and y of each token; float32 in the model frame.
        labels: int32 array `(B, P, T)`: -10 padding, -1 not-a-point, 0 background, 1 foreground,
            2 and 3 a box's top-left and bottom-right corner.
        masks: in the model frame float32 logits `(B, P, Lh, Lw, 1)`, before that an object
            array `(B, P)` of logits `(h, w)` or None; `(B, 0, ...)` when no prompt has a mask.
        mask_given: bool array `(B, P)`, or `(B, 0)` when no prompt has a mask.
        num_prompts: int32 array `(B,)`. Prompt sets of each image before its padding.
        num_passed: int32 array `(B,)`. Prompt sets of each image as they came: those at its end
            without any prompt are padding.
        single_object: bool. Whether every prompt came in the form without the axis `P`:
            `points (B, N, 2)`, `boxes (B, 1, 2, 2)`, `masks (B, 1, h, w, 1)`.
    """

    points: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    mask_given: np.ndarray
    num_prompts: np.ndarray
    num_passed: np.ndarray
    single_object: bool

    @property
    def num_sets(self) -> int:
        """`P`, the prompt sets of the image that has most."""
        return self.labels.shape[1]

    @property
    def lone_click(self) -> np.ndarray:
        """Where a prompt set is one click and nothing else, which is ambiguous: bool `(B, P)`."""
        clicks = np.isin(self.labels, (BACKGROUND, FOREGROUND)).sum(axis=-1)
        lone = (clicks == 1) & ~(self.labels >= TOP_LEFT).any(axis=-1)
        return lone & ~self.mask_given if self.mask_given.shape[1] else lone

    def __getitem__(self, images: slice | np.ndarray) -> Prompts:
        """The prompts of some images, as if they had been passed without the others."""
        num_passed = self.num_passed[images]
        sets = num_passed.max(initial=0)
        labels = self.labels[images, :sets]
        used = np.flatnonzero((labels != PADDING).any(axis=(0, 1)))
        tokens = used[-1] + 1 if used.size else 0
        given = self.mask_given[images, :sets]
        mask_sets = sets if given.any() else 0
        return Prompts(
            self.points[images, :sets, :tokens],
            labels[..., :tokens],
            self.masks[images, :mask_sets],
            given[:, :mask_sets],
            self.num_prompts[images],
            num_passed,
            self.single_object,
        )

    def to_model(self, plans: Sequence[ResizePlan], mask_size: tuple[int, int]) -> Prompts:
        """These prompts in the model frame, by the `ResizePlan` of each image.

        What is hardly in pixels of these images is told.
        Masks of `mask_size` are used as they are, those of the original image's size are scaled.
        """
        with np.errstate(over="ignore"):
            points = np.stack(
                [plan.to_model(xy) for plan, xy in zip(plans, self.points, strict=True)]
            )
        wrong = ~np.isfinite(points)
        if wrong.any():
            of_box = self.labels[wrong.any(axis=-1)].max() >= TOP_LEFT
            raise not_finite("boxes" if of_box else "points", points[wrong][0])
        _tell_of_coordinates(self.points, self.labels, [plan.original_size for plan in plans])
        mask_size = tuple(int(n) for n in mask_size)
        masks = np.zeros((*self.mask_given.shape, *mask_size, 1), "float32")
        for i, p in np.argwhere(self.mask_given):
            mask, plan = self.masks[i, p], plans[i]
            if mask.shape not in (mask_size, plan.original_size):
                raise ValueError(
                    f"`masks` must have the size of the model's mask frame {mask_size} or of the "
                    f"image itself, {plan.original_size}. Received: {mask.shape} for image {i}."
                )
            if mask.dtype == bool:
                masks[i, p] = binary_to_logits(mask, plan, mask_size)
            else:
                is_made = mask.shape == mask_size
                masks[i, p, ..., 0] = mask if is_made else plan.masks_to_model(mask, mask_size)
        return dataclasses.replace(self, points=points, masks=masks)

    def arrays(self) -> dict[str, np.ndarray]:
        """The four arrays of the canonical form by name, `CANONICAL_KEYS`."""
        return {name: getattr(self, name) for name in CANONICAL_KEYS}


# --- few shapes: prompt sets in chunks, padded to lengths for which a program is compiled once ---


def chunks(prompts: Prompts, size: int, pad_sets: bool) -> Iterator[tuple[slice, Prompts]]:
    """Where chunks of at most `size` prompt sets are, and the chunks, padded to few shapes.

    Tokens are always padded, prompt sets only with `pad_sets`.
    """
    for start, stop, padded in split_into_buckets(prompts.num_sets, size, pad_sets):
        sets = slice(start, stop)
        chunk = dataclasses.replace(
            prompts,
            points=prompts.points[:, sets],
            labels=prompts.labels[:, sets],
            masks=prompts.masks[:, sets],
            mask_given=prompts.mask_given[:, sets],
        )
        yield sets, pad_prompts(chunk, padded)


def pad_prompts(prompts: Prompts, prompt_sets: int | None = None) -> Prompts:
    """Pads tokens to a power of two, at least 2, and prompt sets to `prompt_sets`, or likewise.

    So few shapes are ever compiled. Padding tokens are masked in every attention, and padded
    prompt sets are cut off again, so the masks are those of the prompts alone.
    """
    sets, tokens = prompts.labels.shape[1:]
    more_sets = (next_power_of_two(sets) if prompt_sets is None else prompt_sets) - sets
    more_tokens = max(2, next_power_of_two(tokens)) - tokens
    more_masks = more_sets if prompts.mask_given.shape[1] else 0

    def pad(x, *widths, value=0):
        widths = [(0, 0), *((0, n) for n in widths), *([(0, 0)] * (x.ndim - 1 - len(widths)))]
        return np.pad(x, widths, constant_values=value)

    return dataclasses.replace(
        prompts,
        points=pad(prompts.points, more_sets, more_tokens),
        labels=pad(prompts.labels, more_sets, more_tokens, value=PADDING),
        masks=pad(prompts.masks, more_masks),
        mask_given=pad(prompts.mask_given, more_masks),
    )


def split_into_buckets(total: int, size: int, pad_sets: bool) -> Iterator[tuple[int, int, int]]:
    """Where to cut prompt sets so that at most one is padding: start, stop and padded length.

    A chunk of 8 takes 5 as 4 and 1: three padded ones would cost more than a second call.
    """

    def bucket(count):
        return min(next_power_of_two(count), size) if pad_sets else count

    start = 0
    while start < total:
        count = min(size, total - start)
        if bucket(count) - count > 1:
            count = next_power_of_two(count) // 2
        yield start, start + count, bucket(count)
        start += count


# --- what is said of coordinates that are hardly pixels of the image that was passed ---

# How far beyond the borders a coordinate is taken for one of another image, as a part of the longer
# side. What lies nearer is a hand that slipped, or the box of a tracker.
_FAR = 0.25
_MEANT = "in pixels of the image as it was passed, not of one of another size, and not row, column"


def _tell_of_coordinates(
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
