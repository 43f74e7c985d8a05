"""Box evaluation: the fast implementation agrees, nothing predicted is AP 0, the best checkpoint is kept."""

import json
import math
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.data.annotations.file import read_annotation_file
from detr_distill.engine.device import choose_device
from detr_distill.engine.evaluation import BoxEvaluator, build_evaluator, evaluate_boxes
from detr_distill.engine.evaluation import ground_truth as measured
from detr_distill.engine.hooks import BestCheckpoint
from detr_distill.engine.launch import argument_parser
from detr_distill.engine.results import write_results
from detr_distill.engine.starting.best_metric import metric_names
from detr_distill.errors import ConfigError, DataError

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from helpers.engine.toy import toy_config, toy_trainer

CATEGORIES = [3, 7]


def ground_truth(random, images=12):
    annotations = []
    for image in range(1, images + 1):
        for _ in range(random.integers(0, 6)):
            x, y, width, height = (float(value) for value in random.uniform([0, 0, 5, 5], [80, 80, 120, 120]))
            entry = {"image_id": image, "category_id": int(random.choice(CATEGORIES)), "bbox": [x, y, width, height]}
            annotations.append(
                {**entry, "id": len(annotations) + 1, "area": width * height, "iscrowd": int(random.random() < 0.1)}
            )
    return {
        "images": [
            {"id": image, "file_name": f"{image}.jpg", "width": 200, "height": 200} for image in range(1, images + 1)
        ],
        "categories": [{"id": number, "name": str(number)} for number in CATEGORIES],
        "annotations": annotations,
    }


def noisy_results(random, dataset):
    results = []
    for annotation in dataset["annotations"] * 3:
        box = np.maximum(np.array(annotation["bbox"]) + random.normal(0, 4, 4), 1)
        category = annotation["category_id"] if random.random() < 0.8 else int(random.choice(CATEGORIES))
        score = float(random.random())
        results.append(
            {"image_id": annotation["image_id"], "category_id": category, "bbox": box.tolist(), "score": score}
        )
    return results


@pytest.mark.parametrize("seed", range(3))
def test_the_fast_evaluation_gives_the_same_numbers(seed):
    pytest.importorskip("faster_coco_eval")
    random = np.random.default_rng(seed)
    dataset = ground_truth(random)
    results = noisy_results(random, dataset)
    slow = evaluate_boxes(dataset, results, fast=False)
    fast = evaluate_boxes(dataset, results, fast=True)
    assert 0.05 < slow.stats[0] < 0.95
    np.testing.assert_allclose(fast.stats[:12], slow.stats, atol=1e-12)
    np.testing.assert_allclose(fast.eval["precision"], slow.eval["precision"], atol=1e-12)


@pytest.fixture
def dataset_name(tmp_path):
    dataset = ground_truth(np.random.default_rng(0))
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(dataset))
    name = f"toy_{tmp_path.name}"
    DatasetCatalog.register(name, list)
    metadata = {"thing_dataset_id_to_contiguous_id": {3: 0, 7: 1}, "thing_classes": ["three", "seven"]}
    MetadataCatalog.get(name).set(json_file=str(path), evaluator_type="coco", **metadata)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def predict(evaluator, boxes_of_image):
    """Runs an evaluator on {image id: (xyxy boxes, classes)}."""
    evaluator.reset()
    for image, (boxes, classes) in boxes_of_image.items():
        instances = Instances((200, 200))
        instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.scores = torch.full((len(classes),), 0.9)
        instances.pred_classes = torch.tensor(classes, dtype=torch.long)
        evaluator.process([{"image_id": image}], [{"instances": instances}])
    return evaluator.evaluate()


@pytest.mark.parametrize("fast", [False, True])
def test_perfect_and_absent_predictions(dataset_name, tmp_path, fast):
    evaluator = BoxEvaluator(dataset_name, output_dir=str(tmp_path), fast=fast)
    truth = {image: ([], []) for image in range(1, 13)}
    for annotation in json.loads(Path(MetadataCatalog.get(dataset_name).json_file).read_text())["annotations"]:
        x, y, width, height = annotation["bbox"]
        truth[annotation["image_id"]][0].append([x, y, x + width, y + height])
        truth[annotation["image_id"]][1].append(CATEGORIES.index(annotation["category_id"]))
    perfect = predict(evaluator, truth)["bbox"]
    assert perfect["AP"] == pytest.approx(100) and perfect["AP-seven"] == pytest.approx(100)
    nothing = predict(evaluator, dict.fromkeys(truth, ([], [])))["bbox"]
    assert nothing["AP"] == 0 and nothing["AP50"] == 0 and nothing["AP-seven"] == 0


