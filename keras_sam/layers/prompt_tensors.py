"""Every tensor form of a prompt to the canonical one: points, labels and masks with an axis `P`.

`prompts` does the same with numpy, for what people pass. This is for models and layers that are
called with tensors, as KerasHub's and KerasCV's are, and for symbols of functional models.
"""

from keras import ops

from keras_sam.layers.arguments import Tensor
from keras_sam.prompts import (
    BACKGROUND,
    BOTTOM_RIGHT,
    FOREGROUND,
    KEYS,
    NOT_A_POINT,
    PADDING,
    TOP_LEFT,
)
from keras_sam.prompts.nested import describe_value
from keras_sam.prompts.spellings import unknown_names

_KEYS = (*KEYS, "mask_given")
# What the preprocessor returns besides.
_FACTS = ("num_prompts", "single_object", "original_sizes", "scaled_sizes")


def canonical_inputs(
    inputs: dict[str, Tensor], mask_size: tuple[int, int]
) -> tuple[dict[str, Tensor], bool]:
    """Every tensor form of images and prompts, as the five canonical inputs.

    Prompts have the forms of `canonical_prompts`; a dict that holds `mask_given` is canonical
    already. Returns the dict and whether every prompt came in the single-object form, so that the
    prompt axis is to be dropped from outputs.
    """
    _check_names(inputs)
    if "mask_given" in inputs:
        return {name: inputs[name] for name in ("images", *_KEYS) if name in inputs}, False
    prompts, single = canonical_prompts(**{k: inputs[k] for k in _KEYS if k in inputs})
    masks = prompts["masks"]
    if masks is None:
        batch = ops.shape(prompts["labels"])[0]
        prompts["masks"] = ops.zeros((batch, 0, *mask_size, 1))
        prompts["mask_given"] = ops.zeros((batch, 0), dtype="bool")
    elif tuple(masks.shape[2:]) != (*mask_size, 1):
        raise ValueError(
            f"`masks` must be logits of shape (B, P, {mask_size[0]}, {mask_size[1]}, 1), the size "
            f"of this model's mask prompts. Received: shape={tuple(masks.shape)}."
        )
    has_boxes = _unless_empty(inputs.get("boxes")) is not None
    if prompts["labels"].shape[2] != 0 and not has_boxes:
        points, labels = append_not_a_point(prompts["points"], prompts["labels"])
        prompts |= {"points": points, "labels": labels}
    return {"images": inputs["images"], **prompts}, single


def prompt_axes(inputs: dict[str, Tensor]) -> tuple[int | None, ...]:
    """The axes `(B, P)` of what is predicted for these inputs, `(B,)` in the single-object form.

    Of symbols, too, where either may be None.
    """
    _check_names(inputs)
    prompts, single = canonical_prompts(**{k: inputs[k] for k in _KEYS if k in inputs})
    axes = tuple(prompts["labels"].shape[:2])
    return axes[:1] if single and "mask_given" not in inputs else axes


def check_inputs(inputs: dict[str, Tensor]) -> None:
    """Raises unless a model is called on a dict."""
    if not isinstance(inputs, dict):
        raise ValueError(
            "`inputs` must be a dict of `images` and prompts. Received: "
            f"{describe_value(inputs)}. What takes images alone is `image_encoder`."
        )


def _check_names(inputs):
    unknown = set(inputs) - {"images", *_KEYS, *_FACTS}
    if unknown:
        raise unknown_names("inputs", unknown, ("images", *KEYS))


def canonical_prompts(
    points: Tensor | None = None,
    labels: Tensor | None = None,
    boxes: Tensor | None = None,
    masks: Tensor | None = None,
    mask_given: Tensor | None = None,
) -> tuple[dict[str, Tensor | None], bool]:
    """Turns every tensor form of a prompt into points, labels and masks with a prompt axis.

    Arguments have the shapes of `SAMPromptEncoder`'s; without labels all points are foreground. A
    static length of zero on axis 1 means that no image has that prompt.

    Returns:
        Tuple of a dict and a bool. The dict holds `points` `(B, P, T, 2)`, `labels`
        `(B, P, T)`, `masks` and `mask_given`, the last two None when no image has a mask.
        The bool is True if every prompt came in the form for a single object:
        `points (B, N, 2)`, `boxes (B, 1, 2, 2)`, `masks (B, 1, Lh, Lw, 1)`.

    Raises:
        ValueError: if there is no prompt, labels come without points, or a shape is none of
            those above.
    """
    single_object = False
    masks = _unless_empty(masks, 1)
    if not _is_canonical(points, labels, boxes, masks, mask_given):
        points, labels, single_object = _join_tokens(points, labels, boxes, masks)
        if masks is not None and mask_given is None:
            mask_given = ops.ones_like(masks[:, :, 0, 0, 0], dtype="bool")
    prompts = {
        "points": ops.cast(points, "float32"),
        "labels": ops.cast(labels, "int32"),
        "masks": masks,
        "mask_given": None if masks is None else mask_given,
    }
    return prompts, single_object


