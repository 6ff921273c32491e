"""DICOM files of every kind that films come in, made here, and what the two renderings make of them."""

import io
import pathlib

import cv2
from etils import epath
import numpy as np
import PIL.Image
import pydicom
import pydicom.data
from pydicom.encaps import encapsulate
import pytest

from input_pipeline import dicom, images
from mcsam_jax.errors import UnreadableFile

GRADIENT = np.tile(np.arange(120) * 20, (80, 1))    # 80 rows, 120 columns, 0 .. 2380
FILM = np.random.default_rng(0).gamma(2, 300, (80, 120)).clip(0, 4095).astype(int)      # most of it dark
in_both = pytest.mark.parametrize("rendering", dicom.RENDERINGS)


def write(pixels, bits=12, allocated=16, syntax=pydicom.uid.ExplicitVRLittleEndian, **fields) -> bytes:
  """A DICOM file of integers [80, 120] or [80, 120, 3]; `fields` are set last, None takes one away."""
  file = pydicom.Dataset()
  file.SOPClassUID, file.SOPInstanceUID = pydicom.uid.DigitalXRayImageStorageForPresentation, "1.2.3"
  file.Rows, file.Columns, file.SamplesPerPixel = 80, 120, 1
  file.PhotometricInterpretation, file.PixelRepresentation = "MONOCHROME2", int(np.min(pixels) < 0)
  if np.ndim(pixels) == 3:
    file.SamplesPerPixel, file.PlanarConfiguration, file.PhotometricInterpretation = 3, 0, "RGB"
  file.BitsAllocated, file.BitsStored, file.HighBit = allocated, bits, bits - 1
  kind = {8: np.uint8, 16: np.int16 if file.PixelRepresentation else np.uint16}[allocated]
  file.PixelData = np.asarray(pixels).astype(kind).tobytes()
  for name, value in fields.items():
    delattr(file, name) if value is None else setattr(file, name, value)
  file.file_meta = pydicom.dataset.FileMetaDataset()
  file.file_meta.TransferSyntaxUID = syntax
  data = io.BytesIO()
  file.save_as(data, enforce_file_format=True)
  return data.getvalue()


def write_jpeg(pixels) -> bytes:
  """A DICOM file that holds `pixels`, uint8 [80, 120], as a JPEG."""
  jpeg = io.BytesIO()
  PIL.Image.fromarray(pixels).save(jpeg, "JPEG", quality=95)
  return write(pixels, 8, 8, pydicom.uid.JPEGBaseline8Bit, PixelData=encapsulate([jpeg.getvalue()]))


def equalised(pixels):
  """What MIMIC-CXR-JPG's authors describe, from stored values of MONOCHROME2."""
  shifted = pixels - pixels.min()
  return cv2.equalizeHist(np.trunc(shifted * 255 / shifted.max()).astype(np.uint8))


@pytest.mark.parametrize("photometric,brighter", [("MONOCHROME2", "right"), ("MONOCHROME1", "left")])
def test_voi_is_what_a_viewer_shows(photometric, brighter):
  data = write(GRADIENT / 2, PhotometricInterpretation=photometric, RescaleSlope=2, RescaleIntercept=0,
               WindowCenter=[1200, 500], WindowWidth=[400, 100])      # the first clips both ends of 0 .. 2380
  row = dicom.render(data, "voi")[40].astype(int)
  row = row if brighter == "right" else row[::-1]
  assert np.all(row[:48] == 0) and np.all(row[-48:] == 255) and 100 < row[60] < 155
  assert np.all(np.diff(row) >= 0)


def test_voi_goes_through_a_lookup_table():
  table = pydicom.Dataset()
  table.LUTDescriptor = [2381, 0, 12]
  table.LUTData = np.where(np.arange(2381) >= 1200, 4095, 0).astype("<u2").tobytes()
  rendered = dicom.render(write(GRADIENT, VOILUTSequence=[table]), "voi")
  assert np.array_equal(rendered, np.where(GRADIENT >= 1200, 255, 0))


