"""The image encoder: a plain vision transformer with windows, and a neck."""

import hashlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sam.images import PIXEL_MEAN, PIXEL_STD
from keras_sam.layers.arguments import Activation, DType, KeptArguments, Tensor
from keras_sam.layers.dense import LayerNormalization
from keras_sam.layers.initialization import build_part
from keras_sam.layers.positional_embedding import PositionEmbedding
from keras_sam.layers.window_attention import WindowedTransformerEncoder
from keras_sam.models.backbone import Backbone


@keras.saving.register_keras_serializable(package="keras_sam")
class ViTDetBackbone(KeptArguments, Backbone):
    """SAM's image encoder: ViT blocks with attention in windows, a few of them global.

    Images are pixel values 0..255 and are normalised inside the graph, in float32. So the
    padding of images that do not fill the frame is `pixel_mean`.

    Args:
        hidden_size: int. Channels of the blocks.
        num_layers: int. Number of blocks.
        intermediate_dim: int. Hidden channels of the blocks' MLPs.
        num_heads: int. Attention heads, `D`.
        global_attention_layer_indices: list of ints. Blocks that attend over the whole
            image instead of windows.
        image_shape: tuple `(H, W, channels)`, sides that are multiples of `patch_size`.
            Defaults to `(1024, 1024, 3)`.
        patch_size: int. Side of a patch in pixels. Defaults to `16`.
        num_output_channels: int. Channels `C` of the embedding. Defaults to `256`.
        use_bias: bool. Whether query, key and value projections have a bias.
        use_abs_pos: bool. Whether patches get an absolute position embedding.
        use_rel_pos: bool. Whether attention uses relative positions.
        window_size: int. Side of a window in patches. Defaults to `14`.
        layer_norm_epsilon: float. Defaults to `1e-6`.
        activation: str or callable. Activation of the MLPs. Defaults to `"gelu"`.
        dropout_rate: float. Dropout in the blocks, in training.
        attention_dropout_rate: float. Dropout of the attention maps, in training.
        drop_path_rate: float. Probability that the last block's residual branches are dropped
            in training; it grows linearly from 0 at the first block.
        initializer_range: optional float. Standard deviation of the initial kernels; by
            default they start as in the released code.
        pixel_mean: sequence of floats, one per channel. Defaults to the RGB means of SAM's
            training, or their average for other numbers of channels. If mean and deviation are
            below 1, images are 0..1.
        pixel_std: sequence of floats, likewise.
        early_features: bool. Whether the output is a dict that also has what the first global
            block returns, which SAM-HQ's decoder takes. Defaults to `False`.
        dtype: optional str or `keras.DTypePolicy`.

    Call arguments:
        images: float or uint8 tensor `(B, H, W, channels)`, pixel values 0..255.

    Returns:
        Float tensor `(B, Eh, Ew, C)` with `Eh, Ew = H / patch_size, W / patch_size`. With
        `early_features=True`, a dict of `image_embeddings`, which is that tensor, and
        `early_features` `(B, Eh, Ew, hidden_size)`.

    Raises:
        ValueError: if the sides of `image_shape` are not multiples of `patch_size`,
            `pixel_mean` does not fit its channels, or there is no global block to take
            `early_features` from.

    Source:
        Li et al. 2022, https://arxiv.org/abs/2203.16527; Kirillov et al. 2023,
        https://arxiv.org/abs/2304.02643, appendix A; Ke et al. 2023,
        https://arxiv.org/abs/2306.01567, section 3.2 (the early features).

    Example:

    ```python
    encoder = keras_sam.ViTDetBackbone(
        hidden_size=12,
        num_layers=2,
        intermediate_dim=24,
        num_heads=3,
        global_attention_layer_indices=[1],
        image_shape=(64, 96, 3),
        window_size=3,
        num_output_channels=8,
    )
    encoder.predict(np.zeros((1, 64, 96, 3)), verbose=0).shape  # (1, 4, 6, 8)
    ```
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        intermediate_dim: int,
        num_heads: int,
        global_attention_layer_indices: Sequence[int],
        image_shape: tuple[int, int, int] = (1024, 1024, 3),
        patch_size: int = 16,
        num_output_channels: int = 256,
        use_bias: bool = True,
        use_abs_pos: bool = True,
        use_rel_pos: bool = True,
        window_size: int = 14,
        layer_norm_epsilon: float = 1e-6,
        activation: Activation = "gelu",
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        initializer_range: float | None = None,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        early_features: bool = False,
        dtype: DType = None,
        **kwargs: Any,
    ):
        h, w, channels = image_shape = _checked_image_shape(image_shape, patch_size)
        global_attention_layer_indices = list(global_attention_layer_indices)
        if early_features:
            first_global = _first_global(global_attention_layer_indices, num_layers)
        dtype = keras.dtype_policies.get(dtype)
        pixel_mean = per_channel("pixel_mean", pixel_mean, PIXEL_MEAN, channels)
        pixel_std = per_channel("pixel_std", pixel_std, PIXEL_STD, channels)

        images = keras.Input((h, w, channels), dtype="float32", name="images")
        x = (images - np.float32(pixel_mean)) / np.float32(pixel_std)
        patches = keras.layers.Conv2D(
            hidden_size, patch_size, strides=patch_size, dtype=dtype, name="patch_embedding"
        )
        x = build_part(patches, x.shape, initializer_range)(x)  # (B, Eh, Ew, hidden_size)
        if use_abs_pos:
            x = PositionEmbedding(dtype=dtype, name="position_embedding")(x)
        states = [x]
        for i in range(num_layers):
            block = WindowedTransformerEncoder(
                intermediate_dim,
                num_heads,
                window_size=0 if i in global_attention_layer_indices else window_size,
                use_bias=use_bias,
                use_rel_pos=use_rel_pos,
                layer_norm_epsilon=layer_norm_epsilon,
                activation=activation,
                dropout_rate=dropout_rate,
                attention_dropout_rate=attention_dropout_rate,
                drop_path_rate=drop_path_rate * i / max(num_layers - 1, 1),
                initializer_range=initializer_range,
                dtype=dtype,
                name=f"block_{i}",
            )
            states.append(block(states[-1]))
        outputs = neck(states[-1], num_output_channels, initializer_range, dtype)
        if early_features:
            outputs = {"image_embeddings": outputs, "early_features": states[first_global + 1]}
        super().__init__(inputs=images, outputs=outputs, dtype=dtype, **kwargs)
        self.keep_arguments(locals())

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        check_frame(inputs, self.image_shape)
        return super().call(inputs, training=training, mask=mask)

    @property
    def input_spec(self) -> None:
        return None  # `call` says more

    @property
    def embedding_size(self) -> tuple[int, int]:
        """Size `(Eh, Ew)` of the embedding."""
        return tuple(n // self.patch_size for n in self.image_shape[:2])

    def with_outputs(self, hidden_states: bool = False, attentions: bool = False) -> keras.Model:
        """A model with the same weights that also returns intermediate results.

        Args:
            hidden_states: bool. The embedded patches and every block's output.
            attentions: bool. Every block's attention map, which is not formed otherwise: 805 MB
                for each global block of ViT-B at 1024 x 1024.

        Returns:
            A `keras.Model` from images to a dict of what the encoder returns, by name, and, as
            asked for, `hidden_states`, a list of `num_layers + 1` tensors
            `(B, Eh, Ew, hidden_size)`, and `attentions`, a list of `num_layers` tensors
            `(B * windows, D, tokens, tokens)`.
        """
        return _InspectedEncoder(self, hidden_states, attentions)

    def fingerprint(self) -> str:
        """A hash of everything that embeddings depend on: weights, frame and settings.

        Returns:
            Hexadecimal string of 32 characters, equal on all backends.
        """
        # Settings that the weights' shapes do not determine. Dropout and names change no embedding.
        names = "image_shape num_heads global_attention_layer_indices window_size use_rel_pos "
        names += "layer_norm_epsilon activation pixel_mean pixel_std "
        names += "early_features" * self.early_features
        config = self.get_config()
        return hash_model(self, {name: config[name] for name in names.split()})


class _InspectedEncoder(keras.Model):
    """`ViTDetBackbone.with_outputs`: the encoder's layers, called one by one."""

    def __init__(self, encoder, hidden_states, attentions):
        # Without autocast: pixels are normalised in float32.
        name = f"{encoder.name}_inspected"
        super().__init__(name=name, dtype=encoder.dtype_policy, autocast=False)
        first = encoder.get_layer("block_0" if encoder.num_layers else "neck_conv1")
        self.stem = keras.Model(encoder.input, first.input)
        self.blocks = [encoder.get_layer(f"block_{i}") for i in range(encoder.num_layers)]
        self.neck = [
            encoder.get_layer(name)
            for name in ("neck_conv1", "neck_norm1", "neck_conv2", "neck_norm2")
        ]
        self.hidden_states = hidden_states
        self.attentions = attentions
        self.early_index = None
        if encoder.early_features:
            first = _first_global(encoder.global_attention_layer_indices, encoder.num_layers)
            self.early_index = first + 1
        self.built = True  # its layers are

    def call(self, images: Tensor) -> dict[str, Any]:
        states, maps = [self.stem(images)], []
        for block in self.blocks:
            x = block(states[-1], return_attention=self.attentions)
            if self.attentions:
                x, attention = x
                maps.append(attention)
            states.append(x)
        x = states[-1]
        for layer in self.neck:
            x = layer(x)
        outputs = {"image_embeddings": x}
        if self.early_index is not None:
            outputs["early_features"] = states[self.early_index]
        if self.hidden_states:
            outputs["hidden_states"] = states
        if self.attentions:
            outputs["attentions"] = maps
        return outputs


