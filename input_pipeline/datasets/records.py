"""The record that every data set is turned into, whatever it came from.

A record is one study (all views together) or one image, as a TFDS builder
writes it and every later part reads it. What is unknown is an empty string, so
that a reader needs no second code path.
"""

import tensorflow_datasets as tfds

from input_pipeline.datasets.findings import FINDINGS, LABEL_VALUES, VIEWS


def features() -> tfds.features.FeaturesDict:
  """Returns the features of a record.

  `images`, `dicom_ids`, `views` and `source_views` have one entry a view, in
  the same order, the frontal first where there is one. Images are grayscale
  JPEGs [height, width, 1] of uint8.
  """
  text = tfds.features.Text()
  return tfds.features.FeaturesDict({
      "id": text,                      # unique over all splits
      "study_id": text,
      "subject_id": text,              # no two splits share one
      "images": tfds.features.Sequence(
          tfds.features.Image(shape=(None, None, 1), encoding_format="jpeg")),
      "dicom_ids": tfds.features.Sequence(text),
      "views": tfds.features.Sequence(tfds.features.ClassLabel(names=VIEWS)),
      "source_views": tfds.features.Sequence(text),    # the source's own word: PA, LL, ...
      "findings": text,
      "impression": text,
      "indication": text,
      "history": text,
      "technique": text,
      "comparison": text,
      "study_datetime": text,          # ISO 8601
      "labels": tfds.features.FeaturesDict(
          {finding: tfds.features.ClassLabel(names=LABEL_VALUES) for finding in FINDINGS}),
      "labels_from": text,             # the text or the person that the labels were read from
  })


def empty_record() -> dict:
  """Returns a record with every field present and nothing known."""
  return {
      **{field: "" for field in ("id", "study_id", "subject_id", "findings", "impression", "indication",
                                 "history", "technique", "comparison", "study_datetime", "labels_from")},
      **{field: [] for field in ("images", "dicom_ids", "views", "source_views")},
      "labels": {finding: "absent" for finding in FINDINGS},
  }
