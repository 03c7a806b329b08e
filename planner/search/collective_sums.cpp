#include "planner/search/collective_sums.hpp"

#include <algorithm>

#include "planner/costs/overlap_costs.hpp"
#include "planner/frameworks/sharding.hpp"

namespace shardwright::search {

namespace {

bool countsAsCollective(const Op& op)
{
    StepLoad load;
    load.add(op, 1);
    return load.collectives > 0;
}

} // namespace

CollectiveSums::CollectiveSums(const Schedule& schedule)
{
    for (const Segment& segment : schedule.segments) {
        const bool middle = segment.name == kMiddleMicroSteps;
        for (std::uint32_t i = segment.firstOp; i < segment.endOp; ++i) {
            const Op& op = schedule.ops[i];
            if (op.phase == Phase::Init || !countsAsCollective(op))
                continue;
            // Those that came last are the likeliest to come again.
            auto known = std::find_if(m_alike.rbegin(), m_alike.rend(), [&](const Alike& alike) {
                return alike.op.payload == op.payload && alike.op.kind == op.kind && alike.op.group == op.group &&
                       alike.op.payloadCount == op.payloadCount && alike.middle == middle;
            });
            if (known == m_alike.rend()) {
                m_alike.push_back({op, middle, 0});
                known = m_alike.rbegin();
            }
            known->count += middle ? 1 : segment.repeat;
        }
    }
}

double CollectiveSums::seconds(const OpCosts& costs, std::int64_t accumulation) const
{
    double seconds = 0;
    for (const Alike& alike : m_alike) {
        const std::int64_t times = alike.middle ? alike.count * (accumulation - 2) : alike.count;
        seconds += static_cast<double>(times) * costs.seconds(alike.op);
    }
    return seconds;
}

} // namespace shardwright::search
