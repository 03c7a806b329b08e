// Checkpoints of several blocks: L / k inputs are kept and k blocks computed again together.

#include <cmath>

#include <gtest/gtest.h>

#include "core/catalogue.hpp"
#include "core/cluster_file.hpp"
#include "planner/plan_builder.hpp"
#include "planner/readers/closed_form.hpp"
#include "tests/planner/frameworks/small_input.hpp"

using namespace shardwright;

namespace {

SmallInput jobOf(std::int64_t blocks, int segment)
{
    SmallInput job(DdpOptions{}, 8);
    job.model = llamaOf({64, blocks, 4, 16, 128, 64, false});
    job.training.sequenceLength = 512;
    job.training.checkpointing = Checkpointing::Full;
    job.training.checkpointSegment = segment;
    return job;
}

/// Most bytes of activations at once, without what one block alone needs for its own backward.
double activations(std::int64_t blocks, int segment)
{
    const MemoryReplay replay = replayMemory(jobOf(blocks, segment).schedule(), true);
    Bytes most;
    for (const CurvePoint& point : replay.curve)
        most = std::max(most, point.byCategory[static_cast<std::size_t>(Category::Activations)]);
    return most.asDouble();
}

} // namespace

TEST(CheckpointSegment, closedFormAgreesWithReplay)
{
    for (const int segment : {1, 2, 3, 5, 8})
        for (const std::int64_t accumulation : {1, 3}) {
            SmallInput job = jobOf(8, segment);
            job.training.gradientAccumulation = accumulation;
            ASSERT_TRUE(refusals(job.input()).empty());
            ClosedForm form(job.input());
            EXPECT_EQ(form.evaluate(job.input()).peakAllocated, job.memory().gpu.bytes) << segment;
        }
}

TEST(CheckpointSegment, ofSquareRootManyBlocksTakesMemoryThatGrowsWithTheSquareRoot)
{
    // O(L) -> O(sqrt L), Chen et al., arXiv 1604.06174: four times the blocks, twice the memory.
    const auto grown = [](auto segmentOf) { return activations(256, segmentOf(256)) / activations(64, segmentOf(64)); };
    const double bySegments = grown(
        [](std::int64_t blocks) { return static_cast<int>(std::lround(std::sqrt(static_cast<double>(blocks)))); });
    EXPECT_NEAR(bySegments, 2, 0.1);
    // A checkpoint a block keeps every input: in the limit four times; what one block needs does not grow.
    const double byBlocks = grown([](std::int64_t) { return 1; });
    EXPECT_GT(byBlocks, 3);
    EXPECT_LE(byBlocks, 4);
}

TEST(CheckpointSegment, keepsOneInputASegmentAndComputesItsBlocksAgain)
{
    // 12 blocks in segments of 4: what is kept between forward and backward falls from 12 inputs to 3, one input being
    // 512 tokens of 64 elements of 2 bytes.
    const auto kept = [](int segment) {
        const Schedule schedule = jobOf(12, segment).schedule();
        std::int64_t live = 0;
        for (const Op& op : schedule.ops) {
            if (op.phase == Phase::Loss)
                return live;
            for (std::uint32_t i = op.firstEvent; i < op.firstEvent + op.eventCount; ++i) {
                const BufferEvent& event = schedule.events[i];
                const auto id = schedule.buffers[static_cast<std::size_t>(event.buffer)];
                const BufferClass& of = schedule.sizes.buffers[static_cast<std::size_t>(id)];
                if (of.spec->category == Category::Activations)
                    live += event.change == BufferChange::Allocate ? of.bytes.count()
                            : event.change == BufferChange::Free   ? -of.bytes.count()
                                                                   : 0;
            }
        }
        return live;
    };
    EXPECT_EQ(kept(1) - kept(4), 9 * 512 * 64 * 2);
    const auto recomputed = [](int segment) {
        const Schedule schedule = jobOf(12, segment).schedule();
        std::vector<int> layers;
        for (const Op& op : schedule.ops)
            if (op.kind == OpKind::Recompute && (layers.empty() || layers.back() != op.layer))
                layers.push_back(op.layer);
        return layers;
    };
    const std::vector<int> order = recomputed(4);
    ASSERT_EQ(order.size(), 12U); // every block once
    EXPECT_EQ(std::vector<int>(order.begin(), order.begin() + 4), (std::vector<int>{9, 10, 11, 12}));
}
