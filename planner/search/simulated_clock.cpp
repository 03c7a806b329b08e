#include "planner/search/simulated_clock.hpp"

#include <cmath>

#include "planner/parallelism/pipeline_time.hpp"

namespace shardwright::search {

namespace {

class SimulatedClock final : public Clock {
public:
    double floor(const PlanInput& input, Structures& structures) override
    {
        return kRounding * structures.floorsOf(input).seconds;
    }

    double seconds(const PlanInput& input, const std::vector<Part>& parts, Structures& structures) override
    {
        if (input.strategy.parallelism.pipeline == 1)
            return parts.front().structure->step().seconds(parts.front().input,
                                                           parts.front().structure->closed.rules());
        const auto& step = structures.pipelineStepOf(input);
        return step ? step->seconds : INFINITY;
    }

private:
    // Sums of the same terms in another order differ in their last digits.
    static constexpr double kRounding = 1 - 1e-9;
};

} // namespace

std::unique_ptr<Clock> simulatedClock()
{
    return std::make_unique<SimulatedClock>();
}

} // namespace shardwright::search
