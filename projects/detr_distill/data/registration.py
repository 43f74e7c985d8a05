"""Registers a user's datasets from the configuration, and answers what classes a dataset has."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config.keys import Key, declare
from ..config.ranges import Text, Words
from ..errors import DataError
from .annotations.file import has_categories, read_categories
from .bad_boxes import check_policy
from .coco import load_coco, load_unlabelled, read_class_names
from .formats import as_coco_file, image_records
from .formats.voc import VocRules

_KEY = "DATASETS.REGISTER"
# What this module registered: name -> (annotation file, image folder).
_registered: dict[str, tuple[str, str]] = {}


declare(
    __name__,
    {
        "DATASETS.CLASS_NAMES": Key(
            (), "classes of sets in Pascal VOC's format, in order; empty: those of each set's files, sorted", Text()
        ),
        "DATASETS.VOC_FIRST_PIXEL": Key(
            1,
            "number of an image's first pixel in Pascal VOC's files; programs that count from 0 write edges",
            Words(1, 0),
        ),
        "DATASETS.VOC_DIFFICULT": Key(
            "ignore",
            'objects that Pascal VOC\'s files call difficult: `"ignore"` neither learns nor counts them, `"keep"`, '
            '`"drop"`',
            Words("ignore", "keep", "drop"),
        ),
    },
)


def register_configured(cfg: CfgNode) -> None:
    """Registers the sets of a configuration's ``DATASETS.REGISTER``; see :func:`register_datasets`."""
    register_datasets(cfg.DATASETS.REGISTER, cfg.DATASETS.BAD_BOXES, _voc_rules(cfg))


def _voc_rules(cfg: CfgNode) -> VocRules:
    node = cfg.DATASETS
    return VocRules(node.VOC_FIRST_PIXEL, node.VOC_DIFFICULT, tuple(node.CLASS_NAMES))


def register_datasets(
    entries: Iterable[Sequence[str]], bad_boxes: str = "error", rules: VocRules | None = None
) -> None:
    """Registers datasets; a COCO file is not read before its set is first used.

    Args:
        entries: (name, annotations, image folder) of each, the value of ``DATASETS.REGISTER``. Annotations are COCO's
            file, Pascal VOC's folder or list, YOLO's file, see formats/, or empty for images without any. The same
            entry may be registered again.
        bad_boxes: "error" or "fix", the value of ``DATASETS.BAD_BOXES``. rules: for Pascal VOC.

    Raises:
        DataError: an entry is not three texts; a name is taken by another dataset; an unknown ``bad_boxes``; what is
            wrong with a set in another format than COCO's.
    """
    check_policy(bad_boxes)
    for entry in entries:
        annotations, folder = entry_files(entry)
        if annotations:
            files = as_coco_file(annotations, folder, rules)
            _register(entry[0], files, bad_boxes, "" if files[0] == annotations else f"Annotations {annotations}")
        else:
            _register_images(entry[0], folder)


def _register_images(name: str, folder: str) -> None:
    """A folder of images without annotations, to be named in ``DATASETS.UNLABELED``."""
    _check_name(name, ("", folder))
    _registered[name] = ("", folder)
    DatasetCatalog.register(name, lambda: image_records(folder))
    MetadataCatalog.get(name).set(image_root=folder)


def entry_files(entry: Sequence[str]) -> tuple[str, str]:
    """Annotation file and image folder of an entry of ``DATASETS.REGISTER``.

    Raises:
        DataError: it is not three texts.
    """
    is_list = isinstance(entry, list | tuple)
    if (
        not is_list
        or len(entry) != 3
        or not all(isinstance(part, str) for part in entry)
        or not (entry[0] and entry[2])
    ):
        raise DataError(f"{_KEY} has the entry {entry!r}; expected [name, annotation file, image folder].")
    return os.path.expanduser(entry[1]), os.path.expanduser(entry[2])


def _register(name: str, files: tuple[str, str], bad_boxes: str, source: str) -> None:
    _check_name(name, files)
    _registered[name] = files
    DatasetCatalog.register(name, lambda: load_coco(*files, name, bad_boxes, source))
    metadata = MetadataCatalog.get(name)
    metadata.set(json_file=files[0], image_root=files[1], evaluator_type="coco")
    if source:  # what the user named: the file is one of the cache
        metadata.set(source=source)


def _check_name(name: str, files: tuple[str, str]) -> None:
    """Makes room for a set that is registered again; raises DataError where the name is another set's."""
    if name in DatasetCatalog:
        if name not in _registered:
            raise DataError(f"{_KEY}: the name {name!r} belongs to a built-in dataset. Choose another name.")
        if _registered[name] != files:
            raise DataError(
                f"{_KEY}: the name {name!r} is used for {_registered[name]} and for {files}. Give each its own name."
            )
        DatasetCatalog.remove(name)  # the policy for bad boxes may have changed


