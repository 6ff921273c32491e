"""What the header of a DICOM file says about the image, without its pixels."""

import hashlib
from typing import BinaryIO, NamedTuple

from input_pipeline.dicom.errors import DicomError
from input_pipeline.dicom.fields import get_sequence_item, get_text
from input_pipeline.dicom.parse import DAMAGE_ERRORS, describe_damage, parse

_TAGS: list = ["StudyInstanceUID", "Modality", "ViewPosition", "ViewCodeSequence", "BodyPartExamined", "PatientID",
               "PatientName", "PatientBirthDate"]


class DicomHeader(NamedTuple):
  """Header fields that describe the image; "" for those that are absent."""
  study: str             # StudyInstanceUID; only for grouping files, never shown
  modality: str          # CR, DX, CT, ...
  view_position: str     # PA, AP, LL, ...
  view_meaning: str      # meaning of the code in ViewCodeSequence
  body_part: str         # CHEST, ...
  patient: str           # digest of what identifies the patient; only for comparing files


def read_header(file: BinaryIO, max_pixels: int) -> DicomHeader:
  """Returns the header of an open file without reading its pixels.

  Raises:
    DicomError: the file is damaged.
  """
  try:
    dataset = parse(file, max_pixels, stop_before_pixels=True, specific_tags=_TAGS)
    code = get_sequence_item(dataset, "ViewCodeSequence")
    # A number identifies a patient; only where there is none, name and date of birth do.
    name = get_text(dataset, "PatientName") + get_text(dataset, "PatientBirthDate")
    identity = get_text(dataset, "PatientID") or name
    identity = "".join(identity.upper().replace("^", " ").split())
    return DicomHeader(
        get_text(dataset, "StudyInstanceUID"), get_text(dataset, "Modality"), get_text(dataset, "ViewPosition"),
        "" if code is None else get_text(code, "CodeMeaning"), get_text(dataset, "BodyPartExamined"),
        hashlib.sha256(identity.encode(errors="replace")).hexdigest() if identity else "")
  except DicomError:
    raise
  except DAMAGE_ERRORS as error:
    raise DicomError(describe_damage(error)) from error
