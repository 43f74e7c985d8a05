import json
import logging
import re
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.data import DataError, class_names, register_datasets
from detr_distill.data.class_lists import compare_class_lists
from detr_distill.data.formats import Format, as_coco_file, recognise
from detr_distill.data.formats.voc import VocRules, read_voc
from detr_distill.data.records import load_records

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult>"
    "<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)


def entry(name="cat", box=(1, 2, 10, 20), difficult=0):
    return OBJECT.format(name=name, box=box, difficult=difficult)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    as_coco_file.cache_clear()
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    return tmp_path


def write(folder, stem, *objects, size=(40, 30), said=None):
    width, height = said or size
    text = f"<annotation>\n<size><width>{width}</width><height>{height}</height></size>\n" + "\n".join(objects)
    (folder / "Annotations" / f"{stem}.xml").write_text(text + "\n</annotation>")
    Image.new("RGB", size).save(folder / "JPEGImages" / f"{stem}.jpg")


def read(folder, rules=None):
    return read_voc(str(folder / "Annotations"), str(folder / "JPEGImages"), rules or VocRules())


def test_corners_that_count_from_one_become_continuous_edges(folder):
    write(folder, "a", entry(box=(1, 1, 40, 30)), entry("dog", (5, 6, 5, 6)))
    content = read(folder)
    assert [item["bbox"] for item in content["annotations"]] == [[0, 0, 40, 30], [4, 5, 1, 1]]
    assert [item["area"] for item in content["annotations"]] == [1200, 1]
    assert content["images"] == [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}]


def test_corners_that_count_from_zero_are_edges_already(folder):
    write(folder, "a", entry(box=(0, 0, 40, 30)))
    assert read(folder, VocRules(first_pixel=0))["annotations"][0]["bbox"] == [0, 0, 40, 30]
    with pytest.raises(DataError, match=r"a\.xml, line 3: .*VOC_FIRST_PIXEL 0"):
        read(folder)


@pytest.mark.parametrize(("rule", "expected"), [("ignore", [0, 1]), ("keep", [0, 0]), ("drop", [0])])
def test_difficult_objects(folder, rule, expected):
    write(folder, "a", entry(), entry(difficult=1 if rule == "keep" else "True"))
    assert [item["iscrowd"] for item in read(folder, VocRules(difficult=rule))["annotations"]] == expected


def test_classes_are_sorted_or_as_given(folder):
    write(folder, "a", entry("dog"), entry("cat"))
    assert [item["name"] for item in read(folder)["categories"]] == ["cat", "dog"]
    content = read(folder, VocRules(names=("owl", "dog", "cat")))
    assert [item["name"] for item in content["categories"]] == ["owl", "dog", "cat"]
    assert [item["category_id"] for item in content["annotations"]] == [2, 3]
    with pytest.raises(DataError, match=r"a\.xml, line 3: the class 'dog' is not in DATASETS\.CLASS_NAMES"):
        read(folder, VocRules(names=("cat",)))


def test_a_list_of_names_chooses_the_files(folder):
    for stem in ("a", "b", "c"):
        write(folder, stem, entry())
    names = folder / "ImageSets" / "Main" / "train.txt"
    names.write_text("c\n\na  1\n")
    content = read_voc(str(names), str(folder / "JPEGImages"), VocRules())
    assert [image["file_name"] for image in content["images"]] == ["c.jpg", "a.jpg"]
    names.write_text("a\nd\n")
    with pytest.raises(DataError, match=r"train\.txt, line 2: there is no d\.xml"):
        read_voc(str(names), str(folder / "JPEGImages"), VocRules())


def test_the_image_says_its_size(folder, caplog):
    write(folder, "a", entry(), said=(0, 0))
    with caplog.at_level(logging.WARNING):
        assert read(folder)["images"][0]["width"] == 40
    assert "1 XML files name no size (a.xml)" in caplog.text
    write(folder, "a", entry(), said=(80, 60))
    with pytest.raises(DataError, match=r"a\.xml: <size> is 80 x 60, but the image a\.jpg is 40 x 30"):
        read(folder)


