"""The names of a network are found behind the wrappers of trainers and compilers, whatever their order."""

import json
import pathlib

import numpy as np
import pytest

from mcsam_jax.pretrained.chexbert import is_chexbert
from mcsam_jax.pretrained.medclip import is_medclip
from mcsam_jax.pretrained.r2gencmn import is_r2gencmn
from mcsam_jax.pretrained.wrappers import peel_wrappers

PARITY = pathlib.Path(__file__).parents[2] / "parity"
R2GENCMN = [f"encoder_decoder.{name}" for name in json.loads((PARITY / "r2gencmn_small.json").read_text())["keys"]] + [
    "visual_extractor.model.0.weight", "visual_extractor.model.4.0.conv1.weight"]
CHEXBERT = ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.bias", "linear_heads.0.weight"]
MEDCLIP = ["vision_model.model.conv1.weight", "text_model.model.embeddings.word_embeddings.weight"]


def peel(names, is_network):
  """Returns {peeled name: the name it had}."""
  peeled = peel_wrappers({name: np.array(index) for index, name in enumerate(names)}, is_network)
  return {name: names[int(index)] for name, index in peeled.items()}


@pytest.mark.parametrize("names, is_network", [(R2GENCMN, is_r2gencmn), (CHEXBERT, is_chexbert), (MEDCLIP, is_medclip)])
@pytest.mark.parametrize("wrapper", ["", "_orig_mod.", "module.", "model.", "module._orig_mod.", "_orig_mod.module.",
                                     "model.module._orig_mod.", "trainer.student.model.", "_fsdp_wrapped_module."])
def test_wrappers_around_a_network(names, is_network, wrapper):
  assert peel([wrapper + name for name in names], is_network) == {name: wrapper + name for name in names}


def test_wrappers_inside_a_network_and_tensors_beside_it():
  wrapped = ["model." + name.replace("encoder_decoder.", "encoder_decoder._orig_mod.")
             .replace("visual_extractor.", "visual_extractor.module.") for name in R2GENCMN]
  peeled = peel([*wrapped, "criterion.weight"], is_r2gencmn)
  assert list(peeled) == [*R2GENCMN, "criterion.weight"]


def test_names_stay_apart():
  names = ["module.conv.weight", "conv.weight", "_orig_mod"]
  assert peel(names, is_r2gencmn) == {name: name for name in names}
