"""Denoising queries: their noise by hand and by transformers, who sees whom, their losses, and batches of any kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from detr_distill.detr.boxes import to_corners
from detr_distill.detr.criterion import SetCriterion
from detr_distill.detr.denoising import draw_labels, move_corners, shift_boxes
from detr_distill.engine.randomness import seed_step
from detr_distill.errors import ConfigError
from detr_distill.structures import DecoderOutput, Memory, QueryGroup, Targets

import pytest
import torch
from builders import make_inputs, randomise, small_cfg
from detectron2.modeling import build_model
from distill.test_distiller import ReadCounter
from torch import Tensor

LEVELS = {
    "MODEL__DETR__HIDDEN_DIM": 32,
    "MODEL__DETR__IN_FEATURES": ["stage2", "stage3"],
    "MODEL__DETR__NUM_LEVELS": 3,
    "MODEL__DETR__NECK__NAME": "MultiLevelNeck",
    "MODEL__DETR__ENCODER__NAME": "DeformableEncoder",
}
DN = {
    "MODEL__DETR__DECODER__NAME": "DabDecoder",
    "MODEL__DETR__QUERIES__NAME": "UnknownLabelQueries",
    "MODEL__DETR__TRAINING_GROUPS": ["DenoisingQueries"],
    "MODEL__DETR__DENOISING__NUM_GROUPS": 3,
}
DN_DEFORMABLE = {
    **DN,
    **LEVELS,
    "MODEL__DETR__DECODER__NAME": "DabDeformableDecoder",
    "MODEL__DETR__QUERIES__NAME": "MarkedAnchorQueries",
}
DINO = {
    **LEVELS,
    "MODEL__DETR__DECODER__NAME": "DinoDecoder",
    "MODEL__DETR__QUERIES__NAME": "MixedQueries",
    "MODEL__DETR__TRAINING_GROUPS": ["ContrastiveDenoisingQueries"],
    "MODEL__DETR__CONTRASTIVE_DENOISING__NUM_PAIRS": 9,
}
VARIANTS = {"dn": DN, "dn_deformable": DN_DEFORMABLE, "dino": DINO}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
QUIET = {
    f"MODEL__DETR__{node}__{key}": 0.0
    for node in ("DENOISING", "CONTRASTIVE_DENOISING")
    for key in ("LABEL_NOISE", "BOX_NOISE")
}


def build(variant: str, **keys):
    return randomise(build_model(small_cfg(**{**VARIANTS[variant], **keys})))


def begin_step(model, inputs) -> tuple[Memory, Targets, list[QueryGroup]]:
    """Memory, ground truth and all query groups of a training step."""
    images = model.preprocess(inputs)
    memory, targets = model.encode(model.backbone(images.tensor), images), model.targets(inputs, images)
    return memory, targets, model.query_groups(memory, targets)


def make_targets(*images: list[list[float]], classes: int = 5) -> Targets:
    """Boxes of each image; labels count up from 0."""
    counts = [len(boxes) for boxes in images]
    most = max(counts)
    boxes = torch.zeros(len(images), most, 4)
    for index, rows in enumerate(images):
        if rows:
            boxes[index, : len(rows)] = torch.tensor(rows)
    valid = torch.arange(most) < torch.tensor(counts)[:, None]
    return Targets(torch.arange(most).expand(len(images), -1) % classes * valid, boxes, valid, counts)


def own_group(images: int, width: int = 8) -> QueryGroup:
    return QueryGroup("own", torch.zeros(images, 3, width), torch.zeros(images, 3, 4))


def make_group(name: str, targets: Targets, **keys) -> QueryGroup:
    """The group that a maker of small width makes for some targets."""
    model = build_model(small_cfg(**{**(DINO if name.startswith("Contrastive") else DN), **keys}))
    maker, images = model.training_groups[name], len(targets.counts)
    (group,) = maker(None, own_group(images, model.queries.widths[0]), targets)
    return group


# --- noise ---


def test_shifted_boxes_by_hand():
    box = torch.tensor([0.5, 0.5, 0.4, 0.2])
    # Draws 0.75, 0.25, 0, 1 are moves of 0.5, -0.5, -1, 1.
    found = shift_boxes(box, torch.tensor([0.75, 0.25, 0.0, 1.0]), 0.4)
    expected = torch.tensor([0.5 + 0.5 * 0.2 * 0.4, 0.5 - 0.5 * 0.1 * 0.4, 0.4 - 0.4 * 0.4, 0.2 + 0.2 * 0.4])
    assert torch.allclose(found, expected)
    assert torch.equal(shift_boxes(box, torch.full((4,), 0.5), 0.4), box)
    assert shift_boxes(torch.tensor([0.95, 0.02, 0.9, 0.04]), torch.tensor([1.0, 0.0, 1.0, 0.0]), 1.0).tolist() == [
        1, 0, 1, 0,
    ]  # fmt: skip


def test_moved_corners_by_hand():
    box = torch.tensor([0.5, 0.5, 0.4, 0.2])  # corners 0.3, 0.4, 0.7, 0.6
    positive = move_corners(box, torch.tensor([0.5, -0.5, 0.25, 0.0]), 1.0)
    assert torch.allclose(to_corners(positive), torch.tensor([0.4, 0.35, 0.75, 0.6]))
    negative = move_corners(box, torch.tensor([-1.5, -1.0, 1.25, 1.5]), 0.5)
    assert torch.allclose(to_corners(negative), torch.tensor([0.15, 0.35, 0.825, 0.675]))
    outside = move_corners(box, torch.tensor([-2.0, 0.0, 2.0, 0.0]), 1.0)
    assert torch.allclose(to_corners(outside), torch.tensor([0.0, 0.4, 1.0, 0.6])), "cut at the image"
    crossed = move_corners(box, torch.tensor([1.5, 0.0, -1.5, 0.0]), 1.0)
    assert torch.allclose(crossed, torch.tensor([0.5, 0.5, 0.0, 0.2])), "sides that pass each other leave no width"


def test_positive_and_negative_boxes_stay_in_their_bands():
    """Boxes in the middle, where neither the image nor the other side limits them."""
    torch.manual_seed(0)
    box = [0.5, 0.5, 0.2, 0.3]
    group = make_group(
        "ContrastiveDenoisingQueries", make_targets([box] * 40), MODEL__DETR__CONTRASTIVE_DENOISING__BOX_NOISE=0.4
    )
    assert group.position.shape == (1, 80, 4)
    moved = to_corners(group.position.sigmoid()) - to_corners(torch.tensor(box))
    distance = moved.abs() / (0.4 * torch.tensor([0.1, 0.15, 0.1, 0.15]))
    positive, negative = distance[0].split(40)
    assert positive.max() < 1 + 1e-4 and positive.min() < 0.05 and positive.max() > 0.95
    assert negative.min() > 1 - 1e-4 and negative.max() < 2 + 1e-4 and negative.max() > 1.95
    assert (moved > 0).float().mean().item() == pytest.approx(0.5, abs=0.1), "both directions"


def test_noise_equals_that_of_transformers(monkeypatch):
    """RT-DETR's function, with its random numbers taken out and given to ours."""
    rt_detr = pytest.importorskip("transformers.models.rt_detr.modeling_rt_detr")
    targets = make_targets([[0.3, 0.4, 0.2, 0.3], [0.9, 0.5, 0.3, 0.6]], [[0.5, 0.1, 0.8, 0.3], [0.6, 0.6, 0.1, 0.2]])
    drawn: dict[str, list[Tensor]] = {"rand_like": [], "randint_like": []}
    for name, numbers in drawn.items():
        original: Callable = getattr(torch, name)

        def keep(*args, original=original, numbers=numbers, **kwargs):
            numbers.append(original(*args, **kwargs))
            return numbers[-1].clone()

        monkeypatch.setattr(torch, name, keep)
    torch.manual_seed(0)
    objects = [{"class_labels": targets.labels[i], "boxes": targets.boxes[i]} for i in range(2)]
    embed = torch.nn.Embedding(6, 8)
    _, boxes, mask, meta = rt_detr.get_contrastive_denoising_training_group(objects, 5, 7, embed, 6, 0.5, 1.0)
    assert meta["dn_num_group"] == 3 and boxes.shape == (2, 12, 4)

    # Theirs: groups one after another, in each the positive and then the negative queries. Ours: all positive queries,
    # then all negative ones, in each the copies of an object side by side.
    order = torch.arange(12).view(3, 2, 2).permute(1, 2, 0).flatten()
    signs, parts = 2 * drawn["randint_like"][1][:, order].float() - 1, drawn["rand_like"][1][:, order]
    band = torch.arange(12).ge(6).float()[None, :, None]
    copies = targets.repeat(3).boxes.repeat(1, 2, 1)
    ours = move_corners(copies, signs * (parts + band), 1.0)
    assert torch.allclose(ours, boxes.sigmoid()[:, order], atol=1e-4)
    group = make_group("ContrastiveDenoisingQueries", targets, MODEL__DETR__CONTRASTIVE_DENOISING__NUM_PAIRS=6)
    assert torch.equal(group.inner_mask, mask[:12, :12].isinf()[order][:, order])
    first = torch.stack([x.sort().values for x in meta["dn_positive_idx"]])
    assert torch.equal(order[group.pairs.query[0]].sort(-1).values, first)


