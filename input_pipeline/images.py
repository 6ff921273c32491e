"""From the image files that a user has to what is stored, and from there to what a model sees.

Stored is a grayscale JPEG. A grayscale JPEG that is small enough is kept byte
for byte, everything else (colour, PNG, more than 8 bits, too large) is turned
into one of quality 95. A model sees a square: the whole image is squeezed into
it with an antialiased bilinear filter. So do R2Gen and R2GenCMN where they
evaluate; an aspect ratio is lost, but no lung base is cropped away. Crops belong
to augmentation, which happens inside the training step.

DICOM is read as a viewer would show it: rescaled, through its first window or
lookup table, and with MONOCHROME1 inverted, so that bone is bright.
"""

import io

from etils import epath
import numpy as np
import PIL.Image
import PIL.ImageOps
import pydicom
import pydicom.pixels

from mcsam_jax.errors import UserError

JPEG_QUALITY = 95
_ORIENTATION = 0x0112      # EXIF tag; 1 is upright


def load_jpeg(path: epath.Path, short_side: int, record: str) -> bytes:
  """Returns the image of a file as a grayscale JPEG whose shorter side is at most `short_side` pixels.

  Args:
    path: PNG, JPEG or anything else that Pillow reads, or DICOM.
    short_side: pixels; never scaled up. 0: as it is.
    record: id of the record that the image belongs to, for the message.

  Raises:
    UserError: no such file, or it is no (whole) image.
  """
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UserError(f"record {record}: image {path} cannot be read ({error.strerror or error}); put it "
                    "there or take the record out") from error
  try:
    return to_jpeg(data, short_side)
  except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
    reason = "unknown format" if isinstance(error, PIL.UnidentifiedImageError) else error
    raise UserError(f"record {record}: {path} is no image that can be read ({reason}); replace it or take "
                    "the record out") from error


def to_jpeg(data: bytes, short_side: int) -> bytes:
  """Returns an encoded image as a grayscale JPEG, the very bytes where they are one that is small enough."""
  if data[128:132] == b"DICM":
    gray = dicom_to_grayscale(data)
  else:
    with PIL.Image.open(io.BytesIO(data)) as image:
      image.load()                                  # a file that was cut fails here
      if (image.format == "JPEG" and image.mode == "L" and image.getexif().get(_ORIENTATION, 1) == 1
          and not 0 < short_side < min(image.size)):
        return data
      gray = to_grayscale(PIL.ImageOps.exif_transpose(image))
  scale = short_side / min(gray.size)
  if 0 < scale < 1:
    gray = gray.resize([round(side * scale) for side in gray.size], PIL.Image.Resampling.BILINEAR)
  encoded = io.BytesIO()
  gray.save(encoded, "JPEG", quality=JPEG_QUALITY)
  return encoded.getvalue()


def to_grayscale(image: PIL.Image.Image) -> PIL.Image.Image:
  """Returns `image` in 8 bits; deeper ones are stretched from their darkest to their brightest pixel."""
  if not image.mode.startswith(("I", "F")):
    return image.convert("L")
  return _stretch(np.asarray(image, np.float64))    # converting by Pillow would clip at 255


def dicom_to_grayscale(data: bytes) -> PIL.Image.Image:
  """Returns the image of a DICOM file in 8 bits.

  Raises:
    ValueError: no image in it, or one in a compression that pydicom lacks a decoder for.
  """
  try:
    dicom = pydicom.dcmread(io.BytesIO(data))
    pixels = pydicom.pixels.apply_rescale(dicom.pixel_array, dicom)
    pixels = np.asarray(pydicom.pixels.apply_voi_lut(pixels, dicom, index=0), np.float64)
  except (AttributeError, RuntimeError, NotImplementedError, EOFError) as error:
    raise ValueError(str(error)) from error
  if pixels.ndim != 2:
    raise ValueError(f"expected one grayscale image, found pixels of shape {pixels.shape}")
  return _stretch(-pixels if dicom.PhotometricInterpretation == "MONOCHROME1" else pixels)


def _stretch(deep: np.ndarray) -> PIL.Image.Image:
  low, high = deep.min(), deep.max()
  return PIL.Image.fromarray(np.rint((deep - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))


def decode(jpeg: bytes, image_size: int) -> np.ndarray:
  """Returns a stored image as uint8 [image_size, image_size, 1]."""
  with PIL.Image.open(io.BytesIO(jpeg)) as image:
    square = image.resize((image_size, image_size), PIL.Image.Resampling.BILINEAR)
  return np.asarray(square)[..., None]
