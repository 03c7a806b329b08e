// The order of a pipeline stage's work.

#include <set>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "planner/parallelism/pipeline_schedule.hpp"

using namespace shardwright;

namespace {

PipelineShape anyShape()
{
    PipelineShape shape;
    shape.schedule = *rc::gen::element(PipelineSchedule::GPipe, PipelineSchedule::OneForwardOneBackward,
                                       PipelineSchedule::Interleaved);
    shape.stages = *rc::gen::inRange(1, 9);
    shape.microBatches = *rc::gen::inRange(1, 40);
    if (shape.schedule == PipelineSchedule::Interleaved) {
        shape.chunks = *rc::gen::inRange(1, 5);
        shape.microBatches *= shape.stages;
    }
    return shape;
}

/// The program written out in full again.
std::vector<PipelineAction> unrolled(const PipelineShape& shape, const PipelineProgram& program)
{
    std::vector<PipelineAction> actions;
    std::int64_t skipped = 0;
    for (const PipelineStretch& stretch : program.stretches) {
        const std::int64_t perRound = shape.chunks == 1 ? 1 : shape.stages;
        for (std::int64_t round = 0; round < stretch.repeat; ++round)
            for (std::size_t i = stretch.first; i < stretch.end; ++i) {
                PipelineAction action = program.actions[i];
                action.microBatch += skipped + round * perRound;
                actions.push_back(action);
            }
        skipped += (stretch.repeat - 1) * perRound;
    }
    return actions;
}

} // namespace

TEST(PipelineSchedule, oneForwardOneBackwardByHand)
{
    // Three stages, four micro-batches (PipeDream-Flush, arXiv 2104.04473 fig. 4).
    const PipelineShape shape{PipelineSchedule::OneForwardOneBackward, 3, 1, 4};
    const auto text = [&](std::int64_t stage) {
        std::string written;
        for (const PipelineAction& action : pipelineActions(shape, stage))
            written += (action.forward ? "F" : "B") + std::to_string(action.microBatch) + " ";
        return written;
    };
    EXPECT_EQ(text(0), "F0 F1 F2 B0 F3 B1 B2 B3 ");
    EXPECT_EQ(text(1), "F0 F1 B0 F2 B1 F3 B2 B3 ");
    EXPECT_EQ(text(2), "F0 B0 F1 B1 F2 B2 F3 B3 ");
}

TEST(PipelineSchedule, interleavedByHand)
{
    // Two stages of two chunks, four micro-batches: the warm-up is 2 (p - s - 1) + (v - 1) p forwards.
    const PipelineShape shape{PipelineSchedule::Interleaved, 2, 2, 4};
    const auto text = [&](std::int64_t stage) {
        std::string written;
        for (const PipelineAction& action : pipelineActions(shape, stage))
            written += (action.forward ? "F" : "B") + std::to_string(action.microBatch) + "abc"[action.chunk] + " ";
        return written;
    };
    EXPECT_EQ(text(0), "F0a F1a F0b F1b F2a B0b F3a B1b F2b B0a F3b B1a B2b B3b B2a B3a ");
    EXPECT_EQ(text(1), "F0a F1a F0b B0b F1b B1b F2a B0a F3a B1a F2b B2b F3b B3b B2a B3a ");
}

RC_GTEST_PROP(PipelineSchedule, everyMicroBatchGoesForwardAndThenBackwardOnceThroughEachChunk, ())
{
    const PipelineShape shape = anyShape();
    const auto stage = *rc::gen::inRange<std::int64_t>(0, shape.stages);
    std::set<std::pair<int, std::int64_t>> forward;
    std::set<std::pair<int, std::int64_t>> backward;
    std::int64_t inFlight = 0;
    std::int64_t most = 0;
    for (const PipelineAction& action : pipelineActions(shape, stage)) {
        const std::pair<int, std::int64_t> what{action.chunk, action.microBatch};
        if (action.forward) {
            RC_ASSERT(forward.insert(what).second);
            RC_ASSERT(action.chunk == 0 || forward.count({action.chunk - 1, action.microBatch}) == 1);
        } else {
            RC_ASSERT(forward.count(what) == 1);
            RC_ASSERT(backward.insert(what).second);
            RC_ASSERT(action.chunk + 1 == shape.chunks || backward.count({action.chunk + 1, action.microBatch}) == 1);
        }
        inFlight += action.forward ? 1 : -1;
        most = std::max(most, inFlight);
    }
    RC_ASSERT(static_cast<std::int64_t>(forward.size()) == shape.microBatches * shape.chunks);
    RC_ASSERT(backward == forward);
    RC_ASSERT(most == mostInFlight(shape, stage));
}

RC_GTEST_PROP(PipelineSchedule, shortProgramUnrollsToTheSame, ())
{
    const PipelineShape shape = anyShape();
    const auto stage = *rc::gen::inRange<std::int64_t>(0, shape.stages);
    const PipelineProgram program = pipelineProgram(shape, stage);
    RC_ASSERT(unrolled(shape, program) == pipelineActions(shape, stage));
}

RC_GTEST_PROP(PipelineSchedule, passesBeforeTheFirstBackwardAreThoseOfTheActions, ())
{
    const PipelineShape shape = anyShape();
    const std::int64_t stage = *rc::gen::inRange<std::int64_t>(0, shape.stages);
    std::vector<std::int64_t> passes(static_cast<std::size_t>(shape.chunks), 0);
    for (const PipelineAction& action : pipelineActions(shape, stage)) {
        if (!action.forward)
            break;
        ++passes[static_cast<std::size_t>(action.chunk)];
    }
    RC_ASSERT(passesBeforeBackward(shape, stage) == passes);
}
