"""Flow layers and the sweep of the autoregressive inverse, on the CPU."""

from tests.mutate.mutation import Of

_layer = Of("flow_layer", "tests/ops/test_flow_layer.py -k not emulated")
_flow = Of("flow", "tests/ops/test_flow.py")
_swept = Of("flow sweep", "tests/ops/test_flow.py -k one_by_one or flat")
_step = Of("flow step", "tests/ops/test_flow_steps.py")
_own = Of("own steps", "tests/transforms/test_own_steps.py")
_compiled = Of("compiled", "tests/transforms/test_compiled.py")
_flat = Of("flat memory", "tests/transforms/test_memory.py")
_runs = Of("runs", "tests/transforms/test_runs.py")
_sweep = Of(
    "sweep",
    "tests/ops/test_autoregressive_inverse.py tests/ops/test_periodic_features.py tests/ops/test_gates.py"
    " tests/ops/test_autoregressive_fuzz.py -k not emulated",
)
_seen = Of("sweep", "tests/ops/test_periodic_features.py -k edges_of_the_box or solves_the_equation")
_steps = Of("steps", "tests/cuda/test_sweep.py tests/ops/test_autoregressive_inverse.py")
_CPU, _MAP, _TILE = (
    "csrc/flow_layer/flow_layer_cpu.cpp", "csrc/univariate/map_cpu.h", "csrc/flow_layer/layer_tile.h",
)  # fmt: skip
_FLOW, _FLOW_ARGS, _RUNS = "csrc/flow/flow_cpu.cpp", "csrc/flow/flow_args.cpp", "flowkernels/transforms/parts.py"
_FLOW_NATIVE, _SWEEP_STEP = "flowkernels/ops/flow/native.py", "csrc/flow/sweep_step.h"
_IN_C, _IN_PYTHON = "csrc/autoregressive_inverse", "flowkernels/ops/autoregressive_inverse"
_REVERSIBLE = "flowkernels/transforms/reversible.py"
_FRONTIER, _SWEEP = f"{_IN_C}/frontier.h", f"{_IN_C}/sweep_tile.h"
_PERIODIC, _SEEN, _STEPS = f"{_IN_C}/periodic_features.h", f"{_IN_PYTHON}/periodic.py", f"{_IN_PYTHON}/schedule.py"
_BOX = "flowkernels/ops/rqs/box.py"

