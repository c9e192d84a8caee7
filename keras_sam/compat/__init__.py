"""What the sources call their own: code written for another package, with only the import changed.

`from keras_sam.compat import keras_cv` stands in for `import keras_cv`, as far as Segment Anything
goes; likewise `keras_hub`, `segment_anything` and `transformers`.
"""

from keras_sam.compat import keras_cv, keras_hub, segment_anything, transformers

__all__ = ["keras_cv", "keras_hub", "segment_anything", "transformers"]
