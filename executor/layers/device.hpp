#pragma once

// What layers need of a device. The host's runs on Eigen; a GPU's implements the same operations. Elementwise and
// row-wise kernels are functors (executor/layers/functors/) that either loops over or launches.

#include <cstdint>
#include <memory>

#include "executor/tensor_view.hpp"

namespace shardwright {

enum class Transpose : std::uint8_t { No, Yes };

class Device {
public:
    virtual ~Device() = default;

    /// c (m x n) = a (m x k) b (k x n), row-major; each operand may be stored transposed. c's dtype may be wider than
    /// that of a and b; sums are fp32. `add`: added to what c holds.
    virtual void multiply(TensorView a, Transpose transposeA, TensorView b, Transpose transposeB, TensorView c,
                          std::int64_t m, std::int64_t n, std::int64_t k, bool add = false) = 0;
    /// Worker threads that compute; 1 = the calling one alone.
    virtual int threads() const = 0;
};

/// The processor, with `threads` workers.
std::unique_ptr<Device> makeHostDevice(int threads);

} // namespace shardwright
