"""A run that was interrupted ends where the uninterrupted one does, and a failed one loses nothing."""

import os
import signal
import subprocess
import sys
import textwrap

from detr_distill.checkpoint.files import read_checkpoint
from detr_distill.errors import CheckpointError, NonFiniteError

import numpy as np
import pytest
import torch
from helpers.builders import ROOT
from helpers.engine.toy import toy_config, toy_trainer


class Interrupted(Exception):
    pass


def interrupt_at(trainer, iteration):
    before_step = trainer.before_step

    def stop():
        if trainer.iter == iteration:
            raise Interrupted
        before_step()

    trainer.before_step = stop
    with pytest.raises(Interrupted):
        trainer.train()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, accumulate):
    changes = {"SOLVER.ACCUMULATE": accumulate}
    whole = toy_trainer(toy_config(tmp_path / "whole", **changes))
    whole.train()
    first = toy_trainer(toy_config(tmp_path / "cut", **changes))
    interrupt_at(first, 5)
    # What other code drew in between must not matter.
    torch.rand(17)
    np.random.rand(3)
    second = toy_trainer(toy_config(tmp_path / "cut", **changes), resume=True)
    assert second.start_iter == 3  # the checkpoint of iteration 2
    second.train()
    assert second.recorded == whole.recorded[3:]
    expected = whole.state_dict()
    found = second.state_dict()
    assert found["scheduler"] == expected["scheduler"]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value), key
    for index, state in expected["optimizer"]["state"].items():
        assert torch.equal(found["optimizer"]["state"][index]["exp_avg_sq"], state["exp_avg_sq"])


def test_what_the_loader_draws_does_not_reach_the_model(tmp_path):
    """Loading in this process or in workers must train the same."""
    quiet = toy_trainer(toy_config(tmp_path / "quiet"))
    drawing = toy_trainer(toy_config(tmp_path / "drawing"), draws=5)
    quiet.train()
    drawing.train()
    assert drawing.recorded == quiet.recorded


def test_a_run_without_a_seed_keeps_the_one_that_it_drew(tmp_path):
    first = toy_trainer(toy_config(tmp_path, SEED=-1))
    interrupt_at(first, 4)
    second = toy_trainer(toy_config(tmp_path, SEED=-1), resume=True)
    assert second.data_loader.seed == first.data_loader.seed == second.state_dict()["seed"]


def test_nothing_to_resume_starts_afresh_and_says_so(tmp_path, caplog):
    trainer = toy_trainer(toy_config(tmp_path), resume=True)
    assert trainer.start_iter == 0
    assert "starts afresh" in caplog.text


def test_a_non_finite_loss_leaves_weights_and_checkpoints_alone(tmp_path, caplog):
    trainer = toy_trainer(toy_config(tmp_path), bad_batch=4)
    seen = {}
    run_step = trainer.run_step

    def remember():
        seen.update({key: value.clone() for key, value in trainer.model.named_parameters()})
        seen["scheduler"] = trainer.scheduler.state_dict()["last_epoch"]
        run_step()

    trainer.run_step = remember
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "iteration 4" in message and "loss_square = nan" in message
    assert "40 (0.jpg)" in message and "43 (3.jpg)" in message
    assert "loss_mean = " in message.split("Last finite losses:")[1]
    assert "SOLVER.BASE_LR" in message
    for key, value in trainer.model.named_parameters():
        assert torch.equal(value, seen[key]), key
    assert trainer.scheduler.state_dict()["last_epoch"] == seen["scheduler"]
    assert sorted(os.listdir(tmp_path / ".")).count("model_0000002.pth") == 1
    assert not (tmp_path / "model_final.pth").exists() and not (tmp_path / "student_final.pth").exists()
    assert "Traceback" not in caplog.text


def test_a_model_that_finds_the_fault_itself_is_given_the_context(tmp_path):
    trainer = toy_trainer(toy_config(tmp_path))
    forward = trainer.model.forward

    def fail(batch):
        if batch[0]["image_id"] == 20:
            raise NonFiniteError("matching cost of layer 3 is NaN")
        return forward(batch)

    trainer.model.forward = fail
    with pytest.raises(NonFiniteError, match=r"(?s)iteration 2.*matching cost of layer 3.*20 \(0.jpg\).*loss_mean"):
        trainer.train()


