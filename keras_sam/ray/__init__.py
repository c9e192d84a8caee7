"""Photographs by the million: the mask generator and the predictor in workers of Ray.

`SegmentEverything` and `SegmentPrompts` are classes for `ray.data.Dataset.map_batches`, one model
per actor; `keras-sam everything --ray` is the same with files around it (`run`). Nothing here
imports Ray before it is needed: `pip install "keras-sam[ray]"`.
"""

from keras_sam.ray.batches import SegmentEverything, SegmentPrompts
from keras_sam.ray.cluster import runtime_env

__all__ = ["SegmentEverything", "SegmentPrompts", "runtime_env"]
