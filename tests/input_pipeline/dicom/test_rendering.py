"""Both renderings of DICOM files in all the encodings that radiographs use; the files are made here."""

import io
import pathlib

import cv2
from etils import epath
import numpy as np
import PIL.Image
import pydicom
import pydicom.data
import pydicom.dataset
from pydicom.encaps import encapsulate
import pydicom.pixels.decoders.base
import pydicom.tag
import pydicom.uid
import pytest

from input_pipeline import dicom, images
from input_pipeline.image_files.shades import stretch_to_uint8
from mcsam_jax.errors import UnreadableFile

GRADIENT = np.tile(np.arange(120) * 20, (80, 1))    # 80 rows, 120 columns, 0 .. 2380
FILM = np.random.default_rng(0).gamma(2, 300, (80, 120)).clip(0, 4095).astype(int)      # mostly dark
in_both_renderings = pytest.mark.parametrize("rendering", dicom.RENDERINGS)


def make_dicom(pixels, bits=12, allocated=16, syntax=pydicom.uid.ExplicitVRLittleEndian, **fields) -> bytes:
  """Returns a DICOM file of integers [80, 120] or [80, 120, 3]; `fields` are set last, None removes one."""
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


def make_jpeg_dicom(pixels) -> bytes:
  """Returns a DICOM file that holds `pixels`, uint8 [80, 120], as a JPEG."""
  jpeg = io.BytesIO()
  PIL.Image.fromarray(pixels).save(jpeg, "JPEG", quality=95)
  return make_dicom(pixels, 8, 8, pydicom.uid.JPEGBaseline8Bit, PixelData=encapsulate([jpeg.getvalue()]))


def equalize(pixels):
  """Returns the image that the authors of MIMIC-CXR-JPG describe, from stored values of MONOCHROME2."""
  shifted = pixels - pixels.min()
  return cv2.equalizeHist(np.trunc(shifted * 255 / shifted.max()).astype(np.uint8))


@pytest.mark.parametrize("photometric,brighter", [("MONOCHROME2", "right"), ("MONOCHROME1", "left")])
def test_voi_applies_rescaling_and_the_first_window(photometric, brighter):
  data = make_dicom(GRADIENT / 2, PhotometricInterpretation=photometric, RescaleSlope=2, RescaleIntercept=0,
               WindowCenter=[1200, 500], WindowWidth=[400, 100])      # the first window clips both ends of 0 .. 2380
  row = dicom.render(data, "voi")[40].astype(int)
  row = row if brighter == "right" else row[::-1]
  assert np.all(row[:48] == 0) and np.all(row[-48:] == 255) and 100 < row[60] < 155
  assert np.all(np.diff(row) >= 0)


def test_voi_applies_a_lookup_table():
  table = pydicom.Dataset()
  table.LUTDescriptor = [2381, 0, 12]
  table.LUTData = np.where(np.arange(2381) >= 1200, 4095, 0).astype("<u2").tobytes()
  rendered = dicom.render(make_dicom(GRADIENT, VOILUTSequence=[table]), "voi")
  assert np.array_equal(rendered, np.where(GRADIENT >= 1200, 255, 0))


