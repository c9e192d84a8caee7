"""Files with less or more than a SAM: parts, parameters alone, other heads, broken weights."""

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam.converters import to_meta
from keras_sam.converters.conversion import PARTS, part_of
from keras_sam.models.preset_models import in_memory
from keras_sam.presets.write import save_hdf5, save_safetensors
from tests.tiny import tiny_segmenter

pytestmark = pytest.mark.once

FREQUENCIES = "prompt_encoder/positional_embedding/gaussian_matrix"
META_FREQUENCIES = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def values(model):
    """Values by path, for a backend-independent comparison."""
    return {v.path: np.array(keras.ops.convert_to_numpy(v.value)) for v in model.weights}


@pytest.fixture
def base():
    return tiny_segmenter()


@pytest.fixture(scope="module")
def trained():
    """Another model of the same sizes, and its weights under Meta's names."""
    segmenter = tiny_segmenter(seed=3)
    arrays = in_memory(segmenter.backbone).arrays
    return values(segmenter), {k: np.asarray(v) for k, v in to_meta(arrays).items()}


def assert_loaded(segmenter, before, wanted, parts):
    """The named parts have the new weights, and the others their old ones."""
    for path, value in values(segmenter).items():
        expected = wanted if part_of(path) in parts else before
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def without_prefix(part, state):
    return {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(part)}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("only", "reason"),
    [
        (lambda part, state: state, "a whole file"),
        (without_prefix, "`torch.save(sam.mask_decoder.state_dict(), path)`"),
        (lambda part, state: {k: v for k, v in state.items() if k.startswith(part)}, "with prefix"),
        (
            lambda part, state: {f"module.{k}": v for k, v in state.items() if k.startswith(part)},
            "trained in parallel",
        ),
    ],
)
def test_a_part(part, only, reason, base, trained, tmp_path):
    wanted, state = trained
    before = values(base)
    save_safetensors(tmp_path / "a.safetensors", only(part, state))
    base.load_checkpoint(tmp_path / "a.safetensors", part=part)
    assert_loaded(base, before, wanted, [part])


@pytest.mark.every_backend
def test_a_decoder_changes_the_masks_of_a_model_that_was_used(base, trained, tmp_path):
    inputs = {
        "images": np.random.default_rng(0).uniform(0, 255, (1, 112, 144, 3)),
        "points": [[[50, 60]]],
        "labels": [[1]],
    }
    before = base.predict(inputs, verbose=0)["masks"]
    save_safetensors(tmp_path / "a.safetensors", without_prefix("mask_decoder", trained[1]))
    base.load_checkpoint(tmp_path / "a.safetensors", part="mask_decoder")
    found = base.predict(inputs, verbose=0)["masks"]
    again = tiny_segmenter()
    again.load_checkpoint(tmp_path / "a.safetensors", part="mask_decoder")
    np.testing.assert_allclose(found, again.predict(inputs, verbose=0)["masks"], atol=1e-5)
    assert np.abs(found - before).max() > 0.1


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_transformers(part, base, trained, tmp_path):
    from keras_sam.converters.sam import to_transformers

    arrays = in_memory(tiny_segmenter(seed=3).backbone).arrays
    state = {"image_encoder": "vision_encoder"}.get(part, part)
    state = {k: v for k, v in to_transformers(arrays).items() if k.startswith(state)}
    if part != "image_encoder":
        state = without_prefix(part, state)
    before = values(base)
    save_safetensors(tmp_path / "a.safetensors", state)
    base.load_checkpoint(tmp_path / "a.safetensors", part=part)
    assert_loaded(base, before, trained[0], [part])


def test_a_part_that_is_a_model_of_its_own(base, trained, tmp_path):
    wanted, state = trained
    save_safetensors(tmp_path / "a.safetensors", state)
    before = values(base)
    base.image_encoder.load_checkpoint(tmp_path / "a.safetensors")
    assert_loaded(base, before, wanted, ["image_encoder"])
    base.backbone.load_checkpoint(tmp_path / "a.safetensors")
    assert_loaded(base, before, wanted, PARTS)


def test_position_tables_follow_the_model_s_frame(trained, tmp_path):
    save_safetensors(tmp_path / "a.safetensors", trained[1])
    other = tiny_segmenter(image_shape=(128, 96, 3))
    other.load_checkpoint(tmp_path / "a.safetensors")
    wanted = tiny_segmenter(seed=3).at_image_shape((128, 96))
    for path, value in values(wanted).items():
        np.testing.assert_array_equal(values(other)[path], value, err_msg=path)


def test_parameters_alone_name_the_frequencies_that_they_lack(base, trained, tmp_path):
    wanted, state = trained
    parameters = {k: v for k, v in state.items() if k != META_FREQUENCIES}
    save_safetensors(tmp_path / "a.safetensors", parameters)
    before = values(base)
    for part in (None, "prompt_encoder"):
        with pytest.raises(ValueError, match="frozen frequencies.*load_checkpoint.*keep="):
            base.load_checkpoint(tmp_path / "a.safetensors", part=part)
    assert_loaded(base, before, wanted, [])
    base.load_checkpoint(tmp_path / "a.safetensors", keep=FREQUENCIES)
    assert_loaded(base, before, {**wanted, FREQUENCIES: before[FREQUENCIES]}, PARTS)


def test_what_is_kept_is_loaded_where_the_file_has_it(base, trained, tmp_path):
    wanted, state = trained
    save_safetensors(tmp_path / "a.safetensors", state)
    base.load_checkpoint(tmp_path / "a.safetensors", keep=[".*gaussian_matrix", "mask_decoder/.*"])
    assert_loaded(base, {}, wanted, PARTS)