def _first_global(indices, num_layers):
    """The first block that attends over the whole image, of whose output early features are."""
    found = [i for i in range(num_layers) if i in indices]
    if not found:
        raise ValueError(
            "`early_features=True` takes the output of the first global block, so "
            "`global_attention_layer_indices` must name a block. Received: "
            f"global_attention_layer_indices={list(indices)}, num_layers={num_layers}."
        )
    return found[0]


def neck(x, channels, initializer_range, dtype):
    """Two convolutions without bias, each with a norm, from the blocks' channels to `channels`."""
    for i, kernel_size in enumerate((1, 3), start=1):
        conv = keras.layers.Conv2D(
            channels,
            kernel_size,
            padding="same",
            use_bias=False,
            dtype=dtype,
            name=f"neck_conv{i}",
        )
        x = build_part(conv, x.shape, initializer_range)(x)
        x = LayerNormalization(epsilon=1e-6, dtype=dtype, name=f"neck_norm{i}")(x)
    return x


def hash_model(model, settings):
    """A hash of a model's weights, in the order of its layers, and of the settings' `repr`."""
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for variable in model.weights:
        if "float" in variable.dtype:
            variable = keras.ops.cast(variable, "float32")  # bfloat16 too, which numpy lacks
        values = keras.ops.convert_to_numpy(variable)
        digest.update(str(values.shape).encode())
        digest.update(np.ascontiguousarray(values))
    return digest.hexdigest()