@pytest.mark.parametrize("bits,allocated,pixels", [
    (8, 8, FILM // 16), (12, 16, FILM), (16, 16, FILM * 16), (12, 16, FILM - 2048), (16, 16, FILM * 16 - 32768),
], ids=["8 bits", "12 bits", "16 bits", "12 bits signed", "16 bits signed"])
def test_mimic_cxr_jpg_is_the_equalized_image(bits, allocated, pixels):
  window: dict = {"WindowCenter": 100, "WindowWidth": 10, "RescaleSlope": 2, "RescaleIntercept": -1024}     # ignored
  rendered = dicom.render(make_dicom(pixels, bits, allocated, **window), "mimic_cxr_jpg")
  assert rendered.dtype == np.uint8 and np.array_equal(rendered, equalize(pixels))
  assert 118 < rendered.mean() < 138 and equalize(pixels).std() > 1.2 * stretch_to_uint8(pixels).std()


def test_equalization_by_hand():
  """Four values in equal columns, 0 3 3 9: the darkest becomes 0, the others follow their cumulative share."""
  rendered = dicom.render(make_dicom(np.tile(np.repeat([0, 3, 3, 9], 30), (80, 1))), "mimic_cxr_jpg")
  assert rendered[0, ::30].tolist() == [0, 170, 170, 255]


@in_both_renderings
@pytest.mark.parametrize("bits,allocated", [(8, 8), (12, 16), (16, 16)])
def test_monochrome1_and_monochrome2_give_the_same_image(rendering, bits, allocated):
  pixels = FILM >> 12 - bits if bits < 12 else FILM << bits - 12
  monochrome2 = make_dicom(pixels, bits, allocated)
  monochrome1 = make_dicom(2 ** bits - 1 - pixels, bits, allocated, PhotometricInterpretation="MONOCHROME1")
  assert np.array_equal(dicom.render(monochrome2, rendering), dicom.render(monochrome1, rendering))


@in_both_renderings
def test_signed_values_with_an_intercept_equal_unsigned_ones(rendering):
  signed = make_dicom(GRADIENT - 1024, RescaleSlope=1, RescaleIntercept=1024, WindowCenter=1190.5, WindowWidth=2381)
  unsigned = make_dicom(GRADIENT, WindowCenter=1190.5, WindowWidth=2381)
  assert np.array_equal(dicom.render(signed, rendering), dicom.render(unsigned, rendering))


@in_both_renderings
def test_color_becomes_luminance(rendering):
  gray = np.tile(np.arange(120), (80, 1))
  as_gray = dicom.render(make_dicom(gray, 8, 8), rendering)
  rgb = make_dicom(np.stack([gray] * 3, -1), 8, 8)
  ybr = make_dicom(np.stack([gray, np.full_like(gray, 128), np.full_like(gray, 128)], -1), 8, 8,
              PhotometricInterpretation="YBR_FULL")
  for color in rgb, ybr:
    assert np.array_equal(dicom.render(color, rendering), as_gray)
  pure = np.repeat(np.eye(3, dtype=int) * 255, 40, 0)[None].repeat(80, 0)      # a third red, green, blue each
  blue, red, green = np.sort(np.unique(dicom.render(make_dicom(pure, 8, 8), rendering)))
  assert dicom.render(make_dicom(pure, 8, 8), rendering)[0, [0, 40, 80]].tolist() == [red, green, blue]


@in_both_renderings
def test_jpeg_compressed_pixels(rendering):
  pixels = np.tile(np.arange(120, dtype=np.uint8) * 2, (80, 1))
  files = make_dicom(pixels, 8, 8), make_jpeg_dicom(pixels)
  plain, packed = (dicom.render(file, rendering).astype(int) for file in files)
  assert np.abs(plain - packed).max() < 8


@in_both_renderings
def test_image_of_one_shade_is_refused(rendering):
  with pytest.raises(dicom.DicomError, match="single shade"):
    dicom.render(make_dicom(np.full((80, 120), 700)), rendering)


@in_both_renderings
def test_several_frames_are_an_error(rendering):
  with pytest.raises(ValueError, match="3 frames"):
    dicom.render(make_dicom(np.tile(GRADIENT, (3, 1)), NumberOfFrames=3), rendering)
  assert dicom.render(make_dicom(GRADIENT, NumberOfFrames=1), rendering).shape == (80, 120)


@in_both_renderings
def test_missing_pixels_are_an_error(rendering):
  with pytest.raises(ValueError, match="pixel data"):
    dicom.render(make_dicom(GRADIENT, PixelData=None), rendering)


@in_both_renderings
def test_unsupported_color_space_is_named(rendering):
  with pytest.raises(ValueError, match="PhotometricInterpretation.* HSV"):
    dicom.render(make_dicom(GRADIENT, PhotometricInterpretation="HSV"), rendering)


@in_both_renderings
@pytest.mark.parametrize("data", [make_dicom(GRADIENT), make_jpeg_dicom(np.uint8(FILM // 16)), make_dicom(
    GRADIENT, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)], ids=["plain", "jpeg", "deflated"])
@pytest.mark.filterwarnings("ignore")             # warnings of pydicom about the damage
def test_truncated_files_are_an_error_of_one_line(rendering, data):
  for part in np.linspace(0.01, 0.98, 30):
    cut = data[:132 + int(part * (len(data) - 132))]
    with pytest.raises(ValueError) as error:
      dicom.render(cut, rendering)
    assert str(error.value) and "\n" not in str(error.value)


def test_images_are_equalized_before_they_are_scaled_down():
  """Scaling first would average the noise of this image away, and the equalization would give other values."""
  def shrink(pixels):
    return np.asarray(PIL.Image.fromarray(pixels).resize((60, 40), PIL.Image.Resampling.BILINEAR))
  stored = images.to_jpeg(make_dicom(FILM), 40, "mimic_cxr_jpg")
  with PIL.Image.open(io.BytesIO(stored)) as image:
    assert image.format == "JPEG" and image.mode == "L" and image.size == (60, 40)
    pixels = np.asarray(image, int)
  assert np.abs(pixels - shrink(equalize(FILM))).mean() < 3
  assert np.abs(pixels - cv2.equalizeHist(shrink(stretch_to_uint8(FILM)))).mean() > 20


def test_default_rendering_is_voi():
  data = make_dicom(FILM, WindowCenter=1200, WindowWidth=400)
  assert images.to_jpeg(data, 40) == images.to_jpeg(data, 40, "voi") != images.to_jpeg(data, 40, "mimic_cxr_jpg")


def test_load_jpeg_renders_dicom_and_errors_name_the_file(tmp_path):
  path = epath.Path(tmp_path / "film.dcm")
  path.write_bytes(make_dicom(FILM))
  expected = images.to_jpeg(make_dicom(FILM), 40, "mimic_cxr_jpg")
  assert images.load_jpeg(path, 40, dicom_rendering="mimic_cxr_jpg") == expected
  path.write_bytes(make_dicom(FILM)[:2000])
  with pytest.raises(UnreadableFile) as error:
    images.load_jpeg(path, 40, dicom_rendering="mimic_cxr_jpg")
  assert error.value.path.endswith("film.dcm") and error.value.reason and "\n" not in error.value.reason


GRAY_RAMP = np.tile(np.arange(120, dtype=int) * 2, (80, 1))


def read_pydicom_file(name) -> bytes:
  """Returns a test file that is part of pydicom."""
  return (pathlib.Path(pydicom.data.__file__).parent / "test_files" / name).read_bytes()


@in_both_renderings
@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "DeflatedExplicitVRLittleEndian", "RLELossless"])
def test_transfer_syntaxes_that_need_no_extra_decoder(rendering, syntax):
  expected = dicom.render(make_dicom(FILM), rendering)
  if syntax == "RLELossless":
    file = pydicom.dcmread(io.BytesIO(make_dicom(FILM)))
    file.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    data = io.BytesIO()
    file.save_as(data)
    data = data.getvalue()
    assert len(data) != len(make_dicom(FILM))
  else:
    data = make_dicom(FILM, syntax=getattr(pydicom.uid, syntax))
  assert np.array_equal(dicom.render(data, rendering), expected)


