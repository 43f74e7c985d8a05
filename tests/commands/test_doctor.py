"""``detr-distill doctor`` says what is there, and what helps where something is not."""

from detr_distill.commands import doctor

import pytest


def test_it_says_what_is_missing_and_what_helps(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"no_such_module": ("timm", "backbones"), "numpy": ("digits", "digits")})
    doctor.main([])
    text = capsys.readouterr().out
    assert "torch " in text and "GPU" in text and "configurations" in text
    assert "no_such_module" in text and '-> for backbones: pip install "detr_distill[timm]"' in text
    assert "can be mended" in text


@pytest.mark.parametrize("works", [True, False])
def test_a_gpu_has_its_kernels_tried(works, monkeypatch):
    properties = type("Properties", (), {"name": "Some GPU", "total_memory": 2**34})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: properties)
    monkeypatch.setattr(doctor.deformable_kernel, "triton_works", lambda device: works)
    monkeypatch.setattr(doctor.solver, "triton_works", lambda device: True)
    monkeypatch.setattr(doctor, "attention_kernels_work", lambda device: True)
    found = {finding.what: finding for finding in doctor.devices()}
    assert found["GPU 0"].found.startswith("Some GPU, 16 GiB")
    assert found["kernel: matching"].found == "works"
    kernel = found["kernel: deformable attention"]
    assert (kernel.found, bool(kernel.remedy)) == (("works", False) if works else ("does not work", True))
