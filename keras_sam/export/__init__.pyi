# Written by tools/stubs.py.
from keras_sam.export.writing import FORMATS as FORMATS
from keras_sam.export.writing import export_model as export_model

__all__: list[str]
