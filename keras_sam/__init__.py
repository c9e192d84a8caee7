"""Segment Anything for Keras 3: on TensorFlow, JAX and PyTorch, with one code base.

Public names are imported at their first use, so that the command line can choose a Keras
backend, and the numpy-only modules work, without Keras. Importing this package all the
same registers its classes with Keras, so that `.keras` files load without
`custom_objects`.
"""

import importlib
import importlib.abc
import os
import sys

from keras_sam import layers, models
from keras_sam.backend_choice import choose_backend
from keras_sam.namespaces import lazy_names

__version__ = "0.1.0"

# PyTorch reads it at its first tensor: large ones lie in pages of 2 MB then, where Linux offers
# them, and new memory costs less, since there are fewer page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# GNU's OpenMP, which PyTorch's threads use, reads it when it is loaded: threads that wait for each
# other look again 1,000 times before they sleep, instead of 300,000 times, which takes all the time
# where another program has their processor. After PyTorch, `backends/torch.py` has another way.
if "OMP_WAIT_POLICY" not in os.environ and "torch" not in sys.modules:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
choose_backend()

_HOMES = {
    **layers.HOMES,
    **models.HOMES,
    "ExportedSegmenter": "keras_sam.exported",
    "ResizePlan": "keras_sam.geometry",
    "SAMAutomaticMaskGenerator": "keras_sam.mask_generator",
    "SAMPredictor": "keras_sam.predictor",
    "UnfinishedImagesError": "keras_sam.mask_generator",
    "best_mask": "keras_sam.outputs",
    "mask_to_logits": "keras_sam.prompts",
    "restore_masks": "keras_sam.outputs",
    "select_masks": "keras_sam.outputs",
}
_MODULES = (
    "annotations",
    "boxes",
    "compat",
    "evaluation",
    "export",
    "geometry",
    "layers",
    "losses",
    "masks",
    "models",
    "presets",
    "prompts",
    "ray",
    "tiles",
    "training",
    "visualization",
)
__all__, __getattr__, __dir__ = lazy_names(globals(), _HOMES, _MODULES)
__all__ += ["__version__"]


def _register_classes():
    """Imports every module that defines a class which Keras may have to load."""
    for module in sorted(
        {
            *_HOMES.values(),
            "keras_sam.compat.keras_cv",
            "keras_sam.compat.tfimm",
            "keras_sam.training.layerwise_decay",
            "keras_sam.training.trainer",
        }
    ):
        importlib.import_module(module)


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Registers our classes once Keras is imported.

    A module of ours may be what imports Keras, and others need it complete. So this waits until
    the outermost import of Keras or of a module of ours is done.
    """

    def __init__(self):
        self._unfinished = 0

    def find_spec(self, name, path=None, target=None):
        if name != "keras" and not name.startswith("keras_sam."):
            return None
        finders = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None:
            self._watch(spec.loader)
        return spec

    def _watch(self, loader):
        load = loader.exec_module

        def load_and_register(module):
            self._unfinished += 1
            try:
                load(module)
            finally:
                self._unfinished -= 1
            if self._unfinished == 0 and sys.modules.get("keras") and self in sys.meta_path:
                sys.meta_path.remove(self)
                _register_classes()

        loader.exec_module = load_and_register


if sys.modules.get("keras"):
    _register_classes()
else:
    sys.meta_path.insert(0, _AfterKeras())
