"""Uploads, up to the arguments of each client's own function."""

import sys

import pytest

from keras_sam.presets import upload_preset

pytestmark = pytest.mark.once


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "metadata.json", "model.weights.h5"):
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """Records the calls of the clients' functions, whose signatures are the real ones."""
    import inspect

    import huggingface_hub as hub
    import kagglehub

    made = []

    def record(module, name):
        signature = inspect.signature(getattr(module, name))

        def called(*arguments, **kwargs):
            signature.bind(*arguments, **kwargs)
            made.append((name, arguments, kwargs))

        monkeypatch.setattr(module, name, called)

    record(kagglehub, "model_upload")
    record(hub, "create_repo")
    record(hub, "upload_folder")
    return made


def test_kaggle(folder, calls):
    upload_preset(
        "kaggle://me/sam/keras/mine", folder, license_name="Apache 2.0", version_notes="better"
    )
    options = {"license_name": "Apache 2.0", "version_notes": "better"}
    assert calls == [("model_upload", ("me/sam/keras/mine", str(folder)), options)]


def test_hub(folder, calls):
    upload_preset("hf://me/mine", folder, commit_message="better", private=True)
    assert calls == [
        ("create_repo", ("me/mine",), {"private": True, "exist_ok": True}),
        (
            "upload_folder",
            (),
            {"repo_id": "me/mine", "folder_path": str(folder), "commit_message": "better"},
        ),
    ]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("me/mine", "must start with kaggle:// or hf://"),
        ("kaggle://me/mine", "must be kaggle://owner/model/framework/variation"),
        ("kaggle://me/sam/keras/mine/3", "leave the version out"),
        ("hf://me", "must be hf://owner/repository"),
        ("hf://me/mine/file.h5", "must be hf://owner/repository"),
        ("hf://me/mine@main", "must be hf://owner/repository"),
    ],
)
def test_addresses(address, message, folder, calls):
    with pytest.raises(ValueError, match=message):
        upload_preset(address, folder)
    assert calls == []


@pytest.mark.parametrize("name", ["config.json", "metadata.json"])
def test_a_folder_that_is_no_preset(name, folder, calls):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"no {name}"):
        upload_preset("hf://me/mine", folder)
    assert calls == []


@pytest.mark.parametrize(
    ("address", "module", "extra"),
    [("kaggle://me/sam/keras/m", "kagglehub", "kaggle"), ("hf://a/b", "huggingface_hub", "hub")],
)
def test_a_client_that_is_not_installed(address, module, extra, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"keras-sam\[{extra}\]"):
        upload_preset(address, folder)
