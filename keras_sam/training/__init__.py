"""Training SAM as the paper does: data, simulated clicks, and rounds of them on every object."""

from keras_sam.losses import SAM2Loss, SAMLoss
from keras_sam.training.cached import CachedEmbeddings
from keras_sam.training.data import ObjectBatches
from keras_sam.training.layerwise_decay import LayerwiseDecay
from keras_sam.training.sources import CocoObjects, MaskFolder, SA1BFolder
from keras_sam.training.trainer import SAMTrainer

__all__ = [
    "CachedEmbeddings",
    "CocoObjects",
    "LayerwiseDecay",
    "MaskFolder",
    "ObjectBatches",
    "SA1BFolder",
    "SAM2Loss",
    "SAMLoss",
    "SAMTrainer",
]
