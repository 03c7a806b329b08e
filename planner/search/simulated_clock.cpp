#include "planner/search/simulated_clock.hpp"

#include <cmath>

#include "planner/parallelism/pipeline_time.hpp"
#include "planner/step_time.hpp"

namespace shardwright::search {

namespace {

class SimulatedClock final : public Clock {
public:
    double floor(const PlanInput& input, const Assignment& so, Structures& structures) override
    {
        return (1 - kSameSeconds) * structures.floorsOf(input, so).seconds;
    }

    double floorWith(const PlanInput& input, const Assignment& so, double collectives, Structures& structures) override
    {
        StepLoad load = structures.floorsOf(input, so).loads.front();
        load.collectives = collectives;
        const double seconds = load.computeStream;
        return (1 - kSameSeconds) * (seconds + lostBesideCollectives(input.cluster, load, seconds));
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
            // What collectives take falls more slowly than the step grows: the shortest step is the shortest with them.
            const double busy = busiest(schedule, times);
            const double bound =
                busy + (1 - kSameSeconds) * lostBesideCollectives(input.cluster, loadOf(schedule, times), busy);
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
