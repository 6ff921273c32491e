"""DICOM files -> 8-bit grayscale images, in one of two renderings.

`voi`: as a viewer shows it. Stored values are rescaled and mapped by the first window or lookup table of the file, and
then stretched to 0 .. 255. Pixels that the file declares as padding (corners outside the detector) become black and do
not affect the stretching.

`mimic_cxr_jpg`: as the images of MIMIC-CXR-JPG were made (Johnson et al., 2019, arXiv 1901.07042). Stored values are
scaled from their minimum and maximum to 0 .. 255 regardless of any window, fractions are truncated, and the histogram
of the whole image is equalized by OpenCV. Use it to show images of other hospitals to a model that was trained on
MIMIC-CXR-JPG.

In both, air is black and bone is white: MONOCHROME1, which stores the opposite, is inverted. Color is converted to
luminance. A file with several frames is an error, because a radiograph is a single image.

Error messages never quote the file or a library: both may contain personal data from the header.
"""

import io
import logging
import re
import struct
from typing import BinaryIO, NamedTuple
import warnings
import zlib

import cv2
import numpy as np
import PIL.Image
import pydicom
import pydicom.errors
import pydicom.multival
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_rescale, apply_voi_lut
import pydicom.uid

_LUMINANCE = (0.299, 0.587, 0.114)                  # weights of red, green and blue; ITU-R BT.601
_GRAYSCALE = ("MONOCHROME1", "MONOCHROME2")
_COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")     # pydicom converts each to RGB
_PALETTE = "PALETTE COLOR"
# Photometric interpretations of PS3.3 C.7.6.3.1.2 that are not supported. Other values are not quoted in errors, as
# the field may contain anything.
_UNSUPPORTED_PHOTOMETRIC = ("YBR_PARTIAL_420", "YBR_PARTIAL_422", "HSV", "ARGB", "CMYK", "XYB")
# Raised by pydicom and its decoders for files that are truncated or inconsistent.
_DAMAGE_ERRORS = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
                  ValueError, struct.error, zlib.error, pydicom.errors.BytesLengthException,
                  PIL.Image.DecompressionBombError)
_HEADER_TAGS: list = ["StudyInstanceUID", "Modality", "ViewPosition", "ViewCodeSequence", "BodyPartExamined"]
# Warnings of pydicom quote the contents of the file.
logging.getLogger("pydicom").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pydicom")


class DicomError(ValueError):
  """A DICOM file has no image that can be read; the message is one line without personal data."""


class DicomHeader(NamedTuple):
  """Header fields that describe the image; "" for those that are absent."""
  study: str             # StudyInstanceUID; only for grouping files, never shown
  modality: str          # CR, DX, CT, ...
  view_position: str     # PA, AP, LL, ...
  view_meaning: str      # meaning of the code in ViewCodeSequence
  body_part: str         # CHEST, ...


def is_dicom(data: bytes) -> bool:
  """Returns whether a file is DICOM, by the mark after its preamble; the first 132 bytes are enough."""
  return data[128:132] == b"DICM"


def read_header(file: BinaryIO) -> DicomHeader:
  """Returns the header of an open file without reading its pixels.

  Raises:
    DicomError: the file is damaged.
  """
  try:
    dicom = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
    codes = dicom.get("ViewCodeSequence") or [pydicom.Dataset()]
    texts = [dicom.get(field) for field in ("StudyInstanceUID", "Modality", "ViewPosition")]
    texts += [codes[0].get("CodeMeaning"), dicom.get("BodyPartExamined")]
    return DicomHeader(*(str(text or "").strip() for text in texts))
  except _DAMAGE_ERRORS as error:
    raise DicomError(_describe_damage(error)) from error


def render(data: bytes, rendering: str) -> np.ndarray:
  """Returns the image of a DICOM file as uint8 [rows, columns].

  Args:
    data: the whole file; pixels of 8 to 16 bits, signed or unsigned, in grayscale, color or with a palette.
    rendering: one of RENDERINGS.

  Raises:
    DicomError: the file has no pixels, several frames, is damaged, or has an unsupported compression or color space.
  """
  convert = _RENDERINGS[rendering]
  try:
    dicom = pydicom.dcmread(io.BytesIO(data))
    return convert(dicom, _read_stored_values(dicom))
  except DicomError:
    raise
  except _DAMAGE_ERRORS as error:
    raise DicomError(_describe_damage(error)) from error


