// Checkpoints of several blocks where parameters are gathered unit by unit: what is gathered once more, by hand.

#include <gtest/gtest.h>

#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright {
namespace {

constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kFfn = 24;
constexpr std::int64_t kVocab = 2000;
// Query and output 16 x 16 each, key and value of one head 16 x 8 each, three matrices of the MLP, two norms.
constexpr std::int64_t kBlock = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * kFfn + 2 * 16;

SmallInput jobOf(StrategyOptions options, std::int64_t blocks, int segment)
{
    SmallInput job(std::move(options), 4);
    job.model = llamaOf({kHidden, blocks, 2, 8, kFfn, kVocab, false});
    job.training.checkpointing = Checkpointing::Full;
    job.training.checkpointSegment = segment;
    return job;
}

std::int64_t gathersOf(const Schedule& schedule)
{
    std::int64_t gathers = 0;
    for (const Op& op : schedule.ops)
        gathers += op.kind == OpKind::AllGather ? 1 : 0;
    return gathers;
}

/// Most blocks whose unsharded parameters are there at once.
std::int64_t mostUnsharded(const Schedule& schedule)
{
    std::int64_t live = 0;
    std::int64_t most = 0;
    for (const BufferEvent& event : schedule.events) {
        const auto id = schedule.buffers[static_cast<std::size_t>(event.buffer)];
        const BufferClass& of = schedule.sizes.buffers[static_cast<std::size_t>(id)];
        if (of.spec->category != Category::GatheredParameters || of.bytes != Bytes(2 * kBlock) ||
            of.spec->name.find("unsharded") == std::string_view::npos)
            continue;
        live += event.change == BufferChange::Allocate ? 1 : -1;
        most = std::max(most, live);
    }
    return most;
}

/// Blocks that are recomputed before the backward of a later one.
std::int64_t recomputedApart(std::int64_t blocks, std::int64_t segment)
{
    std::int64_t apart = 0;
    for (std::int64_t first = 0; first < blocks; first += segment)
        apart += std::min(segment, blocks - first) - 1;
    return apart;
}

struct Case {
    std::int64_t blocks;
    int segment;
};
constexpr Case kCases[] = {{8, 1}, {8, 2}, {8, 4}, {8, 8}, {8, 3}, {7, 3}, {7, 9}, {1, 4}};

TEST(GatheredSegments, ofFsdp1GatherAllBlocksButTheLastOnceMore)
{
    for (const Case& one : kCases) {
        const std::int64_t apart = recomputedApart(one.blocks, one.segment);
        // The root once; each block for its forward and for its backward.
        for (const BackwardPrefetch prefetch :
             {BackwardPrefetch::Pre, BackwardPrefetch::Post, BackwardPrefetch::None}) {
            Fsdp1Options options;
            options.backwardPrefetch = prefetch;
            EXPECT_EQ(gathersOf(jobOf(options, one.blocks, one.segment).schedule()), 1 + 2 * one.blocks + apart)
                << one.blocks << " blocks by " << one.segment;
        }
        // SHARD_GRAD_OP keeps what forward has gathered.
        EXPECT_EQ(gathersOf(jobOf(fsdp1(ShardingStrategy::ShardGradOp), one.blocks, one.segment).schedule()),
                  1 + one.blocks);
    }
}

TEST(GatheredSegments, ofFsdp2StayUnshardedUntilTheirBackward)
{
    for (const Case& one : kCases) {
        // Embedding and blocks twice, norm and head, which stay, once: as often as without segments.
        const SmallInput job = jobOf(Fsdp2Options{}, one.blocks, one.segment);
        EXPECT_EQ(gathersOf(job.schedule()), 2 + 2 * one.blocks + 1) << one.blocks << " blocks by " << one.segment;
        Fsdp2Options keeps;
        keeps.reshardAfterForward = false;
        EXPECT_EQ(gathersOf(jobOf(keeps, one.blocks, one.segment).schedule()), 1 + one.blocks + 1);

        // Recomputed all, before the first of them has its backward.
        EXPECT_EQ(mostUnsharded(job.schedule()), std::min<std::int64_t>(one.segment, one.blocks));
    }
}

TEST(GatheredSegments, ofZero3GatherWhatIsNotUsedAgainSoon)
{
    DeepSpeedOptions options;
    options.stage = 3;
    options.prefetchBucketSize = 0;
    options.paramPersistenceThreshold = 0;
    // A recomputed block is less than two blocks away from its backward, the one before it at least two; between
    // forward and recomputation of the last lies the head, with more than that.
    options.maxReuseDistance = 2 * kBlock;
    static_assert(2 * kVocab * kHidden > 2 * kBlock);
    for (const Case& one : kCases) {
        const std::int64_t apart = recomputedApart(one.blocks, one.segment);
        const SmallInput job = jobOf(options, one.blocks, one.segment);
        // Embedding and final norm in forward and in backward, the head, used again at once, in forward.
        const std::int64_t elements =
            2 * kVocab * kHidden + 2 * kHidden + kVocab * kHidden + kBlock * (2 * one.blocks + apart);
        Bytes gathered;
        for (const CollectiveTraffic& collective : job.traffic().collectives)
            if (collective.op == OpKind::AllGather)
                gathered += collective.payloadBytes;
        EXPECT_EQ(gathered, Bytes(2 * elements)) << one.blocks << " blocks by " << one.segment;
    }
}

TEST(GatheredSegments, ofAboutTheSquareRootKeepLeast)
{
    // L / k inputs are kept, and k blocks at once: least for k about the square root of L (arXiv 1604.06174).
    DeepSpeedOptions zero3;
    zero3.stage = 3;
    for (const StrategyOptions& options :
         {StrategyOptions(Fsdp1Options{}), StrategyOptions(Fsdp2Options{}), StrategyOptions(zero3)}) {
        const auto kept = [&](int segment) {
            SmallInput job = jobOf(options, 64, segment);
            job.model = llamaOf({64, 64, 4, 16, 128, 64, false});
            job.training.sequenceLength = 512;
            const MemoryReplay replay = replayMemory(job.schedule(), true);
            Bytes most;
            for (const CurvePoint& point : replay.curve)
                most = std::max(most, point.byCategory[static_cast<std::size_t>(Category::Activations)]);
            return most;
        };
        Bytes least = kept(1);
        int best = 1;
        for (const int segment : {2, 4, 8, 16, 32, 64})
            if (const Bytes bytes = kept(segment); bytes < least) {
                EXPECT_EQ(best, segment / 2); // falls until there, and then no more
                least = bytes;
                best = segment;
            }
        EXPECT_GT(best, 1);
        EXPECT_LT(best, 16);
        EXPECT_GT(kept(64), kept(1));
    }
}

} // namespace
} // namespace shardwright
