"""What the sources call their own: code written for another package, with only the import changed.

`from keras_sam.compat import keras_cv` stands in for `import keras_cv`, as far as Segment
Anything goes; `keras_hub` and `tfimm` likewise.
"""

from keras_sam.namespaces import lazy_names

__all__, __getattr__, __dir__ = lazy_names(globals(), {}, ("keras_cv", "keras_hub", "tfimm"))