def test_more_classes_than_the_dataset_is_an_error(dataset_name):
    with pytest.raises(ConfigError, match=r"predicts class 2.*NUM_CLASSES"):
        predict(BoxEvaluator(dataset_name), {1: ([[0.0, 0.0, 9.0, 9.0]], [2])})


def test_every_set_has_its_own_folder(dataset_name, tmp_path):
    other = f"other/{dataset_name}"
    metadata = MetadataCatalog.get(dataset_name).as_dict()
    MetadataCatalog.get(other).set(**{key: value for key, value in metadata.items() if key != "name"})
    cfg = toy_config(tmp_path)
    box = ([[0.0, 0.0, 9.0, 9.0]], [0])
    predict(build_evaluator(cfg, dataset_name), {1: box})
    predict(build_evaluator(cfg, other), {2: box})
    MetadataCatalog.remove(other)
    for name, image in ((dataset_name, 1), (f"other_{dataset_name}", 2)):
        results = json.loads((tmp_path / "inference" / name / "coco_instances_results.json").read_text())
        assert [result["image_id"] for result in results] == [image]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "is not a YAML text file: byte 0 is not utf-8"),
        ("# größer\nSEED: 1\n".encode("latin1"), "is not a YAML text file: byte 4 is not utf-8"),
        (b"hello world\n", "holds no KEY: VALUE pairs"),
        (b"- SEED\n", "holds no KEY: VALUE pairs"),
        (b"", "holds no KEY: VALUE pairs"),
    ],
)
def test_a_configuration_that_is_none_is_named(tmp_path, content, message):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"--config-file {path} .*{message}.* Name a configuration"):
        build_config(str(path), [])


def test_more_gpus_than_there_are_name_the_remedy(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"--num-gpus 8: this machine has 2. Use --num-gpus 2 or fewer"):
        choose_device(build_config("", []), argument_parser().parse_args(["--num-gpus", "8"]))


def test_only_coco_datasets_are_evaluated(tmp_path):
    MetadataCatalog.get("toy_panoptic").evaluator_type = "coco_panoptic_seg"
    with pytest.raises(ConfigError, match=r'"toy_panoptic".*"coco_panoptic_seg"'):
        build_evaluator(toy_config(tmp_path), "toy_panoptic")
    MetadataCatalog.remove("toy_panoptic")


def evaluated_trainer(folder, values, **changes):
    """A trainer whose evaluations give these values, one after the other."""
    trainer = toy_trainer(toy_config(folder, **{"DATASETS.TEST": "('toy',)", **changes}))
    values = iter(values)
    trainer.test = lambda *_: {"bbox": {"AP": next(values), "APl": float("nan")}}
    return trainer


def test_evaluation_is_periodic_and_final_and_the_best_is_kept(tmp_path):
    trainer = evaluated_trainer(tmp_path, [10.0, 30.0, 20.0], **{"TEST.EVAL_PERIOD": 3})
    trainer.train()
    assert json.loads((tmp_path / "model_best.json").read_text())["iteration"] == 5
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["trainer"]["iteration"] == 5
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert BestCheckpoint(trainer.checkpointer, "bbox/AP").best_value() == 30.0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == {"iteration": 7, "datasets": {"toy": {"bbox": {"AP": 20.0, "APl": None}}}}
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert lines[-1]["bbox/AP"] == 20.0


def two_sets(first, second):
    """What an evaluation of the sets ``a`` and ``b`` gives."""
    return {"a/bbox/AP": first, "b/bbox/AP": second, "b/bbox/AP50": second / 2}


