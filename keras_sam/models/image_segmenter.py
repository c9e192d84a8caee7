"""The base class of tasks that segment images."""

from typing import Any, Self

import keras

from keras_sam.backends import private
from keras_sam.models import preset_models
from keras_sam.presets import Preset


@keras.saving.register_keras_serializable(package="keras_sam")
class ImageSegmenter(preset_models.PresetModel):
    """A model from images, and perhaps prompts, to masks.

    Subclasses set `backbone_cls` and `preprocessor_cls`, the classes that presets are loaded into.

    Example:

    ```python
    segmenter = keras_sam.ImageSegmenter.from_preset("sam_base_sa1b", load_weights=False)
    type(segmenter).__name__  # "SAMImageSegmenter"
    ```
    """

    backbone_cls = None
    preprocessor_cls = None

    def get_config(self) -> dict:
        parts = {"backbone": self.backbone, "preprocessor": self.preprocessor}
        config = {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            **{k: x if x is None else keras.layers.serialize(x) for k, x in parts.items()},
        }
        # The parts' configs have one dtype each, that of layers that are not quantized.
        modes = {
            layer.path: layer.quantization_mode
            for layer in private.sublayers(self.backbone)
            if getattr(layer, "quantization_mode", None)
        }
        return {**config, "quantized": modes} if modes else config

    @classmethod
    def from_config(cls, config: dict) -> Self:
        config = dict(config)
        config["backbone"] = keras.layers.deserialize(config["backbone"])
        modes = config.pop("quantized", {})
        for layer in private.sublayers(config["backbone"]):
            if layer.path in modes:
                layer.quantize(modes[layer.path])
        if config.get("preprocessor") is not None:
            config["preprocessor"] = keras.layers.deserialize(config["preprocessor"])
        return cls(**config)

    @classmethod
    def default_preprocessor(cls, backbone):
        """The preprocessor of a model whose preset has none."""
        return cls.preprocessor_cls.for_backbone(backbone)

    @classmethod
    def from_loaded_preset(
        cls, preset: Preset, dtype: str | keras.DTypePolicy | None = None, **kwargs: Any
    ) -> Self:
        task = preset.task or {"registered_name": "keras_sam>SAMImageSegmenter", "config": {}}
        saved = preset_models.registered(task["registered_name"])
        if not issubclass(saved, cls):
            raise ValueError(
                f"`preset` must be of class {cls.__name__}. Received: one of class "
                f"{task['registered_name']!r}, which `{saved.__name__}.from_preset` loads."
            )
        own, preset = preset_models.split_arguments(saved, preset, kwargs)
        backbone = saved.backbone_cls.from_loaded_preset(preset, dtype)
        arguments = {**task["config"], **own}
        if dtype is not None:
            arguments["dtype"] = dtype
        if "preprocessor" not in arguments:
            arguments["preprocessor"] = (
                saved.default_preprocessor(backbone)
                if preset.preprocessor is None
                else preset_models.build_from_config(preset.preprocessor)
            )
        return saved(backbone, **arguments)