def test_labels_are_drawn_anew_as_often_as_asked():
    torch.manual_seed(0)
    labels, embedding = torch.full((1, 20_000), 2), torch.nn.Embedding(5, 2)
    assert torch.equal(draw_labels(labels, 0.0, embedding), labels)
    changed = draw_labels(labels, 0.5, embedding) != 2
    assert changed.float().mean().item() == pytest.approx(0.5 * 4 / 5, abs=0.02), "the right class may be drawn"
    shares = draw_labels(labels, 1.0, embedding).flatten().bincount(minlength=5) / 20_000
    assert shares.tolist() == pytest.approx([0.2] * 5, abs=0.02)


@pytest.mark.parametrize(
    ("name", "key", "probability"),
    [("DenoisingQueries", "DENOISING", 1.0), ("ContrastiveDenoisingQueries", "CONTRASTIVE_DENOISING", 0.5)],
)
def test_contrastive_denoising_halves_the_label_noise(name, key, probability):
    torch.manual_seed(0)
    targets = make_targets([[0.5, 0.5, 0.2, 0.2]] * 400)
    keys = {f"MODEL__DETR__{key}__LABEL_NOISE": 1.0}
    model = build_model(small_cfg(**{**(DN if key == "DENOISING" else DINO), **keys}))
    maker = model.training_groups[name]
    maker.label_embedding.weight.data[:] = torch.arange(5.0)[:, None]
    (group,) = maker(None, own_group(1, model.queries.widths[0]), targets)
    labels = group.targets.labels.repeat(1, group.content.shape[1] // group.targets.labels.shape[1])
    changed = (group.content[..., 0] != labels).float().mean().item()
    assert changed == pytest.approx(probability * 4 / 5, abs=0.04)


# --- the group ---


def test_repeated_objects_stand_side_by_side():
    targets = make_targets([[0.1] * 4, [0.2] * 4], [[0.3] * 4])
    repeated = targets.repeat(3)
    assert repeated.counts == [6, 3]
    assert repeated.labels.tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]]
    assert repeated.valid.tolist() == [[True] * 6, [True] * 3 + [False] * 3]
    assert repeated.boxes[0, :, 0].tolist() == pytest.approx([0.1] * 3 + [0.2] * 3)


