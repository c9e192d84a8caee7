"""The built-in presets say what is true of the models."""

import re
from pathlib import Path

import numpy as np
import pytest

import keras_sam
from keras_sam.converters import to_meta
from keras_sam.presets import list_presets, locate
from keras_sam.presets.write import save_safetensors

pytestmark = pytest.mark.once

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "keras_hub_0_32"
NAMES = ["sam_base_sa1b", "sam_large_sa1b", "sam_huge_sa1b"]


def test_names_smallest_first():
    listed = list_presets()
    assert [name for name in listed if name in NAMES] == NAMES
    sizes = [known["parameters"] for known in listed.values()]
    assert sizes == sorted(sizes)


def test_presets_of_a_class():
    whole, encoders = list_presets(), locate.aliases()
    assert encoders["vitdet_base_sa1b"] == "sam_base_sa1b"
    for cls in (keras_sam.SAMImageSegmenter, keras_sam.ImageSegmenter, keras_sam.SAMBackbone):
        assert cls.presets == whole
    vits = {name for name in encoders if name.startswith("vitdet_")}
    hieras = {name for name in encoders if name.startswith("hiera_")}
    assert keras_sam.ViTDetBackbone.presets.keys() == vits
    assert keras_sam.HieraBackbone.presets.keys() == hieras and len(hieras) == 8
    assert keras_sam.TinyViTBackbone.presets.keys() == {"tiny_vit_mobile_sam"} <= encoders.keys()
    assert keras_sam.Backbone.presets.keys() == whole.keys() | encoders.keys()

    class Mine(keras_sam.ViTDetBackbone):
        pass

    assert Mine.presets.keys() == vits
    known = Mine.presets["vitdet_base_sa1b"]
    assert known["parameters"] == whole["sam_base_sa1b"]["image_encoder_parameters"]
    assert known["size"] == 4 * known["parameters"]


def test_a_file_is_taken_before_the_registry_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = keras_sam.presets.read_preset(FIXTURE, load_weights=True).arrays
    save_safetensors(tmp_path / "sam_base_sa1b", to_meta(arrays))
    monkeypatch.setattr(locate, "_FOLDERS", ())
    for path in ("sam_base_sa1b", tmp_path / "sam_base_sa1b"):
        found = keras_sam.presets.read_preset(path)
        assert found.arrays.keys() == arrays.keys()


def counts(name):
    """Parameters and tensors of a preset's parts, from an encoder with one block of each kind.

    Blocks of one kind are alike, so the whole needs not be built: ViT-H takes 2.6 GB.
    """
    parts = keras_sam.presets.read_preset(name, load_weights=False).parts
    config = parts["image_encoder"]["config"]
    blocks, whole = config["num_layers"], len(config["global_attention_layer_indices"])
    small = {**config, "num_layers": 2, "global_attention_layer_indices": [1]}
    copies = {"block_0": blocks - whole, "block_1": whole}
    encoder = keras_sam.ViTDetBackbone(**small)
    prompt_encoder = keras_sam.SAMPromptEncoder(**parts["prompt_encoder"]["config"])
    prompt_encoder.build()
    mask_decoder = keras_sam.SAMMaskDecoder(**parts["mask_decoder"]["config"])
    backbone = keras_sam.SAMBackbone(encoder, prompt_encoder, mask_decoder)
    found = {"parameters": 0, "image_encoder_parameters": 0, "tensors": 0}
    for variable in backbone.weights:
        times = copies.get(variable.path.split("/")[0], 1)
        size = times * int(np.prod(variable.shape))
        found["parameters"] += size
        found["tensors"] += times
        if not variable.path.startswith(("prompt_encoder", "mask_decoder")):
            found["image_encoder_parameters"] += size
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_the_metadata_counts(name):
    metadata = locate.metadata(name)
    assert counts(name) == {key: metadata[key] for key in counts(name)}


