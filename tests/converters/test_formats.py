"""Masks from each format equal those of the library that wrote the file."""

import pickle
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam import converters
from keras_sam.converters import sam
from tests import checkpoints

pytestmark = pytest.mark.once

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
LIBRARIES = ["keras_hub_0_16", "keras_hub_0_32", "keras_cv_0_9"]


def load(source, **kwargs):
    return keras_sam.SAMImageSegmenter.from_preset(source, preprocessor=None, **kwargs)


@pytest.fixture(scope="module")
def meta():
    return checkpoints.meta_model()


@pytest.mark.every_backend
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
    (lambda sd: {"model_state_dict": sd, "loss": sd[NO_MASK].sum()}, "PyTorch's tutorial"),
    (lambda sd: {"model": sd, "mean": sd[NO_MASK], "std": sd[NO_MASK]}, "tensors beside it"),
    (lambda sd: {"checkpoint": {"model": sd, "epoch": 3}}, "one more level"),
    (lambda sd: ({"lr": 1}, [{"weights": {"sam": sd}}]), "in a list in a tuple"),
    (lambda sd: {part: under(sd, part) for part in converters.PARTS}, "a dict of each part"),
    (
        lambda sd: {
            "optimizer": {"state": {"exp_avg": sd}},
            "net": {k: v.double().float() for k, v in sd.items()},
        },
        "an optimizer's averages by name",
    ),
    (lambda sd: {k: v.numpy() for k, v in sd.items()}, "arrays of numpy"),
    (lambda sd: {"state_dict": {k: v.numpy() for k, v in sd.items()}}, "arrays in a dict"),
    (
        lambda sd: {k: np.asfortranarray(v.numpy().astype(">f4")) for k, v in sd.items()},
        "arrays of another order of axes and bytes",
    ),
]
NO_MASK = "prompt_encoder.no_mask_embed.weight"


def under(state, part):
    return {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(part)}