def test_every_object_stands_in_every_group():
    group = make_group("DenoisingQueries", make_targets([[0.2] * 4, [0.4] * 4], [[0.6] * 4]), **QUIET)
    assert group.name == "denoising" and group.sees == ("own",) and group.targets.counts == [6, 3]
    assert torch.allclose(group.position.sigmoid()[0, :, 0], torch.tensor([0.2] * 3 + [0.4] * 3), atol=1e-6)
    assert (group.content[..., -1] == 1).all(), "the mark of a denoising query"
    assert group.padding.tolist() == [[False] * 6, [False] * 3 + [True] * 3]
    assert group.pairs.weight.tolist() == [[[1] * 6, [1] * 3 + [0] * 3]]
    # Queries 0 and 3 are the two objects of the first group.
    assert group.inner_mask.tolist() == [[(a - b) % 3 != 0 for b in range(6)] for a in range(6)]


@pytest.mark.parametrize(("objects", "groups"), [(1, 9), (2, 4), (4, 2), (9, 1), (30, 1)])
def test_number_of_contrastive_groups(objects, groups):
    group = make_group("ContrastiveDenoisingQueries", make_targets([[0.5] * 4] * objects, []))
    assert group.content.shape[1] == 2 * objects * groups and group.targets.counts == [objects * groups, 0]
    assert (~group.inner_mask[0]).sum() == 2 * objects, "a group has the objects twice"
    assert group.pairs.query.shape[-1] == objects * groups, "negative queries have no object"


def test_own_queries_of_dn_detr():
    shared, marked = (
        build(name).queries(Memory(torch.zeros(2, 1, 1), None, None, [])) for name in VARIANTS if "dn" in name
    )
    for own in (shared, marked):
        assert (own.content[..., -1] == 0).all() and own.content.shape[:2] == own.position.shape[:2] == (2, 7)
    assert torch.equal(shared.content[:, :1].expand_as(shared.content), shared.content)
    assert not torch.equal(marked.content[:, 0], marked.content[:, 1])


# --- who sees whom ---


