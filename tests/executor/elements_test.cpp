// 16-bit floats against their definition (IEEE 754 binary16; bfloat16 = the upper half of binary32).

#include "executor/elements.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

namespace shardwright {
namespace {

bool isNan16(std::uint16_t bits, std::uint16_t exponentMask, std::uint16_t fractionMask)
{
    return (bits & exponentMask) == exponentMask && (bits & fractionMask) != 0;
}

TEST(Elements, EverySixteenBitValueComesBackFromFp32)
{
    for (std::uint32_t i = 0; i <= 0xffff; ++i) {
        const auto bits = static_cast<std::uint16_t>(i);
        if (!isNan16(bits, 0x7c00, 0x3ff)) {
            ASSERT_EQ(fp16Of(floatOfFp16(bits)), bits);
        }
        if (!isNan16(bits, 0x7f80, 0x7f)) {
            ASSERT_EQ(bf16Of(floatOfBf16(bits)), bits);
        }
    }
}

/// Between two neighbours the nearer one is taken, and the even one from the middle.
template <typename ToFloat, typename FromFloat>
void roundsToNearestEven(std::uint16_t largest, ToFloat toFloat, FromFloat fromFloat)
{
    for (std::uint16_t bits = 0; bits < largest; ++bits) {
        const auto next = static_cast<std::uint16_t>(bits + 1);
        const double low = toFloat(bits);
        const double high = toFloat(next);
        const auto middle = static_cast<float>((low + high) / 2); // exact: one more bit
        ASSERT_EQ(fromFloat(middle), bits % 2 == 0 ? bits : next) << bits;
        ASSERT_EQ(fromFloat(std::nextafter(middle, 0.0F)), bits) << bits;
        ASSERT_EQ(fromFloat(std::nextafter(middle, std::numeric_limits<float>::infinity())), next) << bits;
        ASSERT_EQ(fromFloat(-middle), (bits % 2 == 0 ? bits : next) | 0x8000) << bits;
    }
}

TEST(Elements, RoundingIsToNearestTiesToEven)
{
    roundsToNearestEven(0x7bff, floatOfFp16, fp16Of);
    roundsToNearestEven(0x7f7f, floatOfBf16, bf16Of);
}

TEST(Elements, Limits)
{
    EXPECT_EQ(floatOfFp16(0x7bff), 65504.0F);
    EXPECT_EQ(fp16Of(65520.0F), 0x7c00); // half way to the next power of two: infinity
    EXPECT_EQ(fp16Of(65519.0F), 0x7bff);
    EXPECT_EQ(floatOfFp16(1), std::ldexp(1.0F, -24));
    const float nan = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(floatOfFp16(fp16Of(nan))));
    EXPECT_TRUE(std::isnan(floatOfBf16(bf16Of(nan))));
    EXPECT_TRUE(std::isinf(floatOfBf16(bf16Of(std::numeric_limits<float>::max()))));
}

TEST(Elements, SumsAreMadeInFp32)
{
    // 256 + 1 needs nine bits; bf16 has eight: adding 1 twice in bf16 would stay at 256, in one fp32 sum of 2 it moves.
    std::vector<std::uint16_t> sum{bf16Of(256.0F)};
    const std::vector<float> two{2.0F};
    addElements(two.data(), DType::Fp32, sum.data(), DType::Bf16, 1);
    EXPECT_EQ(floatOfBf16(sum[0]), 258.0F);
    scaleElements(sum.data(), DType::Bf16, 1, 0.5);
    EXPECT_EQ(floatOfBf16(sum[0]), 129.0F);
    EXPECT_EQ(squaresOf(sum.data(), DType::Bf16, 1), 129.0 * 129.0);
}

} // namespace
} // namespace shardwright
