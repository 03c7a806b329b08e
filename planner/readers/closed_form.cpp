#include "planner/readers/closed_form.hpp"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <tuple>

#include "planner/activations/activation_model.hpp"
#include "planner/frameworks/sharding.hpp"
#include "planner/readers/traffic_sum.hpp"

namespace shardwright {

namespace {

using Counts = std::vector<std::int64_t>; // coefficients by quantity

// Quantities: tokens, tokens x sequence length, then the buffer classes that are no activations.
constexpr std::size_t kTokens = 0;
constexpr std::size_t kTokensTimesSequence = 1;
constexpr std::size_t kFirstClass = 2;

/// Which quantity a buffer of a class adds to, and how much.
struct Projection {
    std::size_t quantity;
    std::int64_t coefficient;
};

/// Where in the schedule a moment lies, apart from the layer: moments of equal signature in successive layers lie on
/// lines.
using Signature = std::tuple<std::size_t, OpKind, std::int16_t, PayloadId, int, std::uint32_t>;

bool dominated(const Counts& left, const Counts& right)
{
    for (std::size_t i = 0; i < left.size(); ++i)
        if (left[i] > right[i])
            return false;
    return true;
}

bool meanOf(const Counts& middle, const Counts& before, const Counts& after)
{
    for (std::size_t i = 0; i < middle.size(); ++i)
        if (middle[i] - before[i] != after[i] - middle[i])
            return false;
    return true;
}

/// Moments one after the other, but for those that are the mean of the two beside them: a sum cannot be largest there
/// alone.
class Line {
public:
    void add(const Counts& counts)
    {
        if (m_added > 1 && !meanOf(m_last, m_beforeLast, counts))
            m_ends.push_back(m_last);
        if (m_added > 0)
            m_beforeLast.swap(m_last);
        m_last = counts;
        if (m_added++ == 0)
            m_ends.push_back(counts);
    }
    void moveTo(std::vector<Counts>& ends)
    {
        std::move(m_ends.begin(), m_ends.end(), std::back_inserter(ends));
        if (m_added > 1)
            ends.push_back(std::move(m_last));
    }

private:
    std::vector<Counts> m_ends; // but for the last
    Counts m_beforeLast, m_last;
    std::size_t m_added = 0;
};

/// Sums over every eighth quantity: where one moment dominates another, its sums do too.
struct Sketch {
    std::array<std::int64_t, 8> sums{};
    std::int64_t total = 0;
    std::size_t moment = 0;

    bool mayDominate(const Sketch& other) const
    {
        for (std::size_t i = 0; i < sums.size(); ++i)
            if (sums[i] < other.sums[i])
                return false;
        return true;
    }
};

Sketch sketchOf(const Counts& counts, std::size_t moment)
{
    Sketch sketch;
    sketch.moment = moment;
    for (std::size_t i = 0; i < counts.size(); ++i) {
        std::int64_t& sum = sketch.sums[i % sketch.sums.size()];
        sum = checkedAdd(sum, counts[i]);
        sketch.total = checkedAdd(sketch.total, counts[i]);
    }
    return sketch;
}

/// From the largest down, each can only be dominated by one before it.
std::vector<Counts> withoutDominated(std::vector<Counts> moments)
{
    std::vector<Sketch> sketches;
    sketches.reserve(moments.size());
    for (std::size_t i = 0; i < moments.size(); ++i)
        sketches.push_back(sketchOf(moments[i], i));
    std::stable_sort(sketches.begin(), sketches.end(),
                     [](const Sketch& left, const Sketch& right) { return left.total > right.total; });
    std::vector<Sketch> kept;
    for (const Sketch& sketch : sketches) {
        const auto dominates = [&](const Sketch& larger) {
            return larger.mayDominate(sketch) && dominated(moments[sketch.moment], moments[larger.moment]);
        };
        if (std::none_of(kept.begin(), kept.end(), dominates))
            kept.push_back(sketch);
    }
    std::vector<Counts> result;
    result.reserve(kept.size());
    for (const Sketch& sketch : kept)
        result.push_back(std::move(moments[sketch.moment]));
    return result;
}

/// Collects the moments of one place at which its live bytes stand still before falling.
class PlaceMoments {
public:
    explicit PlaceMoments(std::size_t quantities) : m_counts(quantities, 0) {}

