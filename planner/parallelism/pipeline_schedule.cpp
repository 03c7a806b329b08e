#include "planner/parallelism/pipeline_schedule.hpp"

#include <algorithm>

#include "planner/frameworks/sharding.hpp"

namespace shardwright {

namespace {

/// Forwards before the first backward.
std::int64_t warmUp(const PipelineShape& shape, std::int64_t stage)
{
    const std::int64_t all = checkedMultiply(shape.microBatches, shape.chunks);
    const std::int64_t behind = shape.stages - 1 - stage;
    if (shape.schedule == PipelineSchedule::GPipe)
        return all;
    if (shape.chunks == 1)
        return std::min(all, behind);
    return std::min(all, 2 * behind + (shape.chunks - 1) * shape.stages);
}

/// The `index`-th forward (or backward) of a stage: rounds of p micro-batches through each chunk in turn.
PipelineAction passAt(const PipelineShape& shape, std::int64_t index, bool forward)
{
    if (shape.chunks == 1)
        return {forward, 0, index};
    const std::int64_t round = shape.stages * shape.chunks;
    const std::int64_t within = index % round;
    const std::int64_t chunk = within / shape.stages;
    return {forward, static_cast<int>(forward ? chunk : shape.chunks - 1 - chunk),
            index / round * shape.stages + within % shape.stages};
}

} // namespace

PipelineShape pipelineShape(const Parallelism& parallelism, std::int64_t microBatches)
{
    return {parallelism.schedule, parallelism.pipeline, parallelism.virtualStages, microBatches};
}

std::vector<PipelineAction> pipelineActions(const PipelineShape& shape, std::int64_t stage)
{
    const std::int64_t all = checkedMultiply(shape.microBatches, shape.chunks);
    const std::int64_t ahead = warmUp(shape, stage);
    std::vector<PipelineAction> actions;
    actions.reserve(static_cast<std::size_t>(2 * all));
    for (std::int64_t i = 0; i < ahead; ++i)
        actions.push_back(passAt(shape, i, true));
    for (std::int64_t i = 0; i < all; ++i) {
        if (ahead + i < all)
            actions.push_back(passAt(shape, ahead + i, true));
        actions.push_back(passAt(shape, i, false));
    }
    return actions;
}

PipelineProgram pipelineProgram(const PipelineShape& shape, std::int64_t stage)
{
    PipelineShape written = shape;
    const std::int64_t ahead = warmUp(shape, stage);
    const std::int64_t round = shape.chunks == 1 ? 1 : shape.stages * shape.chunks; // pairs after which all is alike
    const std::int64_t perRound = shape.chunks == 1 ? 1 : shape.stages;             // micro-batches
    const std::int64_t pairs = shape.microBatches * shape.chunks - ahead;
    // The first round has the first forward of each chunk, the last the last backward.
    std::int64_t repeat = (pairs - 2 * round) / round;
    if (pairs < 3 * round)
        repeat = 0;
    PipelineProgram program;
    if (repeat > 0)
        written.microBatches -= (repeat - 1) * perRound;
    program.actions = pipelineActions(written, stage);
    program.lastMicroBatch = written.microBatches - 1;
    if (repeat == 0) {
        program.stretches = {{"micro-steps", 0, program.actions.size(), 1}};
        return program;
    }
    const auto middle = static_cast<std::size_t>(ahead + 2 * (pairs - (repeat + 1) * round));
    const std::size_t end = middle + static_cast<std::size_t>(2 * round);
    program.stretches = {{"first micro-steps", 0, middle, 1},
                         {shape.stages == 1 ? kMiddleMicroSteps : kMiddleRounds, middle, end, repeat},
                         {"last micro-steps", end, program.actions.size(), 1}};
    return program;
}

std::vector<std::int64_t> passesBeforeBackward(const PipelineShape& shape, std::int64_t stage)
{
    const std::int64_t begun = mostInFlight(shape, stage);
    const std::int64_t round = shape.chunks == 1 ? begun : shape.stages; // through one chunk, then the next
    std::vector<std::int64_t> passes;
    for (std::int64_t chunk = 0; chunk < shape.chunks; ++chunk) {
        const std::int64_t rounds = begun / (round * shape.chunks);
        const std::int64_t left = begun % (round * shape.chunks) - chunk * round;
        passes.push_back(rounds * round + std::clamp<std::int64_t>(left, 0, round));
    }
    return passes;
}

std::int64_t mostInFlight(const PipelineShape& shape, std::int64_t stage)
{
    const std::int64_t all = checkedMultiply(shape.microBatches, shape.chunks);
    return std::min(all, warmUp(shape, stage) + 1);
}

} // namespace shardwright
