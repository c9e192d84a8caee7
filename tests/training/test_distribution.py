"""Several devices: `keras.distribution.DataParallel` trains as one device would (JAX)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

PROGRAM = """
import json, sys
import keras
from tests.training.steps import encoded, ragged_data, small_segmenter, values

devices = int(sys.argv[1])
if devices > 1:
    found = keras.distribution.list_devices("cpu")
    assert len(found) == devices, found
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=found))
segmenter = small_segmenter()
x, y = ragged_data()
x = encoded(segmenter, x)
x = {name: [*value] * 2 for name, value in x.items()}
segmenter.compile(optimizer=keras.optimizers.SGD(0.01))
history = segmenter.fit(
    x, {"masks": y["masks"] * 2}, batch_size=4, epochs=3, shuffle=False, verbose=0
).history
kernel = segmenter.mask_decoder.mask_tokens
shards = len(getattr(kernel.value, "sharding").device_set)
print(json.dumps({"losses": history["loss"], "devices": shards}))
"""


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="keras.distribution is for JAX")
def test_data_parallel_training_gives_the_single_devices_losses():
    results = []
    for devices in (1, 4):
        flags = os.environ.get("XLA_FLAGS", "")
        flags += f" --xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(devices)],
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout.splitlines()[-1]))
    single, parallel = results
    assert (single["devices"], parallel["devices"]) == (1, 4)
    np.testing.assert_allclose(parallel["losses"], single["losses"], rtol=1e-4)
    assert single["losses"][-1] < single["losses"][0]
