#include "planner/search/explorer.hpp"

#include <cmath>

#include "planner/frameworks/rules.hpp"
#include "planner/plan_builder.hpp"

namespace shardwright::search {

namespace {

constexpr PlanDetail kVerdictOnly{.curve = false, .allocator = true, .suggest = false};

} // namespace

std::optional<Reason> obstacleOf(const Plan& plan)
{
    switch (plan.verdict) {
    case Verdict::Fits: return std::nullopt;
    case Verdict::NotPossible: return Reason{Obstacle::Refused, plan.framework + ": " + plan.reasons.front()};
    case Verdict::Tight:
        return Reason{Obstacle::Allocator, "fits only by the allocator's giving memory back within the step"};
    case Verdict::DoesNotFit: break;
    }
    if (plan.gpu.peakUsed > plan.gpu.capacity)
        return Reason{Obstacle::Allocator, "GPU memory with what the caching allocator holds beside the tensors"};
    return Reason{Obstacle::HostMemory, "host memory or NVMe of a node"};
}

PlanExplorer::PlanExplorer(const Candidates& candidates, Measure measure, std::unique_ptr<Clock> clock)
    : m_candidates(candidates), m_measure(measure), m_clock(std::move(clock)), m_candidate(candidates.start())
{
}

Score PlanExplorer::score(double seconds, Bytes memory, std::int64_t gpus) const
{
    const auto count = static_cast<double>(gpus);
    switch (m_measure) {
    case Measure::Time: return {seconds, memory.asDouble()};
    case Measure::Gpus: return {count, seconds};
    case Measure::GpuTime: return {seconds * count, seconds};
    case Measure::MemoryAndTime: return {memory.asDouble(), seconds};
    case Measure::Fitting:
    case Measure::FittingByFloor: return {0, 0};
    }
    return {};
}

std::optional<Score> PlanExplorer::floor(const Path& path)
{
    constexpr std::size_t kSplitKnown = static_cast<std::size_t>(Axis::Context) + 1;
    const Assignment so = m_candidates.assignment(path);
    if (path.size() == kSplitKnown) {
        if (so.dataRanks() == 0) {
            m_tally.add({Obstacle::Divisibility, "tensor x pipeline x context does not divide the GPUs"}, path,
                        candidatesBelow(*this, path));
            return std::nullopt;
        }
        if (m_candidates.space().globalBatch % so.dataRanks() != 0) {
            m_tally.add({Obstacle::Divisibility, "the data-parallel ranks do not divide the global batch"}, path,
                        candidatesBelow(*this, path));
            return std::nullopt;
        }
    }
    if (!complete(path))
        return score(0, Bytes(0), path.size() > 0 ? so.gpus : 0);
    if (m_candidates.accumulation(so) == 0) {
        m_tally.add({Obstacle::Divisibility, "the micro-batch does not divide a rank's share of the global batch"},
                    path);
        return std::nullopt;
    }
    m_candidates.apply(so, m_candidate);
    try {
        if (const auto reasons = refusals(input()); !reasons.empty()) {
            m_tally.add({Obstacle::Refused, std::string(frameworkOf(m_candidate.strategy)) + ": " + reasons.front()},
                        path);
            return std::nullopt;
        }
        return score(timed() ? m_clock->floor(input(), m_structures) : 0, Bytes(0), so.gpus);
    } catch (const NumberTooLarge&) {
        m_tally.add({Obstacle::TooLarge, "its numbers leave 64 bits"}, path);
        return std::nullopt;
    }
}

std::optional<Score> PlanExplorer::evaluate(const Path& path, const Archive& archive)
{
    const Assignment so = m_candidates.assignment(path);
    m_candidates.apply(so, m_candidate);
    try {
        const std::vector<Part>& parts = m_structures.partsOf(input(), so);
        const MemoryVerdict memory = checkMemory(parts);
        if (memory.obstacle) {
            m_tally.add(*memory.obstacle, path, 1, memory.miss);
            return std::nullopt;
        }
        if (m_measure == Measure::FittingByFloor)
            return score(0, memory.used, so.gpus);
        const double seconds = timed() ? m_clock->seconds(input(), parts, m_structures) : 0;
        if (!std::isfinite(seconds)) {
            m_tally.add({Obstacle::Untimed, "the cluster leaves out what its step time depends on"}, path);
            return std::nullopt;
        }
        if (!archive.admits(score(seconds, memory.used, so.gpus), path))
            return std::nullopt;
        return planned(path, seconds, so.gpus);
    } catch (const NumberTooLarge&) {
        m_tally.add({Obstacle::TooLarge, "its numbers leave 64 bits"}, path);
        return std::nullopt;
    }
}

/// The score by the plan itself, allocator and all, so that what is found is what a comparison shows.
std::optional<Score> PlanExplorer::planned(const Path& path, double seconds, std::int64_t gpus)
{
    const Plan plan = buildPlan(input(), kVerdictOnly);
    if (const auto obstacle = obstacleOf(plan)) {
        const bool over = plan.gpu.peakUsed > plan.gpu.capacity;
        m_tally.add(*obstacle, path, 1, over ? (plan.gpu.peakUsed - plan.gpu.capacity).asDouble() : 0);
        return std::nullopt;
    }
    return score(seconds, plan.gpu.peakUsed, gpus);
}

} // namespace shardwright::search
