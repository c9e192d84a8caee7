"""Masks from each format equal those of the library that wrote the file."""

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam import converters
from tests import checkpoints

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
LIBRARIES = ["keras_hub_0_16", "keras_hub_0_32", "keras_cv_0_9"]


def load(source, **kwargs):
    return keras_sam.SAMImageSegmenter.from_preset(source, preprocessor=None, **kwargs)


@pytest.fixture(scope="module")
def meta():
    return checkpoints.meta_model()


def test_meta_state_dict(meta, tmp_path):
    import torch

    torch.save(meta.state_dict(), tmp_path / "sam.pth")
    segmenter = load(tmp_path / "sam.pth")
    found = checkpoints.our_prediction(segmenter)
    checkpoints.assert_same_masks(found, checkpoints.meta_prediction(meta))


WRAPPERS = [
    (lambda sd: {"model": sd, "optimizer": {"lr": 1e-4}, "epoch": 3}, "MedSAM's training script"),
    (lambda sd: {"state_dict": {f"module.{k}": v for k, v in sd.items()}}, "data parallel"),
    (lambda sd: {"model_state": {f"sam.{k}": v for k, v in sd.items()}}, "micro-sam's trainer"),
    (lambda sd: {f"_orig_mod.{k}": v for k, v in sd.items()}, "torch.compile"),
    (lambda sd: {k: v.double() for k, v in sd.items()}, "double precision"),
    (lambda sd: {k: v.clone().contiguous() for k, v in sd.items()}, "storages of their own"),
]


def assert_same_weights(file, meta):
    """The file gives the config of Meta's model, and its state dict bit by bit."""
    preset = keras_sam.presets.read_preset(file)
    assert preset.encoder["num_heads"] == 3
    assert preset.encoder["global_attention_layer_indices"] == [1]
    found = converters.to_meta(preset.arrays)
    wanted = meta.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[name]), tensor.numpy())


@pytest.mark.parametrize(("wrap", "reason"), WRAPPERS, ids=[reason for _, reason in WRAPPERS])
def test_meta_weights_as_training_scripts_save_them(wrap, reason, meta, tmp_path):
    import torch

    torch.save(wrap(meta.state_dict()), tmp_path / "sam.pt")
    assert_same_weights(tmp_path / "sam.pt", meta)


def test_meta_file_from_before_torch_1_6(meta, tmp_path):
    import torch

    torch.save(meta.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same_weights(tmp_path / "old.pth", meta)


def test_meta_weights_in_safetensors(meta, tmp_path):
    from safetensors.torch import save_file

    save_file(meta.state_dict(), tmp_path / "sam.safetensors")
    assert_same_weights(tmp_path / "sam.safetensors", meta)


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ({"global_attn_indexes": ()}, "no block sees the whole image"),
        ({"global_attn_indexes": (0, 1, 2)}, "every block does"),
        ({"window_size": 0, "global_attn_indexes": ()}, "no windows: the same, said otherwise"),
        ({"window_size": 9}, "a window larger than the grid of 7 x 7"),
        ({"qkv_bias": False}, "no bias in the projections"),
        ({"use_abs_pos": False, "num_heads": 2}, "no absolute positions, other heads"),
    ],
)
def test_what_the_shapes_tell(encoder, reason, tmp_path):
    import torch

    model = checkpoints.meta_model(**encoder)
    torch.save(model.state_dict(), tmp_path / "sam.pth")
    found = checkpoints.our_prediction(load(tmp_path / "sam.pth"))
    checkpoints.assert_same_masks(found, checkpoints.meta_prediction(model))


def test_meta_relative_tables_of_another_length_are_interpolated_as_meta_does(tmp_path):
    import torch

    model = checkpoints.meta_model()
    with torch.no_grad():
        attention = model.image_encoder.blocks[1].attn
        for name in ("rel_pos_h", "rel_pos_w"):
            table = 0.3 * torch.randn(2 * 11 - 1, 8, generator=torch.Generator().manual_seed(1))
            setattr(attention, name, torch.nn.Parameter(table))
    torch.save(model.state_dict(), tmp_path / "sam.pth")
    segmenter = load(tmp_path / "sam.pth")
    assert segmenter.image_encoder.get_layer("block_1").attention.rel_pos_h.shape == (13, 8)
    found = checkpoints.our_prediction(segmenter)
    checkpoints.assert_same_masks(found, checkpoints.meta_prediction(model))


def test_encoder_alone_from_a_whole_file_and_from_its_own(meta, tmp_path):
    import torch

    torch.save(meta.state_dict(), tmp_path / "sam.pth")
    torch.save(meta.image_encoder.state_dict(), tmp_path / "encoder.pth")
    pixels = (checkpoints.IMAGE - meta.pixel_mean.numpy()[:, 0, 0]) / meta.pixel_std.numpy()[
        :, 0, 0
    ]
    with torch.no_grad():
        wanted = meta.image_encoder(torch.tensor(pixels).permute(2, 0, 1)[None]).numpy()
    for file in ("sam.pth", "encoder.pth"):
        encoder = keras_sam.ViTDetBackbone.from_preset(tmp_path / file)
        found = encoder.predict(checkpoints.IMAGE[None], verbose=0).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    with pytest.raises(ValueError, match="image encoder alone"):
        keras_sam.SAMBackbone.from_preset(tmp_path / "encoder.pth")


