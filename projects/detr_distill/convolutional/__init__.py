"""detectron2's convolutional detectors, as far as they need more than detectron2 has."""

from . import fcos  # noqa: F401  (registration)
