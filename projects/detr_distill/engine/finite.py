"""Words for a training that diverged."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import first

IMAGES_NAMED = 16


def name_images(micro_batches: Iterable) -> list[str]:
    """``id (file)`` of every image of some batches, as far as the batches say it."""
    names = []
    for batch in micro_batches:
        for sample in batch if isinstance(batch, (list, tuple)) else ():
            if isinstance(sample, dict):
                names.append(f"{sample.get('image_id', '?')} ({sample.get('file_name', 'no file name')})")
    return names


def describe_non_finite(iteration: int, found: str, images: list[str], last_losses: dict[str, float]) -> str:
    """Message of a ``NonFiniteError``.

    Args:
        found: what is infinite or NaN. images: of the batch. last_losses: of the last iteration that was finite.
    """
    named = first(images, IMAGES_NAMED)
    history = ", ".join(f"{key} = {value:.5g}" for key, value in last_losses.items())
    return "\n".join(
        [
            f"Training diverged at iteration {iteration}: not finite: {found}.",
            f"Images of this step: {named or 'the batch does not name them'}.",
            f"Last finite losses: {history or 'none, this was the first step of this process'}.",
            "The weights were not updated and no checkpoint was written; earlier checkpoints are as they were.",
            "Look at these images and their boxes first. Then lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS, or "
            'set SOLVER.CLIP_GRADIENTS.ENABLED True with CLIP_TYPE "full_model" and CLIP_VALUE 0.1, and go on with '
            "--resume; with SOLVER.AMP.ENABLED try AMP.DTYPE bfloat16.",
        ]
    )
