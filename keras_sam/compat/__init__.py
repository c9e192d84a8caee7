"""What the sources call their own: code written for another package, with only the import changed.

`from keras_sam.compat import keras_cv` or `keras_hub` stands in for `import keras_cv` or
`keras_hub`, as far as Segment Anything goes.
"""

from keras_sam.compat import keras_cv, keras_hub

__all__ = ["keras_cv", "keras_hub"]
