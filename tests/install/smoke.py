"""What an installed wheel must do. An environment's own Python runs this file in a folder without the sources."""

import copy
import re
import sys
from pathlib import Path

import torch

import flowkernels
from flowkernels import _native, flows, ops

sources = Path(__file__).resolve().parents[2]
assert not Path(flowkernels.__file__).is_relative_to(sources / "flowkernels"), "the sources are imported, not the wheel"
C = _native.C
assert C is not None, _native.why_missing
assert C.openmp

torch.manual_seed(0)
x, params = torch.randn(257, 5), torch.randn(257, 5, 23)
wide = x.double(), params.double()
truth = ops.rqs(*wide, bins=8, backend="reference")
# How large errors in float32 are: eager's, and what one rounding of the inputs moves, much of it in thin bins.
others = [ops.rqs(*(t * (1 + 2**-23 * torch.randn_like(t)) for t in wide), bins=8, backend="reference")]
others += [ops.rqs(x, params, bins=8, backend="reference")]
usual = [max(float((o - t).abs().max()) for o in of) for t, *of in zip(truth, *others, strict=True)]
for isa in C.isas():
    C.use_isa(isa)
    for got, want, error in zip(ops.rqs(x, params, bins=8), truth, usual, strict=True):
        assert (got - want).abs().max() <= 4 * error, isa
    for got, want, error in zip(ops.rqs(*wide, bins=8), truth, usual, strict=True):
        assert (got - want).abs().max() <= 2**-20 * error, isa

models = [flows.NSF(4, transforms=2, hidden=(16, 16)), flows.MAF(4, transforms=2, hidden=(16, 16))]
models += [flows.NSF(4, transforms=2, hidden=(16, 16), autoregressive=True), flows.RealNVP(4, transforms=2)]
data = torch.randn(512, 4) * torch.tensor([1.0, 0.5, 2.0, 1.0]) + 1
for flow in models:
    name = type(flow).__name__
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = -flow.log_prob(data).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0], name
    again = copy.deepcopy(flow)
    again.load_state_dict(flow.state_dict())
    with torch.no_grad():
        assert torch.equal(again.log_prob(data), flow.log_prob(data)), name
        assert flow.sample(7).isfinite().all(), name
    # Whole: what the oldest torch's compiler does not know of Python, a layer must not say.
    assert torch.allclose(torch.compile(flow, backend="aot_eager", fullgraph=True)(data), flow(data), atol=1e-4), name

if sys.platform == "linux":
    # A second pool of threads would wait for the cores that the first one spins on.
    maps = Path("/proc/self/maps").read_text()
    pools = set(re.findall(r"\S*/lib(?:gomp|omp|iomp)[^/\s]*$", maps, re.MULTILINE))
    assert len(pools) == 1, pools

print(f"smoke: passed; torch {torch.__version__}, {', '.join(C.isas())}")
