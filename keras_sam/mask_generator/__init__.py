"""Segmenting everything: the generator, the candidates it chooses from, and its records."""

from typing import Any

__all__ = ["SAMAutomaticMaskGenerator", "UnfinishedImagesError"]


def __getattr__(name: str) -> Any:
    # Only when asked for, so that records can be read and drawn without Keras.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from keras_sam.mask_generator import generator

    return getattr(generator, name)
