"""Preset folders: written whole, read back bit by bit, in the policy that is asked for."""

import inspect
import json
import os

import keras
import numpy as np
import pytest

import keras_sam
from tests.tiny import tiny_backbone, tiny_segmenter

pytestmark = pytest.mark.once

FILES = {"config.json", "preprocessor.json", "task.json", "metadata.json", "model.weights.h5"}


def values(model):
    return {
        v.path: keras.ops.convert_to_numpy(keras.ops.cast(v.value, "float32"))
        for v in model.weights
    }


def assert_same_values(found, wanted):
    found, wanted = values(found), values(wanted)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, segmenter):
    folder = tmp_path_factory.mktemp("preset")
    segmenter.save_to_preset(folder)
    return folder


def test_a_folder_has_these_files_and_no_other(folder):
    assert {path.name for path in folder.iterdir()} == FILES
    metadata = json.loads((folder / "metadata.json").read_text())
    assert set(metadata["files"]) == FILES
    assert metadata["keras_sam_version"] == keras_sam.__version__
    config = json.loads((folder / "config.json").read_text())
    assert config["registered_name"] == "keras_sam>SAMBackbone"


@pytest.mark.every_backend
@pytest.mark.parametrize("cls", [keras_sam.SAMImageSegmenter, keras_sam.ImageSegmenter])
def test_a_segmenter_comes_back(cls, folder, segmenter):
    found = cls.from_preset(folder)
    assert type(found) is keras_sam.SAMImageSegmenter
    assert_same_values(found, segmenter)
    assert found.backbone.get_config() == segmenter.backbone.get_config()
    assert found.preprocessor.get_config() == segmenter.preprocessor.get_config()
    assert found.mask_threshold == segmenter.mask_threshold


def test_what_was_saved_can_be_overridden(folder, tmp_path):
    found = keras_sam.SAMImageSegmenter.from_preset(folder, mask_threshold=0.5, preprocessor=None)
    assert (found.mask_threshold, found.preprocessor) == (0.5, None)
    found.save_to_preset(tmp_path)
    again = keras_sam.SAMImageSegmenter.from_preset(tmp_path)
    assert again.mask_threshold == 0.5
    assert again.preprocessor is not None, "the default one, since none was saved"


@pytest.mark.parametrize("cls", [keras_sam.SAMBackbone, keras_sam.Backbone])
def test_a_backbone_comes_back(cls, segmenter, folder, tmp_path):
    segmenter.backbone.save_to_preset(tmp_path)
    assert not (tmp_path / "task.json").exists()
    for source in (tmp_path, folder):
        found = cls.from_preset(source)
        assert type(found) is keras_sam.SAMBackbone
        assert_same_values(found, segmenter.backbone)


def test_an_encoder_comes_back(segmenter, folder, tmp_path):
    segmenter.image_encoder.save_to_preset(tmp_path)
    for cls in (keras_sam.ViTDetBackbone, keras_sam.Backbone):
        assert_same_values(cls.from_preset(tmp_path), segmenter.image_encoder)
    assert_same_values(keras_sam.ViTDetBackbone.from_preset(folder), segmenter.image_encoder)
    with pytest.raises(ValueError, match="image encoder alone"):
        keras_sam.SAMImageSegmenter.from_preset(tmp_path)


def test_saving_twice_leaves_nothing_of_the_first_time(segmenter, tmp_path):
    segmenter.save_to_preset(tmp_path)
    other = tiny_backbone(seed=8)
    other.save_to_preset(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "metadata.json", "model.weights.h5"}
    assert_same_values(keras_sam.SAMBackbone.from_preset(tmp_path), other)


