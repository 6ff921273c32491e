"""From a DICOM file to 8 bits of gray, in one of two renderings.

`voi`: as a viewer would show it. Stored values are rescaled and go through the
file's first window or lookup table; then they are stretched to 0 .. 255. Pixels
that the file calls padding (corners that no detector saw) are black and don't
count in the stretching.

`mimic_cxr_jpg`: as the images of MIMIC-CXR-JPG were made (Johnson et al., 2019,
arXiv 1901.07042). Stored values, whatever window the file asks for, are scaled
from their lowest and highest to 0 .. 255, fractions are cut off, and the
histogram of the whole picture is equalised by OpenCV. A model that was trained
on MIMIC-CXR-JPG should see other hospitals' films in this rendering.

In both, air is black and bone is bright: MONOCHROME1, which stores it the other
way round, is inverted. Colour becomes its luminance. A film is one picture, so
a file of several frames is refused rather than cut to its first.

Messages are this file's own words: what a header holds of a person, a library's
words may quote.
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
import pydicom.pixels
import pydicom.uid

_LUMINANCE = (0.299, 0.587, 0.114)                  # of red, green and blue; ITU-R BT.601
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")     # pydicom gives each as RGB
_PALETTE = "PALETTE COLOR"
# PS3.3 C.7.6.3.1.2, the ones that aren't read; other words are not repeated, as anything may stand there.
_OTHER_KINDS = ("YBR_PARTIAL_420", "YBR_PARTIAL_422", "HSV", "ARGB", "CMYK", "XYB")
# What pydicom and its decoders raise for files that were cut or that contradict themselves.
_DAMAGE = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
           ValueError, struct.error, zlib.error, pydicom.errors.BytesLengthException, PIL.Image.DecompressionBombError)
_HEADER_TAGS = ["StudyInstanceUID", "Modality", "ViewPosition", "ViewCodeSequence", "BodyPartExamined"]
# Its warnings, one a file, quote what the file holds.
logging.getLogger("pydicom").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pydicom")


class Refused(ValueError):
  """A DICOM file whose picture can't be read; the message is one line and quotes nothing of a person."""


class Header(NamedTuple):
  """What a file says of its picture. The study is for telling which films belong together, not for showing."""
  study: str             # StudyInstanceUID; "" where there is none, as elsewhere
  modality: str          # CR, DX, CT, ...
  view_position: str     # PA, AP, LL, ...
  view_meaning: str      # of the code in ViewCodeSequence
  body_part: str         # CHEST, ...


def is_dicom(data: bytes) -> bool:
  """Tells by the mark behind the preamble; the first 132 bytes are enough."""
  return data[128:132] == b"DICM"


def read_header(file: BinaryIO) -> Header:
  """Returns the header of an open file, without reading its pixels.

  Raises:
    Refused: damaged.
  """
  try:
    dicom = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
    codes = dicom.get("ViewCodeSequence") or [pydicom.Dataset()]
    texts = [dicom.get(field) for field in ("StudyInstanceUID", "Modality", "ViewPosition")]
    texts += [codes[0].get("CodeMeaning"), dicom.get("BodyPartExamined")]
    return Header(*(str(text or "").strip() for text in texts))
  except _DAMAGE as error:
    raise Refused(_in_own_words(error)) from error


def render(data: bytes, rendering: str) -> np.ndarray:
  """Returns the picture of a DICOM file as uint8 [rows, columns].

  Args:
    data: the whole file; pixels of 8 to 16 bits, signed or not, gray, colour or a palette's.
    rendering: one of RENDERINGS.

  Raises:
    Refused: no pixels in it, more than one frame, damaged, or in a compression or kind of colour that
      cannot be read.
  """
  convert = _RENDERINGS[rendering]
  try:
    dicom = pydicom.dcmread(io.BytesIO(data))
    return convert(dicom, _stored_values(dicom))
  except Refused:
    raise
  except _DAMAGE as error:
    raise Refused(_in_own_words(error)) from error


