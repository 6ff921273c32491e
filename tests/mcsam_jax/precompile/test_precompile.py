"""What `mcsam precompile` tells: topologies, errors, the table; and small steps that are really compiled for TPUs."""

import json
import types

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from mcsam_jax import cli
from mcsam_jax.config import load_config
from mcsam_jax.decoding.loop import cache_schedule
from mcsam_jax.errors import UserError
from mcsam_jax.hardware import CHIPS
from mcsam_jax.precompile import precompile as precompiling
from mcsam_jax.precompile import topology as topologies
from mcsam_jax.precompile.collectives import transfers
from mcsam_jax.precompile.cost import analyse
from mcsam_jax.precompile.precompile import memory_missing
from mcsam_jax.precompile.program import lower_decode
from mcsam_jax.precompile.roofline import roofline, utilisation


@pytest.mark.parametrize("name", ["v5e", "v5e:4", "v5e:4x4x4x4", "h100:2x2", "H100-SXM:2x2", "v2:4x4", "v5litepod-16",
                                  ""])
def test_unknown_names_are_told_with_examples(name):
  with pytest.raises(UserError, match="v5e:16x16, v4:8x8x16"):
    topologies.find_topology(name)


def test_a_slice_larger_than_any_pod_is_refused():
  with pytest.raises(UserError, match="1024 chips; the largest slice of v5e has 256"):
    topologies.find_topology("v5e:32x32")


def test_without_libtpu_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"pip install -e '.\[tpu\]'"):
    topologies.find_topology("v5e:4x4")


def test_wrong_arguments_end_with_status_2(monkeypatch, capsys):
  monkeypatch.setattr(topologies, "prepare_environment", lambda: None)
  for arguments in (["--topology", "v5e"], ["--topology", "v5e:4x4", "--slices", "0"],
                    ["--topology", "v5e:4x4", "--studies-per-chip", "0"]):
    assert cli.main(["precompile", "--config", "mimic_cxr", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("message, needed, available", [
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (36.5G) exceeds "
     "available HBM (15.75G).", 36.5, 15.75),
    ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 24.99G of 15.75G "
     "hbm. Exceeded hbm capacity by 9.24G.", 24.99, 15.75)])
def test_how_much_memory_is_missing(message, needed, available):
  assert memory_missing(message) == (int(needed * 2**30), int(available * 2**30))
  assert memory_missing("RESOURCE_EXHAUSTED: something else") == (None, None)


@pytest.mark.parametrize("message, status, said", [
    ("RESOURCE_EXHAUSTED: Used 24.00G of 15.75G hbm.", 3,
     "24.00 GiB of HBM are needed and a v5e chip of v5e:4x4 has 15.75 GiB, 8.25 GiB are missing"),
    ("INTERNAL: something\n" + 1000 * "with a long story\n", 2, "the compiler says: INTERNAL: something (whole in ")])
def test_what_the_compiler_refuses_is_one_line(monkeypatch, capsys, tmp_path, message, status, said):
  class Refused:
    def compile(self):
      raise jax.errors.JaxRuntimeError(message)

  devices = tuple(types.SimpleNamespace(device_kind="TPU v5 lite", process_index=0) for _ in range(16))
  monkeypatch.setattr(topologies, "prepare_environment", lambda: None)
  monkeypatch.setattr(topologies, "find_topology",
                      lambda name, slices: topologies.Topology(name, slices, devices, CHIPS["v5e"]))
  monkeypatch.setattr(precompiling, "lower_train", lambda *arguments: Refused())
  monkeypatch.setattr(precompiling.tempfile, "tempdir", str(tmp_path))
  arguments = ["precompile", "--config", "mimic_cxr", "--topology", "v5e:4x4", "--vocabulary", "10", "--json"]
  assert cli.main(arguments) == status
  output = capsys.readouterr()
  assert said in output.err and output.err.count("\n") == 2         # what it compiles, and why that failed
  assert [path.read_text() for path in tmp_path.iterdir()] == ([message] if status == 2 else [])
  if status == 3:
    assert json.loads(output.out) == {"topology": "v5e:4x4", "slices": 1, "fits": False, "needed": 24 * 2**30,
                                      "available": int(15.75 * 2**30)}


