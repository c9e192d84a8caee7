"""The released models have as many weights as their presets say and as Meta's code has."""

import json
import os
import subprocess
import sys

import pytest

from tests.meta_oracle import import_segment_anything

# name -> (all, image encoder, tensors); prompt encoder and mask decoder are the same in all three.
RELEASED = {
    "sam_base_sa1b": (93_735_728, 89_670_912, 314),
    "sam_large_sa1b": (312_343_088, 308_278_272, 482),
    "sam_huge_sa1b": (641_090_864, 637_026_048, 594),
    # With the averages of batch norm; tests/parity/test_mobile_sam.py counts MobileSAM's own.
    "mobile_sam": (9_818_564, 5_753_748, 408),
}
PROMPT_ENCODER, MASK_DECODER = 6_476, 4_058_340

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
    code = COUNT.replace("NAMES", repr(list(RELEASED)))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", RELEASED)
def test_our_models(counts, name):
    everything, image_encoder, tensors = RELEASED[name]
    assert counts[name] == [everything, image_encoder, PROMPT_ENCODER, MASK_DECODER, tensors]


@pytest.mark.parametrize("name", RELEASED)
def test_the_presets_say_so(name):
    from keras_sam.presets import list_presets

    entry = list_presets()[name]
    said = entry["parameters"], entry["image_encoder_parameters"], entry["tensors"]
    assert said == RELEASED[name]


@pytest.mark.parametrize("name", [name for name in RELEASED if name.startswith("sam_")])
def test_metas_models(name):
    import_segment_anything()
    import torch
    from segment_anything import sam_model_registry

    with torch.device("meta"):  # shapes without values
        model = sam_model_registry[f"vit_{name.split('_')[1][0]}"]()
    state = model.state_dict()
    everything, image_encoder, tensors = RELEASED[name]
    assert sum(values.numel() for values in state.values()) == everything
    assert (
        sum(v.numel() for k, v in state.items() if k.startswith("image_encoder")) == image_encoder
    )
    assert len(state) == tensors
