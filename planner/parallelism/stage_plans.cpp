#include "planner/parallelism/stage_plans.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "planner/parallelism/model_slice.hpp"
#include "planner/parallelism/pipeline_time.hpp"
#include "planner/step_cost.hpp"

namespace shardwright {

namespace {

bool worse(const Plan& plan, const Plan& than)
{
    if (plan.verdict != than.verdict)
        return plan.verdict > than.verdict;
    return plan.gpu.peakUsed > than.gpu.peakUsed;
}

/// What the job holds and writes as a whole.
void addUp(const PlanInput& input, const std::vector<ModelSlice>& slices, const std::vector<Plan>& plans, Plan& job)
{
    const std::int64_t parameters = input.model.parameters();
    job.checkpoint.full16Bit = bytesOf(parameters, DType::Bf16);
    job.checkpoint.fullFp32 = bytesOf(parameters, DType::Fp32);
    job.checkpoint.shardedTotal = Bytes(0);
    for (std::size_t i = 0; i < plans.size(); ++i)
        job.checkpoint.shardedTotal +=
            plans[i].checkpoint.shardedTotal *
            checkedMultiply(static_cast<std::int64_t>(slices[i].alike.size()), input.strategy.parallelism.tensor);
}

} // namespace

Plan buildStagePlans(const PlanInput& input, const PlanDetail& detail)
{
    const std::vector<ModelSlice> slices = sliceModel(input);
    return buildStagePlans(input, slices, emitStages(input, slices), detail);
}

Plan buildStagePlans(const PlanInput& input, const std::vector<ModelSlice>& slices,
                     const std::vector<StageSchedule>& schedules, const PlanDetail& detail)
{
    std::vector<Plan> plans;
    plans.reserve(slices.size());
    PlanDetail ofStage = detail;
    ofStage.suggest = false; // changes are the whole job's
    ofStage.time = detail.time && slices.front().stages == 1;
    for (std::size_t i = 0; i < slices.size(); ++i)
        plans.push_back(buildPlan(inputOf(input, slices[i]), ofStage, *schedules[i].rules, schedules[i].schedule));
    const auto at =
        std::max_element(plans.begin(), plans.end(), [](const Plan& a, const Plan& b) { return worse(b, a); });
    const ModelSlice& slice = slices[static_cast<std::size_t>(at - plans.begin())];
    Plan job = *at;
    addUp(input, slices, plans, job);
    if (slice.stages == 1)
        return job;
    if (detail.time) {
        job.step = pipelineStep(input, slices, schedules);
        fillStepCost(inputOf(input, slice), job);
    }
    job.gpu.peakMoment = fmt::format("{}: {}", nameOfStage(slice), job.gpu.peakMoment);
    for (std::size_t i = 0; i < plans.size(); ++i)
        job.remarks.push_back(
            fmt::format("{} of {} blocks each: {} used at the peak, {} of it model states", nameOfStage(slices[i]),
                        std::count_if(slices[i].model.layers.begin(), slices[i].model.layers.end(),
                                      [&](int type) {
                                          return slices[i].model.layerTypes[static_cast<std::size_t>(type)].kind ==
                                                 LayerKind::Block;
                                      }),
                        formatBinary(plans[i].gpu.peakUsed), formatBinary(plans[i].states.total())));
    return job;
}

} // namespace shardwright