PROGRAM = """
ENTRY %main (a: bf16[8192,8192], b: bf16[8192,8192]) -> bf16[8192,8192] {
  %a = bf16[8192,8192]{1,0} parameter(0)
  %b = bf16[8192,8192]{1,0} parameter(1)
  %c = bf16[8192,8192]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %r = bf16[8192,8192]{1,0} all-reduce(%c), replica_groups={{0,1,2,3}}
}
"""


def test_the_longest_term_binds():
  costs, chip, size = analyse(PROGRAM), CHIPS["v5e"], 2 * 8192**2
  bound = roofline(costs, transfers(costs), chip)
  assert bound.compute == pytest.approx(2 * 8192**3 / 197e12)
  assert bound.hbm == pytest.approx(5 * size / 819e9)                 # two operands, a result; read and written again
  assert bound.ici == pytest.approx(2 * 3 / 4 * size / 200e9)
  assert (bound.binds, bound.seconds, bound.dcn) == ("compute", bound.compute, 0.0)
  assert utilisation(4 * 2 * 8192**3, 4, 2 * bound.seconds, chip) == pytest.approx(0.5)


# What follows compiles.

SMALL = ["--config.encoder.name=resnet_tiny", "--config.data.image_size=64", "--config.model.encoder_layers=1",
         "--config.model.decoder_layers=1", "--config.memory.num_slots=128", "--config.model.width=128",
         "--config.tokenizer.max_length=24"]


def figures_of(capsys, topology: str, *arguments: str) -> dict:
  status = cli.main(["precompile", "--config", "mimic_cxr", "--topology", topology, "--vocabulary", "512", "--json",
                     *SMALL, *arguments])
  output = capsys.readouterr()
  assert status == 0, output.err
  return json.loads(output.out)


@pytest.mark.parametrize("search, share, turns", [("beam", 0.0, [36, 4, 0, 0]), ("mbr", 0.0, [20, 20]),
                                                  ("mbr", 0.5, [20, 20])])
def test_the_lowered_search_is_the_one_that_the_config_asks_for(search, share, turns):
  """Each size of the cache serves known turns; a consensus that asks 1,000 training reports has their codes."""
  config = load_config("mimic_cxr", [*SMALL, f"--config.decode.search={search}", "--config.tokenizer.max_length=40",
                                     f"--config.decode.retrieval_weight={share}", "--config.decode.batch_size=4"])
  topology = topologies.Topology("cpu", 1, tuple(jax.devices()[:1]), CHIPS["v5e"])
  lowered = lower_decode(config, topology, 64, num_train_reports=1000)
  assert precompiling.stages(config) == turns
  shapes = [leaf.shape for leaf in jax.tree.leaves(lowered.args_info)]
  assert ((1000, config.model.width) in shapes) == (share > 0)
  assert lowered.out_info[-1] is None if not share else lowered.out_info[-1].shape == (4, 1000)


@pytest.fixture
def libtpu():
  pytest.importorskip("libtpu", reason="pip install -e '.[tpu]'")
  topologies.prepare_environment()


