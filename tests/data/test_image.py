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


def test_opencv_is_silent_about_what_is_read(tmp_path, picture, capfd):
    for name, grey in (
        ("float.tif", picture[:, :, 0] / np.float32(255)),
        ("whole.tif", picture[:, :, 0] * np.int32(257)),
    ):
        Image.fromarray(grey).save(tmp_path / name)
        assert (read_image(str(tmp_path / name)) == picture[:, :, :1]).all()
    assert capfd.readouterr().err == ""


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


FORMS = {
    "cmyk.jpg": lambda rgb: rgb.convert("CMYK"),
    "cmyk.tif": lambda rgb: rgb.convert("CMYK"),
    "grey_alpha.png": lambda rgb: rgb.convert("LA"),
    "bits.png": lambda rgb: rgb.convert("1"),
    "palette.gif": lambda rgb: rgb.quantize(16),
    "palette.bmp": lambda rgb: rgb.quantize(16),
    "rgb.webp": lambda rgb: rgb,
}


@pytest.mark.parametrize("name", FORMS)
def test_other_forms_of_colour_as_pillow_reads_them(tmp_path, picture, name):
    image = FORMS[name](Image.fromarray(cv2.GaussianBlur(picture, (9, 9), 0)[:, :, ::-1]))
    image.save(tmp_path / name, quality=98)
    with Image.open(tmp_path / name) as stored:
        expected = np.asarray(stored.convert("RGB")).astype(int)
    assert np.abs(read_image(str(tmp_path / name), "RGB") - expected).max() <= 6


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("name", ["grey.png", "colour.png", "grey.tif", "colour.tif"])
def test_a_deep_image_is_scaled_by_the_depth_of_its_content(tmp_path, picture, bits, name):
    pixels = picture[:, :, 0] if name.startswith("grey") else picture
    cv2.imwrite(str(tmp_path / name), pixels.astype(np.uint16) << (bits - 8))
    image = read_image(str(tmp_path / name))
    assert image.dtype == np.uint8
    assert (image == (picture[:, :, :1] if name.startswith("grey") else picture)).all()


@pytest.mark.parametrize("scale", [1, 1 / 255])
@pytest.mark.parametrize("name", ["grey.tif", "colour.tif", "colour.pfm"])
def test_floating_point_from_0_to_1_or_to_255(tmp_path, picture, name, scale):
    pixels = picture[:, :, 0] if name.startswith("grey") else picture
    cv2.imwrite(str(tmp_path / name), (pixels * scale).astype(np.float32))
    assert (read_image(str(tmp_path / name)) == (picture[:, :, :1] if name.startswith("grey") else picture)).all()


def test_deep_images_are_said_once(tmp_path, picture, caplog, monkeypatch):
    monkeypatch.setattr("detr_distill.data.image._warned", set())
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), picture.astype(np.uint16) * 16)
        read_image(str(tmp_path / name))
    (message,) = [entry.getMessage() for entry in caplog.records]
    assert "a.png has uint16 values from 0 to " in message and "read as 12 bits" in message


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_drawing_in_transparency_alone_is_laid_on_white(tmp_path, picture, dtype):
    ink = np.zeros((40, 60, 4), dtype)
    ink[10:20, 10:50, 3] = np.iinfo(dtype).max
    cv2.imwrite(str(tmp_path / "ink.png"), ink)
    image = read_image(str(tmp_path / "ink.png"))
    assert (image[10:20, 10:50] == 0).all() and (image[:10] == 255).all()
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((40, 60, 3), np.uint8))
    assert not read_image(str(tmp_path / "black.png")).any()


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


@pytest.mark.parametrize("side", [30_000, 200_000])
def test_a_header_of_too_many_pixels_is_refused_by_name(tmp_path, side):
    data = bytearray(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes())
    data[16:24] = side.to_bytes(4, "big") * 2
    (tmp_path / "huge.png").write_bytes(data)
    with pytest.raises(DataError, match=r"huge\.png .*(damaged|too large)"):
        read_image(str(tmp_path / "huge.png"))
