#pragma once

// Micro-steps through a pipeline stage for frameworks whose rules know micro-steps only.

#include <functional>
#include <map>

#include "planner/activations/activation_model.hpp"
#include "planner/frameworks/sharding.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/parallelism/pipeline_schedule.hpp"

namespace shardwright {

/// What a framework does around the backward of each micro-batch.
struct BackwardHooks {
    std::function<void(const MicroStep&)> before;
    std::function<void(const MicroStep&)> after; // the micro-batch's own buffers still stand
};

/// Emits all micro-steps of a stage with one chunk in the order of its pipeline schedule, segment by segment.
void emitPipeline(ScheduleBuilder& builder, const ActivationModel& activations, const ModelSlice& slice,
                  const PipelineShape& shape, StageObserver& observer, const BackwardHooks& hooks);

} // namespace shardwright
