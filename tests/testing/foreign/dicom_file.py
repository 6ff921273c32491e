"""DICOM files made from images, for tests."""

import numpy as np
import PIL.Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid


def write_dicom(jpeg, path, **fields):
  """Writes the decoded pixels of a grayscale JPEG as a DICOM file."""
  with PIL.Image.open(jpeg) as image:
    pixels = np.asarray(image.convert("L"))
  file = Dataset()
  file.SOPClassUID, file.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
  file.PatientName, file.PatientID, file.Modality, file.StudyInstanceUID = "Doe^Jane", "MRN0042", "DX", "1.2.3"
  file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
  file.BitsAllocated = file.BitsStored = 8
  file.HighBit, file.PixelRepresentation, file.PixelData = 7, 0, pixels.tobytes()
  for name, value in fields.items():
    setattr(file, name, value)
  file.file_meta = FileMetaDataset()
  file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
  file.save_as(path, enforce_file_format=True)
