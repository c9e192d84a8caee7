"""`tfimm.models`: the models by name, and how they are made."""

from keras_sam.compat.tfimm.models.factory import (
    create_model,
    create_preprocessing,
    list_models,
    register_model,
)

__all__ = ["create_model", "create_preprocessing", "list_models", "register_model"]
