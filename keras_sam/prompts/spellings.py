"""What other systems call images and prompts, for the errors about names that are not ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_OURS = {
    "images": "image img input_image input_images pixel_values inputs",
    "points": "point coords point_coords input_points input_point clicks",
    "labels": "label point_labels input_labels input_label",
    "boxes": "box bbox bboxes input_boxes input_box xyxy",
    "masks": "mask mask_input mask_inputs input_masks input_mask mask_prompt",
    "image_embeddings": "embedding embeddings image_embedding features",
    "original_sizes": "original_size image_size image_sizes",
}
_THEIRS = {theirs: ours for ours, names in _OURS.items() for theirs in names.split()}


def unknown_names(name: str, unknown: Iterable[str], known: Sequence[str]) -> ValueError:
    """The error for keys of the dict `name` that mean nothing, with those that may be meant."""
    unknown = sorted(map(str, unknown))
    meant = {key: our_name(key, known) for key in unknown}
    hints = "".join(f" Here {key!r} is {ours!r}." for key, ours in meant.items() if ours)
    return ValueError(
        f"`{name}` must have no keys but {tuple(known)}. Received also: {unknown}.{hints}"
    )


def is_other_name(name: str, known: Sequence[str]) -> bool:
    """Whether this is what another system calls one of `known`."""
    return _THEIRS.get(str(name).lower()) in known


def our_name(name: str, known: Sequence[str]) -> str | None:
    """Which of our names is meant by one of another system, or by a misspelling."""
    ours = _THEIRS.get(name.lower())
    if ours in known:
        return ours
    return next(iter(difflib.get_close_matches(name.lower(), known, 1, 0.7)), None)
