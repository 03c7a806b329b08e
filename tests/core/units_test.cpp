#include <gtest/gtest.h>

#include <limits>

#include "core/units.hpp"

namespace shardwright {
namespace {

TEST(Bytes, ArithmeticThrowsInsteadOfWrapping)
{
    const Bytes huge(std::numeric_limits<std::int64_t>::max());
    EXPECT_THROW(huge + 1_B, NumberTooLarge);
    EXPECT_THROW(huge * 2, NumberTooLarge);
    EXPECT_EQ((2_GiB * 3).count(), 6442450944);
}

TEST(Units, RoundingAgreesWithDefinitions)
{
    EXPECT_EQ(ceilDivide(7, 2), 4);
    EXPECT_EQ(ceilDivide(std::numeric_limits<std::int64_t>::max(), 2), std::int64_t{1} << 62);
    EXPECT_EQ(roundUp(513, 512), 1024);
    EXPECT_EQ(nextPowerOfTwo(5), 8);
    EXPECT_EQ(nextPowerOfTwo(8), 8);
    EXPECT_THROW(nextPowerOfTwo((std::int64_t{1} << 62) + 1), NumberTooLarge);
}

TEST(Units, SayWhichGigabyteTheyMean)
{
    EXPECT_EQ(formatDecimal(Bytes(1500000000)), "1.50 GB");
    EXPECT_EQ(formatBinary(3_GiB), "3.00 GiB");
    EXPECT_EQ(formatDecimal(Bytes(999)), "999 B");
}

} // namespace
} // namespace shardwright
