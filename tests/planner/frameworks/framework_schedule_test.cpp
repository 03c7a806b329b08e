// What holds for every framework's schedule, whatever the numbers.

#include <map>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright {
namespace {

const BufferSpec& specOf(const Schedule& schedule, BufferId buffer)
{
    const auto bufferClass = static_cast<std::size_t>(schedule.buffers[static_cast<std::size_t>(buffer)]);
    return *schedule.sizes.buffers[bufferClass].spec;
}

/// The buffers live after the last operation.
std::vector<BufferId> survivors(const Schedule& schedule)
{
    std::map<BufferId, bool> live;
    for (const BufferEvent& event : schedule.events)
        if (event.change != BufferChange::Reclaim)
            live[event.buffer] = event.change == BufferChange::Allocate;
    std::vector<BufferId> ids;
    for (const auto& [buffer, alive] : live)
        if (alive)
            ids.push_back(buffer);
    return ids;
}

/// The schedule with its step played twice: the second finds what the first left.
Schedule twoSteps(const Schedule& one)
{
    Schedule two = one;
    std::map<BufferId, BufferId> renamed;
    std::vector<BufferId> carried; // transient buffers that the first step left
    for (const BufferId buffer : survivors(one))
        if (specOf(one, buffer).lifetime == Lifetime::Transient)
            carried.push_back(buffer);
    const std::uint32_t initEnd = one.segments.front().endOp;
    std::map<BufferId, bool> fromInit;
    for (std::uint32_t op = 0; op < initEnd; ++op)
        for (std::uint32_t i = 0; i < one.ops[op].eventCount; ++i)
            fromInit[one.events[one.ops[op].firstEvent + i].buffer] = true;
    for (std::size_t s = 1; s < one.segments.size(); ++s) {
        Segment segment = one.segments[s];
        segment.firstOp = static_cast<std::uint32_t>(two.ops.size());
        for (std::uint32_t o = one.segments[s].firstOp; o < one.segments[s].endOp; ++o) {
            Op op = one.ops[o];
            op.firstEvent = static_cast<std::uint32_t>(two.events.size());
            for (std::uint32_t i = 0; i < op.eventCount; ++i) {
                BufferEvent event = one.events[one.ops[o].firstEvent + i];
                if (event.change == BufferChange::Allocate) {
                    renamed[event.buffer] = static_cast<BufferId>(two.buffers.size());
                    two.buffers.push_back(one.buffers[static_cast<std::size_t>(event.buffer)]);
                }
                if (const auto known = renamed.find(event.buffer); known != renamed.end()) {
                    event.buffer = known->second;
                } else if (fromInit[event.buffer] && !carried.empty()) { // initialisation's stand-in for it
                    event.buffer = carried.back();
                    carried.pop_back();
                }
                two.events.push_back(event);
            }
            two.ops.push_back(op);
        }
        segment.endOp = static_cast<std::uint32_t>(two.ops.size());
        two.segments.push_back(segment);
    }
    return two;
}

/// Varies what training sets: accumulation, checkpointing, precision, held logits.
std::vector<SmallInput> variantsOf(const StrategyOptions& options)
{
    std::vector<SmallInput> all;
    for (const std::int64_t accumulation : {1, 2, 4})
        for (const bool held : {false, true})
            for (const bool tied : {false, true})
                for (const bool mixed : {true, false}) {
                    SmallInput small(options, 4, 2);
                    small.model = llamaOf({8, 3, 2, 4, 12, 10, tied});
                    small.training.gradientAccumulation = accumulation;
                    small.training.holdsLogits = held;
                    if (!mixed)
                        small.training.precision.mixed.reset();
                    small.training.checkpointing = held ? Checkpointing::Full : Checkpointing::None;
                    for (const int segment : {1, 2}) {
                        small.training.checkpointSegment = segment;
                        if ((held || segment == 1) && refusals(small.input()).empty())
                            all.push_back(small);
                    }
                }
    return all;
}

TEST(EverySchedule, EndsAStepWithWhatItKeepsAndNothingElse)
{
    for (const auto& [name, options] : everyStrategy())
        for (const SmallInput& small : variantsOf(options)) {
            const auto rules = small.rules();
            const Schedule schedule = rules->emit();
            for (const BufferId buffer : survivors(schedule)) {
                const BufferSpec& spec = specOf(schedule, buffer);
                const bool heldLogits = small.training.holdsLogits && spec.category == Category::Logits;
                EXPECT_TRUE(spec.lifetime != Lifetime::Transient || heldLogits) << name << ": " << spec.name;
            }
            if (small.training.holdsLogits)
                continue;
            // On the GPU that is parameters, master weights and moments; gradients are gone. DDP keeps its buckets.
            const ModelStates states = rules->modelStates();
            Bytes kept = states.parameters + states.masterParameters + states.optimizerStates;
            if (name == "ddp")
                kept += states.gradients;
            EXPECT_EQ(replayMemory(schedule, false).gpuHeld, kept) << name;
        }
}

TEST(EverySchedule, NeedsNoMoreInTheSecondStepThanInTheFirst)
{
    for (const auto& [name, options] : everyStrategy())
        for (const SmallInput& small : variantsOf(options)) {
            const Schedule once = small.schedule();
            const Schedule twice = twoSteps(once);
            const MemoryReplay first = replayMemory(once, false);
            const MemoryReplay both = replayMemory(twice, false);
            EXPECT_EQ(first.gpu.bytes, both.gpu.bytes) << name;
            EXPECT_EQ(first.gpuHeld, both.gpuHeld) << name;
            EXPECT_EQ(first.hostPinned.bytes, both.hostPinned.bytes) << name;
        }
}

/// What record_stream defers is reclaimed once, after it was let go of, within its step.
TEST(EverySchedule, ReclaimsWhatItDefers)
{
    for (const auto& [name, options] : everyStrategy())
        for (const SmallInput& small : variantsOf(options)) {
            const Schedule schedule = small.schedule();
            std::map<BufferId, int> pending;
            for (const BufferEvent& event : schedule.events) {
                const int change = event.change == BufferChange::FreeDeferred ? 1
                                   : event.change == BufferChange::Reclaim    ? -1
                                                                              : 0;
                pending[event.buffer] += change;
                EXPECT_EQ(pending[event.buffer], change > 0 ? 1 : 0) << name;
            }
            for (const auto& [buffer, count] : pending)
                EXPECT_EQ(count, 0) << name << ": " << specOf(schedule, buffer).name;
        }
}

Bytes peakOf(const SmallInput& small)
{
    return small.memory().gpu.bytes;
}

// Dimensions are multiples of 16 and no padding differs between group sizes up to 16.
RC_GTEST_PROP(Monotony, MoreRanksNeverNeedMore, ())
{
    const auto& [name, options] = *rc::gen::elementOf(everyStrategy());
    const std::int64_t blocks = *rc::gen::inRange(2, 6);
    const std::int64_t hidden = 16 * *rc::gen::inRange(1, 5);
    const int ranks = 1 << *rc::gen::inRange(1, 4);
    const auto at = [&, &o = options](int gpus) {
        SmallInput small(o, gpus);
        small.model = llamaOf({hidden, blocks, 2, 16, 32, 64, false});
        return peakOf(small);
    };
    RC_TAG(name);
    RC_ASSERT(at(2 * ranks) <= at(ranks));
}

RC_GTEST_PROP(Monotony, BiggerMicroBatchesNeverNeedLess, ())
{
    const auto& [name, options] = *rc::gen::elementOf(everyStrategy());
    SmallInput small(options, *rc::gen::inRange(1, 5), 2);
    small.training.microBatch = *rc::gen::inRange(1, 6);
    small.training.checkpointing = *rc::gen::element(Checkpointing::None, Checkpointing::Full);
    small.training.gradientAccumulation = *rc::gen::inRange(1, 4);
    RC_PRE(refusals(small.input()).empty());
    const Bytes before = peakOf(small);
    small.training.microBatch += *rc::gen::inRange(1, 4);
    RC_TAG(name);
    RC_ASSERT(before <= peakOf(small));
}

// At least four blocks: with fewer, FULL_SHARD has as many unsharded units in flight as the others keep.
RC_GTEST_PROP(Monotony, ShardingMoreNeverNeedsMore, ())
{
    SmallInput small(fsdp1(ShardingStrategy::FullShard), 1 << *rc::gen::inRange(1, 4));
    small.model =
        llamaOf({32, *rc::gen::inRange(4, 9), 2, 16, 16 * *rc::gen::inRange(1, 5), 64, *rc::gen::arbitrary<bool>()});
    small.training.microBatch = *rc::gen::inRange(1, 4);
    const Bytes full = peakOf(small);
    small.strategy.options = fsdp1(ShardingStrategy::ShardGradOp);
    const Bytes gradients = peakOf(small);
    small.strategy.options = fsdp1(ShardingStrategy::NoShard);
    RC_ASSERT(full <= gradients);
    RC_ASSERT(gradients <= peakOf(small));
}

RC_GTEST_PROP(Monotony, OffloadingNeverNeedsMoreOfTheGpu, ())
{
    const bool second = *rc::gen::arbitrary<bool>();
    SmallInput small(Fsdp1Options{}, 1 << *rc::gen::inRange(1, 4));
    small.model = llamaOf({32, *rc::gen::inRange(2, 6), 2, 16, 48, 64, false});
    small.training.microBatch = *rc::gen::inRange(1, 4);
    Fsdp1Options one;
    Fsdp2Options two;
    const auto peak = [&](bool offload) {
        one.offloadParams = two.offloadParams = offload;
        small.strategy.options = second ? StrategyOptions(two) : StrategyOptions(one);
        return peakOf(small);
    };
    const Bytes offloaded = peak(true);
    RC_ASSERT(small.memory().hostPinned.bytes > Bytes(0));
    RC_ASSERT(offloaded <= peak(false));
}

} // namespace
} // namespace shardwright