@pytest.mark.parametrize(
    ("metric", "value"),
    [("bbox/AP", 3.0), ("b/bbox/AP", 9.0), ("bbox/AP50", 4.5), ("a/bbox/AP50", None), ("bbox/APl", None)],
)
def test_one_of_several_sets_decides_what_is_best(tmp_path, metric, value, caplog):
    caplog.set_level("INFO")
    trainer = toy_trainer(toy_config(tmp_path))
    best = BestCheckpoint(trainer.checkpointer, metric, ["a", "b"])
    for iteration, metrics in enumerate([two_sets(3.0, 8.0), two_sets(2.0, 9.0)]):
        best(metrics, iteration)
    assert (tmp_path / "model_best.pth").exists() == (value is not None)
    assert caplog.text.count(f"TEST.BEST_METRIC {metric} was not computed") == (value is None)
    if value is not None:
        name = metric if metric in two_sets(0, 0) else f"{'a' if metric == 'bbox/AP' else 'b'}/{metric}"
        record = json.loads((tmp_path / "model_best.json").read_text())
        assert (record["metric"], record["value"]) == (name, value)
        assert caplog.text.count(f"the highest {name}; TEST.BEST_METRIC can name") == (name != metric)


def test_another_set_starts_its_own_record(tmp_path):
    """A value of the set ``a`` says nothing of how good a checkpoint is on ``b``."""
    trainer = toy_trainer(toy_config(tmp_path))
    BestCheckpoint(trainer.checkpointer, "bbox/AP", ["a", "b"])(two_sets(30.0, 4.0), 0)
    resumed = BestCheckpoint(trainer.checkpointer, "bbox/AP", ["b", "a"])
    resumed(two_sets(20.0, 5.0), 1)
    assert resumed.best_value("b/bbox/AP") == 5.0 and resumed.best_value("a/bbox/AP") == -np.inf


def test_the_only_set_may_be_named():
    assert metric_names("bbox/AP", ["a"]) == metric_names("bbox/AP", []) == ["bbox/AP"]
    assert metric_names("a/bbox/AP", ["a"]) == ["a/bbox/AP", "bbox/AP"]


def test_a_set_without_annotations_is_predicted_for(dataset_name, tmp_path):
    file = Path(MetadataCatalog.get(dataset_name).json_file)
    content = json.loads(file.read_text())
    del content["annotations"]
    file.write_text(json.dumps(content))
    assert predict(BoxEvaluator(dataset_name, output_dir=str(tmp_path)), {1: ([[0.0, 0.0, 9.0, 9.0]], [1])}) == {}
    (written,) = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert (written["image_id"], written["category_id"], written["bbox"]) == (1, 7, [0.0, 0.0, 9.0, 9.0])


def test_period_zero_evaluates_at_the_end(tmp_path):
    trainer = evaluated_trainer(tmp_path, [5.0], **{"TEST.EVAL_PERIOD": 0})
    trainer.train()
    assert trainer.model.training
    assert json.loads((tmp_path / "model_best.json").read_text())["iteration"] == 7


def test_a_later_run_does_not_replace_a_better_checkpoint(tmp_path):
    evaluated_trainer(tmp_path, [30.0]).train()
    content = (tmp_path / "model_best.pth").read_bytes()
    resumed = evaluated_trainer(tmp_path, [20.0])
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert (tmp_path / "model_best.pth").read_bytes() == content


@pytest.mark.parametrize("damage", ["{half", "[]", '{"metric": "bbox/AP"}', '{"metric": "bbox/AP", "value": "high"}'])
def test_a_damaged_record_of_the_best_is_taken_from_its_weights(tmp_path, caplog, damage):
    evaluated_trainer(tmp_path, [30.0]).train()
    content = (tmp_path / "model_best.pth").read_bytes()
    (tmp_path / "model_best.json").write_text(damage)
    resumed = evaluated_trainer(tmp_path, [20.0])
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert "model_best.json cannot be read" in caplog.text
    assert (tmp_path / "model_best.pth").read_bytes() == content
    (tmp_path / "model_best.pth").unlink()
    assert BestCheckpoint(resumed.checkpointer, "bbox/AP").best_value() == -math.inf


