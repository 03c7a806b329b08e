#pragma once

// Step times of candidates of one structure in microseconds: the compiled schedule with each candidate's own costs.

#include "planner/frameworks/rules.hpp"
#include "planner/readers/time_form.hpp"

namespace shardwright {

class OpCosts;

class StepForm {
public:
    /// Compiles the schedule that `rules` emit, of a job without pipeline stages (theirs: pipelineStep). `inOrder`: the
    /// ranks are threads of a host, which do one thing after the other.
    explicit StepForm(const FrameworkRules& rules, bool inOrder = false);

    /// Seconds of a step, as stepTime() gives them; infinite where the cluster lacks what an operation runs on. `rules`
    /// have been resized to the candidate, which has the structure key of those compiled, and differs from theirs in
    /// numbers of ranks, micro-batch, accumulation and sequence length alone. Not thread-safe.
    double seconds(const PlanInput& candidate, const FrameworkRules& rules);

    /// Never more than seconds(), at a fraction of the price where costs are known: see TimeForm.
    double lowerBound(const PlanInput& candidate, const FrameworkRules& rules);

private:
    StepForm(const FrameworkRules& rules, const Schedule& schedule);
    /// False where a slot has no finite time.
    bool cost(const PlanInput& candidate, const FrameworkRules& rules);

    /// Times of the layers' own computing, which accumulation does not change. The more GPUs, the slower the slowest.
    struct Computing {
        std::int64_t gpus = 0;
        std::int64_t microBatch = 0;
        std::int64_t sequenceLength = 0;
        std::vector<SlotTime> times; // by position in m_computing
    };
    const std::vector<SlotTime>& computing(const PlanInput& candidate, const OpCosts& costs);

    /// What the times of a slot that is no computing follow, the cluster's links apart.
    struct Moved {
        Bytes bytes;
        std::int64_t ranks = 0;
        std::int64_t nodes = 0;
        std::int64_t stride = 0;
        bool operator==(const Moved&) const = default;
    };
    void costOthers(const PlanInput& candidate, const OpCosts& costs, const SizeTable& sizes);

    TimeForm m_form;
    std::vector<std::size_t> m_computing; // slots
    std::vector<std::size_t> m_others;
    std::vector<Moved> m_moved; // that m_times are of, by position in m_others
    std::int64_t m_gpus = 0;    // likewise
    std::int64_t m_nodes = 0;
    std::vector<Computing> m_known; // the last one asked for comes first
    std::vector<bool> m_middle;     // by segment: repeated between the first and the last micro-step
    std::vector<SlotTime> m_times;
    std::vector<std::int64_t> m_repeat;
};

} // namespace shardwright
