"""``python -m detr_distill.demo``, from a checkout or an installed package."""

from . import main

main()
