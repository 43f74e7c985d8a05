"""Group DETR's and H-DETR's query groups: on every decoder, apart from each other, and gone at inference."""

from __future__ import annotations

from detr_distill.checkpoint.export import detecting_weights
from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.detr.supervision.assignment import solve_assignments
from detr_distill.engine import build_config
from detr_distill.errors import ConfigError
from detr_distill.registry import DECODER_REGISTRY
from detr_distill.structures import QueryGroup

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import ROOT, make_inputs, randomise, small_cfg
from helpers.steps import encode, train_steps

DIGITS = ROOT / "configs" / "digits"
# Every decoder that has a small configuration, under its file's name, and DETR's.
STUDENTS = {
    file.stem: []
    for file in sorted(DIGITS.glob("*_student.yaml"))
    if build_config(str(file), []).MODEL.META_ARCHITECTURE == "DetrDetector"
}
FAMILIES = {
    **STUDENTS,
    "detr": ["MODEL.DETR.DECODER.NAME", "DetrDecoder", "MODEL.DETR.LOSS.CLASSIFICATION", "softmax"],
}
QUERIES, EXTRA, REPEATS = 6, 12, 3
every_family = pytest.mark.parametrize("family", FAMILIES)
BOTH = {
    "MODEL__DETR__TRAINING_GROUPS": ["GroupQueries", "HybridQueries"],
    "MODEL__DETR__GROUP_QUERIES__NUM_GROUPS": 3,
    "MODEL__DETR__HYBRID_QUERIES__NUM_QUERIES": EXTRA,
    "MODEL__DETR__HYBRID_QUERIES__REPEATS": REPEATS,
}


def family_cfg(family: str, **keys):
    """A digits student with few queries, and no training group but those of ``keys``."""
    file = family if family in STUDENTS else "conditional_student"
    cfg = build_config(str(DIGITS / f"{file}.yaml"), ["MODEL.DEVICE", "cpu", *FAMILIES[family]])
    settings = {"MODEL__DETR__NUM_QUERIES": QUERIES, "MODEL__DETR__TRAINING_GROUPS": [], **keys}
    cfg.merge_from_list([word for key, value in settings.items() for word in (key.replace("__", "."), value)])
    return cfg


def parts_of_step(model, inputs):
    """GroundTruth, memory, query groups and the outputs of one decoder pass over all of them."""
    targets, memory = read_ground_truth(inputs, model.device), encode(model, inputs)
    groups = model.query_groups(memory, targets)
    return targets, memory, groups, model.decode(memory, groups)


def test_every_decoder_is_among_the_families():
    covered = {family_cfg(family).MODEL.DETR.DECODER.NAME for family in FAMILIES}
    assert covered >= {name for name, part in DECODER_REGISTRY if part.__module__.startswith("detr_distill.")}


@every_family
def test_groups_keep_apart(family):
    model, inputs = randomise(build_model(family_cfg(family, **BOTH))).train(), make_inputs()
    with torch.no_grad():
        _, memory, groups, outputs = parts_of_step(model, inputs)
        assert list(outputs) == ["own", "group_1", "group_2", "hybrid"]
        assert [group.content.shape[1] for group in groups] == [QUERIES, QUERIES, QUERIES, EXTRA]
        for group in groups:
            alone = model.decode(memory, [group])[group.name]
            assert torch.allclose(alone.logits, outputs[group.name].logits, atol=1e-3), group.name
            assert torch.allclose(alone.boxes, outputs[group.name].boxes, atol=1e-3), group.name
        assert not torch.allclose(outputs["group_1"].logits, outputs["group_2"].logits, atol=1e-2)


