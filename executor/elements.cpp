#include "executor/elements.hpp"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include <fmt/format.h>

namespace shardwright {

namespace {

struct Fp32 {
    using Stored = float;
    static float load(Stored value) { return value; }
    static Stored store(float value) { return value; }
};
struct Bf16 {
    using Stored = std::uint16_t;
    static float load(Stored value) { return floatOfBf16(value); }
    static Stored store(float value) { return bf16Of(value); }
};
struct Fp16 {
    using Stored = std::uint16_t;
    static float load(Stored value) { return floatOfFp16(value); }
    static Stored store(float value) { return fp16Of(value); }
};

/// Calls `use` with the type that stands for `dtype`.
template <typename Use> void withType(DType dtype, Use use)
{
    switch (dtype) {
    case DType::Fp32: return use(Fp32{});
    case DType::Bf16: return use(Bf16{});
    case DType::Fp16: return use(Fp16{});
    default: throw std::logic_error(fmt::format("no arithmetic on elements of {}", nameOf(dtype)));
    }
}

} // namespace

float floatOfFp16(std::uint16_t bits)
{
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
    const std::uint32_t exponent = (bits >> 10) & 0x1fU;
    const std::uint32_t fraction = bits & 0x3ffU;
    if (exponent == 0) { // zero and subnormals: multiples of 2^-24
        const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
        return sign != 0 ? -magnitude : magnitude;
    }
    if (exponent == 0x1f)
        return std::bit_cast<float>(sign | 0x7f800000U | (fraction << 13));
    return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (fraction << 13));
}

std::uint16_t fp16Of(float value)
{
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
    const std::uint32_t magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U)
        return static_cast<std::uint16_t>(sign | 0x7e00U);
    if (magnitude >= 0x477ff000U) // 65520 and up round past the largest, 65504
        return static_cast<std::uint16_t>(sign | 0x7c00U);
    if (magnitude < 0x38800000U) { // below 2^-14: subnormal
        const float scaled = std::ldexp(std::bit_cast<float>(magnitude), 24);
        return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(scaled)));
    }
    const std::uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U) - (112U << 23);
    return static_cast<std::uint16_t>(sign | (rounded >> 13));
}

void convertElements(const void* from, DType fromType, void* to, DType toType, std::int64_t count)
{
    if (fromType == toType) {
        std::memmove(to, from, static_cast<std::size_t>(bytesOf(count, fromType).count()));
        return;
    }
    withType(fromType, [&](auto source) {
        withType(toType, [&](auto target) {
            const auto* read = static_cast<const typename decltype(source)::Stored*>(from);
            auto* write = static_cast<typename decltype(target)::Stored*>(to);
            for (std::int64_t i = 0; i < count; ++i)
                write[i] = decltype(target)::store(decltype(source)::load(read[i]));
        });
    });
}

void addElements(const void* from, DType fromType, void* to, DType toType, std::int64_t count)
{
    withType(fromType, [&](auto source) {
        withType(toType, [&](auto target) {
            using Target = decltype(target);
            const auto* read = static_cast<const typename decltype(source)::Stored*>(from);
            auto* write = static_cast<typename Target::Stored*>(to);
            for (std::int64_t i = 0; i < count; ++i)
                write[i] = Target::store(Target::load(write[i]) + decltype(source)::load(read[i]));
        });
    });
}

void scaleElements(void* data, DType dtype, std::int64_t count, double factor)
{
    const auto scale = static_cast<float>(factor);
    withType(dtype, [&](auto type) {
        auto* values = static_cast<typename decltype(type)::Stored*>(data);
        for (std::int64_t i = 0; i < count; ++i)
            values[i] = decltype(type)::store(decltype(type)::load(values[i]) * scale);
    });
}

double squaresOf(const void* data, DType dtype, std::int64_t count)
{
    double sum = 0;
    withType(dtype, [&](auto type) {
        const auto* values = static_cast<const typename decltype(type)::Stored*>(data);
        double ofType = 0;
#pragma omp simd reduction(+ : ofType)
        for (std::int64_t i = 0; i < count; ++i) {
            const double value = decltype(type)::load(values[i]);
            ofType += value * value;
        }
        sum = ofType;
    });
    return sum;
}

} // namespace shardwright
