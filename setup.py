"""Builds the package, with the configurations and weights that stand beside it in a checkout; see config/files.py."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("configs/**/*.yaml", "configs/**/*.json", "weights/*.pth")


class BuildWithFiles(build_py):
    """Copies the public files into the package; an editable installation finds them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for file in [file for pattern in SHIPPED for file in Path().glob(pattern)]:
            target = Path(self.build_lib, "detr_distill", "_files", file)
            self.mkpath(str(target.parent))
            self.copy_file(str(file), str(target))


setup(cmdclass={"build_py": BuildWithFiles})
