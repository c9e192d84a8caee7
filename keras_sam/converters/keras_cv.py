"""The weight files of KerasCV 0.9's `SegmentAnythingModel`: KerasHub's after four renames.

Source:
    https://github.com/keras-team/keras-cv at v0.9.0, keras_cv/src/models/segmentation.
"""

from keras_sam.converters.keras_hub import TABLE
from keras_sam.converters.tables import keras_rows

_RENAMES = (
    ("mask_decoder/", "layers/sam_mask_decoder/"),
    ("mlp_block/mlp_block/", "mlp_block/dense_net/"),
    ("mlp{_k}/mlp_block/", "mlp{_k}/dense_net/"),
    ("iou_prediction_head/mlp_block/", "iou_prediction_head/dense_net/"),
    ("add_decomposed_relative_pe", "add_decomposed_reative_pe"),
)

SIGNATURE = "layers/sam_mask_decoder/iou_token/vars/0"


def _renamed(name):
    for old, new in _RENAMES:
        name = name.replace(old, new, 1)
    return name


ROWS = keras_rows(tuple((_renamed(foreign), ours, kind) for foreign, ours, kind in TABLE))