@pytest.mark.parametrize("bits,allocated,pixels", [
    (8, 8, FILM // 16), (12, 16, FILM), (16, 16, FILM * 16), (12, 16, FILM - 2048), (16, 16, FILM * 16 - 32768),
], ids=["8 bits", "12 bits", "16 bits", "12 bits signed", "16 bits signed"])
def test_mimic_cxr_jpg_is_the_equalised_picture(bits, allocated, pixels):
  window = {"WindowCenter": 100, "WindowWidth": 10, "RescaleSlope": 2, "RescaleIntercept": -1024}     # not looked at
  rendered = dicom.render(write(pixels, bits, allocated, **window), "mimic_cxr_jpg")
  assert rendered.dtype == np.uint8 and np.array_equal(rendered, equalised(pixels))
  assert 118 < rendered.mean() < 138 and equalised(pixels).std() > 1.2 * dicom.stretch(pixels).std()


def test_equalised_by_hand():
  """Of four values, 0 3 3 9 in equal columns: darkest to 0, then by how many of the others are no brighter."""
  rendered = dicom.render(write(np.tile(np.repeat([0, 3, 3, 9], 30), (80, 1))), "mimic_cxr_jpg")
  assert rendered[0, ::30].tolist() == [0, 170, 170, 255]


@in_both
@pytest.mark.parametrize("bits,allocated", [(8, 8), (12, 16), (16, 16)])
def test_it_does_not_matter_which_way_round_a_film_is_stored(rendering, bits, allocated):
  pixels = FILM >> 12 - bits if bits < 12 else FILM << bits - 12
  bright_bone = write(pixels, bits, allocated)
  dark_bone = write(2 ** bits - 1 - pixels, bits, allocated, PhotometricInterpretation="MONOCHROME1")
  assert np.array_equal(dicom.render(bright_bone, rendering), dicom.render(dark_bone, rendering))


@in_both
def test_signs_and_rescaling(rendering):
  signed = write(GRADIENT - 1024, RescaleSlope=1, RescaleIntercept=1024, WindowCenter=1190.5, WindowWidth=2381)
  unsigned = write(GRADIENT, WindowCenter=1190.5, WindowWidth=2381)
  assert np.array_equal(dicom.render(signed, rendering), dicom.render(unsigned, rendering))


@in_both
def test_colour_becomes_its_luminance(rendering):
  gray = np.tile(np.arange(120), (80, 1))
  as_gray = dicom.render(write(gray, 8, 8), rendering)
  rgb = write(np.stack([gray] * 3, -1), 8, 8)
  ybr = write(np.stack([gray, np.full_like(gray, 128), np.full_like(gray, 128)], -1), 8, 8,
              PhotometricInterpretation="YBR_FULL")
  for colour in rgb, ybr:
    assert np.array_equal(dicom.render(colour, rendering), as_gray)
  pure = np.repeat(np.eye(3, dtype=int) * 255, 40, 0)[None].repeat(80, 0)      # a third red, green, blue each
  blue, red, green = np.sort(np.unique(dicom.render(write(pure, 8, 8), rendering)))
  assert dicom.render(write(pure, 8, 8), rendering)[0, [0, 40, 80]].tolist() == [red, green, blue]


@in_both
def test_compressed(rendering):
  pixels = np.tile(np.arange(120, dtype=np.uint8) * 2, (80, 1))
  plain, packed = (dicom.render(data, rendering).astype(int) for data in (write(pixels, 8, 8), write_jpeg(pixels)))
  assert np.abs(plain - packed).max() < 8


@in_both
def test_an_empty_film_is_one_shade(rendering):
  assert np.unique(dicom.render(write(np.full((80, 120), 700)), rendering)).size == 1


@in_both
def test_several_frames_are_refused(rendering):
  with pytest.raises(ValueError, match="multi-frame.* 3 frames"):
    dicom.render(write(np.tile(GRADIENT, (3, 1)), NumberOfFrames=3), rendering)
  assert dicom.render(write(GRADIENT, NumberOfFrames=1), rendering).shape == (80, 120)


@in_both
def test_no_pixels_are_refused(rendering):
  with pytest.raises(ValueError, match="without pixel data"):
    dicom.render(write(GRADIENT, PixelData=None), rendering)


@in_both
def test_other_colours_are_refused_by_name(rendering):
  with pytest.raises(ValueError, match="the kind HSV"):
    dicom.render(write(GRADIENT, PhotometricInterpretation="HSV"), rendering)


@in_both
@pytest.mark.parametrize("data", [write(GRADIENT), write_jpeg(np.uint8(FILM // 16)), write(
    GRADIENT, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)], ids=["plain", "jpeg", "deflated"])
@pytest.mark.filterwarnings("ignore")             # pydicom's own words about the damage
def test_cut_files_are_refused_in_one_line(rendering, data):
  for part in np.linspace(0.01, 0.98, 30):
    cut = data[:132 + int(part * (len(data) - 132))]
    with pytest.raises(ValueError) as error:
      dicom.render(cut, rendering)
    assert str(error.value) and "\n" not in str(error.value)


def test_equalised_before_it_is_scaled_down():
  """Scaled first, the grain of this film would average out, and its equalisation would bring out other shades."""
  def smaller(pixels):
    return np.asarray(PIL.Image.fromarray(pixels).resize((60, 40), PIL.Image.Resampling.BILINEAR))
  stored = images.to_jpeg(write(FILM), 40, "mimic_cxr_jpg")
  with PIL.Image.open(io.BytesIO(stored)) as image:
    assert image.format == "JPEG" and image.mode == "L" and image.size == (60, 40)
    pixels = np.asarray(image, int)
  assert np.abs(pixels - smaller(equalised(FILM))).mean() < 3
  assert np.abs(pixels - cv2.equalizeHist(smaller(dicom.stretch(FILM)))).mean() > 20


def test_a_viewers_rendering_unless_asked():
  data = write(FILM, WindowCenter=1200, WindowWidth=400)
  assert images.to_jpeg(data, 40) == images.to_jpeg(data, 40, "voi") != images.to_jpeg(data, 40, "mimic_cxr_jpg")


def test_files_are_rendered_and_faults_name_them(tmp_path):
  path = epath.Path(tmp_path / "film.dcm")
  path.write_bytes(write(FILM))
  expected = images.to_jpeg(write(FILM), 40, "mimic_cxr_jpg")
  assert images.load_jpeg(path, 40, dicom_rendering="mimic_cxr_jpg") == expected
  path.write_bytes(write(FILM)[:2000])
  with pytest.raises(UnreadableFile) as error:
    images.load_jpeg(path, 40, dicom_rendering="mimic_cxr_jpg")
  assert error.value.path.endswith("film.dcm") and error.value.reason and "\n" not in error.value.reason


GRAY_RAMP = np.tile(np.arange(120, dtype=int) * 2, (80, 1))


def shipped(name) -> bytes:
  """A file that pydicom brings along for its own tests."""
  return (pathlib.Path(pydicom.data.__file__).parent / "test_files" / name).read_bytes()


@in_both
@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "DeflatedExplicitVRLittleEndian", "RLELossless"])
def test_transfer_syntaxes_that_need_no_decoder(rendering, syntax):
  expected = dicom.render(write(FILM), rendering)
  if syntax == "RLELossless":
    file = pydicom.dcmread(io.BytesIO(write(FILM)))
    file.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    data = io.BytesIO()
    file.save_as(data)
    data = data.getvalue()
    assert len(data) != len(write(FILM))
  else:
    data = write(FILM, syntax=getattr(pydicom.uid, syntax))
  assert np.array_equal(dicom.render(data, rendering), expected)


