#pragma once

// The plan of a job whose model is split: every stage's, and the one that the job stands or falls with.

#include "planner/parallelism/pipeline_time.hpp"
#include "planner/plan_builder.hpp"

namespace shardwright {

/// The plan of the rank that needs the most memory over all pipeline stages; what the others need stands in its
/// remarks. Of a combination that is not refused.
Plan buildStagePlans(const PlanInput& input, const PlanDetail& detail);

/// The same where the stages are there already.
Plan buildStagePlans(const PlanInput& input, const std::vector<ModelSlice>& slices,
                     const std::vector<StageSchedule>& schedules, const PlanDetail& detail);

} // namespace shardwright