@torch.no_grad()
@every_variant
def test_isolation(variant):
    model = build(variant).eval()
    memory, _, (own, noised) = begin_step(model, make_inputs(counts=(2, 3)))
    alone = model.decode(memory, [own])["own"]
    before = model.decode(memory, [own, noised])
    assert torch.allclose(alone.logits, before["own"].logits, atol=1e-5)
    assert torch.allclose(alone.boxes, before["own"].boxes, atol=1e-5)

    def effect(group: QueryGroup, name: str) -> Tensor:
        """(B, Q): the largest change of each query's hidden states."""
        groups = {"own": own, "denoising": noised, group.name: group}
        after = model.decode(memory, list(groups.values()))[name]
        return (after.hidden - before[name].hidden).abs().amax((0, -1))

    def change(group: QueryGroup, image: int, query: int) -> QueryGroup:
        content = group.content.clone()
        content[image, query] += 1
        return dataclasses.replace(group, content=content)

    changed = effect(change(noised, 1, 0), "denoising")
    same_group = ~noised.inner_mask[0]
    assert changed[0].max() == 0 and changed[1][~same_group].max() < 1e-5
    assert changed[1][same_group].min() > 1e-4, "a group's queries see each other"
    assert effect(change(noised, 1, 0), "own").max() < 1e-5
    padded = int(noised.padding[0].float().argmax())
    changed = effect(change(noised, 0, padded), "denoising")
    assert changed[0, padded] > 1e-4
    changed[0, padded] = 0
    assert changed.max() < 1e-5, "nothing sees padding"
    changed = effect(change(own, 0, 0), "denoising")
    assert changed[0].min() > 1e-5 and changed[1].max() == 0, "denoising queries see the detector's own"


@torch.no_grad()
@every_variant
def test_an_image_does_not_notice_how_many_objects_its_neighbour_has(variant):
    """Without noise, whose numbers depend on the batch; the first group's queries."""
    model = build(variant, **QUIET).eval()
    outputs = []
    for count in (1, 6):
        inputs = make_inputs(sizes=((48, 48), (48, 48)), counts=(2, count))
        inputs[0] = make_inputs(sizes=((48, 48),), counts=(2,))[0]
        memory, targets, groups = begin_step(model, inputs)
        memory.proposals = None
        supervised = model.supervised(model.decode(memory, groups), groups, memory, targets)
        ((output, group, _),) = [entry for entry in supervised if entry[1].name == "denoising"]
        first = ~group.inner_mask[0] & ~group.padding[0]
        outputs.append(output.logits[:, 0, first])
    assert torch.allclose(*outputs, atol=1e-5)


# --- losses ---


def naive_focal(logit: float, target: float) -> float:
    p = 1 / (1 + torch.tensor(-logit).exp().item())
    p_target, alpha = (p, 0.25) if target else (1 - p, 0.75)
    return -alpha * (1 - p_target) ** 2 * torch.tensor(p_target).log().item()


def test_losses_of_known_pairs_by_hand():
    """Two images with two and one objects, two groups: six positive queries, six negative ones, of which one padded
    each a group."""
    targets = make_targets([[0.3, 0.4, 0.2, 0.2], [0.6, 0.6, 0.4, 0.2]], [[0.5, 0.5, 0.2, 0.4]])
    group = make_group("ContrastiveDenoisingQueries", targets, MODEL__DETR__CONTRASTIVE_DENOISING__NUM_PAIRS=4)
    criterion = SetCriterion(small_cfg())
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 8, 5, generator=generator)
    boxes = torch.rand(2, 2, 8, 4, generator=generator) * 0.5 + 0.2
    output = DecoderOutput(logits, boxes, torch.zeros(2, 2, 8, 1), "sigmoid")
    losses = criterion(output, group, group.targets, group.pairs.expand_layers(2))
    assert set(losses) == {f"loss_{n}_denoising{s}" for n in ("class", "box", "giou") for s in ("", "_0")}

    # Copies of an object stand side by side: queries 0, 1 are object 0, queries 2, 3 object 1; 4 to 7 are negative.
    expected = {"class": 0.0, "box": 0.0}
    for image, count in enumerate(targets.counts):
        for query in range(8):
            object_, positive = (query % 4) // 2, query < 4
            if object_ >= count:
                continue
            label = int(targets.labels[image, object_])
            for k in range(5):
                expected["class"] += naive_focal(logits[1, image, query, k].item(), positive and k == label)
            if positive:
                expected["box"] += (boxes[1, image, query] - targets.boxes[image, object_]).abs().sum().item()
    for name, value in expected.items():
        found = losses[f"loss_{name}_denoising"].item()
        assert found == pytest.approx(criterion.weights[name] * value / (3 * 2), rel=1e-4), "three objects, two groups"


