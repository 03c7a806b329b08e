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

    double bound(const PlanInput& input, const std::vector<Part>& parts) override
    {
        const Part& part = parts.front();
        if (input.strategy.parallelism.pipeline > 1 || part.structure != nullptr)
            return 0;
        const Schedule& schedule = part.stage->schedule;
        const OpCosts costs(part.input, *part.stage->rules->activations(), schedule.sizes);
        return busiest(schedule, opTimes(schedule, costs));
    }

    double seconds(const PlanInput& input, const std::vector<Part>& parts, Structures& structures) override
    {
        const Part& part = parts.front();
        if (input.strategy.parallelism.pipeline == 1 && part.structure != nullptr)
            return part.structure->step().seconds(part.input, part.structure->closed.rules());
        if (input.strategy.parallelism.pipeline == 1)
            return stepSeconds(part.input, *part.stage->rules, part.stage->schedule);
        const auto& step = structures.pipelineStepOf(input);
        return step ? step->seconds : INFINITY;
    }

    double secondsOf(const PlanInput&, const Plan& plan) override { return plan.step ? plan.step->seconds : INFINITY; }
};

} // namespace

std::unique_ptr<Clock> simulatedClock()
{
    return std::make_unique<SimulatedClock>();
}

} // namespace shardwright::search
