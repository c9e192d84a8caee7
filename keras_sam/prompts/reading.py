"""The one grammar: prompts in every accepted form, read and checked into one list of labelled
tokens and at most one mask per prompt set.

Numpy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_sam.prompts.canonical import CANONICAL_KEYS, Prompts
from keras_sam.prompts.labels import (
    BACKGROUND,
    BOTTOM_RIGHT,
    FOREGROUND,
    LABELS,
    NOT_A_POINT,
    PADDING,
    TOP_LEFT,
)
from keras_sam.prompts.mask_logits import read_plane
from keras_sam.prompts.nested import (
    KEYS,
    Entry,
    Node,
    PromptDict,
    is_empty,
    leaves,
    nesting_depth,
    ones_for_points,
    outline,
    pad_nested,
    to_numpy,
)


def read(
    prompts: PromptDict,
    images: int | None = None,
    mask_sizes: tuple[tuple[int, int], ...] | None = None,
    allow_none: bool = False,
) -> Prompts:
    """Reads prompts of any accepted form.

    A prompt set describes one object by points, boxes and at most one mask.
    Its sparse part becomes one list of tokens: the points as they came, the
    not-a-point token, two corners per box. The not-a-point token (label -1 at
    (0, 0)) is appended where a set has points, no box and no -1 of its own.
    Shorter lists are padded with label -10, which the model masks exactly.

    Values may be arrays, tensors of any backend, or nested lists that are
    ragged at any level; None or an empty list stands for an image or an object
    without that kind of prompt, and a zero-length axis for a kind that no
    image has. Points may lie outside the image.

    Args:
        prompts: dict with any of these keys, at least one prompt in all; other
            keys are ignored, and nothing in it is changed.
            `"points"`: `(B, N, 2)` for one object per image or `(B, P, N, 2)`,
            x y in original pixels; `(B, 2)` is one click per image.
            `"labels"`: as `points` without the last axis: -10 padding, -1
            not-a-point, 0 background, 1 foreground, 2 and 3 a box's top-left
            and bottom-right corner. By default all points are foreground.
            `"boxes"`: `(B, P, 4)` or `(B, P, 2, 2)`, x1 y1 x2 y2 in original
            pixels, or `(B, P, M, 4)` for M boxes of one object; `(B, 4)` is
            one box per image. If boxes are given and no image has one, as a
            detector may find none, the result has no prompt set.
            `"masks"`: `(B, P, h, w, 1)`, `(B, P, h, w)` or, as `best_mask`
            returns them, `(B, P, 1, h, w)`, float logits of the model's mask
            frame or of the image's own size; a size that is both is taken as
            the model's. An all-zero mask is a mask. Binary masks, bool or
            black and white, become logits as by `mask_to_logits`.
        images: optional int, `B`. By default the prompts are those of one
            image, without the axis `B`; a click is then also `(2,)`, a box
            `(4,)` or `(P, 4)`, a mask `(L, L)` or `(P, L, L)`.
        mask_sizes: optional pairs of ints that a mask of one image may have:
            they tell `(L, L, 1)` from `(P, L, 1)`. By default it is the former.
        allow_none: bool. Whether no image needs to have an object, whichever
            kind of prompt is given.

    Returns:
        `Prompts` in pixels of the original images.

    Raises:
        ValueError: if there is no prompt, or one is malformed, not finite or
            contradicts another; the message names the argument, what was
            received and the remedy.

    Example:

    >>> prompts = keras_sam.prompts.read({"boxes": [[[1, 2, 3, 4]]]}, images=1)
    >>> prompts.points.tolist(), prompts.labels.tolist()
    ([[[[1.0, 2.0], [3.0, 4.0]]]], [[[2, 3]]])
    """
    if not hasattr(prompts, "keys"):
        raise ValueError(
            f"`prompts` must be a dict with any of the keys {KEYS}. "
            f"Received: {type(prompts).__name__}."
        )
    values = {key: Entry.read(prompts.get(key), key, images, mask_sizes) for key in KEYS}
    kinds = {
        "points": _parse_points(values["points"], values["labels"]),
        "boxes": _parse_boxes(values["boxes"]),
        "masks": _parse_masks(values["masks"]),
    }
    kinds = {name: kind for name, kind in kinds.items() if kind is not None}
    batch = 1 if images is None else images
    num_passed = _num_passed(kinds, batch)
    num_sets = max(num_passed, default=0)
    single_object = bool(kinds) and all(kind.single for kind in kinds.values())
    optional = KEYS if allow_none else ("boxes",)
    if num_sets == 0 and all(prompts.get(key) is None for key in optional):
        raise no_prompt("the whole call")

    points, labels = _tokens(kinds.get("points"), kinds.get("boxes"), batch, num_sets)
    masks, mask_given = _masks(kinds.get("masks"), batch, num_sets)
    has_prompt = (labels != PADDING).any(axis=-1)
    if mask_given.shape[1]:
        has_prompt |= mask_given
    num_prompts = _count_real(has_prompt, single_object) if num_sets else np.zeros(batch, "int32")
    num_passed = np.array(num_passed, "int32")
    return Prompts(points, labels, masks, mask_given, num_prompts, num_passed, single_object)


def read_canonical(prompts: Mapping[str, Any]) -> Prompts:
    """Reads a dict of `CANONICAL_KEYS`, prompts that are in the model frame already.

    `num_prompts` defaults to the prompt sets up to the last with a prompt, `single_object` to
    False.
    """
    missing = [name for name in CANONICAL_KEYS if prompts.get(name) is None]
    if missing:
        raise ValueError(
            "A dict with `mask_given` holds canonical prompts and must have all of "
            f"{CANONICAL_KEYS}. Received none of: {missing}. Leave `mask_given` out to pass "
            "prompts as they are."
        )
    points, labels, masks, mask_given = (to_numpy(prompts[name]) for name in CANONICAL_KEYS)
    mask_given = mask_given.astype(bool)
    num_prompts = prompts.get("num_prompts")
    if num_prompts is None:
        used = (labels != PADDING).any(axis=-1)
        if mask_given.shape[1]:
            used |= mask_given
        num_prompts = np.where(used, np.arange(1, labels.shape[1] + 1), 0).max(axis=1, initial=0)
    num_prompts = to_numpy(num_prompts)
    num_passed = np.full(len(labels), labels.shape[1], "int32")
    single_object = bool(np.all(to_numpy(prompts.get("single_object", False))))
    return Prompts(points, labels, masks, mask_given, num_prompts, num_passed, single_object)


def no_prompt(where: str) -> ValueError:
    """The error for a call without any prompt; `where` says what has none."""
    return ValueError(
        "At least one prompt is needed: `points` with `labels`, `boxes` or `masks`. Received: "
        f"none for {where}. "
        "To segment everything in an image, use `keras_sam.SAMAutomaticMaskGenerator`."
    )


# --- one kind at a time ---


@dataclasses.dataclass(frozen=True)
class _Kind:
    """One kind of prompt, which is there for at least one image."""

    value: Entry
    node: Node  # the value with the axis `P`
    depth: int  # number of the node's axes
    single: bool  # whether it came in the form for a single object
    labels: Node = None  # of points, with the axis `P`

    def count(self, image: int) -> int | None:
        """Prompt sets of an image, None if it has no prompt of this kind."""
        node = self.node[image]
        return None if is_empty(node) else len(node)

    def is_one_each(self) -> bool:
        return all(self.count(image) in (None, 1) for image in range(len(self.node)))


def _parse_points(points: Entry | None, labels: Entry | None) -> _Kind | None:
    if points is None and labels is None:
        return None
    if points is None:
        raise ValueError(
            "`labels` must come with `points`, one label per point. Received: `labels` "
            f"({labels.shown}) without `points`."
        )
    depth = nesting_depth(points.node, "points")
    if depth not in (3, 4) or {leaf.shape[-1] for leaf in leaves(points.node)} != {2}:
        raise points.wrong_shape()
    if labels is None:
        labels = dataclasses.replace(points, name="labels", node=ones_for_points(points.node))
    if nesting_depth(labels.node, "labels") != depth - 1 or (
        outline(points.node, depth - 1) != outline(labels.node, depth - 1)
    ):
        raise ValueError(
            f"`labels` must have shape {labels.forms['labels']}: one label per point. Received: "
            f"{labels.shown} with points of {points.shown}."
        )
    for leaf in leaves(labels.node):
        unknown = leaf[~np.isin(leaf, LABELS)]
        if unknown.size:
            raise ValueError(
                f"`labels` must be one of {LABELS}: -10 padding, -1 not-a-point, 0 background, "
                f"1 foreground, 2 and 3 a box's top-left and bottom-right corner. Received: "
                f"{unknown.flat[0]}."
            )
    if depth == 4:
        return _Kind(points, points.node, 4, single=False, labels=labels.node)
    # One object per image: (B, N, 2) -> (B, 1, N, 2)
    xy, of_points = (
        [None if is_empty(image) else [image] for image in value.node] for value in (points, labels)
    )
    return _Kind(points, xy, 4, single=True, labels=of_points)


def _parse_boxes(boxes: Entry | None) -> _Kind | None:
    if boxes is None:
        return None
    depth = nesting_depth(boxes.node, "boxes")
    last = {leaf.shape[-1:] for leaf in leaves(boxes.node)}
    # (B, P, 4), (B, P, M, 4) · (B, P, 2, 2), (B, P, M, 2, 2): the last axis tells them apart.
    if len(last) != 1 or (depth, *last.pop()) not in ((3, 4), (4, 4), (4, 2), (5, 2)):
        raise boxes.wrong_shape()
    corners = next(leaves(boxes.node)).shape[-1] == 2
    for leaf in leaves(boxes.node):
        boxes.check_finite(leaf)
    kind = _Kind(boxes, boxes.node, depth, single=False)
    return dataclasses.replace(kind, single=corners and depth == 4 and kind.is_one_each())


def _parse_masks(masks: Entry | None) -> _Kind | None:
    if masks is None:
        return None
    depth = nesting_depth(masks.node, "masks")
    arrays = list(leaves(masks.node))
    has_channel = depth == 5 and all(leaf.shape[-1:] == (1,) for leaf in arrays)
    # `best_mask(outputs)["masks"]`, (B, P, 1, Lh, Lw), has the axis of the candidates.
    is_picked = not has_channel and depth == 5 and all(leaf.shape[-3:-2] == (1,) for leaf in arrays)
    if depth != 4 and not has_channel and not is_picked:
        raise masks.wrong_shape()
    for leaf in arrays:
        masks.check_finite(leaf)
    planes = []
    for image in masks.node:
        given = [] if is_empty(image) else image
        if not all(mask is None or isinstance(mask, np.ndarray) for mask in given):
            raise masks.wrong_shape()  # rows of different lengths
        if depth == 5:
            axis = -1 if has_channel else 0
            given = [mask if mask is None else mask.take(0, axis) for mask in given]
        planes.append([mask if mask is None else read_plane(mask) for mask in given] or None)
    kind = _Kind(masks, planes, depth, single=False)
    return dataclasses.replace(kind, single=has_channel and kind.is_one_each())


# --- putting the kinds together ---


def _num_passed(kinds: Mapping[str, _Kind], batch: int) -> list[int]:
    """Prompt sets of each image, on which all kinds that the image has must agree."""
    agreed = []
    for i in range(batch):
        counts = {name: kind.count(i) for name, kind in kinds.items()}
        counts = {name: count for name, count in counts.items() if count is not None}
        if len(set(counts.values())) > 1:
            remedy = "Use None for an object without that prompt."
            if counts.get("masks", 0) > 1 == min(counts.values()):
                remedy = (
                    "Of the candidates for one object pass one, `logits[np.argmax(scores)]` or "
                    '`best_mask(outputs)["masks"]`.'
                )
            raise ValueError(
                "`points`, `boxes` and `masks` must describe the same number of objects. "
                f"Received: {counts} for image {i}. {remedy}"
            )
        agreed.append(max(counts.values(), default=0))
    return agreed


def _tokens(
    points: _Kind | None, boxes: _Kind | None, batch: int, num_sets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points, not-a-point, box corners: `(B, P, T, 2)` in original pixels, `(B, P, T)` labels."""
    leading = (batch, num_sets)
    xy, labels = np.zeros((*leading, 0, 2)), np.full((*leading, 0), PADDING)
    if points is not None:
        xy = pad_nested(points.node, 4, num_sets, np.nan)  # (B, P, N, 2)
        labels = pad_nested(points.labels, 3, num_sets, PADDING).astype(int)  # (B, P, N)
        points.value.check_finite(xy[labels != PADDING])
        xy[labels == PADDING] = 0
    corners, corner_labels = np.zeros((*leading, 0, 2)), np.full((*leading, 0), PADDING)
    if boxes is not None:
        corners, corner_labels = _corners(boxes, num_sets)

    is_point = np.isin(labels, (BACKGROUND, FOREGROUND)).any(axis=-1, keepdims=True)
    has_box = np.isin(labels, (TOP_LEFT, BOTTOM_RIGHT)).any(axis=-1, keepdims=True)
    has_box |= (corner_labels != PADDING).any(axis=-1, keepdims=True)
    already = (labels == NOT_A_POINT).any(axis=-1, keepdims=True)
    extra = np.where(is_point & ~has_box & ~already, NOT_A_POINT, PADDING)  # (B, P, 1)

    xy = np.concatenate([xy, np.zeros((*leading, 1, 2)), corners], axis=2)
    labels = np.concatenate([labels, extra, corner_labels], axis=2)
    # Padding to the end, everything else in its order; then only as long as the longest set.
    order = np.argsort(labels == PADDING, axis=-1, kind="stable")
    order = order[..., : (labels != PADDING).sum(axis=-1).max(initial=0)]
    labels = np.take_along_axis(labels, order, axis=-1).astype("int32")  # (B, P, T)
    return np.take_along_axis(xy, order[..., None], axis=2), labels


