"""Pickles: arrays pass, whatever could run code does not."""

import collections
import io
import os
import pickle

from detr_distill.checkpoint.files import read_checkpoint
from detr_distill.checkpoint.unpickler import load_arrays
from detr_distill.errors import CheckpointError

import numpy as np
import pytest
import torch


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


ARRAYS = {
    "conv1_w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "counter": np.int64(7),
    "half": np.ones((2, 0), dtype=np.float16),
    "big_endian": np.arange(3, dtype=">f4"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_pass_in_every_protocol(protocol):
    content = collections.OrderedDict(model=ARRAYS, names=["a", ("b", 1.5)], flags={True, None}, raw=b"\xff\x00")
    found = load_arrays(io.BytesIO(pickle.dumps(content, protocol)))
    assert list(found) == list(content) and found["names"] == content["names"] and found["flags"] == content["flags"]
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(found["model"][name], value)
        assert found["model"][name].dtype.newbyteorder("=") == value.dtype.newbyteorder("=")


@pytest.mark.parametrize(("old", "new"), [(b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")])
def test_both_names_of_numpy_core_are_read(old, new):
    text = pickle.dumps(ARRAYS["conv1_w"], 0).replace(old, new)
    np.testing.assert_array_equal(load_arrays(io.BytesIO(text)), ARRAYS["conv1_w"])


def test_python_2_pickles_are_read():
    # What Python 2 wrote for {"w": "\xff"}: byte strings, which detectron2's zoo decodes as latin1.
    assert load_arrays(io.BytesIO(b"(dp0\nS'w'\np1\nS'\\xff'\np2\ns.")) == {"w": "\xff"}


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_code_is_refused_and_not_run(tmp_path, protocol):
    mark = tmp_path / "mark"
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": ARRAYS["conv1_w"]}, "x": Malicious(mark)}, protocol))
    with pytest.raises(CheckpointError, match=r"bad.pkl holds other Python objects.*system"):
        read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "line",
    [
        b"cbuiltins\neval\n",
        b"c__builtin__\ngetattr\n",
        b"cnumpy\nload\n",
        b"cnumpy\nndarray.tofile\n",
        b"cos\nsystem\n",
    ],
)
def test_names_that_look_close_are_refused(line):
    with pytest.raises(pickle.UnpicklingError):
        load_arrays(io.BytesIO(line + b"."))


def test_only_the_harmless_encoding_is_admitted():
    with pytest.raises(pickle.UnpicklingError, match="zlib"):
        load_arrays(io.BytesIO(b"c_codecs\nencode\n(Vabc\nVzlib\ntR."))


def test_a_malicious_pth_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    torch.save({"model": {"a": torch.ones(1)}, "x": Malicious(mark)}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"bad.pth holds other Python objects"):
        read_checkpoint(tmp_path / "bad.pth")
    assert not mark.exists()
