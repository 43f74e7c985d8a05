"""What the benchmarks share: random inputs, and the peak memory of a step on any device."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances


def random_inputs(batch: int, size: int, num_classes: int, objects: int = 7) -> list[dict]:
    """detectron2 dicts of square images with random boxes; 7 objects is COCO's mean."""
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for index in range(batch):
        corner = torch.rand(objects, 2, generator=generator) * 0.6
        extent = torch.rand(objects, 2, generator=generator) * 0.35 + 0.05
        instances = Instances(
            (size, size),
            gt_boxes=Boxes(torch.cat([corner, corner + extent], dim=1) * size),
            gt_classes=torch.randint(0, num_classes, (objects,), generator=generator),
        )
        image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "instances": instances, "height": size, "width": size, "image_id": index})
    return inputs


def peak_bytes(step, device: str) -> int:
    """Most bytes that a step holds at once beyond what was there before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    # Allocations and releases of the CPU allocator in time order; their running sum's peak is what the step needed.
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