@pytest.mark.parametrize("name", ["MR_small_bigendian", "MR_small_RLE", "MR_small_jp2klossless"])
def test_one_image_in_several_transfer_syntaxes(name):
  expected = dicom.render(read_pydicom_file("MR_small.dcm"), "voi")
  assert np.array_equal(dicom.render(read_pydicom_file(f"{name}.dcm"), "voi"), expected)


@pytest.mark.parametrize("name,equal_to", [
    ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"), ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),
    ("GDCMJ2K_TextGBR.dcm", None)], ids=["JPEG-LS", "JPEG lossless", "JPEG 2000 with a color transform"])
def test_decoders_of_the_dicom_extra(name, equal_to):
  pytest.importorskip("gdcm", reason="python-gdcm is absent: pip install -e '.[dicom]'")
  rendered = dicom.render(read_pydicom_file(name), "voi")
  assert rendered.std() > 20
  if equal_to:
    assert np.array_equal(rendered, dicom.render(read_pydicom_file(equal_to), "voi"))


def test_missing_decoder_error_names_the_package_to_install(monkeypatch):
  monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, "is_available", False)
  monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, "available_plugins", ())
  with pytest.raises(ValueError, match=r"JPEG-LS Lossless.*pip install -e '\.\[dicom\]'"):
    dicom.render(read_pydicom_file("MR_small_jpeg_ls_lossless.dcm"), "voi")
  with pytest.raises(ValueError, match="12-bit .*JPEG Extended.*pylibjpeg-libjpeg"):
    dicom.render(read_pydicom_file("JPGExtended.dcm"), "voi")


