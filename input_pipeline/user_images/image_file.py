"""What the name and the header of one file say about it, before its pixels are read."""

import dataclasses

from etils import epath

from input_pipeline import dicom
from input_pipeline.image_files.files import open_regular
from input_pipeline.user_images.views import find_view, remove_view, shows_chest

SUFFIXES = frozenset(".png .jpg .jpeg .jp2 .j2k .tif .tiff .bmp .webp .gif .pgm .ppm .dcm .dicom".split())
# Modalities (PS3.3 C.7.3.1.1.1) that can't be a chest radiograph; CR, DX and unknown values are accepted.
_OTHER_MODALITIES = {
    "CT": "computed tomography", "MR": "magnetic resonance", "US": "ultrasound", "PT": "positron emission",
    "NM": "nuclear medicine", "MG": "mammography", "XA": "angiography", "IO": "an intraoral dental image",
    "PX": "a dental panorama", "OP": "ophthalmic photography", "OPT": "ophthalmic tomography", "ES": "endoscopy",
    "SM": "microscopy", "GM": "microscopy", "ECG": "an electrocardiogram", "BMD": "bone densitometry"}


@dataclasses.dataclass(frozen=True)
class ImageFile:
  """A file that may be a radiograph, before its pixels are read.

  Attributes:
    path: path of the file.
    name: name of the file as the user gave it.
    study_key: equal for the files that header or name assign to one study.
    patient: equal for files whose headers name the same patient; "" if unknown.
    view: frontal, lateral or other; "" if unknown.
    view_source: header, name or order; what determined the view.
    is_pa: whether it is known to be a postero-anterior frontal image.
    warnings: what a user should know about the file.
  """
  path: epath.Path
  name: str
  study_key: tuple[str, ...]
  patient: str = dataclasses.field(default="", repr=False)
  view: str = ""
  view_source: str = "order"
  is_pa: bool = False
  warnings: tuple[str, ...] = ()


def inspect_file(path: epath.Path, name: str, in_folder: bool, max_pixels: int) -> ImageFile | None:
  """Returns what header and name say about a file; None if it was found in a folder and is not an image.

  Args:
    name: name of the file as the user gave it.
    in_folder: whether it was found in a folder, where other files may be as well.
    max_pixels: of an image.

  Raises:
    DicomError: the header shows that it is not a chest radiograph.
    UnreadableFile: it is not a regular file, or too large.
    OSError: the file can't be read.
  """
  stem = path.name.rpartition(".")[0] or path.name
  may_be_image = not in_folder or path.suffix.lower() in SUFFIXES
  try:
    file = open_regular(path, max_pixels)
  except Exception:
    if may_be_image:
      raise
    return None
  with file:
    is_dicom = dicom.is_dicom(file.read(dicom.HEAD_SIZE))
    if in_folder and (not may_be_image and not is_dicom or path.name == "DICOMDIR"):
      return None
    file.seek(0)
    header = dicom.read_header(file, max_pixels) if is_dicom else None
  view, is_pa = find_view(stem, is_file_name=True)
  view_source = "name" if view else "order"
  # Files whose names differ only in the view belong together.
  study_key = ("file", str(path.parent), remove_view(stem) if view in ("frontal", "lateral") else path.name)
  if header is None:
    return ImageFile(path, name, study_key, "", view, view_source, is_pa)

  if header.modality in _OTHER_MODALITIES:
    raise dicom.DicomError(f"the header says {_OTHER_MODALITIES[header.modality]} ({header.modality}), expected a "
                           "chest radiograph (CR, DX)")
  warnings = () if shows_chest(header.body_part) else ("its header says that it shows another part of the body",)
  for text in (header.view_position, header.view_meaning):
    if find_view(text)[0]:
      (view, is_pa), view_source = find_view(text), "header"
      break
  if header.study:
    study_key = ("dicom", header.study)
  return ImageFile(path, name, study_key, header.patient, view, view_source, is_pa, warnings)