    void add(const Projection& buffer)
    {
        m_counts[buffer.quantity] = checkedAdd(m_counts[buffer.quantity], buffer.coefficient);
        m_rising = true;
    }
    void remove(const Projection& buffer, const Signature& signature)
    {
        remember(signature);
        m_counts[buffer.quantity] -= buffer.coefficient;
    }
    void remember(const Signature& signature)
    {
        if (m_rising)
            m_lines[signature].add(m_counts);
        m_rising = false;
    }
    void force(const Signature& signature)
    {
        m_rising = true;
        remember(signature);
    }
    void forget() { m_lines.clear(); }
    std::vector<Counts> candidates()
    {
        std::vector<Counts> all;
        for (auto& [signature, line] : m_lines)
            line.moveTo(all);
        return withoutDominated(std::move(all));
    }

private:
    Counts m_counts;
    bool m_rising = false;
    std::map<Signature, Line> m_lines;
};

} // namespace

ClosedForm::ClosedForm(const PlanInput& input) : ClosedForm(makeRules(input), input.model) {}

ClosedForm::ClosedForm(std::unique_ptr<FrameworkRules> rules, const Model& model)
    : m_rules(std::move(rules)), m_key(m_rules->structureKey()),
      m_parameters(std::max<std::int64_t>(1, model.parameters()))
{
    const Schedule schedule = m_rules->emit();
    compileMemory(schedule);
    compileTraffic(schedule);
}

ClosedForm::~ClosedForm() = default;

bool ClosedForm::fits(const PlanInput& candidate)
{
    m_rules->resize(candidate);
    return m_rules->structureKey() == m_key;
}

std::size_t ClosedForm::moments() const
{
    return m_gpu.moments.size() + m_init.moments.size() + m_pinned.moments.size() + m_pageable.moments.size() +
           m_nvme.moments.size();
}

void ClosedForm::compileMemory(const Schedule& schedule)
{
    std::vector<Projection> projections;
    const ActivationModel* activations = m_rules->activations();
    m_activationClasses = activations == nullptr ? 0 : activations->classes().size();
    for (std::size_t id = 0; id < schedule.sizes.buffers.size(); ++id) {
        if (id >= m_activationClasses) {
            projections.push_back({kFirstClass + id - m_activationClasses, 1});
            continue;
        }
        const ScaledClass& scaled = activations->classes()[id];
        projections.push_back({scaled.timesSequence ? kTokensTimesSequence : kTokens, scaled.bytesPerToken});
    }
    const std::size_t quantities = kFirstClass + schedule.sizes.buffers.size() - m_activationClasses;
    m_values.assign(quantities, 0);
    PlaceMoments init(quantities); // GPU while initialising, lazily made states left out
    std::vector<PlaceMoments> places(4, PlaceMoments(quantities));
    for (std::size_t s = 0; s < schedule.segments.size(); ++s) {
        const Segment& segment = schedule.segments[s];
        const bool initialising = s == 0;
        for (std::uint32_t o = segment.firstOp; o < segment.endOp; ++o) {
            const Op& op = schedule.ops[o];
            for (std::uint32_t i = 0; i < op.eventCount; ++i) {
                const BufferEvent& event = schedule.events[op.firstEvent + i];
                if (event.change == BufferChange::Reclaim)
                    continue;
                const auto id = static_cast<std::size_t>(schedule.buffers[static_cast<std::size_t>(event.buffer)]);
                const BufferSpec& spec = *schedule.sizes.buffers[id].spec;
                const Signature signature{s, op.kind, op.stage, op.payload, static_cast<int>(op.phase), i};
                PlaceMoments& place = places[static_cast<std::size_t>(spec.place)];
                const bool early = initialising && spec.place == Place::Gpu && spec.lifetime != Lifetime::FromFirstStep;
                if (event.change == BufferChange::Allocate) {
                    place.add(projections[id]);
                    if (early)
                        init.add(projections[id]);
                } else {
                    place.remove(projections[id], signature);
                    if (early)
                        init.remove(projections[id], signature);
                }
            }
        }
        const Signature atEnd{s, OpKind::Release, -1, -1, -1, 0};
        if (initialising) {
            init.remember(atEnd);
            for (PlaceMoments& place : places) {
                place.forget(); // the steady state begins here
                place.force(atEnd);
            }
        } else {
            for (PlaceMoments& place : places)
                place.remember(atEnd);
        }
    }
    m_init = formOf(init.candidates());
    m_gpu = formOf(places[static_cast<std::size_t>(Place::Gpu)].candidates());
    m_pinned = formOf(places[static_cast<std::size_t>(Place::HostPinned)].candidates());
    m_pageable = formOf(places[static_cast<std::size_t>(Place::HostPageable)].candidates());
    m_nvme = formOf(places[static_cast<std::size_t>(Place::Nvme)].candidates());
}

ClosedForm::PlaceForm ClosedForm::formOf(const std::vector<std::vector<std::int64_t>>& moments)
{
    PlaceForm form;
    if (moments.empty())
        return form;
    std::vector<std::int64_t> always = moments.front();
    for (const auto& counts : moments)
        for (std::size_t i = 0; i < counts.size(); ++i)
            always[i] = std::min(always[i], counts[i]);
    for (std::size_t i = 0; i < always.size(); ++i)
        if (always[i] != 0)
            form.always.push_back({static_cast<std::int32_t>(i), always[i]});
    for (const auto& counts : moments) {
        Moment moment{static_cast<std::uint32_t>(m_terms.size()), 0};
        for (std::size_t i = 0; i < counts.size(); ++i)
            if (counts[i] != always[i])
                m_terms.push_back({static_cast<std::int32_t>(i), counts[i] - always[i]});
        moment.termCount = static_cast<std::uint32_t>(m_terms.size()) - moment.firstTerm;
        form.moments.push_back(moment);
    }
    return form;
}

void ClosedForm::compileTraffic(const Schedule& schedule)
{
    for (std::size_t s = 1; s < schedule.segments.size(); ++s) {
        const Segment& segment = schedule.segments[s];
        const bool middle = segment.name == kMiddleMicroSteps;
        for (std::uint32_t i = segment.firstOp; i < segment.endOp; ++i) {
            const Op& op = schedule.ops[i];
            if (op.payload < 0 || op.group < 0 || !isCollective(op.kind))
                continue;
            auto known = std::find_if(m_traffic.begin(), m_traffic.end(), [&](const TrafficTerm& term) {
                return term.kind == op.kind && term.payload == op.payload && term.group == op.group;
            });
            if (known == m_traffic.end()) {
                m_traffic.push_back({op.kind, op.payload, op.group, 0, 0});
                known = m_traffic.end() - 1;
            }
            if (middle) // as often as the candidate accumulates
                known->middle += op.payloadCount;
            else
                known->once += checkedMultiply(op.payloadCount, segment.repeat);
        }
    }
}

Bytes ClosedForm::peakOf(const PlaceForm& form) const
{
    const auto sum = [&](const Term* term, std::uint32_t count) {
        std::int64_t total = 0;
        for (std::uint32_t i = 0; i < count; ++i, ++term)
            total = checkedAdd(total,
                               checkedMultiply(m_values[static_cast<std::size_t>(term->quantity)], term->coefficient));
        return total;
    };
    std::int64_t highest = 0;
    for (const Moment& moment : form.moments)
        highest = std::max(highest, sum(m_terms.data() + moment.firstTerm, moment.termCount));
    return Bytes(checkedAdd(highest, sum(form.always.data(), static_cast<std::uint32_t>(form.always.size()))));
}

ClosedFormResult ClosedForm::evaluate(const PlanInput& candidate)
{
    m_rules->resize(candidate);
    return figures(candidate);
}

ClosedFormResult ClosedForm::figures(const PlanInput& candidate)
{
    const ActivationModel* activations = m_rules->activations();
    m_values[kTokens] =
        activations == nullptr ? candidate.training.tokensPerMicroBatch() : activations->tokens(candidate.training);
    m_values[kTokensTimesSequence] = checkedMultiply(m_values[kTokens], candidate.training.sequenceLength);
    const std::vector<BufferClass>& buffers = m_rules->sizes().buffers;
    for (std::size_t id = m_activationClasses; id < buffers.size(); ++id)
        m_values[kFirstClass + id - m_activationClasses] = buffers[id].bytes.count();
    ClosedFormResult result;
    result.peakAllocated = peakOf(m_gpu);
    result.initPeak = peakOf(m_init);
    result.hostPinned = peakOf(m_pinned);
    result.hostPageable = peakOf(m_pageable);
    result.nvme = peakOf(m_nvme);
    const std::int64_t middleSteps = std::max<std::int64_t>(0, candidate.training.gradientAccumulation - 2);
    const SizeTable& sizes = m_rules->sizes();
    for (const TrafficTerm& term : m_traffic) {
        const Payload& payload = sizes.payloads[static_cast<std::size_t>(term.payload)];
        const Group& group = sizes.groups[static_cast<std::size_t>(term.group)];
        if (group.ranks <= 1 || payload.bytes == Bytes(0))
            continue;
        const std::int64_t count = checkedAdd(term.once, checkedMultiply(term.middle, middleSteps));
        const PayloadTraffic each = trafficOf(term.kind, payload.bytes, group, candidate.cluster.gpusPerNode);
        result.sentBytesPerGpu += each.sent * count;
        result.intraNodeBytesPerGpu += each.intraNode * count;
        result.interNodeBytesPerGpu += each.interNode * count;
        result.interNodeBytesPerNode += each.interNodePerNode * count;
        result.psi += psiOf(term.kind, payload, m_parameters) * static_cast<double>(count);
    }
    return result;
}

} // namespace shardwright
