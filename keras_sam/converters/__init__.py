"""Checkpoints of other programs: read without them, and written for them."""

from keras_sam.converters.conversion import (
    FAMILIES,
    convert,
    family_of,
    format_of,
    looks_like,
    part_of,
    rename,
    to_meta,
)
from keras_sam.converters.family import PARTS, Family
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
    "FAMILIES",
    "PARTS",
    "Family",
    "Tensor",
    "convert",
    "family_of",
    "first_bytes",
    "format_of",
    "looks_like",
    "part_of",
    "read_checkpoint",
    "read_keras_config",
    "rename",
    "shard_names",
    "to_meta",
    "widen_bfloat16",
]
