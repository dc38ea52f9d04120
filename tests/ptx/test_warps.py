"""Lanes of a warp, shared memory, asynchronous copies, tensor cores: right where the program is, else a fault."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx.errors import Fault
from tests.ptx.machine import Settings
from tests.ptx.opcodes import matrix
from tests.ptx.scheduler import Order
from tests.ptx.snippets import evaluate

LANES = np.arange(32, dtype=np.uint32)
R9 = [("%r9", np.uint32)]
ORDERS = [Order(), *(Order(seed) for seed in range(4))]
EVERY_ORDER = pytest.mark.parametrize("order", ORDERS, ids=lambda o: str(o.seed))


# ---- shuffles, votes, reductions ----


@pytest.mark.parametrize(
    ("mode", "b", "c", "source"),
    [
        ("bfly", 5, 31, lambda i: i ^ 5), ("idx", 7, 31, lambda i: 7), ("up", 3, 0, lambda i: i - 3 if i >= 3 else i),
        ("down", 4, 31, lambda i: i + 4 if i < 28 else i),
        # Segments of eight lanes: the mask of 24 in the upper byte.
        ("idx", 2, 31 | 24 << 8, lambda i: i // 8 * 8 + 2),
        ("down", 3, 7 | 24 << 8, lambda i: i + 3 if i % 8 < 5 else i),
        ("up", 2, 24 << 8, lambda i: i - 2 if i % 8 >= 2 else i),
    ],
)  # fmt: skip
@EVERY_ORDER
def test_shuffles(mode, b, c, source, order) -> None:
    code = f"shfl.sync.{mode}.b32 %r9|%p0, %r0, {b}, {c}, -1; selp.u32 %r8, 1, 0, %p0;"
    found, inside = evaluate(code, LANES * 3, outputs=[*R9, ("%r8", np.uint32)], order=order)
    want = np.array([source(i) for i in range(32)])
    assert np.array_equal(found, 3 * want)
    assert np.array_equal(inside, (want != LANES) | (mode in ("idx", "bfly")))


def test_a_shuffle_must_not_read_a_lane_that_takes_no_part() -> None:
    with pytest.raises(Fault, match="takes no part"):
        evaluate("setp.lt.u32 %p0, %r0, 16; @%p0 shfl.sync.bfly.b32 %r9, %r0, 16, 31, 0xffff;", LANES, outputs=R9)


@EVERY_ORDER
def test_votes_and_reductions(order) -> None:
    x = np.array([3, -7, *range(30)], np.int32)
    code = """
    setp.gt.s32 %p0, %r0, 28;
    vote.sync.any.pred %p1, %p0, -1;
    vote.sync.all.pred %p2, !%p0, -1;
    vote.sync.ballot.b32 %r8, %p0, -1;
    redux.sync.max.s32 %r7, %r0, -1;
    redux.sync.min.s32 %r6, %r0, -1;
    selp.u32 %r9, 2, 0, %p1;
    @%p2 add.s32 %r9, %r9, 1;
    """
    found = evaluate(code, x, outputs=[(f"%r{i}", np.int32) for i in (6, 7, 8, 9)], order=order)
    assert [set(v.tolist()) for v in found] == [{-7}, {29}, {-(2**31)}, {2}]


@EVERY_ORDER
def test_half_a_warp_meets_by_itself(order) -> None:
    """The upper lanes jump over what the mask does not name them for."""
    code = """
    mov.u32 %r9, 0;
    setp.ge.u32 %p0, %r0, 16;
    @%p0 bra over;
    shfl.sync.bfly.b32 %r9, %r0, 1, 31, 0xffff;
    over:
    add.u32 %r9, %r9, 100;
    """
    (found,) = evaluate(code, LANES, outputs=R9, order=order)
    assert np.array_equal(found, np.where(LANES < 16, LANES ^ 1, 0) + 100)


@EVERY_ORDER
def test_lanes_that_part_meet_again(order) -> None:
    """A loop of as many turns as the lane's number, then a shuffle of all."""
    code = """
    mov.u32 %r8, 0;
    mov.u32 %r7, 0;
    again:
    setp.ge.u32 %p0, %r8, %r0;
    @%p0 bra done;
    add.u32 %r8, %r8, 1;
    add.u32 %r7, %r7, 2;
    bra.uni again;
    done:
    shfl.sync.bfly.b32 %r9, %r7, 31, 31, -1;
    """
    (found,) = evaluate(code, LANES, outputs=R9, order=order)
    assert np.array_equal(found, 2 * (31 - LANES))


