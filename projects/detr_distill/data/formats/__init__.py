"""Annotations in other formats than COCO's, read as COCO's instances.

A set is registered by what holds its annotations, and the kind follows from that: a ``.json`` file is COCO's, a
``.yaml`` file YOLO's, a folder of ``.xml`` files or a ``.txt`` list of their names Pascal VOC's.
"""

from .content import image_records
from .convert import Format, as_coco_file, recognise
from .folders import Source, find_other_part, find_set

__all__ = ["Format", "Source", "as_coco_file", "find_other_part", "find_set", "image_records", "recognise"]
