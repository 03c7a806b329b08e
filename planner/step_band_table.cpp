// Written by build/bin/tools/update_ledger from the residuals of the published step times; not by hand.

#include "planner/step_band.hpp"

namespace shardwright {

// clang-format off
const std::array<StepBand, kStepSettings> kStepBandTable{{
    {0.985, 1.149, 172, BandOrigin::Own}, // pytorch, one node
    {0.934, 1.629, 3, BandOrigin::Own}, // pytorch, one node, model parallel
    {1.000, 4.430, 4, BandOrigin::Similar}, // pytorch, one node, offload
    {0.883, 2.490, 797, BandOrigin::All}, // pytorch, one node, offload, model parallel
    {1.000, 1.134, 71, BandOrigin::Own}, // pytorch, many nodes
    {0.895, 1.629, 15, BandOrigin::Own}, // pytorch, many nodes, model parallel
    {1.000, 4.430, 4, BandOrigin::Similar}, // pytorch, many nodes, offload
    {0.883, 2.490, 797, BandOrigin::All}, // pytorch, many nodes, offload, model parallel
    {0.888, 1.567, 63, BandOrigin::Own}, // deepspeed, one node
    {0.932, 1.654, 309, BandOrigin::Own}, // deepspeed, one node, model parallel
    {1.000, 2.698, 4, BandOrigin::Own}, // deepspeed, one node, offload
    {0.883, 2.490, 797, BandOrigin::All}, // deepspeed, one node, offload, model parallel
    {0.962, 3.336, 6, BandOrigin::Own}, // deepspeed, many nodes
    {1.000, 1.532, 130, BandOrigin::Own}, // deepspeed, many nodes, model parallel
    {1.000, 4.430, 4, BandOrigin::Similar}, // deepspeed, many nodes, offload
    {0.883, 2.490, 797, BandOrigin::All}, // deepspeed, many nodes, offload, model parallel
    {0.962, 5.273, 1, BandOrigin::Own}, // megatron, one node
    {0.934, 3.768, 11, BandOrigin::Own}, // megatron, one node, model parallel
    {1.000, 4.430, 4, BandOrigin::Similar}, // megatron, one node, offload
    {0.883, 2.490, 797, BandOrigin::All}, // megatron, one node, offload, model parallel
    {0.944, 1.837, 313, BandOrigin::Similar}, // megatron, many nodes
    {0.934, 1.629, 12, BandOrigin::Own}, // megatron, many nodes, model parallel
    {1.000, 4.430, 4, BandOrigin::Similar}, // megatron, many nodes, offload
    {0.883, 2.490, 797, BandOrigin::All}, // megatron, many nodes, offload, model parallel
}};
// clang-format on

} // namespace shardwright