def test_a_lane_that_never_comes_is_a_deadlock() -> None:
    code = "setp.eq.u32 %p0, %r0, 3; @%p0 bra over; bar.warp.sync -1; over: bar.sync 0; mov.u32 %r9, 0;"
    with pytest.raises(Fault, match="deadlock"):
        evaluate(code, LANES, outputs=R9)


def test_ended_lanes_are_not_waited_for() -> None:
    code = "mov.u32 %r9, 1; setp.eq.u32 %p0, %r0, 3; @%p0 ret; bar.warp.sync -1; bar.sync 0; mov.u32 %r9, 2;"
    (found,) = evaluate(code, LANES, outputs=R9)
    assert np.array_equal(found, np.where(LANES == 3, 0, 2))  # its store is never reached


def test_a_loop_without_end() -> None:
    with pytest.raises(Fault, match="no end"):
        evaluate("again: bra again;", LANES, outputs=R9, settings=Settings(most_steps=1000))


# ---- shared memory ----

PUT = """
mov.u32 %r20, room;
mov.u32 %r21, %tid.x;
mad.lo.u32 %r22, %r21, 4, %r20;
st.shared.b32 [%r22], %r0;
"""
TAKE = """
xor.b32 %r23, %r21, 33;
mad.lo.u32 %r23, %r23, 4, %r20;
ld.shared.b32 %r9, [%r23];
"""
MANY = np.arange(128, dtype=np.uint32)


@EVERY_ORDER
def test_what_others_wrote_before_a_barrier(order) -> None:
    (found,) = evaluate(f"{PUT} bar.sync 0; {TAKE}", MANY + 7, outputs=R9, block=64, blocks=2, shared=256, order=order)
    assert np.array_equal(found, MANY // 64 * 64 + (MANY % 64 ^ 33) + 7)


def test_a_missing_barrier_shows_in_random_order() -> None:
    """Between warps in any, between lanes of a warp where warps are split; lockstep hides it."""

    def wrong(take: str, order: Order) -> int:
        (found,) = evaluate(f"{PUT} {take}", MANY[:64], outputs=R9, block=64, shared=256, order=order)
        return int((found == 0xFFFFFFFF).sum())

    assert wrong(TAKE, Order()) == 0
    assert all(wrong(TAKE, Order(seed)) == 32 for seed in (0, 2))
    within = TAKE.replace("33", "1")
    assert wrong(within, Order(0)) == 0
    assert all(wrong(within, Order(seed)) > 0 for seed in (1, 3))
    assert all(wrong(f"bar.warp.sync -1; {within}", Order(seed)) == 0 for seed in (1, 3))


def test_shared_memory_starts_as_nan() -> None:
    code = "mov.u32 %r1, room; ld.shared.b32 %r9, [%r1]; ld.shared.b64 %q9, [%r1+8]; ld.shared.b16 %h9, [%r1+2];"
    found = evaluate(code, outputs=[("%r9", np.float32), ("%q9", np.float64), ("%h9", np.float16)], shared=16)
    assert all(np.isnan(x).all() for x in found)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ld.shared.b32 %r9, [%r1+2];", "misaligned"),
        ("ld.shared.v4.b32 {%r6, %r7, %r8, %r9}, [%r1+8];", "misaligned"),
        ("ld.shared.b32 %r9, [%r1+64];", "out of bounds"), ("st.shared.v2.b32 [%r1+64], {%r1, %r1};", "out of bounds"),
        ("ld.global.b32 %r9, [%at0+4];", "out of bounds"), ("st.global.b32 [%at0+-128], %r0;", "out of bounds"),
        ("ld.global.b32 %r9, [%at0+2];", "misaligned"), ("ld.param.u64 %q9, [p1+8];", "of the parameters"),
    ],
)  # fmt: skip
def test_accesses_are_checked(code, message) -> None:
    with pytest.raises(Fault, match=message) as fault:
        evaluate(f"mov.u32 %r1, room; {code}", LANES, outputs=R9, shared=64)
    assert code.partition(" ")[0] in str(fault.value)


