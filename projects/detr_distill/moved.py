"""Modules under their earlier names: importing one works, and warns of where its content is now."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

PACKAGE = __name__.rpartition(".")[0]

# Earlier module, and where its content is now, below the package; several where it was divided.
_TABLE = """
checkpoint.importing.label_book checkpoint.importing.label_embedding
config_distill config.defaults
detr.adamixer detr.layers.adamixer
detr.assignment detr.supervision.assignment
detr.attention detr.layers.attention detr.layers.feed_forward
detr.backbone detr.backbones.resnet detr.backbones.build detr.backbones.small
detr.backbone_fpn detr.backbones.pyramid
detr.backbone_stages detr.backbones.stages
detr.backbone_timm detr.backbones.timm
detr.backbone_torchvision detr.backbones.torchvision
detr.criterion detr.supervision.criterion
detr.decoder detr.decoders.base detr.decoders.heads
detr.decoder_adamixer detr.decoders.adamixer detr.decoders.heads
detr.decoder_anchor detr.decoders.anchor
detr.decoder_conditional detr.decoders.conditional detr.layers.conditional
detr.decoder_dab detr.decoders.dab detr.encoders.dab
detr.decoder_deformable detr.decoders.deformable
detr.decoder_detr detr.decoders.detr
detr.decoder_dino detr.decoders.dino detr.decoders.dab_deformable
detr.decoder_smca detr.decoders.smca
detr.deformable detr.layers.deformable
detr.deformable_kernel detr.layers.deformable_kernel
detr.deformable_triton detr.layers.deformable_triton
detr.denoising detr.training_groups.denoising detr.training_groups.noise
detr.encoder detr.encoders.transformer detr.layers.initialisation
detr.encoder_anchor detr.encoders.anchor detr.necks.anchor
detr.encoder_deformable detr.encoders.deformable structures.levels
detr.encoder_smca detr.encoders.smca
detr.matcher detr.supervision.matcher
detr.neck detr.necks.base detr.necks.single_level detr.necks.multi_level detr.necks.adamixer
detr.position detr.layers.position
detr.queries_adamixer detr.queries.adamixer
detr.queries_anchor detr.queries.anchor_points
detr.queries_deformable detr.queries.two_stage detr.queries.learned
detr.queries_dino detr.queries.mixed detr.queries.marked
detr.row_column detr.layers.row_column
detr.settings detr.checks
detr.smca detr.layers.smca
distill.dense_predictions convolutional.predictions
distill.detections convolutional.detections distill.students.earlier
distill.ema_teacher distill.teachers.ema
distill.feature_pairs distill.losses.map_pairs distill.losses.map_loss
distill.frozen distill.teachers.frozen config.files distill.teachers.none distill.teachers.configuration
distill.inference_form distill.teachers.inference_form
distill.label_descriptor distill.teachers.label_encoder.descriptor
distill.label_encoder distill.teachers.label_encoder.encoder
distill.label_map distill.teachers.label_encoder.label_map
distill.label_points distill.teachers.label_encoder.points
distill.label_regions distill.teachers.label_encoder.regions structures.regions
distill.layers distill.matchers.layer_pairs
distill.levels structures.levels
distill.loss_attention distill.losses.attention
distill.loss_base distill.losses.base distill.losses.pair_loss
distill.loss_feature distill.losses.feature distill.losses.feature_parts
distill.loss_focal_global distill.losses.focal_global
distill.loss_levels distill.losses.map_loss
distill.loss_masked_generation distill.losses.masked_generation
distill.loss_prediction distill.losses.prediction
distill.loss_query_relation distill.losses.query_relation
distill.loss_sampled_attention distill.losses.sampled_attention distill.losses.sampled_points
distill.loss_target_aware distill.losses.target_aware
distill.query_exchange distill.matchers.query_exchange
distill.query_general distill.matchers.general
distill.query_matchers distill.matchers.base distill.matchers.adaptive distill.matchers.fixed
distill.query_overlap distill.matchers.overlap
distill.second_run distill.students.second_run
distill.settings config.ranges
distill.target_masks distill.losses.target_masks
distill.transformers_teacher distill.teachers.transformers checkpoint.transformers_folder
engine.configuration engine.device config.build
engine.randomness randomness
fcos convolutional.fcos
pairs structures.pairs
ranges config.ranges
visualization.console demo.console
"""
MOVED = {words[0]: tuple(words[1:]) for line in _TABLE.splitlines() if (words := line.split())}

# What is no more, and what takes its place.
_GONE = {
    "data.stream.seed_globally": "detr_distill.randomness.seed_step",
    "detr.preprocess.labels_of": "detr_distill.detr.preprocess.read_ground_truth",
    "detr.preprocess.normalised_targets": "detr_distill.detr.preprocess.read_ground_truth",
    "detr.settings.check_settings": "detr_distill.config.keys.check_keys",
    "distill.detections.read_detections": "detr_distill.distill.students.student_of(detector).know",
    "distill.feature_pairs.read_boxes": "StudentStep.ground_truth",
    "distill.frozen.read_knowledge": "detr_distill.distill.students.student_of(detector).know",
    "distill.levels.select_rows": "detr_distill.structures.rows.take_rows",
    "distill.target_masks.choose_projection": "Teacher.read_projection",
    "distill.label_descriptor.pad_boxes": "detr_distill.detr.preprocess.read_ground_truth",
    "distill.query_matchers.shared_classes": "Teacher.classes",
    "distill.settings.check_settings": "detr_distill.config.keys.check_keys",
    "iteration.current_iteration": "an argument, model(inputs, iteration=n): outside of detectron2's trainer nobody "
    "else knows it",
}

# Module: earlier names of what it has, and present ones.
_RENAMED: dict[str, dict[str, str]] = {}


class MovedModule(types.ModuleType):
    """Hands every name on to the module that has it now, assignments too."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__replaced__: dict[str, object] = {}

    def __dir__(self) -> list[str]:
        modules = (importlib.import_module(f"{PACKAGE}.{name}") for name in MOVED[_below_package(self.__name__)])
        return sorted({name for module in modules for name in vars(module) if not name.startswith("_")})

    def __getattr__(self, name: str) -> object:
        if name == "__all__":  # of ``import *``
            return dir(self)
        module = self._owner(name)
        # A name that was changed besides is found by the module itself, see renamed().
        return vars(module)[name] if name in vars(module) else vars(module)["__getattr__"](name)

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("__"):
            super().__setattr__(name, value)
        else:
            owner = self._owner(name)
            self.__replaced__.setdefault(name, vars(owner).get(name))
            setattr(owner, name, value)

    def __delattr__(self, name: str) -> None:
        """Gives back what was there before it was set here: so do unittest.mock and monkeypatch end a replacement."""
        if name not in self.__replaced__:
            raise AttributeError(f"{self.__name__} was not given {name}.")
        setattr(self._owner(name), name, self.__replaced__[name])

    def _owner(self, name: str) -> types.ModuleType:
        modules = MOVED[_below_package(self.__name__)]
        for name_now in modules:
            module = importlib.import_module(f"{PACKAGE}.{name_now}")
            if name in vars(module) or name in _RENAMED.get(module.__name__, ()):
                return module
        instead = _GONE.get(f"{_below_package(self.__name__)}.{name}")
        if instead is not None:
            raise AttributeError(f"{self.__name__}.{name} is gone. Use {instead}.")
        raise AttributeError(f"{self.__name__} is now {' and '.join(modules)}, and none of these has {name}.")