def stretch_to_uint8(values: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
  """Returns `values` scaled linearly to uint8, the minimum as 0 and the maximum as 255.

  Args:
    values: numbers of any shape.
    mask: bool, same shape; values outside it are not considered and become 0. None: all values count.
  """
  considered = values if mask is None else values[mask]
  low, high = considered.min(), considered.max()
  stretched = np.rint((values.clip(low, high) - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
  return stretched if mask is None else np.where(mask, stretched, 0).astype(np.uint8)


def _read_stored_values(dicom: pydicom.Dataset) -> np.ndarray:
  """Returns the pixels as stored, integers [rows, columns]; color is converted to luminance."""
  if not dicom.get("PixelData"):
    raise DicomError("a DICOM file without pixel data")
  num_frames = int(dicom.get("NumberOfFrames") or 1)
  if num_frames > 1:                                # checked before decoding, which may take gigabytes
    raise DicomError(f"a multi-frame DICOM file with {num_frames} frames, expected one image")
  photometric = dicom.PhotometricInterpretation
  if photometric not in (*_GRAYSCALE, *_COLOR, _PALETTE):
    name = photometric if photometric in _UNSUPPORTED_PHOTOMETRIC else "an unknown value"
    raise DicomError(f"a DICOM file whose PhotometricInterpretation is {name}, expected MONOCHROME1, MONOCHROME2, RGB, "
                     "YBR or PALETTE COLOR")
  max_pixels = 2 * (PIL.Image.MAX_IMAGE_PIXELS or 0)        # Pillow's limit for other formats
  if dicom.Rows * dicom.Columns > max_pixels > 0:
    raise DicomError(f"a DICOM image of {dicom.Rows} x {dicom.Columns} pixels, too large for a radiograph")
  pixels = _decode_pixels(dicom)
  if photometric == _PALETTE:
    pixels = apply_color_lut(pixels, dicom)[..., :3]                    # [rows, columns] -> [rows, columns, 3]
  if pixels.shape[2:] == (3,):
    pixels = np.rint(pixels @ np.array(_LUMINANCE)).astype(np.int64)    # [rows, columns, 3] -> [rows, columns]
  if pixels.ndim != 2:
    raise DicomError(f"DICOM pixels of shape {pixels.shape}, expected one image")
  return pixels


def _decode_pixels(dicom: pydicom.Dataset) -> np.ndarray:
  """Returns the decompressed pixels.

  Raises:
    DicomError: they can't be decompressed; the message names the package to install, if there is one.
  """
  syntax = dicom.file_meta.get("TransferSyntaxUID")
  if syntax is None:
    raise DicomError("a DICOM file without a transfer syntax")
  try:
    decoder = get_decoder(syntax) if syntax.is_encapsulated else None
  except (NotImplementedError, ValueError) as error:
    name = syntax.name if syntax.is_transfer_syntax and not syntax.is_private else "unknown"
    raise DicomError(f"a DICOM file with the transfer syntax {name}, which no decoder reads") from error
  if decoder is None:
    return dicom.pixel_array
  install = "pip install pylibjpeg pylibjpeg-libjpeg (GPL v3)"          # the only decoder of 12-bit JPEG Extended
  if syntax != pydicom.uid.JPEGExtended12Bit or dicom.BitsStored <= 8:
    install = "pip install -e '.[dicom]'" if not _has_dicom_extra() else ""
  elif "pylibjpeg" not in decoder.available_plugins:
    raise DicomError(f"12-bit pixels compressed by {syntax.name}, whose decoder is not installed: {install}")
  if not decoder.is_available:
    raise DicomError(f"pixels compressed by {syntax.name}, whose decoder is not installed: {install}")
  try:
    return dicom.pixel_array
  except _DAMAGE_ERRORS as error:                   # Pillow alone fails on some JPEG 2000 files that others can read
    hint = f"; if the file is intact, this may read it: {install}" if install else ""
    raise DicomError(f"pixels compressed by {syntax.name} that can't be decoded: damaged or truncated{hint}"
                     ) from error


def _has_dicom_extra() -> bool:
  """Returns whether the decoders of the extra `dicom` are installed."""
  plugins = get_decoder(pydicom.uid.JPEG2000Lossless).available_plugins
  return {"gdcm", "pylibjpeg"} <= set(plugins)


def _describe_damage(error: Exception) -> str:
  """Returns a message for an error of a library, without quoting it."""
  match = re.search(r"less than expected \((\d+) vs (\d+) bytes\)", str(error))
  if match:
    return f"a truncated DICOM file: {match[1]} of {match[2]} bytes of pixels"
  return "a damaged DICOM file: it can't be parsed, or its header and its pixels are inconsistent"


def _render_voi(dicom: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
  photometric = dicom.PhotometricInterpretation
  if photometric not in _GRAYSCALE:                 # windows are defined for MONOCHROME only
    return stretch_to_uint8(stored.astype(np.float64))
  pixels = apply_rescale(stored, dicom)
  window_width = _get_first_value(dicom.get("WindowWidth"), 0)
  if dicom.get("VOILUTSequence") or window_width >= 1:      # PS3.3 C.11.2.1.2: a valid width is at least 1
    pixels = apply_voi_lut(pixels, dicom, index=0)
  pixels = np.asarray(pixels, np.float64)
  return stretch_to_uint8(-pixels if photometric == "MONOCHROME1" else pixels, _find_image_area(dicom, stored))


def _get_first_value(value, default):
  """Returns the value of an element, the first one if it has several."""
  if value is None or value == "":
    return default
  return value[0] if isinstance(value, pydicom.multival.MultiValue) else value


def _find_image_area(dicom: pydicom.Dataset, stored: np.ndarray) -> np.ndarray | None:
  """Returns bool [rows, columns], False for padding; None if there is no padding, or nothing but padding."""
  padding = dicom.get("PixelPaddingValue")
  if padding is None:
    return None
  low, high = sorted((int(padding), int(dicom.get("PixelPaddingRangeLimit", padding))))
  mask = (stored < low) | (stored > high)
  return mask if mask.any() and not mask.all() else None


def _render_mimic_cxr_jpg(dicom: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
  stored = stored.astype(np.int64)                  # 255 times a value must not overflow
  low, high = stored.min(), stored.max()
  # Inverted before fractions are truncated, so that an image looks the same in both monochrome encodings. The authors
  # invert afterwards, which differs by at most one gray level before the equalization.
  shifted = high - stored if dicom.PhotometricInterpretation == "MONOCHROME1" else stored - low
  return cv2.equalizeHist((shifted * 255 // max(high - low, 1)).astype(np.uint8))


_RENDERINGS = {"voi": _render_voi, "mimic_cxr_jpg": _render_mimic_cxr_jpg}
RENDERINGS = tuple(_RENDERINGS)
