"""MobileSAM's own code, `mobilesam-mirror`, as the oracle of the tests.

It asks timm for four names, and torchvision for those that Meta's code asks for too: small modules
with these stand in for both.
"""

import importlib
import importlib.util
import sys
import types

import pytest

from tests import meta_oracle


def import_mobile_sam():
    """Imports `mobile_sam`, or skips the test where it or torch is not installed."""
    return import_with_timm("mobile_sam", "mobilesam-mirror")


def import_with_timm(module, package):
    """Imports a module that asks for these names of timm, or skips the test where it is missing."""
    torch = pytest.importorskip("torch", reason=f"{package}, the oracle, runs on torch")
    if module in sys.modules:
        return sys.modules[module]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{package}, the oracle, is not installed")

    class DropPath(torch.nn.Module):
        """Stochastic depth, which the tests leave at a rate of 0."""

        def __init__(self, drop_prob=None):
            super().__init__()
            assert not drop_prob

    contents = {
        "timm": {},
        "timm.models": {},
        "timm.models.layers": {
            "DropPath": DropPath,
            "to_2tuple": lambda x: x if isinstance(x, tuple) else (x, x),
            "trunc_normal_": torch.nn.init.trunc_normal_,
        },
        "timm.models.registry": {"register_model": lambda function: function},
    }
    for name, values in contents.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(values)
    names = [*contents]
    if importlib.util.find_spec("torchvision") is None:
        names += meta_oracle.install_stand_in()
    try:
        return importlib.import_module(module)
    finally:
        # It has its functions now; other libraries must not believe that these are here.
        for name in names:
            del sys.modules[name]


def mobile_like(encoder, prompts, decoder):
    """MobileSAM's `Sam` of the sizes of one of ours, with the weights that it starts with.

    Its code knows the strides, the embedding's size and the neck of the released model alone; here
    they are set.

    Args:
        encoder: dict. The arguments of our image encoder.
        prompts: dict. The arguments of our prompt encoder.
        decoder: dict. The arguments of our mask decoder.
    """
    import_mobile_sam()
    import torch
    from mobile_sam import modeling
    from mobile_sam.modeling.tiny_vit_sam import LayerNorm2d, TinyViT

    class AnySize(TinyViT):
        def forward_features(self, x):
            x = self.patch_embed(x)
            for layer in self.layers:
                x = layer(x)
            grid = [n // 16 for n in encoder["image_shape"][:2]]
            return self.neck(x.view(len(x), *grid, -1).permute(0, 3, 1, 2))

    h, w, channels = encoder["image_shape"]
    image_encoder = AnySize(
        img_size=h if h == w else (h, w),
        in_chans=channels,
        embed_dims=encoder["hidden_sizes"],
        depths=encoder["depths"],
        num_heads=encoder["num_heads"],
        window_sizes=encoder["window_sizes"],
        mlp_ratio=encoder["mlp_ratio"],
        drop_path_rate=0.0,
        mbconv_expand_ratio=encoder["expansion_ratio"],
        local_conv_size=encoder["local_conv_size"],
    )
    for layer, stride in zip(image_encoder.layers, encoder["merge_strides"], strict=False):
        layer.downsample.conv2.c.stride = (stride, stride)
    dim = decoder["hidden_size"]
    image_encoder.neck = torch.nn.Sequential(
        torch.nn.Conv2d(encoder["hidden_sizes"][-1], dim, 1, bias=False),
        LayerNorm2d(dim),
        torch.nn.Conv2d(dim, dim, 3, padding=1, bias=False),
        LayerNorm2d(dim),
    )
    return meta_oracle.sam_of(modeling, image_encoder, prompts, decoder)


def randomize_statistics(model, seed):
    """Draws the averages of every batch norm, and the offsets' biases at a scale that matters.

    In evaluation mode afterwards: the code gathers the offsets' biases when it enters it.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                shape = module.running_mean.shape
                module.running_mean.copy_(0.3 * torch.randn(shape, generator=generator))
                module.running_var.copy_(0.5 + 2 * torch.rand(shape, generator=generator))
            elif hasattr(module, "attention_biases"):
                biases = module.attention_biases
                biases.copy_(torch.randn(biases.shape, generator=generator))
    return model.eval()


def tensors_of(model):
    """The model's state dict as numpy arrays."""
    return {name: values.detach().numpy().copy() for name, values in model.state_dict().items()}
