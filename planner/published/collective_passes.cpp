#include "planner/published/collective_passes.hpp"

#include "planner/costs/collective_costs.hpp"
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

} // namespace shardwright
