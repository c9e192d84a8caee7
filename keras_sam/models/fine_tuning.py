"""Training with less: frozen parts, LoRA, and blocks that are recomputed for their gradients."""

import gc
import warnings
from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_sam.backends import private

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")


class FineTuning:
    """Methods that choose what is trained, and with how much memory.

    A mixin before `keras.Model` for models with the three parts of SAM. Every method undoes an
    earlier `compile`, because an optimizer knows the variables that it was made for.
    """

    # What `freeze` and `unfreeze` take.
    parts: tuple[str, ...] = PARTS
    _saved_lora = None

    def freeze(self, *parts: str) -> None:
        """Leaves parts out of training, in addition to those that are frozen already.

        Args:
            *parts: any of `"image_encoder"`, `"prompt_encoder"` and `"mask_decoder"`; of a
                `SAMHQImageSegmenter` also `"sam_decoder"`, the part of its decoder that SAM has.

        Raises:
            ValueError: for other names, or none.

        Example:

        ```python
        tiny_segmenter.freeze("image_encoder", "prompt_encoder")
        ```
        """
        for name in self._checked(parts):
            self._set_trainable(name, False)
        self.uncompile()

    def unfreeze(self, *parts: str) -> None:
        """Trains parts again; for an image encoder with LoRA, only what LoRA added.

        Args:
            *parts: as for `freeze`.

        Raises:
            ValueError: for other names, or none.
        """
        for name in self._checked(parts):
            self._set_trainable(name, True)
        self.uncompile()

    def _set_trainable(self, name, value):
        part = getattr(self, name)
        part.trainable = value
        if value and _lora_layers(part):
            _train_lora_alone(part)

    def _checked(self, parts):
        if not parts or set(parts) - set(self.parts):
            raise ValueError(f"Parts must be any of {self.parts}. Received: {parts}.")
        return parts

    def enable_lora(
        self,
        rank: int,
        targets: str | Iterable[str] = ("qkv", "projection"),
        alpha: float | None = None,
    ) -> None:
        """Trains low-rank additions to the image encoder's kernels, and nothing else in it.

        The product of two matrices `(n, rank)` and `(rank, m)` is added to each kernel `(n, m)`;
        the second one starts at zero. Prompt encoder and mask decoder are trained as before.
        Files that `save`, `save_weights` and `save_to_preset` write hold merged kernels: they
        load as a model without LoRA that gives the same masks.

        Args:
            rank: int. Columns of the first matrix.
            targets: names of the layers that get additions: any of `"qkv"` and `"projection"`,
                of the attention, and `"dense_0"` and `"dense_1"`, of the MLPs.
            alpha: optional float. The product is multiplied by `alpha / rank`. Defaults to `rank`.

        Raises:
            ValueError: if `rank` is below 1, a target names no layer, or LoRA is enabled already.

        Source:
            Hu et al. 2021, https://arxiv.org/abs/2106.09685.

        Example:

        ```python
        tiny_segmenter.enable_lora(rank=4)
        tiny_segmenter.compile(optimizer=keras.optimizers.AdamW(1e-4))
        ```
        """
        add_lora(self.image_encoder, rank, targets, alpha)
        self.uncompile()

    def checkpoint_gradients(self, enabled: bool = True) -> None:
        """Trades time for memory: the encoder's blocks are recomputed for their gradients.

        Only the input of each block is kept, not everything inside it. Gradients are the same; a
        training step takes longer by about one run of the encoder.

        Args:
            enabled: bool.

        Raises:
            ValueError: if the image encoder has no blocks that can be computed again.
        """
        blocks = [
            layer
            for layer in private.sublayers(self.image_encoder)
            if hasattr(layer, "rematerialize")
        ]
        if not blocks:
            raise ValueError(
                "`checkpoint_gradients` needs an image encoder whose blocks can be computed again, "
                "`ViTDetBackbone` or `HieraBackbone`. Received: a "
                f"{type(self.image_encoder).__name__}."
            )
        for block in blocks:
            block.rematerialize = enabled
        self.uncompile()

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Quantizes the dense layers, as `keras.Model.quantize` does; the other layers stay."""
        # Keras collects garbage after each layer, for which Python looks at all objects that there
        # are, unless they are frozen.
        gc.freeze()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Layer .* does not have a `quantize` method")
                super().quantize(*args, **kwargs)
        finally:
            gc.unfreeze()

    def half(self) -> None:
        """Raises an error: torch's way to half precision would leave Keras's layers in float32."""
        raise NotImplementedError(
            "A Keras model computes in the dtype that it was made with: load it with "
            '`from_preset(..., dtype="float16")`, or "bfloat16", instead of casting its weights.'
        )

    bfloat16 = double = half

    def save_own_variables(self, store):
        # Layers save merged kernels. To continue training, LoRA's matrices are needed too.
        for i, layer in enumerate(_lora_layers(self.image_encoder)):
            store[f"lora_{i}_a"] = ops.convert_to_numpy(layer.lora_kernel_a)
            store[f"lora_{i}_b"] = ops.convert_to_numpy(layer.lora_kernel_b)

    def load_own_variables(self, store):
        self._saved_lora = {name: store[name][...] for name in store.keys()}  # noqa: SIM118

    def restore_lora(self) -> None:
        """After weights were loaded, takes LoRA's matrices out of the merged kernels.

        Keras leaves both at zero, where every gradient is zero. If the file has no matrices of this
        rank, the first one is initialised at random.
        """
        saved, self._saved_lora = self._saved_lora or {}, None
        layers = _lora_layers(self.image_encoder)
        fits = len(saved) == 2 * len(layers) and all(
            saved[f"lora_{i}_{ab}"].shape == getattr(layer, f"lora_kernel_{ab}").shape
            for i, layer in enumerate(layers)
            for ab in "ab"
        )
        for i, layer in enumerate(layers):
            if not fits:
                draw = keras.initializers.HeUniform()
                layer.lora_kernel_a.assign(draw(layer.lora_kernel_a.shape))
                continue
            layer.lora_kernel_a.assign(saved[f"lora_{i}_a"])
            layer.lora_kernel_b.assign(saved[f"lora_{i}_b"])
            merged = ops.convert_to_numpy(layer.kernel)  # with the additions twice
            plain = private.plain_kernel(layer)
            plain.assign(2 * ops.convert_to_numpy(plain) - merged)


def add_lora(encoder, rank, targets, alpha=None):
    """Trains low-rank additions to an image encoder's kernels alone; see `FineTuning`."""
    if rank < 1:
        raise ValueError(f"`rank` must be at least 1. Received: rank={rank}.")
    if _lora_layers(encoder):
        raise ValueError(
            "LoRA is enabled already. To start over, save the preset, which merges what LoRA "
            "has learnt, and load it again."
        )
    targets = {targets} if isinstance(targets, str) else set(targets)
    able = [
        layer
        for layer in private.sublayers(encoder)
        if hasattr(layer, "enable_lora") and layer.weights
    ]
    unknown = targets - {layer.name for layer in able}
    if unknown or not targets:
        raise ValueError(
            "`targets` must be names of dense layers of the image encoder: "
            f"{sorted({layer.name for layer in able})}. Received: {sorted(targets)}."
        )
    for layer in able:
        if layer.name in targets:
            layer.enable_lora(rank, lora_alpha=alpha)
    _train_lora_alone(encoder)


def _lora_layers(part):
    return [layer for layer in private.sublayers(part) if getattr(layer, "lora_enabled", False)]


def _train_lora_alone(part):
    part.trainable = True
    for variable in part.trainable_variables:
        variable.trainable = variable.name.startswith("lora_kernel")
