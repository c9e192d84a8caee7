"""Settings of the mask generator that a model may recommend; checked where the model gets them."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Mapping
from typing import Any

# What results depend on, and what the model, not the machine or the picture, decides.
RECOMMENDABLE: dict[str, type] = {
    "points_per_side": int,
    "pred_iou_thresh": float,
    "stability_score_thresh": float,
    "stability_score_offset": float,
    "box_nms_thresh": float,
    "crop_n_layers": int,
    "crop_nms_thresh": float,
    "crop_overlap_ratio": float,
    "crop_n_points_downscale_factor": int,
    "min_mask_region_area": float,
    "use_m2m": bool,
}
_KINDS = {int: numbers.Integral, float: numbers.Real, bool: bool}
_WORDS = {int: "a whole number", float: "a number", bool: "True or False"}


def check_generator_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of a model's `generator_settings`, ready for JSON.

    Args:
        settings: optional mapping from parameters of `SAMAutomaticMaskGenerator` to values.

    Returns:
        Dict from names to ints, floats and bools; empty for None.

    Raises:
        ValueError: if it is no mapping, a model cannot recommend one of the names, or a value is of
            another kind.
    """
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise ValueError(
            "`generator_settings` must be a dict of parameters of `SAMAutomaticMaskGenerator`. "
            f"Received: {settings!r:.80}."
        )
    return {name: _checked(name, value) for name, value in settings.items()}


def _checked(name, value):
    kind = RECOMMENDABLE.get(name)
    if kind is None:
        close = difflib.get_close_matches(str(name), RECOMMENDABLE, n=1)
        hint = f"Did you mean `{close[0]}`?" if close else f"There are: {', '.join(RECOMMENDABLE)}."
        raise ValueError(
            f"`generator_settings` has no setting `{name}` that a model could recommend. {hint}"
        )
    wanted = isinstance(value, _KINDS[kind]) and isinstance(value, bool) == (kind is bool)
    if not wanted or not math.isfinite(value):
        raise ValueError(
            f"`generator_settings[{name!r}]` must be {_WORDS[kind]}. Received: {value!r:.80}."
        )
    return kind(value)
