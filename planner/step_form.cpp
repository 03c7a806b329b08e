#include "planner/step_form.hpp"

#include <cmath>
#include <limits>
#include <map>

#include "planner/activations/activation_model.hpp"
#include "planner/costs/op_costs.hpp"
#include "planner/frameworks/sharding.hpp"

namespace shardwright {

namespace {

/// Layers that run the same program are of one class.
std::vector<int> layerClasses(const ActivationModel& activations)
{
    std::map<const LayerProgram*, int> known;
    std::vector<int> classes;
    for (std::size_t layer = 0; layer < activations.model().layers.size(); ++layer)
        classes.push_back(
            known.emplace(&activations.program(static_cast<int>(layer)), static_cast<int>(known.size())).first->second);
    return classes;
}

} // namespace

StepForm::StepForm(const FrameworkRules& rules) : StepForm(rules, rules.emit()) {}

StepForm::StepForm(const FrameworkRules& rules, const Schedule& schedule)
    : m_form(schedule, layerClasses(*rules.activations())), m_times(m_form.slots().size()), m_repeat(m_form.repeats())
{
    for (const Segment& segment : schedule.segments)
        if (segment.firstOp < segment.endOp && schedule.ops[segment.firstOp].phase != Phase::Init)
            m_middle.push_back(segment.name == kMiddleMicroSteps);
}

bool StepForm::cost(const PlanInput& candidate, const FrameworkRules& rules)
{
    const OpCosts costs(candidate, *rules.activations(), rules.sizes());
    bool finite = true;
    for (std::size_t slot = 0; slot < m_times.size(); ++slot) {
        const Op& op = m_form.slots()[slot];
        m_times[slot] = {costs.seconds(op), costs.hostSeconds(op)};
        finite &= std::isfinite(m_times[slot].seconds);
    }
    for (std::size_t i = 0; i < m_middle.size(); ++i)
        if (m_middle[i])
            m_repeat[i] = candidate.training.gradientAccumulation - 2;
    return finite;
}

double StepForm::seconds(const PlanInput& candidate, const FrameworkRules& rules)
{
    if (!cost(candidate, rules))
        return std::numeric_limits<double>::infinity();
    const double seconds = m_form.seconds(m_times, m_repeat);
    return seconds + lostBesideCollectives(candidate.cluster, m_form.load(m_times, m_repeat), seconds);
}

double StepForm::lowerBound(const PlanInput& candidate, const FrameworkRules& rules)
{
    return cost(candidate, rules) ? m_form.lowerBound(m_times, m_repeat) : std::numeric_limits<double>::infinity();
}

} // namespace shardwright
