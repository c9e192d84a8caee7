"""Where presets are: built-in names, addresses and paths, and the files that a preset has."""

import difflib
import json
import os
import re

from keras_sam.converters import first_bytes
from keras_sam.presets.clients import (
    HubSource,
    KaggleSource,
    UrlSource,
    first_that_answers,
    source_of,
)

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor.json"
TASK_FILE = "task.json"
METADATA_FILE = "metadata.json"
WEIGHTS_FILE = "model.weights.h5"

# An installed package carries the data beside its code, a source tree in its root.
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_FOLDERS = (os.path.join(_HERE, "preset_files"), os.path.join(os.path.dirname(_HERE), "presets"))


def list_presets() -> dict[str, dict]:
    """The built-in presets, smallest first, and what is known about them.

    Returns:
        Dict from names to dicts of `description`, `parameters`, `image_encoder_parameters`,
        `tensors` (how many variables), `size` (bytes of float32 weights), `license`, `sources`,
        `encoder_names` (under which its class has the image encoder alone) and `cached`,
        the path of the weights on this machine or None; `sources` is empty where the weights come
        with the package. Nothing is downloaded or asked for.

    Example:

    ```python
    keras_sam.presets.list_presets()["sam_base_sa1b"]["parameters"]  # 93735728
    ```
    """
    return {name: _description(name) for name in names()}


def _description(name):
    known = metadata(name)
    copied = ("description", "parameters", "image_encoder_parameters", "tensors")
    return {
        **{key: known[key] for key in copied},
        "size": 4 * known["parameters"],
        "license": known["license"],
        "sources": known["sources"],
        "encoder_names": known.get("encoder_names", []),
        "cached": _cached_weights(name, known["sources"]),
    }


def _cached_weights(name, sources):
    shipped = os.path.join(folder_of(name), WEIGHTS_FILE)
    if os.path.isfile(shipped):
        return shipped
    cached = (source.cached(source.single_file) for source in map(source_of, sources))
    return next((path for path in cached if path), None)


def names() -> list[str]:
    """The names of the built-in presets, sorted by their number of parameters."""
    folder = _data_folder()
    named = (n for n in os.listdir(folder) if os.path.isfile(os.path.join(folder, n, CONFIG_FILE)))
    return sorted(named, key=lambda name: (metadata(name)["parameters"], name))


def aliases() -> dict[str, str]:
    """Names of image encoders alone, and the preset that each is taken from."""
    return {alias: name for name in names() for alias in metadata(name).get("encoder_names", [])}


def full_name(name: str) -> str:
    """The built-in name that KerasHub 0.17 shortens to `sam_base`; other names and paths stay."""
    is_short = f"{name}_sa1b" in names() and not os.path.exists(os.path.expanduser(name))
    return f"{name}_sa1b" if is_short else name


def folder_of(name: str) -> str:
    """The data folder of a built-in preset."""
    return os.path.join(_data_folder(), name)


def _data_folder():
    for folder in _FOLDERS:
        if os.path.isdir(folder):
            return folder
    raise FileNotFoundError(
        f"The package's preset files are in none of {', '.join(_FOLDERS)}. Install it again."
    )


def metadata(name: str) -> dict:
    """A built-in preset's `metadata.json`."""
    return read_json(os.path.join(folder_of(name), METADATA_FILE))


def read_json(path):
    """Reads a JSON file, and names it in the error when it is damaged."""
    try:
        first_bytes(path)
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Cannot read {os.fspath(path)!r}, which is not JSON: {error}") from error


class FolderSource:
    """A folder on this machine, or one file in it."""

    def __init__(self, folder: str, single_file: str | None = None):
        self.folder = os.path.abspath(folder)
        self.single_file = single_file

    def fetch(self, name: str, optional: bool = False) -> str | None:
        """The path of one of its files, or None for an optional file that is not there."""
        path = os.path.join(self.folder, name)
        if os.path.isfile(path):
            return path
        if optional:
            return None
        best = os.path.join(self.folder, "best")  # of `keras-sam train`
        hint = f" A model that was trained into it is {best!r}." if os.path.isdir(best) else ""
        raise FileNotFoundError(f"The preset folder {self.folder!r} has no {name}.{hint}")

    def __str__(self):
        return f"The folder {self.folder!r}"


Source = FolderSource | HubSource | KaggleSource | UrlSource


def local_file(preset: str) -> FolderSource | None:
    """The source of a file on this machine, or None if `preset` is not the path of one."""
    path = os.path.expanduser(preset)
    return FolderSource(*os.path.split(path)) if os.path.isfile(path) else None


def weights_source(name: str) -> Source:
    """The source of a built-in preset's weights; its sources are asked until one answers."""
    return first_that_answers(name, metadata(name)["sources"])


def locate(preset: str) -> Source:
    """The source of an address or a folder, whose `fetch(name)` gives local paths.

    Nothing is downloaded before that. Its `single_file` is the name of a checkpoint that is used
    on its own, or None for a folder with a `config.json`.
    """
    if preset.startswith("kaggle://"):
        return KaggleSource.parse(preset)
    if preset.startswith("hf://"):
        return HubSource.parse(preset)
    path = os.path.expanduser(preset)
    if os.path.isdir(path):
        return FolderSource(path)
    known = [*names(), *aliases()]
    close = _close_to(preset, known)
    hint = f" Did you mean {close!r}?" if close else ""
    if "://" in preset:
        raise ValueError(
            f"An address must start with kaggle:// or hf://. Received: {preset!r}.{hint} Other "
            "files can be downloaded first, and given by their path."
        )
    raise ValueError(
        "A preset must be a built-in name, a `kaggle://` or `hf://` address, or the path of a "
        f"folder or checkpoint file that exists. Received: {preset!r}.{hint} "
        f"Built-in names: {', '.join(known)}."
    )


# What people pass in place of an address or a built-in name, and what they mean.
_MEANT = (
    (
        r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:resolve|blob)/([^/]+)/(.+)",
        r"hf://\1@\2/\3",
    ),
    (r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)(/.*)?", r"hf://\1"),
    (r"https?://(?:www\.)?kaggle\.com/models/((?:[^/]+/){3}[^/]+(?:/\d+)?)", r"kaggle://\1"),
    (r"((?:[\w-]+/){3}[\w-]+(?:/\d+)?)", r"kaggle://\1"),
    (r"([\w-]+/[\w.-]+(?<!\.pth)(?<!\.pt)(?<!\.safetensors))", r"hf://\1"),
    (r"(?:sam[_-]?)?(?:vit[_-]?t|mobile[_-]?sam)(?:\.pt)?", "mobile_sam"),
    (r"(?:sam[_-]?)?(?:vit[_-]?)?(?:b|base)(?:_01ec64(?:\.pth)?)?", "sam_base_sa1b"),
    (r"(?:sam[_-]?)?(?:vit[_-]?)?(?:l|large)(?:_0b3195(?:\.pth)?)?", "sam_large_sa1b"),
    (r"(?:sam[_-]?)?(?:vit[_-]?)?(?:h|huge)(?:_4b8939(?:\.pth)?)?", "sam_huge_sa1b"),
)


def _close_to(preset, known):
    for pattern, meant in _MEANT:
        match = re.fullmatch(pattern, preset, re.IGNORECASE)
        if match:
            return match.expand(meant)
    return next(iter(difflib.get_close_matches(preset, known, n=1)), None)
