"""Image files -> stored grayscale JPEGs -> model input.

Records store grayscale JPEGs. A grayscale JPEG that is small enough is kept byte for byte; every other image (color,
PNG, more than 8 bits, too large) is converted to a JPEG of quality 95. The model input is a square: the whole image is
resized to it without preserving the aspect ratio, as R2Gen and R2GenCMN do in evaluation. This distorts the image, but
crops nothing, such as the base of a lung. Random crops are part of augmentation, inside the jitted training step.

DICOM files are first rendered to grayscale, as a viewer would show them or as in MIMIC-CXR-JPG (dicom.py).
"""

import hashlib
import io

import cv2
from etils import epath
import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin

from input_pipeline import dicom
from mcsam_jax.errors import UnreadableFile

JPEG_QUALITY = 95
cv2.setNumThreads(1)         # images are decoded by the threads of the pipeline
_ORIENTATION = 0x0112        # EXIF tag; 1 is upright
_PHOTOMETRIC = 262           # TIFF tag; 0: white is zero
_EXPLAINED_ERRORS = OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError      # with a message for users
# Formats that Pillow decodes itself. Others are excluded: some start external programs (EPS), and none of them is used
# for radiographs.
FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM")


def load_jpeg(path: epath.Path, short_side: int, dicom_rendering: str = "voi") -> bytes:
  """Returns the image in a file as a grayscale JPEG whose shorter side has at most `short_side` pixels.

  Args:
    path: a file in one of FORMATS, or DICOM.
    short_side: pixels; images are never enlarged. 0: the image keeps its size.
    dicom_rendering: one of dicom.RENDERINGS; ignored for other formats.

  Raises:
    UnreadableFile: there is no such file, or it is not a complete image.
  """
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UnreadableFile(path, error.strerror or str(error)) from error
  try:
    return to_jpeg(data, short_side, dicom_rendering)
  except Exception as error:            # for damaged files, decoders also raise TypeError, IndexError, struct.error
    raise UnreadableFile(path, describe_decode_error(error), hashlib.sha256(data).hexdigest()) from error


def describe_decode_error(error: Exception) -> str:
  """Returns the reason that a user reads for an exception of a decoder."""
  if isinstance(error, PIL.UnidentifiedImageError):
    return "not an image: unknown format"
  if isinstance(error, _EXPLAINED_ERRORS):
    return f"the image can't be decoded: {error}"
  return f"the image can't be decoded: damaged ({type(error).__name__})"


def to_jpeg(data: bytes, short_side: int, dicom_rendering: str = "voi") -> bytes:
  """Returns an encoded image as a grayscale JPEG; `data` itself if it already is one that is small enough.

  Args and size limits are those of `load_jpeg`.
  """
  if dicom.is_dicom(data):
    gray = PIL.Image.fromarray(dicom.render(data, dicom_rendering))     # at full size, scaled down below
  else:
    with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
      num_pages = getattr(image, "n_frames", 1)
      if num_pages > 1 and image.format != "MPO":   # an MPO file is a JPEG with smaller copies of the same image
        raise ValueError(f"a file with {num_pages} pages, expected one image")
      is_gray_jpeg = image.format == "JPEG" and image.mode == "L"
      if short_side:
        # Decodes a large JPEG at 1/2, 1/4 or 1/8 of its size, but at least twice the final size: four times as fast.
        image.draft("L", (2 * short_side, 2 * short_side))
      image.load()                                  # raises an error for a truncated file
      if is_gray_jpeg and is_upright(image) and not 0 < short_side < min(image.size):
        return data
      gray = to_upright_grayscale(image)
  return gray_to_jpeg(gray, short_side)


def to_upright_grayscale(image: PIL.Image.Image) -> PIL.Image.Image:
  """Returns an opened image in 8-bit grayscale, turned as its EXIF orientation says; see `to_grayscale`."""
  white_is_zero = isinstance(image, PIL.TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0
  return to_grayscale(PIL.ImageOps.exif_transpose(image), white_is_zero)


def gray_to_jpeg(gray: PIL.Image.Image, short_side: int) -> bytes:
  """Returns an 8-bit grayscale image as a JPEG whose shorter side has at most `short_side` pixels; 0: no limit."""
  scale = short_side / min(gray.size)
  if 0 < scale < 1:
    width, height = gray.size
    gray = gray.resize((round(width * scale), round(height * scale)), PIL.Image.Resampling.BILINEAR)
  encoded = io.BytesIO()
  gray.save(encoded, "JPEG", quality=JPEG_QUALITY)
  return encoded.getvalue()


def is_upright(image: PIL.Image.Image) -> bool:
  """Returns whether an image is shown as it is stored, according to its EXIF orientation."""
  return image.getexif().get(_ORIENTATION, 1) == 1


def to_grayscale(image: PIL.Image.Image, white_is_zero: bool = False) -> PIL.Image.Image:
  """Returns `image` in 8-bit grayscale; deeper images are stretched from their minimum to their maximum.

  Args:
    white_is_zero: whether 0 is white, as TIFF allows; Pillow itself respects this only for 8-bit images.

  Raises:
    ValueError: pixels are NaN or infinite.
  """
  if not image.mode.startswith(("I", "F")):
    return image.convert("L")
  values = np.asarray(image, np.float64)            # Pillow would clip values at 255
  if not np.isfinite(values).all():
    raise ValueError("pixels that are not finite numbers")
  return PIL.Image.fromarray(dicom.stretch_to_uint8(-values if white_is_zero else values))


def decode(jpeg: bytes, image_size: int) -> np.ndarray:
  """Returns a stored JPEG as the model sees it, uint8 [image_size, image_size, 1].

  The pipeline decodes with TensorFlow (pipeline.py) and resizes with `resize`. Both decoders are libjpeg-turbo with its
  accurate integer transform, so the pixels are equal.

  Raises:
    ValueError: the JPEG can't be decoded.
  """
  image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
  if image is None:
    raise ValueError("a stored image is not a JPEG that can be decoded")
  return resize(image, np.empty((image_size, image_size, 1), np.uint8))


def resize(image: np.ndarray, out: np.ndarray) -> np.ndarray:
  """Resizes a grayscale image, uint8 [height, width] or [height, width, 1], to fill `out`, uint8 [size, size, 1].

  Images of at least twice that size are averaged over areas, because bilinear interpolation would skip pixels.

  Returns:
    out.
  """
  size = len(out)
  if image.shape[:2] == (size, size):
    out[..., 0] = image.reshape(size, size)
  else:
    interpolation = cv2.INTER_AREA if min(image.shape[:2]) >= 2 * size else cv2.INTER_LINEAR
    cv2.resize(image, (size, size), out[..., 0], interpolation=interpolation)
  return out
