"""The released models have as many weights as their presets say and as Meta's code has."""

import functools
import json
import os
import re
import subprocess
import sys

import pytest

from tests.hq_oracle import import_segment_anything_hq
from tests.meta_oracle import import_segment_anything

pytestmark = pytest.mark.once

# name -> (all, image encoder, tensors); the prompt encoder is the same in all of them.
RELEASED = {
    "sam_base_sa1b": (93_735_728, 89_670_912, 314),
    "sam_large_sa1b": (312_343_088, 308_278_272, 482),
    "sam_huge_sa1b": (641_090_864, 637_026_048, 594),
    # With the averages of batch norm; tests/parity/test_mobile_sam.py counts MobileSAM's own.
    "mobile_sam": (9_818_564, 5_753_748, 408),
    "sam_hq_base": (94_806_832, 89_670_912, 339),
    "sam_hq_large": (313_676_336, 308_278_272, 507),
    "sam_hq_huge": (642_686_256, 637_026_048, 619),
    "sam_hq_tiny": (10_267_076, 5_753_748, 433),
}
PROMPT_ENCODER = 6_476
MASK_DECODERS = {
    "sam_hq_base": 5_129_444,
    "sam_hq_large": 5_391_588,
    "sam_hq_huge": 5_653_732,
    "sam_hq_tiny": 4_506_852,
}
MASK_DECODER = 4_058_340  # of all others
# The same of SAM 2; SAM 2.1 has as many. transformers counts 256 less: the frozen frequencies.
HIERA = {
    "tiny": (31_440_977, 27_244_064, 311),
    "small": (38_538_833, 34_341_920, 359),
    "base_plus": (73_328_657, 69_131_744, 455),
    "large": (216_925_121, 212_728_208, 743),
}

# A stateless scope makes variables without values: ViT-H takes no 2.5 GB. In a process of its own,
# because the variables would get their values at the end of the next scope.
COUNT = """
import json, keras, keras_sam
counts = {}
for name in NAMES:
    with keras.StatelessScope(initialize_variables=False):
        backbone = keras_sam.SAMBackbone.from_preset(name, load_weights=False)
    parts = (backbone, backbone.image_encoder, backbone.prompt_encoder, backbone.mask_decoder)
    counts[name] = [*(part.count_params() for part in parts), len(backbone.weights)]
print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def counts():
    code = COUNT.replace("NAMES", repr([*RELEASED, *(f"sam2.1_hiera_{size}" for size in HIERA)]))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", RELEASED)
def test_our_models(counts, name):
    everything, image_encoder, tensors = RELEASED[name]
    decoder = MASK_DECODERS.get(name, MASK_DECODER)
    assert counts[name] == [everything, image_encoder, PROMPT_ENCODER, decoder, tensors]


@pytest.mark.parametrize("size", HIERA)
def test_our_sam2(counts, size):
    from keras_sam.presets import list_presets

    everything, image_encoder, _, _, tensors = counts[f"sam2.1_hiera_{size}"]
    assert (everything, image_encoder, tensors) == HIERA[size]
    for version in ("2", "2.1"):
        entry = list_presets()[f"sam{version}_hiera_{size}"]
        said = entry["parameters"], entry["image_encoder_parameters"], entry["tensors"]
        assert said == HIERA[size]


@pytest.mark.parametrize("size", HIERA)
def test_transformers_sam2(size):
    """Of the config with which we export the preset, so that this is right, too."""
    pytest.importorskip("torch", reason="transformers' Sam2Model runs on torch")
    import torch
    import transformers

    from keras_sam.converters import sam2
    from keras_sam.presets import read_preset

    parts = read_preset(f"sam2.1_hiera_{size}", load_weights=False).parts
    config = sam2.FAMILY.transformers.config({k: part["config"] for k, part in parts.items()})
    with torch.device("meta"):  # shapes without values
        model = transformers.Sam2Model(transformers.Sam2Config(**config))
    assert sum(values.numel() for values in model.parameters()) == HIERA[size][0] - 256


@pytest.mark.parametrize("size", HIERA)
def test_metas_sam2(size, monkeypatch):
    from tests.sam2_oracle import import_sam2, sam2_like

    import_sam2()
    import torch

    from keras_sam.converters.sam2 import MEMORY
    from keras_sam.presets import read_preset

    encoder = read_preset(f"sam2.1_hiera_{size}", load_weights=False).encoder
    # It reads the numbers of this one.
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        state = sam2_like(encoder).state_dict()
    kept = [x for k, x in state.items() if not any(re.fullmatch(p, k) for p in MEMORY)]
    assert (sum(x.numel() for x in kept), len(kept)) == (HIERA[size][0], HIERA[size][2])


@pytest.mark.parametrize("name", RELEASED)
def test_the_presets_say_so(name):
    from keras_sam.presets import list_presets

    entry = list_presets()[name]
    said = entry["parameters"], entry["image_encoder_parameters"], entry["tensors"]
    assert said == RELEASED[name]


# What TinyViT's code has besides: the classifier that it was trained with, which nothing calls, and
# for each of its batch norms the number of training steps.
CLASSIFIER = 321_640
NOT_OURS = (".norm_head.", ".head.", "num_batches_tracked", "attention_bias_idxs", "attn.ab")


@pytest.mark.parametrize("name", [name for name in RELEASED if name.startswith("sam_")])
def test_their_models(name):
    family, size = name.split("_")[1:] if "hq" in name else ("sam", name.split("_")[1])
    registry = (import_segment_anything_hq if family == "hq" else import_segment_anything)()
    import torch

    # Shapes without values, but TinyViT's code reads some.
    with torch.device("cpu" if size == "tiny" else "meta"):
        model = registry.sam_model_registry["vit_tiny" if size == "tiny" else f"vit_{size[0]}"]()
    state = model.state_dict()
    if size == "tiny":
        others = {k: v for k, v in state.items() if any(part in k for part in NOT_OURS)}
        floats = [v.numel() for v in others.values() if v.is_floating_point()]
        assert sum(floats) == CLASSIFIER
        state = {k: v for k, v in state.items() if k not in others}
    everything, image_encoder, tensors = RELEASED[name]
    assert sum(values.numel() for values in state.values()) == everything
    assert (
        sum(v.numel() for k, v in state.items() if k.startswith("image_encoder")) == image_encoder
    )
    assert len(state) == tensors
