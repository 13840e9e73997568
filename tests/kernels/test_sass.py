"""Counting the instructions of main loops: on stored text, and on one kernel where the disassembler is installed."""

import re

import pytest
from minigan.kernels import KernelError, check, nvrtc, sass, sources

needs_disassembler = pytest.mark.skipif(not sass.is_available(), reason=sass.MISSING)

# A loop around a loop that waits, as a disassembler shows them; the multiplications are in the outer one. Before it a
# loop with one multiplication less, behind it one that jumps forwards.
TEXT = """
.section .text.first,"ax",@progbits
first:
.text.first:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   HMMA.1688.F32.TF32 R84, R32, R102, R84 ;
        /*0020*/               @P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0030*/              @!P0 LDS.128 R4, [R2+0x10] ;
.L_x_2:
        /*0040*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R9+UR28], R8 ;
        /*0050*/              @!P0 BRA `(.L_x_2) ;
        /*0060*/                   LDSM.16.M88.4 R20, [R20] ;
        /*0070*/                   LDGSTS.E.BYPASS.128 [R31], [R12.64], P3 ;
        /*0080*/                   FSETP.GEU.AND P6, PT, |R102|, +INF , PT ;
        /*0090*/              @!P6 IMAD.IADD.U32 R102, R102, 0x1, R11.reuse ;
        /*00a0*/                   ULDC.64 UR6, c[0x0][0x118] ;
        /*00b0*/                   LOP3.LUT R11, R3.reuse, 0x1f, RZ, 0xc0, !PT ;
        /*00c0*/                   HMMA.1688.F32.TF32 R84, R32, R102, R84 ;
        /*00d0*/                   HMMA.1688.F32.TF32 R80, R32, R102, R80 ;
        /*00e0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00f0*/              @!P2 BRA `(.L_x_1) ;
        /*0100*/                   EXIT ;
.L_x_9:
        /*0110*/                   BRA `(.L_x_9);

.text.second:
        /*0000*/                   STG.E [R2.64], R5 ;
        /*0010*/                   BRA `(.L_x_5) ;
.L_x_5:
        /*0020*/                   EXIT ;
"""


def test_the_main_loop_of_stored_text():
    found = sass.kernels(TEXT)
    assert list(found) == ["first", "second"]
    assert sass.main_loop(found["second"]) is None
    loop = sass.main_loop(found["first"])
    assert loop is not None
    assert [line.split(" ")[0] for line in loop[:2]] == ["LDS.128", "SYNCS.PHASECHK.TRANS64.TRYWAIT"]
    cost = sass.cost(loop, "80")
    counts = {"multiply": 2, "shared": 2, "copy": 1, "convert": 1, "integer": 2, "uniform": 1, "wait": 2, "branch": 2}
    assert cost.counts == counts
    assert cost.total == sum(counts.values()) == 13
    # By hand. 16 x 8 x 8 = 1024 products, 512 a cycle in the SM, 128 in its quarter: 8 cycles. 4 + 4 + 4 groups of 128
    # bytes, one a cycle in the SM. FSETP and LOP3 take 32 / 16 cycles each, and so does IMAD.
    assert cost.pipes == {"multiply": 16, "issue": 13, "integer": 4, "FP32": 2, "shared": 48}
    assert (cost.bound, cost.share) == ("shared", 1 / 3)
    assert sass.cost(loop, "90a").pipes["multiply"] == 8
    with pytest.raises(KernelError, match="expected one of sm_80, sm_90, whose rates are known, got sm_120"):
        sass.cost(loop, "120")


