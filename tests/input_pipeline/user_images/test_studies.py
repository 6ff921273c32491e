"""Which files are radiographs, which belong to one study, and which view each shows; other files are errors."""

import io
import pathlib

import numpy as np
import PIL.Image
import pydicom
import pydicom.dataset
import pydicom.uid
import pytest

from configs import default
from input_pipeline import images, user_images
from input_pipeline.image_files.formats import is_color

FILM = np.random.default_rng(0).gamma(2, 30, (80, 64)).clip(0, 255).astype(np.uint8)
RAMP = np.tile(np.arange(64, dtype=np.uint8) * 3, (80, 1))


def write_dicom(path, study="1.2.3", **fields):
  file = pydicom.Dataset()
  file.SOPClassUID, file.SOPInstanceUID = pydicom.uid.DigitalXRayImageStorageForPresentation, pydicom.uid.generate_uid()
  file.PatientName, file.PatientID, file.AccessionNumber = "Doe^Jane", "MRN0042", "ACC0042"
  file.Modality, file.BodyPartExamined, file.StudyInstanceUID = "DX", "CHEST", study
  file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = *FILM.shape, 1, "MONOCHROME2"
  file.BitsAllocated = file.BitsStored = 8
  file.HighBit, file.PixelRepresentation, file.PixelData = 7, 0, FILM.tobytes()
  for name, value in fields.items():
    delattr(file, name) if value is None else setattr(file, name, value)
  file.file_meta = pydicom.dataset.FileMetaDataset()
  file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  path.parent.mkdir(parents=True, exist_ok=True)
  file.save_as(path, enforce_file_format=True)


