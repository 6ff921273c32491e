"""`mcsam precompile`: topology_module, errors and the roofline; slow tests compile small programs for TPUs."""

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
from mcsam_jax.precompile import precompile as precompile_module
from mcsam_jax.precompile import topology as topology_module
from mcsam_jax.precompile.collectives import find_transfers
from mcsam_jax.precompile.cost import analyze_costs
from mcsam_jax.precompile.precompile import parse_memory_error
from mcsam_jax.precompile.program import lower_decode
from mcsam_jax.precompile.roofline import compute_roofline, compute_utilization


@pytest.mark.parametrize("name", ["v5e", "v5e:4", "v5e:4x4x4x4", "h100:2x2", "H100-SXM:2x2", "v2:4x4", "v5litepod-16",
                                  ""])
def test_error_for_unknown_topology_gives_examples(name):
  with pytest.raises(UserError, match="v5e:16x16, v4:8x8x16"):
    topology_module.find_topology(name)


def test_slice_larger_than_a_pod_is_an_error():
  with pytest.raises(UserError, match=r"v5e:32x32.*1024.*256"):
    topology_module.find_topology("v5e:32x32")


def test_error_for_missing_libtpu_names_the_extra(monkeypatch):
  monkeypatch.setattr(topology_module.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"pip install -e '.\[tpu\]'"):
    topology_module.find_topology("v5e:4x4")


def test_invalid_arguments_exit_with_status_2(monkeypatch, capsys):
  monkeypatch.setattr(topology_module, "prepare_environment", lambda: None)
  for arguments in (["--topology", "v5e"], ["--topology", "v5e:4x4", "--slices", "0"],
                    ["--topology", "v5e:4x4", "--studies-per-chip", "0"]):
    assert cli.main(["precompile", "--config", "mimic_cxr", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("message, needed, available", [
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (36.5G) exceeds "
     "available HBM (15.75G).", 36.5, 15.75),
    ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 24.99G of "
     "15.75G hbm. Exceeded hbm capacity by 9.24G.", 24.99, 15.75)])
def test_memory_sizes_are_parsed_from_compiler_errors(message, needed, available):
  assert parse_memory_error(message) == (int(needed * 2**30), int(available * 2**30))
  assert parse_memory_error("RESOURCE_EXHAUSTED: something else") == (None, None)


@pytest.mark.parametrize("message, status, parts", [
    ("RESOURCE_EXHAUSTED: Used 24.00G of 15.75G hbm.", 3,
     ["24.00 GiB", "v5e:4x4", "15.75 GiB", "8.25 GiB"]),
    ("INTERNAL: something\n" + 1000 * "with a long story\n", 2,
     ["INTERNAL: something", "mcsam-precompile-", "--verbose"])])
def test_compiler_errors_are_reported_in_one_line(monkeypatch, capsys, tmp_path, message, status, parts):
  class FailingProgram:
    def compile(self):
      raise jax.errors.JaxRuntimeError(message)

  devices = tuple(types.SimpleNamespace(device_kind="TPU v5 lite", process_index=0) for _ in range(16))
  monkeypatch.setattr(topology_module, "prepare_environment", lambda: None)
  monkeypatch.setattr(topology_module, "find_topology",
                      lambda name, slices: topology_module.Topology(name, slices, devices, CHIPS["v5e"]))
  monkeypatch.setattr(precompile_module, "lower_train", lambda *arguments: FailingProgram())
  monkeypatch.setattr(precompile_module.tempfile, "tempdir", str(tmp_path))
  arguments = ["precompile", "--config", "mimic_cxr", "--topology", "v5e:4x4", "--vocabulary", "10", "--json"]
  assert cli.main(arguments) == status
  output = capsys.readouterr()
  assert all(part in output.err for part in parts)
  assert output.err.count("\n") == 2                                # the progress line and the error
  assert [path.read_text() for path in tmp_path.iterdir()] == ([message] if status == 2 else [])
  if status == 3:
    assert json.loads(output.out) == {"topology": "v5e:4x4", "slices": 1, "what": "train", "fits": False,
                                      "needed": 24 * 2**30, "available": int(15.75 * 2**30)}


