"""The built-in presets as a table."""

import os

from keras_sam.presets import registry
from keras_sam.presets.clients import source_of
from keras_sam.presets.save import WEIGHTS_FILE


def list_presets() -> dict[str, dict]:
    """The built-in presets, smallest first, and what is known about them.

    Returns:
        Dict from names to dicts of `description`, `parameters`, `image_encoder_parameters`,
        `tensors` (how many variables), `size` (bytes of float32 weights), `license`, `sources`,
        `encoder_names` (under which `ViTDetBackbone` has the image encoder alone) and `cached`,
        the path of the weights on this machine or None; `sources` is empty where the weights come
        with the package. Nothing is downloaded or asked for.

    Example:

    ```python
    keras_sam.presets.list_presets()["sam_base_sa1b"]["parameters"]  # 93735728
    ```
    """
    return {name: _described(name) for name in registry.names()}


def _described(name):
    metadata = registry.metadata(name)
    shipped = os.path.join(registry.folder_of(name), WEIGHTS_FILE)
    cached = (source.cached(source.single_file) for source in map(source_of, metadata["sources"]))
    return {
        "description": metadata["description"],
        "parameters": metadata["parameters"],
        "image_encoder_parameters": metadata["image_encoder_parameters"],
        "tensors": metadata["tensors"],
        "size": 4 * metadata["parameters"],
        "license": metadata["license"],
        "sources": metadata["sources"],
        "encoder_names": metadata.get("encoder_names", []),
        "cached": shipped
        if os.path.isfile(shipped)
        else next((path for path in cached if path), None),
    }
