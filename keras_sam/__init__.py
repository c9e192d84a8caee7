"""Segment Anything for Keras 3: on TensorFlow, JAX and PyTorch, with one code base.

Public names are imported at their first use, so that the command line can choose a Keras
backend, and the numpy-only modules work, without Keras. Importing this package all the
same registers its classes with Keras, so that `.keras` files load without
`custom_objects`.
"""

import importlib
import importlib.abc
import importlib.util
import os
import sys

__version__ = "0.1.0"

# PyTorch reads it at its first tensor: large ones lie in pages of 2 MB then, where Linux offers
# them, and new memory costs a tenth. With the default a tensor of 8 MB is 2048 page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_HOME = {
    "Backbone": "keras_sam.models.backbone",
    "ImageSegmenter": "keras_sam.models.image_segmenter",
    "MLP": "keras_sam.layers.mlp",
    "MultiHeadAttentionWithDownsampling": "keras_sam.layers.multi_head_attention",
    "RandomFrequencyPositionalEmbeddings": "keras_sam.layers.positional_embedding",
    "ResizePlan": "keras_sam.geometry",
    "SAMAutomaticMaskGenerator": "keras_sam.mask_generator",
    "SAMBackbone": "keras_sam.models.sam_backbone",
    "SAMImageConverter": "keras_sam.preprocessing",
    "SAMImageSegmenter": "keras_sam.models.sam_image_segmenter",
    "SAMImageSegmenterPreprocessor": "keras_sam.preprocessing",
    "SAMMaskDecoder": "keras_sam.layers.mask_decoder",
    "SAMPredictor": "keras_sam.predictor",
    "SAMPromptEncoder": "keras_sam.layers.prompt_encoder",
    "TwoWayMultiHeadAttention": "keras_sam.layers.two_way_transformer",
    "TwoWayTransformer": "keras_sam.layers.two_way_transformer",
    "UnfinishedImagesError": "keras_sam.mask_generator",
    "ViTDetBackbone": "keras_sam.models.vit_det_backbone",
    "WindowAttention": "keras_sam.layers.window_attention",
    "WindowedTransformerEncoder": "keras_sam.layers.window_attention",
    "best_mask": "keras_sam.models.outputs",
    "mask_to_logits": "keras_sam.prompts",
    "restore_masks": "keras_sam.preprocessing",
    "select_masks": "keras_sam.models.outputs",
}
# A module of ours that imports Keras must be complete before the others can import it.
_KERAS_ROOMS = (
    "backends",
    "compat",
    "evaluation",
    "layers",
    "losses",
    "mask_generator",
    "models",
    "predictor",
    "preprocessing",
    "training",
)
_MODULES = (
    "annotations",
    "boxes",
    "compat",
    "evaluation",
    "geometry",
    "losses",
    "masks",
    "presets",
    "prompts",
    "training",
    "visualization",
)

__all__ = sorted([*_HOME, *_MODULES, "__version__"])


def __getattr__(name):
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"keras_sam.{name}")
    else:
        raise AttributeError(f"module 'keras_sam' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__():
    return __all__


def _register_classes():
    """Imports every module that defines a class which Keras may have to load."""
    for module in sorted(
        {
            *_HOME.values(),
            "keras_sam.compat.keras_cv",
            "keras_sam.training.layerwise_decay",
            "keras_sam.training.trainer",
        }
    ):
        importlib.import_module(module)


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Registers our classes once Keras, or the first module of ours that uses it, is imported."""

    _starts = {"keras", *(f"keras_sam.{room}" for room in _KERAS_ROOMS)}

    def find_spec(self, name, path=None, target=None):
        if name not in self._starts:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        load = spec.loader.exec_module

        def load_and_register(module):
            load(module)
            _register_classes()

        spec.loader.exec_module = load_and_register
        return spec


if sys.modules.get("keras"):
    _register_classes()
else:
    sys.meta_path.insert(0, _AfterKeras())
