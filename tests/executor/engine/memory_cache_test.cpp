#include <set>

#include <gtest/gtest.h>

#include "executor/engine/memory_cache.hpp"

using namespace shardwright;

TEST(MemoryCache, givesBlocksOfEqualSizeAgain)
{
    MemoryCache cache;
    std::set<std::byte*> places;
    {
        const auto first = cache.take(1000);
        const auto second = cache.take(1000);
        places = {first.get(), second.get()};
        EXPECT_EQ(places.size(), 2U);
    }
    EXPECT_EQ(cache.heldBack(), 2000U);
    const auto first = cache.take(1000);
    const auto second = cache.take(1000);
    EXPECT_EQ((std::set<std::byte*>{first.get(), second.get()}), places);
    EXPECT_EQ(cache.heldBack(), 0U);
}

TEST(MemoryCache, neverStandsMoreThanHalfAboveWhatWasTakenAtOnce)
{
    MemoryCache cache;
    const auto small = cache.take(100);
    cache.take(700).reset(); // the most: 800, so up to 1200 are in use
    cache.take(300).reset(); // 100 + 300 + 700
    EXPECT_EQ(cache.heldBack(), 1000U);
    cache.take(400).reset(); // 100 + 400 + 300 + 700 would be more: the 700 go
    EXPECT_EQ(cache.heldBack(), 700U);
    const auto more = cache.take(1100); // with what is taken as much as may be: nothing is held back
    EXPECT_EQ(cache.heldBack(), 0U);
    cache.take(0).reset();
    EXPECT_EQ(cache.heldBack(), 0U);
}
