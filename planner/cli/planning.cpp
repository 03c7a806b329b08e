#include "planner/cli/planning.hpp"

#include <fmt/format.h>

#include "core/cli/streams.hpp"
#include "core/diagnostics.hpp"
#include "planner/recommendation.hpp"

namespace shardwright::cli {

std::vector<Plan> plansOf(const Scenario& scenario, const PlanDetail& detail)
{
    std::vector<Plan> plans;
    plans.reserve(scenario.strategies.size());
    for (const Strategy& strategy : scenario.strategies) {
        try {
            plans.push_back(buildPlan(scenario, strategy, detail));
        } catch (const NumberTooLarge& error) {
            throw InputError(scenario.file, "",
                             fmt::format("scenario \"{}\", strategy {}: its numbers leave 64 bits ({})", scenario.name,
                                         strategy.name, error.what()),
                             "a smaller model, sequence, batch or cluster, or other strategies");
        }
    }
    return plans;
}

std::optional<Scenario> readWith(const std::string& strategy, const ScenarioOptions& question)
{
    if (strategy != kRecommended)
        return question.read(strategy);
    Scenario scenario = question.read();
    PlanDetail detail;
    detail.curve = false;
    detail.suggest = false;
    const auto index = recommend(plansOf(scenario, detail));
    if (!index) {
        printErr("nothing fits; `shardplan compare` says what would\n");
        return std::nullopt;
    }
    scenario.strategies = {Strategy(scenario.strategies[*index])};
    return scenario;
}

} // namespace shardwright::cli
