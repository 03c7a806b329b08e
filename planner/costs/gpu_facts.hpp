#pragma once

// What kernels reach of a GPU's data-sheet figures. Calibrated on published measurements of single kernels, never on
// training runs; tests/planner/costs/kernels_against_measurements_test.cpp holds the models against those tables.

#include "core/cluster.hpp"

namespace shardwright {

/// Shares of a peak that fused attention reaches on long sequences.
struct AttentionRates {
    double forward64 = 0; // head size 64 and below
    double backward64 = 0;
    double forward128 = 0; // head size 128
    double backward128 = 0;
};

struct GpuFacts {
    int multiprocessors = 0;
    double tensorShare = 0; // of the 16-bit tensor-core peak, by a long matrix product that runs again and again: the
                            // clock it can hold within the GPU's power
    double fp8Share = 0;    // likewise of the fp8 peak
    double vectorShare = 0; // of the fp32 peak, by fp32 matrix products outside tensor cores
    // Rate of a tile of 256x128, 128x128, 128x64 and 64x64 outputs relative to the largest.
    double tileRates[4] = {1, 1, 1, 1};
    double tileSeconds = 0;    // prologue and epilogue of a 256x128 tile; smaller ones in proportion
    double productSeconds = 0; // start of a matrix product and filling of its pipeline
    double kernelSeconds = 0;  // start and drain of any other kernel
    double memoryShare = 0;    // of the memory bandwidth, by kernels that stream
    double cacheBytes = 0;     // of the second-level cache
    AttentionRates attention;
};

/// `gpus`: how many work in step; the slowest of them sets the pace.
GpuFacts gpuFacts(const Gpu& gpu, std::int64_t gpus = 1);

/// FLOP/s that matrix products of this dtype sustain; of the nearest dtype that the GPU's description has.
double sustainedFlops(const Gpu& gpu, const GpuFacts& facts, DType dtype);

/// Bytes/s that kernels bound by memory sustain.
inline double sustainedBandwidth(const Gpu& gpu, const GpuFacts& facts)
{
    return gpu.memoryBandwidth.value * facts.memoryShare;
}

} // namespace shardwright
