"""What is read of PTX's text, of either compiler."""

import pytest

from tests.ptx.errors import Unsupported
from tests.ptx.parser import Parameter, entries, modules, parse

TEXT = """
.version 8.8
.target sm_90
.address_size 64
.shared .align 4 .b8 few[20];
.shared .align 8 .b8 others[100];
.extern .shared .align 16 .b8 rest[];
.visible .entry first(
	.param .u64 .ptr .global .align 1 first_param_0, // a comment, with .param .u32 nothing
	.param .u32 first_param_1,
	.param .align 8 .b8 first_param_2[24]
)
.reqntid 128
{
	.reg .pred 	%p<3>;
	.reg .b32 	%r<20>;
	.loc	1 41 0                          // kernels.py:41:0
$L__func_begin0:
	.pragma "used_bytes_mask 7";
	mov.u32 	%r1, few;  /* static */
	mov.u32 %r2, rest;
	// begin inline asm
	{ .reg .b32 tmp; mov.b32 tmp, 0x0;
	@!%p1 ld.global.v2.b32 { %r4, %r5 }, [ %r3 + 8 ]; }
	// end inline asm
$L__BB0_1:
	@%p2 bra 	$L__BB0_1;
	ret;
}
	.section	.debug_abbrev
	{
.b8 1
	}
.entry second()
{ ret; }
"""


def test_a_module() -> None:
    assert [name for name, _ in entries(TEXT)] == ["first", "second"]
    assert len(modules(f"Fatbin ptx code:\n{TEXT}\nFatbin elf code:\n{TEXT}")) == 2
    kernel = parse(TEXT, "first")
    assert kernel.parameters == [
        Parameter("first_param_0", 8, 8), Parameter("first_param_1", 4, 4), Parameter("first_param_2", 24, 8)
    ]  # fmt: skip
    assert kernel.offsets() == {"first_param_0": 0, "first_param_1": 8, "first_param_2": 16}
    assert kernel.threads == 128 and kernel.registers == {"%p": "pred", "%r": "b32", "tmp": "b32"}
    assert kernel.shared == {"few": 0, "rest": 32} and kernel.static_shared == 32
    assert kernel.labels == {"$L__func_begin0": 0, "$L__BB0_1": 4}
    assert [str(i) for i in kernel.instructions] == [
        "mov.u32 %r1, few", "mov.u32 %r2, rest", "mov.b32 tmp, 0x0",
        "@!%p1 ld.global.v2.b32 { %r4, %r5 }, [ %r3 + 8 ]", "@%p2 bra $L__BB0_1", "ret",
    ]  # fmt: skip
    lines = TEXT.split("\n")
    assert all(i.opcode in lines[i.line] for i in kernel.instructions)
    assert [str(i) for i in parse(TEXT, "second").instructions] == ["ret"]


def test_an_unknown_directive() -> None:
    with pytest.raises(Unsupported, match=r"\.local"):
        parse(".version 8.0\n.entry a() { .local .align 8 .b8 stack[16]; ret; }")
