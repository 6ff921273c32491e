"""Image files in the formats of Pillow -> grayscale, with all the bits that they have, or whether they are in color.

Pillow keeps 16 bits per pixel in grayscale, but only 8 in color, and with an alpha channel; OpenCV reads those. Both,
and JPEG 2000, may hang or crash for damaged files, and are decoded in another process.
"""

import io
import re
import struct
import warnings

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin

from input_pipeline.image_files import decoder_process
from input_pipeline.image_files.deep_tiff import read_deep_channels, TIFF_MARKS
from input_pipeline.image_files.limits import check_size
from input_pipeline.image_files.shades import is_finite, stretch_to_uint8, to_luminance

# Formats that Pillow decodes itself. Others are excluded: some start external programs (EPS), and none of them is used
# for radiographs.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM")
ORIENTATION = 0x0112                   # EXIF tag; 1 is upright
_PHOTOMETRIC = 262                     # TIFF tag; 0: white is zero
# Scans of a progressive JPEG, times its pixels. Usually there are 10; each takes time for all pixels, but few bytes.
_MAX_SCANNED_PIXELS = 2 * 10 ** 9
_JPEG_2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
# About files that are read nevertheless, or refused with a better sentence.
warnings.filterwarnings("ignore", module="PIL")
# An image is in color if the channels of so many of its pixels differ by more than JPEG noise.
_MIN_COLOR_RANGE, _MIN_COLOR_FRACTION = 32, 0.1


def open_image(data: bytes, max_pixels: int) -> PIL.Image.Image:
  """Returns an image that may not be decoded yet.

  Color of 16 bits is returned in grayscale.

  Args:
    data: the file.
    max_pixels: larger images are refused before they are decoded.

  Raises:
    ValueError: it is too large, has several pages, or can't be decoded.
    Exception: for damaged files, Pillow raises almost any type.
  """
  if data.startswith(_JPEG_2000):
    num_pixels, channels, depth = _read_jpeg_2000_size(data, max_pixels)
    kind = "deep_color" if channels > 1 and depth > 8 else "jpeg_2000"
    pixels = decoder_process.decode(kind, data, num_pixels * min(channels, 4), max_pixels=max_pixels)
    return PIL.Image.fromarray(to_luminance(pixels) if kind == "deep_color" and pixels.ndim == 3 else pixels)
  if (size := _find_deep_color(data)) is not None:
    check_size(size, max_pixels)
    pixels = decoder_process.decode("deep_color", data, 4 * size[0] * size[1])
    return PIL.Image.fromarray(to_luminance(pixels) if pixels.ndim == 3 else pixels)
  if data[:4] in TIFF_MARKS and (pixels := read_deep_channels(data, max_pixels)) is not None:
    return PIL.Image.fromarray(to_luminance(pixels) if pixels.ndim == 3 else pixels)
  image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
  check_size(image.size, max_pixels)
  scans = data.count(b"\xff\xda") if data.startswith(b"\xff\xd8") else 0
  if scans * image.width * image.height > _MAX_SCANNED_PIXELS:
    raise ValueError(f"a JPEG with {scans} scans, too many for its size")
  num_pages = getattr(image, "n_frames", 1)
  if num_pages > 1 and image.format != "MPO":       # an MPO file is a JPEG with smaller copies of the same image
    raise ValueError(f"a file with {num_pages} pages, expected one image")
  return image


def to_grayscale(image: PIL.Image.Image) -> PIL.Image.Image:
  """Returns an image in 8-bit grayscale, upright; deeper images are stretched from their minimum to their maximum.

  Raises:
    ValueError: pixels are NaN or infinite.
  """
  # Pillow itself respects TIFF's `0 is white` only for 8-bit images.
  white_is_zero = isinstance(image, PIL.TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0
  image = PIL.ImageOps.exif_transpose(image)
  if not image.mode.startswith(("I", "F")):
    return image.convert("L")
  values = np.asarray(image)                        # Pillow would clip values at 255
  if not is_finite(values):
    raise ValueError("pixels that are not finite numbers")
  return PIL.Image.fromarray(stretch_to_uint8(values, invert=white_is_zero))


def is_color(data: bytes, max_pixels: int) -> bool:
  """Returns whether an image file in a format of Pillow contains more than shades of gray."""
  with open_image(data, max_pixels) as image:
    if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;"):
      return False
    image.draft("RGB", (128, 128))
    channels = np.asarray(image.convert("RGB").resize((64, 64), PIL.Image.Resampling.BOX), int)
  return bool((np.ptp(channels, axis=-1) > _MIN_COLOR_RANGE).mean() > _MIN_COLOR_FRACTION)


def _find_deep_color(data: bytes) -> tuple[int, int] | None:
  """Returns (width, height) of a PNG or PPM whose pixels have several channels of 16 bits; None for other files."""
  if data.startswith(b"\x89PNG\r\n\x1a\n") and data[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06"):
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
  space = rb"(?:\s|#[^\n]*\n)+"                      # a comment counts as space
  header = re.match(rb"P6%b(\d{1,9})%b(\d{1,9})%b(\d{1,5})\s" % (space, space, space), data[:1024])
  if header and int(header[3]) > 255:
    return int(header[1]), int(header[2])
  return None


def _read_jpeg_2000_size(data: bytes, max_pixels: int) -> tuple[int, int, int]:
  """Returns the number of pixels, channels, and bits of a channel of a JPEG 2000 file; ValueError if it is too large.

  They are in the first segment of the codestream (SIZ of ISO/IEC 15444-1).
  """
  start = data.find(b"\xff\x4f\xff\x51")
  if start < 0 or len(data) < start + 43:
    raise ValueError("a JPEG 2000 file without an image")
  right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
  size = max(right - left, 0), max(bottom - top, 0)
  check_size(size, max_pixels)
  channels, depth = struct.unpack_from(">HB", data, start + 40)
  return size[0] * size[1], max(channels, 1), (depth & 0x7F) + 1
