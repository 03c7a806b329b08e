// When pipeline stages work: bubbles of the textbooks, and the bound that search prunes by.

#include <algorithm>
#include <map>
#include <tuple>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "planner/parallelism/pipeline_time.hpp"

using namespace shardwright;

namespace {

constexpr double kTiny = 1e-9;

PipelineShape anyShape()
{
    PipelineShape shape;
    shape.schedule = *rc::gen::element(PipelineSchedule::GPipe, PipelineSchedule::OneForwardOneBackward,
                                       PipelineSchedule::Interleaved);
    shape.stages = *rc::gen::inRange(1, 7);
    shape.microBatches = *rc::gen::inRange(1, 20);
    if (shape.schedule == PipelineSchedule::Interleaved) {
        shape.chunks = *rc::gen::inRange(1, 4);
        shape.microBatches *= shape.stages;
    }
    return shape;
}

std::vector<StageSeconds> alike(const PipelineShape& shape, double forward, double backward)
{
    const auto chunks = static_cast<std::size_t>(shape.chunks);
    return std::vector<StageSeconds>(static_cast<std::size_t>(shape.stages),
                                     {std::vector<double>(chunks, forward), std::vector<double>(chunks, backward), 0});
}

std::vector<StageSeconds> anyStages(const PipelineShape& shape)
{
    std::vector<StageSeconds> stages = alike(shape, 0, 0);
    for (StageSeconds& stage : stages) {
        for (double& seconds : stage.forward)
            seconds = *rc::gen::inRange(1, 20);
        for (double& seconds : stage.backward)
            seconds = *rc::gen::inRange(1, 40);
        stage.rest = *rc::gen::inRange(0, 30);
    }
    return stages;
}

} // namespace

TEST(PipelineTime, bubbleIsStagesLessOneOverMicroBatches)
{
    // arXiv 2104.04473 sec. 2.2: (p - 1) / m of the ideal time for GPipe and 1F1B, (p - 1) / (v m) interleaved.
    const struct {
        PipelineShape shape;
        double bubble;
    } rows[] = {{{PipelineSchedule::GPipe, 4, 1, 8}, 3.0 / 8},
                {{PipelineSchedule::OneForwardOneBackward, 4, 1, 8}, 3.0 / 8},
                {{PipelineSchedule::OneForwardOneBackward, 8, 1, 64}, 7.0 / 64},
                {{PipelineSchedule::Interleaved, 4, 2, 8}, 3.0 / (2 * 8)},
                {{PipelineSchedule::Interleaved, 8, 3, 64}, 7.0 / (3 * 64)},
                {{PipelineSchedule::OneForwardOneBackward, 1, 1, 5}, 0}};
    for (const auto& row : rows) {
        const double ideal = static_cast<double>(row.shape.microBatches * row.shape.chunks) * 3;
        const double seconds = pipelineSeconds(row.shape, alike(row.shape, 1, 2), 0);
        EXPECT_NEAR(seconds / ideal - 1, row.bubble, kTiny) << nameOf(row.shape.schedule) << row.shape.stages;
    }
}

TEST(PipelineTime, aSlowStageSetsThePace)
{
    const PipelineShape shape{PipelineSchedule::OneForwardOneBackward, 4, 1, 100};
    std::vector<StageSeconds> stages = alike(shape, 1, 2);
    stages[2] = {{2}, {4}, 0};
    // The third stage: its first forward after two of 1 s, 100 micro-batches of 6 s, two backwards of 2 s behind its
    // last; and the first gradient, which comes 3 s after its first forward, when the second has taken only 2.
    EXPECT_NEAR(pipelineSeconds(shape, stages, 0), 2 * 1 + 100 * 6 + 2 * 2 + (3 - 2), kTiny);
}

TEST(PipelineTime, transfersLengthenEachWayThroughTheStages)
{
    const PipelineShape shape{PipelineSchedule::GPipe, 3, 1, 1};
    EXPECT_NEAR(pipelineSeconds(shape, alike(shape, 1, 2), 0.5), 3 * (1 + 2) + 4 * 0.5, kTiny);
}

RC_GTEST_PROP(PipelineTime, boundNeverExceedsTheSimulation, ())
{
    const PipelineShape shape = anyShape();
    const std::vector<StageSeconds> stages = anyStages(shape);
    const double transfer = *rc::gen::inRange(0, 5);
    RC_ASSERT(pipelineBound(shape, stages, transfer) <= pipelineSeconds(shape, stages, transfer) + kTiny);
}

RC_GTEST_PROP(PipelineTime, boundIsExactForAlikeStagesWithoutTransfers, ())
{
    PipelineShape shape = anyShape();
    const double forward = *rc::gen::inRange(1, 10);
    const double backward = *rc::gen::inRange(1, 10);
    const std::vector<StageSeconds> stages = alike(shape, forward, backward);
    RC_ASSERT(std::abs(pipelineBound(shape, stages, 0) - pipelineSeconds(shape, stages, 0)) < kTiny);
}

RC_GTEST_PROP(PipelineTime, moreWorkNeverTakesLess, ())
{
    const PipelineShape shape = anyShape();
    std::vector<StageSeconds> stages = anyStages(shape);
    const double before = pipelineSeconds(shape, stages, 1);
    stages[static_cast<std::size_t>(*rc::gen::inRange<std::int64_t>(0, shape.stages))].forward[0] += 3;
    RC_ASSERT(pipelineSeconds(shape, stages, 1) >= before);
}

/// A stage does one thing at a time, each as long as it takes, nothing before what it reads has come, and is done when
/// pipelineEnds says.
RC_GTEST_PROP(PipelineTime, playedActionsKeepTheirOrderAndWaitForWhatTheyRead, ())
{
    const PipelineShape shape = anyShape();
    const std::vector<StageSeconds> stages = anyStages(shape);
    const double transfer = *rc::gen::inRange(0, 5);
    const std::vector<PlayedAction> played = playPipeline(shape, stages, transfer);
    RC_ASSERT(static_cast<std::int64_t>(played.size()) == 2 * shape.stages * shape.chunks * shape.microBatches);
    const std::int64_t places = shape.stages * shape.chunks;
    std::vector<double> free(stages.size(), 0);
    std::map<std::tuple<bool, std::int64_t, std::int64_t>, double> ends; // by direction, place and micro-batch
    for (const PlayedAction& each : played) {
        const auto stage = static_cast<std::size_t>(each.stage);
        const auto chunk = static_cast<std::size_t>(each.action.chunk);
        const bool forward = each.action.forward;
        RC_ASSERT(each.start >= free[stage]);
        RC_ASSERT(each.end - each.start == (forward ? stages[stage].forward[chunk] : stages[stage].backward[chunk]));
        free[stage] = each.end;
        ends[{forward, each.action.chunk * shape.stages + each.stage, each.action.microBatch}] = each.end;
    }
    RC_ASSERT(free == pipelineEnds(shape, stages, transfer));
    const double hop = shape.stages > 1 ? transfer : 0;
    for (const PlayedAction& each : played) {
        const std::int64_t place = each.action.chunk * shape.stages + each.stage;
        const std::int64_t micro = each.action.microBatch;
        if (each.action.forward && place > 0)
            RC_ASSERT(each.start >= (ends[{true, place - 1, micro}] + hop));
        if (!each.action.forward && place + 1 == places)
            RC_ASSERT(each.start >= (ends[{true, place, micro}]));
        if (!each.action.forward && place + 1 < places)
            RC_ASSERT(each.start >= (ends[{false, place + 1, micro}] + hop));
    }
}
