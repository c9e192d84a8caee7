"""The base class of models that turn inputs into embeddings."""

import keras

from keras_sam import presets
from keras_sam.models import preset_models


@keras.saving.register_keras_serializable(package="keras_sam")
class Backbone(keras.Model):
    """A functional Keras model with a config, a dtype policy and presets.

    Args:
        dtype: optional str or `keras.DTypePolicy`, the policy of the model's layers.
        **kwargs: passed on to `keras.Model`; `inputs` and `outputs` among them.

    Example:

    ```python
    encoder = keras_sam.ViTDetBackbone.from_preset("sam_base_sa1b", load_weights=False)
    encoder.save_to_preset("my_encoder")
    ```
    """

    def __init__(self, *args, dtype=None, **kwargs):
        super().__init__(*args, **kwargs)
        if dtype is not None:
            self.dtype_policy = keras.dtype_policies.get(dtype)

    def get_config(self):
        # The config of a functional model would spell out its whole graph; ours is rebuilt
        # from the arguments that subclasses add here.
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

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
    ):
        """Loads a model by name, address or path, whoever trained it.

        Args:
            preset: built-in name (see `keras_sam.presets.list_presets`); `kaggle://owner/model/
                keras/variation[/version]`; `hf://owner/repository[@revision][/file]`; path of a
                folder that this package, KerasHub, KerasCV or transformers wrote; or path of a
                `.pth`, `.safetensors`, `.h5` or `.keras` file.
            load_weights: bool or None. `None` loads weights if there are any; `True` insists;
                `False` keeps the random initial ones, and downloads none.
            dtype: optional str or `keras.DTypePolicy` of all layers. `"bfloat16"` computes and
                stores in bfloat16, `"mixed_bfloat16"` stores in float32. The default is the
                saved policy, or Keras's default where none was saved.
            image_shape: optional `(H, W)` or `(H, W, channels)`. The position tables of
                another size are interpolated, absolute ones bilinearly, relative ones linearly.
            num_channels: optional int. The first kernel is adapted: see
                `keras_sam.presets.adapt.adapt_channels`.
            pixel_mean: optional sequence of floats, one per channel, 0..255.
            pixel_std: optional sequence of floats, likewise.

        Returns:
            A model of this class; for `Backbone`, of the class that was saved.

        Raises:
            ValueError: if there is no such preset, the file is damaged or not a SAM, or the
                preset is of another class.
            ConnectionError: if a download fails; the message says what has been tried.
        """
        found = presets.load(
            preset,
            load_weights=load_weights,
            image_shape=image_shape,
            num_channels=num_channels,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        return cls.from_loaded_preset(found, dtype)

    @classmethod
    def from_loaded_preset(cls, preset: presets.Preset, dtype=None):
        """The model of a preset that `keras_sam.presets.load` has found; see `from_preset`."""
        if cls is Backbone and "prompt_encoder" in preset.parts:
            whole = preset_models.registered(preset.backbone["registered_name"])
            return whole.from_loaded_preset(preset, dtype)
        with preset_models.values_of(preset):
            model = preset_models.make(preset.parts["image_encoder"], dtype)
        if not isinstance(model, cls):
            raise ValueError(
                f"The preset's image encoder is a {type(model).__name__}, not a {cls.__name__}. "
                f"Load it with {type(model).__name__}.from_preset."
            )
        preset_models.load_into(model, preset, (r"prompt_encoder/.*", r"mask_decoder/.*"))
        return model

    def save_to_preset(self, folder) -> None:
        """Writes config, metadata and weights to a folder that `from_preset` takes.

        What LoRA has learnt is merged into the kernels. Frozen layers are not remembered.

        Args:
            folder: path of the folder; it is made when it is not there.

        Raises:
            ValueError: if the model is quantized.
        """
        preset_models.save(folder, self)
