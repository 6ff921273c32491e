"""Images in memory -> stored images, by the steps that the same images in files go through (images.py).

  bytes          the content of a file: PNG, JPEG, TIFF, BMP, WebP or DICOM.
  PIL image      as the file that it was opened from, if its pixels have not been read yet; otherwise as its pixels.
  uint8 [H, W]   gray values, 0 black and 255 white, as a PNG file that holds them.
  other [H, W]   uint16, integers and floats: stretched from their minimum to their maximum, like files of more than
                 8 bits.
  uint8 [H, W, 3]   colors, converted to luminance.
  uint8 [S, S, 1]   with the side S that the model sees: used as it is.
"""

import io

from ml_collections import ConfigDict
import numpy as np
import PIL.Image
import PIL.ImageFile

from input_pipeline import dicom, images
from input_pipeline.image_files.formats import FORMATS, is_color, ORIENTATION, to_grayscale
from input_pipeline.image_files.limits import check_size
from input_pipeline.image_files.shades import stretch_to_uint8
from mcsam_jax.errors import UnreadableFile

MemoryImage = bytes | PIL.Image.Image | np.ndarray


def store_image(image: MemoryImage, name: str, data: ConfigDict) -> tuple[bytes, bool]:
  """Returns an image as `images.decode` reads it, and whether it is in color.

  Args:
    image: see above.
    name: what errors call it.
    data: `config.data`; S is its `image_size`.

  Raises:
    UnreadableFile: it is not an image of a supported kind.
  """
  try:
    if isinstance(image, PIL.Image.Image):
      image = _read_original(image) or image
    if isinstance(image, bytes):
      jpeg = images.to_jpeg(image, data.short_side, data.dicom_rendering, data.max_image_pixels)
      return jpeg, not dicom.is_dicom(image[:dicom.HEAD_SIZE]) and is_color(image, data.max_image_pixels)
    if isinstance(image, np.ndarray):
      if image.dtype == np.uint8 and image.shape == (data.image_size, data.image_size, 1):
        return _to_png(PIL.Image.fromarray(image[..., 0])), False
      image = _array_to_image(image)
    check_size(image.size, data.max_image_pixels)
    in_color = _has_color(image)
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
      raise ValueError(f"it has {image.n_frames} pages, expected one image")    # pyright: ignore[reportAttributeAccessIssue]
    gray = to_grayscale(image)
    images.check_shades(gray)
    if (image.format == "JPEG" and image.mode == "L" and image.getexif().get(ORIENTATION, 1) == 1
        and not 0 < data.short_side < min(image.size)):
      return _to_png(image), in_color                       # the file would be stored byte for byte
    return images.gray_to_jpeg(gray, data.short_side), in_color
  except UnreadableFile:
    raise
  except Exception as error:            # for damaged images, decoders raise many types
    raise UnreadableFile(name, images.describe_decode_error(error)) from error


def _array_to_image(array: np.ndarray) -> PIL.Image.Image:
  """Returns an array [H, W] or [H, W, 3] as an image of 8 bits; raises ValueError for other arrays."""
  kind = f"an array of {array.dtype} {list(array.shape)}"
  is_color_array = array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 3
  if array.ndim != 2 and not is_color_array or array.dtype.kind not in "uif":
    raise ValueError(f"{kind}, expected gray values [height, width] of 8 or 16 bits or floats, or uint8 "
                     "[height, width, 3]")
  if not array.size:
    raise ValueError(f"{kind} has no pixel")
  if array.dtype == np.uint8:
    return PIL.Image.fromarray(np.ascontiguousarray(array))
  if not np.isfinite(array).all():
    raise ValueError("pixels that are not finite numbers")
  return PIL.Image.fromarray(stretch_to_uint8(array.astype(np.float64)))


def _has_color(image: PIL.Image.Image) -> bool:
  """Returns whether the pixels of an image are more than shades of gray."""
  if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;"):
    return False
  small = image.convert("RGB").resize((64, 64), PIL.Image.Resampling.BOX)
  return is_color(_to_png(small), 64 * 64)


def _read_original(image: PIL.Image.Image) -> bytes | None:
  """Returns the file of an image as `PIL.Image.open` has returned it; None once its pixels were read, or changed."""
  if (not isinstance(image, PIL.ImageFile.ImageFile) or not image.tile or image.fp is None
      or image.format not in (*FORMATS, "MPO")):
    return None
  position = image.fp.tell()
  image.fp.seek(0)
  data = image.fp.read()
  image.fp.seek(position)
  with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as opened:
    return data if (opened.size, opened.mode) == (image.size, image.mode) else None


def _to_png(image: PIL.Image.Image) -> bytes:
  encoded = io.BytesIO()
  image.save(encoded, "PNG", compress_level=1)
  return encoded.getvalue()
