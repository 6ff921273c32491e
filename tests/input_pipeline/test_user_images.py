"""Which files are films, which films are one study, what each shows; what is no film is refused."""

import io
import pathlib

import numpy as np
import PIL.Image
import pydicom
import pytest

from configs import default
from input_pipeline import images, user_images

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


def shape_of(found, folder):
  """Returns the studies as the names of their files, without the folder that holds all."""
  return [[film.name.removeprefix(f"{folder}/") for film in films] for films in found.studies]


def data_config(**fields):
  config = default.get_config()
  config.data.update({"short_side": 40, "image_size": 32} | fields)
  return config.data


@pytest.fixture
def tree(tmp_path):
  """A folder as users have them: two DICOM studies in other folders than their own, a study's folder, a collection."""
  write_dicom(tmp_path / "cd" / "IM1", "1.1", ViewPosition="LL")
  write_dicom(tmp_path / "cd" / "more" / "IM2", "1.1", ViewPosition="PA")
  write_dicom(tmp_path / "cd" / "IM3", "1.2", ViewPosition="AP")
  write_image(tmp_path / "case" / "0.png")
  write_image(tmp_path / "case" / "1.png")
  for name in ("ann_pa.png", "ann_lateral.png", "bob.jpg", "eve.png", "dan.tif"):
    write_image(tmp_path / "many" / name)
  (tmp_path / "many" / "README.txt").write_text("no image")
  (tmp_path / "many" / ".hidden.png").write_text("no image")
  (tmp_path / "cd" / "DICOMDIR").write_bytes((tmp_path / "cd" / "IM1").read_bytes())
  return tmp_path


def test_studies_of_folders(tree):
  found = user_images.find([str(tree)])
  assert not found.refused and found.skipped == 2
  assert shape_of(found, tree) == [["case/0.png", "case/1.png"], ["cd/IM1", "cd/more/IM2"], ["cd/IM3"],
                                   ["many/ann_lateral.png", "many/ann_pa.png"], ["many/bob.jpg"], ["many/dan.tif"],
                                   ["many/eve.png"]]
  assert shape_of(user_images.find([str(tree / "case"), str(tree / "case" / "0.png")]), tree) == [
      ["case/0.png", "case/1.png"]]                           # nothing is looked at twice


@pytest.mark.parametrize("grouping,expected", [
    ("all", [["cd/IM3", "case/1.png", "case/0.png"]]), ("file", [["cd/IM3"], ["case/1.png"], ["case/0.png"]]),
    ("folder", [["cd/IM3"], ["case/1.png", "case/0.png"]]), ("auto", [["cd/IM3"], ["case/1.png"], ["case/0.png"]])])
def test_studies_of_files_as_the_user_says(tree, grouping, expected):
  given = [str(tree / name) for name in ("cd/IM3", "case/1.png", "case/0.png")]
  assert shape_of(user_images.find(given, grouping), tree) == expected


@pytest.mark.parametrize("names,expected", [
    (["x.png"], ["x.png frontal order"]),
    (["b.png", "a.png", "c.png"], ["b.png frontal order", "a.png lateral order", "c.png other order"]),
    (["Chest-LAT.png", "Chest-AP.png"], ["Chest-AP.png frontal name", "Chest-LAT.png lateral name"]),
    (["lateral.png", "x.png"], ["x.png frontal order", "lateral.png lateral name"]),
    (["lateral.png"], ["lateral.png lateral name"]),
    (["ap_1.png", "pa_2.png"], ["pa_2.png frontal name", "ap_1.png frontal name"]),
    (["apple.png"], ["apple.png frontal order"]),
])
def test_views_told_by_names_and_order(tmp_path, names, expected):
  for name in names:
    write_image(tmp_path / name)
  films, = user_images.find([str(tmp_path / name) for name in names], "all").studies
  assert [f"{pathlib.Path(film.name).name} {film.view} {film.told_by}"
          for film in user_images.in_order(films)] == expected


def test_a_header_tells_the_view_before_the_name_does(tmp_path):
  write_dicom(tmp_path / "lateral.dcm", ViewPosition="PA")
  write_dicom(tmp_path / "b.dcm", ViewPosition="LATERAL")
  films, = user_images.find([str(tmp_path)]).studies
  told = [(film.view, film.told_by) for film in user_images.in_order(films)]
  assert told == [("frontal", "header"), ("lateral", "header")]
  assert user_images.in_order(films[:1], alone="other")[0].view == "lateral"
  write_image(tmp_path / "x.png")
  (film,), = user_images.find([str(tmp_path / "x.png")]).studies
  assert user_images.in_order([film], alone="other")[0].view == "other"


