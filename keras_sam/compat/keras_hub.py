"""KerasHub's two namespaces with our classes in them, whose names are KerasHub's already."""

from keras_sam import layers, models

__all__ = ["layers", "models"]
