"""The stored values of a DICOM image: decompressed, without the bits that belong to something else, in grayscale."""

import numpy as np
import pydicom
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
import pydicom.uid

from input_pipeline.dicom.errors import DicomError, Warn
from input_pipeline.dicom.fields import get_integer, get_text
from input_pipeline.dicom.parse import check_size
from input_pipeline.image_files import decoder_process
from input_pipeline.image_files.shades import to_luminance

GRAYSCALE = ("MONOCHROME1", "MONOCHROME2")
_COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")     # pydicom converts each to RGB
_PALETTE = "PALETTE COLOR"
# Photometric interpretations of PS3.3 C.7.6.3.1.2 that are not supported. Other values are not quoted in errors, as
# the field may contain anything.
_UNSUPPORTED_PHOTOMETRIC = ("YBR_PARTIAL_420", "YBR_PARTIAL_422", "HSV", "ARGB", "CMYK", "XYB")
_ITEM = b"\xfe\xff\0\xe0"                           # tag of an item of encapsulated pixels


def get_photometric(dataset: pydicom.Dataset) -> str:
  """Returns PhotometricInterpretation in its standard spelling.

  Raises:
    DicomError: it is missing, or not supported.
  """
  photometric = get_text(dataset, "PhotometricInterpretation").upper()
  if photometric in (*GRAYSCALE, *_COLOR, _PALETTE):
    return photometric
  name = (photometric if photometric in _UNSUPPORTED_PHOTOMETRIC else "an unknown value" if photometric else "missing")
  raise DicomError(f"a DICOM file whose PhotometricInterpretation is {name}, expected MONOCHROME1, MONOCHROME2, RGB, "
                   "YBR or PALETTE COLOR")


def read_stored_values(dataset: pydicom.Dataset, max_pixels: int, warn: Warn) -> np.ndarray:
  """Returns the pixels as stored, integers [rows, columns]; color is converted to luminance.

  Raises:
    DicomError: a field that describes the pixels is missing or wrong, or they can't be decoded.
  """
  if not dataset.get("PixelData"):
    raise DicomError("a DICOM file without pixel data")
  num_frames = get_integer(dataset, "NumberOfFrames", range(2 ** 31), default=1)
  if num_frames > 1:                                # checked before decoding, which may take gigabytes
    raise DicomError(f"a multi-frame DICOM file with {num_frames} frames, expected one image")
  photometric = get_photometric(dataset)
  rows, columns = check_size(dataset, max_pixels)
  num_samples = 3 if photometric in _COLOR else 1
  if get_integer(dataset, "SamplesPerPixel", (1, 3)) != num_samples:
    raise DicomError(f"a DICOM file whose PhotometricInterpretation is {photometric}, but whose SamplesPerPixel is not "
                     f"{num_samples}")
  bits = get_integer(dataset, "BitsAllocated", (1, 8, 16, 32))
  options = {
      "rows": rows, "columns": columns, "number_of_frames": 1, "photometric_interpretation": photometric,
      "samples_per_pixel": num_samples, "bits_allocated": bits,
      "bits_stored": get_integer(dataset, "BitsStored", range(1, bits + 1)),
      "pixel_representation": get_integer(dataset, "PixelRepresentation", (0, 1)), "pixel_keyword": "PixelData",
      "correct_unused_bits": False}                 # done below, for all decoders alike
  if num_samples > 1:
    options["planar_configuration"] = get_integer(dataset, "PlanarConfiguration", (0, 1))
  high_bit = get_integer(dataset, "HighBit", range(options["bits_stored"] - 1, bits), options["bits_stored"] - 1)
  pixels = _decode(dataset, options)
  if pixels.ndim != (2 if num_samples == 1 else 3):
    raise DicomError(f"DICOM pixels of shape {pixels.shape}, expected one image")
  if not photometric.startswith("YBR"):             # those have been converted to RGB of 8 bits
    pixels = _keep_stored_bits(dataset, pixels, options["bits_stored"], high_bit, warn)
  if photometric == _PALETTE:
    pixels = apply_color_lut(pixels, dataset)[..., :3]                 # [rows, columns] -> [rows, columns, 3]
  return to_luminance(pixels) if pixels.ndim == 3 else pixels


