"""Smaller learning rates for the image encoder's earlier blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_sam.losses import Tensor

# A block of one that is numbered throughout, or by stages, each of which may end with a merging.
_BLOCK = re.compile(r"(?:^|/)(?:stage_(\d+)_)?(?:block_(\d+)|merge)/")
_STEM = re.compile(r"(?:^|/)(patch_embedding(_conv\d)?|position_embedding)/")


@keras.saving.register_keras_serializable(package="keras_sam")
class LayerwiseDecay(keras.optimizers.Optimizer):
    """An optimizer whose steps are smaller for the image encoder's earlier blocks.

    Steps of the last block are multiplied by `decay`, of the block before it by `decay` squared,
    and so on; patch and position embeddings get one power more than the first block. Neck, prompt
    encoder and mask decoder take full steps. With any optimizer this is the same as a smaller
    learning rate, weight decay included.

    Args:
        optimizer: the `keras.optimizers.Optimizer` that makes the steps, with its learning rate,
            clipping and accumulation.
        decay: float in (0, 1]. The paper uses 0.8 for ViT-L and ViT-H, 0.6 for ViT-B.

    Raises:
        ValueError: if `decay` is outside (0, 1], or the optimizer averages weights (`use_ema`),
            because it would average weights after full steps.

    Source:
        Clark et al. 2020, https://arxiv.org/abs/2003.10555 (layer-wise decay); Li et al. 2022,
        https://arxiv.org/abs/2203.16527, appendix A.2 (its use here).

    Example:

    ```python
    tiny_segmenter.compile(optimizer=LayerwiseDecay(keras.optimizers.AdamW(1e-4), decay=0.8))
    ```
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        decay: float = 0.8,
        name: str = "layerwise_decay",
        **kwargs: Any,
    ):
        if not 0.0 < decay <= 1.0:
            raise ValueError(f"`decay` must lie in (0, 1]. Received: decay={decay}.")
        if optimizer.use_ema:
            raise ValueError(
                "`optimizer` must not average weights, because it would average steps of full "
                "size. Received: use_ema=True. Leave it out, or train without `LayerwiseDecay`."
            )
        super().__init__(learning_rate=0.0, name=name, **kwargs)
        self.inner_optimizer = optimizer
        self.decay = decay

    def build(self, variables: Sequence[keras.Variable]) -> None:
        self.inner_optimizer.build(variables)
        super().build(variables)

    @property
    def variables(self) -> list[keras.Variable]:
        return [*super().variables, *self.inner_optimizer.variables]

    @property
    def iterations(self) -> keras.Variable:
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self) -> Tensor:
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    def scale_loss(self, loss: Tensor) -> Tensor:
        return self.inner_optimizer.scale_loss(loss)

    def multipliers(self, variables: Sequence[keras.Variable]) -> list[float]:
        """The factor of each variable's steps.

        Args:
            variables: list of `keras.Variable`, all that are trained.

        Returns:
            List of floats.
        """
        found = [_BLOCK.search(v.path) for v in variables]
        depths = {}  # by stage
        for stage, block in (place.groups() for place in found if place):
            depths[int(stage or 0)] = max(depths.get(int(stage or 0), 0), int(block or 0) + 1)
        depth = sum(depths.values())
        powers = []
        for place, variable in zip(found, variables, strict=True):
            if place is None:
                powers.append((depth + 1) * bool(_STEM.search(variable.path)))
                continue
            stage, block = int(place[1] or 0), place[2]
            later = sum(n for other, n in depths.items() if other > stage)
            powers.append(later + (1 if block is None else depths[stage] - int(block)))
        return [self.decay**power for power in powers]

    def apply(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        trainable_variables = list(trainable_variables)
        if not self.built:
            self.build(trainable_variables)
        scales = self.multipliers(trainable_variables)
        scaled = [(v, s) for v, s in zip(trainable_variables, scales, strict=True) if s != 1.0]
        before = [ops.copy(v) for v, _ in scaled]
        self.inner_optimizer.apply(grads, trainable_variables)
        for (variable, scale), old in zip(scaled, before, strict=True):
            variable.assign(old + scale * (ops.convert_to_tensor(variable) - old))

    def get_config(self) -> dict[str, Any]:
        return {
            "optimizer": keras.optimizers.serialize(self.inner_optimizer),
            "decay": self.decay,
            "name": self.name,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> LayerwiseDecay:
        optimizer = keras.optimizers.deserialize(config["optimizer"], custom_objects)
        return cls(**{**config, "optimizer": optimizer})
