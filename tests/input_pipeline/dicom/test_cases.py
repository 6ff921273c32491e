"""Files as hospitals and older software write them, each beside the file that says the same by the book.

Expected values are computed here with NumPy from the words of the file.
"""

import io
import pathlib

import numpy as np
import PIL.Image
import pydicom
from pydicom.encaps import encapsulate
import pydicom.uid
import pytest

from input_pipeline import dicom, images
from input_pipeline.dicom import parse
from tests.input_pipeline.dicom.test_rendering import FILM, make_dicom, read_pydicom_file

CASES = pathlib.Path(__file__).parents[2] / "cases" / "dicom"


def render(data: bytes, rendering: str = "voi") -> tuple[np.ndarray, list[str]]:
  """Returns the image of a file, and the warnings."""
  warnings = []
  return dicom.render(data, rendering, warn=warnings.append), warnings


def stretch(values) -> np.ndarray:
  """Returns numbers scaled to 0 .. 255."""
  values = np.asarray(values, float)
  return np.rint((values - values.min()) * (255 / (values.max() - values.min()))).astype(np.uint8)


def read_plain_words() -> np.ndarray:
  """Returns the words of plain.dcm, whose pixels are its last bytes."""
  return np.frombuffer((CASES / "plain.dcm").read_bytes()[-2 * 256 * 256:], "<u2").reshape(256, 256)


def save(file: pydicom.Dataset) -> bytes:
  data = io.BytesIO()
  file.save_as(data)
  return data.getvalue()


@pytest.mark.parametrize("name,warns", [
    ("plain", False), ("overlay_j2k", True), ("highbit15", False), ("voilut8in16", False), ("emptyfunc", True),
    ("modlut12", True), ("nopreamble_withmeta", False), ("window_off", True)])
def test_files_that_show_the_same_film(name, warns):
  words = read_plain_words()
  if name == "window_off":                          # another film, of 16 bits: the whole range is shown
    words = np.frombuffer((CASES / "window_off.dcm").read_bytes()[-2 * 256 * 256:], "<u2").reshape(256, 256)
    assert words.max() < 3174 - 2426 / 2 or words.min() > 3174 + 2426 / 2
  rendered, warnings = render((CASES / f"{name}.dcm").read_bytes())
  assert np.array_equal(rendered, stretch(words))
  assert bool(warnings) == warns
  equalized = render((CASES / f"{name}.dcm").read_bytes(), "mimic_cxr_jpg")[0]
  plain = make_dicom_like(words)
  assert np.array_equal(equalized, render(plain, "mimic_cxr_jpg")[0])


def make_dicom_like(words) -> bytes:
  return make_dicom(words, 16, Rows=words.shape[0], Columns=words.shape[1])


def test_decimal_comma_is_a_point():
  words = read_plain_words().astype(float)
  rendered, warnings = render((CASES / "comma.dcm").read_bytes())
  windowed = ((words - 2000) / (3000.5 - 1) + .5).clip(0, 1)          # PS3.3 C.11.2.1.2 for center 2000.5
  assert np.abs(rendered.astype(int) - stretch(windowed)).max() <= 1 and "WindowCenter" in warnings[0]


@pytest.mark.parametrize("syntax", ["native", "RLELossless", "JPEG2000Lossless"])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_bits_stored_are_ignored_whatever_the_decoder(syntax, signed):
  values = FILM - 2048 if signed else FILM
  noise = np.random.default_rng(1).integers(0, 16, FILM.shape) << 12
  words = (values & 0xFFF | noise).astype(np.uint16)
  file = pydicom.dcmread(io.BytesIO(make_dicom(values, 12)))
  if syntax == "native":
    file.PixelData = words.tobytes()
  elif syntax == "RLELossless":
    file.PixelData = words.tobytes()
    file.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
  else:
    jpeg_2000 = io.BytesIO()
    PIL.Image.fromarray(words).save(jpeg_2000, "JPEG2000", no_jp2=True, irreversible=False)
    file.PixelData, file["PixelData"].VR = encapsulate([jpeg_2000.getvalue()]), "OB"
    file.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
  assert np.array_equal(render(save(file))[0], stretch(values))


def test_bits_above_bits_stored_of_jpeg_ls():
  pytest.importorskip("gdcm", reason="python-gdcm is absent: pip install -e '.[dicom]'")
  words = pydicom.dcmread(io.BytesIO(read_pydicom_file("MR_small.dcm"))).pixel_array
  file = pydicom.dcmread(io.BytesIO(read_pydicom_file("MR_small_jpeg_ls_lossless.dcm")))
  file.BitsStored, file.HighBit, file.SmallestImagePixelValue = 10, 9, 0
  del file.WindowCenter, file.WindowWidth
  expected = (words.astype(int) & 0x3FF) - ((words.astype(int) & 0x200) << 1)          # signed, of 10 bits
  assert words.max() > 512 and np.array_equal(render(save(file))[0], stretch(expected))


