#pragma once

// Elements of tensors: 16-bit floats in and out of fp32, and what is done to a stretch of elements whatever its dtype.
// 16-bit values round to nearest, ties to even.

#include <bit>
#include <cstdint>

#include "core/dtype.hpp"

namespace shardwright {

inline float floatOfBf16(std::uint16_t bits)
{
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t bf16Of(float value)
{
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if ((bits & 0x7fffffffU) > 0x7f800000U) // NaN stays one: rounding could carry it to infinity
        return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
    return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

float floatOfFp16(std::uint16_t bits);
std::uint16_t fp16Of(float value);

/// Whether the functions below take this dtype: fp32, bf16, fp16.
constexpr bool isFloating(DType dtype)
{
    return dtype == DType::Fp32 || is16Bit(dtype);
}

/// to = from, cast. The two may be of one dtype, and then of any that has whole bytes.
void convertElements(const void* from, DType fromType, void* to, DType toType, std::int64_t count);
/// to += from; the sum is made in fp32 and rounded once.
void addElements(const void* from, DType fromType, void* to, DType toType, std::int64_t count);
/// data *= factor, in fp32.
void scaleElements(void* data, DType dtype, std::int64_t count, double factor);
/// Sum of squares, in double precision.
double squaresOf(const void* data, DType dtype, std::int64_t count);

} // namespace shardwright
