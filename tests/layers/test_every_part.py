"""What holds for every layer and model of ours: configs, names, dtype policies."""

import inspect
import json

import keras
import numpy as np
import pytest

from tests.layers.parts import LAYERS, PARTS, call, make, numpy, symbolic_call


@pytest.fixture
def global_policy():
    """Sets Keras's global dtype policy for one test."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@pytest.mark.once
@pytest.mark.parametrize("name", PARTS)
def test_config_is_json_and_makes_the_same_part(name):
    part = make(name)
    config = json.loads(json.dumps(part.get_config()))
    copy = type(part).from_config(config)
    if not copy.built:
        symbolic_call(copy, name)
    assert json.loads(json.dumps(copy.get_config())) == config
    assert [w.shape for w in copy.weights] == [w.shape for w in part.weights]


@pytest.mark.once
@pytest.mark.parametrize("name", PARTS)
def test_config_has_every_argument(name):
    part = make(name)
    arguments = inspect.signature(type(part).__init__).parameters
    named = {n for n, p in arguments.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    assert named - {"self"} <= set(part.get_config())


@pytest.mark.once
@pytest.mark.parametrize("name", PARTS)
def test_keras_knows_the_class_by_its_registered_name(name):
    part = make(name)
    data = keras.saving.serialize_keras_object(part)
    assert data["registered_name"].startswith("keras_sam>")
    copy = keras.saving.deserialize_keras_object(json.loads(json.dumps(data)))
    assert type(copy) is type(part)
    assert copy.name == part.name


@pytest.mark.once
@pytest.mark.parametrize("name", PARTS)
def test_no_name_depends_on_what_was_made_before(name):
    # An unnamed sublayer would be `dense`, `dense_1`, ...: checkpoints go by these names.
    first, second = make(name), make(name)
    assert sublayer_names(first) == sublayer_names(second)
    assert variable_names(first) == variable_names(second)


@pytest.mark.once
@pytest.mark.parametrize("name", PARTS)
def test_dtype_reaches_every_sublayer(name):
    policy = "bfloat16"
    part = make(name, dtype=policy)
    assert part.dtype_policy.name == policy
    others = {x.name: x.dtype_policy.name for x in sublayers(part) if x.dtype_policy.name != policy}
    assert not others
    check_variables(part, policy)


@pytest.mark.once
@pytest.mark.parametrize("name", PARTS)
def test_global_dtype_policy_is_the_default(name, global_policy):
    global_policy("mixed_bfloat16")
    part = make(name)
    assert {x.dtype_policy.name for x in [part, *sublayers(part)]} == {"mixed_bfloat16"}
    check_variables(part, "mixed_bfloat16")


@pytest.mark.parametrize("name", PARTS)
def test_half_precision_computes_and_returns_half_precision(name):
    part, exact = make(name, dtype="mixed_bfloat16"), make(name)
    exact.set_weights(part.get_weights())
    _, args, kwargs = PARTS[name]
    outputs = keras.tree.flatten(part(*args, **kwargs))
    dtypes = {keras.backend.standardize_dtype(x.dtype) for x in outputs} - {"bool"}
    coordinates = name == "RandomFrequencyPositionalEmbeddings"  # float32 whatever the policy
    assert dtypes == ({"float32"} if coordinates else {"bfloat16"})
    for half, full in zip(numpy(outputs), call(exact, name), strict=True):
        # bfloat16 has 8 bits, 0.4 % per rounding; through the whole model that adds up.
        assert np.linalg.norm(half - full) <= 0.1 * np.linalg.norm(full)


@pytest.mark.parametrize("name", PARTS)
def test_float16_stays_finite(name):
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has no float16 convolutions and matrix products on a CPU")
    part = make(name, dtype="mixed_float16")
    assert all(np.isfinite(x).all() for x in call(part, name))


@pytest.mark.parametrize("name", sorted({*LAYERS} - {"RandomFrequencyPositionalEmbeddings"}))
def test_symbolic_call_tells_shape_and_dtype(name):
    # Functional models are made of what this says.
    part = make(name)
    expected = symbolic_call(part, name)
    _, args, kwargs = PARTS[name]
    actual = keras.tree.flatten(part(*args, **kwargs))
    for symbol, tensor in zip(expected, actual, strict=True):
        assert symbol.dtype == keras.backend.standardize_dtype(tensor.dtype)
        assert len(symbol.shape) == len(tensor.shape)
        assert all(a in (None, b) for a, b in zip(symbol.shape, tensor.shape, strict=True))


def sublayers(part):
    # Inputs hold no numbers, and Keras's own operations (`images - mean`) are no layers of ours.
    return [
        x
        for x in part._flatten_layers(include_self=False)
        if not isinstance(x, keras.layers.InputLayer)
    ]


def sublayer_names(part):
    # A model inside a model may have an automatic name: no variable's path contains it.
    return sorted(x.name for x in sublayers(part) if not isinstance(x, keras.Model))


def variable_names(part):
    prefix = f"{part.name}/"  # the part's own name may be automatic: it is the user's to choose
    return sorted(v.path.removeprefix(prefix) for v in part.weights)


def check_variables(part, policy):
    """Variables have the policy's dtype, but for what has to stay float32 or is no weight."""
    wanted = keras.dtype_policies.get(policy).variable_dtype
    for v in part.variables:
        if "seed_generator" in v.path:
            continue
        exact = v.path.endswith("gaussian_matrix")
        assert v.dtype == ("float32" if exact else wanted), v.path