def test_high_bit_is_honoured_or_refused():
  shifted = make_dicom(FILM << 3, 12, HighBit=14)
  assert np.array_equal(render(shifted)[0], stretch(FILM))
  signed = make_dicom((FILM - 2048) << 4, 12, HighBit=15)
  assert np.array_equal(render(signed)[0], stretch(FILM))
  rle = pydicom.dcmread(io.BytesIO(make_dicom(FILM << 4, 12, HighBit=15)))
  rle.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
  assert np.array_equal(render(save(rle))[0], stretch(FILM))
  color = make_dicom(np.stack([FILM << 4] * 3, -1), 12, HighBit=15)
  assert np.array_equal(render(color)[0], stretch(FILM))
  with pytest.raises(dicom.DicomError, match="HighBit"):             # says 15, but the values are in the lowest bits
    render(make_dicom(FILM, 12, HighBit=15))
  with pytest.raises(dicom.DicomError, match="HighBit"):
    render(make_dicom(FILM, 12, HighBit=7))


@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("form", ["padded", "packed", "packed odd", "10 bits", "16 bits", "12 bits as numbers"])
def test_lookup_tables(sequence, form):
  """The table maps 0 .. 4095 to falling shades; entry i is what pixels of value i become."""
  size = 4095 if form == "packed odd" else 4096
  bits = {"padded": 8, "packed": 8, "packed odd": 8, "10 bits": 10, "16 bits": 16, "12 bits as numbers": 12}[form]
  entries = (4095 - np.arange(size)) * (2 ** bits - 1) // 4095
  table = pydicom.Dataset()
  table.LUTDescriptor = [size, 0, bits]
  if form.startswith("packed"):
    table.LUTData = entries.astype(np.uint8).tobytes() + b"\0" * (size % 2)
  elif form == "12 bits as numbers":
    table.add_new("LUTData", "US", entries.tolist())
  else:
    table.LUTData = entries.astype("<u2").tobytes()
  rendered, warnings = render(make_dicom(FILM, **{sequence: [table]}))
  assert np.array_equal(rendered, stretch(entries[FILM.clip(0, size - 1)]))
  assert bool(warnings) == (sequence == "ModalityLUTSequence" and bits in (10, 12))