def write_image(path, pixels=FILM, kind=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(pixels).save(path, kind)


def list_names(found, folder):
  """Returns the names of the files of each study, relative to `folder`."""
  return [[file.name.removeprefix(f"{folder}/") for file in files] for files in found.studies]


def make_data_config(**fields):
  config = default.get_config()
  config.data.update({"short_side": 40, "image_size": 32} | fields)
  return config.data


@pytest.fixture
def tree(tmp_path):
  """A typical folder: two DICOM studies that are spread over folders, the folder of one study, and a collection."""
  write_dicom(tmp_path / "cd" / "IM1", "1.1", ViewPosition="LL")
  write_dicom(tmp_path / "cd" / "more" / "IM2", "1.1", ViewPosition="PA")
  write_dicom(tmp_path / "cd" / "IM3", "1.2", ViewPosition="AP")
  write_image(tmp_path / "case" / "0.png")
  write_image(tmp_path / "case" / "1.png")
  for name in ("ann_pa.png", "ann_lateral.png", "bob.jpg", "eve.png", "dan.tif"):
    write_image(tmp_path / "many" / name)
  (tmp_path / "many" / "README.txt").write_text("not an image")
  (tmp_path / "many" / ".hidden.png").write_text("not an image")
  (tmp_path / "cd" / "DICOMDIR").write_bytes((tmp_path / "cd" / "IM1").read_bytes())
  return tmp_path


def test_files_in_folders_are_grouped_into_studies(tree):
  found = user_images.find_studies([str(tree)])
  assert not found.unreadable and found.num_skipped == 2
  assert list_names(found, tree) == [["case/0.png", "case/1.png"], ["cd/IM1", "cd/more/IM2"], ["cd/IM3"],
                                   ["many/ann_lateral.png", "many/ann_pa.png"], ["many/bob.jpg"], ["many/dan.tif"],
                                   ["many/eve.png"]]
  assert list_names(user_images.find_studies([str(tree / "case"), str(tree / "case" / "0.png")]), tree) == [
      ["case/0.png", "case/1.png"]]                           # no file counts twice


@pytest.mark.parametrize("grouping,expected", [
    ("all", [["cd/IM3", "case/1.png", "case/0.png"]]), ("file", [["cd/IM3"], ["case/1.png"], ["case/0.png"]]),
    ("folder", [["cd/IM3"], ["case/1.png", "case/0.png"]]), ("auto", [["cd/IM3"], ["case/1.png"], ["case/0.png"]])])
def test_user_can_choose_the_grouping(tree, grouping, expected):
  paths = [str(tree / name) for name in ("cd/IM3", "case/1.png", "case/0.png")]
  assert list_names(user_images.find_studies(paths, grouping), tree) == expected


@pytest.mark.parametrize("names,expected", [
    (["x.png"], ["x.png frontal order"]),
    (["b.png", "a.png", "c.png"], ["b.png frontal order", "a.png lateral order", "c.png other order"]),
    (["Chest-LAT.png", "Chest-AP.png"], ["Chest-AP.png frontal name", "Chest-LAT.png lateral name"]),
    (["lateral.png", "x.png"], ["x.png frontal order", "lateral.png lateral name"]),
    (["lateral.png"], ["lateral.png lateral name"]),
    (["ap_1.png", "pa_2.png"], ["pa_2.png frontal name", "ap_1.png frontal name"]),
    (["apple.png"], ["apple.png frontal order"]),
])
def test_views_from_names_and_order(tmp_path, names, expected):
  for name in names:
    write_image(tmp_path / name)
  files, = user_images.find_studies([str(tmp_path / name) for name in names], "all").studies
  assert [f"{pathlib.Path(file.name).name} {file.view} {file.view_source}"
          for file in user_images.order_views(files)] == expected


def test_view_in_the_header_takes_precedence_over_the_name(tmp_path):
  write_dicom(tmp_path / "lateral.dcm", ViewPosition="PA")
  write_dicom(tmp_path / "b.dcm", ViewPosition="LATERAL")
  files, = user_images.find_studies([str(tmp_path)]).studies
  views = [(file.view, file.view_source) for file in user_images.order_views(files)]
  assert views == [("frontal", "header"), ("lateral", "header")]
  assert user_images.order_views(files[:1], single_view="other")[0].view == "lateral"
  write_image(tmp_path / "x.png")
  (file,), = user_images.find_studies([str(tmp_path / "x.png")]).studies
  assert user_images.order_views([file], single_view="other")[0].view == "other"


def test_images_are_converted_like_those_of_records(tmp_path):
  write_dicom(tmp_path / "a.dcm", ViewPosition="LL")
  write_image(tmp_path / "b_pa.png")
  files, = user_images.find_studies([str(tmp_path)], "all").studies
  study = user_images.read_study(files, make_data_config())
  assert [file.view for file in study.files] == ["frontal", "lateral"] and not study.warnings
  assert study.jpegs == [images.to_jpeg((tmp_path / name).read_bytes(), 40) for name in ("b_pa.png", "a.dcm")]
  assert np.array_equal(study.decode(32)[0], images.decode(study.jpegs[0], 32))
  single = user_images.read_study(files, make_data_config(num_views=1))
  assert [file.view for file in single.files] == ["frontal"] and "a.dcm left out" in single.warnings[0]
  reversed_study = user_images.read_study(files[::-1], make_data_config())
  assert single.record_number != study.record_number == reversed_study.record_number >= 0


def test_unreadable_file_is_replaced_by_the_next_one(tmp_path):
  write_image(tmp_path / "a_pa.png")
  (tmp_path / "a_pa.png").write_bytes((tmp_path / "a_pa.png").read_bytes()[:2000])
  write_image(tmp_path / "a_ap.png")
  files, = user_images.find_studies([str(tmp_path)]).studies
  study = user_images.read_study(files, make_data_config(num_views=1))
  assert [file.name for file in study.files] == [f"{tmp_path}/a_ap.png"]
  assert [error.path for error in study.unreadable] == [f"{tmp_path}/a_pa.png"]
  assert "truncated" in study.unreadable[0].reason
  assert len(study.warnings) == 1 and f"{tmp_path}/a_pa.png" in study.warnings[0]


def test_files_that_are_not_radiographs_are_errors_of_one_line(tmp_path):
  write_dicom(tmp_path / "ct.dcm", Modality="CT")
  write_dicom(tmp_path / "frames.dcm", NumberOfFrames=2, PixelData=FILM.tobytes() * 2)
  write_dicom(tmp_path / "report.dcm", PixelData=None)
  (tmp_path / "text.dcm").write_text("not an image")
  (tmp_path / "empty.png").write_bytes(b"")
  pages = [PIL.Image.fromarray(FILM)] * 3
  pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
  (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
  PIL.Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "nan.tif")
  names = sorted(path.name for path in tmp_path.iterdir())
  found = user_images.find_studies([*(str(tmp_path / name) for name in names), str(tmp_path / "absent.png")], "file")
  reasons = {error.path: error.reason for error in found.unreadable}
  for files in found.studies:
    reasons |= {error.path: error.reason for error in user_images.read_study(files, make_data_config()).unreadable}
  expected = {"ct.dcm": "computed tomography", "frames.dcm": "multi-frame", "report.dcm": "without pixel data",
              "text.dcm": "unknown format", "empty.png": "unknown format", "pages.tif": "3 pages",
              "eps.png": "unknown format", "nan.tif": "finite", "absent.png": "no such file"}
  assert len(reasons) == len(expected) == len(names) + 1
  for name, reason in expected.items():
    assert reason in reasons[f"{tmp_path}/{name}"] and "\n" not in reasons[f"{tmp_path}/{name}"]


def test_output_contains_no_personal_data(tmp_path):
  write_dicom(tmp_path / "a.dcm", study="1.2.840.42", BodyPartExamined="KNEE Doe", ViewPosition="Doe^Jane",
              StudyDate="19991231")
  write_dicom(tmp_path / "b.dcm", Modality="CT", SeriesDescription="Doe")
  write_dicom(tmp_path / "c.dcm", PhotometricInterpretation="DOE")
  found = user_images.find_studies([str(tmp_path)])
  studies = [user_images.read_study(files, make_data_config()) for files in found.studies]
  output = str([[(file.name, file.view, file.view_source, file.warnings) for file in study.files] for study in studies])
  output += str([study.warnings for study in studies]) + str([str(error) for error in found.unreadable])
  output += str([str(error) for study in studies for error in study.unreadable])
  for secret in ("Doe", "DOE", "MRN", "ACC", "1.2.840.42", "1999", "KNEE"):
    assert secret not in output.replace(str(tmp_path), "")
  assert "another part of the body" in output and "unknown value" in output


@pytest.mark.parametrize("pixels,in_color", [
    (FILM, False), (np.stack([FILM] * 3, -1), False), (np.stack([RAMP, RAMP.T.repeat(2, 0)[:80, :64], RAMP], -1), True),
    (np.stack([RAMP, RAMP, RAMP + 15], -1), False)], ids=["gray", "gray in RGB", "photo", "tinted"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_color_is_detected(pixels, in_color, kind):
  data = io.BytesIO()
  PIL.Image.fromarray(pixels).save(data, kind)
  assert is_color(data.getvalue(), 10 ** 6) == in_color
  assert images.to_jpeg(data.getvalue(), 40)


def test_sixteen_bit_tiff_in_which_zero_is_white(tmp_path):
  deep = PIL.Image.fromarray(RAMP.astype(np.uint16) * 200)
  deep.save(tmp_path / "white.tif", tiffinfo={262: 0})
  deep.save(tmp_path / "black.tif")
  white, black = (images.decode(images.to_jpeg((tmp_path / name).read_bytes(), 0), 64).astype(int)
                  for name in ("white.tif", "black.tif"))
  assert np.abs(white - (255 - black)).max() <= 4 and black[40, 60] > 200