def test_inactive_threads_access_nothing() -> None:
    (found,) = evaluate(
        "mov.u32 %r9, 5; setp.lt.u32 %p0, %r0, 31; @%p0 ld.global.b32 %r9, [%at0+4];", LANES, outputs=R9
    )
    assert found.tolist() == [*range(1, 32), 5]


# ---- asynchronous copies ----

COPY = """
mov.u32 %r20, room;
mad.lo.u32 %r22, %r0, 4, %r20;
cp.async.ca.shared.global [%r22], [%at1], 4{0};
cp.async.commit_group;
{1}
ld.shared.b32 %r9, [%r22];
cp.async.wait_all;
"""
VALUES = LANES * LANES


def copied(wait: str, given: str = "", copies: str = "late") -> np.ndarray:
    settings = Settings(copies=copies)
    return evaluate(COPY.format(given, wait), LANES, VALUES, outputs=R9, shared=128, settings=settings)[0]


def test_copies_arrive_when_they_are_waited_for() -> None:
    assert np.array_equal(copied("cp.async.wait_group 0;"), VALUES)
    assert (copied("") == 0xFFFFFFFF).all()
    assert (copied("cp.async.wait_group 1;") == 0xFFFFFFFF).all()
    assert np.array_equal(copied("cp.async.commit_group; cp.async.wait_group 1;"), VALUES)
    assert np.array_equal(copied("", copies="early"), VALUES)


def test_what_is_not_read_becomes_0() -> None:
    half = "and.b32 %r30, %r0, 1; shl.b32 %r30, %r30, 2;"
    code = COPY.format(", %r30", "cp.async.wait_group 0;")
    (found,) = evaluate(half + code, LANES, VALUES, outputs=R9, shared=128)
    assert np.array_equal(found, np.where(LANES % 2, VALUES, 0))


def test_copies_that_nobody_waits_for() -> None:
    with pytest.raises(Fault, match="on their way"):
        evaluate(COPY.format("", "").replace("cp.async.wait_all;", ""), LANES, VALUES, outputs=R9, shared=128)


# ---- tensor cores ----


def _registers(elements: list[np.ndarray], of: str) -> list[np.ndarray]:
    if of == "f64":
        return elements
    if of == "tf32":
        return [x.astype(np.float32) for x in elements]
    halves = [matrix.dtypes.to_bf16(x.astype(np.float32)) if of == "bf16" else x.astype(np.float16).view(np.uint16)
              for x in elements]  # fmt: skip
    return [a.astype(np.uint32) | b.astype(np.uint32) << 16 for a, b in zip(halves[::2], halves[1::2], strict=True)]


