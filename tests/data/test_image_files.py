"""Image files are looked for, and into their headers, before a run."""

from __future__ import annotations

import io

from detr_distill.data import DataError, image_files
from detr_distill.data.image_files import check_image_files, missing_files, plain_size

import cv2
import numpy as np
import pytest
from PIL import Image

GREY = np.full((24, 32, 3), 90, np.uint8)


def record(path, width=32, height=24):
    return {"file_name": str(path), "width": width, "height": height}


@pytest.fixture
def picture(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), GREY)
    return tmp_path / "a.png"


def test_headers_are_read_without_decoding(picture, monkeypatch):
    monkeypatch.setattr(image_files, "read_image", pytest.fail)
    unsized = {"file_name": str(picture)}
    remote = record("s3://bucket/b.png")
    assert check_image_files([record(picture), unsized, remote], "set") == 2


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
def test_every_usual_type_has_a_header(tmp_path, suffix, monkeypatch):
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), GREY)
    monkeypatch.setattr(image_files, "read_image", pytest.fail)
    check_image_files([record(tmp_path / f"a.{suffix}")], "set")


def test_plain_headers_are_read_without_pillow(tmp_path, monkeypatch):
    progressive = cv2.imencode(".jpg", GREY, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    for data in (progressive, *(cv2.imencode(suffix, GREY)[1].tobytes() for suffix in (".png", ".jpg"))):
        assert plain_size(data) == plain_size(data[:2048]) == (32, 24)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif)
    for data in (b"", b"\xff\xd8", progressive[:100], b"BM" + progressive, (tmp_path / "a.jpg").read_bytes()):
        assert plain_size(data) is None


@pytest.mark.parametrize(("orientation", "size"), [(1, (32, 24)), (3, (32, 24)), (6, (24, 32)), (8, (24, 32))])
def test_a_photograph_is_measured_upright(tmp_path, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif)
    check_image_files([record(tmp_path / "a.jpg", *size)], "set")
    with pytest.raises(DataError, match=f"is {size[0]} x {size[1]} pixels, .* says {size[1]} x {size[0]}"):
        check_image_files([record(tmp_path / "a.jpg", *size[::-1])], "set")


def test_missing_files_are_counted_and_named(tmp_path, picture):
    paths = [str(picture), *(str(tmp_path / "none" / f"{n}.png") for n in range(7))]
    assert missing_files(paths) == paths[1:]
    with pytest.raises(DataError, match=r"my set: 7 of its 8 image files are not there: .*4\.png and 2 more\. Correct"):
        check_image_files([record(path) for path in paths], "my set")


def test_all_faults_are_counted_and_some_named(tmp_path, picture):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    records = [record(picture), record(picture, 30, 24), record(tmp_path / "empty.png"), record(tmp_path / "text.png")]
    with pytest.raises(DataError, match=r"set: 3 of its 4 image files .*\n.*says 30 x 24.*\n.*is empty.*\n.*not an im"):
        check_image_files(records, "set")


def test_a_large_image_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    data = io.BytesIO()
    Image.fromarray(GREY).save(data, "png")
    (tmp_path / "a.png").write_bytes(data.getvalue())
    check_image_files([record(tmp_path / "a.png")], "set")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_file_cut_short_is_found_without_its_middle(tmp_path, suffix):
    """Its header is whole."""
    noise = np.random.default_rng(0).integers(0, 256, GREY.shape, dtype=np.uint8)
    data = cv2.imencode(f".{suffix}", noise)[1].tobytes()
    (tmp_path / f"a.{suffix}").write_bytes(data[:-40])
    with pytest.raises(DataError, match=rf"a\.{suffix} \(\d+ bytes\) is damaged, cut short"):
        check_image_files([record(tmp_path / f"a.{suffix}")], "set")


def test_a_slow_disk_ends_the_reading(picture):
    wrong = record(picture, 1, 1)
    assert check_image_files([wrong], "set", seconds=-1) == 0
    with pytest.raises(DataError, match="1 x 1"):
        check_image_files([wrong], "set")
