#include <algorithm>
#include <map>

#include "core/diagnostics.hpp"
#include "planner/plan_builder.hpp"
#include "planner/published/comparison.hpp"

namespace shardwright {

std::vector<FigureComparison> comparePublished(const Scenario& scenario)
{
    PlanDetail detail;
    detail.curve = false;
    detail.suggest = false;
    std::map<std::string, Plan> plans;
    std::vector<FigureComparison> rows;
    for (const PublishedFigure& figure : scenario.published) {
        const auto strategy =
            std::find_if(scenario.strategies.begin(), scenario.strategies.end(),
                         [&](const Strategy& candidate) { return candidate.name == figure.strategy; });
        if (strategy == scenario.strategies.end())
            throw InputError(scenario.file, "/published",
                             "\"" + figure.strategy + "\" is not among the scenario's strategies");
        auto plan = plans.find(figure.strategy);
        if (plan == plans.end())
            plan = plans.emplace(figure.strategy, buildPlan(scenario, *strategy, detail)).first;
        rows.push_back(compareFigure(scenario, figure, plan->second));
    }
    return rows;
}

} // namespace shardwright