@pytest.mark.parametrize("first", [-1024, 65536 - 1024])
def test_a_table_may_start_at_a_negative_level(first):
  table = pydicom.Dataset()
  table.add_new("LUTDescriptor", "SS" if first < 0 else "US", [2000, first, 16])
  table.LUTData = (np.arange(2000) ** 2 // 100).astype("<u2").tobytes()
  values = FILM - 1500
  expected = np.arange(2000) ** 2 // 100
  assert np.array_equal(render(make_dicom(values, 16, VOILUTSequence=[table]))[0],
                        stretch(expected[(values + 1024).clip(0, 1999)]))


@pytest.mark.parametrize("fields", [
    {"WindowCenter": "100000", "WindowWidth": "100"}, {"WindowCenter": "1e9", "WindowWidth": "1"},
    {"RescaleSlope": "0", "RescaleIntercept": "5"}, {"WindowCenter": "abc", "WindowWidth": "4"},
    {"RescaleSlope": "", "RescaleIntercept": ""}, {"WindowCenter": "nan", "WindowWidth": "100"},
    {"VOILUTSequence": [pydicom.Dataset()]}, {"RescaleSlope": "0,0", "RescaleIntercept": "0"}],
    ids=["window far off", "window of width 1", "slope 0", "no number", "empty", "nan", "empty table", "comma"])
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.filterwarnings("ignore")
def test_odd_display_fields_fall_back_to_the_whole_range(fields, photometric):
  data = save_unchecked(make_dicom(FILM, PhotometricInterpretation=photometric), fields)
  rendered, warnings = render(data)
  assert np.array_equal(rendered, stretch(FILM if photometric == "MONOCHROME2" else -FILM)) and warnings


def save_unchecked(data: bytes, fields: dict) -> bytes:
  """Returns a file with further fields, whose values pydicom doesn't check."""
  file = pydicom.dcmread(io.BytesIO(data))
  for name, value in fields.items():
    tag = pydicom.tag.Tag(name)
    if isinstance(value, str):
      file[tag] = pydicom.dataelem.RawDataElement(tag, "DS", len(value), value.encode(), 0, False, True)
    else:
      setattr(file, name, value)
  return save(file)


def test_linear_exact_and_sigmoid_windows():
  def show(function):
    return render(make_dicom(FILM, WindowCenter=800, WindowWidth=600, VOILUTFunction=function))[0].astype(int)
  exact = ((FILM - 800) / 600 + .5).clip(0, 1)
  sigmoid = 1 / (1 + np.exp(-4 * (FILM - 800) / 600))
  assert np.abs(show("LINEAR_EXACT") - stretch(exact)).max() <= 1
  assert np.abs(show("SIGMOID") - stretch(sigmoid)).max() <= 1
  assert np.array_equal(show("linear_exact"), show("LINEAR_EXACT"))


@pytest.mark.parametrize("field,value", [
    ("PhotometricInterpretation", None), ("PhotometricInterpretation", "BGR"), ("PhotometricInterpretation", "RGB"),
    ("BitsStored", None), ("BitsStored", 17), ("BitsStored", 0), ("BitsAllocated", 12),
    ("SamplesPerPixel", 2), ("SamplesPerPixel", None), ("PixelRepresentation", 3), ("Rows", None), ("Columns", 0),
    ("HighBit", 3)])
@pytest.mark.filterwarnings("ignore")
def test_errors_name_the_field(field, value):
  with pytest.raises(dicom.DicomError, match=field):
    dicom.render(make_dicom(FILM, **{field: value}), "voi")


def test_color_without_planar_configuration_is_named():
  with pytest.raises(dicom.DicomError, match="PlanarConfiguration"):
    dicom.render(make_dicom(np.stack([FILM // 16] * 3, -1), 8, 8, PlanarConfiguration=None), "voi")


def test_codestream_that_is_not_what_the_transfer_syntax_says():
  def encode(kind):
    data = io.BytesIO()
    PIL.Image.fromarray((FILM // 16).astype(np.uint8)).save(data, kind, **({} if kind == "JPEG" else {"no_jp2": True}))
    return encapsulate([data.getvalue()])
  jpeg, jpeg_2000 = encode("JPEG"), encode("JPEG2000")
  for syntax, data, found in (("JPEG2000Lossless", jpeg, "JPEG"), ("JPEGBaseline8Bit", jpeg_2000, "JPEG 2000"),
                              ("JPEGLSLossless", jpeg, "JPEG"), ("ExplicitVRLittleEndian", jpeg, "compressed"),
                              ("JPEGBaseline8Bit", (FILM // 16).astype(np.uint8).tobytes(), "not compressed"),
                              ("JPEGBaseline8Bit", encapsulate([b"\x89PNG" * 9]), "unknown format")):
    file = make_dicom(FILM // 16, 8, 8, pydicom.uid.ExplicitVRLittleEndian)
    file = pydicom.dcmread(io.BytesIO(file))
    file.PixelData = data
    file["PixelData"].VR = "OB"
    file.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    buffer = io.BytesIO()
    if data[:4] == b"\xfe\xff\0\xe0":
      file["PixelData"].is_undefined_length = syntax != "ExplicitVRLittleEndian"
    try:
      file.save_as(buffer)
    except ValueError:                              # pydicom refuses to write uncompressed pixels as compressed ones
      continue
    with pytest.raises(dicom.DicomError, match=f"{found}.*TransferSyntaxUID"):
      dicom.render(buffer.getvalue(), "voi")


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("group_length", [True, False])
def test_files_without_preamble_and_meta_header(implicit, group_length, tmp_path):
  file = pydicom.dcmread(io.BytesIO(make_dicom(FILM)))
  if group_length:
    file.add_new((0x0008, 0x0000), "UL", 100)
  data = io.BytesIO()
  pydicom.dcmwrite(data, pydicom.Dataset(file), implicit_vr=implicit, little_endian=True)
  data = data.getvalue()
  assert data[:2] == b"\x08\0" and dicom.is_dicom(data[:dicom.HEAD_SIZE])
  assert np.array_equal(render(data)[0], stretch(FILM))
  assert images.to_jpeg(data, 40) == images.to_jpeg(make_dicom(FILM), 40)


@pytest.mark.parametrize("data", [b"", b"\x08", b"\x08\0", b"a text\n" * 30, b"\x08\0\0\0" * 40, b"\0" * 200,
                                  b"\x08\0\x05\0" + b"\xff" * 200], ids=range(7))
def test_other_files_are_not_taken_for_dicom(data):
  assert not dicom.is_dicom(data[:dicom.HEAD_SIZE]) or data.startswith(b"\x08\0\0\0")


def test_a_deflated_file_is_not_inflated_beyond_what_its_header_says(monkeypatch):
  monkeypatch.setattr(parse, "_MAX_HEADER", 2 ** 12)
  small = make_dicom(FILM, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
  bomb = make_dicom(FILM, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian, PixelData=bytes(2 ** 22))
  assert np.array_equal(render(small)[0], stretch(FILM)) and len(bomb) < 2 ** 13
  with pytest.raises(dicom.DicomError, match="larger than its header says"):
    render(bomb)
  with pytest.raises(dicom.DicomError, match="data.max_image_pixels"):
    dicom.render(make_dicom(FILM), "voi", FILM.size - 1)