PROGRAM = """
ENTRY %main (a: bf16[8192,8192], b: bf16[8192,8192]) -> bf16[8192,8192] {
  %a = bf16[8192,8192]{1,0} parameter(0)
  %b = bf16[8192,8192]{1,0} parameter(1)
  %c = bf16[8192,8192]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %r = bf16[8192,8192]{1,0} all-reduce(%c), replica_groups={{0,1,2,3}}
}
"""


def test_longest_term_is_the_bottleneck():
  costs, chip, size = analyze_costs(PROGRAM), CHIPS["v5e"], 2 * 8192**2
  bound = compute_roofline(costs, find_transfers(costs), chip)
  assert bound.compute == pytest.approx(2 * 8192**3 / 197e12)
  assert bound.hbm == pytest.approx(5 * size / 819e9)                 # dot: 2 reads, 1 write; all-reduce: 1 and 1
  assert bound.ici == pytest.approx(2 * 3 / 4 * size / 200e9)
  assert (bound.bottleneck, bound.seconds, bound.dcn) == ("compute", bound.compute, 0.0)
  assert compute_utilization(4 * 2 * 8192**3, 4, 2 * bound.seconds, chip) == pytest.approx(0.5)


# The tests below compile programs.

SMALL = ["--config.encoder.name=resnet_tiny", "--config.data.image_size=64", "--config.model.encoder_layers=1",
         "--config.model.decoder_layers=1", "--config.memory.num_slots=128", "--config.model.width=128",
         "--config.tokenizer.max_length=24"]


def run_precompile(capsys, topology: str, *arguments: str) -> dict:
  status = cli.main(["precompile", "--config", "mimic_cxr", "--topology", topology, "--vocabulary", "512", "--json",
                     *SMALL, *arguments])
  output = capsys.readouterr()
  assert status == 0, output.err
  return json.loads(output.out)


@pytest.mark.parametrize("search, retrieval_weight, lengths", [("beam", 0.0, [36, 4, 0, 0]), ("mbr", 0.0, [20, 20]),
                                                  ("mbr", 0.5, [20, 20])])
def test_lowered_search_follows_the_config(search, retrieval_weight, lengths):
  """Loop lengths per cache size are known; MBR with retrieval takes the embeddings of 1,000 training reports."""
  config = load_config("mimic_cxr", [*SMALL, f"--config.decode.search={search}", "--config.tokenizer.max_length=40",
                                     f"--config.decode.retrieval_weight={retrieval_weight}",
                                     "--config.decode.batch_size=4"])
  topology = topology_module.Topology("cpu", 1, tuple(jax.devices()[:1]), CHIPS["v5e"])
  lowered = lower_decode(config, topology, 64, num_train_reports=1000)
  assert precompile_module.get_loop_lengths(config) == lengths
  shapes = [leaf.shape for leaf in jax.tree.leaves(lowered.args_info)]
  assert ((1000, config.model.width) in shapes) == (retrieval_weight > 0)
  similarities = lowered.out_info.train_report_probs
  assert similarities is None if not retrieval_weight else similarities.shape == (4, 1000)


@pytest.fixture
def libtpu():
  pytest.importorskip("libtpu", reason="pip install -e '.[tpu]'")
  topology_module.prepare_environment()


@pytest.mark.slow
def test_compiled_programs_with_known_costs(libtpu):
  """Ten products in a loop, a sharded product, a product too large for VMEM, and the gradient of a convolution."""
  devices = topology_module.find_topology("v5e:2x2").devices
  mesh = jax.sharding.Mesh(np.reshape(devices, (2, 2)), ("data", "tensor"))
  sharding = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
  array = lambda *shape, split=(): jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding(*split))
  compiled = lambda function, *arguments, **options: jax.jit(function, **options).lower(*arguments).compile()

  def ten(x, kernels):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

  loop = analyze_costs(compiled(ten, array(4096, 512, split=("data",)), array(10, 512, 512)).as_text())
  assert loop.flops == 10 * 2 * 2048 * 512 * 512 and loop.unknown_loops == []

  split = compiled(lambda x, a, b: (x @ a) @ b, array(8192, 1024, split=("data",)),
                   array(1024, 4096, split=(None, "tensor")), array(4096, 1024, split=("tensor",)),
                   out_shardings=sharding("data"))
  costs = analyze_costs(split.as_text())
  assert costs.flops == 2 * 2 * 4096 * 1024 * 2048
  [sent] = find_transfers(costs)
  assert (sent.kind, sent.members, sent.bytes) == ("all-reduce", 2, 4096 * 1024 * 2)

  large = compiled(lambda x, y: x @ y, array(16384, 8192), array(8192, 16384))
  costs, known = analyze_costs(large.as_text()), large.cost_analysis()
  assert costs.flops == known["flops"] == 2 * 16384**2 * 8192
  assert costs.hbm_bytes == pytest.approx(2 * (2 * 16384 * 8192 + 16384**2), rel=0.01)

  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).sum()

  gradient = compiled(jax.grad(convolve, 1), array(64, 56, 56, 128), array(3, 3, 128, 256))
  assert analyze_costs(gradient.as_text()).flops == pytest.approx(gradient.cost_analysis()["flops"], rel=0.01)


