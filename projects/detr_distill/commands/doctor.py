"""Says which versions, devices and kernels are there, what is missing, and what helps."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import detectron2
import torch

from ..config.files import SHIPPED
from ..data.check_cache import cache_folder
from ..detr.layers import deformable_kernel
from ..detr.supervision import solver
from ..distill.attention_check import attention_kernels_work
from ..options.simple import doctor_parser

GIBIBYTE = 2**30
ROOM = 5  # GiB below which a run's checkpoints soon find no room
# What an extra brings, and what is not there without it: import name -> (its extra of pip, what needs it).
EXTRAS = {
    "transformers": ("transformers", "teachers and students of transformers"),
    "timm": ("timm", "timm's backbones"),
    "onnxruntime": ("onnx", "export --format onnx, and predict with its file"),
    "onnxscript": ("onnx", "export --format onnx"),
    "faster_coco_eval": ("fast-evaluation", "an evaluation that takes an eighth of the time"),
    "sklearn": ("digits", "the digits that are drawn as data"),
    "triton": ("triton", "kernels on a GPU"),
}
REQUIRED = ("torch", "torchvision", "numpy", "pillow", "opencv-python-headless", "pycocotools", "scipy", "safetensors")


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what helps where that is not enough (else nothing)."""

    what: str
    found: str
    remedy: str = ""


def main(argv: list[str] | None = None) -> None:
    """The command; what is missing is no error."""
    doctor_parser().parse_args(argv)
    findings = [*versions(), *extras(), *devices(), *folders()]
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{finding.what:<{width}}  {finding.found}")
        if finding.remedy:
            print(f"{'':<{width}}  -> {finding.remedy}")
    missing = sum(bool(finding.remedy) for finding in findings)
    print(f"\n{missing} of {len(findings)} can be mended." if missing else "\nEverything is there.")


def versions() -> Iterator[Finding]:
    """Python, this package, and what it cannot do without."""
    yield Finding("Python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("detr_distill", f"{_version('detr_distill') or 'from its folder'} ({Path(__file__).parents[1]})")
    operators = any(Path(detectron2.__file__).parent.glob("_C.*"))
    compiled = "with compiled operators" if operators else "without compiled operators, which nothing here needs"
    yield Finding("detectron2", f"{_version('detectron2', 'pb1-detectron2') or 'unknown'}, {compiled}")
    for name in REQUIRED:
        found = _version(name, "opencv-python", "opencv-contrib-python") if "opencv" in name else _version(name)
        yield Finding(name, found or "is missing", "" if found else f"pip install {name}")


def extras() -> Iterator[Finding]:
    """What only some runs need."""
    for module, (extra, needed_by) in EXTRAS.items():
        name = {"sklearn": "scikit-learn", "faster_coco_eval": "faster-coco-eval"}.get(module, module)
        if importlib.util.find_spec(module) is not None:
            yield Finding(name, _version(name) or "is there")
        else:
            yield Finding(name, "is missing", f'for {needed_by}: pip install "detr_distill[{extra}]"')


def devices() -> Iterator[Finding]:
    """GPUs with their memory and the kernels that work there, or why torch sees none."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    yield Finding("CPU", f"{cores} cores for this process, {torch.get_num_threads()} threads of torch")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        remedy = (
            "look at nvidia-smi, and at CUDA_VISIBLE_DEVICES"
            if built and shutil.which("nvidia-smi")
            else "where there is one, install torch with CUDA from pytorch.org"
            if not built
            else ""
        )
        yield Finding("GPU", f"none; torch is built for CUDA {built or 'not at all'}", remedy)
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        memory = f"{properties.total_memory / GIBIBYTE:.0f} GiB"
        yield Finding(f"GPU {number}", f"{properties.name}, {memory}, CUDA {torch.version.cuda}")
    device = torch.device("cuda", 0)
    for what, works, otherwise in (
        ("deformable attention", deformable_kernel.triton_works, "PyTorch's operators take several times as long"),
        ("matching", solver.triton_works, "it is done on the host, for which the GPU waits"),
        ("attention losses", attention_kernels_work, "they compare maps, which takes more memory"),
    ):
        good = works(device)
        remedy = (
            "" if good else f"{otherwise}; kernels need triton and a C compiler: pip install triton, apt install gcc"
        )
        yield Finding(f"kernel: {what}", "works" if good else "does not work", remedy)


def folders() -> Iterator[Finding]:
    """Configurations, the cache, and room on the disk that is worked on."""
    configurations = SHIPPED / "configs"
    there = configurations.is_dir()
    yield Finding("configurations", str(configurations), "" if there else "they are missing: install the package again")
    cache = cache_folder("")
    yield Finding("cache", str(cache))
    free = shutil.disk_usage(Path.cwd()).free / GIBIBYTE
    yield Finding("free here", f"{free:.0f} GiB", "" if free > ROOM else "a run keeps several checkpoints: make room")


def _version(*names: str) -> str:
    """Of the first of some names that is installed, else nothing."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


if __name__ == "__main__":
    main()