@pytest.mark.parametrize(("lost", "expected"), [(False, [20.0, 15.0]), (True, [70.0, 20.0, 15.0])])
def test_an_evaluation_that_was_killed_is_made_up_for(tmp_path, lost, expected):
    """The checkpoint of iteration 2 was written, its evaluation was not recorded."""
    changes = {"TEST.EVAL_PERIOD": 3, "SOLVER.MAX_ITER": 9}
    evaluated_trainer(tmp_path, [10.0, 20.0, 15.0], **changes).train()
    lines = (tmp_path / "metrics.json").read_text().splitlines(keepends=True)
    assert [json.loads(line)["iteration"] for line in lines if "bbox/AP" in line] == [2, 5, 8]
    kept = [line for line in lines if json.loads(line)["iteration"] < 5 and not (lost and "bbox/AP" in line)]
    (tmp_path / "metrics.json").write_text("".join(kept))
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    resumed = evaluated_trainer(tmp_path, expected, **changes)
    resumed.resume_or_load(resume=True)
    resumed.train()
    entries = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    found = [(entry["iteration"], entry["bbox/AP"]) for entry in entries if "bbox/AP" in entry]
    assert found == [(2, expected[0] if lost else 10.0), (5, 20.0), (8, 15.0)]
    if lost:
        assert json.loads((tmp_path / "model_best.json").read_text())["iteration"] == 2


def test_no_evaluation_after_a_failed_last_step(tmp_path):
    trainer = evaluated_trainer(tmp_path, [])

    def fail():
        if trainer.iter == 7:
            raise OSError("disk")
        type(trainer).run_step(trainer)

    trainer.run_step = fail
    with pytest.raises(OSError, match="disk"):
        trainer.train()


def test_results_of_several_sets_keep_their_names(tmp_path):
    cfg = toy_config(tmp_path, **{"DATASETS.TEST": "('a', 'b')"})
    write_results(cfg, {"a": {"bbox": {"AP": 1.0}}, "b": {}})
    assert json.loads((tmp_path / "results.json").read_text())["datasets"]["a"]["bbox"]["AP"] == 1.0


@pytest.mark.parametrize("fast", [False, True])
def test_annotations_numbered_from_zero_and_without_area(fast):
    dataset = {
        "images": [{"id": 1, "width": 50, "height": 50, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 0, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]}],
    }
    result = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "score": 0.9}
    assert evaluate_boxes(dataset, [result], fast=fast).stats[0] == pytest.approx(1.0)
    assert dataset["annotations"][0]["id"] == 0, "the data set itself stays"


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("form", [lambda id: id + 2**60, lambda id: -id, lambda id: f"{id:03d}.jpg"])
def test_ids_of_any_kind_give_the_same_numbers(fast, form):
    random = np.random.default_rng(1)
    dataset = ground_truth(random)
    results = noisy_results(random, dataset)
    expected = evaluate_boxes(dataset, results, fast=fast, image_ids=[2, 3, 5]).stats
    for items, key in ((dataset["images"], "id"), (dataset["annotations"], "image_id"), (results, "image_id")):
        for item in items:
            item[key] = form(item[key])
    stats = evaluate_boxes(dataset, results, fast=fast, image_ids=[form(id) for id in (2, 3, 5)]).stats
    np.testing.assert_allclose(stats[:12], expected[:12], atol=1e-12)
    assert expected[0] > 0


def test_predictions_of_other_images_are_named(dataset_name):
    with pytest.raises(DataError, match=r"does not hold: ids 77\. Evaluate on the file"):
        predict(BoxEvaluator(dataset_name), {77: ([[0.0, 0.0, 9.0, 9.0]], [0])})


@pytest.mark.parametrize("value", [None, "", -1, 0, "text"])
def test_areas_that_a_file_lacks_are_measured(dataset_name, value):
    path = Path(MetadataCatalog.get(dataset_name).json_file)
    content = json.loads(path.read_text())
    right = [item["area"] for item in content["annotations"]]
    for item in content["annotations"]:
        item["area"] = value
    item = content["annotations"][0]
    x, y, width, height = item["bbox"] = [10, 10, 40, 30]
    item["segmentation"] = [[x, y, x + width, y, x, y + height]]
    path.write_text(json.dumps(content))
    truth = measured(read_annotation_file(path))["annotations"]
    assert truth[0]["area"] == pytest.approx(40 * 30 / 2, rel=0.05)
    assert [item["area"] for item in truth[1:]] == right[1:]


def test_a_file_without_annotations_is_not_evaluated(dataset_name, tmp_path):
    path = Path(MetadataCatalog.get(dataset_name).json_file)
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    assert predict(BoxEvaluator(dataset_name, str(tmp_path)), {1: ([[0.0, 0.0, 9.0, 9.0]], [0])}) == {}
    assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) == 1
