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
    const auto strategyOf = [&](const std::string& name) -> const Strategy& {
        const auto strategy = std::find_if(scenario.strategies.begin(), scenario.strategies.end(),
                                           [&](const Strategy& candidate) { return candidate.name == name; });
        if (strategy == scenario.strategies.end())
            throw InputError(scenario.file, "/published", "\"" + name + "\" is not among the scenario's strategies");
        return *strategy;
    };
    const auto planOf = [&](const std::string& name) -> const Plan& {
        const Strategy& strategy = strategyOf(name);
        auto plan = plans.find(name);
        if (plan == plans.end())
            plan = plans.emplace(name, buildPlan(scenario, strategy, detail)).first;
        return plan->second;
    };
    for (const PublishedFigure& figure : scenario.published) {
        const Plan& plan = planOf(figure.strategy);
        FigureContext context;
        if (!figure.over.empty())
            context.over = &planOf(figure.over);
        if (isCollectivePass(figure.kind) && plan.verdict != Verdict::NotPossible)
            context.pass = collectivePass(scenario, strategyOf(figure.strategy), figure.kind);
        rows.push_back(compareFigure(scenario, figure, plan, context));
    }
    return rows;
}

} // namespace shardwright