@pytest.mark.parametrize("depth", [2, 3, 5], ids=lambda depth: f"quality head of {depth} layers")
def test_transformers_folder(depth, tmp_path):
    model = checkpoints.hugging_face_model(iou_head_depth=depth)
    model.save_pretrained(tmp_path)
    found = checkpoints.our_prediction(load(tmp_path))
    checkpoints.assert_same_masks(found, checkpoints.hugging_face_prediction(model))


def test_transformers_folder_in_shards(tmp_path):
    model = checkpoints.hugging_face_model()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
        arrays = keras_sam.presets.read_preset(source).arrays
        found = converters.to_hugging_face(arrays)
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(np.asarray(found[name]), tensor.numpy())


def test_transformers_file_with_8_heads_needs_no_config(tmp_path):
    model = checkpoints.hugging_face_model(decoder_heads=8)
    model.save_pretrained(tmp_path)
    file = (tmp_path / "model.safetensors").rename(tmp_path / "renamed.safetensors")
    found = checkpoints.our_prediction(load(file))
    checkpoints.assert_same_masks(found, checkpoints.hugging_face_prediction(model))


def test_transformers_pytorch_bin(tmp_path):
    import torch

    model = checkpoints.hugging_face_model()
    model.save_pretrained(tmp_path)
    wanted = keras_sam.presets.read_preset(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    found = keras_sam.presets.read_preset(tmp_path)
    assert found.parts == wanted.parts
    for name, tensor in wanted.arrays.items():
        np.testing.assert_array_equal(np.asarray(found.arrays[name]), np.asarray(tensor))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_transformers_half_precision(dtype, tmp_path):
    import torch

    model = checkpoints.hugging_face_model().to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    wanted = model.float().state_dict()
    for source in (tmp_path, tmp_path / "model.pt"):
        arrays = keras_sam.presets.read_preset(source).arrays
        found = converters.to_hugging_face(arrays)
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(np.asarray(found[name]), tensor.numpy())


def test_transformers_image_statistics_are_taken_over(tmp_path):
    model = checkpoints.hugging_face_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5]}'
    )
    encoder = keras_sam.presets.read_preset(tmp_path).encoder
    np.testing.assert_allclose(encoder["pixel_mean"], [127.5, 102.0, 76.5])
    np.testing.assert_allclose(encoder["pixel_std"], [51.0, 63.75, 127.5])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("file", ["model.keras", "model.weights.h5"])
def test_single_files_of_keras_libraries_are_their_folders(library, file):
    whole = keras_sam.presets.read_preset(FIXTURES / library)
    found = keras_sam.presets.read_preset(FIXTURES / library / file)
    assert found.parts == whole.parts
    assert found.arrays.keys() == whole.arrays.keys()
    for name, tensor in whole.arrays.items():
        np.testing.assert_array_equal(np.asarray(found.arrays[name]), np.asarray(tensor))


@pytest.mark.parametrize("library", LIBRARIES)
def test_folders_of_keras_libraries(library):
    segmenter = load(FIXTURES / library)
    expected = np.load(FIXTURES / library / "expected.npz")
    image = expected["image"][None]
    points = {"points": expected["points"][:, :2], "labels": expected["labels"][:, :2]}
    calls = {
        "points": points,
        "box": {"boxes": expected["boxes"]},
        "mask": {**points, "masks": expected["masks"]},
    }
    for name, prompts in calls.items():
        outputs = segmenter.predict({"images": image, **prompts}, verbose=0)
        found = outputs["masks"][0], outputs["iou_pred"][0]
        wanted = expected[f"{name}_masks"], expected[f"{name}_iou_pred"]
        checkpoints.assert_same_masks(found, wanted)


@pytest.mark.parametrize("library", LIBRARIES)
def test_encoder_alone_out_of_keras_libraries(library):
    encoder = keras_sam.ViTDetBackbone.from_preset(FIXTURES / library)
    arrays = keras_sam.presets.read_preset(FIXTURES / library).arrays
    assert {v.path for v in encoder.weights} == {
        name for name in arrays if not name.startswith(("prompt_encoder", "mask_decoder"))
    }
    for variable in encoder.weights:
        values = keras.ops.convert_to_numpy(variable.value)
        np.testing.assert_array_equal(values, np.asarray(arrays[variable.path]))


def test_our_keras_file(tmp_path, segmenter):
    segmenter.save(tmp_path / "ours.keras")
    image = np.full((1, *segmenter.image_shape), 90.0)
    prompt = {"images": image, "points": [[[20, 30]]], "labels": [[1]]}
    loaded = keras_sam.ImageSegmenter.from_preset(tmp_path / "ours.keras")
    wanted = segmenter.predict(prompt, verbose=0)
    found = loaded.predict(prompt, verbose=0)
    np.testing.assert_allclose(found["masks"], wanted["masks"], atol=1e-5)
    resized = keras_sam.SAMBackbone.from_preset(tmp_path / "ours.keras", image_shape=(80, 160))
    assert resized.embedding_size == (5, 10)
    assert keras.backend.standardize_dtype(loaded.weights[0].dtype) == "float32"
