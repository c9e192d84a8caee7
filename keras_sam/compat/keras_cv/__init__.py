"""KerasCV 0.9's Segment Anything under its own names of classes, arguments and outputs.

`models` and `layers` are KerasCV's, and the same ones in `src`, where its examples import from.

The models are constructors of ours: what they return is a `keras_sam.ViTDetBackbone` or a
`keras_sam.SAMImageSegmenter`. The layers are ours with a table of names before them. Our
arguments are accepted beside KerasCV's, so everything that ours can do is there too.

Images are 0..255, as for KerasCV's presets and for `include_rescaling=True`. A
`ViTDetBackbone(include_rescaling=False)` takes 0..1, as it did.

`model.backbone` is the whole `SAMBackbone`: KerasCV's, the image encoder, is
`model.image_encoder`. `fit` trains, where KerasCV's raises.
"""

from keras_sam.compat.keras_cv import layers, models, src
from keras_sam.compat.keras_cv.layers import TwoWayMultiHeadAttention, WindowedTransformerEncoder
from keras_sam.compat.keras_cv.models import (
    SAMMaskDecoder,
    SAMPromptEncoder,
    SegmentAnythingModel,
    TwoWayTransformer,
    ViTDetBackbone,
    ViTDetBBackbone,
    ViTDetHBackbone,
    ViTDetLBackbone,
)

__version__ = "0.9.0"  # of the names that are here, for code that prints it or asks for one


def version() -> str:
    """KerasCV's version whose names are here."""
    return __version__


__all__ = [
    "SAMMaskDecoder",
    "SAMPromptEncoder",
    "SegmentAnythingModel",
    "TwoWayMultiHeadAttention",
    "TwoWayTransformer",
    "ViTDetBBackbone",
    "ViTDetBackbone",
    "ViTDetHBackbone",
    "ViTDetLBackbone",
    "WindowedTransformerEncoder",
    "layers",
    "models",
    "src",
    "version",
]
