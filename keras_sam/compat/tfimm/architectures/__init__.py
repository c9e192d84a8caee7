"""`tfimm.architectures`, of which there is one."""

from keras_sam.compat.tfimm.architectures import segment_anything
from keras_sam.compat.tfimm.architectures.segment_anything import *  # noqa: F403

__all__ = ["segment_anything", *segment_anything.__all__]
