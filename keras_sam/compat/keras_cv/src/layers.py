"""`keras_cv.src.layers`."""

from keras_sam.compat.keras_cv.layers import *  # noqa: F403
