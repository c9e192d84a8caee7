"""What is exported: the parts of a segmenter as models from plain arrays to plain arrays.

Arrays are channels first, as other programs for SAM have them. Sizes that depend on the image are
not in here: what turns masks into the image's size is added in the format that is written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_sam.encode_decode import named_features
from keras_sam.layers.arguments import Tensor
from keras_sam.layers.hq_mask_decoder import SAMHQMaskDecoder
from keras_sam.layers.mask_upscaler import cells_of, depth_to_space
from keras_sam.models.programs import extra_outputs

_EARLY, _HQ = "early_features", "hq_features"


class Argument(NamedTuple):
    """An input: its name, dtype and shape; a str in the shape names an axis of any length."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def example(self, **lengths: int) -> np.ndarray:
        """Zeros of this shape; axes of any length have those that are given."""
        return np.zeros([lengths.get(n, n) for n in self.shape], self.dtype)


class Graph:
    """A function of its `layers`, from `arguments` one by one to a dict of `outputs`."""

    layers: tuple[keras.layers.Layer, ...]
    arguments: tuple[Argument, ...]
    outputs: tuple[str, ...]

    def __call__(self, *arrays: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


class ImageEncoderGraph(Graph):
    """Pixels `(B, channels, H, W)`, normalised and padded with 0, to the features by name.

    They are those of `feature_shapes`.
    """

    def __init__(self, segmenter: Any):
        self.encoder, self.decoder = segmenter.image_encoder, segmenter.mask_decoder
        self.layers = (self.encoder,)
        self.outputs = tuple(feature_shapes(segmenter))
        if _HQ in self.outputs:
            self.layers += (self.decoder,)
        h, w, channels = segmenter.image_shape
        self.mean, self.std = pixel_statistics(segmenter)
        self.arguments = (Argument("pixels", "float32", (1, channels, h, w)),)

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        images = ops.add(ops.multiply(ops.transpose(pixels, (0, 2, 3, 1)), self.std), self.mean)
        features = named_features(self.encoder(images, training=False))
        if _HQ in self.outputs:
            features = with_hq_features(self.decoder, features)
        return {name: _channels_first(features[name]) for name in self.outputs}


class PromptDecoderGraph(Graph):
    """Features of one image and P prompts in the model frame to masks and their scores.

    Prompts are canonical: `points` `(1, P, N, 2)`, `labels` `(1, P, N)` (1 and 0 clicks, 2 and 3
    corners of a box, -1 not a point, -10 padding), `mask_prompts` `(1, P, Lh, Lw)` and
    `mask_given` `(1, P)`, above 0 where a prompt has a mask. Outputs are `masks`
    `(1, P, K, Lh, Lw)` and `iou_pred` `(1, P, K)`.
    """

    def __init__(self, segmenter: Any, multimask_output: bool | None = None):
        self.prompt_encoder = segmenter.prompt_encoder
        self.mask_decoder = segmenter.mask_decoder
        self.layers = (self.prompt_encoder, self.mask_decoder)
        self.multimask_output = multimask_output
        self.features = feature_arguments(segmenter)
        self.arguments = (
            *self.features,
            Argument("points", "float32", (1, "prompts", "points", 2)),
            Argument("labels", "int32", (1, "prompts", "points")),
            Argument("mask_prompts", "float32", (1, "prompts", *segmenter.mask_size)),
            Argument("mask_given", "float32", (1, "prompts")),
        )
        self.outputs = ("masks", "iou_pred", *extra_outputs(self.mask_decoder))

    def __call__(self, *arrays: Tensor) -> dict[str, Tensor]:
        count = len(self.features)
        features = {x.name: _channels_last(a) for x, a in zip(self.features, arrays[:count])}
        if _HQ in features:
            cells = cells_of(features[_HQ], features["image_embeddings"].shape[1:3])
            features[_HQ] = ops.reshape(cells, (1, -1, features[_HQ].shape[-1]))
        points, labels, masks, mask_given = arrays[count:]
        embedded = self.prompt_encoder(
            points=points,
            labels=labels,
            masks=ops.expand_dims(masks, -1),
            mask_given=mask_given > 0,
        )
        outputs = self.mask_decoder(
            **features, **embedded, multimask_output=self.multimask_output, training=False
        )
        return {name: ops.cast(x, "float32") for name, x in outputs.items()}


def feature_shapes(segmenter: Any) -> dict[str, tuple[int, ...]]:
    """Shapes `(h, w, C)` of what the files' image encoder gives, and their decoder takes, by name.

    They are those of `encode`. Only of SAM-HQ the encoder's file gives, in place of
    `early_features`, what its decoder makes of an image before it looks at prompts: `hq_features`,
    in the size of the masks. Else the decoder's file would compute that for every click.
    """
    shapes, decoder = dict(segmenter.feature_shapes), segmenter.mask_decoder
    if isinstance(decoder, SAMHQMaskDecoder):
        del shapes[_EARLY]
        shapes[_HQ] = (*segmenter.mask_size, decoder.hidden_size // 8)
    return shapes


def with_hq_features(decoder: SAMHQMaskDecoder, features: dict[str, Tensor]) -> dict[str, Tensor]:
    """The features of a SAM-HQ as its files pass them on, see `feature_shapes`."""
    features = decoder.embed_features(**features)
    grid = features["image_embeddings"].shape[1:3]
    return {**features, _HQ: depth_to_space(features[_HQ], grid)}


def as_files_have_them(segmenter: Any, encoded: dict[str, Any]) -> dict[str, np.ndarray]:
    """What `encode` of a segmenter returned as arrays `(1, C, h, w)` for the decoder's file."""
    features = {name: encoded[name] for name in segmenter.feature_shapes}
    decoder = segmenter.mask_decoder
    if isinstance(decoder, SAMHQMaskDecoder):
        dtype = decoder.compute_dtype
        tensors = {name: ops.convert_to_tensor(x, dtype) for name, x in features.items()}
        made = with_hq_features(decoder, tensors)
        features = {k: ops.convert_to_numpy(ops.cast(x, "float32")) for k, x in made.items()}
    return {name: x.transpose(0, 3, 1, 2) for name, x in features.items()}


def feature_arguments(segmenter: Any) -> tuple[Argument, ...]:
    """The image's features as arguments `(1, C, h, w)`."""
    return tuple(
        Argument(name, "float32", (1, shape[-1], *shape[:-1]))
        for name, shape in feature_shapes(segmenter).items()
    )


def pixel_statistics(segmenter: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the encoder's images, float32 `(channels,)`."""
    encoder, channels = segmenter.image_encoder, segmenter.image_shape[-1]
    values = (getattr(encoder, "pixel_mean", 0.0), getattr(encoder, "pixel_std", 1.0))
    mean, std = (np.broadcast_to(np.float32(x), (channels,)) for x in values)
    return mean, std


def _channels_first(x):
    return ops.cast(ops.transpose(x, (0, 3, 1, 2)), "float32")


def _channels_last(x):
    return ops.transpose(x, (0, 2, 3, 1))
