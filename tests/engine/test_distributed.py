"""Two processes on the CPU: averaged gradients, also those of captured steps, metrics, an error that both report."""

from detr_distill.engine.step import StepTrainer

import torch
import torch.multiprocessing
from detectron2.utils.events import EventStorage
from helpers.engine.toy import ToyDetector
from helpers.engine.two_processes import WORLD, batch_of, work


def test_two_processes_act_as_one(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=WORLD)
    results = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(WORLD)]
    torch.manual_seed(0)
    single = ToyDetector()
    single.norm = torch.nn.Identity()
    single.dropout = torch.nn.Identity()
    batches = [batch_of(rank, number) for number in range(2) for rank in range(WORLD)]
    trainer = StepTrainer(single, batches, torch.optim.SGD(single.parameters(), lr=0.1), accumulate=4)
    with EventStorage(0) as storage:
        trainer.iter = 0
        trainer.run_step()
    for result in results:
        torch.testing.assert_close(result["weight"], single.head.weight.detach())
        torch.testing.assert_close(result["weight_of_captured"], single.head.weight.detach())
        assert result["unchanged"] and result["fixed_beside_other"]
        assert "iteration 1" in result["error"] and "101 (x.jpg)" in result["error"] and "3 (x.jpg)" in result["error"]
    expected = storage.latest()["total_loss"][0]
    torch.testing.assert_close(results[0]["metrics"]["total_loss"], expected, rtol=1e-5, atol=0)
    assert "total_loss" not in results[1]["metrics"]
