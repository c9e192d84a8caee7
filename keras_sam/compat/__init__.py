"""What the sources call their own: code written for another package, with only the import changed.

`from keras_sam.compat import keras_cv` stands in for `import keras_cv`, as far as Segment
Anything goes; `keras_hub`, `segment_anything`, `tfimm` and `transformers` likewise.
"""

from keras_sam.namespaces import lazy_names

_ROOMS = ("keras_cv", "keras_hub", "segment_anything", "tfimm", "transformers")

__all__, __getattr__, __dir__ = lazy_names(globals(), {}, _ROOMS)
