"""flowjax under jit: the fastest of the other flows at small batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.grid.rivals import BINS, BLOCKS, HIDDEN, LAYERS, Entry, inputs_of
from bench.suite import LOG_PROB, SAMPLE

ROUND_TRIP = 1e-3  # its float32 inverse of an autoregressive spline, as a fraction of the largest |x|


def flowjax(model: str, features: int, batch: int) -> Entry:
    """The flow of the same sizes; `invert`, so that log_prob is the cheap direction, as in all rows."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import jax.random as jr
    import optax
    import paramax
    from flowjax import bijections, distributions, flows

    spline = bijections.RationalQuadraticSpline(knots=BINS, interval=3)
    made = flows.masked_autoregressive_flow if model in ("MAF", "NSF autoregressive") else flows.coupling_flow
    flow = made(
        jr.key(0),
        base_dist=distributions.Normal(jnp.zeros(features)),
        transformer=spline if model.startswith("NSF") else None,
        flow_layers=LAYERS,
        nn_width=HIDDEN,
        nn_depth=BLOCKS,
    )
    x = jnp.asarray(inputs_of(features, batch).x.numpy())
    params, static = eqx.partition(
        flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
    )
    optimizer = optax.adam(1e-4)
    state = [params, optimizer.init(params)]

    def whole(params: Any) -> Any:
        return paramax.unwrap(eqx.combine(params, static))

    def round_trip(params: Any, x: Any) -> Any:
        bijection = whole(params).bijection
        return jax.vmap(lambda row: bijection.transform(bijection.inverse(row)))(x)

    log_prob = jax.jit(lambda params, x: whole(params).log_prob(x))
    sample = jax.jit(lambda params, key: whole(params).sample(key, (batch,)))

    @jax.jit
    def step(params: Any, opt: Any, x: Any) -> Any:
        loss, grads = jax.value_and_grad(lambda p: -whole(p).log_prob(x).mean())(params)
        updates, opt = optimizer.update(grads, opt)
        return optax.apply_updates(params, updates), opt, loss

    def train() -> Any:
        state[0], state[1], loss = step(*state, x)
        return loss.block_until_ready()

    def call(op: str) -> Callable[[], Any]:
        if op == LOG_PROB:
            return lambda: log_prob(params, x).block_until_ready()
        if op == SAMPLE:
            key = jr.key(1)
            return lambda: sample(params, key).block_until_ready()
        return train

    def error(op: str) -> float:
        """Its weights are its own: data must come back from the latent, and the training loss must be finite."""
        if op not in (LOG_PROB, SAMPLE):
            loss = float(train())
            assert jnp.isfinite(loss), f"flowjax: the loss must be finite, got {loss}"
            return 0.0
        rows = x[:64]
        apart = float(jnp.abs(jax.jit(round_trip)(params, rows) - rows).max() / jnp.abs(rows).max())
        assert apart <= ROUND_TRIP, f"flowjax: x must come back within {ROUND_TRIP}, got {apart}"
        return apart

    n_params = sum(leaf.size for leaf in jax.tree_util.tree_leaves(params))
    return Entry(call, error, n_params)
