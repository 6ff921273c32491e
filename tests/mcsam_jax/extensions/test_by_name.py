"""What a config names as package.module:name is found, or the error names the field and what is wrong."""

import pytest

from mcsam_jax import config as configs
from mcsam_jax.errors import UserError
from mcsam_jax.extensions.by_name import call_by_name, is_import_name, load_by_name
from mcsam_jax.models.visual_encoders.registry import EncoderSpec, find_encoder
from mcsam_jax.training.train import check_own_functions
from tests.testing import tiny_vit


def test_functions_are_found():
  assert load_by_name("encoder.name", "tests.testing.tiny_vit:make_spec") is tiny_vit.make_spec
  assert not is_import_name("resnet50")


@pytest.mark.parametrize("value, parts", [
    ("my.module", ["package.module:name"]), ("a b:c", ["package.module:name"]), (":x", ["package.module:name"]),
    ("os:system:x", ["package.module:name"]), ("os:abort", ["os", "of your own"]),
    ("nowhere.module:f", ["no module nowhere"]),
    ("tests.testing.nowhere:f", ["no module tests.testing.nowhere"]),
    ("tests.testing.tiny_vit:make_spce", ["tiny_vit.py", "make_spec"]),
    ("tests.testing.tiny_vit:NUMBER", ["int"])])
def test_names_that_lead_nowhere_are_explained(value, parts):
  with pytest.raises(UserError) as error:
    load_by_name("some.field", value)
  assert str(error.value).startswith(f"some.field={value}: ") and "\n" not in str(error.value)
  assert all(part in str(error.value) for part in parts)


def test_a_module_in_the_working_directory_is_found_and_its_failure_explained(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("sys.path", ["somewhere", *__import__("sys").path])
  (tmp_path / "beside_me.py").write_text("def give():\n  return 3\n")
  (tmp_path / "broken_beside_me.py").write_text("import not_installed_anywhere\n")
  assert call_by_name("f", "beside_me:give", returns=int) == 3
  with pytest.raises(UserError, match="f=broken_beside_me:give.*ModuleNotFoundError.*not_installed_anywhere"):
    load_by_name("f", "broken_beside_me:give")


@pytest.mark.parametrize("name, parts", [
    ("tests.testing.tiny_vit:make_nothing", ["NoneType", "EncoderSpec"]),
    ("tests.testing.tiny_vit:fail", ["ValueError", "no weights"])])
def test_calls_that_go_wrong_are_explained_in_one_line(name, parts):
  with pytest.raises(UserError) as error:
    find_encoder(name)
  assert str(error.value).startswith(f"encoder.name={name}: ") and "\n" not in str(error.value)
  assert all(part in str(error.value) for part in parts)


def test_impossible_specs_are_refused():
  for change in ({"mean": (0.5, 0.5)}, {"std": (0.0,)}, {"mean": (), "std": ()}, {"stride": 0}):
    with pytest.raises(ValueError):
      EncoderSpec(**({"make": print, "channels": 4, "mean": (0.5,), "std": (1.0,), "stride": 8} | change))


@pytest.mark.parametrize("field, value, parts", [
    ("encoder.name", "resnet5", ["resnet50", "package.module:name"]),
    ("encoder.name", "nowhere:f", ["no module nowhere"]),
    ("encoder.name", "rad_dino", ["data.image_size=256", "multiple of 14"]),
    ("encoder.name", "tests.testing.tiny_vit:make_spec --config.data.image_size=36", ["multiple of 8"]),
    ("tokenizer.kind", "chars", ["sentencepiece", "package.module:name"]),
    ("optimizer.schedule", "a.b:", ["package.module:name"]),
    ("train.loss_term", "entropy", ["package.module:name"]),
    ("eval.metrics", "a:b, c", ["package.module:name"])])
def test_config_errors_name_the_field_and_what_is_expected(field, value, parts):
  value, *more = value.split(" --")
  with pytest.raises(UserError) as error:
    configs.load_config("phantom", ["--config.data.image_size=256", f"--config.{field}={value}",
                                    *(f"--{argument}" for argument in more)])
  assert all(part in str(error.value) for part in [field, *parts])


def test_own_functions_are_imported_before_training_starts():
  for field in ("optimizer.schedule", "train.loss_term"):
    config = configs.load_config("phantom", [f"--config.{field}=nowhere:f"])     # other commands don't need them
    with pytest.raises(UserError, match=f"{field}=nowhere:f"):
      check_own_functions(config)
