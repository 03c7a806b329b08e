// Signs with error feedback, worked out by hand.

#include "executor/comm/sign_compression.hpp"

#include <cmath>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace shardwright {
namespace {

using Values = std::vector<float>;

struct Compressed {
    std::vector<std::byte> signs;
    float scale = 0;
};

Compressed compress(Values& values, Values& leftOver)
{
    Compressed result{std::vector<std::byte>((values.size() + 7) / 8), 0};
    compressSigns(values.data(), leftOver.data(), static_cast<std::int64_t>(values.size()), result.signs.data(),
                  &result.scale);
    return result;
}

} // namespace

TEST(SignCompression, WhatIsLeftOverComesWithTheNext)
{
    Values leftOver{0, 0};
    Values first{1, 7}; // |v|2 = sqrt(50), / sqrt(2) = 5
    const Compressed one = compress(first, leftOver);
    EXPECT_EQ(one.scale, 5);
    EXPECT_EQ(one.signs, (std::vector{std::byte{0b11}}));
    EXPECT_EQ(leftOver, (Values{-4, 2}));
    Values second{1, -5}; // -3 and -3 with what was left over
    const Compressed two = compress(second, leftOver);
    EXPECT_EQ(two.scale, 3);
    EXPECT_EQ(two.signs, (std::vector{std::byte{0b00}}));
    EXPECT_EQ(leftOver, (Values{0, 0}));
}

TEST(SignCompression, ZeroCountsAsPositive)
{
    Values leftOver(9);
    Values zeros(9);
    const Compressed compressed = compress(zeros, leftOver);
    EXPECT_EQ(compressed.scale, 0);
    EXPECT_EQ(compressed.signs, (std::vector{std::byte{0xff}, std::byte{0x01}}));
    EXPECT_EQ(leftOver, Values(9));
}

TEST(SignCompression, PartsHaveScalesOfTheirOwn)
{
    const std::vector<std::byte> signs{std::byte{0b00001111}, std::byte{0b01010101}};
    const Values scales{2, 10};
    Values all(16);
    expandSigns(signs.data(), scales.data(), 2, 8, all.data());
    EXPECT_EQ(all, (Values{2, 2, 2, 2, -2, -2, -2, -2, 10, -10, 10, -10, 10, -10, 10, -10}));
    Values mean(8);
    averageSigns(signs.data(), scales.data(), 2, 8, mean.data());
    EXPECT_EQ(mean, (Values{6, -4, 6, -4, 4, -6, 4, -6}));
}

/// Over many rounds nothing is lost: what was said and what is left over add up to what came in.
RC_GTEST_PROP(SignCompression, NothingIsLost, ())
{
    const std::size_t count = static_cast<std::size_t>(*rc::gen::inRange(1, 20)) * 8;
    Values leftOver(count);
    std::vector<double> came(count), said(count);
    double largest = 1;
    for (int round = 0; round < 10; ++round) {
        Values values;
        for (std::size_t i = 0; i < count; ++i) {
            values.push_back(static_cast<float>(*rc::gen::inRange(-1000, 1000)) / 64);
            came[i] += values[i];
        }
        const Compressed compressed = compress(values, leftOver);
        Values decoded(count);
        expandSigns(compressed.signs.data(), &compressed.scale, 1, static_cast<std::int64_t>(count), decoded.data());
        for (std::size_t i = 0; i < count; ++i) {
            said[i] += decoded[i];
            largest = std::max<double>(largest, std::abs(values[i]));
        }
    }
    for (std::size_t i = 0; i < count; ++i)
        RC_ASSERT(std::abs(came[i] - said[i] - leftOver[i]) < 20 * 0x1p-23 * largest);
}

} // namespace shardwright