# Where PTX's figures have the elements of A, B and C of each lane: row and column of element i.
G, M = LANES // 4, LANES % 4
FIGURES = {
    "m16n8k16 16": (
        [(G + 8 * (i in (2, 3, 6, 7)), 2 * M + i % 2 + 8 * (i >= 4)) for i in range(8)],
        [(2 * M + i % 2 + 8 * (i >= 2), G) for i in range(4)], [(G + 8 * (i >= 2), 2 * M + i % 2) for i in range(4)],
    ),
    "m16n8k8 16": (
        [(G + 8 * (i >= 2), 2 * M + i % 2) for i in range(4)], [(2 * M + i, G) for i in range(2)],
        [(G + 8 * (i >= 2), 2 * M + i % 2) for i in range(4)],
    ),
    "m16n8k8 tf32": (
        [(G, M), (G + 8, M), (G, M + 4), (G + 8, M + 4)], [(M, G), (M + 4, G)],
        [(G + 8 * (i >= 2), 2 * M + i % 2) for i in range(4)],
    ),
    "m8n8k4 f64": ([(G, M)], [(M, G)], [(G, 2 * M), (G, 2 * M + 1)]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "of"),
    [("m16n8k16", "bf16"), ("m16n8k16", "f16"), ("m16n8k8", "f16"), ("m16n8k8", "tf32"), ("m8n8k4", "f64")],
)
def test_products_of_matrices(shape, of) -> None:
    m, n, k = (int(v) for v in shape.replace("m", "").replace("n", " ").replace("k", " ").split())
    g = np.random.default_rng(0)
    a, b, c = (g.integers(-8, 9, s).astype(np.float64) for s in ((m, k), (k, n), (m, n)))
    places = FIGURES[f"{shape} {16 if of.endswith('16') else of}"]
    of_a, of_b, of_c = ([x[p] for p in where] for x, where in zip((a, b, c), places, strict=True))
    kind, prefix = (np.float64, "q") if of == "f64" else (np.float32, "r")
    inputs = [*_registers(of_a, of), *_registers(of_b, of), *(x.astype(kind) for x in of_c)]
    na, nb, nc = len(_registers(of_a, of)), len(_registers(of_b, of)), len(of_c)

    def registers(first: int, count: int) -> str:
        return "{" + ", ".join(f"%{prefix}{first + i}" for i in range(count)) + "}"

    to = "f64" if of == "f64" else "f32"
    code = (f"mma.sync.aligned.{shape}.row.col.{to}.{of}.{of}.{to} {registers(30, nc)}, {registers(0, na)}, "
            f"{registers(na, nb)}, {registers(na + nb, nc)};")  # fmt: skip
    found = evaluate(code, *inputs, outputs=[(f"%{prefix}{30 + i}", kind) for i in range(nc)])
    want = a @ b + c
    assert all(np.array_equal(x, want[p]) for x, p in zip(found, places[2], strict=True))


def test_a_tensor_core_reads_19_bits_of_float32() -> None:
    x = np.full(32, np.float32(1 + 2.0**-10 + 2.0**-11))
    code = """mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r30, %r31, %r32, %r33}, {%r0, %r0, %r0, %r0},
    {%r1, %r1}, {0f00000000, 0f00000000, 0f00000000, 0f00000000};"""
    (found,) = evaluate(code, x, np.ones(32, np.float32), outputs=[("%r30", np.float32)])
    assert (found == np.float32(8 * (1 + 2.0**-10))).all()


@pytest.mark.parametrize("trans", [False, True])
def test_matrices_to_lanes_and_back(trans) -> None:
    """Four of 8 × 8: the lane's own row goes out with st.shared, two elements come in by ldmatrix, and back."""
    g = np.random.default_rng(0)
    stored = g.integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    rows = stored.reshape(32, 4, 2)
    words = [rows[:, i, 0].astype(np.uint32) | rows[:, i, 1].astype(np.uint32) << 16 for i in range(4)]
    how = ".trans" if trans else ""
    code = f"""
    mov.u32 %r20, room;
    mad.lo.u32 %r20, %tid_, 16, %r20;
    st.shared.v4.b32 [%r20], {{%r0, %r1, %r2, %r3}};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4{how}.shared.b16 {{%r30, %r31, %r32, %r33}}, [%r20];
    stmatrix.sync.aligned.m8n8.x4{how}.shared.b16 [%r20+512], {{%r30, %r31, %r32, %r33}};
    bar.warp.sync -1;
    ld.shared.v4.b32 {{%r40, %r41, %r42, %r43}}, [%r20+512];
    """
    found = evaluate(
        code, *words, outputs=[(f"%r{i}", np.uint32) for i in (30, 31, 32, 33, 40, 41, 42, 43)], shared=1024
    )
    for i in range(4):
        matrix_i = stored[i].T if trans else stored[i]
        pair = matrix_i[G, 2 * M].astype(np.uint32) | matrix_i[G, 2 * M + 1].astype(np.uint32) << 16
        assert np.array_equal(found[i], pair)
        assert np.array_equal(found[4 + i], words[i])
