#pragma once

// Sums over ranks: 16-bit elements in fp32, rounded once at the end.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/dtype.hpp"

namespace shardwright {

/// sum[i] = the sources' sum, added in their order. `sum` may be one of them. fp32, bf16 and fp16.
void sumElements(std::byte* sum, const std::vector<const std::byte*>& sources, std::int64_t elements, DType dtype);

} // namespace shardwright
