"""From whatever a user passes to the canonical prompt arrays: the one place where prompts are
validated, batched, padded, rescaled and filled.

Numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_sam.geometry import OUTSIDE_LOGIT, ResizePlan, resize_image, size_pair
from keras_sam.nested import (
    Node,
    describe,
    is_empty,
    leaves,
    nesting_depth,
    outline,
    pad_nested,
    read_nested,
    to_numpy,
)

PADDING, NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = (
    -10,
    -1,
    0,
    1,
    2,
    3,
)
LABELS = (PADDING, NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT)

KEYS = ("points", "labels", "boxes", "masks")

_FORMS = {
    "points": "(B, N, 2) for one object per image or (B, P, N, 2) for P objects, x y in pixels of "
    "the original image",
    "labels": "(B, N) or (B, P, N), that of `points` without its last axis",
    "boxes": "(B, P, 4) or (B, P, 2, 2), or (B, P, M, 4) for M boxes of one object, "
    "x1 y1 x2 y2 in pixels of the original image",
    "masks": "(B, P, height, width, 1) or (B, P, height, width), mask logits",
}


def complete(
    prompts: Mapping[str, Any],
    plans: Sequence[ResizePlan],
    mask_size: tuple[int, int],
) -> dict[str, Any]:
    """Turns prompts of any accepted form into the canonical prompt arrays.

    A prompt set describes one object by points, boxes and at most one mask.
    Its sparse part becomes one list of tokens: the points as they came, the
    not-a-point token, two corners per box. The not-a-point token (label -1 at
    (0, 0)) is appended where a set has points, no box and no -1 of the user's.
    Shorter lists are padded with label -10, which the model masks exactly.

    Values may be arrays, tensors of any backend, or nested lists that are
    ragged at any level; None or an empty list stands for an image or an object
    without that kind of prompt, and a zero-length axis for a kind that nobody
    has. Points may lie outside the image.

    Args:
        prompts: dict with any of these keys, at least one prompt in all; other
            keys are ignored, and nothing in it is changed.
            `"points"`: `(B, N, 2)` for one object per image or `(B, P, N, 2)`,
            x y in original pixels.
            `"labels"`: as `points` without the last axis: -10 padding, -1
            not-a-point, 0 background, 1 foreground, 2 and 3 a box's top-left
            and bottom-right corner.
            `"boxes"`: `(B, P, 4)` or `(B, P, 2, 2)`, x1 y1 x2 y2 in original
            pixels, or `(B, P, M, 4)` for M boxes of one object.
            `"masks"`: `(B, P, h, w, 1)` or `(B, P, h, w)`, float logits of
            the model's mask frame or of the image's own size; a size that is
            both is taken as the model's. An all-zero mask is a mask.
        plans: list of `ResizePlan`, one per image.
        mask_size: pair of ints `(Lh, Lw)`, the model's mask frame.

    Returns:
        Dict of `points` float32 `(B, P, T, 2)` in model pixels, `labels`
        int32 `(B, P, T)`, `masks` float32 `(B, P, Lh, Lw, 1)`, or
        `(B, 0, Lh, Lw, 1)` when nobody has one, `mask_given` bool `(B, P)` or
        `(B, 0)`, `num_prompts` int32 `(B,)`: the prompt sets of each image
        before its padding, and `single_object` bool: every prompt came as
        `points (B, N, 2)`, `boxes (B, 1, 2, 2)`, `masks (B, 1, h, w, 1)`.

    Raises:
        ValueError: if there is no prompt, or one is malformed, not finite or
            contradicts another; the message names the argument, what it
            received and the remedy.
    """
    batch = len(plans)
    kinds = _read_kinds(prompts, batch)
    sets_per_image = _agreed_counts(kinds, batch)
    num_sets = max(sets_per_image, default=0)
    if num_sets == 0:
        raise_no_prompt("the whole call")

    points, labels = _sparse_tokens(kinds.get("points"), kinds.get("boxes"), batch, num_sets)
    points = _to_model(points, plans, "boxes" if "boxes" in kinds else "points")
    masks, mask_given = _dense_masks(kinds.get("masks"), plans, mask_size, num_sets)
    single_object = all(kind["single"] for kind in kinds.values())
    return {
        "points": points,
        "labels": labels,
        "masks": masks,
        "mask_given": mask_given,
        "num_prompts": _count_real(_has_prompt(labels, kinds.get("masks")), single_object),
        "single_object": single_object,
    }


def survey(prompts: Mapping[str, Any], batch: int) -> tuple[list[int], bool]:
    """Checks all that can be checked of a call's prompts without its images, and counts them.

    So a long call fails before its first image is encoded, and its batches know what the whole
    call is like.

    Args:
        prompts: dict as for `complete`.
        batch: int. Images in the call.

    Returns:
        Tuple of the number of prompt sets of each image, and whether every prompt of the call
        came in the single-object form.

    Raises:
        ValueError: as `complete`, save for masks of a wrong size.
    """
    kinds = _read_kinds(prompts, batch)
    sets_per_image = _agreed_counts(kinds, batch)
    num_sets = max(sets_per_image, default=0)
    if num_sets == 0:
        raise_no_prompt("the whole call")
    single_object = all(kind["single"] for kind in kinds.values())
    _, labels = _sparse_tokens(kinds.get("points"), kinds.get("boxes"), batch, num_sets)
    _count_real(_has_prompt(labels, kinds.get("masks")), single_object)
    return sets_per_image, single_object


def is_without_objects(prompts: Mapping[str, Any]) -> bool:
    """Whether prompts are given, but none for any object: zero-length axes, empty lists, Nones.

    Args:
        prompts: dict as for `complete`.
    """
    nodes = [read_nested(prompts[key], key) for key in KEYS if prompts.get(key) is not None]
    return bool(nodes) and all(
        node.size == 0 if isinstance(node, np.ndarray) else is_empty(node) for node in nodes
    )


def mask_to_logits(
    mask: Any,
    model_size: int | tuple[int, int] = 1024,
    mask_size: int | tuple[int, int] | None = None,
) -> np.ndarray:
    """Turns a binary mask of the original image into mask-prompt logits.

    The binary mask is scaled to the mask frame with antialiasing, binarised
    again at one half, padded, and written as logits of the probabilities 0.999
    and 0.001: +6.9 inside, -6.9 outside and in the padding.

    Args:
        mask: bool or two-valued array `(H0, W0)`, `(H0, W0, 1)`,
            `(P, H0, W0)` or `(P, H0, W0, 1)` in original pixels; whatever is
            not 0 is inside.
        model_size: int or pair of ints, the model's input `(H, W)`.
            Defaults to `1024`.
        mask_size: int or pair of ints `(Lh, Lw)`. Defaults to a quarter of
            `model_size`, which holds for patches of 16 pixels.

    Returns:
        float32 array `(Lh, Lw, 1)`, or `(P, Lh, Lw, 1)` if `mask` has a `P`
        axis. As a prompt of the first image: `masks=logits[None, None]` or
        `masks=logits[None]`.

    Raises:
        ValueError: if the mask is empty, not two-valued or of another shape.

    Example:

    >>> mask = np.zeros((480, 640), bool)
    >>> mask[100:300, 200:400] = True
    >>> keras_sam.mask_to_logits(mask).shape
    (256, 256, 1)
    """
    array = to_numpy(mask)
    if array.ndim in (3, 4) and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(
            "`mask` must have shape (H0, W0), (H0, W0, 1), (P, H0, W0) or (P, H0, W0, 1) and must "
            f"not be empty. Received: shape={np.shape(mask)}."
        )
    values = np.unique(array)
    if len(values) > 2 or (len(values) == 2 and 0 not in values) or not np.isfinite(values).all():
        raise ValueError(
            "`mask` must be binary: 0 outside and one other value inside. Received: "
            f"{len(values)} values from {values[0]} to {values[-1]}. Pass `labels == k` for a "
            "label map, `probability > 0.5` for probabilities; logits go into `masks` as they are."
        )
    if mask_size is None:
        mask_size = tuple(n // 4 for n in size_pair(model_size, "model_size"))
    frame = size_pair(mask_size, "mask_size")
    scale = min(frame[0] / array.shape[-2], frame[1] / array.shape[-1])
    size = tuple(max(1, int(n * scale + 0.5)) for n in array.shape[-2:])
    planes = array.reshape((-1, *array.shape[-2:])) != 0
    logits = np.full((len(planes), *frame, 1), OUTSIDE_LOGIT, "float32")
    for plane, target in zip(planes, logits, strict=True):
        inside = resize_image(plane, size) >= 0.5
        target[: size[0], : size[1], 0][inside] = -OUTSIDE_LOGIT
    return logits if array.ndim == 3 else logits[0]


def _read_kinds(prompts: Mapping[str, Any], batch: int) -> dict[str, dict[str, Any]]:
    """The kinds of prompts that somebody has, each read and checked by itself."""
    if not hasattr(prompts, "keys"):
        raise ValueError(
            f"`prompts` must be a dict with any of the keys {KEYS}. "
            f"Received: {type(prompts).__name__}."
        )
    nodes = {key: _read(prompts.get(key), key, batch) for key in KEYS}
    kinds = {
        "points": _parse_points(nodes["points"], nodes["labels"]),
        "boxes": _parse_boxes(nodes["boxes"]),
        "masks": _parse_masks(nodes["masks"]),
    }
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _read(value: Any, name: str, batch: int) -> Node:
    """The value as a node with one entry per image, or None where nobody has this prompt."""
    node = read_nested(value, name)
    if node is None or (isinstance(node, np.ndarray) and node.size == 0 and len(node) == 0):
        return None
    if isinstance(node, np.ndarray) and node.ndim == 0:
        _raise_shape(name, node)
    if len(node) != batch:
        raise ValueError(
            f"`{name}` must have one entry per image, {batch}. Received: {describe(node)}, "
            f"{len(node)} entries."
        )
    if isinstance(node, np.ndarray):
        return node if node.size else None
    return None if is_empty(node) else node


# --- one kind at a time ---


def _kind(node: Node, depth: int, single: bool) -> dict[str, Any]:
    sets = [None if is_empty(image) else len(image) for image in node]
    return {"node": node, "depth": depth, "single": single, "sets": sets}


def _parse_points(points: Node, labels: Node) -> dict[str, Any] | None:
    if points is None and labels is None:
        return None
    if points is None or labels is None:
        given, missing = ("labels", "points") if points is None else ("points", "labels")
        raise ValueError(
            f"`points` and `labels` must be given together. Received: `{given}` "
            f"({describe(labels if points is None else points)}) without `{missing}`. Pass "
            "`labels` with 1 for a point on the object and 0 for one on the background."
        )
    depth = nesting_depth(points, "points")
    if depth not in (3, 4) or {leaf.shape[-1] for leaf in leaves(points)} != {2}:
        _raise_shape("points", points)
    if nesting_depth(labels, "labels") != depth - 1 or (
        outline(points, depth - 1) != outline(labels, depth - 1)
    ):
        raise ValueError(
            f"`labels` must have shape {_FORMS['labels']}: one label per point. Received: "
            f"{describe(labels)} with points of {describe(points)}."
        )
    for leaf in leaves(labels):
        unknown = leaf[~np.isin(leaf, LABELS)]
        if unknown.size:
            raise ValueError(
                f"`labels` must be one of {LABELS}: -10 padding, -1 not-a-point, 0 background, "
                f"1 foreground, 2 and 3 a box's top-left and bottom-right corner. Received: "
                f"{unknown.flat[0]}."
            )
    if depth == 3:  # one object per image: (B, N, 2) -> (B, 1, N, 2)
        points = [None if is_empty(image) else [image] for image in points]
        labels = [None if is_empty(image) else [image] for image in labels]
    return {**_kind(points, 4, single=depth == 3), "labels": labels}


def _parse_boxes(boxes: Node) -> dict[str, Any] | None:
    if boxes is None:
        return None
    depth = nesting_depth(boxes, "boxes")
    last = {leaf.shape[-1] for leaf in leaves(boxes)}
    # (B, P, 4), (B, P, M, 4) · (B, P, 2, 2), (B, P, M, 2, 2): the last axis tells them apart.
    if (depth, *last) not in ((3, 4), (4, 4), (4, 2), (5, 2)):
        _raise_shape("boxes", boxes)
    for leaf in leaves(boxes):
        _check_finite(leaf, "boxes")
    kind = _kind(boxes, depth, single=False)
    kind["single"] = last == {2} and depth == 4 and set(kind["sets"]) <= {None, 1}
    return kind


def _parse_masks(masks: Node) -> dict[str, Any] | None:
    if masks is None:
        return None
    depth = nesting_depth(masks, "masks")
    arrays = list(leaves(masks))
    if depth not in (4, 5) or (depth == 5 and {leaf.shape[-1] for leaf in arrays} != {1}):
        _raise_shape("masks", masks)
    for leaf in arrays:
        if leaf.dtype.kind != "f":
            raise ValueError(
                "`masks` must be float logits, as the model returns them. Received: "
                f"dtype={leaf.dtype}. Turn a binary mask into logits with "
                "`keras_sam.mask_to_logits(mask)` first."
            )
        _check_finite(leaf, "masks")
    kind = _kind(masks, depth, single=False)
    kind["single"] = depth == 5 and set(kind["sets"]) <= {None, 1}
    return kind


def _check_finite(values: np.ndarray, name: str) -> None:
    wrong = values[~np.isfinite(values)]
    if wrong.size:
        raise ValueError(
            f"`{name}` must be finite. Received: {wrong.flat[0]}. Use None for an image or an "
            "object without this prompt."
        )


# --- putting the kinds together ---


def _agreed_counts(kinds: dict[str, dict[str, Any]], batch: int) -> list[int]:
    """Prompt sets of each image, on which all kinds that the image has must agree."""
    agreed = []
    for i in range(batch):
        counts = {name: kind["sets"][i] for name, kind in kinds.items()}
        counts = {name: count for name, count in counts.items() if count is not None}
        if len(set(counts.values())) > 1:
            raise ValueError(
                "`points`, `boxes` and `masks` must describe the same number of objects. "
                f"Received: {counts} for image {i}. Use None for an object without that prompt."
            )
        agreed.append(max(counts.values(), default=0))
    return agreed


def _sparse_tokens(
    points: dict[str, Any] | None,
    boxes: dict[str, Any] | None,
    batch: int,
    num_sets: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Points, not-a-point, box corners: `(B, P, T, 2)` in original pixels, `(B, P, T)` labels."""
    leading = (batch, num_sets)
    xy, labels = np.zeros((*leading, 0, 2)), np.full((*leading, 0), PADDING)
    if points is not None:
        xy = pad_nested(points["node"], 4, num_sets, np.nan)  # (B, P, N, 2)
        labels = pad_nested(points["labels"], 3, num_sets, PADDING).astype(int)  # (B, P, N)
        _check_finite(xy[labels != PADDING], "points")
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