def test_transfer_syntax_of_a_video_is_an_error():
  data = make_dicom(GRADIENT, syntax=pydicom.uid.MPEG2MPML, PixelData=encapsulate([b"\0" * 8]))
  with pytest.raises(ValueError, match="MPEG2"):
    dicom.render(data, "voi")


def test_palette_becomes_the_luminance_of_its_colors():
  """Index i is a gray of 255 - i, in 16-bit tables."""
  tables = {}
  for color in ("Red", "Green", "Blue"):
    tables[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
    tables[f"{color}PaletteColorLookupTableData"] = ((255 - np.arange(256)) * 257).astype("<u2").tobytes()
  palette = make_dicom(GRAY_RAMP, 8, 8, PhotometricInterpretation="PALETTE COLOR", **tables)
  assert np.array_equal(dicom.render(palette, "voi"), dicom.render(make_dicom(255 - GRAY_RAMP, 8, 8), "voi"))


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_padding_is_black_and_changes_no_other_pixel(photometric):
  """Padding of -2000 would leave an image of 0 .. 2380 little more than half of the gray levels."""
  padded = GRADIENT.copy()
  padded[:, :20] = -2000
  file = make_dicom(padded, 16, PhotometricInterpretation=photometric, PixelPaddingValue=-2000)
  alone = make_dicom(np.tile(GRADIENT[:, 20:], (1, 2))[:, :120], 16, PhotometricInterpretation=photometric)
  assert np.all(dicom.render(file, "voi")[:, :20] == 0)
  assert np.array_equal(dicom.render(file, "voi")[:, 20:], dicom.render(alone, "voi")[:, :100])
  by_range = make_dicom(padded, 16, PhotometricInterpretation=photometric, PixelPaddingValue=-2000,
                   PixelPaddingRangeLimit=-1500)
  assert np.array_equal(dicom.render(by_range, "voi"), dicom.render(file, "voi"))
  nothing_else = {"PixelPaddingValue": int(padded.min()), "PixelPaddingRangeLimit": int(padded.max())}
  without = make_dicom(padded, 16, PhotometricInterpretation=photometric)
  only_padding = make_dicom(padded, 16, PhotometricInterpretation=photometric, **nothing_else)
  assert np.array_equal(dicom.render(only_padding, "voi"), dicom.render(without, "voi"))


def test_window_of_width_zero_is_ignored():
  assert np.array_equal(dicom.render(make_dicom(FILM, WindowCenter=100, WindowWidth=0), "voi"),
                        dicom.render(make_dicom(FILM), "voi"))


def test_image_that_is_too_large_is_an_error_before_it_is_decoded():
  with pytest.raises(ValueError, match="60000 x 60000"):
    dicom.render(make_dicom(FILM, Rows=60000, Columns=60000), "voi")


@in_both_renderings
def test_errors_contain_no_personal_data(rendering):
  """Even if a name was entered in a field that has another purpose."""
  for field in ("PhotometricInterpretation", "NumberOfFrames", "WindowCenter", "RescaleSlope"):
    valid = make_dicom(FILM, WindowCenter=100, WindowWidth=200, RescaleSlope=1, RescaleIntercept=0)
    file = pydicom.dcmread(io.BytesIO(valid))
    file[field] = pydicom.DataElement(file[field].tag if field in file else pydicom.tag.Tag(field), "LO", "Doe^Jane")
    data = io.BytesIO()
    file.save_as(data)
    try:
      dicom.render(data.getvalue(), rendering)
    except ValueError as error:
      assert "Doe" not in str(error) and str(error)
    else:
      assert field in ("WindowCenter", "RescaleSlope")        # they only affect the display
