"""Checkpoints of other programs: read without them, and written for them."""

from keras_sam.converters.conversion import (
    convert,
    format_of,
    infer_config,
    looks_like,
    rename,
    to_hugging_face,
    to_meta,
)
from keras_sam.converters.readers import read_checkpoint, read_keras_config, shard_names
from keras_sam.converters.tables import Tensor, widen_bfloat16

__all__ = [
    "Tensor",
    "convert",
    "format_of",
    "infer_config",
    "looks_like",
    "read_checkpoint",
    "read_keras_config",
    "rename",
    "shard_names",
    "to_hugging_face",
    "to_meta",
    "widen_bfloat16",
]
