// Written by build/bin/tools/update_ledger from the residuals of the published step times; not by hand.

#include "planner/step_band.hpp"

namespace shardwright {

// clang-format off
const std::array<StepBand, kStepSettings> kStepBandTable{{
    {0.985, 1.145, 172, BandOrigin::Own}, // pytorch, one node
    {0.936, 1.507, 3, BandOrigin::Own}, // pytorch, one node, model parallel
    {1.000, 2.655, 4, BandOrigin::Similar}, // pytorch, one node, offload
    {0.896, 2.213, 548, BandOrigin::All}, // pytorch, one node, offload, model parallel
    {1.000, 1.134, 71, BandOrigin::Own}, // pytorch, many nodes
    {0.928, 1.507, 15, BandOrigin::Own}, // pytorch, many nodes, model parallel
    {1.000, 2.655, 4, BandOrigin::Similar}, // pytorch, many nodes, offload
    {0.896, 2.213, 548, BandOrigin::All}, // pytorch, many nodes, offload, model parallel
    {0.987, 1.273, 7, BandOrigin::Own}, // deepspeed, one node
    {0.936, 1.507, 5, BandOrigin::Own}, // deepspeed, one node, model parallel
    {1.000, 1.918, 4, BandOrigin::Own}, // deepspeed, one node, offload
    {0.896, 2.213, 548, BandOrigin::All}, // deepspeed, one node, offload, model parallel
    {0.987, 3.253, 9, BandOrigin::Own}, // deepspeed, many nodes
    {0.936, 1.482, 236, BandOrigin::Own}, // deepspeed, many nodes, model parallel
    {1.000, 2.655, 4, BandOrigin::Similar}, // deepspeed, many nodes, offload
    {0.896, 2.213, 548, BandOrigin::All}, // deepspeed, many nodes, offload, model parallel
    {0.987, 5.273, 1, BandOrigin::Own}, // megatron, one node
    {0.936, 3.705, 13, BandOrigin::Own}, // megatron, one node, model parallel
    {1.000, 2.655, 4, BandOrigin::Similar}, // megatron, one node, offload
    {0.896, 2.213, 548, BandOrigin::All}, // megatron, one node, offload, model parallel
    {0.981, 1.346, 260, BandOrigin::Similar}, // megatron, many nodes
    {0.936, 1.507, 12, BandOrigin::Own}, // megatron, many nodes, model parallel
    {1.000, 2.655, 4, BandOrigin::Similar}, // megatron, many nodes, offload
    {0.896, 2.213, 548, BandOrigin::All}, // megatron, many nodes, offload, model parallel
}};
// clang-format on

} // namespace shardwright
