#include "executor/comm/codec.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "executor/elements.hpp"

namespace shardwright {

namespace {

using Values = std::vector<float>;

Values throughCode(const Encoding& encoding, const Values& values)
{
    const auto count = static_cast<std::int64_t>(values.size());
    std::vector<std::byte> encoded(static_cast<std::size_t>(encodedBytes(encoding, count).count()));
    encode(encoding, values.data(), DType::Fp32, count, encoded.data());
    Values decoded(values.size(), -99.0F);
    decode(encoding, encoded.data(), count, decoded.data(), DType::Fp32);
    return decoded;
}

/// Values of very different magnitudes, zeros among them.
Values anyValues()
{
    const auto size = *rc::gen::inRange<std::size_t>(0, 70);
    Values values;
    for (std::size_t i = 0; i < size; ++i) {
        const auto fraction = static_cast<float>(*rc::gen::inRange(-1000000, 1000001)) / 1000000.0F;
        values.push_back(std::ldexp(fraction, *rc::gen::inRange(-60, 60)));
    }
    return values;
}

struct Span {
    std::size_t first;
    std::size_t end;
};

std::vector<Span> blocksOf(std::size_t size, std::int64_t block)
{
    const std::size_t length = block == 0 ? std::max<std::size_t>(1, size) : static_cast<std::size_t>(block);
    std::vector<Span> blocks;
    for (std::size_t first = 0; first < size; first += length)
        blocks.push_back({first, std::min(size, first + length)});
    return blocks;
}

/// |x - decoded| <= m / steps (1/2 + steps 2^-23) in every block.
void expectIntegerBound(Codec codec, int steps)
{
    const auto block = *rc::gen::inRange<std::int64_t>(0, 12);
    const Values values = anyValues();
    const Values decoded = throughCode({codec, block}, values);
    for (const Span& span : blocksOf(values.size(), block)) {
        double largest = 0;
        for (std::size_t i = span.first; i < span.end; ++i)
            largest = std::max(largest, std::abs(static_cast<double>(values[i])));
        const double bound = largest / steps * (0.5 + steps * 0x1p-23);
        for (std::size_t i = span.first; i < span.end; ++i)
            RC_ASSERT(std::abs(static_cast<double>(decoded[i]) - static_cast<double>(values[i])) <= bound);
    }
}

RC_GTEST_PROP(Codec, Int8IsOffByHalfAStepAtMost, ())
{
    expectIntegerBound(Codec::Int8Blockwise, 127);
}

RC_GTEST_PROP(Codec, Int4IsOffByHalfAStepAtMost, ())
{
    expectIntegerBound(Codec::Int4Blockwise, 7);
}

RC_GTEST_PROP(Codec, SignsKeepTheNormAndStayWithinTheirError, ())
{
    const auto block = *rc::gen::inRange<std::int64_t>(0, 12);
    const Values values = anyValues();
    const Values decoded = throughCode({Codec::Sign, block}, values);
    for (const Span& span : blocksOf(values.size(), block)) {
        double norm = 0;
        double norm2 = 0;
        double error = 0;
        for (std::size_t i = span.first; i < span.end; ++i) {
            const double x = values[i];
            const double y = decoded[i];
            RC_ASSERT(x == 0 || (x < 0) == (y < 0) || y == 0);
            norm += x * x;
            norm2 += y * y;
            error += (x - y) * (x - y);
        }
        const double elements = static_cast<double>(span.end - span.first);
        RC_ASSERT(std::abs(std::sqrt(norm) - std::sqrt(norm2)) <= 0x1p-23 * std::sqrt(norm));
        const double bound = std::sqrt(2 * (1 - 1 / std::sqrt(elements)) * norm);
        RC_ASSERT(std::sqrt(error) <= bound + 0x1p-22 * std::sqrt(norm));
    }
}

/// Sixteen-bit elements: as if widened, coded and rounded.
RC_GTEST_PROP(Codec, SixteenBitsAreWidenedFirst, ())
{
    const auto codec = *rc::gen::element(Codec::Int8Blockwise, Codec::Int4Blockwise, Codec::Sign);
    const Encoding encoding{codec, *rc::gen::inRange<std::int64_t>(0, 12)};
    const Values values = anyValues();
    const auto count = static_cast<std::int64_t>(values.size());
    std::vector<std::uint16_t> narrow(values.size());
    convertElements(values.data(), DType::Fp32, narrow.data(), DType::Bf16, count);
    Values widened(values.size());
    convertElements(narrow.data(), DType::Bf16, widened.data(), DType::Fp32, count);

    std::vector<std::byte> encoded(static_cast<std::size_t>(encodedBytes(encoding, count).count()));
    encode(encoding, narrow.data(), DType::Bf16, count, encoded.data());
    std::vector<std::uint16_t> decoded(values.size());
    decode(encoding, encoded.data(), count, decoded.data(), DType::Bf16);

    const Values expected = throughCode(encoding, widened);
    for (std::size_t i = 0; i < values.size(); ++i)
        RC_ASSERT(decoded[i] == bf16Of(expected[i]));
}

/// What was decoded is coded without further loss: a second gather of the same weights gives the same weights.
RC_GTEST_PROP(Codec, CodingTwiceIsCodingOnce, ())
{
    const Encoding encoding{*rc::gen::element(Codec::Int8Blockwise, Codec::Int4Blockwise), 8};
    const Values once = throughCode(encoding, anyValues());
    const Values twice = throughCode(encoding, once);
    for (std::size_t i = 0; i < once.size(); ++i)
        RC_ASSERT(std::abs(once[i] - twice[i]) <= 0x1p-22F * std::abs(once[i]));
}

TEST(Codec, SizesAreThoseOfElementsAndScales)
{
    EXPECT_EQ(encodedBytes({Codec::Int8Blockwise, 8000}, 16001), 16001_B + 3 * 4_B);
    EXPECT_EQ(encodedBytes({Codec::Int4Blockwise, 8}, 17), 9_B + 3 * 4_B);
    EXPECT_EQ(encodedBytes({Codec::Sign, 0}, 17), 3_B + 4_B);
    for (const Codec codec : {Codec::Int8Blockwise, Codec::Int4Blockwise, Codec::Sign})
        EXPECT_EQ(encodedBytes({codec, 8}, 0), 0_B);
    EXPECT_THROW(encodedBytes({Codec::None, 0}, 1), std::logic_error);
}

/// By hand: s = 12.7 / 127 = 0.1; int4: s = 7 / 7 = 1, ties to even.
TEST(Codec, CodesByHand)
{
    const Values eight{12.7F, -12.7F, 0.0F, 0.32F, -0.58F};
    const Values eightExpected{12.7F, -12.7F, 0.0F, 0.3F, -0.6F};
    const Values decoded = throughCode({Codec::Int8Blockwise, 0}, eight);
    for (std::size_t i = 0; i < eight.size(); ++i)
        EXPECT_NEAR(decoded[i], eightExpected[i], 1e-5F);

    const Values four{7.0F, -7.0F, 2.5F, 3.5F, -0.5F, 1.4F, -6.6F};
    EXPECT_EQ(throughCode({Codec::Int4Blockwise, 0}, four), (Values{7, -7, 2, 4, 0, 1, -7}));

    // |x| = 5, d = 4: s = 2.5
    EXPECT_EQ(throughCode({Codec::Sign, 0}, {3.0F, -4.0F, 0.0F, -0.0F}), (Values{2.5F, -2.5F, 2.5F, 2.5F}));

    std::byte packed[6];
    const Values two{1.0F, -7.0F};
    encode({Codec::Int4Blockwise, 0}, two.data(), DType::Fp32, 2, packed);
    EXPECT_EQ(packed[0], std::byte{0x91}); // 1 in the low bits, -7 = 9 in the high ones
}

TEST(Codec, WhatIsNotFiniteStaysSo)
{
    for (const float wrong : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN()})
        for (const Codec codec : {Codec::Int8Blockwise, Codec::Int4Blockwise, Codec::Sign}) {
            const Values decoded = throughCode({codec, 3}, {1.0F, wrong, 1.0F, 1.0F});
            for (std::size_t i = 0; i < 3; ++i)
                EXPECT_TRUE(std::isnan(decoded[i])) << nameOf(codec);
            EXPECT_NEAR(decoded[3], 1.0F, 1e-6F) << "the next block does not suffer";
        }
}

TEST(Codec, ZerosAndTheSmallestNumbersAreZeros)
{
    for (const Codec codec : {Codec::Int8Blockwise, Codec::Int4Blockwise})
        for (const float small : {0.0F, std::numeric_limits<float>::denorm_min(), 0x1p-127F})
            EXPECT_EQ(throughCode({codec, 0}, {small, -small}), (Values{0.0F, 0.0F}));
}

} // namespace

} // namespace shardwright