def test_random_weights_on_request(folder, tmp_path, segmenter):
    found = keras_sam.SAMBackbone.from_preset(folder, load_weights=False)
    kernel = "patch_embedding/kernel"
    assert not np.array_equal(values(found)[kernel], values(segmenter)[kernel])
    for name in ("config.json", "metadata.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["files"] = ["config.json", "metadata.json"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    assert keras_sam.SAMBackbone.from_preset(tmp_path).count_params() == found.count_params()
    with pytest.raises(ValueError, match="has no weights"):
        keras_sam.SAMBackbone.from_preset(tmp_path, load_weights=True)


@pytest.mark.every_backend
@pytest.mark.parametrize(
    ("dtype", "compute", "stored"),
    [("bfloat16", "bfloat16", "bfloat16"), ("mixed_bfloat16", "bfloat16", "float32")],
)
def test_half_precision_is_not_ignored(dtype, compute, stored, folder):
    found = keras_sam.SAMImageSegmenter.from_preset(folder, dtype=dtype)
    for model in (found, found.backbone, found.image_encoder):
        assert model.dtype_policy.name == dtype
    block = found.image_encoder.get_layer("block_1")
    layers = [block, block.attention.qkv, block.mlp, found.mask_decoder.transformer]
    for layer in [*layers, found.prompt_encoder, found.image_encoder.get_layer("neck_conv1")]:
        assert layer.compute_dtype == compute, layer.name
    dtypes = {keras.backend.standardize_dtype(v.dtype) for v in found.weights}
    # The frequencies of the positional encoding stay float32: they are multiplied by 2 pi.
    frequencies = {v.path for v in found.weights if "float32" in str(v.dtype)}
    if stored == "bfloat16":
        assert dtypes <= {"bfloat16", "float32"}
        assert all("gaussian_matrix" in path for path in frequencies)
    else:
        assert dtypes == {"float32"}
    hidden = found.image_encoder.get_layer("block_0")(np.zeros((1, 7, 9, 24), "float32"))
    assert keras.backend.standardize_dtype(hidden.dtype) == compute


@pytest.mark.every_backend
def test_half_precision_is_kept_by_saving(folder, tmp_path):
    half = keras_sam.SAMBackbone.from_preset(folder, dtype="bfloat16")
    half.save_to_preset(tmp_path)
    found = keras_sam.SAMBackbone.from_preset(tmp_path)
    assert found.image_encoder.dtype_policy.name == "bfloat16"
    assert_same_values(found, half)
    single = keras_sam.SAMBackbone.from_preset(tmp_path, dtype="float32")
    assert single.image_encoder.compute_dtype == "float32"
    assert_same_values(single, half)


@pytest.mark.every_backend
def test_what_lora_has_learnt_is_merged(tmp_path):
    backbone = tiny_backbone()
    qkv = backbone.image_encoder.get_layer("block_0").attention.qkv
    qkv.enable_lora(2)
    qkv.lora_kernel_b.assign(np.ones(qkv.lora_kernel_b.shape))
    backbone.save_to_preset(tmp_path)
    found = keras_sam.SAMBackbone.from_preset(tmp_path)
    kernel = found.image_encoder.get_layer("block_0").attention.qkv.kernel
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(kernel), keras.ops.convert_to_numpy(qkv.kernel), atol=1e-6
    )
    assert len(found.weights) == len(tiny_backbone().weights)


def test_a_quantized_model_is_refused(tmp_path):
    backbone = tiny_backbone()
    backbone.image_encoder.get_layer("block_0").attention.qkv.quantize("int8")
    with pytest.raises(ValueError, match="quantized model cannot be saved as a preset"):
        backbone.save_to_preset(tmp_path / "preset")
    assert not (tmp_path / "preset").exists()


def test_a_disk_that_is_full_leaves_no_half_file(segmenter, tmp_path, monkeypatch):
    from keras_sam.presets import write

    segmenter.save_to_preset(tmp_path)
    before = (tmp_path / "model.weights.h5").read_bytes()

    def full(*arguments, **kwargs):
        raise OSError(28, "No space left on device")

    class File:
        def __init__(self, path, mode):
            self.path = path

        def __enter__(self):
            open(self.path, "wb").write(b"half")
            return self

        def __exit__(self, *error):
            pass

        create_dataset = full

    monkeypatch.setattr("h5py.File", File)
    with pytest.raises(OSError, match="No space left"):
        segmenter.save_to_preset(tmp_path)
    assert (tmp_path / "model.weights.h5").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == FILES
    monkeypatch.setattr(write.json, "dump", full)
    with pytest.raises(OSError, match="No space left"):
        write.save_json(tmp_path / "config.json", {})
    assert json.loads((tmp_path / "config.json").read_text())["class_name"] == "SAMBackbone"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("save_json", {"a": 1}),
        ("save_hdf5", {"a": np.ones(3, "f4")}),
        ("save_safetensors", {"a": np.ones(3, "f4")}),
    ],
)
def test_what_is_written_is_on_the_disk_before_it_has_its_name(
    name, content, tmp_path, monkeypatch
):
    from keras_sam.presets import write

    synced = []

    def sync(descriptor):
        (part,) = tmp_path.iterdir()
        synced.append((part.name, os.fstat(descriptor).st_size == part.stat().st_size > 0))

    monkeypatch.setattr(os, "fsync", sync)
    getattr(write, name)(tmp_path / "file", content)
    ((part, whole),) = synced
    assert part != "file"
    assert whole
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_all_models_take_the_same_arguments_from_a_preset(segmenter, tmp_path):
    segmenter.save_to_preset(tmp_path)
    classes = (keras_sam.SAMImageSegmenter, keras_sam.SAMBackbone, keras_sam.ViTDetBackbone)
    assert len({str(inspect.signature(cls.from_preset)) for cls in classes}) == 1
    for cls in classes:
        model = cls.from_preset(tmp_path, name="mine", dtype="bfloat16", load_weights=False)
        assert model.name == "mine"
        assert model.dtype_policy.name == "bfloat16"
    for cls in classes[1:]:
        with pytest.raises(TypeError, match="has no argument `colour`"):
            cls.from_preset(tmp_path, colour="red")


