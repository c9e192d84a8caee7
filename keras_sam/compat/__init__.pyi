# Written by tools/stubs.py.
from keras_sam.compat import keras_cv as keras_cv
from keras_sam.compat import keras_hub as keras_hub
from keras_sam.compat import segment_anything as segment_anything
from keras_sam.compat import tfimm as tfimm
from keras_sam.compat import transformers as transformers

__all__: list[str]
