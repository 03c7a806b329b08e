#include "planner/search/search.hpp"

#include <stdexcept>

#include "planner/search/explorer.hpp"

namespace shardwright::search {

namespace {

Measure measureOf(const Request& request)
{
    if (request.judge != Request::Judge::Time)
        return request.judge == Request::Judge::Plan ? Measure::Fitting : Measure::FittingByFloor;
    if (request.front)
        return Measure::MemoryAndTime;
    switch (request.objective) {
    case Objective::TokensPerSecond: // of a fixed number of tokens
    case Objective::StepTime: return Measure::Time;
    case Objective::GpuHours:
    case Objective::Cost: return Measure::GpuTime;
    case Objective::FewestGpus: return Measure::Gpus;
    case Objective::LargestModel:
    case Objective::LongestSequence:
    case Objective::LargestMicroBatch: break;
    }
    throw std::logic_error("an inverse question is not one search");
}

Plan planOf(const Path& path, const std::vector<std::unique_ptr<Explorer>>& explorers, const Candidate& candidate,
            const Model& model)
{
    for (const auto& explorer : explorers)
        if (auto plan = static_cast<const PlanExplorer&>(*explorer).planOf(path)) {
            plan->strategy = candidate.strategy.name;
            return std::move(*plan);
        }
    return buildPlan({model, candidate.cluster, candidate.training, candidate.strategy}, kOfAnswers);
}

} // namespace

Result search(const Candidates& candidates, const Request& request, const MakeClock& makeClock)
{
    std::vector<std::unique_ptr<Explorer>> explorers;
    for (int i = 0; i < std::max(1, request.threads); ++i)
        explorers.push_back(
            std::make_unique<PlanExplorer>(candidates, measureOf(request), makeClock(), request.judgeAll));
    Options options;
    options.stop = request.stop;
    options.everything = request.judgeAll;
    options.anyWillDo = request.judge != Request::Judge::Time;
    if (request.progress)
        options.progress = [&](std::size_t done, std::size_t all, const Archive&) { request.progress(done, all); };
    const Wanted wanted{request.front ? Wanted::Kind::Front : Wanted::Kind::Ranking, request.top};
    Outcome outcome = explore(explorers, wanted, options);
    Result result;
    result.declared = candidatesBelow(*explorers.front(), Path{});
    result.counts = outcome.counts;
    result.proven = outcome.proven;
    for (const auto& explorer : explorers)
        result.rejected.add(static_cast<const PlanExplorer&>(*explorer).tally());
    if (request.judge != Request::Judge::Time) {
        for (const Found& found : outcome.archive.found())
            result.passed.push_back(candidates.assignment(found.path));
        return result;
    }
    for (const Found& found : outcome.archive.found()) {
        Answer answer{candidates.assignment(found.path), candidates.start(), {}};
        candidates.apply(answer.assignment, answer.candidate);
        answer.candidate.strategy.name = candidates.strategyName(answer.assignment);
        answer.plan = planOf(found.path, explorers, answer.candidate, candidates.scenario().model);
        result.answers.push_back(std::move(answer));
    }
    return result;
}

} // namespace shardwright::search