def stretch(deep: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
  """Returns `deep` as uint8 of the same shape, its lowest value as 0 and its highest as 255.

  Args:
    counted: bool, where pixels are; the others become 0. None: everywhere.
  """
  among = deep if counted is None else deep[counted]
  low, high = among.min(), among.max()
  stretched = np.rint((deep.clip(low, high) - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
  return stretched if counted is None else np.where(counted, stretched, 0).astype(np.uint8)


def _stored_values(dicom: pydicom.Dataset) -> np.ndarray:
  """Returns the pixels as they are stored, integers [rows, columns], colour as its luminance."""
  if not dicom.get("PixelData"):
    raise Refused("a DICOM file without pixel data")
  frames = int(dicom.get("NumberOfFrames") or 1)
  if frames > 1:                                    # asked before decoding, which may take gigabytes
    raise Refused(f"a multi-frame DICOM file of {frames} frames, expected one picture")
  kind = dicom.PhotometricInterpretation
  if kind not in (*_GRAY, *_COLOUR, _PALETTE):
    raise Refused(f"DICOM pixels of {f'the kind {kind}' if kind in _OTHER_KINDS else 'an unknown kind'}, expected "
                  "MONOCHROME1, MONOCHROME2, RGB, YBR or PALETTE COLOR")
  if dicom.Rows * dicom.Columns > 2 * PIL.Image.MAX_IMAGE_PIXELS:         # where Pillow refuses other formats
    raise Refused(f"a DICOM picture of {dicom.Rows} x {dicom.Columns} pixels, too large for a film")
  pixels = _decoded(dicom)
  if kind == _PALETTE:
    pixels = pydicom.pixels.apply_color_lut(pixels, dicom)[..., :3]      # [rows, columns] -> [rows, columns, 3]
  if pixels.shape[2:] == (3,):
    pixels = np.rint(pixels @ np.array(_LUMINANCE)).astype(np.int64)    # [rows, columns, 3] -> [rows, columns]
  if pixels.ndim != 2:
    raise Refused(f"DICOM pixels of shape {pixels.shape}, expected one picture")
  return pixels


def _decoded(dicom: pydicom.Dataset) -> np.ndarray:
  """Returns the pixels out of their transfer syntax, or says what would read it."""
  syntax = dicom.file_meta.get("TransferSyntaxUID")
  if syntax is None:
    raise Refused("a DICOM file that doesn't name its transfer syntax")
  try:
    decoder = pydicom.pixels.get_decoder(syntax) if syntax.is_encapsulated else None
  except (NotImplementedError, ValueError) as error:
    name = syntax.name if syntax.is_transfer_syntax and not syntax.is_private else "unknown"
    raise Refused(f"pixels in a transfer syntax that no decoder reads ({name})") from error
  if decoder is None:
    return dicom.pixel_array
  asks_for = "pip install pylibjpeg pylibjpeg-libjpeg (GPL v3)"          # the only one for 12 bits of JPEG Extended
  if syntax != pydicom.uid.JPEGExtended12Bit or dicom.BitsStored <= 8:
    asks_for = "pip install -e '.[dicom]'" if not _has_extra() else ""
  elif "pylibjpeg" not in decoder.available_plugins:
    raise Refused(f"12-bit pixels compressed by {syntax.name}, whose decoder isn't installed: {asks_for}")
  if not decoder.is_available:
    raise Refused(f"pixels compressed by {syntax.name}, whose decoder isn't installed: {asks_for}")
  try:
    return dicom.pixel_array
  except _DAMAGE as error:                          # Pillow alone fails on some JPEG 2000 that the others read
    hint = f"; if it isn't, this may read it: {asks_for}" if asks_for else ""
    raise Refused(f"pixels compressed by {syntax.name} that can't be decoded: damaged, or cut short{hint}") from error


def _has_extra() -> bool:
  """Tells whether the decoders of the extra `dicom` are installed."""
  plugins = pydicom.pixels.get_decoder(pydicom.uid.JPEG2000Lossless).available_plugins
  return {"gdcm", "pylibjpeg"} <= set(plugins)


def _in_own_words(error: Exception) -> str:
  short = re.search(r"less than expected \((\d+) vs (\d+) bytes\)", str(error))
  if short:
    return f"a DICOM file cut short: {short[1]} of {short[2]} bytes of pixels"
  return "a damaged DICOM file: it can't be parsed, or its header and its pixels contradict each other"


def _voi(dicom: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
  if dicom.PhotometricInterpretation not in _GRAY:  # windows are for MONOCHROME only
    return stretch(stored.astype(np.float64))
  pixels = pydicom.pixels.apply_rescale(stored, dicom)
  if dicom.get("VOILUTSequence") or _first(dicom.get("WindowWidth"), 0) >= 1:      # PS3.3 C.11.2.1.2: at least 1
    pixels = pydicom.pixels.apply_voi_lut(pixels, dicom, index=0)
  pixels = np.asarray(pixels, np.float64)
  return stretch(-pixels if dicom.PhotometricInterpretation == "MONOCHROME1" else pixels, _no_padding(dicom, stored))


def _first(value, default):
  """Returns the first of one or several values of an element."""
  if value is None or value == "":
    return default
  return value[0] if isinstance(value, pydicom.multival.MultiValue) else value


def _no_padding(dicom: pydicom.Dataset, stored: np.ndarray) -> np.ndarray | None:
  """Returns bool [rows, columns], where there is no padding; None where that is everywhere, or nowhere."""
  padding = dicom.get("PixelPaddingValue")
  if padding is None:
    return None
  low, high = sorted((int(padding), int(dicom.get("PixelPaddingRangeLimit", padding))))
  counted = (stored < low) | (stored > high)
  return counted if counted.any() and not counted.all() else None


def _mimic_cxr_jpg(dicom: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
  stored = stored.astype(np.int64)                  # room for 255 times a value
  low, high = stored.min(), stored.max()
  # Inverted before fractions are cut off, so that a film looks the same whichever way round it is stored. The source
  # inverts afterwards, which differs by one level at most before the equalisation.
  shifted = high - stored if dicom.PhotometricInterpretation == "MONOCHROME1" else stored - low
  return cv2.equalizeHist((shifted * 255 // max(high - low, 1)).astype(np.uint8))


_RENDERINGS = {"voi": _voi, "mimic_cxr_jpg": _mimic_cxr_jpg}
RENDERINGS = tuple(_RENDERINGS)
