"""Batch norm on the CPU."""

from tests.mutate.mutation import Of

_norm = Of("batch_norm", "tests/ops/test_batch_norm.py")
_CPU = "csrc/batch_norm/batch_norm_cpu.cpp"

MUTATIONS = (
    _norm("rows of a chain", _CPU, "const S by = S(1) / S(«n»);", "kChain", "a short chain's mean is of a whole one"),
    _norm("joined chains", _CPU, "square[l] + about + «apart * apart * between»", "0", "means' distance adds nothing"),
    _norm(
        "joined groups", _CPU, "room.second[g * room.columns + j] += «apart * apart * rows»;", "0", "the same of groups"
    ),
    _norm(
        "what the mean lost",
        _CPU,
        "const double off = «double(rest[q][l]) * per_row»;",
        "0",
        "the rounding of a chain's mean stays",
    ),
    _norm(
        "all groups", _CPU, "for (int64_t g = 1; «g < groups.count»; ++g)", "g < 1", "rows of other threads are lost"
    ),
    _norm(
        "last columns",
        _CPU,
        "if (j < a.columns) f(row * a.columns + j, «a.columns - j», j);",
        "1",
        "one column of many",
    ),
    _norm("eps", _CPU, "double(static_cast<const S*>(a.var)[j]) + «a.eps»", "0.0", "a constant column has no scale"),
    _norm(
        "mean's rounding",
        _CPU,
        "«(double(mean[j]) - room.total[0][j]) * double(scale[j])»",
        "0",
        "the mean's rounding stays",
    ),
    _norm(
        "slope", _CPU, "double(scale[j]) * products[j] * per_row * «by * by»", "by", "variance in place of its inverse"
    ),
    _norm(
        "mean of the gradient",
        _CPU,
        "(double(slope[j]) * off[j] - «double(scale[j]) * sum[j]») * per_row",
        "0",
        "a term less",
    ),
)
