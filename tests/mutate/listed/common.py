"""What ops share: arithmetic in lanes, transposes, threads, memory; checks and the router in Python."""

from tests.mutate.mutation import Of

_lanes = Of(
    "lanes", "tests/ops/test_affine.py tests/ops/test_rqs_edges.py tests/ops/test_masked_linear.py -k not emulated"
)
_memory = Of("memory", "tests/ops/test_rqs.py tests/ops/test_lu_linear.py tests/test_threads.py -k not emulated")
_router = Of("router", "tests/ops/test_routing.py -k not emulated")
_checks = Of(
    "checks", "tests/ops/test_masked_linear.py tests/ops/test_made.py tests/ops/test_affine.py -k not emulated"
)
_exchange = Of("exchange", "tests/ops/test_exchange.py")
_EXCHANGE, _CASTER, _WATCH = "csrc/common/exchange.h", "csrc/common/view_caster.h", "csrc/common/watch.h"
_SIMD, _ROUTING = "csrc/common/simd.h", "flowkernels/ops/_routing.py"
_sixteen = "tests/ops/test_rqs.py tests/ops/test_affine.py -k float16 and not emulated"

MUTATIONS = (
    # ---- arithmetic ----
    _lanes("exp underflows", _SIMD, "splat<f32>(«-110.f»)), splat", "-60.f", "exp stops at e^-60"),
    _lanes(
        "log of a denormal",
        _SIMD,
        "const i32 tiny = «x < 0x1p-126f»;",
        "x < 0.f",
        "denormals are wrong",
        "tests/ops/test_rqs_edges.py -k denormal and not emulated",
    ),
    _lanes("log1p", _SIMD, "return log_(u) + «(e - (u - 1)) * (2 - u)»;", "V{}", "what 1 + e rounds away"),
    _lanes(
        "tanh near 0",
        _SIMD,
        "select(«a < 1», a - a * (t * (num / den)), far)",
        "a < S(0.01)",
        "1 - 2e / (1 + e) cancels",
    ),
    _lanes(
        "exp of NaN",
        _SIMD,
        "x = min_(«max_(x, splat<f64>(-750.))», splat<f64>(710.));",
        "max_(splat<f64>(-750.), x)",
        "NaN is -inf",
    ),
    _lanes("maximum of NaN", _SIMD, "return «a < b ? b : a»;", "a > b ? a : b", "a NaN is lost"),
    _lanes("minimum of NaN", _SIMD, "return «a > b ? b : a»;", "a < b ? a : b", "a NaN is lost"),
    _lanes(
        "2^t underflows",
        _SIMD,
        "«t = max_(t, splat<f32>(-126.f));»",
        "",
        "exponents wrap round",
        "tests/ops/test_rqs_edges.py -k overflows and not emulated",
    ),
    _lanes(
        "bfloat16",
        _SIMD,
        "const uint32_t rounded = «(u + 0x7fff + ((u >> 16) & 1)) >> 16»;",
        "(u + 0x8000) >> 16",
        "ties go away from zero",
        "tests/ops/test_affine_edges.py -k ties",
    ),
    _lanes(
        "float16 overflows",
        _SIMD,
        "} else if («u >= 0x477ff000») {",
        "u >= 0x47800000",
        "65520 is not inf",
        equivalent="the carry of rounding makes inf of it all the same",
    ),
    _lanes("float16 denormals", _SIMD, "} else if («u < 0x38800000») {", "false", "denormals are wrong", _sixteen),
    # ---- memory ----
    _memory(
        "turned quad",
        "csrc/common/transpose.h",
        "«FK_SHUFFLE(i32, a, b, 2, 6, 3, 7)»",
        "FK_SHUFFLE(i32, a, b, 2, 6, 7, 3)",
        "lanes",
    ),
    _memory(
        "row cursor",
        "csrc/common/tensor.h",
        "«a -= index[i] * rows.stride_a[i];»",
        "",
        "the next row is elsewhere",
        "tests/ops/test_rqs_memory.py -k view_gives",
    ),
    _memory(
        "scratch",
        "csrc/common/workspace.cpp",
        "buffers[«int(purpose)»]",
        "0",
        "a tile over what threads share",
        "tests/ops/test_lu_linear.py -k not emulated",
    ),
    # ---- checks ----
    _checks(
        "broadcast",
        "flowkernels/ops/_checks.py",
        "all(a in «(1, b)» for",
        "(1, a)",
        "any size broadcasts",
        "tests/ops/test_affine.py -k errors",
    ),
    _checks(
        "autocast",
        "flowkernels/ops/_checks.py",
        "if «in_autocast(tensors[0])»:\n        return",
        "False",
        "kernels where autocast asks for 16 bits",
        "tests/ops/test_masked_linear.py tests/ops/test_made.py tests/ops/test_residual_net.py -k autocast",
    ),
    _checks(
        "last dim",
        "flowkernels/ops/net/checks.py",
        "if t.dim() == 0 or «t.shape[-1] != shape[-1]» or",
        "False",
        "a column of terms broadcasts",
        "tests/ops/test_net_arguments.py -k adds or gates",
    ),
    _checks(
        "gates",
        "flowkernels/ops/net/checks.py",
        "0 < i < n - 1« and i % 2 == 0»):",
        "",
        "a gate where no block closes",
        "tests/ops/test_gates.py",
    ),
    # ---- the router ----
    _router(
        "differentiated twice",
        _ROUTING,
        "return (\n        «torch.is_grad_enabled()»\n        or _transforms_active()",
        "False",
        "a second derivative of nothing",
    ),
    _router("batched gradients", _ROUTING, "any(g is not None and «_is_batched(g)» for g", "False", "no storage"),
    _router(
        "subclasses",
        _ROUTING,
        "if «type(t) not in _PLAIN» and t is not None:",
        "False",
        "a raw pointer of a subclass",
        "tests/ops/test_routing.py -k subclass or fake",
    ),
    _router(
        "aliases",
        _ROUTING,
        "tuple(«t.view_as(t) if n else t» for t, n",
        "t",
        "the gradient through params counts twice",
    ),
    _router(
        "traced",
        _ROUTING,
        "_dual_level_active()« or _jit_tracing()»:\n            return self.reference",
        "",
        "a constant",
        "tests/ops/test_routing.py -k jit_trace",
    ),
    _router(
        "given and returned",
        _ROUTING,
        "return [«g.clone() if »g.untyped_storage()",
        "g if ",
        "an op returns its input",
        "tests/ops/test_masked_linear.py -k library_op",
    ),
    _router(
        "strides of a fake gradient",
        _ROUTING,
        "return [«self.grad_like(t)» if n else",
        "torch.empty_like(t)",
        "it lies as its tensor does, not as the kernel's",
        "tests/ops/test_actnorm.py -k compile_export and not emulated",
    ),
    _router(
        "saved tensors",
        _ROUTING,
        "tensors, saved = «kept[:n]», kept[n:]",
        "kept",
        "more tensors than inputs",
        "tests/ops/test_masked_linear.py -k numbers",
    ),
    # ---- a tensor, read in C ----
    _exchange("strides", _CASTER, "v.stride[i] = «t.strides[i]»;", "1", "every tensor is dense"),
    _exchange(
        "bfloat", _EXCHANGE, "if (code == bfloat) return bits == 16 ? «DType::bf16»", "DType::f16", "another dtype"
    ),
    _exchange(
        "bool",
        _EXCHANGE,
        "(«code == natural || code == boolean») && bits == 8",
        "code == natural",
        "masks have another dtype",
    ),
    _exchange("error", _EXCHANGE, "«PyErr_Clear();»  // of a sparse tensor", "", "an error stays for the next call"),
    _exchange(
        "signs",
        _WATCH,
        "if («asked(PyObject_CallMethodNoArgs(t, names.is_neg)).ptr() != Py_False») return false;",
        "false",
        "a flag is not seen",
    ),
    _exchange("gaps", _WATCH, "if (!«is_contiguous(v)») return false;", "true", "any strides are dense"),
)
