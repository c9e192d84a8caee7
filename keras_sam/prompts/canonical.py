"""The canonical prompts: one list of labelled tokens and at most one mask per prompt set.

Numpy only.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from keras_sam.geometry import ResizePlan

PADDING, NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -10, -1, 0, 1, 2, 3
LABELS = (PADDING, NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT)
# The value of target pixels that count neither as object nor as background.
VOID = 255

# What people pass, and what the model takes. `mask_given` tells the two apart.
KEYS = ("points", "labels", "boxes", "masks")
CANONICAL_KEYS = ("points", "labels", "masks", "mask_given")

# One kind of prompt as people pass it: an array, a tensor of any backend, or nested lists of them
# that may be ragged, with None in place of what is absent.
PromptLike: TypeAlias = ArrayLike | Sequence[Any] | None


class PromptDict(TypedDict, total=False):
    """Prompts as people pass them, see `keras_sam.prompts.read`."""

    points: PromptLike
    labels: PromptLike
    boxes: PromptLike
    masks: PromptLike


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
        """Takes prompts from pixels of the original images to the model frame.

        Args:
            plans: list of `ResizePlan`, one per image.
            mask_size: pair of ints `(Lh, Lw)`. Masks of this size are used as they are, those
                of the original image's size are scaled.

        Returns:
            New `Prompts`.

        Raises:
            ValueError: if a coordinate does not fit into float32, or a mask has another size.
        """
        with np.errstate(over="ignore"):
            points = np.stack(
                [plan.to_model(xy) for plan, xy in zip(plans, self.points, strict=True)]
            )
        wrong = ~np.isfinite(points)
        if wrong.any():
            of_box = self.labels[wrong.any(axis=-1)].max() >= TOP_LEFT
            raise not_finite("boxes" if of_box else "points", points[wrong][0])
        mask_size = tuple(int(n) for n in mask_size)
        masks = np.zeros((*self.mask_given.shape, *mask_size, 1), "float32")
        for i, p in np.argwhere(self.mask_given):
            mask = self.masks[i, p]
            if mask.shape != mask_size:
                mask = _mask_to_model(mask, plans[i], mask_size, i)
            masks[i, p, ..., 0] = mask
        return dataclasses.replace(self, points=points, masks=masks)

    def padded(self, prompt_sets: int | None = None) -> Prompts:
        """Pads tokens to a power of two, at least 2, and prompt sets to `prompt_sets`.

        So few shapes are ever compiled. Padding tokens are masked in every attention, and padded
        prompt sets are cut off again, so the masks are those of the prompts alone.

        Args:
            prompt_sets: optional int. Defaults to the next power of two.
        """
        sets, tokens = self.labels.shape[1:]
        more_sets = (next_power_of_two(sets) if prompt_sets is None else prompt_sets) - sets
        more_tokens = max(2, next_power_of_two(tokens)) - tokens
        more_masks = more_sets if self.mask_given.shape[1] else 0

        def pad(x, *widths, value=0):
            widths = [(0, 0), *((0, n) for n in widths), *([(0, 0)] * (x.ndim - 1 - len(widths)))]
            return np.pad(x, widths, constant_values=value)

        return dataclasses.replace(
            self,
            points=pad(self.points, more_sets, more_tokens),
            labels=pad(self.labels, more_sets, more_tokens, value=PADDING),
            masks=pad(self.masks, more_masks),
            mask_given=pad(self.mask_given, more_masks),
        )

    def chunks(self, size: int, pad_sets: bool) -> Iterator[tuple[slice, Prompts]]:
        """Cuts the prompt sets into chunks of few shapes.

        Args:
            size: int. Prompt sets in a chunk, at most.
            pad_sets: bool. Whether a chunk is padded to a power of two; otherwise its tokens
                alone are padded.

        Yields:
            Tuple of where the chunk's prompt sets are, and the padded chunk.
        """
        for start, stop, padded in split_into_buckets(self.num_sets, size, pad_sets):
            sets = slice(start, stop)
            chunk = dataclasses.replace(
                self,
                points=self.points[:, sets],
                labels=self.labels[:, sets],
                masks=self.masks[:, sets],
                mask_given=self.mask_given[:, sets],
            )
            yield sets, chunk.padded(padded)

    def arrays(self) -> dict[str, np.ndarray]:
        """The four arrays of the canonical form by name, `CANONICAL_KEYS`."""
        return {name: getattr(self, name) for name in CANONICAL_KEYS}


def split_into_buckets(total: int, size: int, pad_sets: bool) -> Iterator[tuple[int, int, int]]:
    """Where to cut prompt sets so that at most one is padding.

    A chunk of 8 takes 5 as 4 and 1: three padded ones would cost more than a second call.

    Args:
        total: int. Prompt sets in all.
        size: int. The most that a chunk takes.
        pad_sets: bool. Whether chunks are padded to a power of two.

    Yields:
        Tuples of start, stop, and the number of sets to pad the chunk to.
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


def check_at_least_one(value: Any, name: str) -> None:
    """Raises unless `value` is a positive integer."""
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1. Received: {name}={value!r}.")


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`, and at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def not_finite(name: str, value: float) -> ValueError:
    """The error for a prompt with a value that is NaN, infinite or too large for float32."""
    return ValueError(
        f"`{name}` must be finite. Received: {value}. Use None for an image or an object without "
        "this prompt."
    )


def _mask_to_model(
    mask: np.ndarray, plan: ResizePlan, mask_size: tuple[int, int], image: int
) -> np.ndarray:
    if mask.shape != plan.original_size:
        raise ValueError(
            f"`masks` must have the size of the model's mask frame {mask_size} or of the image "
            f"itself, {plan.original_size}. Received: {mask.shape} for image {image}."
        )
    return plan.masks_to_model(mask, mask_size)
