"""Comparing a checkpoint's tensors with a model's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import CheckpointError, first
from ..moved import renamed

SMALL_SHARE = 0.05  # of a model's tensors

__getattr__ = renamed(__name__, {"first_names": "first"})


@dataclass
class Fit:
    """How some weights fit a model.

    Attributes:
        matched: model name -> tensor of the right shape. missing: names that only the model has.
        unexpected: names that only the weights have. misshaped: name -> (shape in the weights, shape in the model).
    """

    matched: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    misshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def is_complete(self) -> bool:
        return not (self.missing or self.unexpected or self.misshaped)

    @property
    def is_poor(self) -> bool:
        """Most of the weights are of no use to the model, or most of the model gets none of them.

        A backbone alone is a third of a detector's tensors or more; weights of other classes lack a few.
        """
        unused = len(self.unexpected) + len(self.misshaped)
        wanted = len(self.matched) + len(self.missing) + len(self.misshaped)
        return len(self.matched) < unused or len(self.matched) < SMALL_SHARE * wanted

    def without(self, unneeded: Callable[[str], bool]) -> Fit:
        """The same but for mismatches of names that are not needed."""
        return Fit(
            matched=self.matched,
            missing=[name for name in self.missing if not unneeded(name)],
            unexpected=[name for name in self.unexpected if not unneeded(name)],
            misshaped={name: shapes for name, shapes in self.misshaped.items() if not unneeded(name)},
        )

    def both_sides(self) -> tuple[list[str], list[str]]:
        """Names in the weights and in the model that do not fit each other, with shapes where these are why."""
        found = [f"{name} {shape}" for name, (shape, _) in self.misshaped.items()]
        wanted = [f"{name} {shape}" for name, (_, shape) in self.misshaped.items()]
        return [*found, *self.unexpected], [*wanted, *self.missing]

    def problems(self) -> str:
        """The first names of every kind of mismatch, one line each."""
        shapes = [f"{name} {found} instead of {wanted}" for name, (found, wanted) in self.misshaped.items()]
        kinds = (
            ("missing in the file", self.missing),
            ("unknown to the model", self.unexpected),
            ("of another shape", shapes),
        )
        return "\n".join(f"  {len(names)} {kind}: {first(names)}" for kind, names in kinds if names)

    def summary(self) -> str:
        """What was taken and what not, in one line."""
        total = len(self.matched) + len(self.missing) + len(self.misshaped)
        parts = [f"{len(self.matched)} of {total} tensors"]
        if self.missing:
            parts.append(f"{len(self.missing)} keep their initialisation (first: {self.missing[0]})")
        if self.misshaped:
            name, (found, wanted) = next(iter(self.misshaped.items()))
            parts.append(f"{len(self.misshaped)} skipped for their shape (first: {name}, {found} instead of {wanted})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unused in the file (first: {self.unexpected[0]})")
        return "; ".join(parts) + "."


def advise(fit: Fit, otherwise: str) -> str:
    """What to do about weights that do not fit: import them, where another project wrote them."""
    from .importing.layout import OWN, find_layout  # the import is built on this module

    layout = find_layout([name.removeprefix("student.") for name in fit.unexpected])
    if layout in (None, OWN):
        return otherwise
    return f"It is a checkpoint of {layout}: bring it over with tools/import_checkpoint.py --source {layout}."


def compare(weights: Mapping[str, Tensor], model: nn.Module) -> Fit:
    """Pairs tensors with a model's parameters and buffers by name and shape; changes nothing."""
    state = model.state_dict()
    shared = [name for name in state if name in weights]
    misshaped = {
        name: (tuple(weights[name].shape), tuple(state[name].shape))
        for name in shared
        if weights[name].shape != state[name].shape
    }
    return Fit(
        matched={name: weights[name] for name in shared if name not in misshaped},
        missing=_missing(model, [name for name in state if name not in weights], weights),
        unexpected=[name for name in weights if name not in state],
        misshaped=misshaped,
    )


def _missing(model: nn.Module, absent: list[str], weights: Mapping[str, Tensor]) -> list[str]:
    """Names without a tensor, but for those whose parameter is loaded under its other name (shared layers)."""
    names_of: dict[int, list[str]] = defaultdict(list)
    for name, value in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        names_of[id(value)].append(name)
    loaded_elsewhere = {
        name for names in names_of.values() if any(other in weights for other in names) for name in names
    }
    # A counter that old batch normalisation lacks; it is not used unless momentum is None.
    return [name for name in absent if name not in loaded_elsewhere and not name.endswith("num_batches_tracked")]


def match_suffixes(weights: Mapping[str, Tensor], model_names: Collection[str]) -> dict[str, Tensor]:
    """Gives a backbone's tensors the model's prefix: ``res2.0.conv1.weight`` as ``backbone.res2.0.conv1.weight``.

    Raises:
        CheckpointError: one tensor would fit two places, for example two backbones.
    """
    renamed = {}
    for name, value in weights.items():
        places = [other for other in model_names if other == name or other.endswith("." + name)]
        if len(places) > 1:
            raise CheckpointError(f"The tensor {name} fits {' and '.join(places)}: save it under its full name.")
        renamed[places[0] if places else name] = value
    return renamed
