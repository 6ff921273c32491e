"""Images of two patients never make one report, and no identifier is shown."""

import numpy as np
import pytest

from input_pipeline import user_images
from tests.input_pipeline.user_images.test_studies import FILM, make_data_config, write_dicom, write_image


def describe(found) -> list[list[str]]:
  return [[file.path.name for file in files] for files in found.studies]


def test_one_study_identifier_of_three_patients(tmp_path):
  for number, patient in enumerate("A1 B2 C3".split()):
    write_dicom(tmp_path / f"{number}.dcm", "1.7", PatientID=patient, ViewPosition="PA")
  found = user_images.find_studies([str(tmp_path)])
  assert describe(found) == [["0.dcm"], ["1.dcm"], ["2.dcm"]]
  for files in found.studies:
    study = user_images.read_study(files, make_data_config())
    assert len(study.warnings) == 1 and "other patients" in study.warnings[0]
    shown = repr(files) + repr(study.warnings)
    assert not any(secret in shown for secret in ("A1", "B2", "C3", "Doe", "MRN"))


@pytest.mark.parametrize("first,second,num_studies", [
    ({"PatientID": "7"}, {"PatientID": "7 "}, 1), ({"PatientID": "a7"}, {"PatientID": "A7"}, 1),
    ({"PatientID": ""}, {"PatientID": ""}, 1), ({"PatientID": None, "PatientName": "Doe^Jane"},
                                                {"PatientID": None, "PatientName": "DOE JANE"}, 1),
    ({"PatientID": None, "PatientName": "Doe^Jane"}, {"PatientID": None, "PatientName": "Roe^Jane"}, 2),
    ({"PatientID": None, "PatientName": None}, {"PatientID": "7"}, 1), ({"PatientID": "7"}, {"PatientID": "8"}, 2)])
def test_identifiers_are_compared(tmp_path, first, second, num_studies):
  write_dicom(tmp_path / "1.dcm", ViewPosition="PA", **first)
  write_dicom(tmp_path / "2.dcm", ViewPosition="LL", **second)
  assert len(user_images.find_studies([str(tmp_path)]).studies) == num_studies


def test_files_without_a_study_in_one_folder_are_split_too(tmp_path):
  for number in range(2):
    write_dicom(tmp_path / f"{number}.dcm", study="", PatientID=f"P{number}")
  assert describe(user_images.find_studies([str(tmp_path)])) == [["0.dcm"], ["1.dcm"]]


@pytest.mark.parametrize("grouping", ["all", "folder"])
def test_a_grouping_that_the_user_chose_is_kept_with_a_warning(tmp_path, grouping):
  for number in range(2):
    write_dicom(tmp_path / f"{number}.dcm", PatientID=f"P{number}")
  found = user_images.find_studies([str(tmp_path)], grouping)
  assert describe(found) == [["0.dcm", "1.dcm"]]
  warnings = user_images.read_study(found.studies[0], make_data_config()).warnings
  assert len(warnings) == 1 and "different patients" in warnings[0]


def test_the_view_of_a_header_that_says_more_than_the_view(tmp_path):
  write_dicom(tmp_path / "1.dcm", ViewPosition="LAT")
  write_dicom(tmp_path / "2.dcm", ViewPosition="AP ERECT")
  files, = user_images.find_studies([str(tmp_path)]).studies
  study = user_images.read_study(files, make_data_config())
  assert [(file.path.name, file.view, file.view_source) for file in study.files] == [
      ("2.dcm", "frontal", "header"), ("1.dcm", "lateral", "header")]
  single = user_images.read_study(files, make_data_config(num_views=1))
  assert [file.path.name for file in single.files] == ["2.dcm"]


@pytest.mark.parametrize("header", ["", "Doe", "UNKNOWN", "PA AND LAT"])
def test_the_file_name_is_asked_where_the_header_does_not_say(tmp_path, header):
  write_dicom(tmp_path / "film_lateral.dcm", ViewPosition=header)
  (file,), = user_images.find_studies([str(tmp_path)]).studies
  assert (file.view, file.view_source) == ("lateral", "name")


def test_warnings_of_the_pixels_reach_the_study(tmp_path):
  write_dicom(tmp_path / "1.dcm", WindowCenter=100000, WindowWidth=10, BodyPartExamined="KNEE")
  write_image(tmp_path / "2.png", np.stack([FILM, FILM.T.repeat(2, 0)[:80, :64], FILM], -1))
  found = user_images.find_studies([str(tmp_path)])
  warnings = sum((user_images.read_study(files, make_data_config()).warnings for files in found.studies), [])
  for part in ("another part of the body", "single shade", "in color"):
    assert any(part in warning for warning in warnings)
