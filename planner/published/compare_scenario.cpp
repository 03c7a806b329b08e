#include <algorithm>
#include <map>

#include "core/diagnostics.hpp"
#include "planner/plan_builder.hpp"
#include "planner/published/comparison.hpp"

namespace shardwright {

std::vector<FigureComparison> comparePublished(const Scenario& scenario)
{
    PlanDetail detail;
    detail.curve = std::any_of(scenario.published.begin(), scenario.published.end(), [](const PublishedFigure& figure) {
        return figure.kind == MeasuredKind::ActivationRatio;
    });
    detail.suggest = false;
    std::map<std::string, Plan> plans;
    std::vector<FigureComparison> rows;
    const auto namedIn = [](const Scenario& of, const std::string& name) -> const Strategy& {
        const auto strategy = std::find_if(of.strategies.begin(), of.strategies.end(),
                                           [&](const Strategy& candidate) { return candidate.name == name; });
        if (strategy == of.strategies.end())
            throw InputError(of.file, "/published", "\"" + name + "\" is not among the scenario's strategies");
        return *strategy;
    };
    const auto strategyOf = [&](const std::string& name) -> const Strategy& { return namedIn(scenario, name); };
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
        std::optional<Plan> elsewhere;
        if (figure.overScenario) {
            elsewhere = buildPlan(*figure.overScenario, namedIn(*figure.overScenario, figure.over), detail);
            context.over = &*elsewhere;
        } else if (!figure.over.empty()) {
            context.over = &planOf(figure.over);
        }
        if (figure.kind == MeasuredKind::HostOptimizerSeconds && plan.verdict != Verdict::NotPossible)
            context.hostOptimizer = hostOptimizerSeconds(scenario, strategyOf(figure.strategy));
        if (isCollectivePass(figure.kind) && plan.verdict != Verdict::NotPossible)
            context.pass = collectivePass(scenario, strategyOf(figure.strategy), figure.kind);
        rows.push_back(compareFigure(scenario, figure, plan, context));
    }
    return rows;
}

} // namespace shardwright
