"""Prompts to embeddings: points and box corners become tokens, a mask becomes a feature map."""

from typing import Any

import keras
from keras import ops

from keras_sam.layers.arguments import Activation, KeptArguments, Shape, Tensor, of_one_kind
from keras_sam.layers.dense import LayerNormalization
from keras_sam.layers.initialization import build_part
from keras_sam.layers.positional_embedding import RandomFrequencyPositionalEmbeddings
from keras_sam.layers.prompt_tensors import append_not_a_point, canonical_prompts
from keras_sam.prompts import PADDING


@keras.saving.register_keras_serializable(package="keras_sam")
class MaskDownscaler(KeptArguments, keras.layers.Layer):
    """From mask logits `(B, 4 Eh, 4 Ew, 1)` to a feature map `(B, Eh, Ew, C)`.

    Arguments are those of `SAMPromptEncoder`.
    """

    def __init__(
        self,
        hidden_size: int,
        mask_in_channels: int = 16,
        activation: Activation = "gelu",
        layer_norm_epsilon: float = 1e-6,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if mask_in_channels % 4:
            raise ValueError(
                "`mask_in_channels` must be a multiple of 4. "
                f"Received: mask_in_channels={mask_in_channels}."
            )
        self.keep_arguments(locals())
        policy = self.dtype_policy
        self.conv1 = keras.layers.Conv2D(
            mask_in_channels // 4, 2, strides=2, dtype=policy, name="conv1"
        )
        self.norm1 = LayerNormalization(epsilon=layer_norm_epsilon, dtype=policy, name="norm1")
        self.conv2 = keras.layers.Conv2D(mask_in_channels, 2, strides=2, dtype=policy, name="conv2")
        self.norm2 = LayerNormalization(epsilon=layer_norm_epsilon, dtype=policy, name="norm2")
        self.conv3 = keras.layers.Conv2D(hidden_size, 1, dtype=policy, name="conv3")

    def build(self, input_shape: Shape | None = None) -> None:
        middle = (None, None, None, self.mask_in_channels)
        quarter = (None, None, None, self.mask_in_channels // 4)
        build_part(self.conv1, (None, None, None, 1), self.initializer_range)
        self.norm1.build(quarter)
        build_part(self.conv2, quarter, self.initializer_range)
        self.norm2.build(middle)
        build_part(self.conv3, middle, self.initializer_range)

    def call(self, masks: Tensor) -> Tensor:
        x = self.activation(self.norm1(self.conv1(masks)))  # (B, 2 Eh, 2 Ew, C' / 4)
        x = self.activation(self.norm2(self.conv2(x)))  # (B, Eh, Ew, C')
        return self.conv3(x)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, h, w, _ = input_shape
        return (batch, h and h // 4, w and w // 4, self.hidden_size)


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMPromptEncoder(KeptArguments, keras.layers.Layer):
    """Embeds points, boxes and masks.

    A box is two more points, its corners, so all sparse prompts are one list of
    coordinates and labels: `-10` padding, `-1` not a point, `0` background, `1`
    foreground, `2` top-left and `3` bottom-right corner. A point's embedding is the
    encoding of its pixel's centre plus one learned vector per label; not-a-point
    is a learned vector alone. Coordinates stay float32 whatever the dtype policy.

    Args:
        hidden_size: int. Channels `C` of the embeddings. Defaults to `256`.
        image_embedding_size: tuple `(Eh, Ew)`. Defaults to `(64, 64)`.
        input_image_size: tuple `(H, W)` of the model frame in pixels. Defaults to
            `(1024, 1024)`.
        mask_in_channels: int. Channels inside the mask's convolutions. Defaults to `16`.
        activation: str or callable. Activation between those. Defaults to `"gelu"`.
        layer_norm_epsilon: float. Defaults to `1e-6`.
        scale: float. Standard deviation of the positional frequencies.
        not_a_point_after_boxes: bool. Appends not-a-point to every prompt set with a point or a
            box and without that token, as SAM 2 does. Defaults to `False`: SAM was trained with
            it after points alone, and whoever calls this layer appends it.
        initializer_range: optional float. Standard deviation of the initial kernels and
            embeddings; by default they start as in the released code.

    Call arguments:
        points: optional float tensor `(B, N, 2)` or `(B, P, N, 2)`, x and y in pixels of
            the model frame.
        labels: optional int tensor, as `points` without the last axis.
        boxes: optional float tensor `(B, P, 4)`, `(B, P, 2, 2)` or `(B, P, M, 4)`.
        masks: optional float tensor `(B, P, 4 Eh, 4 Ew, 1)` of logits.
        mask_given: optional bool tensor `(B, P)`, False where the mask is to be ignored.
        images: ignored, so that a dict with everything can be passed.

    Returns:
        Dict of `prompt_sparse_embeddings` `(B, P, T, C)`, `prompt_sparse_mask`
        `(B, P, T)`, False for padding, `prompt_dense_embeddings` `(B, P, Eh, Ew, C)`, or
        `(B, 1, Eh, Ew, C)` when no image has a mask, and
        `prompt_dense_positional_embeddings` `(1, Eh, Ew, C)`. The axis `P` is missing when
        every prompt came without it (`points (B, N, 2)`, `boxes (B, 1, 2, 2)`,
        `masks (B, 1, 4 Eh, 4 Ew, 1)`).

    Raises:
        ValueError: see `canonical_prompts`.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, section 3 and appendix A.

    Example:

    ```python
    encoder = keras_sam.SAMPromptEncoder(
        hidden_size=8, image_embedding_size=(4, 4), input_image_size=(64, 64)
    )
    embeddings = encoder(points=np.array([[[10.0, 20.0]]]), labels=np.array([[1]]))
    embeddings["prompt_sparse_embeddings"].shape  # (1, 1, 8)
    ```
    """

    def __init__(
        self,
        *,
        hidden_size: int = 256,
        image_embedding_size: tuple[int, int] = (64, 64),
        input_image_size: tuple[int, int] = (1024, 1024),
        mask_in_channels: int = 16,
        activation: Activation = "gelu",
        layer_norm_epsilon: float = 1e-6,
        scale: float = 1.0,
        not_a_point_after_boxes: bool = False,
        initializer_range: float | None = None,
        name: str = "prompt_encoder",
        **kwargs: Any,
    ):
        super().__init__(name=name, autocast=False, **kwargs)
        if hidden_size % 2:
            raise ValueError(
                "`hidden_size` must be even: half of it are sines, half cosines. "
                f"Received: hidden_size={hidden_size}."
            )
        image_embedding_size = tuple(image_embedding_size)
        input_image_size = tuple(input_image_size)
        self.keep_arguments(locals())
        self.positional_embedding = RandomFrequencyPositionalEmbeddings(
            hidden_size // 2, scale, dtype=self.dtype_policy, name="positional_embedding"
        )
        self.mask_downscaler = MaskDownscaler(
            hidden_size,
            mask_in_channels,
            activation=activation,
            layer_norm_epsilon=layer_norm_epsilon,
            initializer_range=initializer_range,
            dtype=self.dtype_policy,
            name="mask_downscaler",
        )

    @property
    def mask_size(self) -> tuple[int, int]:
        """Size `(Lh, Lw)` of a mask prompt."""
        return tuple(4 * n for n in self.image_embedding_size)

    def build(self, input_shape: Shape | None = None, **shapes: Shape | None) -> None:
        self.positional_embedding.build()
        self.mask_downscaler.build()
        stddev = 1.0 if self.initializer_range is None else self.initializer_range
        embeddings = [
            self.add_weight(
                name=f"{name}_embed",
                shape=(1, self.hidden_size),
                initializer=keras.initializers.RandomNormal(stddev=stddev),
            )
            for name in (
                "not_a_point",
                "background_point",
                "foreground_point",
                "top_left_corner",
                "bottom_right_corner",
                "no_mask",
            )
        ]
        self.label_embeddings = embeddings[:5]  # for the labels -1, 0, 1, 2, 3
        self.no_mask_embed = embeddings[5]

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return super().__call__(*args, **of_one_kind(kwargs))

    def call(
        self,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        mask_given: Tensor | None = None,
        images: Tensor | None = None,
    ) -> dict[str, Tensor]:
        prompts, single_object = canonical_prompts(points, labels, boxes, masks, mask_given)
        points, labels = prompts["points"], prompts["labels"]
        if self.not_a_point_after_boxes:
            points, labels = append_not_a_point(points, labels, after_boxes=True)
        sparse = self._embed_points(points, labels)
        dense = self._embed_masks(prompts["masks"], prompts["mask_given"], labels)
        real = ops.not_equal(labels, PADDING)
        positional = self.positional_embedding.encode_image(self.image_embedding_size)
        if single_object:
            sparse, real, dense = sparse[:, 0], real[:, 0], dense[:, 0]
        return {
            "prompt_sparse_embeddings": sparse,
            "prompt_sparse_mask": real,
            "prompt_dense_embeddings": dense,
            "prompt_dense_positional_embeddings": ops.cast(positional[None], self.compute_dtype),
        }

    def _embed_points(self, points, labels):
        position = self.positional_embedding.encode_coordinates(points + 0.5, self.input_image_size)
        located = ops.cast(ops.expand_dims(labels >= 0, -1), "float32")
        table = ops.concatenate([ops.cast(e, "float32") for e in self.label_embeddings], axis=0)
        table = ops.pad(table, [[1, 0], [0, 0]])  # row 0 is for padding, which is masked
        row = ops.where(labels == PADDING, 0, labels + 2)
        embedding = position * located + ops.take(table, row, axis=0)
        return ops.cast(embedding, self.compute_dtype)  # (B, P, T, C)

    def _embed_masks(self, masks, mask_given, labels):
        eh, ew = self.image_embedding_size
        no_mask = ops.cast(ops.reshape(self.no_mask_embed, (1, 1, 1, 1, -1)), self.compute_dtype)
        batch, prompts = ops.shape(labels)[:2]
        if masks is None:
            return ops.broadcast_to(no_mask, (batch, 1, eh, ew, self.hidden_size))
        x = self.mask_downscaler(ops.reshape(masks, (-1, *self.mask_size, 1)))
        x = ops.reshape(x, (batch, ops.shape(masks)[1], eh, ew, self.hidden_size))
        if masks.shape[1] is None:
            # The length may turn out to be zero when the graph runs: fill up to P prompt sets.
            filler = ops.zeros((batch, prompts, eh, ew, self.hidden_size), dtype=x.dtype)
            x = ops.concatenate([x, filler], axis=1)[:, :prompts]
            none = ops.zeros((batch, prompts), dtype="bool")
            mask_given = ops.concatenate([mask_given, none], axis=1)[:, :prompts]
        given = ops.reshape(mask_given, (batch, prompts, 1, 1, 1))
        return ops.where(given, x, no_mask)  # (B, P, Eh, Ew, C)

    def compute_output_spec(
        self,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        mask_given: Tensor | None = None,
        images: Tensor | None = None,
    ) -> dict[str, keras.KerasTensor]:
        first = next(x for x in (points, boxes, masks, images) if x is not None)
        single = points is not None and len(points.shape) == 3
        axes = (first.shape[0],) if single else (first.shape[0], None)
        grid = (*self.image_embedding_size, self.hidden_size)

        def spec(*shape, dtype=self.compute_dtype):
            return keras.KerasTensor(shape, dtype=dtype)

        return {
            "prompt_sparse_embeddings": spec(*axes, None, self.hidden_size),
            "prompt_sparse_mask": spec(*axes, None, dtype="bool"),
            "prompt_dense_embeddings": spec(*axes, *grid),
            "prompt_dense_positional_embeddings": spec(1, *grid),
        }
