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

/// Split among the threads by rows or columns of c, whichever are more.
void hostMultiply(WorkerPool& pool, const Product& product);

} // namespace shardwright
