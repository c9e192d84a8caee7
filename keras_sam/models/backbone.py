"""The base class of models that turn inputs into embeddings."""

from collections.abc import Iterable
from typing import Any, Self

import keras

from keras_sam.models import fine_tuning, preset_models
from keras_sam.presets import Preset


@keras.saving.register_keras_serializable(package="keras_sam")
class Backbone(preset_models.PresetModel):
    """A functional Keras model with a config, a dtype policy and presets.

    Args:
        dtype: optional str or `keras.DTypePolicy`, the policy of the model's layers.
        **kwargs: `inputs`, `outputs`, `name` and `trainable` of `keras.Model`.

    Raises:
        TypeError: if there is another argument.

    Example:

    ```python
    encoder = keras_sam.ViTDetBackbone.from_preset("sam_base_sa1b", load_weights=False)
    encoder.save_to_preset("my_encoder")
    ```
    """

    def get_config(self) -> dict:
        # The config of a functional model would spell out its whole graph; ours is rebuilt
        # from the arguments that subclasses add here.
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    def enable_lora(
        self, rank: int, target_layer_names: Iterable[str] = ("qkv", "projection")
    ) -> None:
        """Freezes everything but low-rank additions to the image encoder's kernels.

        `SAMImageSegmenter.enable_lora` leaves prompt encoder and mask decoder to be trained.

        Args:
            rank: int, see there.
            target_layer_names: names of layers, the `targets` there.

        Raises:
            ValueError: see there.
        """
        encoder = getattr(self, "image_encoder", self)
        fine_tuning.add_lora(encoder, rank, target_layer_names)
        if encoder is not self:
            self.prompt_encoder.trainable = self.mask_decoder.trainable = False

    @classmethod
    def from_config(cls, config: dict) -> Self:
        return cls(**config)

    @classmethod
    def from_loaded_preset(
        cls, preset: Preset, dtype: str | keras.DTypePolicy | None = None, **kwargs: Any
    ) -> Self:
        if cls is Backbone and "prompt_encoder" in preset.parts:
            whole = preset_models.registered(preset.backbone["registered_name"])
            return whole.from_loaded_preset(preset, dtype, **kwargs)
        encoder = preset.parts["image_encoder"]
        preset_models.check_arguments(preset_models.registered(encoder["registered_name"]), kwargs)
        with preset_models.skip_init_for(preset):
            model = preset_models.build_from_config(encoder, dtype, **kwargs)
        if not isinstance(model, cls):
            raise ValueError(
                f"The preset's image encoder is a {type(model).__name__}, not a {cls.__name__}. "
                f"Load it with {type(model).__name__}.from_preset."
            )
        preset_models.load_into(model, preset, (r"prompt_encoder/.*", r"mask_decoder/.*"))
        return model
