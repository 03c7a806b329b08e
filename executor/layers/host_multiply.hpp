#pragma once

#include "executor/layers/device.hpp"
#include "executor/layers/worker_pool.hpp"

namespace shardwright {

/// The operands of Device::multiply.
struct Product {
    TensorView a;
    Transpose transposeA;
    TensorView b;
    Transpose transposeB;
    TensorView c;
    std::int64_t m, n, k;
    bool add;
};

void hostMultiply(WorkerPool& pool, const Product& product);

/// At least `count` floats of the calling thread's own, good until its next call.
float* threadScratch(std::size_t count);

} // namespace shardwright