@pytest.mark.slow
def test_cost_per_chip_does_not_depend_on_the_slice_size(libtpu, capsys):
  small, large = (run_precompile(capsys, name, "--studies-per-chip", "8") for name in ("v5e:2x2", "v5e:4x4"))
  assert (small["devices"], small["hosts"], large["devices"], large["hosts"]) == (4, 1, 16, 4)
  for field in ("flops", "hbm_bytes"):
    assert large["per_step"][field] == pytest.approx(small["per_step"][field], rel=0.02)
  assert large["hbm"]["total"] < large["hbm"]["available"]
  trained = count_trained_bytes(large)
  gradients = [row for row in large["collectives"] if row["purpose"] == "gradients"]
  other_rows = [row for row in large["collectives"] if row["purpose"] not in ("gradients", "alignment")]
  assert {row["kind"] for row in gradients} <= {"all-reduce", "reduce-scatter"}
  # At least half: the gradients of kernels are bfloat16.
  assert 0.45 * trained < sum(row["bytes"] for row in gradients) < 2.2 * trained
  assert sum(row["bytes"] for row in other_rows) < 1e-3 * trained, other_rows     # dropout counters, loss sums, ties


def count_trained_bytes(figures: dict) -> float:
  """Returns the bytes of the trained parameters: the state holds each one and AdamW's two moments."""
  return figures["hbm"]["aliased"] / 3


@pytest.mark.slow
def test_decoding_communicates_no_more_than_the_reports(libtpu, capsys):
  """Decodes 16 reports of 24 tokens with one loop per cache size; no collective exceeds the size of the reports."""
  figures = run_precompile(capsys, "v5e:2x2", "--what", "decode", "--studies-per-chip", "4")
  assert figures["per_step"]["loops_of_unknown_length"] == len(cache_schedule(24, 3 * 24))
  assert all(row["bytes"] / row["count"] <= 4 * 16 * 24 for row in figures["collectives"])
  assert sum(row["bytes"] for row in figures["collectives"]) < 4 * 16 * 24 * 3


@pytest.mark.slow
def test_program_that_does_not_fit_exits_with_status_3(libtpu, capsys):
  status = cli.main(["precompile", "--config", "mimic_cxr", "--topology", "v5e:2x2", "--studies-per-chip", "8",
                     "--json", *SMALL, "--vocabulary", "30000000"])
  output = capsys.readouterr()
  assert status == 3
  assert json.loads(output.out)["fits"] is False
  assert "fit" in output.err.splitlines()[-1]


def test_figures_per_token_count_reports_not_beams():
  config = load_config("mimic_cxr", ["--config.tokenizer.max_length=50", "--config.decode.beam_size=3"])
  topology = topology_module.Topology("v5e:2x2", 1, (None,) * 4, CHIPS["v5e"])
  costs = types.SimpleNamespace(hbm_bytes=8e6)                     # per chip, for 2 reports of 50 tokens
  tokens = precompile_module._describe_tokens(config, costs, topology, batch=8, roof_seconds=0.01,
                                              estimated_seconds=0.04)
  assert tokens == {"per_report": 50, "hbm_bytes_per_token": 8e4, "per_second_per_chip": 1e4,
                    "estimated_per_second_per_chip": 2500}
