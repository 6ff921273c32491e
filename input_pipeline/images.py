"""From the image files that a user has to what is stored, and from there to what a model sees.

Stored is a grayscale JPEG. A grayscale JPEG that is small enough is kept byte
for byte, everything else (colour, PNG, more than 8 bits, too large) is turned
into one of quality 95. A model sees a square: the whole image is squeezed into
it. So do R2Gen and R2GenCMN where they evaluate; an aspect ratio is lost, but no
lung base is cropped away. Crops belong to augmentation, which happens inside the
training step.

DICOM is rendered to gray first, as a viewer would show it or as MIMIC-CXR-JPG's
images were made (see dicom.py).
"""

import hashlib
import io

import cv2
from etils import epath
import numpy as np
import PIL.Image
import PIL.ImageOps

from input_pipeline import dicom
from mcsam_jax.errors import UnreadableFile

JPEG_QUALITY = 95
cv2.setNumThreads(1)         # the pipeline has threads of its own
_ORIENTATION = 0x0112      # EXIF tag; 1 is upright
_PHOTOMETRIC = 262         # TIFF tag; 0: white is zero
# Read by Pillow itself. Its other formats are left out: some start programs (EPS), none holds a film.
FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM")


def load_jpeg(path: epath.Path, short_side: int, dicom_rendering: str = "voi") -> bytes:
  """Returns the image of a file as a grayscale JPEG whose shorter side is at most `short_side` pixels.

  Args:
    path: PNG, JPEG or another of FORMATS, or DICOM.
    short_side: pixels; never scaled up. 0: as it is.
    dicom_rendering: one of dicom.RENDERINGS; other formats do not ask for it.

  Raises:
    Unreadable: no such file, or it is no (whole) image.
  """
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UnreadableFile(path, error.strerror or str(error)) from error
  try:
    return to_jpeg(data, short_side, dicom_rendering)
  except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
    reason = ("no image: unknown format" if isinstance(error, PIL.UnidentifiedImageError) else
              f"the image can't be decoded: {error}")
    raise UnreadableFile(path, reason, hashlib.sha256(data).hexdigest()) from error


def to_jpeg(data: bytes, short_side: int, dicom_rendering: str = "voi") -> bytes:
  """Returns an encoded image as a grayscale JPEG, the very bytes where they are one that is small enough."""
  if dicom.is_dicom(data):
    gray = PIL.Image.fromarray(dicom.render(data, dicom_rendering))     # at full size, scaled down below
  else:
    with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
      pages = getattr(image, "n_frames", 1)
      if pages > 1 and image.format != "MPO":       # an MPO is a JPEG with smaller copies of it
        raise ValueError(f"a file of {pages} pages, expected one picture")
      gray_jpeg = image.format == "JPEG" and image.mode == "L"
      if short_side:    # a large JPEG is decoded at a half, a quarter or an eighth, never below twice what is needed:
        image.draft("L", (2 * short_side, 2 * short_side))                           # four times as fast
      image.load()                                  # a file that was cut fails here
      if gray_jpeg and image.getexif().get(_ORIENTATION, 1) == 1 and not 0 < short_side < min(image.size):
        return data
      white_is_zero = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0
      gray = to_grayscale(PIL.ImageOps.exif_transpose(image), white_is_zero)
  scale = short_side / min(gray.size)
  if 0 < scale < 1:
    gray = gray.resize([round(side * scale) for side in gray.size], PIL.Image.Resampling.BILINEAR)
  encoded = io.BytesIO()
  gray.save(encoded, "JPEG", quality=JPEG_QUALITY)
  return encoded.getvalue()


def to_grayscale(image: PIL.Image.Image, white_is_zero: bool = False) -> PIL.Image.Image:
  """Returns `image` in 8 bits; deeper ones are stretched from their darkest to their brightest pixel.

  Args:
    white_is_zero: as a TIFF may have it; Pillow minds that in 8 bits alone.

  Raises:
    ValueError: pixels that are no numbers.
  """
  if not image.mode.startswith(("I", "F")):
    return image.convert("L")
  deep = np.asarray(image, np.float64)              # Pillow would clip at 255
  if not np.isfinite(deep).all():
    raise ValueError("pixels that are no finite numbers")
  return PIL.Image.fromarray(dicom.stretch(-deep if white_is_zero else deep))


def decode(jpeg: bytes, image_size: int, out: np.ndarray | None = None) -> np.ndarray:
  """Returns a stored image as uint8 [image_size, image_size, 1], in `out` where that is given.

  An image of twice the size or more is averaged over areas, as a bilinear filter would skip pixels.
  """
  image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
  if out is None:
    out = np.empty((image_size, image_size, 1), np.uint8)
  if image.shape == (image_size, image_size):
    out[..., 0] = image
  else:
    kind = cv2.INTER_AREA if min(image.shape) >= 2 * image_size else cv2.INTER_LINEAR
    cv2.resize(image, (image_size, image_size), out[..., 0], interpolation=kind)
  return out
