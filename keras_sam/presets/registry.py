"""The built-in presets: what they are called, how large they are, where their weights lie."""

import difflib
import json
import os

# An installed package carries the data beside its code, a source tree in its root.
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MARK = "config.json"
_FOLDERS = (os.path.join(_HERE, "preset_files"), os.path.join(os.path.dirname(_HERE), "presets"))


def data_folder() -> str:
    """The folder that holds one folder per built-in preset."""
    for folder in _FOLDERS:
        if os.path.isdir(folder):
            return folder
    raise FileNotFoundError(
        f"The package's preset files are in none of {', '.join(_FOLDERS)}. Install it again."
    )


def names() -> list[str]:
    """The names of the built-in presets, sorted by their number of parameters."""
    folder = data_folder()
    found = (n for n in os.listdir(folder) if os.path.isfile(os.path.join(folder, n, _MARK)))
    return sorted(found, key=lambda name: (metadata(name)["parameters"], name))


def aliases() -> dict[str, str]:
    """Names of image encoders alone, and the preset that each is taken from."""
    return {alias: name for name in names() for alias in metadata(name).get("encoder_names", [])}


def folder_of(name: str) -> str:
    """The data folder of a built-in preset."""
    return os.path.join(data_folder(), name)


def read_json(path):
    """Reads a JSON file, and says which when it is damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"Cannot read {os.fspath(path)!r}, which is not JSON: {error}") from error


def metadata(name: str) -> dict:
    """A built-in preset's `metadata.json`."""
    return read_json(os.path.join(folder_of(name), "metadata.json"))


def unknown(name: str) -> ValueError:
    """The error for a preset that is no name, folder, file or address."""
    known = [*names(), *aliases()]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ValueError(
        "A preset must be a built-in name, a `kaggle://` or `hf://` address, or the path of a "
        f"folder or checkpoint file that exists. Received: {name!r}.{hint} "
        f"Built-in names: {', '.join(known)}."
    )
