"""What only torch does: products by oneDNN, and programs that are recorded."""

import gc
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest

from keras_sam import backends
from keras_sam.models.programs import Decoder, Program
from tests.closeness import assert_different, assert_same_outputs
from tests.tiny import tiny_segmenter

if keras.backend.backend() != "torch":
    pytest.skip("what only torch does", allow_module_level=True)

from keras_sam.backends import torch_recorder


@pytest.fixture
def small():
    """A segmenter of its own, for tests that change it."""
    return tiny_segmenter(image_shape=(32, 48, 3), num_layers=2)


class TestWhereOneDNNIsNotUsed:
    def parts(self):
        import torch

        rng = np.random.default_rng(1)
        return [torch.tensor(rng.normal(size=s).astype("float32")) for s in ((4, 6), (6, 5), (5,))]

    def test_autocast_decides_the_dtype(self):
        import torch

        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert backends.dense(*self.parts()).dtype == torch.bfloat16

    def test_a_traced_program_can_be_saved(self):
        import torch

        x, kernel, bias = self.parts()
        with torch.no_grad():
            traced = torch.jit.trace(lambda x: backends.dense(x, kernel, bias), (x,))
        assert "mkldnn" not in str(traced.graph)
        np.testing.assert_allclose(traced(x), x @ kernel + bias, rtol=1e-5, atol=1e-6)

    def test_dtypes_may_be_mixed(self):
        import torch

        x, kernel, _ = self.parts()
        kernel = kernel.bfloat16()
        with torch.no_grad():
            found = backends.matmul(x, kernel)
        np.testing.assert_allclose(found, x @ kernel.float(), rtol=1e-5, atol=1e-6)