@pytest.mark.parametrize(
    ("arch", "instruction", "multiply", "shared"),
    [
        ("80", "HMMA.16816.F32.BF16 R4, R8, R12, R4", 8, 0),
        ("90a", "HMMA.16816.F32 R4, R8, R12, R4", 4, 0),
        # 64 x 128 x 16 products by four warps, 2048 a cycle; (64 + 128) x 16 x 2 bytes.
        ("90a", "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR20].tnspB, R24, gsb0", 64, 48),
        ("90a", "HGMMA.64x64x8.F32.TF32 R24, gdesc[UR20], R24", 32, 32),
        # A from registers: 256 x 8 x 4 bytes
        ("90a", "HGMMA.64x256x8.F32.TF32 R24, R152, gdesc[UR8], R24", 128, 64),
        # 32 lanes, a quarter of 64 or 128 a cycle
        ("80", "FFMA R4, R8, R12, R4", 2, 0),
        ("90a", "FFMA R4, R8, R12, R4", 1, 0),
    ],
)
def test_cycles_of_multiplications(arch, instruction, multiply, shared):
    pipes = sass.cost([instruction], arch).pipes
    assert (pipes["multiply"], pipes["shared"]) == (multiply, shared)


def test_a_way_back_from_behind_the_end_is_no_loop():
    instructions = [".L_1:", "HGMMA", "BRA `(.L_2)", ".L_3:", "BRA `(.L_1)", "HGMMA", "EXIT", ".L_2:", "BRA `(.L_3)"]
    assert sass.main_loop(instructions) == ["HGMMA", "BRA `(.L_2)", "BRA `(.L_1)"]
    assert sass.main_loop(instructions[3:4] + instructions[5:]) is None


def test_an_unknown_multiplication_is_an_error():
    with pytest.raises(KernelError, match=r"expected HMMA\.1688, .*, got HMMA\.884\.F32"):
        sass.cost(["HMMA.884.F32 R4, R8, R12, R4"], "80")


def test_words_that_lanes_share_are_one_group():
    loop = ["LDS.128 R4, [R2]", "FFMA R4, R8, R12, R4", "STS.64 [R2], R4", "LDS R4, [R2]"]
    assert sass.cost(loop, "80").pipes["shared"] == 4 * (1 + 2 + 1)


def test_what_the_command_refuses(capsys, monkeypatch):
    assert sass.main(sources(), ["120"], None) == 2
    assert "--arch: expected some of 80, 90, whose rates are known, got 120" in capsys.readouterr().out
    assert sass.main(sources(), ["80"], "scale_negative") == 2
    assert "none of them has a kernel 'scale_negative'" in capsys.readouterr().out

    def missing():
        raise nvrtc.NvrtcError(sass.MISSING)

    monkeypatch.setattr(sass, "disassembler", missing)
    assert sass.main(sources(), ["80"], "conv2d_forward") == 2
    assert "is not installed: pip install 'minigan[nvrtc]'" in capsys.readouterr().out
    assert not sass.is_available()


@needs_disassembler
def test_a_kernel(capsys, monkeypatch):
    """Rung 6: a tile of 64 x 64 x 16 by 4 warps is 16 products of 16 x 8 x 8 for each. The smallest builds soonest."""
    path = next(name for name in sources() if name.endswith("6_tensor_cores_tf32.cu"))
    source = check.load(path)
    (variant,) = [v for v in source.variants if "BM=64" in str(v) and "VECTOR_A=4 VECTOR_B=4" in str(v)]
    found = list(sass.rows(source, variant, "80"))
    passes = {f"conv2d_{what}" for what in ("forward", "input_grad", "weight_grad")}
    assert {row.kernel for row in found} == passes | {"conv2d_forward_moments", "conv2d_input_grad_moments"}
    for row in found:
        assert row.loop.counts["multiply"] == 64 * 64 * 16 / 4 / (16 * 8 * 8)
        assert row.loop.pipes["multiply"] == 128
        assert row.loop.counts["copy"] >= 4
        assert row.loop.counts["wait"] >= 2
        assert 0 < row.loop.share <= 1
    monkeypatch.setattr(source, "variants", (variant,))
    monkeypatch.setattr(sass, "chosen", lambda names, kernel: [source])
    assert sass.main(sources(), ["80", "90a"], "conv2d_forward") == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"^6_tensor_cores_tf32\.cu +conv2d_forward .* 16 .*%$", said, re.MULTILINE)) == 2
