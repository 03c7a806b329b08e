#include "planner/search/simulated_clock.hpp"

#include <cmath>

#include "planner/parallelism/pipeline_time.hpp"
#include "planner/step_time.hpp"

namespace shardwright::search {

namespace {

class SimulatedClock final : public Clock {
public:
    double floor(const PlanInput& input, Structures& structures) override
    {
        return (1 - kSameSeconds) * structures.floorsOf(input).seconds;
    }

    double seconds(const PlanInput& input, const std::vector<Part>& parts, Structures& structures,
                   const IsWanted& isWanted) override
    {
        const Part& part = parts.front();
        if (input.strategy.parallelism.pipeline == 1 && part.structure != nullptr)
            return part.structure->step().seconds(part.input, part.structure->closed.rules());
        if (input.strategy.parallelism.pipeline == 1) {
            const Schedule& schedule = part.stage->schedule;
            const OpTimes times =
                opTimes(schedule, OpCosts(part.input, *part.stage->rules->activations(), schedule.sizes));
            const double bound = busiest(schedule, times);
            return isWanted(bound) ? stepSeconds(part.input, schedule, times) : bound;
        }
        const Pipeline& pipeline = structures.pipeline();
        return pipelineStepSeconds(input, *pipeline.slices, pipeline.schedules).value_or(INFINITY);
    }

    double secondsOf(const PlanInput&, const Plan& plan) override { return plan.step ? plan.step->seconds : INFINITY; }
};

} // namespace

std::unique_ptr<Clock> simulatedClock()
{
    return std::make_unique<SimulatedClock>();
}

} // namespace shardwright::search
