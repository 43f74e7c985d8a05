"""Reading every kind of checkpoint file, and what is said of a bad one; writing all or nothing."""

import argparse
import pickle

from detr_distill.checkpoint.export import save_weights
from detr_distill.checkpoint.files import read_checkpoint, read_json, write_atomically
from detr_distill.checkpoint.locate import local_file
from detr_distill.errors import CheckpointError

import numpy as np
import pytest
import safetensors.torch
import torch

WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


def assert_read(path):
    found = read_checkpoint(path)["model"]
    assert found.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert torch.equal(found[name], value)


def test_torch_files_with_and_without_a_model_key(tmp_path):
    torch.save({"model": WEIGHTS, "iteration": 3}, tmp_path / "a.pth")
    assert_read(tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["iteration"] == 3
    torch.save(WEIGHTS, tmp_path / "b.pth")
    assert_read(tmp_path / "b.pth")
    torch.save({f"module.{name}": value for name, value in WEIGHTS.items()}, tmp_path / "c.pt")
    assert_read(tmp_path / "c.pt")
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "research.pth")
    assert_read(tmp_path / "research.pth")


def test_safetensors(tmp_path):
    safetensors.torch.save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert_read(tmp_path / "a.safetensors")


def test_the_model_zoo_s_pickles(tmp_path):
    arrays = {name: value.numpy() for name, value in WEIGHTS.items()}
    content = {"model": arrays, "__author__": "someone", "matching_heuristics": True}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content))
    assert_read(tmp_path / "zoo.pkl")
    assert read_checkpoint(tmp_path / "zoo.pkl")["by_suffix"]


def test_caffe2_names_are_converted(tmp_path):
    arrays = {"conv1_w": np.ones((4, 3, 7, 7), np.float32), "res2_0_branch2a_w": np.ones((4, 4, 1, 1), np.float32)}
    arrays["res_conv1_bn_s"] = np.ones(4, np.float32)
    (tmp_path / "msra.pkl").write_bytes(pickle.dumps({"blobs": {**arrays, "conv1_w_momentum": np.zeros(1)}}, 2))
    found = read_checkpoint(tmp_path / "msra.pkl")
    assert found["by_suffix"]
    assert sorted(found["model"]) == ["res2.0.conv1.weight", "stem.conv1.norm.weight", "stem.conv1.weight"]


def bad_files():
    buffer = pickle.dumps({"model": {"a": np.ones(100)}})
    return {
        "missing.pth": (None, "there is no such file"),
        "empty.pth": (b"", "it is empty"),
        "text.pth": (b"version https://git-lfs.github.com/spec/v1\n", "cannot be read"),
        "cut.pkl": (buffer[:200], "cannot be read"),
        "cut.safetensors": (safetensors.torch.save(WEIGHTS)[:40], "cannot be read"),
        "list.pkl": (pickle.dumps([1, 2]), "holds a list"),
        "strings.pkl": (pickle.dumps({"model": {"a": "b"}}), "under 'a' it has a str"),
        "none.pkl": (pickle.dumps({"model": {}}), "an empty dict"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_a_bad_file_is_named(tmp_path, name):
    content, message = bad_files()[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}.*{message}"):
        read_checkpoint(tmp_path / name)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"that is a folder.*import_checkpoint.py --source transformers"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=f"TEACHER.WEIGHTS {tmp_path}: that is a folder.*TransformersDetector"):
        local_file(str(tmp_path), "MODEL.DISTILL.TEACHER.WEIGHTS")


@pytest.mark.parametrize("content", ["[]", "{", "\udcff"])
def test_bad_settings_files_are_named(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"KEY: .*config.json (holds a list|cannot be read)"):
        read_json(file, "KEY")
    file.write_text('{"a": 1}')
    assert read_json(file, "KEY") == {"a": 1}


@pytest.mark.parametrize("name", ["notes.txt", "weights.pth", "weights.pkl", "weights.safetensors"])
def test_what_is_said_of_another_file_is_not_torch_s_advice(tmp_path, name):
    (tmp_path / name).write_text("hello, I am no checkpoint\n")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / name)
    message = str(caught.value)
    assert "weights_only" not in message and "torch.load" not in message
    assert name in message and "Accepted are files of torch.save (.pth, .pt, .bin), .safetensors, and .pkl" in message


def test_what_is_said_of_foreign_objects_is_not_torch_s_advice(tmp_path):
    torch.save({"model": WEIGHTS, "path": tmp_path}, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=r"other Python objects than weights \(pathlib\.\S*\) and") as caught:
        read_checkpoint(tmp_path / "foreign.pth")
    assert "weights_only" not in str(caught.value) and "add_safe_globals" not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_cut_torch_file_is_named(tmp_path, share):
    path = tmp_path / "cut.pth"
    torch.save({"model": WEIGHTS}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut.pth cannot be read"):
        read_checkpoint(path)


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "folder" / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new, but only ha")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    write_atomically(path, lambda file: file.write(b"new"))
    assert [entry.name for entry in path.parent.iterdir()] == ["file"] and path.read_bytes() == b"new"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_saved_weights_are_read_back(tmp_path, suffix):
    whole = torch.zeros(4, 3)
    weights = {**WEIGHTS, "layer.weight": whole[:2].copy_(WEIGHTS["layer.weight"])}
    save_weights(weights, tmp_path / f"a{suffix}")
    assert_read(tmp_path / f"a{suffix}")


def test_another_suffix_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"\.pth or \.safetensors"):
        save_weights(WEIGHTS, tmp_path / "a.onnx")
