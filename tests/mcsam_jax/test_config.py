"""Config files, overrides, saved configs, and the errors for wrong ones."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from mcsam_jax import __version__
from mcsam_jax import config as configs
from mcsam_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(path.stem for path in configs.CONFIGS_DIR.glob("[!_]*.py")))
def test_every_config_loads(name):
  assert configs.load_config(name).train.batch_size > 0


def test_overrides_keep_the_type_of_their_field():
  config = configs.load_config("phantom", [
      "--config.optimizer.learning_rate=1", "--config.model.use_memory=False", "--config.train.num_steps=700"])
  assert config.optimizer.learning_rate == 1.0 and isinstance(config.optimizer.learning_rate, float)
  assert config.model.use_memory is False and config.train.num_steps == 700


@pytest.mark.parametrize("argument, parts", [
    ("--config.train.batchsize=8", ["train.batchsize", "did you mean train.batch_size"]),
    ("--config.batch_size=8", ["batch_size", "did you mean"]),
    ("--config.train.qqqqqq=8", ["train.qqqqqq", "configs/default.py"]),
    ("--config.train.batch_size=eight", ["train.batch_size=eight", "int"]),
    ("--config.model.use_memory=maybe", ["model.use_memory=maybe", "true or false"]),
    ("--batch_size=8", ["--batch_size=8", "--config."]),
    ("--config.model.norm=batch", ["model.norm=batch", "layernorm, r2gencmn"]),
    ("--config.decode.beam_size=0", ["decode.beam_size=0", "1"]),
    ("--config.decode.min_length=-1", ["decode.min_length=-1", "0"]),
    ("--config.decode.top_p=1.5", ["decode.top_p=1.5", "1"]),
    ("--config.model.dropout=1.0", ["model.dropout=1.0", "1"]),
    ("--config.model.width=130", ["model.width=130", "multiple of 4", "model.num_heads"]),
    ("--config.data.image_size=200", ["data.image_size=200", "multiple of 32", "encoder.name"]),
    ("--config.memory.num_slots=8", ["memory.top_k=32", "memory.num_slots=8"]),
    ("--config.optimizer.warmup_steps=600", ["optimizer.warmup_steps=600", "train.num_steps=600"]),
    ("--config.decode.length_penalty=nan", ["decode.length_penalty=nan", "finite"]),
    ("--config.decode.min_length=61", ["decode.min_length=61", "tokenizer.max_length=60"]),
    ("--config.data.name=r2gen_json", ["eval.labeler", "data.name=r2gen_json"]),
    ("--config.train.objective=reward", ["train.init_from"]),
    ("--config.train.patience=-1", ["train.patience=-1", "0"]),
    ("--config.reward.temperature=0", ["reward.temperature", "above 0"]),
])
def test_a_wrong_override_is_named(argument, parts):
  with pytest.raises(UserError) as error:
    configs.load_config("phantom", [argument])
  assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)


@pytest.mark.parametrize("field, value, named", [
    ("reward.num_samples", 1, ["reward.num_samples=1", "2"]),
    ("train.grad_accum_steps", 2, ["train.grad_accum_steps=2"]),
    ("train.best_metric", "", ["train.patience", "train.best_metric"]),
    ("reward.findings", 0.0, ["reward.cider", "reward.findings"])])
def test_reward_fine_tuning_needs_fitting_fields(field, value, named):
  fields = {"train.objective": "reward", "train.init_from": "w", "train.patience": 2, "reward.cider": 0.0, field: value}
  with pytest.raises(UserError) as error:
    configs.load_config("phantom", [f"--config.{name}={value}" for name, value in fields.items()])
  assert all(part in str(error.value) for part in named)


@pytest.mark.parametrize("line, named", [
    ("config.train.batchsize = 3", "train.batchsize"),
    ("config.train.batch_size = 'many'", "batch_size"),
    ("del config.train.batch_size", "train.batch_size"),
    ("import nothing_of_this_name", "nothing_of_this_name"),
])
def test_a_wrong_config_file_is_named(tmp_path, line, named):
  path = tmp_path / "mine.py"
  path.write_text("from configs import default\n\ndef get_config():\n"
                  f"  config = default.get_config()\n  {line}\n  return config\n")
  with pytest.raises(UserError) as error:
    configs.load_config(str(path))
  assert named in str(error.value) and str(path) in str(error.value)


def test_an_unknown_config_lists_the_available_ones():
  with pytest.raises(UserError, match="iu_xray"):
    configs.load_config("nope")


EDITABLE = f"""
import importlib.util
import sys

