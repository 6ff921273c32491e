"""Costs of small programs, written out by hand, whose answers are known."""

import pytest

from mcsam_jax.precompile.collectives import collectives, transfers
from mcsam_jax.precompile.cost import analyse, total_by
from mcsam_jax.precompile.hlo import arrays_of, parse
from mcsam_jax.precompile.parts import detail_of, part_of, purpose_of

KNOWN = ', backend_config={"known_trip_count":{"n":"10"}}'
SCAN = """
HloModule scan, is_scheduled=true

%fused (p0: bf16[64,128], p1: bf16[10,128,128], p2: s32[]) -> bf16[64,128] {
  %p0 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p1 = bf16[10,128,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %p2 = s32[]{:T(128)S(6)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %slice = bf16[1,128,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p1, %p2, %zero, %zero), dynamic_slice_sizes={1,128,128}
  %weights = bf16[128,128]{1,0:T(8,128)(2,1)} bitcast(%slice)
  ROOT %product = bf16[64,128]{1,0:T(8,128)(2,1)} convolution(%p0, %weights), dim_labels=bf_io->bf
}

%body (state: (s32[], bf16[64,128], bf16[10,128,128])) -> (s32[], bf16[64,128], bf16[10,128,128]) {
  %state = (s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, bf16[10,128,128]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%state), index=0
  %turn.copy = s32[]{:T(128)S(6)} copy(%turn)
  %one = s32[]{:T(128)S(6)} constant(1)
  %next = s32[]{:T(128)S(6)} add(%turn.copy, %one)
  %x = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%state), index=1
  %all = bf16[10,128,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %y = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %all, %turn.copy), kind=kOutput, calls=%fused, metadata={op_name="jit(f)/transpose(jvp(MCSAM))/decoder/dot" stack_frame_id=2}, backend_config={"window_config":{"estimated_cycles":"50"}}
  %sum = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-reduce(%y), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %out = (s32[]{:T(128)S(6)}, bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, bf16[10,128,128]{2,1,0:T(8,128)(2,1)}) tuple(%next, %sum, %all)
}

%test (state: (s32[], bf16[64,128], bf16[10,128,128])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, bf16[10,128,128]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %turn.1 = s32[]{:T(128)S(6)} get-tuple-element(%state.1), index=0
  %bound = s32[]{:T(128)S(6)} constant(10)
  ROOT %less = pred[]{:T(512)S(6)} compare(%turn.1, %bound), direction=LT
}

ENTRY %main (x: bf16[64,128], w: bf16[10,128,128]) -> bf16[64,128] {
  %x.1 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %w.1 = bf16[10,128,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %start = (bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, bf16[64,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x.1)
  %near = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%start)
  %first = s32[]{:T(128)S(6)} constant(0)
  %state.0 = (s32[]{:T(128)S(6)}, bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, bf16[10,128,128]{2,1,0:T(8,128)(2,1)}) tuple(%first, %near, %w.1)
  %loop = (s32[]{:T(128)S(6)}, bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, bf16[10,128,128]{2,1,0:T(8,128)(2,1)}) while(%state.0), condition=%test, body=%bodyCOUNT
  %found = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%loop), index=1
  ROOT %far = bf16[64,128]{1,0:T(8,128)(2,1)} copy(%found)
}
"""