def unlabelled_records(name: str) -> list[dict]:
    """The records of a registered set; of an annotation file its section "images" alone is read."""
    files = _registered.get(name)
    return load_unlabelled(*files) if files and files[0] else DatasetCatalog.get(name)


def is_configured(name: str) -> bool:
    """True for a set that a configuration has registered, rather than this package or another."""
    return name in _registered


def checks_its_boxes(name: str) -> bool:
    """True for a dataset whose loading applies the policy for bad boxes already."""
    return name in _registered or name.startswith("digits_")


def class_names(dataset_name: str) -> tuple[str, ...] | None:
    """Class names of a registered dataset, in the order of the labels that a model is trained with.

    Args:
        dataset_name: as in ``DATASETS.TRAIN``. Its annotation file is read if nothing else tells.

    Returns:
        None when no such dataset is registered, or its names cannot be known because its files are missing.

    Raises:
        DataError: the annotation file is there but is not COCO's format.
    """
    if dataset_name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("thing_classes") is None:
        try:
            _find_class_names(dataset_name)
        except (FileNotFoundError, ImportError):  # ImportError: lvis is not installed
            return None
    names = metadata.get("thing_classes")
    return None if names is None else tuple(names)


def tested_class_names(cfg: CfgNode) -> tuple[str, ...] | None:
    """Class names of the first of ``DATASETS.TEST`` whose names can be known, else of the training set's."""
    found = (class_names(name) for name in cfg.DATASETS.TEST)
    return next((names for names in found if names is not None), None) or training_class_names(cfg)


def category_names(dataset_name: str) -> dict[int, str] | None:
    """Category id -> class name of a registered dataset, in the order of the classes; None where nothing tells."""
    metadata = MetadataCatalog.get(dataset_name)
    file = metadata.get("json_file")
    if metadata.get("thing_classes") is None and file and os.path.isfile(file) and not has_categories(file):
        return None
    names = class_names(dataset_name)
    if names is None:
        return None
    index_of_id = metadata.get("thing_dataset_id_to_contiguous_id")
    if index_of_id is not None:
        return {category: names[index] for category, index in sorted(index_of_id.items(), key=lambda item: item[1])}
    return read_categories(file) if file and os.path.isfile(file) else dict(enumerate(names))


def dataset_files(name: str) -> tuple[str, ...]:
    """Annotation file and image folder of a registered dataset; empty where it has none or nobody told."""
    if name not in DatasetCatalog:
        return ()
    metadata = MetadataCatalog.get(name)
    return tuple(metadata.get(key) for key in ("json_file", "image_root") if metadata.get(key))


def training_class_names(cfg: CfgNode) -> tuple[str, ...] | None:
    """Class names of a configuration's training set: of the first of ``DATASETS.TRAIN`` whose names can be known.

    The configuration's own ``DATASETS.REGISTER`` counts, registered or not: a teacher's set may have the name of one of
    the student's and be another.

    Returns:
        None when there is none.

    Raises:
        DataError: see :func:`class_names`.
    """
    entries = cfg.DATASETS.get("REGISTER", ())  # a plain configuration of detectron2 has no such key
    own = {entry[0]: coco_files(cfg, entry) for entry in entries}
    known = (_names_in(own.get(name), name) for name in cfg.DATASETS.TRAIN)
    return next((names for names in known if names is not None), None)


def coco_files(cfg: CfgNode, entry: Sequence[str]) -> tuple[str, str]:
    """Annotation file, turned into COCO's format, and image folder of an entry of a configuration's ``REGISTER``."""
    annotations, folder = entry_files(entry)
    return as_coco_file(annotations, folder, _voc_rules(cfg)) if os.path.exists(annotations) else (annotations, folder)


def _names_in(files: tuple[str, str] | None, name: str) -> tuple[str, ...] | None:
    """Class names of a set whose configuration gives it these files, or leaves it to what is registered."""
    if files is None or _registered.get(name) == files:
        return class_names(name)
    return read_class_names(files[0]) if os.path.isfile(files[0]) else None


def _find_class_names(dataset_name: str) -> None:
    """Lets the metadata of a dataset know its class names."""
    if dataset_name not in _registered:
        DatasetCatalog.get(dataset_name)  # a dataset that somebody else registered tells them by being loaded
        return
    annotation_file = _registered[dataset_name][0]
    if not os.path.exists(annotation_file):
        raise FileNotFoundError(annotation_file)
    MetadataCatalog.get(dataset_name).thing_classes = list(read_class_names(annotation_file))


def check_num_classes(dataset_names: Iterable[str], num_classes: int, key: str) -> None:
    """Checks that a model has as many classes as its datasets; a dataset of unknown classes passes.

    Args:
        dataset_names: as in ``DATASETS.TRAIN``.
        num_classes: the model's. key: the config key that sets it.

    Raises:
        DataError: the numbers differ.
    """
    for name in dataset_names:
        names = class_names(name)
        if names is not None and len(names) != num_classes:
            raise DataError(
                f"{key} is {num_classes}, but dataset {name} has {len(names)} classes. Set {key} to {len(names)}."
            )
