"""The two renderings of DICOM images."""

import io

import cv2
import numpy as np
import pydicom
from pydicom.pixels.processing import apply_windowing

from input_pipeline.dicom.errors import DicomError, ignore_warning, Warn
from input_pipeline.dicom.fields import get_display_number, get_sequence_item, get_text
from input_pipeline.dicom.lookup_tables import apply_table
from input_pipeline.dicom.parse import DAMAGE_ERRORS, describe_damage, parse
from input_pipeline.dicom.pixels import get_photometric, GRAYSCALE, read_stored_values
from input_pipeline.image_files.limits import MAX_PIXELS
from input_pipeline.image_files.shades import map_levels

_VOI_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
# A window is ignored if so many of the pixels get one and the same shade.
_MAX_SHARE_OF_ONE_SHADE = 0.999


def render(data: bytes, rendering: str, max_pixels: int = MAX_PIXELS, warn: Warn = ignore_warning) -> np.ndarray:
  """Returns the image of a DICOM file as uint8 [rows, columns].

  Args:
    data: the whole file; pixels of 1 to 32 bits, signed or unsigned, in grayscale, color or with a palette.
    rendering: one of RENDERINGS.
    max_pixels: larger images are refused before they are decoded.
    warn: takes what was odd about the file, if the image could be read nevertheless.

  Raises:
    DicomError: the file has no pixels, several frames, one shade only, is damaged, or has an unsupported compression
      or color space.
  """
  convert = _RENDERINGS[rendering]
  try:
    dataset = parse(io.BytesIO(data), max_pixels)
    stored = read_stored_values(dataset, max_pixels, warn)
    if stored.min() == stored.max():
      raise DicomError("a DICOM image of a single shade: no film was exposed")
    return convert(dataset, stored, warn)
  except DicomError:
    raise
  except DAMAGE_ERRORS as error:
    raise DicomError(describe_damage(error)) from error


def _render_voi(dataset: pydicom.Dataset, stored: np.ndarray, warn: Warn) -> np.ndarray:
  inverted = get_photometric(dataset) == "MONOCHROME1"
  if get_photometric(dataset) not in GRAYSCALE:     # windows and padding are defined for MONOCHROME only
    return map_levels(stored, lambda levels, counts: _stretch(levels, np.ones(len(levels), bool)))
  padding = _get_padding(dataset, stored.dtype)

  def convert(levels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    considered = np.ones(len(levels), bool)
    if padding is not None and not (considered := (levels < padding[0]) | (levels > padding[1])).any():
      considered[:] = True                          # nothing but padding: then it is none
    slope, intercept = (get_display_number(dataset, f"Rescale{name}", warn) for name in ("Slope", "Intercept"))
    scale = (1 if slope is None else slope, intercept or 0)
    rescaled = _rescale(dataset, levels, scale, warn)
    windowed = _apply_window(dataset, rescaled, scale, warn)
    for values, reason in ((windowed, "window or lookup table"), (rescaled, "RescaleSlope or lookup table"),
                           (levels, "")):
      values = np.asarray(values, np.float64)
      shades = _stretch(-values if inverted else values, considered)
      if not reason or _has_contrast(shades[considered], counts[considered]):
        break
      warn(f"the {reason} leaves a single shade: ignored")
    return shades

  return map_levels(stored, convert)


def _rescale(dataset: pydicom.Dataset, levels: np.ndarray, scale: tuple[float, float], warn: Warn) -> np.ndarray:
  """Returns the levels after the modality transformation: a lookup table, or else a slope and an intercept."""
  table = get_sequence_item(dataset, "ModalityLUTSequence")
  if table is not None:
    return apply_table(table, levels, dataset, warn, is_modality=True)
  return levels if scale == (1, 0) else levels.astype(np.float64) * scale[0] + scale[1]


def _apply_window(dataset: pydicom.Dataset, rescaled: np.ndarray, scale: tuple[float, float],
                  warn: Warn) -> np.ndarray:
  """Returns rescaled levels after the first lookup table of the file, or the first window, or as they are."""
  table = get_sequence_item(dataset, "VOILUTSequence")
  if table is not None:
    return apply_table(table, rescaled, dataset, warn, is_modality=False)
  center, width = (get_display_number(dataset, keyword, warn) for keyword in ("WindowCenter", "WindowWidth"))
  function = get_text(dataset, "VOILUTFunction").upper() or "LINEAR"
  if center is None or width is None:
    return rescaled
  if function not in _VOI_FUNCTIONS or "VOILUTFunction" in dataset and not get_text(dataset, "VOILUTFunction"):
    warn("VOILUTFunction is empty or unknown: LINEAR is used")
    function = "LINEAR"
  if width < (1 if function == "LINEAR" else 1e-9):         # PS3.3 C.11.2.1.2: a valid width is at least 1
    return rescaled
  window = pydicom.Dataset()                        # a copy of what pydicom looks at, in the form that it accepts
  window.PhotometricInterpretation = "MONOCHROME2"
  window.WindowCenter, window.WindowWidth, window.VOILUTFunction = center, width, function
  for keyword in ("BitsStored", "PixelRepresentation"):
    setattr(window, keyword, int(get_text(dataset, keyword)))
  window.RescaleSlope, window.RescaleIntercept = scale
  return apply_windowing(rescaled, window)


def _get_padding(dataset: pydicom.Dataset, dtype: np.dtype) -> tuple[int, int] | None:
  """Returns the smallest and the largest stored value that is padding; None if the file declares none."""
  first = get_display_number(dataset, "PixelPaddingValue", ignore_warning)
  if first is None:
    return None
  last = get_display_number(dataset, "PixelPaddingRangeLimit", ignore_warning)
  ends = [int(first), int(first if last is None else last)]
  if dtype.kind == "i":                             # some writers declare the padding of signed pixels as unsigned
    ends = [int(np.array(end & 2 ** (8 * dtype.itemsize) - 1).astype(f"u{dtype.itemsize}").astype(dtype))
            for end in ends]
  return min(ends), max(ends)


def _stretch(levels: np.ndarray, considered: np.ndarray) -> np.ndarray:
  """Returns shades, uint8 [L]: the lowest considered level as 0, the highest as 255, levels not considered as 0."""
  low, high = levels[considered].min(), levels[considered].max()
  shades = np.rint((levels.clip(low, high) - low) * (255 / max(high - low, 1e-12)))
  return np.where(considered, shades, 0).astype(np.uint8)


def _has_contrast(shades: np.ndarray, counts: np.ndarray) -> bool:
  """Returns whether no shade has nearly all pixels, given the shade and the number of pixels of each level."""
  per_shade = np.bincount(shades, counts, 256)
  return per_shade.max() <= _MAX_SHARE_OF_ONE_SHADE * per_shade.sum()


def _render_mimic_cxr_jpg(dataset: pydicom.Dataset, stored: np.ndarray, warn: Warn) -> np.ndarray:
  del warn                                          # no field that could be odd is used
  inverted = get_photometric(dataset) == "MONOCHROME1"

  def convert(levels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    del counts                                      # unused
    low, high = levels.min(), levels.max()
    # Inverted before fractions are truncated, so that an image looks the same in both monochrome encodings. The authors
    # invert afterwards, which differs by at most one gray level before the equalization.
    shifted = high - levels if inverted else levels - low
    return (shifted * 255 // (high - low)).astype(np.uint8)

  return cv2.equalizeHist(map_levels(stored, convert))


_RENDERINGS = {"voi": _render_voi, "mimic_cxr_jpg": _render_mimic_cxr_jpg}
RENDERINGS = tuple(_RENDERINGS)
