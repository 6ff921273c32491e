"""Costs of small hand-written HLO programs with known answers."""

import pytest

from mcsam_jax.precompile.collectives import find_transfers, list_collective_bytes
from mcsam_jax.precompile.cost import analyze_costs, sum_by
from mcsam_jax.precompile.hlo import parse, parse_arrays
from mcsam_jax.precompile.parts import get_detail, get_part, get_purpose

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
"""  # noqa: E501


@pytest.mark.parametrize("count", ["", KNOWN])
def test_loop_costs_are_multiplied_by_the_trip_count(count):
  """Ten matrix products; x is read from and written to HBM once, and each iteration reads its slice of the weights."""
  costs = analyze_costs(SCAN.replace("COUNT", count))
  assert costs.unknown_loops == []
  assert costs.flops == 10 * 2 * 64 * 128 * 128
  x, weights = 64 * 128 * 2, 128 * 128 * 2
  assert sum(row.hbm_read for row in costs.rows if row.instruction.name in ("start", "y")) == x + 10 * weights
  assert sum(row.hbm_written for row in costs.rows if row.instruction.name == "far") == x
  assert costs.hbm_bytes - (2 * x + 10 * weights) == 10 * 4         # copies of the loop counter
  assert costs.cycles == 10 * 50
  [sent] = find_transfers(costs)
  assert (sent.kind, sent.bytes, sent.times, sent.members, sent.wire_bytes) == ("all-reduce", x, 10, 2, 10 * x)
  assert list_collective_bytes(costs.program) == {"all-reduce": [x]}
  assert set(sum_by(costs, lambda row: get_part(row, costs))) == {"decoder", "other"}
  assert get_purpose(sent.cost, costs) == "gradients"
  assert "decoder, backward" in sum_by(costs, lambda row: get_detail(row, costs))


def test_data_dependent_loop_is_listed_as_unknown():
  text = SCAN.replace("COUNT", "").replace("%bound = s32[]{:T(128)S(6)} constant(10)",
                                          "%bound = s32[]{:T(128)S(6)} get-tuple-element(%state.1), index=0")
  assert analyze_costs(text).unknown_loops == ["loop"]
  assert analyze_costs(text, unknown_trips=[7]).flops == 7 * analyze_costs(text).flops == 7 * 2 * 64 * 128 * 128


@pytest.mark.parametrize("shape, plain, padded, space", [
    ("bf16[16,3]{1,0:T(8,128)(2,1)}", 96, 16 * 128 * 2, 0),              # the last axis is padded to 128
    ("f32[5,100]{0,1:T(8,128)S(1)}", 2000, 104 * 128 * 4, 1),            # the fastest axis is first: 5 -> 128
    ("f32[]{:T(128)}", 4, 4, 0),
    ("pred[300]{0:T(512)(128)(4,1)}", 300, 512, 0),
    ("s4[3]", 2, 2, 0)])
def test_array_sizes_with_and_without_padding(shape, plain, padded, space):
  [array] = parse_arrays(shape)
  assert (array.bytes, array.padded_bytes, array.space) == (plain, padded, space)


def count_flops_of_line(line: str, operands: str) -> float:
  return analyze_costs(f"ENTRY %main (a: f32[1]) -> f32[1] {{\n{operands}\n  ROOT %c = {line}\n}}\n").flops


@pytest.mark.parametrize("line, operands, flops", [
    # batch of 3 matrix products [4,5] x [5,6]
    ("f32[3,4,6]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, "
     "rhs_contracting_dims={1}",
     "  %a = f32[3,4,5]{2,1,0} parameter(0)\n  %b = f32[3,5,6]{2,1,0} parameter(1)", 2 * 3 * 4 * 5 * 6),
    # 3x3 over 5x5 pixels with zero padding: an axis of 5 outputs has 5 * 3 - 2 taps inside the image
    ("f32[2,5,5,7]{3,2,1,0} convolution(%a, %b), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
     "  %a = f32[2,5,5,4]{3,2,1,0} parameter(0)\n  %b = f32[3,3,4,7]{3,2,1,0} parameter(1)", 2 * 2 * 13 * 13 * 4 * 7),
    # depthwise: 8 groups of one channel
    ("f32[1,4,8]{2,1,0} convolution(%a, %b), window={size=1}, dim_labels=b0f_0io->b0f, feature_group_count=8",
     "  %a = f32[1,4,8]{2,1,0} parameter(0)\n  %b = f32[1,1,8]{2,1,0} parameter(1)", 2 * 4 * 8),
    # transposed convolution with stride 2: every second of 7 positions is a gap
    ("f32[1,7,1]{2,1,0} convolution(%a, %b), window={size=1 lhs_dilate=2}, dim_labels=b0f_0io->b0f",
     "  %a = f32[1,4,1]{2,1,0} parameter(0)\n  %b = f32[1,1,1]{2,1,0} parameter(1)", 2 * 4),
    # batch of 8 matrix products as TPUs compute it: a dilated batch axis whose windows meet one element each
    ("f32[16,32,8]{1,0,2} convolution(%a, %b), window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=bf0_oi0->bf0",
     "  %a = f32[16,64,8]{1,0,2} parameter(0)\n  %b = f32[32,64,8]{1,0,2} parameter(1)", 2 * 16 * 32 * 64 * 8)])
def test_flops_of_products_and_convolutions(line, operands, flops):
  assert count_flops_of_line(line, operands) == flops


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
"""  # noqa: E501


