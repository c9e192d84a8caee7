"""Meta's SAM 2, the package `sam2`, as an oracle of the tests.

It asks torchvision, hydra and iopath for a few names, none of which an image needs more of than the
functions here.
"""

import importlib
import importlib.util
import sys
import types

import pytest

from tests import meta_oracle

_MODULES = (
    "automatic_mask_generator",
    "modeling.backbones.hieradet",
    "modeling.backbones.image_encoder",
)


def import_sam2():
    """Imports the parts of `sam2` that images need, or skips the test where it is not installed."""
    pytest.importorskip("torch", reason="Meta's code, the oracle, runs on torch")
    if importlib.util.find_spec("sam2") is None:
        pytest.skip("sam2, the oracle, is not installed")
    if "sam2.automatic_mask_generator" in sys.modules:
        return sys.modules["sam2"]
    put = {name: module for name, module in _stand_ins().items() if not _is_there(name)}
    sys.modules.update(put)
    try:
        for name in _MODULES:
            importlib.import_module(f"sam2.{name}")
    finally:
        # It has its functions now; other libraries must not believe that torchvision is here.
        for name in put:
            del sys.modules[name]
    return sys.modules["sam2"]


def _is_there(name):
    return importlib.util.find_spec(name.partition(".")[0]) is not None


def _stand_ins():
    import torch

    class ToTensor:
        """uint8 `(H0, W0, 3)` or a pillow image to float `(3, H0, W0)` in 0..1."""

        def __call__(self, image):
            import numpy as np

            array = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
            return array.float() / 255 if array.dtype == torch.uint8 else array

    class Resize(torch.nn.Module):
        """Bilinear and antialiased, as torchvision's is for tensors."""

        def __init__(self, size: tuple[int, int]):
            super().__init__()
            self.size = list(size)

        def forward(self, x):
            return torch.nn.functional.interpolate(
                x[None], self.size, mode="bilinear", align_corners=False, antialias=True
            )[0]

    class Normalize(torch.nn.Module):
        def __init__(self, mean: list[float], std: list[float]):
            super().__init__()
            self.mean, self.std = mean, std

        def forward(self, x):
            mean = torch.tensor(self.mean, dtype=x.dtype)
            std = torch.tensor(self.std, dtype=x.dtype)
            return (x - mean[:, None, None]) / std[:, None, None]

    contents = {
        "torchvision": {},
        "torchvision.transforms": {
            "Normalize": Normalize,
            "Resize": Resize,
            "ToTensor": ToTensor,
        },
        "torchvision.ops": {},
        "torchvision.ops.boxes": {
            "batched_nms": meta_oracle.batched_nms,
            "box_area": meta_oracle.box_area,
        },
        "hydra": {
            "initialize_config_module": lambda *args, **kwargs: None,
            "compose": None,
        },
        "hydra.core": {},
        "hydra.core.global_hydra": {
            "GlobalHydra": types.SimpleNamespace(
                instance=lambda: types.SimpleNamespace(is_initialized=lambda: True)
            )
        },
        "hydra.utils": {"instantiate": None},
        "omegaconf": {"OmegaConf": None},
        "iopath": {},
        "iopath.common": {},
        "iopath.common.file_io": {"g_pathmgr": None},
    }
    modules = {}
    for name, functions in contents.items():
        modules[name] = types.ModuleType(name)
        modules[name].__dict__.update(functions)
    return modules
