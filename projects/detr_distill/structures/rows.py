"""Rows of a tensor by their numbers.

Letters: L decoder layers, B images, N rows, M chosen rows.
"""

from __future__ import annotations

from torch import Tensor

from .constants import row_numbers


def take_rows(values: Tensor, rows: Tensor) -> Tensor:
    """The chosen rows of every image, or of every layer and image.

    Args:
        values: (B, N, ...), where the last axes are a row, or (L, B, N, D).
        rows: (B, M) or (L, B, M) long, numbers from 0 to N - 1.

    Returns:
        (B, M, ...) or (L, B, M, D).
    """
    row = values.shape[rows.dim() :]
    if len(row) > 1:
        # Attention maps and the like: whole rows are copied; a gather would look up an index for every entry.
        return values[row_numbers(len(rows), rows.device)[:, None], rows]
    return values.gather(rows.dim() - 1, rows.unsqueeze(-1).expand(*rows.shape, *row) if row else rows)
