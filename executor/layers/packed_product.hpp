#pragma once

// Matrix products on one thread, of operands that stand anywhere.

#include <cstdint>

#include "core/dtype.hpp"

namespace shardwright {

/// Element (row, column) of a matrix of fp32 or bf16 stands `row * rowStride + column * columnStride` elements from
/// `data`. One of the two strides is 1.
struct MatrixView {
    const void* data = nullptr;
    DType dtype = DType::Fp32;
    std::int64_t rowStride = 0;
    std::int64_t columnStride = 1;
};

/// A row-major matrix that is written.
struct TargetView {
    void* data = nullptr;
    DType dtype = DType::Fp32;
    std::int64_t rowStride = 0;
};

/// c (m x n) = a (m x k) b (k x n), added to what c holds where `add`. Sums are fp32, in the order of k; c is rounded
/// once. The order of sums does not depend on m and n.
void packedProduct(const MatrixView& a, const MatrixView& b, const TargetView& c, std::int64_t m, std::int64_t n,
                   std::int64_t k, bool add);

} // namespace shardwright
