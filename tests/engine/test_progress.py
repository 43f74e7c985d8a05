"""The progress line: short however many layers there are."""

from detr_distill.engine.progress import ProgressPrinter, gains, join_layers

from detectron2.utils.events import EventStorage


def test_layers_are_joined_and_groups_are_not():
    values = {
        "loss_box": 1.0,
        "loss_box_0": 2.0,
        "loss_box_10": 3.0,
        "loss_box_0_fixed": 4.0,
        "loss_l1_2": 5.0,
        "lr": 9.0,
    }
    assert join_layers(values) == {"loss_box": 6.0, "loss_box_fixed": 4.0, "loss_l1": 5.0}


def test_the_line(caplog):
    caplog.set_level("INFO", "detr_distill")
    printer = ProgressPrinter(max_iter=10)
    with EventStorage(3) as storage:
        storage.put_scalars(total_loss=2.5, loss_box_0=1.0, lr=0.001, time=60.0, data_time=0.25, grad_norm=7.0)
        printer.write()
        printer.write()
        storage.iter = 10
        printer.write()
    (line,) = caplog.messages
    line, memory = line.split("  memory ")
    assert line == (
        "iteration 4/10  eta 0:06:00  total_loss 2.5  loss_box 1  grad_norm 7  lr 0.001  "
        "time 60.000 s  data_time 0.250 s"
    )
    assert memory.endswith(" MiB") and float(memory.removesuffix(" MiB")) > 1


def test_the_gain_so_far():
    with EventStorage() as storage:
        assert gains(storage) == []
        storage.put_scalars(**{"bbox/AP": 10.0, "bbox/AP50": 30.0}, smoothing_hint=False)
        assert gains(storage) == ["bbox/AP 10.00"]
        storage.step()
        storage.put_scalars(**{"bbox/AP": 12.5}, smoothing_hint=False)
        assert gains(storage) == ["bbox/AP 12.50 (+2.50 in 2 evaluations)"]