DAMAGE = [
    ("config.json", b"{", "not JSON"),
    ("config.json", b"\xff\xfe", "not JSON"),
    ("config.json", b"{}", "must be that of a SAM"),
    ("config.json", b"[]", "must be that of a SAM"),
    ("config.json", b'{"registered_name": "keras_sam>SAMBackbone"}', "not as a preset's must be"),
    ("config.json", b'{"registered_name": "keras_hub>SAMBackbone"}', "not as a preset's must be"),
    ("config.json", b'{"model_type": "sam", "vision_config": 3}', "not as a preset's must be"),
    ("metadata.json", b"[]", "not as a preset's must be"),
    ("metadata.json", b"{", "not JSON"),
    ("model.weights.h5", b"", "empty|truncated|damaged"),
    ("model.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "truncated or damaged"),
    ("config.json", None, "has no config.json"),
    ("metadata.json", None, "has no metadata.json"),
    ("model.weights.h5", None, "has no model.weights.h5"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGE, ids=range(len(DAMAGE)))
def test_damaged_folders(name, content, message, folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        keras_sam.SAMBackbone.from_preset(tmp_path)


def test_weights_of_another_model_are_refused_by_name(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tiny_backbone(num_layers=2, hidden_size=12, num_heads=1).save_to_preset(tmp_path / "other")
    (tmp_path / "other" / "model.weights.h5").replace(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError) as error:
        keras_sam.SAMBackbone.from_preset(tmp_path)
    for part in ("block_2/norm1/gamma", "patch_embedding/kernel (file (16, 16, 3, 12)", "nothing"):
        assert part in str(error.value)


def test_a_class_that_is_not_registered(folder, tmp_path):
    for path in folder.iterdir():
        text = path.read_bytes().replace(b"keras_sam>SAMPromptEncoder", b"elsewhere>SomeEncoder")
        (tmp_path / path.name).write_bytes(text)
    with pytest.raises(ValueError, match="'elsewhere>SomeEncoder', which is not registered"):
        keras_sam.SAMBackbone.from_preset(tmp_path)


@pytest.mark.every_backend
def test_a_custom_part_is_saved_and_loaded(tmp_path):
    @keras.saving.register_keras_serializable(package="tests_presets")
    class TwiceTheDecoder(keras_sam.SAMMaskDecoder):
        pass

    plain = tiny_backbone()
    decoder = TwiceTheDecoder.from_config(plain.mask_decoder.get_config())
    backbone = keras_sam.SAMBackbone(plain.image_encoder, plain.prompt_encoder, decoder)
    backbone.save_to_preset(tmp_path)
    found = keras_sam.SAMBackbone.from_preset(tmp_path)
    assert type(found.mask_decoder) is TwiceTheDecoder
    assert_same_values(found, backbone)


def test_paths_as_people_write_them(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for source in (str(folder), folder, ".", "model.weights.h5", str(folder) + "/"):
        assert keras_sam.presets.read_preset(source).encoder["num_heads"] == 3
    monkeypatch.setenv("HOME", str(folder.parent))
    assert keras_sam.presets.read_preset(f"~/{folder.name}").encoder["num_heads"] == 3


@pytest.mark.parametrize("name", ["sam_bas", "sam_base_sa1B", "/no/such/folder", "sam.pth"])
def test_unknown_presets_are_told_the_names(name):
    with pytest.raises(ValueError, match="Built-in names: sam_tiny_demo, mobile_sam, sam_hq_t"):
        keras_sam.SAMImageSegmenter.from_preset(name)


def test_a_close_name_is_proposed():
    with pytest.raises(ValueError, match="Did you mean 'sam_huge_sa1b'"):
        keras_sam.SAMImageSegmenter.from_preset("sam_hug_sa1b")
    with pytest.raises(ValueError, match="must start with kaggle:// or hf://"):
        keras_sam.SAMImageSegmenter.from_preset("https://example.com/sam.pth")


def test_tiny_segmenter_is_the_fixture():
    assert values(tiny_segmenter()).keys() == values(tiny_backbone()).keys()
