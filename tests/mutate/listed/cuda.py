"""CUDA's kernels, on the CPU in the emulator."""

from tests.mutate.mutation import Of

_rqs = Of(
    "cuda rqs", "tests/cuda/test_bounds.py tests/cuda/test_small.py tests/ops/test_rqs.py -k rqs and not baseline"
)
_affine = Of(
    "cuda affine", "tests/cuda/test_bounds.py tests/cuda/test_small.py tests/ops/test_affine.py -k affine and not cpu"
)
_maps = Of("cuda maps", "tests/cuda/test_bounds.py tests/ops/test_mixture.py tests/ops/test_polynomial.py -k emulated")
_actnorm = Of("cuda actnorm", "tests/cuda/test_channels.py tests/ops/test_actnorm.py")
_lu = Of("cuda lu_linear", "tests/cuda/test_channels.py tests/ops/test_lu_linear.py")
_sweep = Of("cuda sweep", "tests/cuda/test_sweep.py")
_masked = Of("cuda masked", "tests/cuda/test_net_blocks.py")
_REDUCE, _RQS, _FIND = "csrc/common/reduce.cuh", "csrc/rqs/rqs_cuda.cu", "csrc/rqs/rqs_find.cuh"
_WALK = "csrc/univariate/walk.cuh"
_AFFINE, _ACTNORM = "csrc/affine/affine_cuda.cu", "csrc/actnorm/actnorm_cuda.cu"
_LU, _LU_TILE, _TRIANGLE = (f"csrc/lu_linear/{f}" for f in ("lu_linear_cuda.cu", "tile_cuda.cuh", "triangle_cuda.cuh"))
_SWEEP = "csrc/autoregressive_inverse/autoregressive_inverse_cuda.cu"
_BACK, _MASKED = "csrc/autoregressive_inverse/back_cuda.cuh", "csrc/net/net_cuda.cu"
_numbers = "tests/ops/test_rqs.py -k emulated"

_EDGE = "tests/ops/test_rqs_edges.py -k edge_of_the_box_maps and 5"

