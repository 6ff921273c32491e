"""Stored images: which keep their bytes, how others are converted, and errors that name the file."""

import hashlib
import io
import pathlib

from etils import epath
import numpy as np
import PIL.Image
import pytest

from input_pipeline import images
from mcsam_jax.errors import UnreadableFile


def encode(pixels, kind, **options):
  """Returns an image as a file in a format of Pillow."""
  data = io.BytesIO()
  PIL.Image.fromarray(pixels).save(data, kind, **options)
  return data.getvalue()


def read_size(jpeg):
  """Returns (width, height) of a grayscale JPEG."""
  image = PIL.Image.open(io.BytesIO(jpeg))
  assert image.format == "JPEG" and image.mode == "L"
  return image.size


CASES = pathlib.Path(__file__).parents[1] / "cases" / "mutated"
GRADIENT = np.tile(np.arange(120, dtype=np.uint8) * 2, (80, 1))     # 80 rows, 120 columns
NOISE = np.random.default_rng(0).integers(0, 256, (80, 120), np.uint8)


def test_small_gray_jpeg_is_kept_byte_for_byte():
  data = encode(GRADIENT, "JPEG", quality=80)
  for short_side in (0, 80, 256):
    assert images.to_jpeg(data, short_side) == data
  assert images.to_jpeg(data, 79) != data


def test_shorter_side_is_scaled_and_color_becomes_grayscale():
  for pixels in (GRADIENT, np.stack([GRADIENT] * 3, -1)):
    data = encode(pixels, "PNG")
    assert read_size(images.to_jpeg(data, 40)) == (60, 40)
    assert read_size(images.to_jpeg(data, 256)) == read_size(images.to_jpeg(data, 0)) == (120, 80)
    assert np.abs(images.decode(images.to_jpeg(data, 0), 80)[40, :, 0] - np.linspace(0, 238, 80)).max() < 4


def test_sixteen_bit_images_are_stretched_to_eight():
  deep = encode(GRADIENT.astype(np.uint16) * 10 + 500, "PNG")
  image = images.decode(images.to_jpeg(deep, 0), 80)
  assert image.min() < 5 and image.max() > 250 and np.all(np.diff(image[40, :, 0].astype(int)) >= -2)


def test_exif_orientation_is_applied():
  exif = PIL.Image.Exif()
  exif[0x0112] = 6                                  # rotated by 90 degrees
  assert read_size(images.to_jpeg(encode(GRADIENT, "JPEG", exif=exif), 0)) == (80, 120)


def test_decode_resizes_the_whole_image_to_a_square():
  image = images.decode(encode(GRADIENT, "JPEG", quality=95), 40)
  assert image.shape == (40, 40, 1) and image.dtype == np.uint8
  assert image[20, 0, 0] < 10 and image[20, -1, 0] > 228          # both edges are still there


@pytest.mark.parametrize("content", [None, b"", b"no image", encode(NOISE, "JPEG")[:3000],
                                     encode(NOISE, "PNG")[:3000]],
                         ids=["missing", "empty", "text", "jpeg", "png"])
def test_unreadable_files_are_named(content, tmp_path):
  if content is not None:
    (tmp_path / "x.jpg").write_bytes(content)
  with pytest.raises(UnreadableFile) as error:
    images.load_jpeg(epath.Path(tmp_path / "x.jpg"), 256)
  assert error.value.path.endswith("x.jpg") and error.value.reason and "\n" not in str(error.value)
  assert error.value.sha256 == ("" if content is None else hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"\xff\xda with markers \xff\xd9"}],
                         ids=["baseline", "progressive", "markers in a comment"])
def test_a_stored_image_that_is_cut_off_anywhere_is_an_error(options):
  jpeg = encode(NOISE, "JPEG", quality=90, **options)
  for length in (*range(700), *range(700, len(jpeg) - 1, 97), len(jpeg) - 2, len(jpeg) - 1):
    with pytest.raises(images.UndecodableJpeg):
      images.decode(jpeg[:length], 16)
  np.testing.assert_array_equal(images.decode(jpeg + b"trailing bytes", 16), images.decode(jpeg, 16))


def test_a_png_loses_nothing_and_is_refused_when_cut_off():
  square = NOISE[:, :80]
  png = encode(square, "PNG")
  np.testing.assert_array_equal(images.decode(png, 80)[..., 0], square)
  for length in range(0, len(png), 31):
    with pytest.raises(images.UndecodableJpeg):
      images.decode(png[:length], 16)


@pytest.mark.parametrize("path", sorted(path for path in CASES.iterdir() if path.suffix not in (".dcm", ".json")),
                         ids=lambda path: path.name)
def test_files_with_changed_bytes_are_refused_by_name(path):
  """On these, Pillow raises TypeError, OverflowError, IndexError and struct.error."""
  with pytest.raises(UnreadableFile) as error:
    images.load_jpeg(epath.Path(path), 256)
  assert error.value.path == str(path) and "can't be decoded" in error.value.reason


def test_a_tiff_of_two_pages_is_refused_wherever_it_is_cut(tmp_path):
  data, path = encode_pages(NOISE, GRADIENT), epath.Path(tmp_path / "cut.tif")
  for length in range(8, len(data), 97):
    path.write_bytes(data[:length])
    with pytest.raises(UnreadableFile):
      images.load_jpeg(path, 64)


def encode_pages(first, second):
  """Returns a TIFF with two pages."""
  buffer = io.BytesIO()
  PIL.Image.fromarray(first).save(buffer, "TIFF", save_all=True, append_images=[PIL.Image.fromarray(second)])
  return buffer.getvalue()
