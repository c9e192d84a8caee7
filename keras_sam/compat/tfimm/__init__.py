"""tfimm 0.2.14's Segment Anything under its own names, on every backend.

`create_model`, `list_models` and `create_preprocessing` know the three released models, and those
that `models.register_model` adds. Weights come from our presets, or from any file that they are
read from: `model_path=` takes what `keras_sam.SAMImageSegmenter.from_preset` takes.

Images of the model are normalised, as `create_preprocessing` does it; those of `SAMPredictor` are
0..255. Sizes are rounded to the nearest pixel, and the image's border has the mean colour, as the
checkpoints were trained; tfimm rounds down, and its border is black.
"""

from keras_sam.compat.tfimm import architectures, models
from keras_sam.compat.tfimm.models import create_model, create_preprocessing, list_models

__all__ = ["architectures", "create_model", "create_preprocessing", "list_models", "models"]
