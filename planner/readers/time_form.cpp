#include "planner/readers/time_form.hpp"

#include <limits>

#include "planner/readers/time_compiler.hpp"

namespace shardwright {

namespace {

constexpr double kRounding = 1e-9; // by which sums of the same times may differ

/// 0 for what was over by `host`. Without a branch: whether it was is hard to foretell.
double since(double time, double host)
{
    return std::max(time, host) - host;
}

} // namespace

TimeForm::TimeForm(const Schedule& schedule, const std::vector<int>& layerClasses)
{
    TimeCompiler(schedule, layerClasses, *this).run();
    for (std::uint32_t i = 0; i < m_segments.size(); ++i)
        for (const auto& [slot, count] : m_segments[i].slotCounts) {
            Loading loading{{}, slot, i, static_cast<double>(count)};
            loading.each.add(m_slots[slot], 1);
            if (loading.each.computeStream > 0 || loading.each.collectives > 0)
                m_loading.push_back(loading);
        }
}

double TimeForm::seconds(const std::vector<SlotTime>& times, const std::vector<std::int64_t>& repeat)
{
    fuseTimes(times);
    m_clocks = {};
    // Steps come to the same from wherever they begin: from behind an optimizer step it is sooner.
    if (m_apart)
        runSegment(m_segments.back(), repeat.back());
    m_reachedSteps.assign(1, m_clocks);
    std::size_t together = 0;
    while (together == 0 && m_reachedSteps.size() <= kMostSteps) {
        for (std::size_t i = 0; i < m_segments.size(); ++i)
            runSegment(m_segments[i], repeat[i]);
        m_reachedSteps.push_back(m_clocks);
        const Clocks& before = m_reachedSteps[m_reachedSteps.size() - 2];
        if (m_apart && asFarAhead(before, m_clocks, m_used, sameState()))
            return m_clocks[kHostClock] - before[kHostClock];
        together = stepsTogether(m_reachedSteps, m_used);
    }
    if (together == 0)
        together = kMostAlternating;
    const std::size_t last = m_reachedSteps.size() - 1;
    const Clocks advance = difference(m_reachedSteps[last], m_reachedSteps[last - together]);
    return *std::max_element(advance.begin(), advance.end()) / static_cast<double>(together);
}

double TimeForm::lowerBound(const std::vector<SlotTime>& times, const std::vector<std::int64_t>& repeat) const
{
    Clocks busy{};
    for (std::size_t i = 0; i < m_segments.size(); ++i)
        for (const auto& [slot, count] : m_segments[i].slotCounts) {
            const double often = static_cast<double>(count) * static_cast<double>(repeat[i]);
            busy[static_cast<std::size_t>(m_slots[slot].stream)] += often * times[slot].seconds;
            busy[kHostClock] += often * times[slot].hostSeconds;
        }
    return *std::max_element(busy.begin(), busy.end()) * (1 - kRounding);
}

StepLoad TimeForm::load(const std::vector<SlotTime>& times, const std::vector<std::int64_t>& repeat) const
{
    StepLoad load;
    for (const Loading& loading : m_loading) {
        const double seconds =
            loading.count * static_cast<double>(repeat[loading.segment]) * times[loading.slot].seconds;
        load.computeStream += loading.each.computeStream * seconds;
        load.kernels += loading.each.kernels * seconds;
        load.collectives += loading.each.collectives * seconds;
    }
    return load;
}

void TimeForm::fuseTimes(const std::vector<SlotTime>& times)
{
    m_once = 0;
    m_fusedTimes.resize(m_fused.size());
    for (std::size_t id = 0; id < m_fused.size(); ++id) {
        const Fused& fused = m_fused[id];
        FusedTime of;
        for (std::uint32_t i = fused.firstSlot; i < fused.endSlot; ++i) {
            const SlotTime& time = times[m_fusedSlots[i]];
            of.seconds += time.seconds;
            of.hostSeconds += time.hostSeconds;
            of.afterHost = std::max(of.afterHost, of.hostSeconds) + time.seconds;
        }
        m_once += of.afterHost;
        m_fusedTimes[id] = of;
    }
    for (StretchKind& kind : m_stretchKinds)
        kind.memo.forget();
    for (SegmentKind& kind : m_segmentKinds) {
        kind.memo.forget();
        kind.ahead.forget();
    }
}

void TimeForm::runSegment(const SegmentForm& segment, std::int64_t repeat)
{
    const bool worthIt = repeat >= kWorthSkipping;
    m_reached.assign(1, m_clocks);
    bool skips = false;
    for (std::int64_t left = repeat; left > 0; --left) {
        const Clocks before = m_clocks;
        runOnce(segment);
        if (m_apart && left > 1 && asFarAhead(before, m_clocks, segment.used, sameState())) {
            const double moved = static_cast<double>(left - 1) * (m_clocks[kHostClock] - before[kHostClock]);
            for (std::size_t clock = 0; clock < kClocks; ++clock)
                m_clocks[clock] += segment.used[clock] || clock == kHostClock ? moved : 0;
            return;
        }
        if (left < 3 || skips || !worthIt)
            continue;
        m_reached.push_back(m_clocks);
        const std::size_t together = repetitionsTogether(m_reached, segment.used, segment.alone);
        if (together == 0)
            continue;
        skips = true;
        const auto each = static_cast<std::int64_t>(together);
        const Clocks advance = difference(m_clocks, m_reached[m_reached.size() - 1 - together]);
        // The last one is run: its ends may be asked for, and a host that fell behind may have come to wait since.
        const bool alike = m_apart && uniform(advance, segment.used);
        const std::int64_t rounds = (left - (alike ? 1 : 2)) / each;
        for (std::size_t clock = 0; clock < kClocks; ++clock)
            m_clocks[clock] += static_cast<double>(rounds) * advance[clock];
        left -= rounds * each;
    }
}

/// Segments that wait for nothing in others meet nothing but the clocks.
void TimeForm::runOnce(const SegmentForm& segment)
{
    if (!m_apart) {
        runNodes(segment);
        return;
    }
    SegmentKind& kind = m_segmentKinds[segment.kind];
    const double host = m_clocks[kHostClock];
    double* state = m_state.data();
    for (const std::uint8_t stream : kind.streams)
        *state++ = since(m_clocks[stream], host);
    if (const double* known = kind.memo.find(m_state.data(), sameState())) {
        known += kind.streams.size();
        for (const std::uint8_t stream : kind.streams)
            m_clocks[stream] = host + *known++;
        m_clocks[kHostClock] = host + *known;
        return;
    }
    if (!kind.blocksHost && runAhead(kind))
        return;
    double* after = kind.memo.remember(m_state.data()) + kind.streams.size();
    const Clocks before = m_clocks;
    const double lead = runNodes(segment);
    for (const std::uint8_t stream : kind.streams)
        *after++ = m_clocks[stream] - host;
    *after = m_clocks[kHostClock] - host;
    if (!kind.blocksHost && lead > 0)
        rememberAhead(kind, before, lead);
}

/// Of the streams of a segment, in order, since that of the first one.
Clocks TimeForm::sinceFirst(const SegmentKind& kind, const Clocks& clocks)
{
    Clocks since{};
    for (std::size_t i = 0; i < kind.streams.size(); ++i)
        since[i] = clocks[kind.streams[i]] - clocks[kind.streams.front()];
    return since;
}

/// What a segment comes to where every operation is issued before its stream is free: all ends depend on each other
/// alone, and the host is done when it has issued everything. False where that is not known.
bool TimeForm::runAhead(SegmentKind& kind)
{
    const double since = m_clocks[kind.streams.front()];
    const Clocks state = sinceFirst(kind, m_clocks);
    const double* known = kind.ahead.find(state.data(), sameState());
    const std::size_t streams = kind.streams.size();
    if (known == nullptr || m_clocks[kHostClock] - since > known[2 * streams])
        return false;
    known += streams;
    m_clocks[kHostClock] += known[streams + 1];
    for (const std::uint8_t stream : kind.streams)
        m_clocks[stream] = since + *known++;
    return true;
}

void TimeForm::rememberAhead(SegmentKind& kind, const Clocks& before, double lead)
{
    const double since = before[kind.streams.front()];
    const Clocks state = sinceFirst(kind, before);
    double* after = kind.ahead.remember(state.data()) + kind.streams.size();
    for (const std::uint8_t stream : kind.streams)
        *after++ = m_clocks[stream] - since;
    *after++ = before[kHostClock] - since + lead;
    *after = m_clocks[kHostClock] - before[kHostClock];
}

double TimeForm::runStretch(const Stretch& stretch)
{
    StretchKind& kind = m_stretchKinds[stretch.kind];
    const double host = m_clocks[kHostClock];
    double* state = m_state.data();
    *state++ = 0;
    for (const std::uint8_t stream : kind.streams)
        *state++ = since(m_clocks[stream], host);
    for (std::size_t i = 0; i < kind.inputs; ++i)
        *state++ = since(awaited(m_inputs[stretch.firstInput + i]), host);
    const double* known = kind.memo.find(m_state.data(), sameState());
    const double* values = known != nullptr ? known : playStretch(kind);
    const double* ends = values + kind.program.firstEnd;
    const double* busy = values + kind.busy();
    for (std::uint32_t i = stretch.firstOutput; i < stretch.endOutput; ++i) {
        const std::uint32_t offset = m_outputs[i];
        double end = host + ends[offset];
        if (!kind.drainOf.empty() && kind.drainOf[offset] >= 0)
            end = std::max(end, m_clocks[kind.drains[static_cast<std::size_t>(kind.drainOf[offset])]] + busy[offset]);
        m_ends[(m_position + offset) & m_mask] = end;
        const std::int32_t reg = m_items[stretch.firstItem + offset].saveAs;
        if (reg >= 0)
            m_registers[static_cast<std::size_t>(reg)] = end;
    }
    const std::uint16_t* last = kind.lastSteps.data();
    for (const std::uint8_t stream : kind.streams)
        m_clocks[stream] = host + ends[*last++];
    for (const std::uint8_t stream : kind.drains) {
        m_clocks[stream] = std::max(host + ends[*last], m_clocks[stream] + busy[*last]);
        ++last;
    }
    m_clocks[kHostClock] = host + values[kind.host()];
    m_position += kind.program.steps.size();
    return values[kind.lead()];
}

/// Runs a stretch from the state at hand: its values.
const double* TimeForm::playStretch(StretchKind& kind)
{
    double* values = kind.memo.remember(m_state.data());
    const StretchProgram::Done done = kind.program.run(m_fusedTimes, values);
    values[kind.lead()] = done.lead;
    values[kind.host()] = done.host;
    if (kind.drains.empty())
        return values;
    std::array<double, kStreamCount> sum{};
    for (std::size_t i = 0; i < kind.drainOf.size(); ++i)
        if (kind.drainOf[i] >= 0) {
            double& busy = sum[static_cast<std::size_t>(kind.drainOf[i])];
            busy += m_fusedTimes[kind.program.steps[i].fused].seconds;
            values[kind.busy() + i] = busy;
        }
    return values;
}

double TimeForm::runNodes(const SegmentForm& segment)
{
    double lead = std::numeric_limits<double>::infinity();
    for (std::uint32_t i = segment.firstNode; i < segment.endNode; ++i) {
        const Node& node = m_nodes[i];
        if (node.firstStretch < node.endStretch) {
            for (std::int64_t left = node.repeat; left > 0; --left)
                for (std::uint32_t s = node.firstStretch; s < node.endStretch; ++s)
                    lead = std::min(lead, runStretch(m_stretches[s]));
        } else if (node.repeat == 1) {
            lead = std::min(lead, runItems(node.firstItem, node.endItem));
        } else {
            lead = std::min(lead, runLoop(node));
        }
        if (node.repeat == 1)
            continue;
        for (std::uint32_t s = node.firstSaved; s < node.endSaved; ++s)
            m_registers[static_cast<std::size_t>(m_savedAfter[s].reg)] =
                endOf(static_cast<std::size_t>(m_savedAfter[s].back));
    }
    return lead;
}

/// Once every end of as many iterations in a row as waits look back has moved by the same time, and the host by as much
/// or less, all later iterations are alike (steady_state.hpp). A host that falls behind the streams keeps out of it
/// until it has used up the least lead that it had. Leads of iterations left out lie between those of the ones before
/// and after.
double TimeForm::runLoop(const Node& node)
{
    double least = std::numeric_limits<double>::infinity();
    const std::size_t items = node.endItem - node.firstItem;
    double period = -1;
    double hostPeriod = -1;
    std::int64_t alike = 0;
    for (std::int64_t left = node.repeat; left > 0; --left) {
        const double hostBefore = m_clocks[kHostClock];
        const double lead = runItems(node.firstItem, node.endItem);
        least = std::min(least, lead);
        if (left == node.repeat || left <= node.reach + 1)
            continue;
        const double advance = endOf(1) - endOf(1 + items);
        const double hostAdvance = m_clocks[kHostClock] - hostBefore;
        const double tolerance = kSamePeriod * (advance + hostAdvance);
        bool uniform = true;
        for (std::size_t back = 2; back <= items && uniform; ++back)
            uniform = std::abs(endOf(back) - endOf(back + items) - advance) <= tolerance;
        const bool asBefore =
            std::abs(advance - period) <= tolerance && std::abs(hostAdvance - hostPeriod) <= tolerance;
        alike = !uniform ? 0 : asBefore ? alike + 1 : 1;
        period = advance;
        hostPeriod = hostAdvance;
        if (alike <= node.reach)
            continue;
        std::int64_t skipped = left - 1 - node.reach;
        if (const double loss = hostAdvance - period; loss > tolerance) {
            const double safe = lead / loss;
            skipped = safe < static_cast<double>(skipped) ? static_cast<std::int64_t>(std::max(0.0, safe)) : skipped;
        }
        if (skipped <= 0)
            continue;
        const double moved = static_cast<double>(skipped) * period;
        std::array<bool, kStreamCount> used{};
        for (std::uint32_t i = node.firstItem; i < node.endItem; ++i)
            used[m_items[i].stream] = true;
        for (std::size_t stream = 0; stream < kStreamCount; ++stream)
            m_clocks[stream] += used[stream] ? moved : 0;
        m_clocks[kHostClock] += static_cast<double>(skipped) * hostPeriod;
        for (double& end : m_ends)
            end += moved;
        left -= skipped;
        alike = 0;
    }
    return least;
}

/// Runs items once. How much later the host could have issued any of them without moving an end.
double TimeForm::runItems(std::uint32_t first, std::uint32_t last)
{
    double lead = std::numeric_limits<double>::infinity();
    double host = m_clocks[kHostClock];
    for (std::uint32_t i = first; i < last; ++i) {
        const Item& item = m_items[i];
        const FusedTime& fused = m_fusedTimes[item.fused];
        double start = m_clocks[item.stream];
        for (std::uint32_t w = item.firstWait; w < item.firstWait + item.waits; ++w) {
            const Awaited& wait = m_waits[w];
            const double end = awaited(wait.back);
            double& later = wait.blocksHost ? host : start;
            later = std::max(later, end);
        }
        const double streamEnd = start + fused.seconds;
        const double hostEnd = host + fused.afterHost;
        host += fused.hostSeconds;
        lead = std::min(lead, streamEnd - hostEnd);
        const double end = std::max(streamEnd, hostEnd);
        m_clocks[item.stream] = end;
        m_ends[m_position & m_mask] = end;
        ++m_position;
        if (item.saveAs >= 0)
            m_registers[static_cast<std::size_t>(item.saveAs)] = end;
    }
    m_clocks[kHostClock] = host;
    return lead;
}

} // namespace shardwright
