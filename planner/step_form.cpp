#include "planner/step_form.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "planner/activations/activation_model.hpp"
#include "planner/costs/op_costs.hpp"
#include "planner/frameworks/sharding.hpp"
#include "planner/readers/time_simulation.hpp"

namespace shardwright {

namespace {

constexpr std::size_t kMostKnown = 16; // settings, of which layers' times are kept

bool isComputing(const Op& op)
{
    switch (op.kind) {
    case OpKind::Forward:
    case OpKind::Recompute:
    case OpKind::Backward:
    case OpKind::LossForward:
    case OpKind::LossBackward: return true;
    default: return false;
    }
}

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

StepForm::StepForm(const FrameworkRules& rules, bool inOrder)
    : StepForm(rules, inOrder ? inOrderOfIssue(rules.emit()) : rules.emit())
{
}

StepForm::StepForm(const FrameworkRules& rules, const Schedule& schedule)
    : m_form(schedule, layerClasses(*rules.activations())), m_times(m_form.slots().size()), m_repeat(m_form.repeats())
{
    for (const Segment& segment : schedule.segments)
        if (segment.firstOp < segment.endOp && schedule.ops[segment.firstOp].phase != Phase::Init)
            m_middle.push_back(segment.name == kMiddleMicroSteps);
    for (std::size_t slot = 0; slot < m_times.size(); ++slot)
        (isComputing(m_form.slots()[slot]) ? m_computing : m_others).push_back(slot);
    m_moved.resize(m_others.size());
}

const std::vector<SlotTime>& StepForm::computing(const PlanInput& candidate, const OpCosts& costs)
{
    const Training& training = candidate.training;
    const auto known = std::find_if(m_known.begin(), m_known.end(), [&](const Computing& each) {
        return each.gpus == candidate.cluster.gpus() && each.microBatch == training.microBatch &&
               each.sequenceLength == training.sequenceLength;
    });
    if (known != m_known.end()) {
        std::rotate(m_known.begin(), known, known + 1);
        return m_known.front().times;
    }
    if (m_known.size() == kMostKnown)
        m_known.pop_back();
    Computing fresh{candidate.cluster.gpus(), training.microBatch, training.sequenceLength, {}};
    fresh.times.reserve(m_computing.size());
    for (const std::size_t slot : m_computing)
        fresh.times.push_back({costs.seconds(m_form.slots()[slot]), costs.hostSeconds(m_form.slots()[slot])});
    return m_known.insert(m_known.begin(), std::move(fresh))->times;
}

/// Of candidates in a row, many have the same payloads and groups.
void StepForm::costOthers(const PlanInput& candidate, const OpCosts& costs, const SizeTable& sizes)
{
    const Cluster& cluster = candidate.cluster;
    const bool sameCluster = m_gpus == cluster.gpus() && m_nodes == cluster.nodes;
    m_gpus = 0;
    for (std::size_t i = 0; i < m_others.size(); ++i) {
        const Op& op = m_form.slots()[m_others[i]];
        Moved moved;
        if (op.payload >= 0)
            moved.bytes = sizes.payloads[static_cast<std::size_t>(op.payload)].bytes;
        if (op.group >= 0) {
            const Group& group = sizes.groups[static_cast<std::size_t>(op.group)];
            moved.ranks = group.ranks;
            moved.nodes = group.nodes;
            moved.stride = group.stride;
        }
        if (sameCluster && moved == m_moved[i])
            continue;
        m_times[m_others[i]] = {costs.seconds(op), costs.hostSeconds(op)};
        m_moved[i] = moved;
    }
    m_gpus = cluster.gpus();
    m_nodes = cluster.nodes;
}

bool StepForm::cost(const PlanInput& candidate, const FrameworkRules& rules)
{
    const OpCosts costs(candidate, *rules.activations(), rules.sizes());
    bool finite = true;
    const std::vector<SlotTime>& layers = computing(candidate, costs);
    for (std::size_t i = 0; i < m_computing.size(); ++i)
        m_times[m_computing[i]] = layers[i];
    costOthers(candidate, costs, rules.sizes());
    for (const std::size_t slot : m_others)
        finite &= std::isfinite(m_times[slot].seconds);
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
