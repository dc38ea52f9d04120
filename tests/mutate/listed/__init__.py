"""All mutations, op by op. A text need only be unique in its file: lines may move."""

from tests.mutate.mutation import Mutation

from . import affine, batch_norm, block_made, channels, common, cuda, flow_layer, gates, low_rank, monotone, net, rqs

MUTATIONS: tuple[Mutation, ...] = (
    *rqs.MUTATIONS,
    *affine.MUTATIONS,
    *channels.MUTATIONS,
    *batch_norm.MUTATIONS,
    *net.MUTATIONS,
    *flow_layer.MUTATIONS,
    *block_made.MUTATIONS,
    *low_rank.MUTATIONS,
    *gates.MUTATIONS,
    *monotone.MUTATIONS,
    *common.MUTATIONS,
    *cuda.MUTATIONS,
)
