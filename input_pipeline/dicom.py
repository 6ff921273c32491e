"""From a DICOM file to 8 bits of gray, in one of two renderings.

`voi`: as a viewer would show it. Stored values are rescaled and go through the
file's first window or lookup table; then they are stretched to 0 .. 255.

`mimic_cxr_jpg`: as the images of MIMIC-CXR-JPG were made (Johnson et al., 2019,
arXiv 1901.07042). Stored values, whatever window the file asks for, are scaled
from their lowest and highest to 0 .. 255, fractions are cut off, and the
histogram of the whole picture is equalised by OpenCV. A model that was trained
on MIMIC-CXR-JPG should see other hospitals' films in this rendering.

In both, air is black and bone is bright: MONOCHROME1, which stores it the other
way round, is inverted. Colour becomes its luminance. A film is one picture, so
a file of several frames is refused rather than cut to its first.
"""

import io
import logging
import struct
import warnings
import zlib

import cv2
import numpy as np
import pydicom
import pydicom.errors
import pydicom.pixels

_LUMINANCE = (0.299, 0.587, 0.114)                  # of red, green and blue; ITU-R BT.601
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")     # pydicom gives each as RGB
# What pydicom raises for files that were cut or that contradict themselves.
_DAMAGE = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError,
           struct.error, zlib.error, pydicom.errors.BytesLengthException)
# Its warnings, one a file, quote what the file holds.
logging.getLogger("pydicom").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pydicom")


def is_dicom(data: bytes) -> bool:
  return data[128:132] == b"DICM"


def render(data: bytes, rendering: str) -> np.ndarray:
  """Returns the picture of a DICOM file as uint8 [rows, columns].

  Args:
    data: the whole file; pixels of 8 to 16 bits, signed or not, gray or colour.
    rendering: one of RENDERINGS.

  Raises:
    ValueError: no pixels in it, more than one frame, damaged, or in a compression or kind of colour that
      cannot be read. The message is one line.
  """
  convert = _RENDERINGS[rendering]
  try:
    dicom = pydicom.dcmread(io.BytesIO(data))
    return convert(dicom, _stored_values(dicom))
  except _DAMAGE as error:
    raise ValueError(" ".join(str(error).split())) from error


def stretch(deep: np.ndarray) -> np.ndarray:
  """Returns `deep` as uint8 of the same shape, its lowest value as 0 and its highest as 255."""
  low, high = deep.min(), deep.max()
  return np.rint((deep - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def _stored_values(dicom: pydicom.Dataset) -> np.ndarray:
  """Returns the pixels as they are stored, integers [rows, columns], colour as its luminance."""
  if not dicom.get("PixelData"):
    raise ValueError("a DICOM file without pixel data")
  frames = int(dicom.get("NumberOfFrames") or 1)
  if frames > 1:                                    # asked before decoding, which may take gigabytes
    raise ValueError(f"a multi-frame DICOM file of {frames} frames, expected one picture")
  kind = dicom.PhotometricInterpretation
  if kind not in ("MONOCHROME1", "MONOCHROME2", *_COLOUR):
    raise ValueError(f"DICOM pixels of the kind {kind}, expected MONOCHROME1, MONOCHROME2, RGB or YBR")
  pixels = dicom.pixel_array
  if pixels.shape[2:] == (3,):
    pixels = np.rint(pixels @ np.array(_LUMINANCE)).astype(np.int64)    # [rows, columns, 3] -> [rows, columns]
  if pixels.ndim != 2:
    raise ValueError(f"DICOM pixels of shape {pixels.shape}, expected one picture")
  return pixels


def _voi(dicom: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
  if dicom.PhotometricInterpretation in _COLOUR:    # windows are for MONOCHROME only
    return stretch(stored.astype(np.float64))
  pixels = pydicom.pixels.apply_rescale(stored, dicom)
  pixels = np.asarray(pydicom.pixels.apply_voi_lut(pixels, dicom, index=0), np.float64)
  return stretch(-pixels if dicom.PhotometricInterpretation == "MONOCHROME1" else pixels)


def _mimic_cxr_jpg(dicom: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
  stored = stored.astype(np.int64)                  # room for 255 times a value
  low, high = stored.min(), stored.max()
  # Inverted before fractions are cut off, so that a film looks the same whichever way round it is stored. The source
  # inverts afterwards, which differs by one level at most before the equalisation.
  shifted = high - stored if dicom.PhotometricInterpretation == "MONOCHROME1" else stored - low
  return cv2.equalizeHist((shifted * 255 // max(high - low, 1)).astype(np.uint8))


_RENDERINGS = {"voi": _voi, "mimic_cxr_jpg": _mimic_cxr_jpg}
RENDERINGS = tuple(_RENDERINGS)
