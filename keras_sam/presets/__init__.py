"""Presets: what `from_preset` and `save_to_preset` do, short of building Keras models."""

from keras_sam.presets.adapt import Preset, adapt
from keras_sam.presets.locate import list_presets
from keras_sam.presets.read import read_preset
from keras_sam.presets.write import convert_checkpoint, upload_preset

__all__ = [
    "Preset",
    "adapt",
    "convert_checkpoint",
    "list_presets",
    "read_preset",
    "upload_preset",
]
