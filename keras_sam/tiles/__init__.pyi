# Written by tools/stubs.py.
from keras_sam.tiles.label_maps import LabelMap as LabelMap
from keras_sam.tiles.picture import Picture as Picture
from keras_sam.tiles.grid import TileGrid as TileGrid
from keras_sam.tiles.generator import TiledMaskGenerator as TiledMaskGenerator
from keras_sam.tiles.predictor import TiledPredictor as TiledPredictor
from keras_sam.tiles.label_maps import open_labels as open_labels
from keras_sam.tiles.pictures import open_picture as open_picture
from keras_sam.tiles.label_maps import write_label_tiff as write_label_tiff
from keras_sam.tiles.polygons import write_polygons as write_polygons

HOMES: dict[str, str]
__all__: list[str]