def _below_package(name: str) -> str:
    return name.removeprefix(f"{PACKAGE}.")


class MovedFinder(MetaPathFinder, Loader):
    """Finds earlier modules, after everything that really exists."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        moved = fullname.removeprefix(f"{PACKAGE}.") in MOVED and fullname.startswith(f"{PACKAGE}.")
        return ModuleSpec(fullname, self) if moved else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        modules = MOVED[_below_package(spec.name)]
        names = " and ".join(f"{PACKAGE}.{module}" for module in modules)
        warnings.warn(f"{spec.name} has moved: import from {names}.", FutureWarning, stacklevel=2)
        return MovedModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run: the content is elsewhere."""


def install() -> None:
    """Makes the earlier names importable; repeating it changes nothing."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())


def renamed(module: str, names: dict[str, str]) -> Callable[[str], object]:
    """The ``__getattr__`` of a module some of whose names are earlier ones: they go on working, and warn.

    A name that is no more is an error that says what takes its place.

    Args:
        module: its ``__name__``. names: earlier name: present one.
    """
    _RENAMED[module] = names

    def find(name: str) -> object:
        instead = _GONE.get(f"{_below_package(module)}.{name}")
        if instead is not None:
            raise AttributeError(f"{module}.{name} is gone. Use {instead}.")
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now called {names[name]}.", FutureWarning, stacklevel=2)
        return vars(sys.modules[module])[names[name]]

    return find