def append_not_a_point(
    points: Tensor, labels: Tensor, after_boxes: bool = False
) -> tuple[Tensor, Tensor]:
    """Appends one token: not-a-point where there are points but no box, otherwise padding.

    A prompt set that already has a not-a-point token gets padding. With `after_boxes` boxes get
    not-a-point, too.
    """
    if after_boxes:
        is_point, settles = labels >= BACKGROUND, labels == NOT_A_POINT
    else:
        is_point = ops.logical_or(labels == BACKGROUND, labels == FOREGROUND)
        settles = ops.logical_or(labels >= TOP_LEFT, labels == NOT_A_POINT)
    has_point, settled = (ops.any(x, axis=-1, keepdims=True) for x in (is_point, settles))
    wanted = ops.logical_and(has_point, ops.logical_not(settled))  # (B, P, 1)
    label = ops.where(wanted, NOT_A_POINT, PADDING)
    points = ops.pad(points, [[0, 0], [0, 0], [0, 1], [0, 0]])
    return points, ops.concatenate([labels, ops.cast(label, labels.dtype)], axis=2)


def _is_canonical(points, labels, boxes, masks, mask_given):
    if boxes is not None or points is None or labels is None:
        return False
    if (len(points.shape), len(labels.shape)) != (4, 3) or 0 in points.shape[1:3]:
        return False
    if masks is None:
        return True
    counts_agree = masks.shape[1] in (None, points.shape[1])
    return mask_given is not None and len(masks.shape) == 5 and counts_agree


def _join_tokens(points, labels, boxes, masks):
    """Points and box corners as one list of tokens; and whether all is for a single object."""
    # `(B, P, 0, 2)` are P prompt sets, none of which has a point: the axis P counts.
    points, labels, boxes = _unless_empty(points, 1), _unless_empty(labels, 1), _unless_empty(boxes)
    if points is None and labels is not None:
        raise ValueError("`labels` came without `points`: give one label per point.")
    tokens, token_labels, single = [], [], []
    if points is not None:
        _check_rank("points", points, {3: "(B, N, 2)", 4: "(B, P, N, 2)"})
        if labels is None:
            labels = ops.ones_like(points[..., 0], dtype="int32")
        _check_rank("labels", labels, {len(points.shape) - 1: "`points` without its last axis"})
        single.append(len(points.shape) == 3)
        tokens.append(ops.expand_dims(points, 1) if single[-1] else points)
        token_labels.append(ops.expand_dims(labels, 1) if single[-1] else labels)
    if boxes is not None:
        _check_rank("boxes", boxes, {3: "(B, P, 4)", 4: "(B, P, 2, 2) or (B, P, M, 4)"})
        corners, single_box = _box_corners(boxes)
        single.append(single_box)
        tokens.append(corners)
        pair = ops.convert_to_tensor([TOP_LEFT, BOTTOM_RIGHT], "int32")
        pairs = ops.tile(pair, (corners.shape[2] // 2,))
        # Not `broadcast_to` the shape, which symbols do not know.
        token_labels.append(ops.zeros_like(corners[..., 0], dtype="int32") + pairs)
    if masks is not None:
        _check_rank("masks", masks, {5: "(B, P, Lh, Lw, 1)"})
        single.append(masks.shape[1] == 1)
    if masks is None and all(x.shape[2] == 0 for x in tokens):
        raise ValueError(
            "No prompt was given. Pass `points` with `labels`, `boxes`, `masks`, or several."
        )
    if not tokens:
        tokens = [ops.zeros_like(masks[:, :, :0, :2, 0])]  # (B, P, 0, 2)
        token_labels = [ops.zeros_like(masks[:, :, :0, 0, 0], dtype="int32")]  # (B, P, 0)
    counts = {x.shape[1] for x in (*tokens, masks) if x is not None} - {None}
    if len(counts) > 1:
        raise ValueError(
            "`points`, `boxes` and `masks` must agree on the number of prompt sets, axis 1. "
            f"Received: {sorted(counts)}."
        )
    points = ops.concatenate([ops.cast(x, "float32") for x in tokens], axis=2)
    labels = ops.concatenate([ops.cast(x, "int32") for x in token_labels], axis=2)
    return points, labels, all(single)


def _unless_empty(tensor, axes=None):
    """None for a tensor one of whose axes, from axis 1 on, is known to be empty."""
    if tensor is None:
        return None
    checked = tensor.shape[1:-1] if axes is None else tensor.shape[1 : 1 + axes]
    return None if 0 in checked else tensor


def _check_rank(name, tensor, shapes):
    if len(tensor.shape) not in shapes:
        raise ValueError(
            f"`{name}` must have shape {' or '.join(shapes.values())}. "
            f"Received: shape={tuple(tensor.shape)}."
        )


def _box_corners(boxes):
    """`(B, P, 2 M, 2)` corners of any form of `boxes`, and whether it is the single-object form."""
    if len(boxes.shape) == 4 and boxes.shape[2:] == (2, 2):
        return boxes, boxes.shape[1] == 1
    if boxes.shape[-1] != 4:
        raise ValueError(
            "`boxes` must have shape (B, P, 4), (B, P, 2, 2) or (B, P, M, 4): x1, y1, x2, y2 in "
            f"pixels. Received: shape={tuple(boxes.shape)}."
        )
    corners = 2 if len(boxes.shape) == 3 else 2 * boxes.shape[2]
    return ops.reshape(boxes, (*ops.shape(boxes)[:2], corners, 2)), False
