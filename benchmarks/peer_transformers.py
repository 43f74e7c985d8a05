"""Inference and training step of our detectors against those of Hugging Face transformers, with the same weights.

    python benchmarks/peer_transformers.py --json benchmarks/results/peer_transformers.json

DETR, Conditional DETR, DAB-DETR and Deformable DETR in the shape of ``configs/detr/*_r50.yaml``, random weights copied
from one side to the other. Before any timing, the last layer's logits, boxes and loss must agree (without TF32).

Ours: uint8 images to detections in pixels (inference), or to losses and gradients (training). transformers: padded
images to logits and boxes, or with labels to its own loss (every decoder layer) and gradients; its image processor is
not timed. Equal on both sides: frozen batch norms, frozen stem and first stage, dropout (also of attention and in the
feed-forward), threads. ``transformers`` is its default attention (sdpa where it has it), ``transformers_eager`` eager.

Modes: ``inference`` on images of one size; ``inference_padded`` and ``training`` on images of unequal sizes, which
transformers pads in both, and ours pads in training and takes one by one at inference.
Keys of the JSON, for each detector and mode: ratio (our median / transformers' median), median_seconds,
peak_memory_ratio, peak_memory_bytes, all_seconds; and the setting.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from detr_distill.checkpoint.importing.names_transformers import rename_transformers
from detr_distill.config.build import build_config
from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.detr.supervision.matchings import Matchings

import torch
import transformers
from common import (
    ROOT,
    device_name,
    peak_bytes,
    random_inputs,
    read_size,
    time_in_turn,
    training_step,
    without_tf32,
    write_result,
)
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

FAMILIES = {
    "detr": (transformers.DetrConfig, transformers.DetrForObjectDetection),
    "conditional": (transformers.ConditionalDetrConfig, transformers.ConditionalDetrForObjectDetection),
    "dab": (transformers.DabDetrConfig, transformers.DabDetrForObjectDetection),
    "deformable": (transformers.DeformableDetrConfig, transformers.DeformableDetrForObjectDetection),
}
MODES = ("inference", "inference_padded", "training")
TOLERANCE = 1e-3


def build_peer(detector: str, cfg: CfgNode) -> transformers.PreTrainedModel:
    """The model of transformers of the shape, dropout and loss weights that ``cfg`` gives ours; random weights."""
    node = cfg.MODEL.DETR
    resnet = transformers.ResNetConfig(out_features=_stages(node.IN_FEATURES))
    width = "hidden_size" if detector == "dab" else "d_model"
    config_class, model_class = FAMILIES[detector]
    config = config_class(
        use_timm_backbone=False, backbone=None, use_pretrained_backbone=False, backbone_config=resnet,
        encoder_layers=node.ENCODER.NUM_LAYERS, decoder_layers=node.DECODER.NUM_LAYERS,
        encoder_attention_heads=node.NUM_HEADS, decoder_attention_heads=node.NUM_HEADS,
        encoder_ffn_dim=node.FFN_DIM, decoder_ffn_dim=node.FFN_DIM, num_queries=node.NUM_QUERIES,
        num_labels=node.NUM_CLASSES, dropout=node.DROPOUT, attention_dropout=node.DROPOUT,
        activation_dropout=node.DROPOUT, auxiliary_loss=True, class_cost=int(node.MATCHER.COST_CLASS),
        bbox_cost=int(node.MATCHER.COST_L1), giou_cost=int(node.MATCHER.COST_GIOU),
        bbox_loss_coefficient=int(node.LOSS.L1_WEIGHT), giou_loss_coefficient=int(node.LOSS.GIOU_WEIGHT),
        **{width: node.HIDDEN_DIM},
    )  # fmt: skip
    peer = model_class(config)
    _settle(peer)
    for name, parameter in peer.model.backbone.named_parameters():
        parameter.requires_grad_(any(f"stages.{stage}." in name for stage in (1, 2, 3)))
    return peer.to(cfg.MODEL.DEVICE)


def _stages(in_features: list[str]) -> list[str]:
    """detectron2's res2 ... res5 are transformers' stage1 ... stage4."""
    return [f"stage{int(name[-1]) - 1}" for name in in_features]


@torch.no_grad()
def _settle(peer: nn.Module) -> None:
    """Random weights under which signals neither vanish nor explode, nothing is zero, and no two queries are alike."""
    for name, values in peer.state_dict().items():
        if "backbone" in name:
            if name.endswith("normalization.weight"):
                values.uniform_(0.6, 1.1)
        elif "query" in name and "embeddings" in name:
            values.normal_()
        elif values.is_floating_point():
            # Sharp attention and heads: through many layers of averages all queries' outputs would become alike.
            scale = 0.1 if re.search(r"[._](q|k|query|key)_|class|bbox", name) else 0.03
            values.add_(scale * torch.randn_like(values))


class Pair:
    """Our detector and that of transformers, on the same images.

    Args:
        detector: a key of ``FAMILIES``. device: "cpu" or "cuda". sizes: (height, width) of the images.
    """

    def __init__(self, detector: str, device: str, sizes: list[tuple[int, int]], overrides: list[str]):
        # transformers' focal losses have no weight of the class term.
        fixed = ["MODEL.DEVICE", device, "MODEL.DETR.LOSS.CLASS_WEIGHT", "1.0"]
        cfg = build_config(str(ROOT / f"configs/detr/{detector}_r50.yaml"), [*fixed, *overrides])
        self.device, self.dropout = device, cfg.MODEL.DETR.DROPOUT
        self.peer = build_peer(detector, cfg)
        self.default_attention = self.peer.config._attn_implementation
        self.ours = build_model(cfg)
        family = "detr" if detector == "detr" else f"{detector}_detr"
        self.ours.load_state_dict(rename_transformers(self.peer.state_dict(), family, False), strict=True)
        trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (self.ours, self.peer)]
        assert trained[0] == trained[1], f"{detector}: {trained[0]} parameters are trained here, {trained[1]} there"
        self.padded = random_inputs(sizes, cfg.MODEL.DETR.NUM_CLASSES)
        self.equal = random_inputs([sizes[0]] * len(sizes), cfg.MODEL.DETR.NUM_CLASSES)

    def steps(self, mode: str) -> dict[str, Callable[[], object]]:
        """What is timed, by its name in the result."""
        training = mode == "training"
        for model in (self.ours, self.peer):
            model.train(training)
        self.peer.config.auxiliary_loss = training
        inputs = self.equal if mode == "inference" else self.padded
        peer_inputs = self._peer_inputs(inputs, labels=training)
        names = {"transformers": self.default_attention, "transformers_eager": "eager"}
        if self.default_attention == "eager":
            del names["transformers_eager"]
        if training:
            peers = {name: lambda a=attention: self._train_peer(a, peer_inputs) for name, attention in names.items()}
            return {"ours": lambda: training_step(self.ours, inputs), **peers}
        peers = {name: lambda a=attention: self._infer_peer(a, peer_inputs) for name, attention in names.items()}
        return {"ours": lambda: self._infer_ours(inputs), **peers}

    @torch.no_grad()
    def _infer_ours(self, inputs: list[dict]) -> None:
        self.ours(inputs)

    @torch.no_grad()
    def _infer_peer(self, attention: str, inputs: dict) -> None:
        self.peer.config._attn_implementation = attention
        self.peer(**inputs)

    def _train_peer(self, attention: str, inputs: dict) -> None:
        self.peer.config._attn_implementation = attention
        self.peer(**inputs).loss.backward()
        self.peer.zero_grad(set_to_none=True)

    def _peer_inputs(self, inputs: list[dict], labels: bool) -> dict:
        """What the image processor of transformers would give."""
        images = self.ours.preprocess(inputs)
        mask = torch.zeros_like(images.tensor[:, 0], dtype=torch.bool) if images.mask is None else images.mask
        values = {"pixel_values": images.tensor.contiguous(), "pixel_mask": (~mask).long()}
        if not labels:
            return values
        truth = read_ground_truth(inputs, images.tensor.device)
        objects = zip(truth.labels, truth.boxes, truth.counts, strict=True)
        return {**values, "labels": [{"class_labels": c[:n], "boxes": b[:n]} for c, b, n in objects]}

    @torch.no_grad()
    @without_tf32()
    def check(self) -> dict[str, float]:
        """Largest difference of the last layer's logits and boxes, relative one of its loss; padded images, eval mode.

        Without ``auxiliary_loss``: with it, DETR and Conditional DETR of transformers normalise between layers too,
        which costs next to nothing but is another function.

        Raises:
            AssertionError: they differ by more than ``TOLERANCE``, or all queries give the same.
        """
        self.ours.eval()
        self.peer.eval()
        finished = self.ours.finish(self.ours.start(self.padded))
        output, matchings = finished.outputs["own"], Matchings()
        supervised = self.ours.supervise(finished, read_ground_truth(self.padded, self.ours.device), matchings)
        matchings.solve()
        losses = self.ours.losses(supervised)
        loss = sum(losses[f"loss_{term}"] for term in ("class", "box", "giou"))
        self.peer.config.auxiliary_loss = False
        expected = self.peer(**self._peer_inputs(self.padded, labels=True))
        spread = min(values.std(1).mean().item() for values in (expected.logits, expected.pred_boxes))
        assert spread > TOLERANCE, f"queries that differ by {spread:.1e} would prove nothing"
        found = {
            "logits": (output.logits[-1] - expected.logits).abs().max().item(),
            "boxes": (output.boxes[-1] - expected.pred_boxes).abs().max().item(),
            "loss": (loss / expected.loss - 1).abs().item(),
        }
        assert max(found.values()) < TOLERANCE, f"the two sides differ: {found}"
        return {**found, "spread_of_queries": spread}


def measure(pair: Pair, mode: str, rounds: int) -> dict:
    """Times and peak memory of both sides in a mode, see above."""
    steps = pair.steps(mode)
    seconds = time_in_turn(steps, rounds, pair.device)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peaks = {name: peak_bytes(step, pair.device) for name, step in steps.items()}
    return {
        "ratio": medians["ours"] / medians["transformers"],
        "median_seconds": medians,
        "peak_memory_ratio": peaks["ours"] / peaks["transformers"],
        "peak_memory_bytes": peaks,
        "all_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--detectors", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one to warm up")
    parser.add_argument("--sizes", nargs="+", type=read_size, default=[(480, 640), (512, 512)], metavar="HEIGHTxWIDTH")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("overrides", nargs="*", help="KEY VALUE of both sides, such as MODEL.DETR.DROPOUT 0.0")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    result: dict = {
        "device": device_name(arguments.device),
        "threads": arguments.threads,
        "sizes": arguments.sizes,
        "rounds": arguments.rounds,
        "overrides": arguments.overrides,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "detectors": {},
    }
    for detector in arguments.detectors:
        torch.manual_seed(0)
        pair = Pair(detector, arguments.device, arguments.sizes, arguments.overrides)
        found = {"default_attention": pair.default_attention, "dropout": pair.dropout, "differences": pair.check()}
        result["detectors"][detector] = found
        for mode in arguments.modes:
            found[mode] = measure(pair, mode, arguments.rounds)
            medians = "  ".join(f"{name} {value:.3f} s" for name, value in found[mode]["median_seconds"].items())
            memory = found[mode]["peak_memory_ratio"]
            print(f"{detector} {mode}: {found[mode]['ratio']:.2f} of the time, {memory:.2f} of the memory; {medians}")
    write_result(arguments.json, result)


if __name__ == "__main__":
    main()
