"""Small image files of every kind that is read, and the damage that is done to them."""

import io
import pathlib

import numpy as np
import PIL.Image
import pydicom
import pydicom.data
import pydicom.dataset
from pydicom.encaps import encapsulate
import pydicom.uid

FILM = np.random.default_rng(0).gamma(2, 500, (24, 32)).clip(0, 4095).astype(np.uint16)
EXTREMES = [bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\1\0\0\0", b"\0\1\0\1"]


def encode(pixels: np.ndarray, kind: str, **options) -> bytes:
  """Returns an image as a file in a format of Pillow."""
  data = io.BytesIO()
  PIL.Image.fromarray(pixels).save(data, kind, **options)
  return data.getvalue()


def make_dicom(syntax: str = "ExplicitVRLittleEndian", pixel_data: bytes | None = None, bits: int = 12,
               **fields) -> bytes:
  """Returns a DICOM file with the image FILM; `fields` are set last."""
  file = pydicom.Dataset()
  file.SOPClassUID, file.SOPInstanceUID = pydicom.uid.DigitalXRayImageStorageForPresentation, "1.2.3"
  file.Modality, file.StudyInstanceUID, file.PatientID, file.ViewPosition = "DX", "1.2.4", "MRN0042", "PA"
  file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = *FILM.shape, 1, "MONOCHROME2"
  file.BitsAllocated, file.BitsStored, file.HighBit = 8 if bits == 8 else 16, bits, bits - 1
  file.PixelRepresentation = 0
  file.PixelData = FILM.tobytes() if pixel_data is None else pixel_data
  for name, value in fields.items():
    setattr(file, name, value)
  file.file_meta = pydicom.dataset.FileMetaDataset()
  file.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
  data = io.BytesIO()
  file.save_as(data, enforce_file_format=True)
  return data.getvalue()


def make_dicom_files() -> dict[str, bytes]:
  """Returns DICOM files by kind."""
  gray8 = (FILM >> 4).astype(np.uint8)
  table = pydicom.Dataset()
  table.LUTDescriptor, table.LUTData = [4096, 0, 12], np.arange(4096, dtype="<u2").tobytes()
  plain = make_dicom(WindowCenter="1000", WindowWidth="1500", RescaleSlope="2", RescaleIntercept="-7",
                     PixelPaddingValue=0)
  implicit = make_dicom("ImplicitVRLittleEndian")
  rle = pydicom.dcmread(io.BytesIO(plain))
  rle.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
  buffer = io.BytesIO()
  rle.save_as(buffer)
  examples = pathlib.Path(pydicom.data.__file__).parent / "test_files"
  return {
      "plain": plain, "no preamble": plain[128 + 4:], "no meta": implicit[implicit.index(b"\x08\0\x16\0"):],
      "implicit": implicit, "table": make_dicom(VOILUTSequence=[table], ModalityLUTSequence=[table]),
      "deflated": make_dicom("DeflatedExplicitVRLittleEndian"), "rle": buffer.getvalue(),
      "jpeg": make_dicom("JPEGBaseline8Bit", encapsulate([encode(gray8, "JPEG")]), 8),
      "jpeg 2000": make_dicom("JPEG2000Lossless", encapsulate([encode(FILM, "JPEG2000", no_jp2=True)]), 16),
      "color": make_dicom(pixel_data=np.stack([gray8] * 3, -1).tobytes(), bits=8, SamplesPerPixel=3,
                          PhotometricInterpretation="RGB", PlanarConfiguration=0),
      "jpeg-ls": (examples / "MR_small_jpeg_ls_lossless.dcm").read_bytes(),
      "jpeg lossless": (examples / "SC_rgb_jpeg_gdcm.dcm").read_bytes(),
  }


def make_image_files() -> dict[str, bytes]:
  """Returns files of other formats by kind."""
  import cv2
  gray8 = (FILM >> 4).astype(np.uint8)
  color8, color16 = np.stack([gray8] * 3, -1), np.stack([FILM] * 3, -1)
  compressions = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
  tiff = {f"tiff {name}": encode(gray8, "TIFF", compression=name) for name in compressions}
  return {
      "png": encode(gray8, "PNG"), "png 16": encode(FILM, "PNG"), "png palette": _encode_palette(gray8),
      "png color 16": bytes(cv2.imencode(".png", color16)[1]), "jpeg": encode(gray8, "JPEG"),
      "jpeg color": encode(color8, "JPEG"), "jpeg progressive": encode(gray8, "JPEG", progressive=True),
      "tiff": encode(gray8, "TIFF"), "tiff 16": encode(FILM, "TIFF"), **tiff,
      "tiff float": encode(FILM / np.float32(7), "TIFF"), "tiff color 16": bytes(cv2.imencode(".tiff", color16)[1]),
      "tiff big": encode(gray8, "TIFF", big_tiff=True), "bmp": encode(gray8, "BMP"), "gif": encode(gray8, "GIF"),
      "webp": encode(color8, "WEBP"), "pgm 16": encode(FILM.astype(np.int32), "PPM"),
      "ppm": b"P6 32 24 4095\n" + color16.astype(">u2").tobytes(), "jp2": encode(gray8, "JPEG2000"),
      "jp2 16": encode(FILM, "JPEG2000")}


def _encode_palette(gray: np.ndarray) -> bytes:
  data = io.BytesIO()
  PIL.Image.fromarray(gray).convert("P").save(data, "PNG")
  return data.getvalue()


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
  """Returns a damaged copy: bytes or whole numbers are changed, mostly in the header, or it is cut or repeated."""
  mutated = bytearray(data)
  for _ in range(rng.integers(1, 6)):
    header = rng.random() < .7
    position = int(rng.integers(min(len(mutated), 512) if header else len(mutated)))
    match rng.integers(8):
      case 0:
        mutated[position:position + 4] = EXTREMES[rng.integers(len(EXTREMES))]
      case 1 if rng.random() < .3:
        del mutated[max(position, 16):]
      case 2 if rng.random() < .3:
        mutated[position:position] = mutated[position:position + 16]
      case 3:
        mutated[position] = rng.integers(256)
      case _:
        mutated[position] ^= 1 << rng.integers(8)
  return bytes(mutated)