def assert_same_weights(file, meta, **arguments):
    """The file gives the config of Meta's model, and its state dict bit by bit."""
    preset = keras_sam.presets.read_preset(file, **arguments)
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


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_numpy_arrays(protocol, meta, tmp_path):
    arrays = {k: v.numpy() for k, v in meta.state_dict().items()}
    (tmp_path / "sam.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol))
    assert_same_weights(tmp_path / "sam.pkl", meta)


AVERAGES = [
    (lambda a, b: {"model": a, "model_ema": b}, "model", "model_ema"),
    (lambda a, b: {"ema_state_dict": b, "epoch": 1, "state_dict": a}, "state_dict", None),
    (lambda a, b: {"ema": {"module": b}, "model": a}, "model", "ema"),
    (lambda a, b: {"checkpoint": {"ema": b, "sam": a}}, "checkpoint/sam", "checkpoint/ema"),
    (lambda a, b: {**a, "ema": b}, "the one outside", "ema"),
    (lambda a, b: {"student": a, "teacher": b}, "student", "teacher"),
    (lambda a, b: named(a, "model.") | named(b, "ema_model."), "model", "ema_model"),
    (lambda a, b: {"state_dict": named(b, "ema.") | a}, "the one outside", "ema"),
]


def named(state, prefix):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(("wrap", "taken", "key"), AVERAGES, ids=range(len(AVERAGES)))
def test_a_model_and_its_average(wrap, taken, key, meta, tmp_path):
    import torch

    average = checkpoints.meta_model(seed=5)
    torch.save(wrap(meta.state_dict(), average.state_dict()), tmp_path / "sam.pt")
    with pytest.warns(UserWarning, match=f"more than one model, of which.*{taken}.*checkpoint_key"):
        assert_same_weights(tmp_path / "sam.pt", meta)
    key = key or "ema_state_dict"
    for name in {key, key.rsplit("/")[-1]}:  # the last key is enough
        assert_same_weights(tmp_path / "sam.pt", average, checkpoint_key=name)
    with pytest.raises(
        ValueError, match=r"`checkpoint_key` must be an entry.*'best'.*The file has"
    ):
        keras_sam.presets.read_preset(tmp_path / "sam.pt", checkpoint_key="best")


def test_averages_in_safetensors(meta, tmp_path):
    from safetensors.torch import save_file

    average = checkpoints.meta_model(seed=5)
    state = named(meta.state_dict(), "model.") | named(average.state_dict(), "ema.")
    save_file(state, tmp_path / "sam.safetensors")
    with pytest.warns(UserWarning, match="'model' is read. Pass `checkpoint_key='ema'`"):
        assert_same_weights(tmp_path / "sam.safetensors", meta)
    assert_same_weights(tmp_path / "sam.safetensors", average, checkpoint_key="ema")


def test_a_preset_folder_has_no_entries(segmenter, tmp_path):
    segmenter.save_to_preset(tmp_path)
    for source in (tmp_path, tmp_path / "model.weights.h5", "sam_tiny_demo"):
        with pytest.raises(ValueError, match="`checkpoint_key` is for checkpoint files"):
            keras_sam.presets.read_preset(source, checkpoint_key="ema")


def around_qkv(state, change):
    """The state dict with other tensors in place of each `attn.qkv.weight`."""
    changed = {}
    for name, value in state.items():
        layer = name.removesuffix(".weight")
        changed |= change(layer, value) if layer.endswith("attn.qkv") else {name: value}
    return changed


def low_rank(layer, names, rank=2):
    import torch

    return {f"{layer}.{name}": torch.zeros(rank, rank) for name in names}


LORA = [
    (
        lambda layer, w: {
            f"{layer}.base_layer.weight": w,
            **low_rank(layer, ["lora_A.default.weight", "lora_B.default.weight"]),
        },
        "of peft that are not merged.*merge_and_unload",
    ),
    (
        lambda layer, w: {f"{layer}.weight": w, **low_rank(layer, ["lora_A", "lora_B"])},
        r"of loralib.*model.eval\(\)",
    ),
    (
        lambda layer, w: {
            f"{layer}.qkv.weight": w,
            **low_rank(layer, [f"linear_{ab}_{qv}.weight" for ab in "ab" for qv in "qv"]),
        },
        r"around `qkv` that are not merged.*w\[:C\] \+= b_q @ a_q",
    ),
    (
        lambda layer, w: {
            f"{layer}.qkv_proj.weight": w,
            **low_rank(layer, [f"w_{ab}_linear_{qv}.weight" for ab in "ab" for qv in "qv"]),
        },
        r"around `qkv` that are not merged.*w\[:C\] \+= b_q @ a_q",
    ),
    (
        lambda layer, w: {f"{layer}.weight": w, **low_rank(layer, ["lora.down.weight"])},
        "look like LoRA weights that are not merged",
    ),
]


@pytest.mark.parametrize(("change", "message"), LORA, ids=range(len(LORA)))
def test_lora_that_is_not_merged(change, message, meta, tmp_path):
    import torch

    torch.save(around_qkv(meta.state_dict(), change), tmp_path / "sam.pth")
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "sam.pth")
    assert "image_encoder.blocks.0.attn.qkv." in str(error.value)


def test_the_products_that_the_error_names_are_the_merged_weights(tmp_path):
    """LoRA around `qkv` as its authors compute it, and merged as the error says."""
    import torch

    torch.manual_seed(0)
    x, w = torch.randn(5, 8), torch.randn(24, 8)
    a_q, a_v, b_q, b_v = torch.randn(2, 8), torch.randn(2, 8), torch.randn(8, 2), torch.randn(8, 2)
    wanted = x @ w.T
    wanted[:, :8] += x @ a_q.T @ b_q.T
    wanted[:, -8:] += x @ a_v.T @ b_v.T
    w[:8] += b_q @ a_q
    w[-8:] += b_v @ a_v
    torch.testing.assert_close(x @ w.T, wanted)


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
        found = sam.to_transformers(arrays)
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
        found = sam.to_transformers(arrays)
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


@pytest.mark.every_backend
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
