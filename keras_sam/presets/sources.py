"""Where presets come from: folders and files, Kaggle, Hugging Face, and Meta's server."""

import os

from keras_sam.presets import registry
from keras_sam.presets.clients import HubSource, KaggleSource, UrlSource, first_that_answers


class FolderSource:
    """A folder on this machine, or one file in it.

    Args:
        folder: path of the folder.
        single_file: optional name of the one file that is meant.
    """

    def __init__(self, folder, single_file: str | None = None):
        self.folder = os.path.abspath(folder)
        self.single_file = single_file

    def fetch(self, name: str, optional: bool = False) -> str | None:
        """The path of one of its files, or None for an optional file that is not there."""
        path = os.path.join(self.folder, name)
        if os.path.isfile(path):
            return path
        if optional:
            return None
        raise FileNotFoundError(f"The preset folder {self.folder!r} has no {name}.")

    def __str__(self):
        return f"The folder {self.folder!r}"


def locate(preset: str):
    """The source of a built-in name, address or path, whose `fetch(name)` gives local paths.

    Nothing is downloaded before `fetch` is called, except that the sources of a built-in
    name are asked in turn until one answers.

    Args:
        preset: built-in name, `kaggle://owner/model/framework/variation[/version]`,
            `hf://owner/repository[@revision][/file]`, or a path.

    Returns:
        A source. Its `single_file` is the name of a checkpoint that is used on its own, or
        None for a folder with a `config.json`.

    Raises:
        ValueError: if it is none of these.
    """
    preset = os.fspath(preset)
    if preset in registry.names():
        return first_that_answers(preset, registry.metadata(preset)["sources"])
    if preset.startswith("kaggle://"):
        return KaggleSource.parse(preset)
    if preset.startswith("hf://"):
        return HubSource.parse(preset)
    path = os.path.expanduser(preset)
    if os.path.isdir(path):
        return FolderSource(path)
    if os.path.isfile(path):
        return FolderSource(os.path.dirname(path) or ".", os.path.basename(path))
    if "://" in preset:
        raise ValueError(
            f"An address must start with kaggle:// or hf://. Received: {preset!r}. Other files can "
            "be downloaded first, and given by their path."
        )
    raise registry.unknown(preset)


__all__ = ["FolderSource", "HubSource", "KaggleSource", "UrlSource", "locate"]
