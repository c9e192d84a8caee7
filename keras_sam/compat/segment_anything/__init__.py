"""Meta's `segment_anything` under its own names, over the models of this package.

Code written for it runs with the import changed, on every Keras backend. Images and prompts are
numpy arrays, as there; where tensors of torch are passed, tensors of torch come back, and torch is
imported for nothing else. `keras_sam.compat.segment_anything.modeling` and `.utils` have what
Meta's folders of those names have.
"""

from keras_sam.compat.segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
from keras_sam.compat.segment_anything.build_sam import (
    build_sam,
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
    sam_model_registry,
)
from keras_sam.compat.segment_anything.predictor import SamPredictor

__all__ = [
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "sam_model_registry",
]