@every_family
def test_each_loss_is_the_criterion_of_its_group_and_all_parameters_learn(family):
    model, inputs = randomise(build_model(family_cfg(family, **BOTH))).train(), make_inputs()
    losses = model(inputs)
    targets, _, groups, outputs = parts_of_step(model, inputs)
    wanted = {"own": (targets, 1 / 3), "group_1": (targets, 1 / 3), "group_2": (targets, 1 / 3)}
    wanted["hybrid"] = (targets.repeat(REPEATS), 1.0)
    for group in groups:
        goal, weight = wanted[group.name]
        plain = QueryGroup("own", group.content, group.position)
        (pairs,) = solve_assignments([model.criterion.cost(outputs[group.name], plain, goal)])
        for name, value in model.criterion(outputs[group.name], plain, goal, pairs).items():
            kind, layer = name.split("_")[1], "".join(f"_{part}" for part in name.split("_")[2:])
            suffix = "" if group.name == "own" else f"_{group.name}"
            assert torch.allclose(losses[f"loss_{kind}{suffix}{layer}"], weight * value, rtol=1e-3), (group.name, name)
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    extra = dict(model.training_groups.named_parameters())
    assert extra and all(p.grad.abs().sum() > 0 for p in extra.values())


@every_family
def test_detections_are_those_without_groups(family):
    with_groups = randomise(build_model(family_cfg(family, **BOTH))).eval()
    plain = build_model(family_cfg(family)).eval()
    plain.load_state_dict(detecting_weights(with_groups.state_dict()))
    inputs = make_inputs(labels=False)
    with torch.no_grad():
        for a, b in zip(with_groups(inputs), plain(inputs), strict=True):
            assert torch.equal(a["instances"].scores, b["instances"].scores)
            assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)


def test_every_object_has_as_many_queries_as_copies():
    model, inputs = randomise(build_model(small_cfg(**BOTH))).train(), make_inputs()
    targets, _, groups, outputs = parts_of_step(model, inputs)
    hybrid = groups[-1]
    assert torch.equal(hybrid.targets.boxes[1, REPEATS : 2 * REPEATS], targets.boxes[1, 1].expand(REPEATS, -1))
    (pairs,) = solve_assignments([model.criterion.cost(outputs["hybrid"], hybrid, hybrid.targets)])
    for layer in range(pairs.query.shape[0]):
        for image, entry in enumerate(inputs):
            found = pairs.weight[layer, image] > 0
            objects = pairs.target[layer, image, found] // REPEATS
            assert torch.bincount(objects).tolist() == [REPEATS] * len(entry["instances"])
            assert len(pairs.query[layer, image, found].unique()) == REPEATS * len(entry["instances"])


def two_stage_ranks(model, inputs):
    """(B, S) tokens from the best to the worst, and their boxes (B, S, 4)."""
    _, _, groups, _ = parts_of_step(model, inputs)
    proposals = groups[0].proposals
    order = proposals.logits[0, ..., 0].argsort(dim=1, descending=True, stable=True)
    return groups, proposals.boxes[0].gather(1, order.unsqueeze(-1).expand(-1, -1, 4))


def test_hybrid_queries_are_the_next_best_proposals():
    model, inputs = randomise(build_model(family_cfg("deformable_student", **BOTH))).train(), make_inputs()
    groups, ranked = two_stage_ranks(model, inputs)
    boxes = {group.name: group.position.sigmoid() for group in groups}
    assert torch.allclose(boxes["own"], ranked[:, :QUERIES], atol=1e-6)
    assert torch.allclose(boxes["hybrid"], ranked[:, QUERIES : QUERIES + EXTRA], atol=1e-6)
    assert not list(model.training_groups["HybridQueries"].parameters())
    keys = {**BOTH, "MODEL__DETR__HYBRID_QUERIES__NUM_QUERIES": 400}
    model.training_groups = build_model(family_cfg("deformable_student", **keys)).training_groups
    groups, ranked = two_stage_ranks(model, inputs)
    assert groups[-1].position.shape[1] == min(400, ranked.shape[1]) > 0, "as many as there are"


def test_two_stage_groups_choose_by_heads_of_their_own():
    model, inputs = randomise(build_model(family_cfg("deformable_student", **BOTH))).train(), make_inputs()
    losses = model(inputs)
    for suffix in ("encoder", "encoder_group_1", "encoder_group_2"):
        assert {f"loss_{kind}_{suffix}" for kind in ("class", "box", "giou")} <= set(losses)
    assert "loss_class_encoder_hybrid" not in losses, "the branch takes what the detector's own head found"
    # With the detector's own head a group chooses the detector's own queries, and has its losses.
    own = model.queries.state_dict()
    model.training_groups["GroupQueries"].queries[0].load_state_dict(own)
    losses = model(inputs)
    for kind in ("class", "box", "giou"):
        for first, second in ((kind, f"{kind}_group_1"), (f"{kind}_encoder", f"{kind}_encoder_group_1")):
            assert torch.allclose(losses[f"loss_{first}"], losses[f"loss_{second}"], rtol=1e-4)


