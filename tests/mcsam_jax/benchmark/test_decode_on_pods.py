"""The decode loop, compiled for TPU pods that nobody here has: nothing that grows with the cache crosses chips."""

import functools

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
import pytest

from mcsam_jax import config as configs
from mcsam_jax.benchmark.decode import encoded_studies, make_network, make_search
from mcsam_jax.precompile.collectives import collectives
from mcsam_jax.precompile.hlo import parse

STUDIES_A_CHIP = 8


def test_reads_kinds_and_bytes():
  hlo = """
ENTRY %main (x: f32[1]) -> f32[1] {
  %a = f32[8,4]{1,0} all-gather(%x), channel_id=1
  ROOT %b = (bf16[16]{0}, pred[]) all-reduce(%y, %z), to_apply=%add
  %c = (f32[2]{0:T(128)}, f32[8]{0:T(128)}) all-gather-start(%w)
  %d = f32[8]{0} all-gather-done(%c)
}
"""
  assert collectives(parse(hlo)) == {"all-gather": [128, 32], "all-reduce": [33]}


def compile_for(topology: str, query: str, length: int) -> str:
  """Returns the optimized HLO of beam search at published size, its studies split over all chips of a slice."""
  devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  mesh = jax.sharding.Mesh(devices, ("data",))
  rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
  config = configs.load_config("mimic_cxr", [f"--config.tokenizer.max_length={length}", f"--config.memory.query={query}"])
  model, init = make_network(config, 4347)
  variables = jax.eval_shape(init)
  prepared = jax.eval_shape(functools.partial(model.apply, method="make_decode_constants"), variables)
  studies = jax.eval_shape(lambda: encoded_studies(config, STUDIES_A_CHIP * len(devices)))
  search = jax.jit(make_search(model, config), in_shardings=(whole, whole, rows), out_shardings=rows)
  return search.lower(variables, prepared, studies).compile().as_text()


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:4x4", "v5e:16x16"])
@pytest.mark.parametrize("query", ["word", "word_position"])
def test_only_single_numbers_cross_chips(topology, query, monkeypatch, capsys):
  """They say whether any study goes on, whether a cache is full, and whether scores are tied."""
  pytest.importorskip("libtpu", reason="pip install jax[tpu]")
  monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
  found = collectives(parse(compile_for(topology, query, 100)))
  with capsys.disabled():
    print(f"\n{topology}, {query}: " + ", ".join(f"{len(sizes)} {kind} of {sorted(set(sizes))} bytes"
                                                for kind, sizes in found.items()))
  assert set(found) == {"all-reduce"} and max(found["all-reduce"]) <= 8