@pytest.mark.parametrize("count", ["", KNOWN])
def test_a_loop_counts_as_often_as_it_turns(count):
  """Ten products; x comes from HBM once and goes back once, each turn reads its own slice of the weights."""
  costs = analyse(SCAN.replace("COUNT", count))
  assert costs.unknown_loops == []
  assert costs.flops == 10 * 2 * 64 * 128 * 128
  x, weights = 64 * 128 * 2, 128 * 128 * 2
  assert sum(row.hbm_read for row in costs.rows if row.instruction.name in ("start", "y")) == x + 10 * weights
  assert sum(row.hbm_written for row in costs.rows if row.instruction.name == "far") == x
  assert costs.hbm_bytes - (2 * x + 10 * weights) == 10 * 4         # the counter, copied
  assert costs.cycles == 10 * 50
  [sent] = transfers(costs)
  assert (sent.kind, sent.bytes, sent.times, sent.members, sent.wire_bytes) == ("all-reduce", x, 10, 2, 10 * x)
  assert collectives(costs.program) == {"all-reduce": [x]}
  assert set(total_by(costs, lambda row: part_of(row, costs))) == {"decoder", "other"}
  assert purpose_of(sent.cost, costs) == "gradients"
  assert "decoder, backward" in total_by(costs, lambda row: detail_of(row, costs))


def test_a_loop_whose_end_depends_on_data_is_named():
  text = SCAN.replace("COUNT", "").replace("%bound = s32[]{:T(128)S(6)} constant(10)",
                                          "%bound = s32[]{:T(128)S(6)} get-tuple-element(%state.1), index=0")
  assert analyse(text).unknown_loops == ["loop"]
  assert analyse(text, unknown_trips=[7]).flops == 7 * analyse(text).flops == 7 * 2 * 64 * 128 * 128


@pytest.mark.parametrize("shape, plain, padded, space", [
    ("bf16[16,3]{1,0:T(8,128)(2,1)}", 96, 16 * 128 * 2, 0),              # the last axis is filled up to 128
    ("f32[5,100]{0,1:T(8,128)S(1)}", 2000, 104 * 128 * 4, 1),            # ... which is the first here, 5 to 128
    ("f32[]{:T(128)}", 4, 4, 0),
    ("pred[300]{0:T(512)(128)(4,1)}", 300, 512, 0),
    ("s4[3]", 2, 2, 0)])
def test_sizes_in_memory(shape, plain, padded, space):
  [array] = arrays_of(shape)
  assert (array.bytes, array.padded_bytes, array.space) == (plain, padded, space)


def one(line: str, operands: str) -> float:
  return analyse(f"ENTRY %main (a: f32[1]) -> f32[1] {{\n{operands}\n  ROOT %c = {line}\n}}\n").flops


@pytest.mark.parametrize("line, operands, flops", [
    # a batch of 3 products [4,5] x [5,6]
    ("f32[3,4,6]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}",
     "  %a = f32[3,4,5]{2,1,0} parameter(0)\n  %b = f32[3,5,6]{2,1,0} parameter(1)", 2 * 3 * 4 * 5 * 6),
    # 3x3 over 5x5 pixels with a margin of zeros: an axis of 5 outputs has 5 * 3 - 2 taps that are inside
    ("f32[2,5,5,7]{3,2,1,0} convolution(%a, %b), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
     "  %a = f32[2,5,5,4]{3,2,1,0} parameter(0)\n  %b = f32[3,3,4,7]{3,2,1,0} parameter(1)", 2 * 2 * 13 * 13 * 4 * 7),
    # depthwise: 8 groups of one channel
    ("f32[1,4,8]{2,1,0} convolution(%a, %b), window={size=1}, dim_labels=b0f_0io->b0f, feature_group_count=8",
     "  %a = f32[1,4,8]{2,1,0} parameter(0)\n  %b = f32[1,1,8]{2,1,0} parameter(1)", 2 * 4 * 8),
    # a transposed convolution of stride 2: of 7 places every second is a gap
    ("f32[1,7,1]{2,1,0} convolution(%a, %b), window={size=1 lhs_dilate=2}, dim_labels=b0f_0io->b0f",
     "  %a = f32[1,4,1]{2,1,0} parameter(0)\n  %b = f32[1,1,1]{2,1,0} parameter(1)", 2 * 4),
    # a batch of 8 products as TPUs write it: the batch as a dilated axis whose window meets itself alone
    ("f32[16,32,8]{1,0,2} convolution(%a, %b), window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=bf0_oi0->bf0",
     "  %a = f32[16,64,8]{1,0,2} parameter(0)\n  %b = f32[32,64,8]{1,0,2} parameter(1)", 2 * 16 * 32 * 64 * 8)])
