"""Checkpoints of other programs: read without them, and written for them."""

from keras_sam.converters.conversion import (
    PARTS,
    convert,
    format_of,
    infer_config,
    looks_like,
    part_of,
    rename,
    to_hugging_face,
    to_meta,
)
from keras_sam.converters.readers import (
    CONFIG_KEY,
    first_bytes,
    read_checkpoint,
    read_keras_config,
    shard_names,
)
from keras_sam.converters.tables import Tensor, widen_bfloat16

__all__ = [
    "CONFIG_KEY",
    "PARTS",
    "Tensor",
    "convert",
    "first_bytes",
    "format_of",
    "infer_config",
    "looks_like",
    "part_of",
    "read_checkpoint",
    "read_keras_config",
    "rename",
    "shard_names",
    "to_hugging_face",
    "to_meta",
    "widen_bfloat16",
]
