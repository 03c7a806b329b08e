#include <gtest/gtest.h>

#include "planner/readers/caching_allocator.hpp"

namespace shardwright {
namespace {

constexpr BufferSpec kComputed{"computed", "", "", Category::Activations};
constexpr BufferSpec kGathered{"gathered", "", "", Category::GatheredParameters, Place::Gpu, Stream::AllGather};

/// A step that allocates and frees `first`, then `second`.
Schedule oneAfterTheOther(const BufferSpec& first, Bytes firstBytes, const BufferSpec& second, Bytes secondBytes)
{
    SizeTable sizes;
    const BufferClassId firstClass = sizes.addBuffer(first, firstBytes);
    const BufferClassId secondClass = sizes.addBuffer(second, secondBytes);
    ScheduleBuilder builder(std::move(sizes));
    builder.beginSegment("initialisation");
    builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
    builder.beginSegment("step");
    for (const BufferClassId bufferClass : {firstClass, secondClass}) {
        builder.op(OpKind::Allocate, Stream::Compute, Phase::Forward);
        const BufferId buffer = builder.allocate(bufferClass);
        builder.op(OpKind::Release, Stream::Compute, Phase::Forward);
        builder.free(buffer);
    }
    return builder.finish();
}

constexpr Bytes kRoomy(std::int64_t{1} << 40);
constexpr AllocatorOptions kExpandable{true};

TEST(ExpandableSegments, aFreedBlockGrowsIntoALargerOne)
{
    const Schedule schedule = oneAfterTheOther(kComputed, 30_MiB, kComputed, 50_MiB);
    // Two segments; with expandable segments one of two pages of 20 MiB that gains a third.
    EXPECT_EQ(replayAllocator(schedule, kRoomy).peakReserved, 80_MiB);
    EXPECT_EQ(replayAllocator(schedule, kRoomy, kExpandable).peakReserved, 60_MiB);
}

TEST(ExpandableSegments, smallAllocationsGrowByTwoMebibytes)
{
    const Schedule schedule = oneAfterTheOther(kComputed, 1_KiB, kComputed, 2_KiB);
    EXPECT_EQ(replayAllocator(schedule, kRoomy, kExpandable).peakReserved, 2_MiB);
}

TEST(ExpandableSegments, streamsDoNotShare)
{
    const Schedule schedule = oneAfterTheOther(kGathered, 30_MiB, kComputed, 50_MiB);
    EXPECT_EQ(replayAllocator(schedule, kRoomy, kExpandable).peakReserved, 100_MiB);
}

TEST(ExpandableSegments, pagesGoBackUnderPressure)
{
    const Schedule schedule = oneAfterTheOther(kGathered, 30_MiB, kComputed, 50_MiB);
    const AllocatorReplay replay = replayAllocator(schedule, 70_MiB, kExpandable);
    EXPECT_FALSE(replay.outOfMemory);
    EXPECT_GT(replay.flushes, 0);
    EXPECT_LE(replay.peakReserved, 70_MiB);
    EXPECT_TRUE(replayAllocator(schedule, 50_MiB, kExpandable).outOfMemory); // three pages are needed at once
}

} // namespace
} // namespace shardwright
