#pragma once

// Step times of candidates of one structure in microseconds: the compiled schedule with each candidate's own costs.

#include "planner/frameworks/rules.hpp"
#include "planner/readers/time_form.hpp"

namespace shardwright {

class StepForm {
public:
    /// Compiles the schedule that `rules` emit, of a job without pipeline stages (theirs: pipelineStep).
    explicit StepForm(const FrameworkRules& rules);

    /// Seconds of a step, as stepTime() gives them; infinite where the cluster lacks what an operation runs on. `rules`
    /// have been resized to the candidate, which has the structure key of those compiled. Not thread-safe.
    double seconds(const PlanInput& candidate, const FrameworkRules& rules);

    /// Never more than seconds(), at a fraction of the price where costs are known: see TimeForm.
    double lowerBound(const PlanInput& candidate, const FrameworkRules& rules);

private:
    StepForm(const FrameworkRules& rules, const Schedule& schedule);
    /// False where a slot has no finite time.
    bool cost(const PlanInput& candidate, const FrameworkRules& rules);

    TimeForm m_form;
    std::vector<bool> m_middle; // by segment: repeated between the first and the last micro-step
    std::vector<SlotTime> m_times;
    std::vector<std::int64_t> m_repeat;
};

} // namespace shardwright
