"""transformers' four configs of a SAM."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from keras_sam.presets import locate


class _Config:
    """What the four configs have in common: they are dicts in files."""

    model_type: ClassVar[str] = ""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Reads a config from a dict; what has no meaning for these models is left out."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {k: v for k, v in {**config_dict, **kwargs}.items() if k in names}
        return cls(**copy.deepcopy(known))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any):
        """Reads a config from a folder or a repository of the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: path of a folder, or a name as `facebook/sam-vit-base`.
            **kwargs: entries to replace.

        Raises:
            ValueError: if there is no such repository or no config in it.
        """
        found = read_config(address_of(pretrained_model_name_or_path))
        if cls.model_type != found.get("model_type"):  # a part's, out of the whole
            part = cls.model_type.replace("sam_vision_model", "sam_vision")
            found = found.get(f"{part.removeprefix('sam_')}_config", found)
        return cls.from_dict(found, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The config as a dict of plain values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {k: v.to_dict() if isinstance(v, _Config) else v for k, v in values.items()}
        return {**copy.deepcopy(plain), "model_type": self.model_type}

    def to_json_string(self) -> str:
        """The config as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Writes `config.json` into a folder."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / locate.CONFIG_FILE).write_text(self.to_json_string(), encoding="utf-8")


@dataclasses.dataclass
class SamPromptEncoderConfig(_Config):
    """The prompt encoder's sizes.

    Args:
        hidden_size: int. Channels `C`.
        image_size: int, pixels of the model's square frame.
        patch_size: int, pixels.
        mask_input_channels: int.
        num_point_embeddings: int. Must be 4.
        hidden_act: str.
        layer_norm_eps: float.
    """

    model_type: ClassVar[str] = "sam_prompt_encoder"

    hidden_size: int = 256
    image_size: int = 1024
    patch_size: int = 16
    mask_input_channels: int = 16
    num_point_embeddings: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6

    def __post_init__(self):
        if self.num_point_embeddings != 4:
            raise ValueError(
                "`num_point_embeddings` must be 4: background, foreground, and two corners. "
                f"Received: {self.num_point_embeddings}."
            )

    @property
    def image_embedding_size(self) -> int:
        """The side of the image embedding."""
        return self.image_size // self.patch_size


@dataclasses.dataclass
class SamMaskDecoderConfig(_Config):
    """The mask decoder's sizes.

    Args:
        hidden_size: int. Channels `C`.
        hidden_act: str. Activation of the transformer's MLPs.
        mlp_dim: int.
        num_hidden_layers: int.
        num_attention_heads: int.
        attention_downsample_rate: int.
        num_multimask_outputs: int. Masks besides mask 0.
        iou_head_depth: int.
        iou_head_hidden_dim: int.
        layer_norm_eps: float, of the transformer's blocks. Meta's code has 1e-5 there.
    """

    model_type: ClassVar[str] = "sam_mask_decoder"

    hidden_size: int = 256
    hidden_act: str = "relu"
    mlp_dim: int = 2048
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    layer_norm_eps: float = 1e-6


@dataclasses.dataclass
class SamVisionConfig(_Config):
    """The image encoder's sizes, by default those of ViT-B.

    Args:
        hidden_size: int. Channels of the blocks.
        output_channels: int. Channels `C` of the embedding.
        num_hidden_layers: int.
        num_attention_heads: int.
        num_channels: int. Channels of the image.
        image_size: int, pixels of the model's square frame.
        patch_size: int, pixels.
        hidden_act: str.
        layer_norm_eps: float.
        attention_dropout: float.
        initializer_range: float.
        qkv_bias: bool.
        mlp_ratio: float.
        use_abs_pos: bool.
        use_rel_pos: bool.
        window_size: int, patches.
        global_attn_indexes: list of ints.
        num_pos_feats: int. Half of `output_channels`.
        mlp_dim: optional int. Defaults to `mlp_ratio * hidden_size`.
    """

    model_type: ClassVar[str] = "sam_vision_model"

    hidden_size: int = 768
    output_channels: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 1024
    patch_size: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    initializer_range: float = 1e-10
    qkv_bias: bool = True
    mlp_ratio: float = 4.0
    use_abs_pos: bool = True
    use_rel_pos: bool = True
    window_size: int = 14
    global_attn_indexes: Sequence[int] = dataclasses.field(default_factory=lambda: [2, 5, 8, 11])
    num_pos_feats: int = 128
    mlp_dim: int | None = None

    def __post_init__(self):
        if self.mlp_dim is None:
            self.mlp_dim = int(self.hidden_size * self.mlp_ratio)


@dataclasses.dataclass
class SamConfig(_Config):
    """The config of a whole SAM.

    Args:
        vision_config: optional `SamVisionConfig` or dict of its entries.
        prompt_encoder_config: optional `SamPromptEncoderConfig` or dict.
        mask_decoder_config: optional `SamMaskDecoderConfig` or dict.
        initializer_range: float. Standard deviation of the initial kernels.
        output_attentions: bool. What a call that does not say returns.
        output_hidden_states: bool, likewise.
        return_dict: bool, likewise.

    Example:

    ```python
    from keras_sam.compat.transformers import SamConfig, SamVisionConfig

    config = SamConfig(vision_config=SamVisionConfig(image_size=512))
    config.vision_config.mlp_dim  # 3072
    ```
    """

    model_type: ClassVar[str] = "sam"

    vision_config: SamVisionConfig | dict[str, Any] | None = None
    prompt_encoder_config: SamPromptEncoderConfig | dict[str, Any] | None = None
    mask_decoder_config: SamMaskDecoderConfig | dict[str, Any] | None = None
    initializer_range: float = 0.02
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True

    def __post_init__(self):
        for name, part in (
            ("vision_config", SamVisionConfig),
            ("prompt_encoder_config", SamPromptEncoderConfig),
            ("mask_decoder_config", SamMaskDecoderConfig),
        ):
            value = getattr(self, name)
            if not isinstance(value, part):
                setattr(self, name, part.from_dict(value or {}))

    @property
    def use_return_dict(self) -> bool:
        """See `return_dict`."""
        return self.return_dict


def address_of(name: str | os.PathLike, revision: str | None = None) -> str:
    """What `from_preset` calls a name of transformers': a path, or a repository of the Hub."""
    name = os.fspath(name)
    if os.path.exists(name) or "://" in name or "/" not in name:
        return name
    return f"hf://{name}" + (f"@{revision}" if revision else "")


def read_config(address: str, file: str = locate.CONFIG_FILE, optional: bool = False) -> dict:
    """A JSON file beside the weights, `{}` where it may be missing and is."""
    path = locate.locate(address).fetch(file, optional=optional)
    return {} if path is None else locate.read_json(path)
