"""`keras_cv.src.models`."""

from keras_sam.compat.keras_cv.models import *  # noqa: F403
