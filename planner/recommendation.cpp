#include "planner/recommendation.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "planner/report/number_format.hpp"
#include "planner/report/time_parts.hpp"

namespace shardwright {

namespace {

constexpr double kSameTime = 1.01; // far below what a prediction can tell apart

/// Plans that split the model train fewer sequences a step: what counts is the time of a token.
double secondsPerToken(const Plan& plan)
{
    return plan.step && plan.step->tokensPerSecond > 0 ? 1 / plan.step->tokensPerSecond
                                                       : std::numeric_limits<double>::infinity();
}

/// Those to choose among, fastest first: tight ones only where nothing else fits.
std::vector<const Plan*> candidates(const std::vector<Plan>& plans)
{
    std::vector<const Plan*> list;
    for (const Verdict verdict : {Verdict::Fits, Verdict::Tight}) {
        for (const Plan& plan : plans)
            if (plan.verdict == verdict)
                list.push_back(&plan);
        if (!list.empty())
            break;
    }
    std::stable_sort(list.begin(), list.end(),
                     [](const Plan* a, const Plan* b) { return secondsPerToken(*a) < secondsPerToken(*b); });
    return list;
}

bool asFast(const Plan& plan, const Plan& fastest)
{
    return secondsPerToken(plan) <= kSameTime * secondsPerToken(fastest);
}

const Plan* choose(const std::vector<const Plan*>& list)
{
    const Plan* best = list.empty() ? nullptr : list.front();
    for (const Plan* plan : list)
        if (asFast(*plan, *list.front()) && plan->headroom > best->headroom)
            best = plan;
    return best;
}

/// "3.21 s a step, 10,200 tokens/s on 8 GPUs, MFU 45 %"
std::string howFast(const Scenario& scenario, const Plan& plan)
{
    if (!plan.step)
        return {};
    std::string text = fmt::format("{} a step, {} tokens/s on {} GPU{}", spokenSeconds(plan.step->seconds),
                                   threeDigits(plan.step->tokensPerSecond), grouped(scenario.cluster.gpus()),
                                   scenario.cluster.gpus() == 1 ? "" : "s");
    if (plan.step->mfu > 0)
        text += fmt::format(", MFU {}", percent(plan.step->mfu));
    return text;
}

/// "ddp next with 12 % more: exposed communication takes 300 ms longer"
std::string whatTheNextLoses(const Plan& chosen, const Plan& next)
{
    if (!chosen.step || !next.step)
        return {};
    const TimePart* most = nullptr;
    double longer = 0;
    for (const TimePart& part : timeParts()) {
        const double difference = next.step->breakdown.*part.seconds - chosen.step->breakdown.*part.seconds;
        if (difference > longer) {
            longer = difference;
            most = &part;
        }
    }
    const double ratio = secondsPerToken(next) / secondsPerToken(chosen);
    const double tokens = chosen.step->tokensPerSecond * chosen.step->seconds;
    constexpr double kRounding = 1e-9;
    const bool sameTokens = std::abs(next.step->tokensPerSecond * next.step->seconds - tokens) <= kRounding * tokens;
    constexpr double kTwice = 2;
    std::string text = ratio < kTwice
                           ? fmt::format("; {} is next with {} more", next.strategy, percent(ratio - 1))
                           : fmt::format("; {} is next and takes {} times as long", next.strategy, threeDigits(ratio));
    if (most == nullptr || !sameTokens)
        return sameTokens ? text : text + " time a token";
    const bool rest = most->seconds == &StepBreakdown::other;
    text += fmt::format(": {} {} longer",
                        rest ? "copies within the GPU and what collectives slow down take"
                             : fmt::format("{} takes", most->name),
                        spokenSeconds(longer));
    return text;
}

} // namespace

std::optional<std::size_t> recommend(const std::vector<Plan>& plans)
{
    const Plan* best = choose(candidates(plans));
    return best != nullptr ? std::optional(static_cast<std::size_t>(best - plans.data())) : std::nullopt;
}

std::optional<Recommendation> recommendation(const Scenario& scenario, const std::vector<Plan>& plans)
{
    const std::vector<const Plan*> list = candidates(plans);
    const Plan* best = choose(list);
    if (best == nullptr)
        return std::nullopt;
    const Plan& chosen = *best;
    const std::string fast = howFast(scenario, chosen);
    const std::string colon = fast.empty() ? "" : ": ";
    const auto fitting = std::count_if(plans.begin(), plans.end(), [](const Plan& plan) { return plan.fits(); });
    const auto alike =
        std::count_if(list.begin(), list.end(), [&](const Plan* plan) { return asFast(*plan, *list.front()); });
    const std::string of = fitting == static_cast<std::ptrdiff_t>(list.size())
                               ? fmt::format("of the {} that fit", fitting)
                               : fmt::format("of the {} that fit without being tight", list.size());
    std::string reason;
    if (plans.size() == 1)
        reason = fmt::format("the only one asked for, and it fits{}{}", colon, fast);
    else if (fitting == 1)
        reason = fmt::format("the only one of {} that fits{}{}", plans.size(), colon, fast);
    else if (list.size() == 1)
        reason = fmt::format("the only one of {} that fits without being tight{}{}", plans.size(), colon, fast);
    else if (alike > 1)
        reason = fmt::format("{}, {} are as fast within 1 %, and it leaves the most GPU memory free{}{}", of, alike,
                             colon, fast);
    else
        reason = fmt::format("{}, the fastest{}{}", of, colon, fast);
    if (alike == 1 && list.size() > 1)
        reason += whatTheNextLoses(chosen, *list[1]);
    reason += fmt::format("; {:.0f} % of the GPU stay free", chosen.headroom * 100);
    if (chosen.verdict == Verdict::Tight)
        reason += ", which is tight";
    return Recommendation{chosen.strategy, reason + "."};
}

} // namespace shardwright