def test_a_turned_photo_has_its_upright_size(folder):
    write(folder, "a", entry(), said=(30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "JPEGImages" / "a.jpg", exif=exif)
    image = read(folder)["images"][0]
    assert (image["width"], image["height"]) == (30, 40)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation>\n<object>", r"a\.xml, line 2: not XML"),
        ("<annotation>\n\n<object></object></annotation>", r"a\.xml, line 3: the object has no <name>"),
        (f"<annotation>{entry(box=('x', 1, 2, 3))}</annotation>", r"line 1: <bndbox> .*expected four numbers"),
        (f"<annotation>{entry(box=('nan', 1, 2, 3))}</annotation>", r"line 1: <bndbox> .*ends before it begins"),
        (f"<annotation>{entry(box=(9, 1, 2, 3))}</annotation>", r"line 1: <bndbox> .*ends before it begins"),
        ("<html><body/></html>", r"a\.xml is no annotation of Pascal VOC: it is a <html>"),
        ('<a:annotation xmlns:a="x"><a:object/></a:annotation>', r"a\.xml is no annotation of Pascal VOC"),
        (f"<annotation>{entry(difficult='maybe')}</annotation>", r"line 1: <difficult> is 'maybe'; expected 0 or 1"),
        ("<annotation><!--\n<object>\n-->\n<object></object></annotation>", r"line 4: the object has no <name>"),
        ("<annotation><object><name>cat</name></object></annotation>", r"line 1: <bndbox> .*expected four numbers"),
    ],
)
def test_faulty_files_are_named_with_their_line(folder, text, words):
    write(folder, "a")
    (folder / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=words):
        read(folder)


def test_an_image_that_is_missing_or_there_twice(folder):
    write(folder, "a", entry())
    Image.new("RGB", (40, 30)).save(folder / "JPEGImages" / "a.png")
    with pytest.raises(DataError, match=r"several images \(a\.jpg, a\.png\)"):
        read(folder)
    for image in (folder / "JPEGImages").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="no image of the name a"):
        read(folder)


def test_the_set_is_kept_as_coco_file(folder):
    write(folder, "a", entry())
    file, images = as_coco_file(str(folder / "Annotations"), str(folder / "JPEGImages"))
    assert images == str(folder / "JPEGImages")
    with open(file) as opened:
        assert json.load(opened) == read(folder)
    assert as_coco_file(str(folder / "Annotations"), images)[0] == file
    write(folder, "b", entry())
    as_coco_file.cache_clear()
    assert as_coco_file(str(folder / "Annotations"), images)[0] != file


def test_formats_are_recognised(folder):
    assert recognise("x.json") is Format.COCO
    assert recognise("data.yaml") is Format.YOLO
    assert recognise("train.txt") is Format.VOC
    with pytest.raises(DataError, match="holds no annotations"):
        recognise(str(folder / "Annotations"))
    write(folder, "a")
    assert recognise(str(folder / "Annotations")) is Format.VOC
    (folder / "Annotations" / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"both \.xml and \.txt"):
        recognise(str(folder / "Annotations"))


def test_a_registered_set_is_trained_and_measured_as_cocos(folder):
    write(folder, "a", entry(box=(0, 0, 9, 9)), entry("dog", (2, 2, 8, 8), difficult=1))
    name = f"voc_{folder.name}"
    words = [
        "DATASETS.VOC_FIRST_PIXEL",
        "0",
        "DATASETS.CLASS_NAMES",
        "('dog', 'cat')",
        "DATASETS.TRAIN",
        f"('{name}',)",
    ]
    cfg = build_config("", words)
    cfg.DATASETS.REGISTER = [[name, str(folder / "Annotations"), str(folder / "JPEGImages")]]
    (record,) = load_records(cfg)
    assert [(item["category_id"], item["bbox"], item["iscrowd"]) for item in record["annotations"]] == [
        (1, [0, 0, 9, 9], 0), (0, [2, 2, 6, 6], 1),
    ]  # fmt: skip
    assert class_names(name) == ("dog", "cat")
    assert Path(MetadataCatalog.get(name).json_file).is_file()


def test_a_box_outside_its_image_and_a_class_or_image_twice_are_named_by_the_user_s_own_files(folder):
    write(folder, "a", entry(), entry(box=(1, 2, 90, 20)))
    place = [str(folder / "Annotations"), str(folder / "JPEGImages")]
    register_datasets([[f"outside_{folder.name}", *place]])
    words = r"Annotations .*Annotations: 1 of 2 boxes .*a\.xml, line 4 of .*a\.jpg"
    with pytest.raises(DataError, match=re.compile(words, re.DOTALL)) as caught:
        DatasetCatalog.get(f"outside_{folder.name}")
    assert "cache" not in str(caught.value)
    write(folder, "b", entry("dog"))
    as_coco_file.cache_clear()
    register_datasets([[f"others_{folder.name}", *place]])
    with pytest.raises(DataError, match=r"(?s)different class lists.*Annotations \S+Annotations\)") as caught:
        compare_class_lists([("", f"outside_{folder.name}"), ("", f"others_{folder.name}")])
    assert "cache" not in str(caught.value)
    with pytest.raises(DataError, match=r"DATASETS\.CLASS_NAMES names the class 'cat' more than once"):
        read(folder, VocRules(names=("cat", "cat")))
    names = folder / "ImageSets" / "Main" / "train.txt"
    names.write_text("a\na\n")
    with pytest.raises(DataError, match=r"train\.txt names the image a\.jpg more than once"):
        read_voc(str(names), place[1], VocRules())
