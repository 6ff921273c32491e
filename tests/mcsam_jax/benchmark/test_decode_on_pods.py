"""The decode loop compiled for TPU pods: no collective grows with the cache."""

import functools

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
import pytest

from mcsam_jax import config as configs
from mcsam_jax.benchmark.decode import make_encoded_images, make_network, make_search
from mcsam_jax.precompile.collectives import list_collective_bytes
from mcsam_jax.precompile.hlo import parse

STUDIES_PER_CHIP = 8


def test_collective_bytes_are_listed_by_kind():
  hlo = """
ENTRY %main (x: f32[1]) -> f32[1] {
  %a = f32[8,4]{1,0} all-gather(%x), channel_id=1
  ROOT %b = (bf16[16]{0}, pred[]) all-reduce(%y, %z), to_apply=%add
  %c = (f32[2]{0:T(128)}, f32[8]{0:T(128)}) all-gather-start(%w)
  %d = f32[8]{0} all-gather-done(%c)
}
"""
  assert list_collective_bytes(parse(hlo)) == {"all-gather": [128, 32], "all-reduce": [33]}


def compile_for(topology: str, query: str, length: int) -> str:
  """Returns the optimized HLO of beam search at published size, its studies sharded over all chips of a slice."""
  devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  mesh = jax.sharding.Mesh(devices, ("data",))
  sharded, replicated = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
  config = configs.load_config("mimic_cxr", [f"--config.tokenizer.max_length={length}",
                                             f"--config.memory.query={query}"])
  model, init = make_network(config, 4347)
  variables = jax.eval_shape(init)
  constants = jax.eval_shape(functools.partial(model.apply, method="make_decode_constants"), variables)
  images = jax.eval_shape(lambda: make_encoded_images(config, STUDIES_PER_CHIP * len(devices)))
  search = jax.jit(make_search(model, config), in_shardings=(replicated, replicated, sharded),
                   out_shardings=sharded)
  return search.lower(variables, constants, images).compile().as_text()


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:4x4", "v5e:16x16"])
@pytest.mark.parametrize("query", ["word", "word_position"])
def test_only_scalars_cross_chips(topology, query, monkeypatch, capsys):
  """The scalars say whether any search continues, whether a cache is full, and whether scores are tied."""
  pytest.importorskip("libtpu", reason="pip install jax[tpu]")
  monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
  sizes_by_kind = list_collective_bytes(parse(compile_for(topology, query, 100)))
  with capsys.disabled():
    print(f"\n{topology}, {query}: " + ", ".join(f"{len(sizes)} {kind} of {sorted(set(sizes))} bytes"
                                                for kind, sizes in sizes_by_kind.items()))
  assert set(sizes_by_kind) == {"all-reduce"} and max(sizes_by_kind["all-reduce"]) <= 8
