"""KerasHub's Segment Anything (0.17 to 0.32): our classes, whose names are KerasHub's already.

Its base classes stand for the only ones of their kind here: `Task` is our `ImageSegmenter`,
`Preprocessor` the preprocessor of Segment Anything. `layers.SAMImageConverter` makes ours from
KerasHub's arguments.
"""

import os
from typing import Any

from keras_sam import presets
from keras_sam.compat.keras_hub import layers, models

__all__ = ["layers", "models", "upload_preset", "version"]
__version__ = "0.32.0"  # of the names that are here, for code that prints it or asks for one


def version() -> str:
    """KerasHub's version whose names are here."""
    return __version__


def upload_preset(uri: str, preset: str | os.PathLike, **options: Any) -> None:
    """Uploads a folder that `save_to_preset` wrote; see `keras_sam.presets.upload_preset`.

    Args:
        uri: `kaggle://owner/model/keras/variation` or `hf://owner/repository`.
        preset: path of the folder.
        **options: passed on to the client.
    """
    presets.upload_preset(uri, preset, **options)
