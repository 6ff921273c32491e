"""F1 against manual labels: by hand, and files that can't be used."""

import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.labelers.rules import make_rules_labeler
from mcsam_jax.metrics.external.manual_labels import read_manual_labels, score_manual_labels

NORMAL, EFFUSION, BIG_HEART = "the lungs are clear .", "there is a pleural effusion .", "the heart is enlarged ."


def write(tmp_path, text):
  (tmp_path / "labels.csv").write_text(text)
  return str(tmp_path / "labels.csv")


def test_columns_are_found_and_values_read(tmp_path):
  path = write(tmp_path, "\ufeffid,uid,Effusion,Cardiomegaly,Pleural_Other\nb,1,1,0,\na,2,0.0,-1,1.0\nc,3,0,0,0\n")
  labels, findings = read_manual_labels(path, ["a", "b"])
  assert findings == ("Cardiomegaly", "Pleural Effusion", "Pleural Other")
  assert labels == [{"Pleural Effusion": "negative", "Cardiomegaly": "uncertain", "Pleural Other": "positive"},
                    {"Pleural Effusion": "positive", "Cardiomegaly": "negative", "Pleural Other": "absent"}]


@pytest.mark.parametrize("text, part", [
    ("id,Edema\na,1\na,0\n", "line 3"), ("id,Edema\na,yes\n", "line 2, column Edema"), ("id,Edema\nb,1\n", "1 of 1"),
    ("study,Edema\na,1\n", "column id"), ("id,Oedema\na,1\n", "at least one"), ("", "column id")])
def test_unusable_files_are_named(tmp_path, text, part):
  with pytest.raises(UserError, match=part) as error:
    read_manual_labels(write(tmp_path, text), ["a"])
  assert "labels.csv" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match="absent.csv"):
    read_manual_labels(str(tmp_path / "absent.csv"), ["a"])


def test_scores_by_hand():
  manual = [{"Pleural Effusion": "positive", "Cardiomegaly": "negative"},
            {"Pleural Effusion": "negative", "Cardiomegaly": "positive"},
            {"Pleural Effusion": "positive", "Cardiomegaly": "negative"}]
  findings = ("Cardiomegaly", "Pleural Effusion")
  scores = score_manual_labels(manual, findings, make_rules_labeler().label, [EFFUSION, BIG_HEART, EFFUSION],
                               [EFFUSION, EFFUSION, NORMAL], [[NORMAL, EFFUSION, EFFUSION], [NORMAL] * 3])
  assert scores["references"]["micro_f1"] == scores["references"]["macro_f1"] == 1
  assert scores["model"]["micro_f1"] == pytest.approx(2 * 1 / (2 + 3))           # one of two statements, three to state
  assert scores["model"]["macro_f1"] == pytest.approx((0 + 0.5) / 2)
  assert scores["model"]["per_finding"]["Pleural Effusion"] == {"f1": pytest.approx(0.5), "support": 2}
  assert scores["shuffled_images"]["micro_f1"] == pytest.approx((2 / 5 + 0) / 2)
  assert score_manual_labels(manual, findings, make_rules_labeler().label, [NORMAL] * 3, [NORMAL] * 3, [])[
      "shuffled_images"] is None
