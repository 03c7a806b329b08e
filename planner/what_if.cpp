#include "planner/what_if.hpp"

#include <algorithm>
#include <functional>

#include <fmt/format.h>

#include "planner/configs/configs.hpp"
#include "planner/plan_builder.hpp"
#include "planner/recommendation.hpp"
#include "planner/report/number_format.hpp"

namespace shardwright {

namespace {

constexpr PlanDetail kVerdictAndTime{.curve = false, .allocator = true, .suggest = false};

/// A change of one kind, by how much.
struct Step {
    std::string text; // "with a network between nodes of half the bandwidth"
    std::function<void(Scenario&)> apply;
};

/// Changes of one kind in one direction, the smallest first.
struct Direction {
    std::vector<Step> steps;
    std::string all; // "slower networks, down to a tenth"
};

Direction network(double direction)
{
    Direction result;
    const auto step = [&](const char* share, double factor) {
        result.steps.push_back({fmt::format("with {} the bandwidth between nodes", share),
                                [factor](Scenario& s) { s.cluster.interNode.bandwidth.value *= factor; }});
    };
    if (direction < 1) {
        step("half", 1.0 / 2);
        step("a quarter of", 1.0 / 4);
        step("a tenth of", 1.0 / 10);
        result.all = "slower networks between nodes, down to a tenth";
    } else {
        step("twice", 2);
        step("four times", 4);
        step("eight times", 8);
        result.all = "faster ones, up to eight times";
    }
    return result;
}

Direction memory(double direction)
{
    Direction result;
    const auto step = [&](const char* share, double factor) {
        result.steps.push_back({fmt::format("on GPUs with {} the memory", share),
                                [factor](Scenario& s) { s.cluster.gpu.memory.value *= factor; }});
    };
    if (direction < 1) {
        step("three quarters of", 3.0 / 4);
        step("half", 1.0 / 2);
        result.all = "GPUs with half the memory";
    } else {
        step("twice", 2);
        result.all = "GPUs with twice the memory";
    }
    return result;
}

Direction batch()
{
    const auto step = [](std::int64_t factor) {
        return Step{fmt::format("with micro-batches {} times as large", factor),
                    [factor](Scenario& s) { s.training.microBatch = checkedMultiply(s.training.microBatch, factor); }};
    };
    return {{step(2), step(4)}, "micro-batches up to four times as large"};
}

const Plan* planOf(const std::vector<Plan>& plans, const std::string& strategy)
{
    const auto it =
        std::find_if(plans.begin(), plans.end(), [&](const Plan& plan) { return plan.strategy == strategy; });
    return it == plans.end() ? nullptr : &*it;
}

/// "fsdp2-full-shard takes over (2.1 s a step, not 3.0 s)"; nothing when the choice stays, or is as good.
std::optional<std::string> takesOver(const Scenario& changed, const std::string& chosen)
{
    const std::vector<Plan> plans = buildPlans(changed, kVerdictAndTime);
    const auto index = recommend(plans);
    if (!index)
        return "nothing fits any more";
    const Plan& now = plans[*index];
    const Plan* before = planOf(plans, chosen);
    if (before == nullptr || !before->fits())
        return fmt::format("{} takes over, because {} does not fit", now.strategy, chosen);
    if (before->verdict == Verdict::Tight && now.verdict == Verdict::Fits)
        return fmt::format("{} takes over, because {} is tight", now.strategy, chosen);
    constexpr double kAsGood = 1.01;
    if (!now.step || !before->step || before->step->seconds <= kAsGood * now.step->seconds)
        return std::nullopt;
    return fmt::format("{} takes over ({} a step, not {})", now.strategy, spokenSeconds(now.step->seconds),
                       spokenSeconds(before->step->seconds));
}

void tryAll(const Scenario& scenario, const Direction& direction, const std::string& chosen, WhatIf& result)
{
    for (const Step& step : direction.steps) {
        Scenario changed = scenario;
        step.apply(changed);
        if (const auto change = takesOver(changed, chosen)) {
            result.changes.push_back(fmt::format("{} {}", step.text, *change));
            return;
        }
    }
    result.stays.push_back(direction.all);
}

} // namespace

WhatIf whatWouldChangeIt(const Scenario& scenario, const Recommendation& chosen)
{
    constexpr double kLess = 0.5;
    constexpr double kMore = 2;
    WhatIf result;
    if (scenario.cluster.nodes > 1) {
        tryAll(scenario, network(kLess), chosen.strategy, result);
        tryAll(scenario, network(kMore), chosen.strategy, result);
    }
    tryAll(scenario, memory(kLess), chosen.strategy, result);
    tryAll(scenario, memory(kMore), chosen.strategy, result);
    tryAll(scenario, batch(), chosen.strategy, result);
    return result;
}

std::string spoken(const WhatIf& whatIf)
{
    std::string text;
    if (!whatIf.changes.empty())
        text += fmt::format("Another would be better otherwise: {}.", fmt::join(whatIf.changes, "; "));
    if (!whatIf.stays.empty())
        text += fmt::format("{}It stays the choice with {}.", text.empty() ? "" : " ", fmt::join(whatIf.stays, "; "));
    return text;
}

bool canBeExported(const Scenario& scenario, const Strategy& strategy)
{
    try {
        exportConfig(scenario, strategy, configFormat("accelerate", strategy.options));
        return true;
    } catch (const InputError&) {
    }
    if (!std::holds_alternative<DeepSpeedOptions>(strategy.options))
        return false;
    try { // Accelerate's own file says less than DeepSpeed's
        exportConfig(scenario, strategy, ConfigFormat::DeepSpeed);
        return true;
    } catch (const InputError&) {
        return false;
    }
}

} // namespace shardwright