def encoder_fingerprint(encoder: keras.Model) -> str:
    """`ViTDetBackbone.fingerprint`, or the same for another functional model."""
    if hasattr(encoder, "fingerprint"):
        return encoder.fingerprint()
    return hash_model(encoder, encoder.input.shape)


def check_frame(images: Tensor, image_shape: tuple[int | None, ...]) -> None:
    """Raises unless images `(B, H, W, channels)` have the shape of the model frame."""
    shape = tuple(images.shape)
    wanted = (None, *image_shape)
    if len(shape) != 4 or any(a != b for a, b in zip(shape, wanted) if None not in (a, b)):
        raise ValueError(
            f"`images` must have shape (B, {', '.join(map(str, image_shape))}), the model's frame, "
            f"when a model is called directly. Received: shape={shape}. `predict` takes images of "
            "any size, and `at_image_shape` gives a model with another frame."
        )


def _checked_image_shape(image_shape, patch_size):
    valid = np.ndim(image_shape) == 1 and len(image_shape) == 3 and None not in image_shape
    if not valid or any(n % patch_size or n < patch_size for n in image_shape[:2]):
        raise ValueError(
            "`image_shape` must be (H, W, channels) with sides that are multiples of "
            f"`patch_size`. Received: image_shape={image_shape}, patch_size={patch_size}."
        )
    return tuple(int(n) for n in image_shape)


def per_channel(name, values, default, channels):
    """One float per channel; the RGB default becomes its average for other channel counts."""
    values = [float(v) for v in values]
    if len(values) != channels and values == list(default):
        return [sum(values) / len(values)] * channels
    if len(values) != channels:
        raise ValueError(
            f"`{name}` must have one value per image channel, here {channels}. "
            f"Received: {name}={values}."
        )
    return values
