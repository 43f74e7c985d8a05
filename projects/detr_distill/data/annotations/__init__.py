"""One reader of COCO's annotation files, which checks every field that anything uses."""
