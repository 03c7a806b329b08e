#pragma once

// packedProduct as packed_product.cpp is compiled: for what the whole program is built for, and, where that is any
// x86-64 processor, once more for AVX2 and for AVX-512 with bf16 products.

#include <cstddef>

#include "executor/layers/packed_product.hpp"

namespace shardwright {

using PackedProduct = void(const MatrixView& a, const MatrixView& b, const TargetView& c, std::int64_t m,
                           std::int64_t n, std::int64_t k, bool add);

PackedProduct packedProductAsBuilt;
PackedProduct packedProductAvx2;
PackedProduct packedProductAvx512;

/// Memory of the calling thread for `count` floats, good until its next call.
float* packedScratch(std::size_t count);

} // namespace shardwright