@pytest.mark.parametrize("name", ["MR_small_bigendian", "MR_small_RLE", "MR_small_jp2klossless"])
def test_one_picture_in_many_transfer_syntaxes(name):
  assert np.array_equal(dicom.render(shipped(f"{name}.dcm"), "voi"), dicom.render(shipped("MR_small.dcm"), "voi"))


@pytest.mark.parametrize("name,equal_to", [
    ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"), ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),
    ("GDCMJ2K_TextGBR.dcm", None)], ids=["JPEG-LS", "JPEG lossless", "JPEG 2000 with a colour transform"])
def test_decoders_of_the_extra(name, equal_to):
  pytest.importorskip("gdcm", reason="python-gdcm is absent: pip install -e '.[dicom]'")
  rendered = dicom.render(shipped(name), "voi")
  assert rendered.std() > 20
  if equal_to:
    assert np.array_equal(rendered, dicom.render(shipped(equal_to), "voi"))


def test_a_missing_decoder_is_named_with_what_to_install(monkeypatch):
  monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, "is_available", False)
  monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, "available_plugins", ())
  with pytest.raises(ValueError, match=r"JPEG-LS Lossless.*isn't installed: pip install -e '\.\[dicom\]'"):
    dicom.render(shipped("MR_small_jpeg_ls_lossless.dcm"), "voi")
  with pytest.raises(ValueError, match="12-bit .*JPEG Extended.*pylibjpeg-libjpeg"):
    dicom.render(shipped("JPGExtended.dcm"), "voi")


