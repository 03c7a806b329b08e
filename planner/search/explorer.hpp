#pragma once

// The search's view of planning: candidates, whether they fit, how long their steps take.

#include <map>

#include "core/plan.hpp"
#include "planner/plan_builder.hpp"
#include "planner/search/candidates.hpp"
#include "planner/search/clock.hpp"
#include "planner/search/engine.hpp"
#include "planner/search/memory_check.hpp"
#include "planner/search/tally.hpp"

namespace shardwright::search {

/// What candidates are scored by. Time: seconds per step, then memory. Gpus: how many, then seconds. GpuTime: seconds
/// times GPUs. MemoryAndTime: the two figures of a front. Fitting, of those whose plans fit, and FittingByFloor, of
/// those whose tensors and overheads fit: memory.
enum class Measure : std::uint8_t { Time, Gpus, GpuTime, MemoryAndTime, Fitting, FittingByFloor };

/// What plans of answers are built with.
constexpr PlanDetail kOfAnswers{.curve = false, .allocator = true, .suggest = false};

class PlanExplorer final : public Explorer {
public:
    /// `candidates` must outlive this. `everyReason`: a candidate that has no room is said to have none, even where it
    /// is too slow anyway.
    PlanExplorer(const Candidates& candidates, Measure measure, std::unique_ptr<Clock> clock, bool everyReason = false);

    bool complete(const Path& path) const override { return path.size() == kAxes; }
    std::size_t choices(const Path& path) override { return m_candidates.choices(path); }
    std::optional<Score> floor(const Path& path) override;
    std::optional<Score> evaluate(const Path& path, const Archive& archive) override;

    /// The plan of a candidate that this explorer found, with kOfAnswers, where it still has it.
    std::optional<Plan> planOf(const Path& path) const;

    /// Why candidates were turned down, so far.
    const Tally& tally() const { return m_tally; }

private:
    PlanInput input() const
    {
        return {m_candidates.scenario().model, m_candidate.cluster, m_candidate.training, m_candidate.strategy};
    }
    bool timed() const { return m_measure != Measure::Fitting && m_measure != Measure::FittingByFloor; }
    Score score(double seconds, Bytes memory, std::int64_t gpus) const;
    bool divides(const Path& path, const Assignment& assignment);
    std::optional<Bytes> leastBelow(const Path& path, const Assignment& assignment);
    double leastSeconds(const Assignment& assignment);
    void reject(const Reason& reason, const Path& path, double miss = 0);
    Plan planOfPipeline();
    std::optional<Score> planned(const Path& path, std::int64_t gpus);

    const Candidates& m_candidates;
    Measure m_measure;
    bool m_everyReason;
    std::unique_ptr<Clock> m_clock;
    Structures m_structures;
    Candidate m_candidate;
    Tally m_tally;
    // Strategies that hosts or drives have no room for, without accumulation of gradients and with it: where any that
    // fits will do. Elsewhere what is told must not depend on what was asked before.
    std::map<std::pair<Path, bool>, MemoryVerdict> m_outside;
    std::map<Path, Plan> m_plans;                  // of candidates that fit
    std::map<std::int64_t, double> m_leastSeconds; // by GPUs: what leastSeconds() gave
};

/// Why a plan is none to take: nothing for one that fits with room for the allocator.
std::optional<Reason> obstacleOf(const Plan& plan);

} // namespace shardwright::search
