"""What frameworks do not promise may be missing: public functions give the same numbers then."""

import functools

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam import backends
from keras_sam.backends import private
from keras_sam.models.programs import Decoder, Program, Programs
from tests.closeness import assert_same_outputs, relative_difference
from tests.tiny import photograph, tiny_segmenter

PHOTO = photograph((53, 80))
CLICK = {"images": [PHOTO], "points": [[[30, 20]]], "labels": [[1]]}
BOXES = {"images": [PHOTO], "boxes": [[[10, 5, 60, 40], [0, 0, 9, 9], [1, 1, 30, 30]]]}
RUNNING = keras.backend.backend()


@pytest.fixture
def without(monkeypatch):
    """Names that frameworks have no more, from the call on."""

    def forget(*names):
        find = private.look_up
        missing = []

        def look_up(owner, name):
            if name in names:
                missing.append(name)
                return None
            return find(owner, name)

        monkeypatch.setattr(private, "look_up", look_up)
        return missing

    return forget


@pytest.fixture
def small():
    """A segmenter of its own, for tests that change it."""
    return tiny_segmenter(image_shape=(32, 48, 3), num_layers=2)


def test_what_is_missing_is_none():
    assert private.look_up("keras", "layers") is keras.layers
    assert private.look_up("keras", "no_such_name") is None
    assert private.look_up("keras.no_such_module", "name") is None
    assert private.look_up(None, "name") is None


class TestWithoutKerasFlattenLayers:
    def test_sublayers_are_the_same_in_the_same_order(self, small, without):
        for layer in (small.backbone, small.image_encoder, small.mask_decoder, small):
            expected = private.sublayers(layer)
            assert len(expected) > 20
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(private, "look_up", lambda owner, name: None)
                actual = private.sublayers(layer)
            assert [part.path for part in actual] == [part.path for part in expected]
            assert [*map(id, actual)] == [*map(id, expected)]

    def test_layers_in_lists_and_dicts_and_in_both_are_found_once(self, without):
        class Own(keras.layers.Layer):
            def __init__(self):
                super().__init__()
                self.one = keras.layers.Dense(1)
                self.parts = [self.one, {"deep": keras.layers.Dense(2)}]

        layer = Own()
        without("_flatten_layers")
        assert [part.units for part in private.sublayers(layer)] == [1, 2]

    def test_lora_is_trained_saved_and_restored(self, small, without, tmp_path):
        before = small.predict(CLICK, verbose=0)
        missing = without("_flatten_layers")
        small.enable_lora(2)
        tuned = list(small.image_encoder.trainable_variables)
        assert tuned and all(v.name.startswith("lora_kernel") for v in tuned)
        assert_same_outputs(small.predict(CLICK, verbose=0), before)
        for variable in tuned:
            variable.assign(variable + 0.05)
        after = small.predict(CLICK, verbose=0)
        assert relative_difference(after["masks"], before["masks"]) > 1e-3
        small.save_to_preset(tmp_path / "preset")
        merged = keras_sam.SAMImageSegmenter.from_preset(tmp_path / "preset")
        assert_same_outputs(merged.predict(CLICK, verbose=0), after)
        small.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        assert_same_outputs(again.predict(CLICK, verbose=0), after)
        assert "_flatten_layers" in missing

    def test_blocks_are_checkpointed(self, small, without):
        missing = without("_flatten_layers")
        small.checkpoint_gradients()
        assert small.image_encoder.get_layer("block_1").rematerialize
        assert missing == ["_flatten_layers"]


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.skipif(RUNNING != "tensorflow", reason="TensorFlow's own kernels")
class TestOnTensorFlow:
    @pytest.fixture
    def norm_and_dense(self, dtype):
        from keras_sam.layers.dense import Dense, LayerNormalization

        rng = np.random.default_rng(3)
        layers = [
            LayerNormalization(epsilon=1e-6, dtype=dtype),
            Dense(24, activation="gelu", dtype=dtype),
        ]
        inputs = keras.Input((5, 16))
        model = keras.Model(inputs, keras.ops.cast(keras.Sequential(layers)(inputs), "float32"))
        model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.weights])
        return model, rng.normal(0, 2, (2, 5, 16)).astype("float32")

    def test_a_norm_without_the_raw_operation(self, norm_and_dense, dtype, without):
        model, x = norm_and_dense
        expected = Program(model)(x)
        missing = without("FusedBatchNormV3")
        assert_close(Program(model)(x), expected, dtype)
        assert missing == ["FusedBatchNormV3"]

    def test_words_that_are_not_replaced(self, norm_and_dense, dtype):
        import tensorflow as tf

        model, x = norm_and_dense
        expected = Program(model)(x)
        options = tf.config.optimizer.get_experimental_options()
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        try:
            assert_close(Program(model)(x), expected, dtype)
        finally:
            tf.config.optimizer.set_experimental_options(
                {"disable_meta_optimizer": False, **options}
            )


def assert_close(actual, expected, dtype):
    assert relative_difference(actual, expected) < (2e-6 if dtype == "float32" else 2e-2)