def test_operations_of_a_product(line, operands, flops):
  assert one(line, operands) == flops


BRANCHES = """
%small (a: f32[128]) -> f32[128] {
  %a.1 = f32[128]{0} parameter(0)
  ROOT %neg = f32[128]{0} negate(%a.1)
}

%large (a: f32[128]) -> f32[128] {
  %a.2 = f32[128]{0} parameter(0)
  %sin = f32[128]{0} sine(%a.2)
  ROOT %cos = f32[128]{0} cosine(%sin)
}

ENTRY %main (i: s32[], a: f32[128]) -> f32[128] {
  %i = s32[]{:S(6)} parameter(0)
  %a = f32[128]{0} parameter(1)
  ROOT %either = f32[128]{0} conditional(%i, %a, %a), branch_computations={%small, %large}
}
"""


def test_of_a_conditional_one_branch_counts():
  assert analyse(BRANCHES).hbm_bytes == 2 * 512
  assert analyse(BRANCHES, dearest=True).hbm_bytes == 4 * 512


UPDATE = """
%write (p0: f32[1024,128], p1: f32[8,128], p2: s32[]) -> f32[1024,128] {
  %p0 = f32[1024,128]{1,0} parameter(0)
  %p1 = f32[8,128]{1,0} parameter(1)
  %p2 = s32[]{:S(6)} parameter(2)
  ROOT %new = f32[1024,128]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
}

ENTRY %main (a: f32[1024,128], b: f32[8,128], i: s32[]) -> f32[1024,128] {
  %a = f32[1024,128]{1,0} parameter(0)
  %b = f32[8,128]{1,0} parameter(1)
  %i = s32[]{:S(6)} parameter(2)
  ROOT %f = f32[1024,128]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%write
}
"""


def test_an_update_in_place_moves_the_slice_alone():
  [row] = analyse(UPDATE).rows
  assert (row.hbm_read, row.hbm_written) == (8 * 128 * 4, 8 * 128 * 4)


def kind_of(attributes: str, call: str = "f32[8]{0} all-reduce(%a)"):
  text = f"ENTRY %main (a: f32[8]) -> f32[8] {{\n  %a = f32[8]{{0}} parameter(0)\n  ROOT %r = {call}, {attributes}\n}}\n"
  [sent] = transfers(analyse(text), num_devices=16)
  return sent


@pytest.mark.parametrize("groups, members", [
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4), ("replica_groups=[2,8]<=[16]", 8),
    ("replica_groups=[4,4]<=[4,4]T(1,0)", 4), ("replica_groups={}", 16),
    ("replica_groups=mesh['data'=8,'fsdp'=2] {'data'}", 8), ("replica_groups=mesh['data'=8,'fsdp'=2] {'data','fsdp'}", 16),
    ("replica_groups=mesh['data'=8] {'data':(2)4}", 4)])
def test_who_exchanges(groups, members):
  assert kind_of(groups).members == members


def test_results_of_collectives():
  gather = kind_of("replica_groups={{0,1}}", "(f32[8]{0}, f32[16]{0}) all-gather-start(%a)")
  assert (gather.bytes, gather.wire_bytes) == (64, 32)
  scatter = kind_of("replica_groups={{0,1,2,3}}", "f32[2]{0} reduce-scatter(%a)")
  assert (scatter.bytes, scatter.wire_bytes) == (32, 24)
  across = kind_of('channel_id=3, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:3}",'
                   '_xla_megascale_transfer_type="ALL_REDUCE"}', "(f32[8]{0}, u32[], token[]) send(%a)")
  assert (across.kind, across.network, across.bytes, across.members, across.wire_bytes) == ("all-reduce", "dcn", 32, 4, 48)


