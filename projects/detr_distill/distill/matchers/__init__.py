"""``MODEL.DISTILL.MATCHERS``: which query is compared with which."""

from .adaptive import AdaptiveMatcher
from .fixed import FixedMatcher
from .general import GeneralMatcher
from .overlap import OverlapMatcher
from .pseudo_label import PseudoLabelMatcher

__all__ = ["AdaptiveMatcher", "FixedMatcher", "GeneralMatcher", "OverlapMatcher", "PseudoLabelMatcher"]
