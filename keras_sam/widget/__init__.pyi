# Written by tools/stubs.py.
from keras_sam.widget.click_to_segment import ClickToSegment as ClickToSegment

__all__: list[str]