def test_a_syntax_that_holds_no_picture_is_refused():
  data = write(GRADIENT, syntax=pydicom.uid.MPEG2MPML, PixelData=encapsulate([b"\0" * 8]))
  with pytest.raises(ValueError, match="no decoder reads .*MPEG2"):
    dicom.render(data, "voi")


def test_a_palette_becomes_the_luminance_of_its_colours():
  """Index i stands for a gray of 255 - i, in tables of 16 bits."""
  tables = {}
  for colour in ("Red", "Green", "Blue"):
    tables[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
    tables[f"{colour}PaletteColorLookupTableData"] = ((255 - np.arange(256)) * 257).astype("<u2").tobytes()
  palette = write(GRAY_RAMP, 8, 8, PhotometricInterpretation="PALETTE COLOR", **tables)
  assert np.array_equal(dicom.render(palette, "voi"), dicom.render(write(255 - GRAY_RAMP, 8, 8), "voi"))


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_padding_is_black_and_changes_no_other_pixel(photometric):
  """A detector's corner at -2000 would leave a film of 0 .. 2380 little more than half of the shades."""
  padded = GRADIENT.copy()
  padded[:, :20] = -2000
  file = write(padded, 16, PhotometricInterpretation=photometric, PixelPaddingValue=-2000)
  alone = write(np.tile(GRADIENT[:, 20:], (1, 2))[:, :120], 16, PhotometricInterpretation=photometric)
  assert np.all(dicom.render(file, "voi")[:, :20] == 0)
  assert np.array_equal(dicom.render(file, "voi")[:, 20:], dicom.render(alone, "voi")[:, :100])
  by_range = write(padded, 16, PhotometricInterpretation=photometric, PixelPaddingValue=-2000,
                   PixelPaddingRangeLimit=-1500)
  assert np.array_equal(dicom.render(by_range, "voi"), dicom.render(file, "voi"))
  all_of_it = write(np.full((80, 120), 7), PixelPaddingValue=7)
  assert np.unique(dicom.render(all_of_it, "voi")).size == 1


def test_a_window_of_no_width_is_not_looked_through():
  assert np.array_equal(dicom.render(write(FILM, WindowCenter=100, WindowWidth=0), "voi"),
                        dicom.render(write(FILM), "voi"))


def test_a_film_larger_than_any_is_refused_before_it_is_decoded():
  with pytest.raises(ValueError, match="60000 x 60000 pixels"):
    dicom.render(write(FILM, Rows=60000, Columns=60000), "voi")


@in_both
def test_messages_quote_nothing_of_a_person(rendering):
  """Whoever filled the fields in by mistake."""
  for field in ("PhotometricInterpretation", "NumberOfFrames", "WindowCenter", "RescaleSlope"):
    whole = write(FILM, WindowCenter=100, WindowWidth=200, RescaleSlope=1, RescaleIntercept=0)
    file = pydicom.dcmread(io.BytesIO(whole))
    file[field] = pydicom.DataElement(file[field].tag if field in file else pydicom.tag.Tag(field), "LO", "Doe^Jane")
    data = io.BytesIO()
    file.save_as(data)
    try:
      dicom.render(data.getvalue(), rendering)
    except ValueError as error:
      assert "Doe" not in str(error) and str(error)
    else:
      assert rendering == "mimic_cxr_jpg" and field in ("WindowCenter", "RescaleSlope")      # not looked at
