"""Uploads a preset folder with the upload function of each client."""

import os

from keras_sam.presets.clients import HubSource, KaggleSource, _import
from keras_sam.presets.save import CONFIG_FILE, METADATA_FILE


def upload_preset(address: str, folder, **options) -> None:
    """Uploads a folder that `save_to_preset` wrote.

    Who may upload there is the client's business: log in with it first.

    Args:
        address: `kaggle://owner/model/keras/variation` or `hf://owner/repository`.
        folder: path of the folder.
        **options: passed on to the client's function: `kagglehub.model_upload` (such as
            `license_name`, `version_notes`) or `huggingface_hub.upload_folder` (such as
            `commit_message`, `revision`). `private=True` makes a new Hugging Face
            repository private.

    Raises:
        ValueError: if the address is none of these, or the folder is not a preset's.
        ImportError: if the client is not installed.
    """
    folder = os.fspath(folder)
    for name in (CONFIG_FILE, METADATA_FILE):
        if not os.path.isfile(os.path.join(folder, name)):
            raise ValueError(
                "`folder` must be one that `save_to_preset` wrote. "
                f"Received: {folder!r}, which has no {name}."
            )
    if address.startswith("kaggle://"):
        source = KaggleSource.parse(address)
        if source.handle.count("/") != 3:
            raise ValueError(
                "Kaggle numbers the versions itself: leave the version out of `address`. "
                f"Received: {address!r}."
            )
        _import("kagglehub", "kaggle").model_upload(source.handle, folder, **options)
    elif address.startswith("hf://"):
        source = HubSource.parse(address)
        if source.single_file or source.revision:
            raise ValueError(f"`address` must be hf://owner/repository. Received: {address!r}.")
        hub = _import("huggingface_hub", "hub")
        private = options.pop("private", None)
        hub.create_repo(source.repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=source.repository, folder_path=folder, **options)
    else:
        raise ValueError(
            f"`address` must start with kaggle:// or hf://. Received: address={address!r}."
        )
