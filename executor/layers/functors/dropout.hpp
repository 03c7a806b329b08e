#pragma once

#include "executor/layers/dropout.hpp"

namespace shardwright {

/// The factors of columns [column, column + kDropoutColumns), `column` a multiple of that: 0 of what goes, 1 / (1 - p)
/// of what stays. `sequence` is counted in the micro-batch; `head` is 0 but of attention.
SHARDWRIGHT_FUNCTOR void dropoutFactors(const Dropout& dropout, std::int64_t sequence, std::int64_t position,
                                        std::int64_t head, std::int64_t column, float* factors)
{
    constexpr std::int64_t kCounters = kDropoutColumns / 4;
    const std::uint64_t key = randomBits(dropout.key, static_cast<std::uint64_t>(dropout.firstSequence + sequence));
    // Of 2^32 numbers, those below it go.
    const auto limit = static_cast<std::uint32_t>(static_cast<double>(dropout.probability) * 0xffffffffU);
    const float scale = 1.0f / (1.0f - dropout.probability);
    const auto first = static_cast<std::uint32_t>(column / 4);
#pragma omp simd
    for (std::uint32_t i = 0; i < kCounters; ++i) {
        const auto numbers =
            philox({first + i, static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(head), 0}, key);
        factors[i] = numbers[0] < limit ? 0.0f : scale;
        factors[kCounters + i] = numbers[1] < limit ? 0.0f : scale;
        factors[2 * kCounters + i] = numbers[2] < limit ? 0.0f : scale;
        factors[3 * kCounters + i] = numbers[3] < limit ? 0.0f : scale;
    }
}

/// A row of `out` is that of `in` with elements dropped; the two may be one. `length`: tokens of a sequence.
template <typename T> struct DropoutFunctor {
    const T* in;
    T* out;
    std::int64_t width;
    std::int64_t length;
    Dropout dropout;
    SHARDWRIGHT_FUNCTOR void operator()(std::int64_t row) const
    {
        const T* x = in + row * width;
        T* y = out + row * width;
        float factors[kDropoutColumns];
        for (std::int64_t first = 0; first < width; first += kDropoutColumns) {
            dropoutFactors(dropout, row / length, row % length, 0, first, factors);
            const std::int64_t count = width - first < kDropoutColumns ? width - first : kDropoutColumns;
#pragma omp simd
            for (std::int64_t j = 0; j < count; ++j)
                store(y, first + j, load(x, first + j) * factors[j]);
        }
    }
};

} // namespace shardwright
