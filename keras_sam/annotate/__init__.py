"""Click to segment: a page, and an HTTP API, for labelling a folder of photographs.

`keras-sam annotate` puts these together: `AnnotationStore` keeps the masks in a COCO file,
`PhotoFolder` reads photographs and nothing else, `Engine` runs the model, and `create_app` is the
server around them.
"""