@pytest.mark.parametrize(
    ("lacking", "hint"),
    [
        (["image_encoder", "prompt_encoder"], r"`mask_decoder` alone.*part='mask_decoder'"),
        (["image_encoder"], r"`prompt_encoder` and `mask_decoder` alone.*part='prompt_encoder'"),
        (["prompt_encoder"], r"`image_encoder` and `mask_decoder` alone.*keep=\[\"prompt_enc"),
    ],
)
def test_from_preset_says_how_files_without_a_part_are_loaded(lacking, hint, trained, tmp_path):
    state = {k: v for k, v in trained[1].items() if not k.startswith(tuple(lacking))}
    save_safetensors(tmp_path / "a.safetensors", state)
    with pytest.raises(ValueError, match=hint):
        keras_sam.SAMImageSegmenter.from_preset(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("lacking", "hint"),
    [
        (["image_encoder", "prompt_encoder"], "`mask_decoder` alone.*`part='mask_decoder'`"),
        (["image_encoder"], "and `prompt_encoder` alone.*`part='prompt_encoder'`"),  # a fine-tuning
    ],
)
def test_a_file_without_a_part_says_how_it_is_loaded(lacking, hint, base, trained, tmp_path):
    wanted, state = trained
    state = {k: v for k, v in state.items() if not k.startswith(tuple(lacking))}
    save_safetensors(tmp_path / "a.safetensors", state)
    before = values(base)
    with pytest.raises(ValueError, match=hint):
        base.load_checkpoint(tmp_path / "a.safetensors")
    assert_loaded(base, before, wanted, [])


def test_a_folder_is_no_checkpoint_file(base, tmp_path):
    with pytest.raises(FileNotFoundError, match="a folder.*`from_preset` reads folders"):
        base.load_checkpoint(tmp_path)


def test_an_encoder_alone_is_not_a_segmenter(trained, tmp_path):
    save_safetensors(tmp_path / "a.safetensors", without_prefix("image_encoder", trained[1]))
    with pytest.raises(ValueError, match='load_checkpoint.path, part="image_encoder"'):
        keras_sam.SAMImageSegmenter.from_preset(tmp_path / "a.safetensors")


HEADS = {"class_head.weight": np.zeros((3, 16), "f4"), "class_head.bias": np.zeros(3, "f4")}


def test_other_heads_are_refused_or_ignored_by_name(base, trained, tmp_path):
    wanted, state = trained
    save_safetensors(tmp_path / "a.safetensors", {**state, **HEADS})
    before = values(base)
    with pytest.raises(ValueError, match=r"not in the model \(2\): class_head.bias, class_head"):
        base.load_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"not in the model \(1\): class_head.bias"):
        base.load_checkpoint(tmp_path / "a.safetensors", ignore=[r".*\.weight"])
    assert_loaded(base, before, wanted, [])
    base.load_checkpoint(tmp_path / "a.safetensors", ignore=r"class_head\..*")
    assert_loaded(base, before, wanted, PARTS)
    arrays = keras_sam.presets.read_preset(
        tmp_path / "a.safetensors", ignore=[r"class_head\..*"]
    ).arrays
    assert arrays.keys() == wanted.keys()


def test_a_part_with_another_head(base, trained, tmp_path):
    state = {**without_prefix("mask_decoder", trained[1]), **HEADS}
    save_safetensors(tmp_path / "a.safetensors", state)
    with pytest.raises(ValueError, match=r"not in the model \(2\)"):
        base.load_checkpoint(tmp_path / "a.safetensors", part="mask_decoder")
    before = values(base)
    base.load_checkpoint(tmp_path / "a.safetensors", "mask_decoder", ignore=".*class_head.*")
    assert_loaded(base, before, trained[0], ["mask_decoder"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(value, base, trained, tmp_path):
    broken = {**trained[1], "mask_decoder.iou_token.weight": np.full((1, 16), value, "f4")}
    broken["image_encoder.neck.1.bias"] = np.array([0, value] * 8, "f4")
    save_safetensors(tmp_path / "a.safetensors", broken)
    before = values(base)
    wanted = r"NaN or infinite \(2\): mask_decoder/iou_token, neck_norm1/beta\."
    with pytest.raises(ValueError, match=wanted):
        base.load_checkpoint(tmp_path / "a.safetensors")
    assert_loaded(base, before, {}, [])
    base.load_checkpoint(tmp_path / "a.safetensors", part="prompt_encoder")  # which is whole
    folder = tmp_path / "preset"
    base.save_to_preset(folder)
    arrays = {**before, "mask_decoder/iou_token": np.full((1, 16), value, "f4")}
    save_hdf5(folder / "model.weights.h5", arrays)
    with pytest.raises(ValueError, match=r"NaN or infinite \(1\): mask_decoder/iou_token"):
        keras_sam.SAMImageSegmenter.from_preset(folder)


def test_a_part_that_does_not_exist(base, tmp_path):
    with pytest.raises(ValueError, match="`part` must be one of .*'mask_dec.*Received: part='dec"):
        base.load_checkpoint(tmp_path / "a.safetensors", part="decoder")
    with pytest.raises(ValueError, match=r"`part` must be one of \['image_encoder'\]"):
        base.image_encoder.load_checkpoint(tmp_path / "a.safetensors", part="mask_decoder")
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        base.load_checkpoint(tmp_path / "a.safetensors")