class TestRecordedPrograms:
    """A recording repeats what the layers computed, for other numbers, and only that."""

    def inputs(self, small, seed, prompts=3):
        rng = np.random.default_rng(seed)
        clicks = rng.uniform(0, 30, (1, prompts, 2, 2)).astype("float32")
        labels = rng.integers(-1, 2, (1, prompts, 2)).astype("int32")
        shape = (1, *small.image_encoder.output.shape[1:])
        embeddings = rng.normal(size=shape).astype("float32")
        return {"image_embeddings": embeddings, "points": clicks, "labels": labels}

    def decoder(self, small):
        model = Decoder(small.backbone)
        return model, Program(model)

    def test_equals_the_layers_bit_by_bit(self, small):
        model, program = self.decoder(small)
        for seed in range(3):
            inputs = self.inputs(small, seed)
            assert_identical(program(inputs), model.predict_on_batch(inputs))
        more = self.inputs(small, 3, prompts=5)  # another shape
        assert_identical(program(more), model.predict_on_batch(more))

    @pytest.fixture
    def layer_calls(self, small, monkeypatch):
        """A list that grows whenever the decoder's layers run."""
        calls = []
        upscaler = small.mask_decoder.output_upscaling
        upscale = upscaler.upscale_unordered
        monkeypatch.setattr(
            upscaler, "upscale_unordered", lambda *args: calls.append(1) or upscale(*args)
        )
        return calls

    def test_layers_run_once_per_shape(self, small, layer_calls):
        _, program = self.decoder(small)
        for seed in range(3):
            program(self.inputs(small, seed, prompts=1))
        assert len(layer_calls) == 1

    def test_weights_are_read_anew(self, small):
        model, program = self.decoder(small)
        inputs = self.inputs(small, 0)
        before = program(inputs)
        tokens = small.mask_decoder.mask_tokens
        tokens.assign(tokens * 2.0)
        after = program(inputs)
        assert_different(after["masks"], before["masks"])
        assert_identical(after, model.predict_on_batch(inputs))

    def test_no_tensor_in_between_is_kept(self, small):
        _, program = self.decoder(small)
        gc.collect()
        before = {id(x) for x in gc.get_objects() if type(x).__name__ == "Tensor"}
        program(self.inputs(small, 0))
        gc.collect()
        kept = [x for x in gc.get_objects() if type(x).__name__ == "Tensor" and id(x) not in before]
        assert sum(x.numel() for x in kept) < 16  # numbers that stand in the code

    def test_decoding_in_turn_equals_the_layers(self, small):
        model, _ = self.decoder(small)
        program = Program(model, is_decoder=True)
        for prompts in (4, 2, 5, 1):  # all but the first and the last by the first one's recording
            inputs = self.inputs(small, prompts, prompts)
            assert_same_outputs(program(inputs), model.predict_on_batch(inputs))

    def test_prompts_are_one_recording_however_many(self, small, layer_calls):
        model, _ = self.decoder(small)
        program = Program(model, is_decoder=True)
        for prompts in (4, 2, 5):
            program(self.inputs(small, prompts, prompts))
        assert len(layer_calls) == 1
        program(self.inputs(small, 0, prompts=1))  # which has nothing to share
        assert len(layer_calls) == 2

    def test_what_prompts_share_is_computed_once(self, small, monkeypatch):
        """Products of the image alone, say, and not those of tokens."""
        parts = []
        split = torch_recorder.split
        monkeypatch.setattr(
            torch_recorder, "split", lambda *args: parts.append(split(*args)) or parts[-1]
        )
        model, _ = self.decoder(small)
        for prompts in (1, 3):
            Program(model, is_decoder=True)(self.inputs(small, 0, prompts))
        (few, most), (shared, each) = ([self.operations(x) for x in pair] for pair in parts)
        assert not any(map(self.is_product, few))  # all may differ: the rest are constants
        assert any(map(self.is_product, shared))
        assert len(shared) > len(few) + 40
        assert sorted(shared + each) == sorted(few + most)

    @staticmethod
    def is_product(operation):
        return "linear" in operation or "mm" in operation

    @staticmethod
    def operations(graph):
        return [str(node.target) for node in graph.nodes if node.op == "call_function"]

    def test_what_changes_numbers_is_never_shared(self):
        import torch

        for change, shared in ((False, 1), (True, 0)):
            graph = torch.fx.Graph()
            image, prompt = graph.placeholder("image"), graph.placeholder("prompt")
            positive = graph.call_function(torch.ops.aten.relu.default, (image,))
            if change:
                graph.call_function(torch.ops.aten.add_.Tensor, (positive, prompt))
            graph.output([graph.call_function(torch.ops.aten.mul.Tensor, (positive, prompt))])
            once, each = torch_recorder.split(graph, [prompt])
            assert len(self.operations(once)) == shared
            assert len(self.operations(each)) == 2 - shared + change
            once, each = (torch.fx.GraphModule({}, part) for part in (once, each))
            image, prompt = torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 4.0])
            (product,) = each(*once(image), prompt)
            expected = [9.0, 24.0] if change else [0.0, 8.0]
            assert product.tolist() == expected

    def test_hooks_are_called_every_time(self, small):
        calls = []
        _, program = self.decoder(small)
        inputs = self.inputs(small, 0)
        expected = program(inputs)
        transformer = small.mask_decoder.transformer
        handle = transformer.register_forward_hook(lambda *_: calls.append(1))
        for _ in range(2):
            assert_identical(program(inputs), expected)
        handle.remove()
        assert len(calls) == 2

    def test_layers_of_ones_own_run_every_time(self, small):
        """They may do what no recording sees, as here with numpy."""

        class ByNumpy(keras.layers.Layer):
            def call(self, x):
                return x * float(keras.ops.convert_to_numpy(x).max())

        def by_numpy(x):
            return x * float(keras.ops.convert_to_numpy(x).max())

        for layer in (
            ByNumpy(),
            keras.layers.Lambda(by_numpy, output_shape=(3,)),
            keras.layers.Activation(by_numpy),
        ):
            model = keras.Sequential([keras.Input((3,)), layer])
            program = Program(model)
            for factor in (2.0, 3.0):
                array = np.array([[1.0, factor, 0.0]], "float32")
                np.testing.assert_array_equal(program(array), array * factor)


# Processor time of threads that wait while the main one sleeps, as others' work finds them.
WAITING = """
import os
for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
    os.environ.pop(name, None)
import threading, time
import torch

def spent():
    numbers = torch.ones(2**16)
    numbers.add_(1)
    began = time.process_time()
    for _ in range(30):
        numbers.add_(1)
        time.sleep(0.01)
    return time.process_time() - began

before = spent()
import keras_sam
from keras_sam import backends
idle = "keras_sam_idle" in [thread.name for thread in threading.enumerate()]
print(torch.get_num_threads(), idle, before, spent())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is Linux's")
def test_threads_that_wait_sleep_soon_though_torch_was_imported_first():
    command = [sys.executable, "-c", WAITING]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    threads, idle, before, after = done.stdout.split()
    assert (idle == "True") == (int(threads) > 1)
    if idle == "True":
        assert float(after) < float(before) / 3  # a twentieth


def test_float16_on_a_cpu_is_called_slow_once():
    small = {"image_shape": (32, 48, 3), "num_layers": 1}
    click = {"images": np.zeros((1, 32, 48, 3)), "points": [[[3, 4]]]}
    for dtype, warned in (("float32", 0), ("float16", 1), ("mixed_float16", 0)):  # once
        segmenter = tiny_segmenter(**small, dtype=dtype)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            segmenter.predict(click, verbose=0)
        slow = [str(w.message) for w in said if "times slower" in str(w.message)]
        assert len(slow) == warned, dtype
        for text in slow:
            assert 'Load the model with dtype="float32", or "bfloat16"' in text


def assert_identical(actual, expected):
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value)
