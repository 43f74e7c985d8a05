"""Takes the student out of a distilling run's checkpoint: ``python tools/export_student.py --help``."""

from detr_distill.commands.export_student import main

if __name__ == "__main__":
    main()