@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_padding_attracts_no_loss(classification):
    targets = make_targets([[0.5] * 4] * 2, [[0.5] * 4], [])
    group = make_group("ContrastiveDenoisingQueries", targets, MODEL__DETR__CONTRASTIVE_DENOISING__NUM_PAIRS=2)
    criterion = SetCriterion(small_cfg(MODEL__DETR__LOSS__CLASSIFICATION=classification))
    logits = torch.randn(1, 3, 4, 5 + (classification == "softmax"), requires_grad=True)
    boxes = torch.rand(1, 3, 4, 4, requires_grad=True)
    output = DecoderOutput(logits, boxes, torch.zeros(1, 3, 4, 1), "sigmoid")
    sum(criterion(output, group, group.targets, group.pairs).values()).backward()
    attracted = logits.grad[0].abs().sum(-1) > 0
    assert torch.equal(attracted, ~group.padding) and attracted.sum() == 6
    assert torch.equal(boxes.grad[0].abs().sum(-1) > 0, ~group.padding & (torch.arange(4) < 2))


@every_variant
@pytest.mark.parametrize("counts", [(2, 3), (0, 2), (0, 0)])
def test_losses_have_the_same_names_and_reach_every_parameter(variant, counts):
    model = build(variant).train()
    losses = model(make_inputs(counts=counts))
    suffixes = {"", "_0", "_denoising", "_denoising_0"} | ({"_encoder"} if variant == "dino" else set())
    assert set(losses) == {f"loss_{n}{s}" for n in ("class", "box", "giou") for s in suffixes}
    assert all(value.isfinite() for value in losses.values())
    assert (losses["loss_class_denoising"] > 0) == (sum(counts) > 0)
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@every_variant
def test_queries_are_made_without_reading_the_device(variant, inputs):
    model = build(variant).train()
    with ReadCounter() as counter:
        begin_step(model, inputs)
    assert counter.reads == []


@every_variant
def test_noise_follows_from_the_step(variant, inputs):
    """As a resumed run draws it, see engine/randomness.py."""
    model = build(variant).train()

    def noise(iteration: int) -> tuple[Tensor, Tensor]:
        seed_step(3, 0, iteration, part=1)
        group = begin_step(model, inputs)[2][1]
        return group.position, group.content

    first, again, other = noise(7), noise(7), noise(8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@every_variant
def test_nothing_is_denoised_at_inference(variant):
    model = build(variant).eval()
    plain = build_model(small_cfg(**{**VARIANTS[variant], "MODEL__DETR__TRAINING_GROUPS": []})).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "training_groups" not in k})
    (maker,) = model.training_groups.values()
    maker.register_forward_pre_hook(lambda *_: pytest.fail("denoising queries at inference"))
    with torch.no_grad():
        for a, b in zip(model(make_inputs(labels=False)), plain(make_inputs(labels=False)), strict=True):
            assert torch.equal(a["instances"].scores, b["instances"].scores)


@every_variant
def test_other_training_groups_stand_beside_it(variant, inputs):
    makers = ["GroupQueries", "HybridQueries", *VARIANTS[variant]["MODEL__DETR__TRAINING_GROUPS"]]
    keys = {
        "MODEL__DETR__TRAINING_GROUPS": makers,
        "MODEL__DETR__GROUP_QUERIES__NUM_GROUPS": 2,
        "MODEL__DETR__HYBRID_QUERIES__NUM_QUERIES": 5,
        "MODEL__DETR__HYBRID_QUERIES__REPEATS": 2,
    }
    model = build(variant, **keys).train()
    memory, _, groups = begin_step(model, inputs)
    assert [group.name for group in groups] == ["own", "group_1", "hybrid", "denoising"]
    together = model.decode(memory, groups)
    pair = model.decode(memory, [groups[0], groups[3]])
    for name in ("own", "denoising"):
        assert torch.allclose(pair[name].logits, together[name].logits, atol=1e-5)
    losses = model(inputs)
    assert {"loss_class_denoising", "loss_class_group_1", "loss_class_hybrid"} <= set(losses)
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MODEL__DETR__TRAINING_GROUPS": ["DenoisingQueries"]}, "names DenoisingQueries.*LearnedQueries"),
        ({**DN, "MODEL__DETR__DENOISING__NUM_GROUPS": 0}, "DENOISING.NUM_GROUPS is 0"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_words(keys, message):
    with pytest.raises(ConfigError, match=message):
        build_model(small_cfg(**keys))