def test_a_study_is_read_as_records_are_made(tmp_path):
  write_dicom(tmp_path / "a.dcm", ViewPosition="LL")
  write_image(tmp_path / "b_pa.png")
  films, = user_images.find([str(tmp_path)], "all").studies
  study = user_images.read_study(films, data_config())
  assert [film.view for film in study.films] == ["frontal", "lateral"] and not study.warnings
  assert study.jpegs == [images.to_jpeg((tmp_path / name).read_bytes(), 40) for name in ("b_pa.png", "a.dcm")]
  assert np.array_equal(study.decoded(32)[0], images.decode(study.jpegs[0], 32))
  single = user_images.read_study(films, data_config(num_views=1))
  assert [film.view for film in single.films] == ["frontal"] and "a.dcm left out" in single.warnings[0]
  assert single.number != study.number == user_images.read_study(films[::-1], data_config()).number >= 0


def test_one_file_is_refused_and_the_next_takes_its_place(tmp_path):
  write_image(tmp_path / "a_pa.png")
  (tmp_path / "a_pa.png").write_bytes((tmp_path / "a_pa.png").read_bytes()[:2000])
  write_image(tmp_path / "a_ap.png")
  films, = user_images.find([str(tmp_path)]).studies
  study = user_images.read_study(films, data_config(num_views=1))
  assert [film.name for film in study.films] == [f"{tmp_path}/a_ap.png"]
  assert [error.path for error in study.refused] == [f"{tmp_path}/a_pa.png"] and "truncated" in study.refused[0].reason
  assert study.warnings == [f"written without {tmp_path}/a_pa.png, which can't be read"]


def test_what_is_no_film_is_refused_in_a_line(tmp_path):
  write_dicom(tmp_path / "ct.dcm", Modality="CT")
  write_dicom(tmp_path / "frames.dcm", NumberOfFrames=2, PixelData=FILM.tobytes() * 2)
  write_dicom(tmp_path / "report.dcm", PixelData=None)
  (tmp_path / "text.dcm").write_text("no image")
  (tmp_path / "empty.png").write_bytes(b"")
  pages = [PIL.Image.fromarray(FILM)] * 3
  pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
  (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
  PIL.Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "nan.tif")
  names = sorted(path.name for path in tmp_path.iterdir())
  found = user_images.find([*(str(tmp_path / name) for name in names), str(tmp_path / "absent.png")], "file")
  refused = {error.path: error.reason for error in found.refused}
  for films in found.studies:
    refused |= {error.path: error.reason for error in user_images.read_study(films, data_config()).refused}
  expected = {"ct.dcm": "computed tomography", "frames.dcm": "multi-frame", "report.dcm": "without pixel data",
              "text.dcm": "unknown format", "empty.png": "unknown format", "pages.tif": "3 pages",
              "eps.png": "unknown format", "nan.tif": "no finite numbers", "absent.png": "no such file"}
  assert len(refused) == len(expected) == len(names) + 1
  for name, reason in expected.items():
    assert reason in refused[f"{tmp_path}/{name}"] and "\n" not in refused[f"{tmp_path}/{name}"]


def test_nothing_of_a_person_leaves_the_files(tmp_path):
  write_dicom(tmp_path / "a.dcm", study="1.2.840.42", BodyPartExamined="KNEE Doe", ViewPosition="Doe^Jane",
              StudyDate="19991231")
  write_dicom(tmp_path / "b.dcm", Modality="CT", SeriesDescription="Doe")
  write_dicom(tmp_path / "c.dcm", PhotometricInterpretation="DOE")
  found = user_images.find([str(tmp_path)])
  studies = [user_images.read_study(films, data_config()) for films in found.studies]
  told = str([[(film.name, film.view, film.told_by, film.warnings) for film in study.films] for study in studies])
  told += str([study.warnings for study in studies]) + str([str(error) for error in found.refused])
  told += str([str(error) for study in studies for error in study.refused])
  for secret in ("Doe", "DOE", "MRN", "ACC", "1.2.840.42", "1999", "KNEE"):
    assert secret not in told.replace(str(tmp_path), "")
  assert "another part of the body" in told and "unknown kind" in told


@pytest.mark.parametrize("pixels,coloured", [
    (FILM, False), (np.stack([FILM] * 3, -1), False), (np.stack([RAMP, RAMP.T.repeat(2, 0)[:80, :64], RAMP], -1), True),
    (np.full((80, 64, 3), (200, 200, 215), np.uint8), False)], ids=["gray", "gray in RGB", "photo", "tinted"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_colour(pixels, coloured, kind):
  data = io.BytesIO()
  PIL.Image.fromarray(pixels).save(data, kind)
  assert user_images.is_coloured(data.getvalue()) == coloured
  assert images.to_jpeg(data.getvalue(), 40)


def test_sixteen_bits_of_which_zero_is_white(tmp_path):
  deep = PIL.Image.fromarray(RAMP.astype(np.uint16) * 200)
  deep.save(tmp_path / "white.tif", tiffinfo={262: 0})
  deep.save(tmp_path / "black.tif")
  white, black = (images.decode(images.to_jpeg((tmp_path / name).read_bytes(), 0), 64).astype(int)
                  for name in ("white.tif", "black.tif"))
  assert np.abs(white - (255 - black)).max() <= 4 and black[40, 60] > 200
