"""All mutations, op by op. A text need only be unique in its file: lines may move."""

from tests.mutate.mutation import Mutation

from . import (
    affine,
    batch_norm,
    block_made,
    channels,
    common,
    cuda,
    flow_layer,
    gates,
    low_rank,
    monotone,
    net,
    ode_flow,
    residual_flow,
    rqs,
)

MUTATIONS: tuple[Mutation, ...] = (
    *rqs.MUTATIONS,
    *affine.MUTATIONS,
    *channels.MUTATIONS,
    *batch_norm.MUTATIONS,
    *net.MUTATIONS,
    *flow_layer.MUTATIONS,
    *block_made.MUTATIONS,
    *low_rank.MUTATIONS,
    *ode_flow.MUTATIONS,
    *residual_flow.MUTATIONS,
    *gates.MUTATIONS,
    *monotone.MUTATIONS,
    *common.MUTATIONS,
    *cuda.MUTATIONS,
)
