"""Config files, overrides, and what is said of a wrong one."""

import json

import pytest

from mcsam_jax import config as configs
from mcsam_jax.errors import UserError


@pytest.mark.parametrize("name", sorted(path.stem for path in configs.CONFIGS_DIR.glob("[!_]*.py")))
def test_every_config_loads(name):
  assert configs.load_config(name).train.batch_size > 0


def test_overrides_keep_the_type_of_their_field():
  config = configs.load_config("phantom", [
      "--config.optimizer.learning_rate=1", "--config.model.use_memory=False", "--config.train.num_steps=700"])
  assert config.optimizer.learning_rate == 1.0 and isinstance(config.optimizer.learning_rate, float)
  assert config.model.use_memory is False and config.train.num_steps == 700


@pytest.mark.parametrize("argument, message", [
    ("--config.train.batchsize=8", "did you mean train.batch_size"),
    ("--config.batch_size=8", "no such field"),
    ("--config.train.qqqqqq=8", "no such field; all fields stand in configs/phantom.py"),
    ("--config.train.batch_size=eight", "expected int"),
    ("--config.model.use_memory=maybe", "expected true or false"),
    ("--batch_size=8", "--config.field=value"),
    ("--config.model.norm=batch", "layernorm, r2gencmn"),
    ("--config.decode.beam_size=0", "at least 1"),
    ("--config.model.width=130", "must be a multiple of 4"),
    ("--config.data.image_size=200", "must be a multiple of 32"),
    ("--config.memory.num_slots=8", "memory.num_slots=8"),
    ("--config.decode.length_penalty=nan", "decode.length_penalty=nan: must be a finite number"),
    ("--config.decode.min_length=61", "decode.min_length=61 must not be above tokenizer.max_length=60"),
])
def test_a_wrong_override_is_named(argument, message):
  with pytest.raises(UserError, match=message):
    configs.load_config("phantom", [argument])


@pytest.mark.parametrize("line, message", [
    ("config.train.batchsize = 3", "unknown field train.batchsize"),
    ("config.train.batch_size = 'many'", "batch_size"),
    ("del config.train.batch_size", "train.batch_size is missing"),
    ("import nothing_of_this_name", "nothing_of_this_name"),
])
def test_a_wrong_config_file_is_named(tmp_path, line, message):
  path = tmp_path / "mine.py"
  path.write_text(f"from configs import phantom\n\ndef get_config():\n  config = phantom.get_config()\n  {line}\n  return config\n")
  with pytest.raises(UserError, match=message):
    configs.load_config(str(path))


def test_an_unknown_config_lists_those_there_are():
  with pytest.raises(UserError, match="iu_xray"):
    configs.load_config("nope")


def test_a_saved_config_is_read_back_and_a_damaged_one_named(tmp_path):
  config = configs.load_config("iu_xray")
  configs.save_config(config, tmp_path / "config.json")
  assert configs.diff_configs(config, configs.read_config(tmp_path / "config.json")) == []
  (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text()[:100])
  with pytest.raises(UserError, match="config.json is damaged"):
    configs.read_config(tmp_path / "config.json")


def test_differences_name_the_fields():
  changed = configs.load_config("phantom", ["--config.seed=5"])
  assert configs.diff_configs(changed, configs.load_config("phantom")) == ["seed: 5, 0"]


def test_a_field_that_an_older_workdir_lacks_takes_its_default(tmp_path):
  config = configs.load_config("phantom")
  configs.save_config(config, tmp_path / "config.json")
  stored = json.loads((tmp_path / "config.json").read_text())
  del stored["eval"]["html_report"], stored["data"]["mimic_cxr"], stored["prepare"]
  (tmp_path / "config.json").write_text(json.dumps(stored))
  assert configs.read_config(tmp_path / "config.json").to_dict() == config.to_dict()
