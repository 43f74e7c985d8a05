"""The programs beside the training, one module each: ``python -m detr_distill.commands.NAME``, or tools/NAME.py."""