def _to_model(xy: np.ndarray, plans: Sequence[ResizePlan], name: str) -> np.ndarray:
    """Float32 model pixels `(B, P, T, 2)`; `name` is whose fault it is if they overflow."""
    with np.errstate(over="ignore"):
        scaled = [plan.to_model(image) for plan, image in zip(plans, xy, strict=True)]
    scaled = np.stack(scaled)
    _check_finite(scaled, name)
    return scaled


def _corners(boxes: dict[str, Any], num_sets: int) -> tuple[np.ndarray, np.ndarray]:
    """Box corners `(B, P, 2M, 2)` and their labels `(B, P, 2M)`."""
    padded = pad_nested(boxes["node"], boxes["depth"], num_sets, np.nan)
    if padded.shape[-1] == 2:
        if padded.shape[-2] != 2:
            _raise_shape("boxes", boxes["node"])
        padded = padded.reshape((*padded.shape[:-2], 4))
    if padded.ndim == 3:
        padded = padded[:, :, None]  # (B, P, M, 4)
    missing = np.isnan(padded)
    if (missing.any(axis=-1) != missing.all(axis=-1)).any():
        _raise_shape("boxes", boxes["node"])
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


def _dense_masks(
    masks: dict[str, Any] | None,
    plans: Sequence[ResizePlan],
    mask_size: tuple[int, int],
    num_sets: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask logits `(B, P, Lh, Lw, 1)` in the model's frame and who has one, `(B, P)`."""
    mask_size = tuple(int(n) for n in mask_size)
    if masks is None:
        return np.zeros((len(plans), 0, *mask_size, 1), "float32"), np.zeros((len(plans), 0), bool)
    filled = np.zeros((len(plans), num_sets, *mask_size, 1), "float32")
    given = np.zeros((len(plans), num_sets), bool)
    for i, (plan, image) in enumerate(zip(plans, masks["node"], strict=True)):
        for p, mask in enumerate([] if is_empty(image) else image):
            if mask is None:
                continue
            if not isinstance(mask, np.ndarray):
                _raise_shape("masks", masks["node"])
            if masks["depth"] == 5:
                mask = mask[..., 0]
            if mask.shape != mask_size:
                mask = _mask_to_frame(mask, plan, mask_size, i)
            filled[i, p, ..., 0] = mask
            given[i, p] = True
    return filled, given


def _mask_to_frame(
    mask: np.ndarray, plan: ResizePlan, mask_size: tuple[int, int], image_index: int
) -> np.ndarray:
    if mask.shape != plan.original_size:
        raise ValueError(
            f"`masks` must have the size of the model's mask frame {mask_size} or of the image "
            f"itself, {plan.original_size}. Received: {mask.shape} for image {image_index}."
        )
    return plan.masks_to_model(mask, mask_size)


def _has_prompt(labels: np.ndarray, masks: dict[str, Any] | None) -> np.ndarray:
    """Where a prompt set has a prompt of any kind, bool `(B, P)`."""
    has_prompt = (labels != PADDING).any(axis=-1)
    for i, image in enumerate([] if masks is None else masks["node"]):
        for p, mask in enumerate([] if is_empty(image) else image):
            has_prompt[i, p] |= mask is not None
    return has_prompt


def _count_real(has_prompt: np.ndarray, single_object: bool) -> np.ndarray:
    """Prompt sets of each image, `(B,)`; those at its end without any prompt are padding."""
    real = np.zeros(len(has_prompt), "int32")
    for i, row in enumerate(has_prompt):
        used = np.flatnonzero(row)
        real[i] = used[-1] + 1 if used.size else 0
        if len(used) != real[i]:
            empty = int(np.flatnonzero(~row)[0])
            raise_no_prompt(f"object {empty} of image {i}")
        if not used.size and single_object:
            raise_no_prompt(f"image {i}")
    if not real.any():
        raise_no_prompt("the whole call")
    return real


# --- messages ---


def raise_no_prompt(where: str) -> None:
    """Raises the error for a call without any prompt; `where` says what has none."""
    raise ValueError(
        "At least one prompt is needed: `points` with `labels`, `boxes` or `masks`. Received: "
        f"none for {where}. "
        "To segment everything in an image, use `keras_sam.SAMAutomaticMaskGenerator`."
    )


def _raise_shape(name: str, node: Node) -> None:
    raise ValueError(f"`{name}` must have shape {_FORMS[name]}. Received: {describe(node)}.")