def test_one_branch_of_a_conditional_counts():
  assert analyze_costs(BRANCHES).hbm_bytes == 2 * 512
  assert analyze_costs(BRANCHES, most_expensive=True).hbm_bytes == 4 * 512


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
"""  # noqa: E501


def test_in_place_update_counts_only_the_slice():
  [row] = analyze_costs(UPDATE).rows
  assert (row.hbm_read, row.hbm_written) == (8 * 128 * 4, 8 * 128 * 4)


def parse_transfer(attributes: str, call: str = "f32[8]{0} all-reduce(%a)"):
  text = f"ENTRY %main (a: f32[8]) -> f32[8] {{\n  %a = f32[8]{{0}} parameter(0)\n" \
         f"  ROOT %r = {call}, {attributes}\n}}\n"
  [sent] = find_transfers(analyze_costs(text), num_devices=16)
  return sent


@pytest.mark.parametrize("groups, members", [
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4), ("replica_groups=[2,8]<=[16]", 8),
    ("replica_groups=[4,4]<=[4,4]T(1,0)", 4), ("replica_groups={}", 16),
    ("replica_groups=mesh['data'=8,'fsdp'=2] {'data'}", 8),
    ("replica_groups=mesh['data'=8,'fsdp'=2] {'data','fsdp'}", 16),
    ("replica_groups=mesh['data'=8] {'data':(2)4}", 4)])
def test_collective_group_size(groups, members):
  assert parse_transfer(groups).members == members


def test_bytes_of_collectives():
  gather = parse_transfer("replica_groups={{0,1}}", "(f32[8]{0}, f32[16]{0}) all-gather-start(%a)")
  assert (gather.bytes, gather.wire_bytes) == (64, 32)
  scatter = parse_transfer("replica_groups={{0,1,2,3}}", "f32[2]{0} reduce-scatter(%a)")
  assert (scatter.bytes, scatter.wire_bytes) == (32, 24)
  attributes = ('channel_id=3, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:3}",'
                '_xla_megascale_transfer_type="ALL_REDUCE"}')
  across = parse_transfer(attributes, "(f32[8]{0}, u32[], token[]) send(%a)")
  assert (across.kind, across.network, across.members) == ("all-reduce", "dcn", 4)
  assert (across.bytes, across.wire_bytes) == (32, 48)


PIECES = """
HloModule gather, is_scheduled=true

%begins (part: f32[16,128], x: f32[512,128]) -> (f32[512,128], f32[16,128], f32[128,128]) {
  %part = f32[16,128]{1,0:T(8,128)} parameter(0)
  %x = f32[512,128]{1,0:T(8,128)} parameter(1)
  %all.1 = f32[128,128]{1,0:T(8,128)} all-gather(%part), channel_id=16, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  %y = f32[512,128]{1,0:T(8,128)} negate(%x)
  ROOT %out = (f32[512,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)}, f32[128,128]{1,0:T(8,128)}) tuple(%y, %part, %all.1)
}

%continues (part: f32[16,128], buffer: f32[128,128], x: f32[512,128]) -> (f32[512,128], f32[16,128], f32[128,128], f32[128,128]) {
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
  %second = (f32[512,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)}, f32[128,128]{1,0:T(8,128)}, f32[128,128]{1,0:T(8,128)}) fusion(%same, %all, %y.0), kind=kCustom, calls=%continues
  ROOT %end = f32[512,128]{1,0:T(8,128)} get-tuple-element(%second), index=0
}
"""  # noqa: E501


def test_collective_split_over_several_fusions_counts_once():
  costs = analyze_costs(PIECES)
  [sent] = find_transfers(costs, 8)
  assert (sent.kind, sent.bytes, sent.members, sent.times) == ("all-gather", 128 * 128 * 4, 8, 1)
  assert list_collective_bytes(costs.program) == {"all-gather": [128 * 128 * 4]}
  x, part, gathered = (rows * 128 * 4 for rows in (512, 16, 128))
  assert [(row.hbm_read, row.hbm_written) for row in costs.rows] == [(x + part, x + gathered), (x, x)]


def test_stack_frames_are_parsed():
  program = parse("HloModule m\n\nFileNames\n1 \"/a/training/step.py\"\n2 \"/a/optax/x.py\"\n\nFunctionNames\n"
                  "1 \"outer\"\n"
                  "2 \"inner\"\n\nFileLocations\n1 {file_name_id=1 function_name_id=1 line=1}\n"
                  "2 {file_name_id=2 function_name_id=2 line=2}\n\nStackFrames\n"
                  "1 {file_location_id=1 parent_frame_id=1}\n"
                  "2 {file_location_id=2 parent_frame_id=2}\n\n\nENTRY %main (a: f32[1]) -> f32[1] {\n"
                  "  ROOT %a = f32[1]{0} parameter(0)\n}\n")
  assert program.stack(2) == [("/a/optax/x.py", "inner"), ("/a/training/step.py", "outer")]
