"""What is said where the thresholds keep no mask: how many fell at which, and what keeps ten.

Numpy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sam.mask_generator.candidates import Candidates
from keras_sam.masks import stability_score
from keras_sam.notices import notice

_ENOUGH = 10


class Shortfall:
    """Scores and stabilities of an image's candidates, until the first of them is kept.

    Args:
        thresholds: the `Thresholds` of the records, whose module imports this one.
    """

    def __init__(self, thresholds: Any):
        self._thresholds = thresholds
        self._scores: list[np.ndarray] = []
        self._stabilities: list[np.ndarray] = []

    def add(self, batch: Candidates) -> None:
        """Notes candidates; their stability is that of the logits before they are enlarged."""
        limits = self._thresholds
        stabilities = stability_score(
            batch.logits, limits.mask_threshold, limits.stability_score_offset
        )
        self._scores.append(batch.scores.ravel())
        self._stabilities.append(np.nan_to_num(stabilities.ravel()))

    def report(self) -> None:
        """Says, once per process, why no mask is left."""
        if self._scores:
            notice(self.text(), "the thresholds keep no mask")

    def text(self) -> str:
        """The sentence that `report` says."""
        limits = self._thresholds
        scores, stabilities = np.concatenate(self._scores), np.concatenate(self._stabilities)
        passed = sum(map(limits.accept_score, scores))
        told = (
            f"No mask is left of {len(scores)} candidates: {len(scores) - passed} have a predicted "
            f"IoU of at most `pred_iou_thresh={limits.pred_iou_thresh:g}`"
        )
        if passed:
            told += (
                f", {passed} are less stable than "
                f"`stability_score_thresh={limits.stability_score_thresh:g}` or cut off by the "
                "edge of a crop"
            )
        told += "."
        for percent in range(99, 0, -1):  # of both thresholds, which are lowered together
            iou = percent / 100 * limits.pred_iou_thresh
            stability = percent / 100 * limits.stability_score_thresh
            if ((scores > iou) & (stabilities >= stability)).sum() >= _ENOUGH:
                return (
                    f"{told} `pred_iou_thresh={iou:.2f}, stability_score_thresh={stability:.2f}` "
                    f"would keep about {_ENOUGH} before overlaps are dropped: look at them, for "
                    "the model is less sure of these."
                )
        return told
