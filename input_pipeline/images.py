"""Image files -> stored grayscale JPEGs -> model input.

Records store grayscale JPEGs. A grayscale JPEG that is small enough is kept byte for byte; every other image (color,
PNG, more than 8 bits, too large) is converted to a JPEG of quality 95. The model input is a square: the whole image is
resized to it without preserving the aspect ratio, as R2Gen and R2GenCMN do in evaluation. This distorts the image, but
crops nothing, such as the base of a lung. Random crops are part of augmentation, inside the jitted training step.

DICOM files are first rendered to grayscale, as a viewer would show them or as in MIMIC-CXR-JPG (package dicom).
"""

import hashlib
import io

import cv2
from etils import epath
import numpy as np
import PIL.Image

from input_pipeline import dicom
from input_pipeline.dicom.errors import ignore_warning, Warn
from input_pipeline.image_files.files import read_regular
from input_pipeline.image_files.formats import open_image, ORIENTATION, to_grayscale
from input_pipeline.image_files.limits import MAX_PIXELS
from mcsam_jax.errors import UnreadableFile

JPEG_QUALITY = 95
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"                       # markers of JPEG
_PNG, _PNG_END = b"\x89PNG", b"IEND\xaeB`\x82"
cv2.setNumThreads(1)         # images are decoded by the threads of the pipeline
_EXPLAINED_ERRORS = OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError      # with a message for users


class UndecodableJpeg(ValueError):
  """A stored image that can't be decoded."""


def load_jpeg(path: epath.Path, short_side: int, dicom_rendering: str = "voi", max_pixels: int = MAX_PIXELS,
              warn: Warn = ignore_warning) -> bytes:
  """Returns the image in a file as a grayscale JPEG whose shorter side has at most `short_side` pixels.

  Args:
    path: a file in one of formats.FORMATS, JPEG 2000, or DICOM.
    short_side: pixels; images are never enlarged. 0: the image keeps its size.
    dicom_rendering: one of dicom.RENDERINGS; ignored for other formats.
    max_pixels: larger images are refused before they are decoded.
    warn: takes what was odd about the file, if the image could be read nevertheless.

  Raises:
    UnreadableFile: there is no such file, or it is not a complete image.
  """
  data = read_regular(path, max_pixels)
  try:
    return to_jpeg(data, short_side, dicom_rendering, max_pixels, warn)
  except Exception as error:            # for damaged files, decoders also raise TypeError, IndexError, struct.error
    raise UnreadableFile(path, describe_decode_error(error), hashlib.sha256(data).hexdigest()) from error


def describe_decode_error(error: Exception) -> str:
  """Returns the reason that a user reads for an exception of a decoder."""
  if isinstance(error, PIL.UnidentifiedImageError):
    return "not an image: unknown format"
  if isinstance(error, _EXPLAINED_ERRORS):
    return f"the image can't be decoded: {' '.join(str(error).split())}"
  return f"the image can't be decoded: damaged ({type(error).__name__})"


def to_jpeg(data: bytes, short_side: int, dicom_rendering: str = "voi", max_pixels: int = MAX_PIXELS,
            warn: Warn = ignore_warning) -> bytes:
  """Returns an encoded image as a grayscale JPEG; `data` itself if it already is one that is small enough.

  Args and size limits are those of `load_jpeg`.

  Raises:
    ValueError: the image has only one shade, several pages, or too many pixels.
    Exception: it is damaged.
  """
  if dicom.is_dicom(data[:dicom.HEAD_SIZE]):
    # At full size, scaled down below.
    gray = PIL.Image.fromarray(dicom.render(data, dicom_rendering, max_pixels, warn))
  else:
    with open_image(data, max_pixels) as image:
      is_gray_jpeg = image.format == "JPEG" and image.mode == "L" and image.getexif().get(ORIENTATION, 1) == 1
      if short_side:
        # Decodes a large JPEG at 1/2, 1/4 or 1/8 of its size, but at least twice the final size: four times as fast.
        image.draft("L", (2 * short_side, 2 * short_side))
      image.load()                                  # raises an error for a truncated file
      is_stored_form = is_gray_jpeg and not 0 < short_side < min(image.size)
      gray = image.copy() if is_stored_form else to_grayscale(image)
    check_shades(gray)
    if is_stored_form:
      return data
  return gray_to_jpeg(gray, short_side)


def gray_to_jpeg(gray: PIL.Image.Image, short_side: int) -> bytes:
  """Returns an 8-bit grayscale image as a JPEG whose shorter side has at most `short_side` pixels; 0: no limit."""
  scale = short_side / min(gray.size)
  if 0 < scale < 1:
    width, height = gray.size
    gray = gray.resize((max(round(width * scale), 1), max(round(height * scale), 1)), PIL.Image.Resampling.BILINEAR)
  encoded = io.BytesIO()
  gray.save(encoded, "JPEG", quality=JPEG_QUALITY)
  return encoded.getvalue()


def check_shades(gray: PIL.Image.Image) -> None:
  """Raises ValueError for a grayscale image that has a single shade."""
  darkest, brightest = gray.getextrema()
  if darkest == brightest:
    raise ValueError("an image of a single shade: no film was exposed")


def decode(jpeg: bytes, image_size: int) -> np.ndarray:
  """Returns a stored image as the model sees it, uint8 [image_size, image_size, 1].

  Args:
    jpeg: a grayscale JPEG, or a PNG (of an image in memory, which isn't to lose anything).
    image_size: side of the result.

  Raises:
    UndecodableJpeg: it is damaged or cut off.
  """
  return decode_into(jpeg, np.empty((image_size, image_size, 1), np.uint8))


def decode_into(jpeg: bytes, out: np.ndarray) -> np.ndarray:
  """Writes a stored image as the model sees it into `out`, uint8 [size, size, 1], and returns that.

  Raises:
    UndecodableJpeg: it is damaged or cut off.
  """
  if not _is_complete(jpeg):
    raise UndecodableJpeg("a stored image is not a complete JPEG")
  image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
  if image is None:
    raise UndecodableJpeg("a stored image is not a JPEG that can be decoded")
  return resize(image, out)


def _is_complete(data: bytes) -> bool:
  """Returns whether a JPEG or PNG has its end; OpenCV fills the missing part of one that was cut off with gray."""
  if data.startswith(_PNG):
    return data.endswith(_PNG_END)
  # The last scan of a JPEG ends with a marker, after which other bytes may follow; inside a scan no marker can occur.
  return data.endswith(_END_OF_IMAGE) or data.find(_END_OF_IMAGE, data.rfind(_START_OF_SCAN) + 1) >= 0


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
