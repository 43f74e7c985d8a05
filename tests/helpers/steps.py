"""Steps of a detector for the tests: its memory, and a few of training."""

from __future__ import annotations

import dataclasses

from detr_distill.structures import DecoderOutput, Memory

import torch


def encode_features(model, features, images) -> Memory:
    """Backbone features, {name: (B, channels, height, width)}, to what the decoder looks at."""
    memory = model.input_projection(features, images)
    return dataclasses.replace(memory, tokens=model.encoder(memory))


def encode(model, inputs) -> Memory:
    images = model.preprocess(inputs)
    return encode_features(model, model.backbone(images.tensor), images)


def outputs_over_padding(model, inputs) -> list[DecoderOutput]:
    """The own group's outputs with one content of the memory's padding, and with another."""
    images = model.preprocess(inputs)
    memory = model.input_projection(model.backbone(images.tensor), images)
    assert memory.mask.any()
    outputs = []
    for filling in (0.0, 9.0):
        filled = dataclasses.replace(memory, tokens=memory.tokens.masked_fill(memory.mask.unsqueeze(-1), filling))
        filled.tokens = model.encoder(filled)
        outputs.append(model.decode(filled, [model.queries(filled)])["own"])
    return outputs


def check_images_alone(model, inputs) -> None:
    """Each image's detections are those that it has in the batch."""
    with torch.no_grad():
        for entry, expected in zip(inputs, model(inputs), strict=True):
            (alone,) = model([entry])
            assert torch.allclose(alone["instances"].scores, expected["instances"].scores, atol=1e-5)
            boxes = (x["instances"].pred_boxes.tensor for x in (alone, expected))
            assert torch.allclose(*boxes, atol=1e-2)


def train_steps(model, inputs, steps=3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for step in range(steps):
        torch.manual_seed(step)
        losses = model(inputs)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({k: v.item() for k, v in losses.items() if "distill" not in k})
    return history, torch.get_rng_state()
