"""transformers' Segment Anything under its own names, over the models of this package.

Code written for transformers 4.34 runs with the import changed, on every Keras backend: `SamModel`
for those who work with tensors of torch, and `TFSamModel`, which transformers dropped in 5.0, for
those who work with TensorFlow's. Both take tensors of any library and numpy arrays, and answer in
the library of what they got. A library is imported only for those who pass or ask for its tensors.
"""

from keras_sam.compat.transformers.configuration import (
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from keras_sam.compat.transformers.image_processing import SamImageProcessor
from keras_sam.compat.transformers.mask_generation import pipeline
from keras_sam.compat.transformers.modeling import SamModel, SamVisionModel, TFSamModel
from keras_sam.compat.transformers.processing import SamProcessor

# The page's examples load a SAM by these names, too.
AutoModel = AutoModelForMaskGeneration = SamModel
TFAutoModel = TFAutoModelForMaskGeneration = TFSamModel
AutoProcessor, AutoImageProcessor = SamProcessor, SamImageProcessor

__all__ = [
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForMaskGeneration",
    "AutoProcessor",
    "SamConfig",
    "SamImageProcessor",
    "SamMaskDecoderConfig",
    "SamModel",
    "SamProcessor",
    "SamPromptEncoderConfig",
    "SamVisionConfig",
    "SamVisionModel",
    "TFAutoModel",
    "TFAutoModelForMaskGeneration",
    "TFSamModel",
    "pipeline",
]