PIECES = """
HloModule gather, is_scheduled=true

%begins (part: f32[16,128], x: f32[512,128]) -> (f32[512,128], f32[16,128], f32[128,128]) {
  %part = f32[16,128]{1,0:T(8,128)} parameter(0)
  %x = f32[512,128]{1,0:T(8,128)} parameter(1)
  %all.1 = f32[128,128]{1,0:T(8,128)} all-gather(%part), channel_id=16, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  %y = f32[512,128]{1,0:T(8,128)} negate(%x)
  ROOT %out = (f32[512,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)}, f32[128,128]{1,0:T(8,128)}) tuple(%y, %part, %all.1)
}

%goes_on (part: f32[16,128], buffer: f32[128,128], x: f32[512,128]) -> (f32[512,128], f32[16,128], f32[128,128], f32[128,128]) {
  %part.2 = f32[16,128]{1,0:T(8,128)} parameter(0)
  %buffer = f32[128,128]{1,0:T(8,128)} parameter(1)
  %x.2 = f32[512,128]{1,0:T(8,128)} parameter(2)
  %all.2 = f32[128,128]{1,0:T(8,128)} all-gather(%part.2), channel_id=16, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
  %y.2 = f32[512,128]{1,0:T(8,128)} negate(%x.2)
  ROOT %out.2 = (f32[512,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)}, f32[128,128]{1,0:T(8,128)}, f32[128,128]{1,0:T(8,128)}) tuple(%y.2, %part.2, %buffer, %all.2)
}

ENTRY %main (part: f32[16,128], x: f32[512,128]) -> f32[512,128] {
  %part.0 = f32[16,128]{1,0:T(8,128)} parameter(0)
  %x.0 = f32[512,128]{1,0:T(8,128)} parameter(1)
  %first = (f32[512,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)}, f32[128,128]{1,0:T(8,128)}) fusion(%part.0, %x.0), kind=kCustom, calls=%begins
  %y.0 = f32[512,128]{1,0:T(8,128)} get-tuple-element(%first), index=0
  %same = f32[16,128]{1,0:T(8,128)} get-tuple-element(%first), index=1
  %all = f32[128,128]{1,0:T(8,128)} get-tuple-element(%first), index=2
  %second = (f32[512,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)}, f32[128,128]{1,0:T(8,128)}, f32[128,128]{1,0:T(8,128)}) fusion(%same, %all, %y.0), kind=kCustom, calls=%goes_on
  ROOT %end = f32[512,128]{1,0:T(8,128)} get-tuple-element(%second), index=0
}
"""


def test_a_collective_beside_the_work_of_several_fusions_counts_once():
  costs = analyse(PIECES)
  sent, = transfers(costs, 8)
  assert (sent.kind, sent.bytes, sent.members, sent.times) == ("all-gather", 128 * 128 * 4, 8, 1)
  assert collectives(costs.program) == {"all-gather": [128 * 128 * 4]}
  x, part, gathered = (rows * 128 * 4 for rows in (512, 16, 128))
  assert [(row.hbm_read, row.hbm_written) for row in costs.rows] == [(x + part, x + gathered), (x, x)]


def test_sources_are_found():
  program = parse("HloModule m\n\nFileNames\n1 \"/a/training/step.py\"\n2 \"/a/optax/x.py\"\n\nFunctionNames\n1 \"outer\"\n"
                  "2 \"inner\"\n\nFileLocations\n1 {file_name_id=1 function_name_id=1 line=1}\n"
                  "2 {file_name_id=2 function_name_id=2 line=2}\n\nStackFrames\n1 {file_location_id=1 parent_frame_id=1}\n"
                  "2 {file_location_id=2 parent_frame_id=2}\n\n\nENTRY %main (a: f32[1]) -> f32[1] {\n"
                  "  ROOT %a = f32[1]{0} parameter(0)\n}\n")
  assert program.stack(2) == [("/a/optax/x.py", "inner"), ("/a/training/step.py", "outer")]
