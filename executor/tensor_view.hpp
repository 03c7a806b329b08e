#pragma once

// A stretch of elements in memory that somebody else owns.

#include <cstddef>
#include <cstdint>

#include "core/dtype.hpp"

namespace shardwright {

struct TensorView {
    void* data = nullptr;
    std::int64_t elements = 0;
    DType dtype = DType::Fp32;

    template <typename T> T* as() const { return static_cast<T*>(data); }
};

} // namespace shardwright