@pytest.mark.parametrize("name", NAMES)
def test_files_of_a_built_in(name):
    folder = locate.folder_of(name)
    metadata = locate.metadata(name)
    assert metadata["license"] == "Apache-2.0"
    for file in metadata["files"]:
        assert isinstance(locate.read_json(f"{folder}/{file}"), dict)
    saved = keras_sam.presets.read_preset(name, load_weights=False)
    assert saved.preprocessor["registered_name"] == "keras_sam>SAMImageSegmenterPreprocessor"
    assert saved.task["registered_name"] == "keras_sam>SAMImageSegmenter"


def test_the_whole_of_the_smallest():
    segmenter = keras_sam.SAMImageSegmenter.from_preset("sam_base_sa1b", load_weights=False)
    assert segmenter.count_params() == locate.metadata("sam_base_sa1b")["parameters"]
    assert len(segmenter.weights) == locate.metadata("sam_base_sa1b")["tensors"]
    # Its preprocessor is the one that weights without any would get.
    default = keras_sam.SAMImageSegmenter.default_preprocessor(segmenter.backbone)
    ours, theirs = segmenter.preprocessor.get_config(), default.get_config()
    assert ours["mask_size"] == theirs["mask_size"] == [256, 256]
    ours, theirs = (c["image_converter"]["config"] for c in (ours, theirs))
    for key in ours:
        if isinstance(ours[key], list):
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6)
        elif key not in ("name", "dtype"):
            assert ours[key] == theirs[key], key


def test_damaged_data_is_an_error_with_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(locate, "_FOLDERS", (str(tmp_path / "none"),))
    with pytest.raises(FileNotFoundError, match="Install it again"):
        list_presets()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{}")
    (tmp_path / "x" / "metadata.json").write_text("{")
    monkeypatch.setattr(locate, "_FOLDERS", (str(tmp_path),))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "x" / "metadata.json"))):
        list_presets()


@pytest.mark.parametrize(
    ("preset", "meant"),
    [
        ("facebook/sam-vit-base", "hf://facebook/sam-vit-base"),  # as transformers takes it
        ("keras/sam/keras/sam_base_sa1b", "kaggle://keras/sam/keras/sam_base_sa1b"),  # kagglehub
        ("keras/sam/keras/sam_base_sa1b/5", "kaggle://keras/sam/keras/sam_base_sa1b/5"),
        ("https://huggingface.co/facebook/sam-vit-huge", "hf://facebook/sam-vit-huge"),
        ("https://huggingface.co/facebook/sam-vit-huge/tree/main", "hf://facebook/sam-vit-huge"),
        ("https://huggingface.co/a/b/resolve/main/sub/c.pth", "hf://a/b@main/sub/c.pth"),
        ("https://hf.co/a/b/blob/v1/c.pth", "hf://a/b@v1/c.pth"),
        (
            "https://www.kaggle.com/models/keras/sam/keras/sam_base_sa1b",
            "kaggle://keras/sam/keras/sam_base_sa1b",
        ),
        ("vit_b", "sam_base_sa1b"),  # the keys of Meta's registry
        ("vit_l", "sam_large_sa1b"),
        ("vit_h", "sam_huge_sa1b"),
        ("vit_t", "mobile_sam"),
        ("MobileSAM", "mobile_sam"),
        ("sam-vit-base", "sam_base_sa1b"),
        ("sam_l", "sam_large_sa1b"),
        ("sam_vit_b_01ec64.pth", "sam_base_sa1b"),  # a file that is not there
        ("sam_vit_h_4b8939", "sam_huge_sa1b"),
    ],
)
def test_what_is_meant(preset, meant):
    with pytest.raises(ValueError, match=f"Did you mean {meant!r}\\?"):
        keras_sam.presets.read_preset(preset)
    if "://" in meant:
        assert locate.locate(meant) is not None


@pytest.mark.parametrize("path", ["runs/best.pth", "./vit_b.pth", "/a/b/c", "a/b.safetensors"])
def test_a_path_is_no_address(path):
    with pytest.raises(ValueError, match="path of a folder or checkpoint file") as error:
        keras_sam.presets.read_preset(path)
    assert "://'" not in str(error.value) and "Did you mean 'hf" not in str(error.value)
