#include "executor/comm/sums.hpp"

#include <algorithm>
#include <array>

#include "executor/elements.hpp"

namespace shardwright {

namespace {

/// Elements that are summed at a time: their fp32 sums stay in the first-level cache.
constexpr std::int64_t kStretch = 2048;

} // namespace

void sumElements(std::byte* sum, const std::vector<const std::byte*>& sources, std::int64_t elements, DType dtype)
{
    const std::int64_t elementBytes = bitsOf(dtype) / 8;
    std::array<float, kStretch> wide;
    for (std::int64_t first = 0; first < elements; first += kStretch) {
        const std::int64_t count = std::min(kStretch, elements - first);
        const std::int64_t offset = first * elementBytes;
        convertElements(sources.front() + offset, dtype, wide.data(), DType::Fp32, count);
        for (std::size_t source = 1; source < sources.size(); ++source)
            addElements(sources[source] + offset, dtype, wide.data(), DType::Fp32, count);
        convertElements(wide.data(), DType::Fp32, sum + offset, dtype, count);
    }
}

} // namespace shardwright
