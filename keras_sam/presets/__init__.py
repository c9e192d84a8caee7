"""Presets: what `from_preset` and `save_to_preset` do, short of building Keras models."""

from keras_sam.presets.adapt import fit_position_tables
from keras_sam.presets.assign import assign
from keras_sam.presets.export import convert_checkpoint
from keras_sam.presets.listing import list_presets
from keras_sam.presets.loading import Preset, fit, load
from keras_sam.presets.save import save_preset
from keras_sam.presets.upload import upload_preset

__all__ = [
    "Preset",
    "assign",
    "convert_checkpoint",
    "fit",
    "fit_position_tables",
    "list_presets",
    "load",
    "save_preset",
    "upload_preset",
]
