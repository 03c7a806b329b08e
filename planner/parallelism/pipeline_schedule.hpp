#pragma once

// The order in which a pipeline stage works: forward and backward of its chunks, micro-batch by micro-batch.
// GPipe (arXiv 1811.06965), 1F1B (PipeDream-Flush, arXiv 2006.09503) and its interleaved form (arXiv 2104.04473 sec.
// 2.2), as megatron/core/pipeline_parallel/schedules.py runs them.

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/strategy.hpp"

namespace shardwright {

struct PipelineShape {
    PipelineSchedule schedule = PipelineSchedule::OneForwardOneBackward;
    std::int64_t stages = 1;
    std::int64_t chunks = 1; // a stage
    std::int64_t microBatches = 1;
};

PipelineShape pipelineShape(const Parallelism& parallelism, std::int64_t microBatches);

struct PipelineAction {
    bool forward = true;
    int chunk = 0;
    std::int64_t microBatch = 0;

    bool operator==(const PipelineAction&) const = default;
};

/// What `stage` does in one optimizer step, in order.
std::vector<PipelineAction> pipelineActions(const PipelineShape& shape, std::int64_t stage);

/// The alike rounds in the middle of a stage's step.
constexpr std::string_view kMiddleRounds = "rounds between";

/// A stretch of actions that happens `repeat` times alike, micro-batches apart.
struct PipelineStretch {
    std::string_view name;
    std::size_t first = 0; // into the actions
    std::size_t end = 0;
    std::int64_t repeat = 1;
};

/// The same in short: of the alike micro-steps in the middle only one round is written out. `actions` number the
/// micro-batches as if there were no more than those written out; the last one of all is `lastMicroBatch`.
struct PipelineProgram {
    std::vector<PipelineAction> actions;
    std::vector<PipelineStretch> stretches;
    std::int64_t lastMicroBatch = 0;
};

PipelineProgram pipelineProgram(const PipelineShape& shape, std::int64_t stage);

/// How many micro-batches have gone forward through each chunk of a stage when it begins its first backward.
std::vector<std::int64_t> passesBeforeBackward(const PipelineShape& shape, std::int64_t stage);

/// Most micro-batches (chunks of them, when interleaved) whose activations a stage holds at a time.
std::int64_t mostInFlight(const PipelineShape& shape, std::int64_t stage);

} // namespace shardwright
