"""Continuous maps on the CPU: steps that rows choose, the way back through them, and their gate."""

from tests.mutate.mutation import Of

_ode = Of(
    "ode_flow",
    "tests/ops/test_ode_flow_kernel.py tests/ops/test_ode_flow.py -k not avx and not compilers and not gate",
)
_gate = Of("gate of ode_flow", "tests/ops/test_ode_flow_kernel.py -k gate")
_ADAPTIVE, _SOLVE, _FIELD = (f"csrc/ode_flow/{name}.h" for name in ("adaptive", "solve", "field"))
_ARGS = "csrc/ode_flow/ode_flow_args.cpp"

MUTATIONS = (
    _ode("accepted", _ADAPTIVE, "accepted = finite && «error[l] <= 1»;", "true", "no step errs too much"),
    _ode("taken", _ADAPTIVE, "takes[l] = «accepted && !failing»;", "true", "a step that erred is taken all the same"),
    _ode(
        "first slope",
        _ADAPTIVE,
        "«put(stage[0].f + (b * f_width() + d) * R, last.f + (b * f_width() + d) * R);»",
        "",
        "that of the step before",
    ),
    _ode("no arrival", _ADAPTIVE, 'const S none = «S(__builtin_nan(""))»;', "S(0)", "a number where there is none"),
    _ode("waves", _SOLVE, "sk = «sk * c1 + ck * s1», ck = next;", "sk * c1 - ck * s1", "turned the wrong way"),
    _ode(
        "times of stages",
        _SOLVE,
        "const T at = load_pair(t + b * R) + «load_pair(h + b * R) * S(c)»;",
        "T{}",
        "all stages see the time at the start of a step",
    ),
    _ode(
        "way back through stages",
        _SOLVE,
        "sum = sum + «(step * S(table.a[j][i])) * load_pair(g_at[j] + at)»;",
        "T{}",
        "a stage has no gradient from those behind it",
    ),
    _ode(
        "slope of a slope",
        _FIELD,
        "load_pair(of_h + i) * d + «load_pair(gd[k] + i) * slope_of_slope<A>(z, h, d)»);",
        "T{}",
        "the trace has no gradient through activations",
    ),
    _ode("noise of layers", _FIELD, "multiply(k, of_v, «k > 0 ? w[k] : right», gd[k]);", "right", "that of the first"),
    _gate(
        "biases of rows",
        _ARGS,
        'check_rows(named(k, "bias").c_str(), b, a.type, «a.rows», n_out);',
        "b.size[0]",
        "fewer rows are read as many",
    ),
    _gate(
        "matrix of a trace",
        _ARGS,
        'check_rows("ode_flow: the matrix of the trace", first, a.type, «to», from);',
        "first.size[0]",
        "a matrix of fewer rows",
    ),
)
