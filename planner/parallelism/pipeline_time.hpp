#pragma once

// When a pipeline's stages work, and what waiting for each other costs.

#include <memory>
#include <optional>
#include <vector>

#include "core/plan.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/parallelism/pipeline_schedule.hpp"

namespace shardwright {

/// Seconds of one stage: forward and backward of each chunk for one micro-batch, and what its step takes besides them
/// (gradients reduced, the optimizer).
struct StageSeconds {
    std::vector<double> forward; // by chunk
    std::vector<double> backward;
    double rest = 0;

    double perMicroBatch() const;
};

/// An action of a stage, when it ran.
struct PlayedAction {
    std::int64_t stage = 0;
    PipelineAction action;
    double start = 0; // seconds
    double end = 0;
};

/// All actions of all stages, each as early as in pipelineEnds; those of a stage in its order.
std::vector<PlayedAction> playPipeline(const PipelineShape& shape, const std::vector<StageSeconds>& stages,
                                       double transfer);

/// When each stage has ended its last backward: every action waits for the stage to be free and for what it reads,
/// which takes `transfer` seconds from one stage to another.
std::vector<double> pipelineEnds(const PipelineShape& shape, const std::vector<StageSeconds>& stages, double transfer);

/// Seconds of a step: the last stage to be done with everything.
double pipelineSeconds(const PipelineShape& shape, const std::vector<StageSeconds>& stages, double transfer);

/// Never more than pipelineSeconds, in constant time a stage, and equal to it where all stages take alike long and
/// transfers nothing: a stage cannot begin before the first micro-batch has come through the stages before it, works
/// on every micro-batch, and the last one's gradient goes back through them.
double pipelineBound(const PipelineShape& shape, const std::vector<StageSeconds>& stages, double transfer);
/// The same where stages are of few kinds: `kindOf` by stage.
double pipelineBound(const PipelineShape& shape, const std::vector<StageSeconds>& kinds,
                     const std::vector<std::size_t>& kindOf, double transfer);

/// One stage's rules and the schedule that they emit.
struct StageSchedule {
    std::unique_ptr<FrameworkRules> rules;
    Schedule schedule;
};

/// Those of the stages of `slices` (sliceModel).
std::vector<StageSchedule> emitStages(const PlanInput& input, const std::vector<ModelSlice>& slices);

/// The step of a job cut into the stages of `slices`: each stage's schedule simulated on its own, then all
/// of them together. Breakdown: of the stage that sets the pace, the bubble what it waits for others, what collectives
/// take from its computing among `other` as without a pipeline. Nothing where the
/// cluster lacks what an operation runs on.
std::optional<StepTime> pipelineStep(const PlanInput& input, const std::vector<ModelSlice>& slices,
                                     const std::vector<StageSchedule>& schedules);

/// The same step stage by stage, for drawing it.
struct PipelineTimeline {
    std::vector<PlayedAction> actions;
    std::vector<double> rest; // by stage: what its step takes behind its last action
    double seconds = 0;
};

std::optional<PipelineTimeline> pipelineTimeline(const PlanInput& input, const std::vector<ModelSlice>& slices,
                                                 const std::vector<StageSchedule>& schedules);

/// Its seconds alone, at a third of the price.
std::optional<double> pipelineStepSeconds(const PlanInput& input, const std::vector<ModelSlice>& slices,
                                          const std::vector<StageSchedule>& schedules);

} // namespace shardwright
