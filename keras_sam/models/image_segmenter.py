"""The base class of tasks that segment images."""

import keras

from keras_sam import presets
from keras_sam.models import preset_models


class _BuiltInPresets:
    """`SomeClass.presets`: the built-in presets, looked up when somebody asks."""

    def __get__(self, instance, owner):
        return presets.list_presets()


@keras.saving.register_keras_serializable(package="keras_sam")
class ImageSegmenter(keras.Model):
    """A model from images, and perhaps prompts, to masks.

    Subclasses set `backbone_cls` and `preprocessor_cls`, which presets are read with.

    Example:

    ```python
    segmenter = keras_sam.ImageSegmenter.from_preset("sam_base_sa1b", load_weights=False)
    type(segmenter).__name__  # "SAMImageSegmenter"
    ```
    """

    backbone_cls = None
    preprocessor_cls = None
    presets = _BuiltInPresets()

    def get_config(self):
        preprocessor = self.preprocessor
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "backbone": keras.layers.serialize(self.backbone),
            "preprocessor": None if preprocessor is None else keras.layers.serialize(preprocessor),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["backbone"] = keras.layers.deserialize(config["backbone"])
        if config.get("preprocessor") is not None:
            config["preprocessor"] = keras.layers.deserialize(config["preprocessor"])
        return cls(**config)

    @classmethod
    def default_preprocessor(cls, backbone):
        """The preprocessor that a model gets whose preset has none."""
        return cls.preprocessor_cls.for_backbone(backbone)

    @classmethod
    def from_preset(
        cls,
        preset,
        load_weights: bool | None = None,
        dtype=None,
        image_shape=None,
        num_channels: int | None = None,
        pixel_mean=None,
        pixel_std=None,
        **kwargs,
    ):
        """Loads a model by name, address or path, whoever trained it.

        Args:
            preset: see `Backbone.from_preset`, as for the arguments up to `pixel_std`.
            load_weights: bool or None.
            dtype: optional str or `keras.DTypePolicy`.
            image_shape: optional `(H, W)` or `(H, W, channels)`.
            num_channels: optional int.
            pixel_mean: optional sequence of floats.
            pixel_std: optional sequence of floats.
            **kwargs: passed on to the class, such as `mask_threshold`, or `preprocessor` to use
                another one than was saved, or None.

        Returns:
            A model of this class; for `ImageSegmenter`, of the subclass that was saved, or of
            `SAMImageSegmenter` for files that know nothing of tasks.

        Raises:
            ValueError: see `Backbone.from_preset`.
            ConnectionError: if a download fails.

        Example:

        ```python
        segmenter = keras_sam.SAMImageSegmenter.from_preset("sam_base_sa1b", load_weights=False)
        ```
        """
        found = presets.load(
            preset,
            load_weights=load_weights,
            image_shape=image_shape,
            num_channels=num_channels,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        task = found.task or {"registered_name": "keras_sam>SAMImageSegmenter", "config": {}}
        saved = preset_models.registered(task["registered_name"])
        if not issubclass(saved, cls):
            raise ValueError(
                f"The preset {preset!r} is of class {task['registered_name']!r}, which is no "
                f"{cls.__name__}."
            )
        backbone = saved.backbone_cls.from_loaded_preset(found, dtype)
        arguments = {**task["config"], **kwargs}
        if dtype is not None:
            arguments["dtype"] = dtype
        if "preprocessor" not in arguments:
            arguments["preprocessor"] = (
                saved.default_preprocessor(backbone)
                if found.preprocessor is None
                else preset_models.make(found.preprocessor)
            )
        return saved(backbone, **arguments)

    def save_to_preset(self, folder) -> None:
        """Writes config, preprocessor, task, metadata and weights to a folder.

        `from_preset` takes the folder, `keras_sam.presets.upload_preset` uploads it. What LoRA
        has learnt is merged into the kernels. Frozen layers are not remembered.

        Args:
            folder: path of the folder; it is made when it is not there.

        Raises:
            ValueError: if the model is quantized.
        """
        preset_models.save(folder, self.backbone, self)
