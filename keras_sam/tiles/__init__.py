"""Pictures of any size: tiles with a halo, read by windows, and results that are written by them.

Names are imported at their first use.
"""

from keras_sam.namespaces import lazy_names

HOMES = {
    "LabelMap": "keras_sam.tiles.label_maps",
    "Picture": "keras_sam.tiles.picture",
    "TileGrid": "keras_sam.tiles.grid",
    "TiledMaskGenerator": "keras_sam.tiles.generator",
    "TiledPredictor": "keras_sam.tiles.predictor",
    "open_labels": "keras_sam.tiles.label_maps",
    "open_picture": "keras_sam.tiles.pictures",
    "write_label_tiff": "keras_sam.tiles.label_maps",
    "write_polygons": "keras_sam.tiles.polygons",
}
__all__, __getattr__, __dir__ = lazy_names(globals(), HOMES)