@pytest.mark.parametrize("family", ["conditional_student", "deformable_student"])
def test_mean_and_sum_of_the_groups(family):
    keys = {**BOTH, "MODEL__DETR__TRAINING_GROUPS": ["GroupQueries"], "MODEL__DETR__GROUP_QUERIES__LOSS_WEIGHT": 0.5}
    losses = {
        combine: randomise(
            build_model(family_cfg(family, **keys, MODEL__DETR__GROUP_QUERIES__COMBINE=combine)).train()
        )(make_inputs())
        for combine in ("mean", "sum")
    }
    assert losses["mean"].keys() == losses["sum"].keys()
    for name, value in losses["sum"].items():
        assert torch.allclose(losses["mean"][name], value / 2, rtol=1e-5), name  # 1 + 0.5 * 2
    plain = randomise(build_model(family_cfg(family)).train())(make_inputs())
    for name, value in plain.items():
        assert torch.allclose(losses["sum"][name], value, rtol=1e-4), name


def test_groups_leave_the_random_numbers_of_the_detector_alone():
    """The same start as without them; and with weight 0 the same training, bit for bit."""
    models = []
    for weight in (None, 1.0, 0.0):
        keys = {} if weight is None else {**BOTH, "MODEL__DETR__GROUP_QUERIES__LOSS_WEIGHT": weight}
        if weight is not None:
            keys["MODEL__DETR__HYBRID_QUERIES__LOSS_WEIGHT"] = weight
        torch.manual_seed(7)
        model = build_model(small_cfg(MODEL__DETR__DROPOUT=0.1, **keys)).train()
        models.append((model, torch.get_rng_state()))
    plain, state = models[0]
    for model, after in models[1:]:
        assert torch.equal(after, state)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in plain.state_dict().items())
    off = models[2][0]
    expected, found = train_steps(plain, make_inputs()), train_steps(off, make_inputs())
    assert expected[0] == found[0] and torch.equal(expected[1], found[1])
    assert plain.state_dict().keys() == off.state_dict().keys()
    assert all(torch.equal(value, off.state_dict()[key]) for key, value in plain.state_dict().items())


def test_batches_without_objects_train():
    model = build_model(small_cfg(**BOTH)).train()
    losses = model(make_inputs(counts=(0, 0)))
    assert losses["loss_box_hybrid"] == 0 and losses["loss_class_hybrid"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(value.isfinite() for value in model(make_inputs(counts=(0, 2))).values())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("GROUP_QUERIES__NUM_GROUPS", 1, "NUM_GROUPS is 1"),
        ("GROUP_QUERIES__COMBINE", "max", "COMBINE is 'max'. Known: 'mean', 'sum'"),
        ("GROUP_QUERIES__LOSS_WEIGHT", -1.0, "GROUP_QUERIES.LOSS_WEIGHT is -1"),
        ("HYBRID_QUERIES__NUM_QUERIES", 0, "HYBRID_QUERIES.NUM_QUERIES is 0"),
        ("HYBRID_QUERIES__REPEATS", 0, "HYBRID_QUERIES.REPEATS is 0"),
        ("HYBRID_QUERIES__LOSS_WEIGHT", -1.0, "HYBRID_QUERIES.LOSS_WEIGHT is -1"),
    ],
)
def test_bad_keys_are_named(key, value, message):
    with pytest.raises(ConfigError, match=message):
        build_model(small_cfg(**{**BOTH, f"MODEL__DETR__{key}": value}))


def test_queries_that_refuse_the_branch_name_its_key():
    with pytest.raises(ConfigError, match=r"HYBRID_QUERIES.NUM_QUERIES is 10, .*ANCHOR.NUM_PATTERNS"):
        build_model(family_cfg("anchor_student", **{**BOTH, "MODEL__DETR__HYBRID_QUERIES__NUM_QUERIES": 10}))