MUTATIONS = (
    # ---- flow layers ----
    _layer(
        "compensation",
        _MAP,
        "«lost = lost + ((sum - (s - b)) + (v - b));»",
        "",
        "ladj of a thousand terms in float",
        "tests/ops/test_flow_layer.py -k thousand",
    ),
    _layer(
        "order of params",
        "csrc/affine/affine_map.h",
        "at_logit(«s.shift_first»)",
        "false",
        "the logit is the shift",
    ),
    _layer("columns of the map", _MAP, "return («at ? at[i] : i») * kRowBlock<S>;", "i", "the first features"),
    _layer(
        "input order",
        _TILE,
        "to + «(p.in_rank ? p.in_rank[k] : k)» * kRowBlock<S>, x",
        "k",
        "inputs in the caller's order",
        "tests/ops/test_flow_layer.py -k autoregressive_layers_in_one_op",
    ),
    _layer(
        "ladj of the last rows",
        _CPU,
        "t.ladj, size_t(«rows.rows») * sizeof(S)",
        "rows.blocks<S>() * kRowBlock<S>",
        "writes past the end",
    ),
    _layer(
        "no gradient of y",
        _CPU,
        "«memset(t.g, 0, size_t(blocks * a.features * kRowBlock<S>) * sizeof(S));»",
        "",
        "what was there before",
    ),
    _layer(
        "gradient of the net",
        _TILE,
        "store_pair(at, «load_pair(at) + load_pair(more)»)",
        "load_pair(more)",
        "what came through the map is lost",
    ),
    _layer(
        "gradient of ladj",
        _TILE,
        "if (from) memcpy(to, static_cast<const S*>(from) + «rows.first», size_t(rows.rows)",
        "0",
        "every tile has the first one's",
    ),
    # ---- whole flows ----
    _flow("sum of ladj", _FLOW, "«i == 0» ? sum : group.more", "false", "the first layer's is lost"),
    _flow(
        "order of y", _FLOW, "a.features, «a.order», a.features, static_cast<S*>(a.y)", "nullptr", "y in the order of x"
    ),
    _flow(
        "order of the gradient",
        _FLOW,
        "a.features, a.features, «a.order», a.features, g);",
        "nullptr",
        "the gradient of y in the order of x",
    ),
    _flow("input of a layer", _FLOW, "(«i > 0 ? a.steps[i].x : a.x»);", "a.x", "each layer is given the flow's own"),
    _flow(
        "flat: from step to step",
        _FLOW,
        "memcpy(to, «to - n * group.size», size_t",
        "to",
        "a step computed again does not see what the one before returned",
        "tests/ops/test_flow.py -k flat",
    ),
    _flow(
        "flat: input of a layer",
        _FLOW,
        "between + («(i - 1)» * n + t) * group.size : group.x",
        "i",
        "each layer is given its own output",
        "tests/ops/test_flow.py -k flat",
    ),
    _flow(
        "places",
        _FLOW_ARGS,
        "found[i] = «place_[size_t(list[i])]»;",
        "list[i]",
        "layers behind an order see what was there before",
    ),
    _flow("order of orders", _FLOW_ARGS, "place_ = «placed(order)»;", "order", "an order undoes the one before"),
    _flow(
        "what a gate needs",
        _FLOW_ARGS,
        "(«all && !gated && !net.scaled()») ||",
        "all",
        "what stood before a gate is not computed again",
        "tests/ops/test_flow.py -k one_by_one",
    ),
    _flat("how far", _REVERSIBLE, "if «not error <= FAR[x.dtype]»:", "error > FAR[x.dtype]", "a NaN is near"),
    _flat("what is able", _REVERSIBLE, "not any(«hooked(m) or» (m", "", "hooks are called twice"),
    _flat("training", _REVERSIBLE, "(m.training and isinstance(m, «_CHANGES»))", "()", "statistics move twice"),
    _flat("context", _REVERSIBLE, "requires_grad_(«of_context»)", "False", "a context has no gradient"),
    _swept(
        "what left a step",
        _FLOW,
        "(«i + 1 < a.n ? a.steps[i + 1].x : a.steps[i].after»);",
        "a.steps[i].after",
        "that of the last",
    ),
    _swept(
        "flat: what left a step",
        _FLOW,
        "group.between + («i» * n + t) * group.size : group.after",
        "0",
        "that of the first",
    ),
    _swept("flat: the last", _FLOW, "i + 1 < a.n + «needs_last(a)»; ++i)", "0", "what left it is not computed again"),
    _swept(
        "places",
        _FLOW_ARGS,
        "step.inputs = step.outputs = «place_»;\n}\n\nvoid FlowPlan::add_order",
        "std::vector<int32_t>(place_.rbegin(), place_.rend())",
        "features in another order",
    ),
    _swept("gradient of a place", _SWEEP_STEP, "«each_block(rows, g, tile.gz, gather);»", "", "what was there before"),
    _swept(
        "saved under a compiler",
        _FLOW_NATIVE,
        "len(spec.full) - 1 + «isinstance(spec.full[-1], SweepSpec)»)",
        "0",
        "a graph is told of less room than is taken",
        "tests/ops/test_flow.py -k its_fake_says",
    ),
    _flow(
        "saved under a compiler",
        _FLOW_NATIVE,
        "(all and not any(net.gates) and not any(net.scales)):\n        return «weights[1:]»",
        "weights[2:]",
        "a graph is told of less room than is taken",
        "tests/ops/test_flow.py -k its_fake_says",
    ),
    _runs("what changed", _RUNS, "if «still_holds(walk.modules)» and (", "True", "nothing is seen"),
    _runs(
        "dtypes",
        _RUNS,
        "«if not _native.C.are_like(tensors, dtype):»",
        "if False:",
        "the gate refuses what layers would say",
    ),
    _runs(
        "hooks that go",
        _RUNS,
        "(not walk.hooked or «walk.still_refused()»)",
        "True",
        "a layer is called for ever",
    ),
    # ---- steps without a net ----
    _step("rows past the end", "csrc/flow/lu_step.h", "«clear_past_end(rows, features, g);»", "", "they add to sums"),
    _step(
        "permutation of an inverse",
        _FLOW_ARGS,
        "«order[size_t(permutation[i])] = int32_t(i)»;",
        "order[i] = permutation[i]",
        "features of an inverse stand elsewhere",
        equivalent="any order will do: the step takes all features out of a tile before it puts them back",
    ),
    _step(
        "gradient of a shift",
        "csrc/flow/scale_step.h",
        "divides ? «-g / s» : -s * g",
        "g / s",
        "sign",
    ),
    _step(
        "what enters a scale",
        "csrc/flow/scale_step.h",
        "load_pair(x + at) - «minus»",
        "T{}",
        "the shift is not taken off",
    ),
    _step(
        "sums of parameters",
        "csrc/flow/map_step.h",
        "for (int part = 0; «part < pass.parts»; ++part) total",
        "part < 1",
        "what other threads summed is lost",
    ),
    _own(
        "training",
        "flowkernels/transforms/own_steps.py",
        "(«layer.training and» not layer.initialised.item())",
        "",
        "an actnorm that evaluation uses as it is",
    ),
    _compiled(
        "names of runs",
        "flowkernels/transforms/compiled.py",
        "{at}:«{at + len(leaves)}»",
        "",
        "graphs for training and evaluation take each other's runs",
    ),
    # ---- the sweep ----
    _sweep(
        "due",
        _FRONTIER,
        "f.at < cap && «p.limit(f.at) <= known»; };",
        "p.limit(f.at) < known",
        "units come one feature late",
    ),
    _sweep(
        "front of the panel", _FRONTIER, "«if (f.at == first + kPanel) f.seen = -1;»", "", "sums of the panel before"
    ),
    _sweep(
        "cap",
        _SWEEP,
        "cap = «spec.closes_block(i) ? frontier[i - 2].at : net.layer[i].n_out»;",
        "net.layer[i].n_out",
        "a block adds to what is not there yet",
    ),
    _sweep(
        "back: due",
        _FRONTIER,
        "end > cap && (known == 0 || «p.limit(known - 1) < end»)) --end;",
        "p.limit(known - 1) <= end",
        "a gradient goes on before all of it is there",
    ),
    _sweep("back: panel", _FRONTIER, "«if (f.at == first) f.seen = -1;»", "", "sums of the panel before"),
    _sweep(
        "back: residual",
        _FRONTIER,
        "«if (o.residual) v += load<V>(o.residual + to);»",
        "",
        "the stream's gradient is lost",
    ),
    _sweep(
        "back: cap",
        _SWEEP,
        "cap = «spec.opens_block(i) ? frontier[i + 2].at : 0»;",
        "0",
        "before the stream's is complete",
        "tests/ops/test_autoregressive_inverse.py -k waits_for_the_stream",
    ),
    _sweep(
        "back: rows past the end", _SWEEP, "«clear_past_end(rows, p.out_width, t.gated[i]);»", "", "they are summed"
    ),
    _sweep(
        "back: slope",
        _SWEEP,
        "load_pair(«slope ? slope + at : gx + f * R»)",
        "gx + f * R",
        "the waves have no slope",
    ),
    _seen("edge of the box", _SWEEP, "z[l] < low || «z[l] > high» ?", "z[l] >= high", "the upper edge is outside"),
    _seen("lower edge of the box", _SWEEP, "lanes[l] = «z[l] < low» ||", "z[l] <= low", "the lower edge is outside"),
    _seen(
        "line",
        _PERIODIC,
        "return of_sin == 0 && «of_cos == 0»;",
        "true",
        "no cosine",
    ),
    _sweep(
        "offset of a line", _SWEEP, "return «v * feature.linear + feature.offset»;", "v * feature.linear", "no offset"
    ),
    _sweep(
        "few rows, mirrored",
        _FRONTIER,
        "«mirror(p, in, mirrored, known, rows.rows);»\n    f.seen = known;",
        "",
        "inputs that came late are not there for the next units",
    ),
    # ---- Python: what the network sees ----
    _sweep("seen: slope", _SEEN, "(of_sin * angle.cos() «-» of_cos * angle.sin())", "+", "sign"),
    _sweep(
        "seen: gradient",
        _SEEN,
        "for by in (x, sin, cos, of_frequency)] + [«grad.sum(0)»]",
        "(grad * x).sum(0)",
        "of the offset",
    ),
    _seen("seen: upper edge", _BOX, "| (v «>» high)", ">=", "the upper edge is outside"),
    _seen("seen: lower edge", _BOX, "torch.where((v «<» low)", "<=", "the lower edge is outside"),
    # ---- Python: steps ----
    _steps(
        "units of a step", _STEPS, "min(end, first + units)« and limit[last] == limit[first]»:", "", "of other inputs"
    ),
    _steps("cap", _STEPS, "front[i - 2] if «closes» else", "False", "a block adds to what is not there yet"),
    _steps("size of a step", _STEPS, "while last < min(end, «first + units»)", "first + units + 1", "33 units of 32"),
    _steps("limit", _STEPS, "limit[front[layer]] «<=» inputs:", "<", "units come one feature late"),
)
