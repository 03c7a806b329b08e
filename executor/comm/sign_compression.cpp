#include "executor/comm/sign_compression.hpp"

#include <algorithm>
#include <cmath>

#include "executor/elements.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kSignsAByte = 8;

float signedScale(const std::byte* signs, std::int64_t at, float scale)
{
    const auto byte = static_cast<unsigned>(signs[at / kSignsAByte]);
    return ((byte >> (at % kSignsAByte)) & 1U) != 0 ? scale : -scale;
}

} // namespace

void compressSigns(float* values, float* leftOver, std::int64_t count, std::byte* signs, float* scale)
{
    for (std::int64_t i = 0; i < count; ++i)
        values[i] += leftOver[i];
    const double squares = squaresOf(values, DType::Fp32, count);
    *scale = count == 0 ? 0.0F : static_cast<float>(std::sqrt(squares / static_cast<double>(count)));
    for (std::int64_t first = 0; first < count; first += kSignsAByte) {
        unsigned byte = 0;
        const std::int64_t end = std::min(count, first + kSignsAByte);
        for (std::int64_t i = first; i < end; ++i) {
            const bool positive = values[i] >= 0;
            byte |= positive ? 1U << (i - first) : 0U;
            leftOver[i] = values[i] - (positive ? *scale : -*scale);
        }
        signs[first / kSignsAByte] = static_cast<std::byte>(byte);
    }
}

void expandSigns(const std::byte* signs, const float* scales, std::int64_t parts, std::int64_t count, float* values)
{
    for (std::int64_t part = 0; part < parts; ++part)
        for (std::int64_t i = 0; i < count; ++i)
            values[part * count + i] = signedScale(signs, part * count + i, scales[part]);
}

void averageSigns(const std::byte* signs, const float* scales, std::int64_t parts, std::int64_t count, float* mean)
{
    std::fill_n(mean, count, 0.0F);
    const float share = 1.0F / static_cast<float>(parts);
    for (std::int64_t part = 0; part < parts; ++part) {
        const float scale = scales[part] * share;
        for (std::int64_t i = 0; i < count; ++i)
            mean[i] += signedScale(signs, part * count + i, scale);
    }
}

} // namespace shardwright
