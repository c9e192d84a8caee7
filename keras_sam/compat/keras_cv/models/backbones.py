"""KerasCV's image encoders: constructors of ours."""

from typing import Any

from keras_sam.compat.constructors import ClassProperty, ConstructsOurs
from keras_sam.compat.keras_cv.names import renamed
from keras_sam.models import vit_det_backbone as encoding
from keras_sam.presets import read_preset

_NAMES = {
    "input_shape": "image_shape",
    "embed_dim": "hidden_size",
    "depth": "num_layers",
    "mlp_dim": "intermediate_dim",
    "out_chans": "num_output_channels",
    "global_attention_indices": "global_attention_layer_indices",
}
# The same normalisation as ours, of images within 0..1.
_UNIT_STATISTICS = {
    "pixel_mean": [value / 255 for value in encoding.PIXEL_MEAN],
    "pixel_std": [value / 255 for value in encoding.PIXEL_STD],
}


def size_arguments(name: str) -> dict[str, Any]:
    """The arguments that the released image encoders differ in, from `"vitdet_base"` and so on."""
    encoder = read_preset(f"{name}_sa1b", load_weights=False).encoder
    theirs = ("embed_dim", "depth", "mlp_dim", "num_heads", "global_attention_indices")
    return {ours: encoder[ours] for ours in renamed(dict.fromkeys(theirs), _NAMES)}


def _without_weights(name):
    """What is known about a preset that is a size alone, in the form of our presets."""
    known = encoding.ViTDetBackbone.presets[f"{name}_sa1b"]
    kept = {key: known[key] for key in ("image_encoder_parameters", "parameters")}
    return {"description": f"An image encoder of the size of {name}_sa1b, without weights.", **kept}


class ViTDetBackbone(encoding.ViTDetBackbone, metaclass=ConstructsOurs):
    """Makes a `keras_sam.ViTDetBackbone` from KerasCV's arguments, of ViT-B's size by default.

    `presets` are those of `presets_with_weights`, which have ours, and of
    `presets_without_weights`: `"vitdet_base"`, `"vitdet_large"` and `"vitdet_huge"`.

    Args:
        include_rescaling: bool. True for images 0..255, False for images 0..1.
        input_shape: tuple, our `image_shape`. Defaults to `(1024, 1024, 3)`.
        input_tensor: must be None: call the model on the tensor instead.
        embed_dim: int, our `hidden_size`. Defaults to `768`.
        depth: int, our `num_layers`. Defaults to `12`.
        mlp_dim: int, our `intermediate_dim`. Defaults to `3072`.
        out_chans: int, our `num_output_channels`. Defaults to `256`.
        global_attention_indices: list of ints, our `global_attention_layer_indices`.
        **kwargs: our other arguments; KerasCV's have the same names.

    Raises:
        ValueError: if `input_tensor` is given.
    """

    makes = encoding.ViTDetBackbone
    _sizes = ("vitdet_base", "vitdet_large", "vitdet_huge")  # the first one is the default's

    presets_with_weights = ClassProperty(
        lambda cls: {f"{n}_sa1b": cls.makes.presets[f"{n}_sa1b"] for n in cls._sizes}
    )
    presets_without_weights = ClassProperty(
        lambda cls: {name: _without_weights(name) for name in cls._sizes}
    )
    presets = ClassProperty(lambda cls: cls.presets_without_weights | cls.presets_with_weights)

    def __new__(cls, *, include_rescaling: bool, input_tensor=None, **kwargs: Any):
        if input_tensor is not None:
            raise ValueError(
                "`input_tensor` must be None: pass `input_shape=input_tensor.shape[1:]` and call "
                f"the model on the tensor. Received: input_tensor={input_tensor}."
            )
        statistics = {} if include_rescaling else _UNIT_STATISTICS
        sizes = size_arguments(cls._sizes[0])
        return encoding.ViTDetBackbone(**{**sizes, **statistics, **renamed(kwargs, _NAMES)})

    @classmethod
    def from_preset(
        cls,
        preset: str,
        load_weights: bool | None = None,
        include_rescaling: bool = True,
        **kwargs: Any,
    ):
        """The encoder of a preset, or a random one that has the size of its name.

        Args:
            preset: str. As for `keras_sam.ViTDetBackbone.from_preset`; or `"vitdet_base"`,
                `"vitdet_large"`, `"vitdet_huge"`, which have no weights.
            load_weights: bool or None. None loads weights if there are any.
            include_rescaling: bool. True for images 0..255, False for images 0..1.
            **kwargs: passed on, under KerasCV's names or ours.

        Raises:
            ValueError: if weights are asked for and the preset has none.
        """
        if preset not in ViTDetBackbone._sizes:
            statistics = {} if include_rescaling else _UNIT_STATISTICS
            kwargs = {**statistics, **renamed(kwargs, _NAMES)}
            return encoding.ViTDetBackbone.from_preset(preset, load_weights, **kwargs)
        if load_weights:
            raise ValueError(
                f"{preset!r} has no weights. Received: load_weights=True. Take the "
                f'preset "{preset}_sa1b".'
            )
        sizes = renamed(kwargs, _NAMES)
        return ViTDetBackbone(
            include_rescaling=include_rescaling, **{**size_arguments(preset), **sizes}
        )


class ViTDetBBackbone(ViTDetBackbone):
    """Makes a random `keras_sam.ViTDetBackbone` of the size of ViT-B, for images 0..255."""

    _sizes = ("vitdet_base",)
    presets_without_weights = ClassProperty(lambda cls: {})

    def __new__(cls, *, include_rescaling: bool = True, **kwargs: Any):
        return super().__new__(cls, include_rescaling=include_rescaling, **kwargs)


class ViTDetLBackbone(ViTDetBBackbone):
    """Makes a random `keras_sam.ViTDetBackbone` of the size of ViT-L, for images 0..255."""

    _sizes = ("vitdet_large",)


class ViTDetHBackbone(ViTDetBBackbone):
    """Makes a random `keras_sam.ViTDetBackbone` of the size of ViT-H, for images 0..255."""

    _sizes = ("vitdet_huge",)
