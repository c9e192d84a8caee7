"""Models by name, and the preprocessing that goes with each."""

import copy
import dataclasses
import difflib
import fnmatch
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

_MODELS: dict[str, tuple[type, Any, str]] = {}  # class, config and module of each name


def register_model(make: Callable) -> Callable:
    """A decorator for a function that returns the class and the config of a model of its name.

    Args:
        make: function without arguments, whose config has the function's name.

    Raises:
        ValueError: if the names differ.
    """
    cls, cfg = make()
    if cfg.name != make.__name__:
        raise ValueError(
            f"The config's `name` must be the function's, {make.__name__!r}. "
            f"Received: name={cfg.name!r}."
        )
    _MODELS[cfg.name] = (cls, cfg, make.__module__.rpartition(".")[2])
    return make


def list_models(
    name_filter: str | Sequence[str] = "",
    module: str = "",
    pretrained: bool | str = False,
    exclude_filters: str | Sequence[str] = "",
) -> list[str]:
    """The names of models, sorted.

    Args:
        name_filter: wildcard or wildcards, as in `"sam_*"`. Defaults to all models.
        module: name of the module that defines a model, `"sam"` for the released ones.
        pretrained: bool. Only models with weights; `"timm"`: with weights in timm, which has none.
        exclude_filters: wildcard or wildcards of models to leave out.

    Example:

    ```python
    from keras_sam.compat import tfimm

    tfimm.list_models("sam_vit_?")  # ["sam_vit_b", "sam_vit_h", "sam_vit_l"]
    ```
    """
    wanted, unwanted = (
        [patterns] if isinstance(patterns, str) else list(patterns)
        for patterns in (name_filter or "*", exclude_filters)
    )
    return sorted(
        name
        for name, (_, cfg, place) in _MODELS.items()
        if any(fnmatch.fnmatch(name, pattern) for pattern in wanted)
        and not any(fnmatch.fnmatch(name, pattern) for pattern in unwanted)
        and module in ("", place)
        and (not pretrained or (cfg.url and pretrained is True))
    )


def create_model(
    model_name: str,
    pretrained: bool = False,
    model_path: str = "",
    *,
    in_channels: int | None = None,
    nb_classes: None = None,
    **kwargs: Any,
) -> keras.Model:
    """Makes a model by name.

    Args:
        model_name: str, see `list_models`.
        pretrained: bool. Load the weights of the model's preset, which are downloaded once.
        model_path: str. Load these weights instead: what
            `keras_sam.SAMImageSegmenter.from_preset` takes, or the file of `model.save`.
        in_channels: optional int, channels of the images. The first kernel is adapted, see
            `keras_sam.presets.adapt.adapt_channels`.
        nb_classes: must be None: Segment Anything knows no classes.
        **kwargs: other fields of the model's config, such as `input_size`, for which the position
            tables are interpolated, or `fixed_input_size`.

    Returns:
        A `SegmentAnythingModel`.

    Raises:
        ValueError: if there is no such model, or the weights do not fit it.
        TypeError: if the config has no such field.
    """
    cls, cfg = _find(model_name)
    fields = [field.name for field in dataclasses.fields(cfg)]
    unknown = sorted(kwargs.keys() - set(fields)) + ["nb_classes"] * (nb_classes is not None)
    if unknown:
        close = difflib.get_close_matches(unknown[0], [*fields, "in_channels"], n=1)
        hint = f" Did you mean `{close[0]}`?" if close else ""
        raise TypeError(f"The config of {model_name} has no field `{unknown[0]}`.{hint}")
    if in_channels is not None:
        kwargs["in_channels"] = in_channels
    cfg = dataclasses.replace(copy.deepcopy(cfg), **kwargs)
    weights = model_path or (cfg.url if pretrained else "")
    return cls.with_weights(cfg, weights) if weights else cls(cfg)


def create_preprocessing(
    model_name: str, *, in_channels: int | None = None, dtype: str | None = None
) -> Callable:
    """The function that normalises images for a model.

    Args:
        model_name: str, see `list_models`.
        in_channels: optional int. Defaults to the model's.
        dtype: optional str. Defaults to `keras.config.floatx()`.

    Returns:
        A function of images `(H, W, C)` or `(N, H, W, C)`, 0..255.

    Raises:
        ValueError: if there is no such model.
    """
    return preprocessing_of(_find(model_name)[1], in_channels, dtype)


def preprocessing_of(cfg: Any, in_channels: int | None = None, dtype: str | None = None):
    """`create_preprocessing` from a model's config."""
    dtype = dtype or keras.config.floatx()
    # Their own mean and deviation for the first channels, and the same again for those after.
    mean, std = (
        np.resize(values, in_channels or cfg.in_channels) for values in (cfg.mean, cfg.std)
    )

    def preprocess(images):
        if isinstance(images, (str, os.PathLike)):
            raise ValueError(
                "`images` must be an array or tensor (H, W, C) or (N, H, W, C), 0..255. Received: "
                f"{images!r}. `SAMPredictor.set_image` reads files."
            )
        images = ops.cast(ops.convert_to_tensor(images), dtype) / 255
        return (images - ops.cast(mean, dtype)) / ops.cast(std, dtype)

    return preprocess


def _find(model_name):
    if model_name not in _MODELS:
        raise ValueError(
            f"`model_name` must be one of {list_models()}. Received: model_name={model_name!r}."
        )
    return _MODELS[model_name][:2]
