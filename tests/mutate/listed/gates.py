"""The gates in front of kernels: what is asked of tensors before anything is given their addresses."""

from tests.mutate.mutation import Of

_net = Of("gate net", "tests/ops/test_net_gate.py -k not emulated")
_maps = Of("gate maps", "tests/ops/test_entry_points.py -k not cuda")
_VIEW, _LIKE, _NET = "csrc/common/view.h", "csrc/common/view_like.h", "csrc/net/net_args.cpp"
_MASK, _LAYER = "csrc/net/mask.h", "csrc/flow_layer/flow_layer_args.cpp"
_LU, _RQS, _AFFINE = (f"csrc/{op}/{op}_args.cpp" for op in ("lu_linear", "rqs", "affine"))
_ROWS = "csrc/univariate/map_args.cpp"
_SWEEP = "csrc/autoregressive_inverse/autoregressive_inverse_args.cpp"

MUTATIONS = (
    # ---- of any tensor ----
    _net("number", _VIEW, "if (given < low || «given > high»)", "given > high + 1", "one more than there may be"),
    _net("size", _VIEW, "fits = «v.size[i] == sizes.begin()[i]»;", "true", "any size of so many dims"),
    _net("negative stride", _VIEW, 'if («v.stride[i] < 0») refuse(name, "of strides', "v.stride[i] < -1", "backwards"),
    _net("null", _VIEW, "if («!v.data && !empty») refuse", "false", "no address"),
    _net(
        "elements", _VIEW, "if («v.count() != count») refuse", "v.count() < count", "more elements than there are rows"
    ),
    _net(
        "gaps",
        _VIEW,
        "dense &= v.size[i] == 1 || «v.stride[i] == expected»;",
        "v.stride[i] >= expected",
        "gaps",
    ),
    _net("type", _VIEW, "if («v.type != type»)", "v.type == DType::other", "any type"),
    _net("rows with gaps", _VIEW, "if («columns > 1 && v.stride[1] != 1»)", "false", "columns apart"),
    _maps("sizes like", _LIKE, "fits = «v.size[i] == sizes[i]»;", "v.size[i] >= sizes[i]", "larger ones"),
    _maps("dims like", _LIKE, "bool fits = «v.ndim == ndim»;", "v.ndim >= ndim", "more dims"),
    _maps("written twice", _LIKE, "if («v.size[i] > 1 && v.stride[i] == 0») refuse", "false", "expanded outputs"),
    _maps("type of params", _LIKE, "mixed = «x == DType::f32» && (params", "true", "16 bits beside float64"),
    # ---- networks ----
    _net(
        "width of a layer",
        _NET,
        "if (i > 0 && «n_in != layers_.back().n_out»)",
        "n_in > layers_.back().n_out",
        "layers that do not fit",
    ),
    _net(
        "width of the stream",
        _NET,
        "if (spec.closes_block(i) && «n_out != layers_[0].n_out»)",
        "n_out < layers_[0].n_out",
        "a block wider than the stream",
    ),
    _net("mask", _NET, "(mask->n_in != n_in || «mask->n_out != n_out»))", "false", "the mask of more outputs"),
    _net("even", _NET, "if («residual && layers % 2»)", "false", "half a block"),
    _net(
        "rows of x",
        _NET,
        'net.type, net.rows, «net.spec.layers[0].n_in»);\n  check_dense("net: y"',
        "x.size[1]",
        "x of another width",
    ),
    _net("order", _MASK, "order[i] < n && «!seen[size_t(order[i])]»;", "true", "repeats"),
    _net("limit", _MASK, "if («seen < before» || seen > n_in)", "false", "limits that fall"),
    _net("columns", _LAYER, "0 <= columns[i] && «columns[i] < features» &&", "columns[i] <= features", "one too many"),
    _net("repeated columns", _LAYER, "columns[i] < features && «!seen[size_t(columns[i])]»;", "true", "mapped twice"),
    _net(
        "params of a layer", _LAYER, "if («n_out != mapped * map.params()»)", "n_out > mapped * map.params()", "fewer"
    ),
    _net(
        "params of a sweep",
        _SWEEP,
        "if («n_out != features * map.params()»)",
        "n_out > features * map.params()",
        "fewer",
    ),
    _net("waves", _SWEEP, "if («periodic_features.given()») check_contiguous", "false", "waves of other features"),
    # ---- maps ----
    _maps("permutation repeats", _LU, "p >= channels || «seen[size_t(p)]»)", "false", "repeats"),
    _maps("permutation", _LU, "if (p < 0 || «p >= channels» ||", "p > channels", "C"),
    _maps("bins", _RQS, 'check_number("RqsSpec: bins", bins, 1, «128»);', "129", "129"),
    _maps("leading dims", _ROWS, "if (!joins && «r.ndim == LeadingDims::kMaxDims»)", "false", "nine"),
    _maps("dense params", _ROWS, "if («params.stride[x.ndim] != 1 && P > 1»)", "false", "strides"),
    _maps("part", _AFFINE, "if («spec.stop > x.size[m.part]»)", "spec.stop > x.size[m.part] + 1", "past the features"),
    _maps(
        "mask",
        _AFFINE,
        "mask.size[i] == 1 || «mask.size[i] == m.size[missing + i]»;",
        "mask.size[i] >= m.size[missing + i]",
        "a larger mask",
    ),
    # ---- what became of faults ----
    _maps(
        "others of a part",
        "flowkernels/ops/affine/layout.py",
        "and «last + 2 >= n»:",
        "self.stop + 1 >= n",
        "features that nobody writes",
        "tests/ops/test_affine_parts.py",
    ),
    _maps(
        "no gradient of y",
        "csrc/affine/affine_math.h",
        "of_out = select(g_out == 0, g_out, «select(k.slope == 0, T{}, g_out * moved)»)",
        "g_out * moved",
        "inf * 0",
        "tests/ops/test_affine_edges.py",
    ),
)
