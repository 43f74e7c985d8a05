"""A small DETR of transformers on disk."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def detr_folder(tmp_path_factory):
    from helpers.parity import build_reference

    folder = tmp_path_factory.mktemp("detr")
    build_reference("DetrDecoder").save_pretrained(folder)
    return folder