@pytest.mark.skipif(RUNNING != "torch", reason="torch's own operations")
class TestOnTorch:
    @pytest.fixture
    def without_one_dnn(self, without):
        from keras_sam.backends import torch

        def forget(*names):
            missing = without(*names)
            torch._one_dnn.cache_clear()
            return missing

        yield forget
        torch._one_dnn.cache_clear()

    def test_products_and_attention_without_one_dnn(self, small, without_one_dnn, monkeypatch):
        """Also of a grid as large as a global block's, which oneDNN computes by head."""
        import torch

        from keras_sam.backends import generic
        from keras_sam.backends import torch as torch_backend

        if not torch_backend._one_dnn()[1]:
            pytest.skip("oneDNN is not used on this machine")
        calls = []
        by_head = torch_backend._operation_by_head()
        monkeypatch.setattr(
            torch_backend, "_operation_by_head", lambda: lambda *x: calls.append(1) or by_head(*x)
        )
        rng = np.random.default_rng(0)
        query, key, value = (torch.tensor(rng.normal(size=(1, 2, 48, 4))).float() for _ in range(3))
        tables = [torch.tensor(rng.normal(size=(2 * n - 1, 4))).float() for n in (6, 8)]
        monkeypatch.setattr(generic, "ROWS_FROM_TOKENS", 48)

        @torch.no_grad()
        def numbers():
            bias = backends.decomposed_rel_pos(query, *tables, (6, 8))
            small._programs = Programs(small.backbone)
            outputs = small.predict(BOXES, verbose=0)
            attended = backends.attend(query, key, value, bias, (6, 8)).numpy()
            return {**outputs, "attended": attended}

        expected = numbers()
        ran = len(calls)
        assert ran
        missing = without_one_dnn("_linear_pointwise")
        actual = numbers()
        assert missing == ["_linear_pointwise"] and len(calls) == ran
        assert_same_outputs(actual, expected)

    def test_one_dnn_that_does_not_say_whether_it_has_bfloat16(self, without_one_dnn):
        import torch

        from keras_sam.backends import torch as torch_backend

        if not torch_backend._one_dnn()[1]:
            pytest.skip("oneDNN is not used on this machine")
        without_one_dnn("_is_mkldnn_bf16_supported")
        assert torch_backend._one_dnn()[1] == (torch.float32,)

    @pytest.fixture
    def layer_calls(self, small, monkeypatch):
        """A list that grows whenever the decoder's layers run."""
        calls = []
        transformer = small.mask_decoder.transformer
        run = transformer.call
        monkeypatch.setattr(transformer, "call", lambda *a, **k: calls.append(1) or run(*a, **k))
        return calls

    def inputs(self, small):
        rng = np.random.default_rng(0)
        shape = (1, *small.image_encoder.output.shape[1:])
        return {
            "image_embeddings": rng.normal(size=shape).astype("float32"),
            "points": rng.uniform(0, 30, (1, 3, 2, 2)).astype("float32"),
            "labels": rng.integers(-1, 2, (1, 3, 2)).astype("int32"),
        }

    @pytest.mark.parametrize("name", ["TorchDispatchMode", "_forward_hooks", "_forward_pre_hooks"])
    def test_without_recording_layers_run_every_time(self, small, without, layer_calls, name):
        program = functools.partial(Program, Decoder(small.backbone), is_decoder=True)
        inputs = self.inputs(small)
        expected = program()(inputs)
        layer_calls.clear()
        missing = without(name)
        run = program()
        for _ in range(2):
            assert_same_outputs(run(inputs), expected)
        assert len(layer_calls) == 2
        assert name in missing

    def test_operations_that_do_not_say_what_they_change_keep_their_order(
        self, small, without, monkeypatch
    ):
        from keras_sam.backends import torch_recorder

        inputs = self.inputs(small)
        expected = Program(Decoder(small.backbone), is_decoder=True)(inputs)
        parts, split = [], torch_recorder.split
        monkeypatch.setattr(
            torch_recorder, "split", lambda *args: parts.append(split(*args)) or parts[-1]
        )
        without("_schema")
        assert_same_outputs(Program(Decoder(small.backbone), is_decoder=True)(inputs), expected)
        ((once, _),) = parts
        assert not [node for node in once.nodes if node.op == "call_function"]


def test_nothing_of_this_is_missing_today():
    """Or everything above would compare public functions with themselves."""
    layer = keras.layers.Dense(1)
    assert private.look_up(layer, "_flatten_layers") is not None
    if RUNNING == "torch":
        import torch

        assert private.look_up("torch.utils._python_dispatch", "TorchDispatchMode") is not None
        assert private.look_up(torch.ops.mkldnn, "_linear_pointwise") is not None
        assert private.look_up(torch.ops.aten.relu.default, "_schema") is not None
        assert private.hook_tables(layer) == [{}, {}]
    if RUNNING == "tensorflow":
        import tensorflow as tf

        assert private.look_up(tf.raw_ops, "FusedBatchNormV3") is not None
