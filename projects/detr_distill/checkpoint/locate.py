"""From the value of MODEL.WEIGHTS to a file on this machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlparse

from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import get_cache_dir

from ..errors import CheckpointError
from . import torchvision_resnet
from .files import explain_absent

DETECTRON2 = "detectron2://"
CATALOG = "catalog://"
DETECTRON2_STORE = "https://dl.fbaipublicfiles.com/detectron2/"
CONNECTION_SECONDS = 30


def local_file(address: str, key: str = "MODEL.WEIGHTS") -> str:
    """Path of a checkpoint on this machine, downloaded if it is not yet here.

    Args:
        address: a path, ``https://``, ``detectron2://``, ``catalog://`` or ``torchvision://`` address.
        key: configuration key that holds the address, for messages.

    Raises:
        CheckpointError: no such file, or it cannot be downloaded; the message says where to put it by hand.
    """
    if "://" not in address:
        path = Path(address).expanduser()
        if not path.is_file():
            raise CheckpointError(f"{key} {address}: {explain_absent(path)}")
        return str(path)
    url = download_url(address)
    candidates = [cached_path(url)]
    if address.startswith(torchvision_resnet.PREFIX):
        candidates.append(torchvision_resnet.torchvision_cache(url))
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    return _download(address, url, key)


def download_url(address: str) -> str:
    """The web address behind a short one."""
    if address.startswith(torchvision_resnet.PREFIX):
        return torchvision_resnet.weights_url(address)
    if address.startswith(DETECTRON2):
        return DETECTRON2_STORE + address.removeprefix(DETECTRON2)
    if address.startswith(CATALOG):
        return ModelCatalog.get(address.removeprefix(CATALOG))
    return address


def cached_path(url: str) -> str:
    """Where a download is kept, the place that detectron2 uses too (``FVCORE_CACHE`` moves it)."""
    return os.path.join(get_cache_dir(), urlparse(url).path.lstrip("/"))


def _download(address: str, url: str, key: str) -> str:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECTION_SECONDS)  # a blocked network must not look like a hanging program
    try:
        return PathManager.get_local_path(url)
    # Handlers raise errors of their own for addresses and networks alike.
    except Exception as error:
        raise CheckpointError(
            f"{key} {address} cannot be downloaded from {url} ({error}).\n"
            f"Without internet: fetch that address elsewhere and put the file at {cached_path(url)}, "
            f"or set {key} to the path of the file."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
