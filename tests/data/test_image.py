from detr_distill.data import DataError, read_image

import cv2
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = (250, 10, 20)  # blue, upper left
    pixels[20:] = np.random.default_rng(0).integers(0, 255, (20, 60, 3))
    return pixels


def test_channel_order(tmp_path, picture):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, picture)
    assert (read_image(path) == picture).all()
    assert (read_image(path, "RGB") == picture[:, :, ::-1]).all()


def test_grey_sixteen_bit_palette_and_transparent_become_three_channels_of_eight_bits(tmp_path, picture):
    grey = (picture[:, :, 0].astype(np.uint16) * 257).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "sixteen.png"), grey)
    cv2.imwrite(str(tmp_path / "grey.png"), picture[:, :, 0])
    Image.fromarray(picture[:, :, ::-1]).quantize(16).save(tmp_path / "palette.png")
    Image.fromarray(picture[:, :, ::-1]).convert("RGBA").save(tmp_path / "alpha.png")
    for name in ("sixteen", "grey"):
        image = read_image(str(tmp_path / f"{name}.png"))
        assert image.dtype == np.uint8
        assert (image == picture[:, :, :1]).all()
    assert read_image(str(tmp_path / "palette.png")).shape == picture.shape
    assert (read_image(str(tmp_path / "alpha.png")) == picture).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_as_detectron2_reads_it(tmp_path, picture, orientation):
    from detectron2.data.detection_utils import read_image as reference

    exif = Image.Exif()
    exif[274] = orientation
    path = str(tmp_path / "a.jpg")
    Image.fromarray(cv2.GaussianBlur(picture, (9, 9), 0)[:, :, ::-1]).save(path, quality=98, subsampling=0, exif=exif)
    expected = reference(path, "BGR")
    image = read_image(path)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= 3  # two decoders round differently


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.98])
def test_a_truncated_file_is_refused_by_name(tmp_path, picture, suffix, kept):
    path = tmp_path / f"cut{suffix}"
    data = cv2.imencode(suffix, cv2.resize(picture, (300, 200)))[1].tobytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(DataError, match=rf"cut\{suffix} \(\d+ bytes\) is damaged, cut short"):
        read_image(str(path))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_complete_file_with_a_tail_passes(tmp_path, picture, suffix):
    path = tmp_path / f"tail{suffix}"
    path.write_bytes(cv2.imencode(suffix, picture)[1].tobytes() + b"\0" * 500)
    assert read_image(str(path)).shape == picture.shape


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jpg cannot be read: No such file"):
        read_image(str(tmp_path / "nowhere.jpg"))
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.jpg is empty"):
        read_image(str(tmp_path / "empty.jpg"))
    (tmp_path / "text.jpg").write_text("no image at all")
    with pytest.raises(DataError, match=r"text\.jpg .*not an image"):
        read_image(str(tmp_path / "text.jpg"))


def test_a_type_that_opencv_cannot_read_is_read_by_pillow(tmp_path, picture, monkeypatch):
    exif = Image.Exif()
    exif[274] = 3  # upside down
    Image.fromarray(picture[::-1, ::-1, ::-1]).save(tmp_path / "a.png", exif=exif)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    assert (read_image(str(tmp_path / "a.png")) == picture).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_decoder_that_fills_up_truncated_files_is_not_trusted(tmp_path, picture, monkeypatch, suffix):
    """OpenCV 4 returns a partly grey picture where OpenCV 5 returns none."""
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(cv2.imencode(suffix, picture)[1].tobytes()[:-100])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: picture)
    with pytest.raises(DataError, match="cut short"):
        read_image(str(path))
