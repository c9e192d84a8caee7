"""`keras_cv.src`, from which KerasCV 0.9's own examples import."""

from keras_sam.compat.keras_cv.src import layers, models

__all__ = ["layers", "models"]