class Finder:                                     # as an editable installation adds one, behind sys.path
  def find_spec(name, path=None, target=None):
    folder = {str(ROOT)!r} + "/" + name
    if name in ("mcsam_jax", "input_pipeline", "configs"):
      return importlib.util.spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])

sys.meta_path.append(Finder)
"""
PRINT_NUM_SLOTS = """
import configs                                    # a user's program may use its own package of this name
from mcsam_jax.config import load_config
print(*(load_config(name).memory.num_slots for name in sys.argv[1:]))
import configs.default
print(configs.default.OWNER)
"""


@pytest.mark.parametrize("is_package", [True, False])
def test_a_users_own_configs_folder_does_not_hide_the_projects(tmp_path, is_package):
  folder = tmp_path / "configs"
  folder.mkdir()
  for name in ("default", "iu_xray", *["__init__"] * is_package):
    (folder / f"{name}.py").write_text("OWNER = 'user'\n")
  (tmp_path / "mine.py").write_text("from configs import default\n\ndef get_config():\n"
                                    "  config = default.get_config()\n  config.memory.num_slots = 77\n"
                                    "  return config\n")
  def run(arguments, *path):
    return subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "JAX_PLATFORMS": "cpu"})

  program = run(["-c", EDITABLE + PRINT_NUM_SLOTS, "iu_xray", "mine.py"], tmp_path)
  assert program.stdout == "256 77\nuser\n", program.stderr
  script = EDITABLE + "from mcsam_jax.cli import main\nsys.exit(main())"
  for arguments, *path in ((["-m", "mcsam_jax"], tmp_path, ROOT), (["-c", script], tmp_path)):
    verb = run([*arguments, "prepare", "--config", "iu_xray"], *path)       # finds the config, but not its data
    assert verb.returncode == 2 and str(tmp_path / "iu_xray" / "annotation.json") in verb.stderr, verb.stderr


def test_a_saved_config_is_read_back_and_a_damaged_one_is_named(tmp_path):
  config, path, lines = configs.load_config("iu_xray"), tmp_path / "config.json", []
  configs.save_config(config, path)
  assert configs.diff_configs(config, configs.read_config(path, lines.append)) == [] and not lines
  for damaged in (path.read_text()[:100], "[]", "\x00"):
    path.write_text(damaged)
    with pytest.raises(UserError, match="config.json is damaged"):
      configs.read_config(path)


def test_differences_name_the_fields():
  changed = configs.load_config("phantom", ["--config.seed=5"])
  assert configs.diff_configs(changed, configs.load_config("phantom")) == ["seed: 5, 0"]


def test_fields_that_a_saved_config_lacks_take_their_defaults_and_one_line_names_them(tmp_path):
  config, path, lines = configs.load_config("phantom"), tmp_path / "config.json", []
  configs.save_config(config, path)
  saved = json.loads(path.read_text())
  del saved["eval"]["html_report"], saved["data"]["mimic_cxr"], saved["prepare"], saved["model"]["text_encoder_layers"]
  path.write_text(json.dumps(saved))
  assert configs.read_config(path, lines.append).to_dict() == config.to_dict()
  line, = lines
  assert all(field in line for field in ("eval.html_report=True", "data.mimic_cxr.unit=study", "prepare.show_ids=False",
                                         "model.text_encoder_layers=1", str(path)))


def test_an_unknown_field_of_a_saved_config_is_an_error(tmp_path):
  path = tmp_path / "config.json"
  configs.save_config(configs.load_config("phantom"), path)
  saved = json.loads(path.read_text())
  saved["model"]["num_eyes"] = 2
  path.write_text(json.dumps(saved | {configs.VERSION_KEY: "9.1.0"}))
  with pytest.raises(UserError) as error:
    configs.read_config(path)
  assert all(part in str(error.value) for part in (str(path), "model.num_eyes", "9.1.0", __version__))


@pytest.mark.parametrize("renamed", [{}, {"num_prompts": 8}])
def test_a_workdir_of_version_0_1_gets_one_clear_error(tmp_path, renamed):
  config, path = configs.load_config("phantom").to_dict(), tmp_path / "config.json"
  path.write_text(json.dumps(config | {"model": config["model"] | renamed}))
  with pytest.raises(UserError) as error:
    configs.read_config(path)
  assert str(path) in str(error.value) and "0.1" in str(error.value) and "\n" not in str(error.value)
