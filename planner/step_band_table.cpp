// Written by build/bin/tools/update_ledger from the residuals of the published step times; not by hand.

#include "planner/step_band.hpp"

namespace shardwright {

// clang-format off
const std::array<StepBand, kStepSettings> kStepBandTable{{
    {0.500, 2.000, 0, BandOrigin::Assumed}, // pytorch, one node
    {0.500, 2.000, 0, BandOrigin::Assumed}, // pytorch, one node, model parallel
    {0.500, 2.000, 0, BandOrigin::Assumed}, // pytorch, one node, offload
    {0.500, 2.000, 0, BandOrigin::Assumed}, // pytorch, one node, offload, model parallel
    {0.500, 2.000, 0, BandOrigin::Assumed}, // pytorch, many nodes
    {0.500, 2.000, 0, BandOrigin::Assumed}, // pytorch, many nodes, model parallel
    {0.500, 2.000, 0, BandOrigin::Assumed}, // pytorch, many nodes, offload
    {0.500, 2.000, 0, BandOrigin::Assumed}, // pytorch, many nodes, offload, model parallel
    {0.500, 2.000, 0, BandOrigin::Assumed}, // deepspeed, one node
    {0.500, 2.000, 0, BandOrigin::Assumed}, // deepspeed, one node, model parallel
    {0.500, 2.000, 0, BandOrigin::Assumed}, // deepspeed, one node, offload
    {0.500, 2.000, 0, BandOrigin::Assumed}, // deepspeed, one node, offload, model parallel
    {0.500, 2.000, 0, BandOrigin::Assumed}, // deepspeed, many nodes
    {0.500, 2.000, 0, BandOrigin::Assumed}, // deepspeed, many nodes, model parallel
    {0.500, 2.000, 0, BandOrigin::Assumed}, // deepspeed, many nodes, offload
    {0.500, 2.000, 0, BandOrigin::Assumed}, // deepspeed, many nodes, offload, model parallel
    {0.500, 2.000, 0, BandOrigin::Assumed}, // megatron, one node
    {0.500, 2.000, 0, BandOrigin::Assumed}, // megatron, one node, model parallel
    {0.500, 2.000, 0, BandOrigin::Assumed}, // megatron, one node, offload
    {0.500, 2.000, 0, BandOrigin::Assumed}, // megatron, one node, offload, model parallel
    {0.500, 2.000, 0, BandOrigin::Assumed}, // megatron, many nodes
    {0.500, 2.000, 0, BandOrigin::Assumed}, // megatron, many nodes, model parallel
    {0.500, 2.000, 0, BandOrigin::Assumed}, // megatron, many nodes, offload
    {0.500, 2.000, 0, BandOrigin::Assumed}, // megatron, many nodes, offload, model parallel
}};
// clang-format on

} // namespace shardwright
