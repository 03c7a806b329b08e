#pragma once

// What functors are written with: they run in a loop on the host and in a launch on a GPU, so nothing in them allocates
// or throws. Values are fp32 in between, whatever they are stored in.

#include <bit>
#include <cmath>
#include <cstdint>
#include <stdexcept>

#include "executor/elements.hpp"

#ifdef __CUDACC__
#define SHARDWRIGHT_FUNCTOR __host__ __device__ __forceinline__
#else
#define SHARDWRIGHT_FUNCTOR __attribute__((always_inline)) inline
#endif

namespace shardwright {

struct Bf16 {
    std::uint16_t bits;
};

SHARDWRIGHT_FUNCTOR float load(const float* from, std::int64_t at)
{
    return from[at];
}

SHARDWRIGHT_FUNCTOR float load(const Bf16* from, std::int64_t at)
{
    return floatOfBf16(from[at].bits);
}

SHARDWRIGHT_FUNCTOR void store(float* to, std::int64_t at, float value)
{
    to[at] = value;
}

SHARDWRIGHT_FUNCTOR void store(Bf16* to, std::int64_t at, float value)
{
    to[at].bits = bf16Of(value);
}

/// Calls `body` with a value of the storage type.
template <typename Body> void withStorage(DType dtype, const Body& body)
{
    if (dtype == DType::Fp32)
        body(float{});
    else if (dtype == DType::Bf16)
        body(Bf16{});
    else
        throw std::logic_error("layers store fp32 and bf16 only");
}

/// e^x without a branch, so that loops become vector code: 2^n e^r with |r| <= ln(2)/2, and e^r by the polynomial of
/// Cephes' expf (netlib.org/cephes), exact to about 1e-7 of itself. Below the smallest normal number: that number.
SHARDWRIGHT_FUNCTOR float expOf(float x)
{
    constexpr float kLeast = -87.33654f;
    constexpr float kMost = 88.37626f;
    constexpr float kLog2E = 1.44269504f;
    constexpr float kLn2High = 0.693359375f; // exact in few bits, so that n kLn2High is exact
    constexpr float kLn2Low = -2.12194440e-4f;
    float limited = x < kLeast ? kLeast : x;
    limited = limited > kMost ? kMost : limited;
    const float scaled = limited * kLog2E;
    const float rounding = scaled + (scaled < 0 ? -0.5f : 0.5f);
    const auto n = static_cast<std::int32_t>(rounding == rounding ? rounding : 0.0f); // e^NaN is NaN by r
    const auto whole = static_cast<float>(n);
    const float r = (limited - whole * kLn2High) - whole * kLn2Low;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    constexpr std::int32_t kBias = 127;
    constexpr int kMantissaBits = 23;
    return p * std::bit_cast<float>((n + kBias) << kMantissaBits);
}

SHARDWRIGHT_FUNCTOR float sigmoidOf(float x)
{
    return 1.0f / (1.0f + expOf(-x));
}

SHARDWRIGHT_FUNCTOR float tanhOf(float x)
{
    return 1.0f - 2.0f / (1.0f + expOf(2.0f * x));
}

} // namespace shardwright