def test_a_damaged_last_checkpoint_names_the_older_good_one(tmp_path):
    toy_trainer(toy_config(tmp_path)).train()
    final = tmp_path / "model_final.pth"
    final.write_bytes(final.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"(?s)model_final.pth.*model_0000005.pth.*last_checkpoint"):
        toy_trainer(toy_config(tmp_path), resume=True)
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth\n")
    assert toy_trainer(toy_config(tmp_path), resume=True).start_iter == 6


def test_another_model_in_the_folder_is_refused(tmp_path):
    trainer = toy_trainer(toy_config(tmp_path))
    interrupt_at(trainer, 4)
    content = read_checkpoint(tmp_path / "model_0000002.pth")
    del content["model"]["head.bias"]
    torch.save(content, tmp_path / "model_0000002.pth")
    with pytest.raises(CheckpointError, match=r"(?s)another run.*1 missing in the file: head.bias"):
        toy_trainer(toy_config(tmp_path), resume=True)


def test_the_plain_student_is_written_at_the_end(tmp_path):
    trainer = toy_trainer(toy_config(tmp_path))
    trainer.train()
    weights = read_checkpoint(tmp_path / "student_final.pth")["model"]
    assert weights.keys() == trainer.model.state_dict().keys()


def test_killed_in_the_middle_of_a_checkpoint_the_run_still_resumes(tmp_path):
    """The process dies half way through writing its second checkpoint."""
    program = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import torch
        from helpers.engine.toy import toy_config, toy_trainer
        save, saves = torch.save, []

        def half_save(state, file):
            saves.append(1)
            if len(saves) == 2:
                import io
                buffer = io.BytesIO()
                save(state, buffer)
                file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            save(state, file)

        torch.save = half_save
        toy_trainer(toy_config({str(tmp_path)!r})).train()
        """
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert (tmp_path / "model_0000005.pth.tmp").exists() and not (tmp_path / "model_0000005.pth").exists()
    resumed = toy_trainer(toy_config(tmp_path), resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", [None, b"", b"nowhere.pth", b"\xff\xfe", b"\0", b"x" * 300])
def test_without_the_name_of_the_last_checkpoint_the_newest_is_taken(tmp_path, caplog, damage):
    """Killed between its first checkpoint and the file that names it, a run leaves the one without the other."""
    interrupt_at(toy_trainer(toy_config(tmp_path)), 7)
    (tmp_path / "last_checkpoint").unlink()
    if damage is not None:
        (tmp_path / "last_checkpoint").write_bytes(damage)
    assert toy_trainer(toy_config(tmp_path), resume=True).start_iter == 6
    assert "model_0000005.pth, the newest that loads" in caplog.text
    (tmp_path / "model_0000005.pth").write_bytes(b"damaged")
    assert toy_trainer(toy_config(tmp_path), resume=True).start_iter == 3
    (tmp_path / "model_0000002.pth").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="checkpoints that do not load"):
        toy_trainer(toy_config(tmp_path), resume=True)


@pytest.mark.parametrize("stale", [False, True])
def test_killed_behind_its_last_step_a_run_leaves_all_files_when_resumed(tmp_path, stale):
    """The last numbered checkpoint was written, model_final.pth and student_final.pth were not, or are older."""
    cfg = toy_config(tmp_path, **{"SOLVER.CHECKPOINT_PERIOD": 4})
    whole = toy_trainer(cfg)
    whole.train()
    final, student = (tmp_path / f"{name}_final.pth" for name in ("model", "student"))
    expected = [read_checkpoint(path) for path in (final, student)]
    for path in (final, student):
        path.unlink()
        if stale:
            path.write_bytes(b"of a shorter run")
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    resumed = toy_trainer(cfg, resume=True)
    resumed.train()
    for content, path in zip(expected, (final, student), strict=True):
        found = read_checkpoint(path)
        assert found.keys() == content.keys() and found.get("iteration") == content.get("iteration")
        assert all(torch.equal(found["model"][name], value) for name, value in content["model"].items())
    assert read_checkpoint(final)["trainer"]["iteration"] == 7
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
