"""DICOM files -> 8-bit grayscale images, in one of two renderings, and what their headers say about the image.

`voi`: as a viewer shows it. Stored values are rescaled and mapped by the first window or lookup table of the file, and
then stretched to 0 .. 255. Pixels that the file declares as padding (corners outside the detector) become black and do
not affect the stretching.

`mimic_cxr_jpg`: as the images of MIMIC-CXR-JPG were made (Johnson et al., 2019, arXiv 1901.07042). Stored values are
scaled from their minimum and maximum to 0 .. 255 regardless of any window, fractions are truncated, and the histogram
of the whole image is equalized by OpenCV. Use it to show images of other hospitals to a model that was trained on
MIMIC-CXR-JPG.

In both, air is black and bone is white: MONOCHROME1, which stores the opposite, is inverted. Color is converted to
luminance. A file with several frames is an error, because a radiograph is a single image.

What the pixels mean (rows, bits, photometric interpretation) must be right in the header, or the file is refused and
the error names the field. What only affects their display (window, lookup table, rescaling) has a default, and a
warning says that it was used.

Error messages and warnings never quote the file or a library: both may contain personal data from the header.
"""

import importlib
from typing import TYPE_CHECKING

from input_pipeline.dicom.errors import DicomError
from input_pipeline.dicom.signature import HEAD_SIZE, is_dicom

if TYPE_CHECKING:
  from input_pipeline.dicom.display import render, RENDERINGS
  from input_pipeline.dicom.header import DicomHeader, read_header

__all__ = ["DicomError", "DicomHeader", "HEAD_SIZE", "is_dicom", "read_header", "render", "RENDERINGS"]

# Imported when they are first used: pydicom takes most of a second, which other formats don't need.
_MODULES = {"DicomHeader": "header", "read_header": "header", "render": "display", "RENDERINGS": "display"}


def __getattr__(name: str):
  """Returns a name from the module that defines it, imported now."""
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
