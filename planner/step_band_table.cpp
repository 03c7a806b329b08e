// Written by build/bin/tools/update_ledger from the residuals of the published step times; not by hand.

#include "planner/step_band.hpp"

namespace shardwright {

// clang-format off
const std::array<StepBand, kStepSettings> kStepBandTable{{
    {1.000, 1.236, 172, BandOrigin::Own}, // pytorch, one node
    {0.887, 2.849, 3, BandOrigin::Own}, // pytorch, one node, model parallel
    {1.000, 4.534, 4, BandOrigin::Similar}, // pytorch, one node, offload
    {0.790, 5.585, 791, BandOrigin::All}, // pytorch, one node, offload, model parallel
    {1.000, 1.182, 71, BandOrigin::Own}, // pytorch, many nodes
    {0.887, 2.849, 9, BandOrigin::Own}, // pytorch, many nodes, model parallel
    {1.000, 4.534, 4, BandOrigin::Similar}, // pytorch, many nodes, offload
    {0.790, 5.585, 791, BandOrigin::All}, // pytorch, many nodes, offload, model parallel
    {0.818, 1.783, 63, BandOrigin::Own}, // deepspeed, one node
    {0.865, 2.883, 309, BandOrigin::Own}, // deepspeed, one node, model parallel
    {1.000, 2.740, 4, BandOrigin::Own}, // deepspeed, one node, offload
    {0.790, 5.585, 791, BandOrigin::All}, // deepspeed, one node, offload, model parallel
    {0.901, 3.398, 6, BandOrigin::Own}, // deepspeed, many nodes
    {1.000, 1.566, 130, BandOrigin::Own}, // deepspeed, many nodes, model parallel
    {1.000, 4.534, 4, BandOrigin::Similar}, // deepspeed, many nodes, offload
    {0.790, 5.585, 791, BandOrigin::All}, // deepspeed, many nodes, offload, model parallel
    {0.901, 5.379, 1, BandOrigin::Own}, // megatron, one node
    {0.887, 7.225, 11, BandOrigin::Own}, // megatron, one node, model parallel
    {1.000, 4.534, 4, BandOrigin::Similar}, // megatron, one node, offload
    {0.790, 5.585, 791, BandOrigin::All}, // megatron, one node, offload, model parallel
    {0.856, 2.105, 313, BandOrigin::Similar}, // megatron, many nodes
    {0.887, 2.849, 12, BandOrigin::Own}, // megatron, many nodes, model parallel
    {1.000, 4.534, 4, BandOrigin::Similar}, // megatron, many nodes, offload
    {0.790, 5.585, 791, BandOrigin::All}, // megatron, many nodes, offload, model parallel
}};
// clang-format on

} // namespace shardwright
