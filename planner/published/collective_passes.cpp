#include "planner/published/collective_passes.hpp"

#include "planner/costs/collective_costs.hpp"
#include "planner/costs/op_costs.hpp"
#include "planner/frameworks/optimizer_rules.hpp"
#include "planner/frameworks/rules.hpp"

namespace shardwright {

namespace {

bool belongs(const Op& op, MeasuredKind kind)
{
    switch (kind) {
    case MeasuredKind::ForwardGatherSeconds: return op.kind == OpKind::AllGather && op.phase == Phase::Forward;
    case MeasuredKind::BackwardGatherSeconds: return op.kind == OpKind::AllGather && op.phase == Phase::Backward;
    default: return op.kind == OpKind::ReduceScatter;
    }
}

} // namespace

CollectivePass collectivePass(const Scenario& scenario, const Strategy& strategy, MeasuredKind kind)
{
    const Schedule schedule = makeRules({scenario.model, scenario.cluster, scenario.training, strategy})->emit();
    const CollectiveCosts costs(scenario.cluster);
    CollectivePass pass;
    for (const Segment& segment : schedule.segments)
        for (std::uint32_t id = segment.firstOp; id < segment.endOp; ++id) {
            const Op& op = schedule.ops[id];
            if (!belongs(op, kind) || op.payload < 0 || op.group < 0)
                continue;
            const Bytes bytes = schedule.sizes.payloads[static_cast<std::size_t>(op.payload)].bytes;
            const Group& group = schedule.sizes.groups[static_cast<std::size_t>(op.group)];
            const auto times = static_cast<double>(segment.repeat * op.payloadCount);
            const auto ranks = static_cast<double>(group.ranks);
            pass.seconds += costs.seconds(op.kind, bytes, group) * times;
            pass.receivedBytes += bytes.asDouble() * (ranks - 1) / ranks * times;
            pass.withinNodes = pass.withinNodes && group.nodes <= 1;
        }
    return pass;
}

double hostOptimizerSeconds(const Scenario& scenario, const Strategy& strategy)
{
    const PlanInput input{scenario.model, scenario.cluster, scenario.training, strategy};
    const bool vectorized = hasVectorizedHostOptimizer(input);
    const std::int64_t elements = ceilDivide(scenario.model.trainableParameters(), scenario.cluster.gpus());
    const Bytes moved = optimizerStepBytes(scenario.training.optimizer,
                                           vectorized ? OptimizerForm::Fused : torchOptimizerForm(scenario.training),
                                           elements, {DType::Fp32, DType::Fp32, DType::Fp32});
    return TransferCosts(scenario.cluster).hostOptimizer(moved, vectorized);
}

} // namespace shardwright