def _keep_stored_bits(dataset: pydicom.Dataset, pixels: np.ndarray, bits_stored: int, high_bit: int,
                      warn: Warn) -> np.ndarray:
  """Returns the values in bits 0 to BitsStored - 1, whatever is in the other bits of each word: overlays, or noise.

  The values end at HighBit, so that they are shifted if that is further up. Many files that say so don't do so, and
  then the bits below, which should be empty, are not.
  """
  width, shift = 8 * pixels.dtype.itemsize, high_bit + 1 - bits_stored
  has_overlays = any(0x6000 <= tag.group <= 0x60FF and tag.elem == 0x0102        # OverlayBitPosition
                     for tag in dataset.keys())
  if shift:
    if not has_overlays and np.bitwise_and(pixels, (1 << shift) - 1).any():
      raise DicomError(f"a DICOM file whose HighBit is {high_bit} with BitsStored {bits_stored}, but there are values "
                       "in the bits below")
    if width <= high_bit:
      raise DicomError(f"a DICOM file whose HighBit is {high_bit}, beyond its pixels of {width} bits")
  unused = width - high_bit - 1
  if unused <= 0 and not shift:
    return pixels
  kept = np.left_shift(pixels, max(unused, 0))
  np.right_shift(kept, max(unused, 0) + shift, out=kept)               # arithmetic for signed values
  if not shift and not has_overlays and not np.array_equal(kept, pixels):
    warn("pixels have bits above BitsStored, which are ignored")
  return kept


def _decode(dataset: pydicom.Dataset, options: dict) -> np.ndarray:
  """Returns the decompressed pixels, color as RGB.

  Args:
    options: of pydicom's decoder.

  Raises:
    DicomError: they can't be decompressed; the message names the package to install, if there is one.
  """
  syntax = pydicom.uid.UID(get_text(dataset.file_meta, "TransferSyntaxUID"))
  data = dataset["PixelData"].value
  if not syntax.is_transfer_syntax or syntax.is_private:
    raise DicomError("a DICOM file whose TransferSyntaxUID is unknown")
  try:
    decoder = get_decoder(syntax)
  except NotImplementedError as error:
    raise DicomError(f"a DICOM file with the transfer syntax {syntax.name}, which no decoder reads") from error
  if not syntax.is_encapsulated:
    if data[:4] == _ITEM and len(data) < _count_bytes(options):
      raise DicomError(f"compressed pixels, but the TransferSyntaxUID says {syntax.name}")
    return decoder.as_array(data, **options, pixel_vr=dataset["PixelData"].VR)[0]  # pyright: ignore[reportArgumentType]
  _check_codestream(syntax, data)
  install = "pip install pylibjpeg pylibjpeg-libjpeg (GPL v3)"          # the only decoder of 12-bit JPEG Extended
  if syntax != pydicom.uid.JPEGExtended12Bit or options["bits_stored"] <= 8:
    install = "pip install -e '.[dicom]'" if not _has_dicom_extra() else ""
  elif "pylibjpeg" not in decoder.available_plugins:
    raise DicomError(f"12-bit pixels compressed by {syntax.name}, whose decoder is not installed: {install}")
  if not decoder.is_available:
    raise DicomError(f"pixels compressed by {syntax.name}, whose decoder is not installed: {install}")
  try:
    pixels = decoder_process.decode("dicom", data, options["rows"] * options["columns"] * options["samples_per_pixel"],
                                    transfer_syntax=str(syntax), options=options)
  except decoder_process.DecoderError as error:     # Pillow alone fails on some JPEG 2000 files that others can read
    hint = f"; if the file is intact, this may read it: {install}" if install else ""
    raise DicomError(f"pixels compressed by {syntax.name} that can't be decoded: {error}{hint}") from error
  return pixels


def _count_bytes(options: dict) -> int:
  return options["rows"] * options["columns"] * options["samples_per_pixel"] * options["bits_allocated"] // 8


def _check_codestream(syntax: pydicom.uid.UID, data: bytes) -> None:
  """Raises DicomError if pixels are not compressed in the way that the transfer syntax says."""
  if data[:4] != _ITEM:
    raise DicomError(f"pixels that are not compressed, but the TransferSyntaxUID says {syntax.name}")
  start = 8 + int.from_bytes(data[4:8], "little")                       # behind the table of offsets
  expected = next((name for name in ("JPEG 2000", "JPEG-LS", "JPEG") if name in syntax.name), None)
  if data[start:start + 4] != _ITEM or expected is None:
    return                                          # damaged, which the decoder reports, or RLE, which has no mark
  found = _name_codestream(data[start + 8:start + 2 ** 16])
  if found != expected:
    raise DicomError(f"pixels that are {found or 'of an unknown format'}, but the TransferSyntaxUID says {syntax.name}")


def _name_codestream(data: bytes) -> str:
  """Returns the kind of compressed pixels, by their first markers; "" if unknown."""
  if data.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")):
    return "JPEG 2000"
  if not data.startswith(b"\xff\xd8"):
    return ""
  position = 2
  while data[position:position + 1] == b"\xff" and data[position + 1:position + 2] != b"\xda":     # start of scan
    if data[position + 1:position + 2] == b"\xf7":                      # start of a JPEG-LS frame
      return "JPEG-LS"
    position += 2 + int.from_bytes(data[position + 2:position + 4], "big")
  return "JPEG"


def _has_dicom_extra() -> bool:
  """Returns whether the decoders of the extra `dicom` are installed."""
  plugins = get_decoder(pydicom.uid.JPEG2000Lossless).available_plugins
  return {"gdcm", "pylibjpeg"} <= set(plugins)