def _corners(boxes: _Kind, num_sets: int) -> tuple[np.ndarray, np.ndarray]:
    """Box corners `(B, P, 2M, 2)` and their labels `(B, P, 2M)`."""
    padded = pad_nested(boxes.node, boxes.depth, num_sets, np.nan)
    if padded.shape[-1] == 2:
        if padded.shape[-2] != 2:
            raise boxes.value.wrong_shape()
        padded = padded.reshape((*padded.shape[:-2], 4))
    if padded.ndim == 3:
        padded = padded[:, :, None]  # (B, P, M, 4)
    missing = np.isnan(padded)
    if (missing.any(axis=-1) != missing.all(axis=-1)).any():
        raise boxes.value.wrong_shape()
    missing = missing.any(axis=-1)  # (B, P, M)
    upside_down = (padded[..., 2:] < padded[..., :2]).any(axis=-1)
    if upside_down.any():
        raise ValueError(
            "`boxes` must have x1 <= x2 and y1 <= y2, (x1, y1) being the top-left corner. "
            f"Received: {padded[upside_down][0].tolist()}. Swap the corners; a box given as x y "
            "width height goes through `keras_sam.geometry.xywh_to_xyxy` first."
        )
    padded[missing] = 0
    labels = np.where(missing[..., None], PADDING, [TOP_LEFT, BOTTOM_RIGHT])  # (B, P, M, 2)
    batch, num_sets, num_boxes = missing.shape
    return (
        padded.reshape((batch, num_sets, 2 * num_boxes, 2)),
        labels.reshape((batch, num_sets, 2 * num_boxes)),
    )


def _masks(masks: _Kind | None, batch: int, num_sets: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks as an object array `(B, P)`, and where there is one; `(B, 0)` without any."""
    if masks is None:
        return np.empty((batch, 0), object), np.zeros((batch, 0), bool)
    planes, given = np.empty((batch, num_sets), object), np.zeros((batch, num_sets), bool)
    for i, image in enumerate(masks.node):
        for p, mask in enumerate(image or []):
            planes[i, p], given[i, p] = mask, mask is not None
    return planes, given


def _count_real(has_prompt: np.ndarray, single_object: bool) -> np.ndarray:
    """Prompt sets of each image, `(B,)`; those at its end without any prompt are padding."""
    real = np.zeros(len(has_prompt), "int32")
    for i, row in enumerate(has_prompt):
        used = np.flatnonzero(row)
        real[i] = used[-1] + 1 if used.size else 0
        if len(used) != real[i]:
            raise no_prompt(f"object {np.flatnonzero(~row)[0]} of image {i}")
        if not used.size and single_object:
            raise no_prompt(f"image {i}")
    if not real.any():
        raise no_prompt("the whole call")
    return real