MUTATIONS = (
    # ---- sums ----
    _affine(
        "lane",
        _REDUCE,
        "__shfl_xor_sync(0xffffffffu, v, «with»)",
        "with / 2",
        "the wrong lane",
        "tests/ops/test_affine.py -k emulated",
    ),
    _affine("barrier of a sum", _REDUCE, "«__syncthreads();»\n  T sum = 0;", "", "read before it is written"),
    _actnorm(
        "barrier behind a sum", _REDUCE, "«__syncthreads();»  // before the next sum", "", "written before it is read"
    ),
    # ---- rqs ----
    _rqs(
        "barrier of ladj", _WALK, "«__syncthreads();»\n  for (int first = 0; first < n", "", "read before it is written"
    ),
    _rqs("barrier behind ladj", _WALK, "«__syncthreads();»  // before the next ladjs", "", "written before it is read"),
    _rqs(
        "warp's rows",
        _WALK,
        "shift, lane);\n        «__syncwarp();»  // before",
        "",
        "rows are overwritten before they are put",
        "tests/cuda/test_bounds.py tests/cuda/test_small.py -k rqs",
        equivalent="a lane overwrites what it has put itself, unless gradients begin at an odd address",
    ),
    _rqs("dropped wait", _RQS, "«__pipeline_wait_prior(1);»", "", "rows are read before they have come"),
    _rqs(
        "wait for others",
        _RQS,
        "__pipeline_wait_prior(1);\n      «__syncwarp();»",
        "",
        "other lanes' copies have not come",
    ),
    _rqs("search", _FIND, "while («2 * step < K») step", "4 * step < K", "half of the bins are never found", _numbers),
    _rqs("last knot", _FIND, "if («k < K» && v >= searched", "k <= K", "one bin too many", _EDGE),
    _rqs("circular slope", _FIND, "slopes[«knot == c.bins ? 0 : knot»]", "knot", "reads past the row", _numbers),
    _rqs(
        "last param",
        _WALK,
        "j < w + V && «j < end»; ++j) number",
        "j + 1 < end",
        "the last param of the last row is not read",
        "tests/cuda/test_bounds.py -k rqs",
    ),
    _rqs(
        "end of a vector",
        _WALK,
        "if («w >= before && w + V <= end»)\n      whole",
        "w >= before",
        "reads and writes past its own rows",
        _numbers,
    ),
    _rqs(
        "odd rows",
        _WALK,
        "c.flat_in = «c.even» && c.params",
        "true",
        "strided rows are read as flat ones",
        _numbers,
    ),
    # ---- mixture, polynomial ----
    _maps(
        "one step", "csrc/univariate/root.cuh", "step < «256» && a.active", "1", "the root is where the search begins"
    ),
    _maps(
        "a root that is NaN",
        "csrc/univariate/root.cuh",
        "return «target == target ? a.best : target»;",
        "a.best",
        "NaN has a root",
        equivalent="the search begins at a NaN then, and ends there",
    ),
    _maps(
        "whose number",
        "csrc/mixture/mixture_map.cuh",
        "return room.get(«K + k»);",
        "k",
        "a weight is taken for a scale",
    ),
    _maps(
        "anew",
        "csrc/mixture/mixture_math.h",
        "component_at<true>(c, r, k, «r.x»)",
        "r.top",
        "components are looked at elsewhere",
    ),
    _maps(
        "neighbours' numbers",
        "csrc/univariate/numbers.cuh",
        "return first[«i * apart»];",
        "i",
        "a thread reads what others work in",
    ),
    # ---- affine ----
    _affine(
        "aligned strides",
        _AFFINE,
        "if («nest.stride[d][k] % n») return false;",
        "false",
        "16 bytes at an odd address",
        "tests/cuda/test_bounds.py -k odd_distances",
    ),
    _affine(
        "words of what passes",
        _AFFINE,
        "p.row % w == 0 && «p.begin % w == 0» &&",
        "true",
        "part of a word passes",
        "tests/ops/test_affine.py -k test_part and emulated",
    ),
    _affine(
        "second pair", _AFFINE, "load_vector(c.params_type, first, there + «N», v + N);", "0", "the first pair again"
    ),
    # ---- actnorm, lu_linear ----
    _actnorm(
        "barrier of sums",
        _ACTNORM,
        "«__syncthreads();»\n    for (int i = int(threadIdx.x); i < columns * N",
        "",
        "read before it is written",
    ),
    _actnorm("columns", _ACTNORM, "if («c >= C») break;", "c > C", "one column too many"),
    _actnorm("end of a line", _ACTNORM, "v[k] = «k < n» ? load<S>", "k <= n", "reads past the line"),
    _lu(
        "permutation",
        _LU_TILE,
        "if (permutation[i] >= 0 && «permutation[i] < C»)",
        "permutation[i] <= C",
        "C is let in",
        equivalent="a flag behind the flags: as one of C is missing then, NaN is returned all the same",
    ),
    _lu(
        "barrier of the permutation",
        _LU_TILE,
        "«__syncthreads();»\n  bool all = true;",
        "",
        "looked at before all have said",
    ),
    _lu("repeats", _LU_TILE, "bool all = true;\n  for (int i = 0; «i < C»; ++i)", "i < 1", "repeats are let in"),
    _lu(
        "tile", _LU, "«__syncwarp();»\n    apply_triangle<Solve, Solve>(shared.t, own);", "", "read before it is loaded"
    ),
    _lu("solve", _TRIANGLE, "if (Solve && «p + r < C») load_own", "p + r < C - 1", "the last row is not loaded"),
    _lu("factors", _LU, "const S s = solve ? «exp_(-log_s[i]) / sign[i]» :", "exp_(log_s[i]) / sign[i]", "sign"),
    # ---- masked layers and their sweep ----
    _sweep(
        "barrier of a map",
        _SWEEP,
        "next_z = value_for(next);\n        «__syncthreads();»",
        "",
        "read before it is there",
    ),
    _sweep(
        "barrier of products",
        _SWEEP,
        "«__syncthreads();»\n      for (int u = warp; u < step.count",
        "",
        "read too soon",
    ),
    _sweep(
        "last inputs",
        _SWEEP,
        "for (int k = chunks * N; «k < step.inputs»; ++k)",
        "k + 1 < step.inputs",
        "one is not seen",
    ),
    _sweep("back: barrier", _BACK, "«__syncthreads();»\n      pass_on(", "", "read before it is written"),
    _sweep("back: barrier behind", _BACK, "lane);\n      «__syncthreads();»\n    }", "", "written before it is read"),
    _sweep(
        "back: second vector",
        _BACK,
        "const bool second = «k + N < step.inputs»;",
        "k + 2 * N < step.inputs",
        "not seen",
    ),
    _masked(
        "barrier", _MASKED, "«__syncthreads();»\n  if (warp > 0) return;\n  for (int k", "", "read before it is written"
    ),
    _masked(
        "mask",
        _MASKED,
        "seen = «(p.rank ? p.rank[k] : k) < limit»;",
        "(p.rank ? p.rank[k] : k) <= limit",
        "one input too many",
    ),
    _masked("slices", _MASKED, "for (int64_t s = warp; «s < slices»; s += kWarps)", "s + 1 < slices", "the last slice"),
    # ---- division ----
    _rqs(
        "division",
        "csrc/common/divide.cuh",
        "(«(((unsigned __int128)1) << (64 + shift)) + d - 1») / d",
        "((unsigned __int128)1) << (64 + shift)",
        "rounded down: exact multiples are one too small",
        "tests/ops/test_affine.py -k emulated",
    ),
)
