#pragma once

// Seconds of a matrix product on one GPU: a grid of output tiles over the multiprocessors, wave by wave, or the memory
// traffic where that takes longer. The tile that is fastest is taken, as cuBLAS's heuristics do by and large.

#include "planner/costs/gpu_facts.hpp"

namespace shardwright {

/// `batch` products of (m x k) by (k x n).
struct MatrixProduct {
    std::int64_t batch = 1;
    std::int64_t m = 0;
    std::int64_t n = 0;
    std::int64_t k = 0;
    DType dtype = DType::Bf16;
    std::int64_t outBytes = 2; // of one element of the result
    bool aligned = true;       // rows of operands and result start at multiples of 16 bytes

    double flops() const
    {
        return 2.0 * static_cast<double>(batch) * static_cast<double>(m) * static_cast<double>(n) *
               static_cast<double>(k);
    }
};

double seconds(const Gpu& gpu, const GpuFacts& facts, const MatrixProduct& product);

} // namespace shardwright
