"""Networks of masked layers on the CPU, their plans and their Python."""

from tests.mutate.mutation import Of

_net = Of(
    "net",
    "tests/ops/test_masked_linear.py tests/ops/test_residual_net.py tests/ops/test_made.py tests/ops/test_gates.py"
    " -k not emulated",
)
_plan = Of("plan", "tests/ops/test_made.py tests/nets/test_made.py tests/ops/test_masked_linear.py -k not emulated")
_ACT, _FEW, _GEMM = "csrc/net/activation.h", "csrc/net/few_rows.h", "csrc/net/gemm.h"
_PACK, _TILE, _ROW_BLOCKS = "csrc/net/pack.h", "csrc/net/net_tile.h", "csrc/net/row_blocks.h"
_CPU, _PLAN, _PY = "csrc/net/net_cpu.cpp", "flowkernels/ops/net/plan.py", "flowkernels/ops/net/native.py"

MUTATIONS = (
    # ---- activations ----
    _net("relu at 0", _ACT, "relu: return select(«out > 0», one, V{})", "out >= 0", "slope 1 at exactly 0"),
    _net("leaky relu at 0", _ACT, "select(«out > 0», one, splat<V>(S(0.01)))", "out >= 0", "slope 1 at exactly 0"),
    _net("elu near 0", _ACT, "«expm1_nonpositive(min_(v, V{}))»", "exp_(min_(v, V{})) - 1", "exp(v) - 1 cancels"),
    _net("elu slope", _ACT, "select(out > 0, one, «out + 1»)", "out", "constant"),
    _net("gelu slope", _ACT, "normal_cdf(in) + «in * S(0.39894228040143268)»", "in * S(0.3989)", "constant"),
    _net("silu slope", _ACT, "return s * «(1 + in * (1 - s))»;", "(1 + in * s)", "1 - s"),
    _net("silu kept", _ACT, "a != Activation::gelu && «a != Activation::silu»;", "true", "slope at the output"),
    # ---- products ----
    _net(
        "second half",
        _GEMM,
        "for (int m = 0; m < kPanel; ++m) {\n      acc[m][0] += part[m][0];\n      «acc[m][1] += part[m][1];»",
        "",
        "half of a row block has no inputs behind the 128th",
    ),
    _net(
        "half panel",
        _GEMM,
        "from + kChain < depth ? «from + kChain» : depth;\n    V part[kPanel];",
        "depth",
        "inputs behind the 128th count twice",
    ),
    _net(
        "few rows, ranks", _FEW, "if (!Ranked || «p.few_rank[k] < seen»)", "p.few_rank[k] <= seen", "sees one too many"
    ),
    _net(
        "few rows, last inputs",
        _FEW,
        "for (; «k < n»; ++k)\n    if (!Ranked",
        "k + 1 < n",
        "the last input is not seen",
    ),
    _net(
        "few rows, a mask's weights",
        _PACK,
        "for (int64_t i = j < p.n_out ? «p.limit(j)» : 0; i < depth",
        "depth",
        "hidden weights are used",
    ),
    _net(
        "transposed panels",
        _PACK,
        "while (first < p.n_out && «p.limit(first) <= i * kPanel») ++first;",
        "p.limit(first) <= i * kPanel + 1",
        "an output that sees one input of the panel is left out",
    ),
    _net(
        "row block's last features",
        _ROW_BLOCKS,
        "for (; «j < n»; ++j)\n    for (int l = 0; l < kRowBlock<S>; ++l) out",
        "j + 1 < n",
        "the last feature is not read",
    ),
    _net(
        "rows past the end",
        _ROW_BLOCKS,
        ": «past ? past : base + t.first * stride»;",
        "base + t.first * stride",
        "rows past the end are written over the first",
    ),
    # ---- layers ----
    _net(
        "input order", _PACK, "const int64_t to = «p.in_rank ? p.in_rank[k] : k»;", "k", "weights in the caller's order"
    ),
    _net("cleared rows", _TILE, "«clear_past_end(rows, net.last().out_width, g);»", "", "rows past the end are summed"),
    _net(
        "skipped panel",
        _TILE,
        "if («p.depth[panel] <= k») continue;",
        "p.depth[panel] <= k + 1",
        "weights of one input have no gradient",
    ),
    _net(
        "bias compensation",
        _TILE,
        "«lost += (sum - (next - part)) + (term - part);»",
        "",
        "the gradient of a bias is summed in float",
    ),
    _net(
        "hidden gradient", _TILE, "out[k] = «p.in_rank[k] < seen» ?", "p.in_rank[k] <= seen", "a hidden weight has one"
    ),
    _net(
        "hidden gradients, sorted",
        _TILE,
        "«for (int64_t k = seen; k < p.n_in; ++k) out[k] = 0;»",
        "",
        "gradients of hidden weights are not written",
    ),
    _net("sums of threads", _TILE, "for (int t = 1; «t < parts»; ++t)", "t + 1 < parts", "the last thread's are lost"),
    _net(
        "few rows",
        _TILE,
        "const bool few = !backward && «rows <= kFewRows»;",
        "rows <= kFewRows + 1",
        "five rows in room for four",
    ),
    _net("stream", _TILE, "t.a[i], t.z[i], «adds ? stream : nullptr», to,", "nullptr", "the stream's gradient is lost"),
    _net(
        "gate's gradient",
        _TILE,
        "multiply_into(size, g, «t.ungated[i]», t.add);",
        "t.a[i]",
        "of what entered the layer",
    ),
    _net(
        "gradient of a hidden layer's slope",
        _TILE,
        "if («act != Activation::identity») v *=",
        "act != Activation::identity && i > 0",
        "the first unit has no slope",
    ),
    _net(
        "slope of the output", _CPU, "have_y = args.y && «from_output(end)»;", "true", "slope of the last at its output"
    ),
    # ---- Python ----
    _net("kept for later", _PY, "if spec.activation in «SLOPE_NEEDS_INPUT»:", "()", "slopes at the output"),
    _net(
        "what is kept",
        _PY,
        "return «range(2, spec.n - 1, 2)» if spec.residual else range(1, spec.n)",
        "range(1, spec.n - 2, 2)",
        "the other layer of a block",
    ),
    _net(
        "expanded term",
        _PY,
        "g = «g.view(*lead, g.shape[-1]).sum_to_size(t.shape)»",
        "g[:1].view(t.shape)",
        "the gradient of the first row for that of all",
    ),
    _net(
        "dense rows", _PY, "t.is_contiguous() or «t.stride(-1) == 1» or t.shape[-1] == 1 else", "True", "other strides"
    ),
    # ---- plans ----
    _plan("equal degrees", _PLAN, "outs[o] + «(not strict)»", "1", "a strict layer sees its own degree"),
    _plan("inputs from 1", _PLAN, "if min(inputs) «< 1»:", "< 0", "an input of degree 0 is seen by its own output"),
    _plan("order of outputs", _PLAN, "if rest« or outputs != [d for d in inputs for _ in range(P)]»:", "", "any order"),
    _plan(
        "first block", _PLAN, "for i in range(«3», len(rows) - 1, 2):", "5", "the first block may have other degrees"
    ),
    _plan("text of a plan", _PLAN, 'strict=sign == «"<"»)', '"<="', "strict and not, exchanged"),
    _plan(
        "degrees that changed", _PLAN, "is degrees_out« and found[2] == versions»:", "", "the plan of degrees before"
    ),
    _plan(
        "same objects",
        _PLAN,
        "if found and «found[0]() is degrees_in and »found[1]()",
        "",
        "the plan of another tensor",
        equivalent="an entry goes with its tensors, so that a key found is theirs",
    ),
    _plan("compared masks", _PLAN, "(outs > ins if self.strict else outs «>=» ins)", ">", "equal degrees are hidden"),
    _plan(
        "masked NaN",
        _PLAN,
        "return «torch.where(self._cached(torch.bool, weight.device), weight, 0)»",
        "weight * self._cached(weight.dtype, weight.device)",
        "a NaN that is masked",
    ),
)
