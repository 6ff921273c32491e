import io

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from configs import phantom as phantom_tree
from configs import phantom_reward
from input_pipeline.builder.build import build
from input_pipeline.datasets import records
from input_pipeline.datasets.phantom import dataset
from input_pipeline.datasets.phantom.patient import PHANTOM_FINDINGS
from mcsam_jax.errors import UserError


def tiny_config(tmp_path, **sizes):
  config = phantom_tree.get_config()
  config.data.data_dir = str(tmp_path)
  config.data.phantom.update({"num_train": 6, "num_val": 2, "num_test": 2, **sizes})
  return config


def test_built_records_are_read_by_tfds(tmp_path):
  config = tiny_config(tmp_path)
  build(config, log=lambda line: None)
  builder = dataset.make_builder(config)
  assert builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
  assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
      "train": 6, "val": 2, "test": 2}
  features = builder.info.features
  assert isinstance(features, tfds.features.FeaturesDict)
  assert features.keys() == records.record_features().keys()
  subjects = {split: set() for split in dataset.SPLITS}
  for split in dataset.SPLITS:
    source = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]  (a decorator hides it)
    for record in source:
      index = int(record["id"].decode()[-6:])
      expected = dataset.make_record(0, split, index)
      assert record["findings"].decode() == expected["findings"]
      drawn = np.asarray(Image.open(io.BytesIO(expected["images"][0])))
      assert record["images"][0].shape == (256, 256, 1)
      # Two JPEG decoders may differ slightly.
      assert np.abs(record["images"][0][..., 0].astype(int) - drawn).max() <= 2
      assert [records.VIEWS[view] for view in record["views"]] == expected["views"]
      assert len(record["images"]) == len(record["dicom_ids"]) == len(record["source_views"])
      labels = {name: records.LABEL_VALUES[value] for name, value in record["labels"].items()}
      assert labels == expected["labels"]
      subjects[split].add(record["subject_id"])
  assert len(set.union(*subjects.values())) == 10, "a subject in two records or two splits"


def test_record_is_a_function_of_seed_split_and_index():
  once, again = (dataset.make_record(3, "val", 5) for _ in range(2))
  assert once.pop("images") == again.pop("images")
  assert once == again
  for other in ((4, "val", 5), (3, "test", 5), (3, "val", 6)):
    assert dataset.make_record(*other)["images"][0] != dataset.make_record(3, "val", 5)["images"][0]


def test_labels_of_a_record_agree_with_the_drawn_findings():
  for index in range(40):
    drawn = {finding.name for finding in dataset.draw_study((0, 0, index)).findings}
    labels = dataset.make_record(0, "train", index)["labels"]
    assert {name for name in PHANTOM_FINDINGS if labels[name] == "positive"} == drawn
    assert (labels["No Finding"] == "positive") == (not drawn)


def test_images_are_downsampled_but_never_upsampled():
  record = dataset.make_record(0, "train", 0, short_side=96)
  assert Image.open(io.BytesIO(record["images"][0])).size == (96, 96)
  assert Image.open(io.BytesIO(dataset.make_record(0, "train", 0, short_side=512)["images"][0])).size == (256, 256)


def test_sets_of_other_sizes_or_seeds_have_other_folders(tmp_path):
  default = phantom_tree.get_config()
  default.data.data_dir = str(tmp_path)
  configs = [default] + [tiny_config(tmp_path, **changed) for changed in ({}, {"num_train": 7}, {"seed": 1},
                                                               {"first_train": 6})]
  assert len({str(dataset.make_builder(config).data_path) for config in configs}) == 5


def test_first_train_selects_patients_that_the_other_data_set_lacks_and_keeps_val_and_test(tmp_path):
  known, fresh = (dataset.make_builder(tiny_config(tmp_path, **changed)) for changed in ({}, {"first_train": 6}))
  larger = dataset.make_builder(tiny_config(tmp_path, num_train=12)).plan().entries
  assert known.plan().entries["train"] + fresh.plan().entries["train"] == larger["train"]
  for split in ("val", "test"):
    assert fresh.plan().entries[split] == known.plan().entries[split]
  subjects = [{builder.build_record(entry)["subject_id"] for entry in builder.plan().entries["train"]}
              for builder in (known, fresh)]
  assert len(subjects[0] | subjects[1]) == 12


def test_reward_fine_tuning_of_the_demo_sees_none_of_its_training_patients_and_is_evaluated_on_the_same_ones():
  configs = (phantom_tree.get_config(), phantom_reward.get_config())
  demo, fine_tuning = (dataset.make_builder(config).plan().entries for config in configs)
  assert not {index for _, index in demo["train"]} & {index for _, index in fine_tuning["train"]}
  assert [demo[split] for split in ("val", "test")] == [fine_tuning[split] for split in ("val", "test")]


def test_invalid_sizes_are_refused(tmp_path):
  with pytest.raises(UserError, match="data.phantom.num_val is 0"):
    dataset.make_builder(tiny_config(tmp_path, num_val=0))
  for field in ("seed", "first_train"):
    with pytest.raises(UserError, match=f"data.phantom.{field} is -1"):
      dataset.make_builder(tiny_config(tmp_path, **{field: -1}))