@pytest.mark.slow
def test_real_programs_with_known_answers(libtpu):
  """Ten products in a loop, a product split over chips, one too large for VMEM, a convolution and its gradient."""
  devices = topologies.find_topology("v5e:2x2").devices
  mesh = jax.sharding.Mesh(np.reshape(devices, (2, 2)), ("data", "tensor"))
  place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
  array = lambda *shape, split=(): jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place(*split))
  compiled = lambda function, *arguments, **options: jax.jit(function, **options).lower(*arguments).compile()

  def ten(x, kernels):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

  loop = analyse(compiled(ten, array(4096, 512, split=("data",)), array(10, 512, 512)).as_text())
  assert loop.flops == 10 * 2 * 2048 * 512 * 512 and loop.unknown_loops == []

  split = compiled(lambda x, a, b: (x @ a) @ b, array(8192, 1024, split=("data",)),
                   array(1024, 4096, split=(None, "tensor")), array(4096, 1024, split=("tensor",)),
                   out_shardings=place("data"))
  costs = analyse(split.as_text())
  assert costs.flops == 2 * 2 * 4096 * 1024 * 2048
  [sent] = transfers(costs)
  assert (sent.kind, sent.members, sent.bytes) == ("all-reduce", 2, 4096 * 1024 * 2)

  large = compiled(lambda x, y: x @ y, array(16384, 8192), array(8192, 16384))
  costs, known = analyse(large.as_text()), large.cost_analysis()
  assert costs.flops == known["flops"] == 2 * 16384**2 * 8192
  assert costs.hbm_bytes == pytest.approx(2 * (2 * 16384 * 8192 + 16384**2), rel=0.01)

  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).sum()

  gradient = compiled(jax.grad(convolve, 1), array(64, 56, 56, 128), array(3, 3, 128, 256))
  assert analyse(gradient.as_text()).flops == pytest.approx(gradient.cost_analysis()["flops"], rel=0.01)


@pytest.mark.slow
def test_two_sizes_of_a_pod_do_the_same_a_chip(libtpu, capsys):
  small, large = (figures_of(capsys, name, "--studies-per-chip", "8") for name in ("v5e:2x2", "v5e:4x4"))
  assert (small["devices"], small["hosts"], large["devices"], large["hosts"]) == (4, 1, 16, 4)
  for field in ("flops", "hbm_bytes"):
    assert large["a_step"][field] == pytest.approx(small["a_step"][field], rel=0.02)
  assert large["hbm"]["together"] < large["hbm"]["available"]
  trained = figures_of_state(large)
  gradients = [row for row in large["collectives"] if row["purpose"] == "gradients"]
  others = [row for row in large["collectives"] if row["purpose"] not in ("gradients", "alignment")]
  assert {row["kind"] for row in gradients} <= {"all-reduce", "reduce-scatter"}
  assert 0.45 * trained < sum(row["bytes"] for row in gradients) < 2.2 * trained      # half of it: kernels' in bfloat16
  assert sum(row["bytes"] for row in others) < 1e-3 * trained, others     # counters of dropout, sums of losses, ties


def figures_of_state(figures: dict) -> float:
  """Returns the bytes of what is trained: the state holds each parameter and AdamW's two moments."""
  return figures["hbm"]["aliased"] / 3


@pytest.mark.slow
def test_decoding_sends_no_more_than_the_reports(libtpu, capsys):
  """The figures are of 16 reports of 24 words: every stage of the cache is a loop, and all of it together sends little."""
  figures = figures_of(capsys, "v5e:2x2", "--what", "decode", "--studies-per-chip", "4")
  assert figures["a_step"]["loops_of_unknown_length"] == len(cache_schedule(24, 3 * 24))
  assert all(row["bytes"] / row["count"] <= 4 * 16 * 24 for row in figures["collectives"])
  assert sum(row["bytes"] for row in figures["collectives"]) < 4 * 16 * 24 * 3


@pytest.mark.slow
def test_what_doesnt_fit_ends_with_status_3(libtpu, capsys):
  status = cli.main(["precompile", "--config", "mimic_cxr", "--topology", "v5e:2x2", "--studies-per-chip", "8",
                     "--json", *SMALL, "--vocabulary", "30000000"])
  output = capsys.readouterr()
  assert status == 3
  assert json.loads(output.out)["fits"] is False
  assert "fit" in output.err.splitlines()[-1]
