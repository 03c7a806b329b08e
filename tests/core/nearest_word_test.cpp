#include <gtest/gtest.h>

#include "core/diagnostics.hpp"

namespace shardwright {

namespace {

TEST(NearestWord, PrefersTheLongerSharedBeginningAmongEquallyNearWords)
{
    // One edit from both: a "b" too many, or a "0" that became a "b" with the "7" in front of it.
    EXPECT_EQ(nearestWord("llama-2-7bb", {"llama-2-70b", "llama-2-7b"}), "llama-2-7b");
    EXPECT_EQ(nearestWord("llama-2-7bb", {"llama-2-7b", "llama-2-70b"}), "llama-2-7b");
}

TEST(NearestWord, KeepsTheFirstOfWordsThatAreAlikeInEverything)
{
    EXPECT_EQ(nearestWord("ax", {"ab", "ac"}), "ab");
}

TEST(NearestWord, OffersNothingForWordsThatAreFarFromAll)
{
    EXPECT_EQ(nearestWord("quasar", {"ddp", "fsdp2-full-shard"}), "");
}

} // namespace

} // namespace shardwright
