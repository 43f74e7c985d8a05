"""Pictures of detectors, their query pairs and their attention."""

from .collect import Objects, Query, Sample, View, load_samples, views_of
from .gallery import write_gallery

__all__ = ["Objects", "Query", "Sample", "View", "load_samples", "views_of", "write_gallery"]
