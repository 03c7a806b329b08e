#include "planner/readers/time_compiler.hpp"

#include <algorithm>
#include <tuple>

#include "planner/readers/time_stretches.hpp"

namespace shardwright {

namespace {

constexpr std::size_t kMostHandedOn = 4;     // waits, for which an operation that costs nothing is worth dropping
constexpr std::size_t kFewestIterations = 4; // that a loop is worth
constexpr std::size_t kLongestBody = 1024;
constexpr std::size_t kMostLengths = 64;   // tried at one place
constexpr std::int64_t kFurthestBack = 64; // items; ends further back are kept in registers

/// By stream, the last operation that has surely ended.
using Ended = std::array<std::int32_t, kStreamCount>;

Ended nothing()
{
    Ended none{};
    none.fill(-1);
    return none;
}

void join(Ended& into, const Ended& other)
{
    for (std::size_t i = 0; i < kStreamCount; ++i)
        into[i] = std::max(into[i], other[i]);
}

} // namespace

TimeCompiler::TimeCompiler(const Schedule& schedule, const std::vector<int>& layerClasses, TimeForm& form)
    : m_schedule(schedule), m_layerClasses(layerClasses), m_form(form)
{
}

void TimeCompiler::run()
{
    collect();
    dropImpliedWaits();
    dropFree();
    findStoodFor();
    dropImpliedWaits();
    for (Segment& segment : m_segments)
        for (std::int32_t i = segment.firstRaw; i < segment.endRaw; ++i)
            if (m_raw[static_cast<std::size_t>(i)].alive)
                segment.sequence.push_back(i);
    m_placed.assign(m_raw.size(), {});
    m_itemOf.assign(m_raw.size(), 0);
    for (const Raw& raw : m_raw)
        for (const Awaits& wait : raw.waits)
            m_raw[static_cast<std::size_t>(wait.target)].awaited = true;
    for (std::uint32_t segment = 0; segment < m_segments.size(); ++segment)
        emitSegment(segment);
    saveAfterLoops();
    m_form.m_registers.assign(m_registers.size() + 1, 0);
    std::size_t ring = 1;
    while (ring <= static_cast<std::size_t>(m_furthest))
        ring *= 2;
    m_form.m_ends.assign(ring, 0);
    m_form.m_mask = ring - 1;
    TimeStretches(m_form, m_layerStarts).find();
}

void TimeCompiler::collect()
{
    using Key = std::tuple<OpKind, Stream, Phase, PayloadId, GroupId, std::int32_t, std::int16_t, std::int16_t, int>;
    std::map<Key, std::uint32_t> slots;
    std::vector<std::int32_t> rawOf(m_schedule.ops.size(), -1);
    for (const shardwright::Segment& from : m_schedule.segments) {
        if (from.firstOp == from.endOp || m_schedule.ops[from.firstOp].phase == Phase::Init)
            continue;
        Segment segment;
        segment.firstRaw = static_cast<std::int32_t>(m_raw.size());
        TimeForm::SegmentForm form;
        std::vector<std::int64_t> counts;
        for (std::uint32_t i = from.firstOp; i < from.endOp; ++i) {
            const Op& op = m_schedule.ops[i];
            Raw raw;
            raw.free = op.kind == OpKind::Allocate || op.kind == OpKind::Release;
            raw.stream = static_cast<std::uint8_t>(op.stream);
            raw.layer = op.stream == Stream::Compute ? op.layer : -1;
            const int layer = op.layer < 0 ? -1 : m_layerClasses[static_cast<std::size_t>(op.layer)];
            const Key key = raw.free ? Key{OpKind::Release, op.stream, Phase::Init, -1, -1, 0, -1, -1, -1}
                                     : Key{op.kind,         op.stream,    op.phase,   op.payload, op.group,
                                           op.payloadCount, op.firstPart, op.endPart, layer};
            const auto [known, fresh] = slots.emplace(key, static_cast<std::uint32_t>(m_form.m_slots.size()));
            if (fresh)
                m_form.m_slots.push_back(op);
            raw.slot = known->second;
            counts.resize(m_form.m_slots.size(), 0);
            ++counts[raw.slot];
            form.used[raw.stream] = true;
            m_form.m_used[raw.stream] = true;
            for (std::uint32_t w = 0; w < op.waitCount; ++w) {
                const Wait& wait = m_schedule.waits[op.firstWait + w];
                if (rawOf[static_cast<std::size_t>(wait.op)] >= 0)
                    raw.waits.push_back({rawOf[static_cast<std::size_t>(wait.op)], wait.blocksHost});
            }
            rawOf[i] = static_cast<std::int32_t>(m_raw.size());
            m_raw.push_back(std::move(raw));
        }
        segment.endRaw = static_cast<std::int32_t>(m_raw.size());
        for (std::uint32_t slot = 0; slot < counts.size(); ++slot)
            if (counts[slot] > 0)
                form.slotCounts.emplace_back(slot, counts[slot]);
        m_segments.push_back(std::move(segment));
        m_form.m_segments.push_back(std::move(form));
        m_form.m_repeats.push_back(from.repeat);
    }
}

/// A wait says nothing where what comes before on the stream, what the host has waited for, or another wait comes after
/// its target anyway. Where an operation that costs nothing is not needed for its place, those that await it await what
/// it awaits, and so does the next one on its stream; what the host waits for, it waits for at the next operation.
void TimeCompiler::dropImpliedWaits()
{
    std::vector<Ended> ended(m_raw.size(), nothing());
    std::array<std::int32_t, kStreamCount> last = nothing();
    Ended host = nothing();
    std::array<std::vector<Awaits>, kStreamCount> handedOn; // by what was dropped since the last one of the stream
    std::vector<Awaits> handedOnByHost;
    const auto has = [this](const Ended& state, std::int32_t target) {
        return state[m_raw[static_cast<std::size_t>(target)].stream] >= target;
    };
    for (std::size_t i = 0; i < m_raw.size(); ++i) {
        Raw& raw = m_raw[i];
        if (!raw.alive)
            continue;
        std::vector<Awaits> waits = std::move(handedOn[raw.stream]);
        handedOn[raw.stream].clear();
        for (const Awaits& wait : raw.waits)
            awaitInstead(wait, waits);
        std::sort(waits.begin(), waits.end(), [](const Awaits& a, const Awaits& b) {
            return std::make_tuple(!a.blocksHost, -a.target) < std::make_tuple(!b.blocksHost, -b.target);
        });
        for (const Awaits& wait : waits)
            if (wait.blocksHost && !has(host, wait.target)) {
                join(host, ended[static_cast<std::size_t>(wait.target)]);
                handedOnByHost.push_back(wait);
            }
        Ended state = host;
        if (last[raw.stream] >= 0)
            join(state, ended[static_cast<std::size_t>(last[raw.stream])]);
        raw.waits.clear();
        for (const Awaits& wait : waits)
            if (!wait.blocksHost && !has(state, wait.target)) {
                join(state, ended[static_cast<std::size_t>(wait.target)]);
                raw.waits.push_back(wait);
            }
        if (raw.stoodFor && raw.waits.size() <= kMostHandedOn) {
            raw.alive = false;
            raw.standIn = last[raw.stream];
            handedOn[raw.stream] = raw.waits;
            continue;
        }
        raw.waits.insert(raw.waits.begin(), handedOnByHost.begin(), handedOnByHost.end());
        handedOnByHost.clear();
        state[raw.stream] = static_cast<std::int32_t>(i);
        ended[i] = state;
        last[raw.stream] = static_cast<std::int32_t>(i);
    }
}

/// What stands for a wait whose target was dropped.
void TimeCompiler::awaitInstead(const Awaits& wait, std::vector<Awaits>& waits) const
{
    const Raw& target = m_raw[static_cast<std::size_t>(wait.target)];
    if (target.alive) {
        waits.push_back(wait);
        return;
    }
    waits.push_back({target.standIn, wait.blocksHost});
    for (const Awaits& instead : target.waits)
        waits.push_back({instead.target, wait.blocksHost});
}

void TimeCompiler::dropFree()
{
    for (Segment& segment : m_segments) {
        std::array<std::int32_t, kStreamCount> last = nothing();
        for (std::int32_t i = segment.firstRaw; i < segment.endRaw; ++i) {
            Raw& raw = m_raw[static_cast<std::size_t>(i)];
            std::vector<Awaits> waits;
            for (const Awaits& wait : raw.waits)
                awaitInstead(wait, waits);
            raw.waits = std::move(waits);
            // The first of its stream stands for what an earlier segment, or the step before, left on it.
            raw.alive = !raw.free || !raw.waits.empty() || last[raw.stream] < 0;
            if (raw.alive)
                last[raw.stream] = i;
            else
                raw.standIn = last[raw.stream];
        }
    }
}

/// Between others of their stream in a segment: the one before holds their place, the next one takes over.
void TimeCompiler::findStoodFor()
{
    for (const Segment& segment : m_segments) {
        std::array<bool, kStreamCount> before{};
        for (std::int32_t i = segment.firstRaw; i < segment.endRaw; ++i) {
            Raw& raw = m_raw[static_cast<std::size_t>(i)];
            raw.stoodFor = raw.alive && raw.free && before[raw.stream];
            before[raw.stream] = before[raw.stream] || raw.alive;
        }
        std::array<bool, kStreamCount> after{};
        for (std::int32_t i = segment.endRaw; i-- > segment.firstRaw;) {
            Raw& raw = m_raw[static_cast<std::size_t>(i)];
            raw.stoodFor &= after[raw.stream];
            after[raw.stream] = after[raw.stream] || (raw.alive && !raw.stoodFor);
        }
    }
}

/// Equal numbers for operations that cost the same and wait for the same at the same distance.
std::vector<int> TimeCompiler::signatures(const Segment& segment) const
{
    std::map<std::vector<std::int32_t>, int> known;
    std::vector<std::int32_t> position(m_raw.size(), -1);
    std::vector<int> result;
    for (std::size_t at = 0; at < segment.sequence.size(); ++at) {
        const auto id = static_cast<std::size_t>(segment.sequence[at]);
        const Raw& raw = m_raw[id];
        position[id] = static_cast<std::int32_t>(at);
        std::vector<std::int32_t> signature{static_cast<std::int32_t>(raw.slot)};
        for (const Awaits& wait : raw.waits) {
            const std::int32_t there = position[static_cast<std::size_t>(wait.target)];
            signature.push_back(wait.blocksHost ? 1 : 0);
            signature.push_back(there >= 0 ? static_cast<std::int32_t>(at) - there : -1 - wait.target);
        }
        result.push_back(known.emplace(signature, static_cast<int>(known.size())).first->second);
    }
    return result;
}

void TimeCompiler::findLoops(Segment& segment)
{
    const std::vector<int> signature = signatures(segment);
    const std::size_t count = signature.size();
    std::vector<std::size_t> next(count, count); // place of the next equal signature
    std::map<int, std::size_t> seen;
    for (std::size_t i = count; i-- > 0;) {
        const auto [known, fresh] = seen.emplace(signature[i], i);
        if (!fresh) {
            next[i] = known->second;
            known->second = i;
        }
    }
    for (std::size_t i = 0; i < count;) {
        Loop best{i, 1, 1};
        std::size_t again = next[i];
        for (std::size_t tried = 0; again < count && again - i <= kLongestBody && tried < kMostLengths;
             ++tried, again = next[again]) {
            const std::size_t length = again - i;
            std::size_t matching = 0;
            while (again + matching < count && signature[again + matching] == signature[i + matching])
                ++matching;
            const Loop loop{i, length, matching / length + 1};
            if (loop.repeat < kFewestIterations)
                continue;
            if (loop.repeat >= kFewestIterations + iterationsWaitedBack(segment, loop) &&
                loop.length * loop.repeat > best.length * best.repeat)
                best = loop;
        }
        if (best.repeat > 1)
            segment.loops.push_back(best);
        i += best.length * best.repeat;
    }
}

/// How many iterations back the furthest wait of a body reaches: so many at the beginning are not like the others.
std::size_t TimeCompiler::iterationsWaitedBack(const Segment& segment, const Loop& loop) const
{
    std::size_t furthest = 0;
    const auto first = segment.sequence.begin() + static_cast<std::ptrdiff_t>(loop.first);
    // Of the second iteration: the first one's waits may lie before the segment's beginning, all others' are alike.
    for (std::size_t i = loop.length; i < 2 * loop.length; ++i)
        for (const Awaits& wait : m_raw[static_cast<std::size_t>(first[static_cast<std::ptrdiff_t>(i)])].waits) {
            const auto there = std::lower_bound(segment.sequence.begin(), segment.sequence.end(), wait.target);
            if (wait.target < segment.firstRaw)
                continue;
            const auto distance = static_cast<std::size_t>(first + static_cast<std::ptrdiff_t>(i) - there);
            furthest = std::max(furthest, (distance + loop.length - 1) / loop.length);
        }
    return furthest;
}

void TimeCompiler::emitSegment(std::uint32_t index)
{
    Segment& segment = m_segments[index];
    findLoops(segment);
    TimeForm::SegmentForm& form = m_form.m_segments[index];
    form.firstNode = static_cast<std::uint32_t>(m_form.m_nodes.size());
    m_unrolled = 0;
    m_lastLoopEnd = 0;
    std::size_t at = 0;
    for (const Loop& loop : segment.loops) {
        if (at < loop.first)
            emitNode(index, at, loop.first - at, 1);
        const std::size_t unlike = iterationsWaitedBack(segment, loop);
        for (std::size_t i = 0; i < unlike; ++i)
            emitNode(index, loop.first + i * loop.length, loop.length, 1);
        emitNode(index, loop.first + unlike * loop.length, loop.length, loop.repeat - unlike);
        m_form.m_nodes.back().reach = static_cast<std::int64_t>(std::max<std::size_t>(1, unlike));
        at = loop.first + loop.length * loop.repeat;
    }
    if (at < segment.sequence.size())
        emitNode(index, at, segment.sequence.size() - at, 1);
    form.endNode = static_cast<std::uint32_t>(m_form.m_nodes.size());
}

/// `length` operations of the segment's sequence from `first` on, `repeat` times. Bodies of one loop are cut into items
/// alike, wherever they are emitted.
void TimeCompiler::emitNode(std::uint32_t index, std::size_t first, std::size_t length, std::size_t repeat)
{
    const Segment& segment = m_segments[index];
    const auto node = static_cast<std::uint32_t>(m_form.m_nodes.size());
    const auto loop = std::find_if(segment.loops.begin(), segment.loops.end(), [first](const Loop& l) {
        return first >= l.first && first < l.first + l.length * l.repeat;
    });
    const std::size_t iterations = loop == segment.loops.end() ? 1 : loop->repeat;
    const std::size_t body = loop == segment.loops.end() ? first : loop->first;
    const auto rawAt = [&](std::size_t i) -> Raw& { return m_raw[static_cast<std::size_t>(segment.sequence[i])]; };
    const auto awaitedInAnyBody = [&](std::size_t offset) {
        for (std::size_t i = 0; i < iterations; ++i)
            if (rawAt(body + i * length + offset).awaited)
                return true;
        return false;
    };
    TimeForm::Node form;
    form.firstItem = static_cast<std::uint32_t>(m_form.m_items.size());
    form.repeat = static_cast<std::int64_t>(repeat);
    std::vector<std::uint32_t> itemOf(length);
    for (std::size_t i = 0; i < length;) {
        const Raw& begin = rawAt(first + i);
        TimeForm::Item item{};
        item.saveAs = -1;
        item.stream = begin.stream;
        if (begin.layer >= 0 && begin.layer != m_layer) {
            m_layer = begin.layer;
            m_layerStarts.push_back(static_cast<std::uint32_t>(m_form.m_items.size()));
        }
        const std::int64_t at = m_unrolled + static_cast<std::int64_t>(m_form.m_items.size() - form.firstItem);
        emitWaits(begin, index, at, repeat > 1, item);
        std::vector<std::uint32_t> slots;
        bool open = true;
        while (open) {
            itemOf[i] = static_cast<std::uint32_t>(m_form.m_items.size());
            slots.push_back(rawAt(first + i).slot);
            const bool awaited = awaitedInAnyBody(i);
            // Told in this node already, so that the operations after it may wait for it.
            for (std::size_t iteration = 0; iteration < repeat; ++iteration) {
                const auto id = static_cast<std::size_t>(segment.sequence[first + iteration * length + i]);
                m_placed[id] = {index, node, at};
                m_itemOf[id] = itemOf[i];
            }
            ++i;
            open = i < length && !awaited && rawAt(first + i).stream == begin.stream && rawAt(first + i).waits.empty();
        }
        item.fused = fused(slots);
        m_form.m_items.push_back(item);
    }
    form.endItem = static_cast<std::uint32_t>(m_form.m_items.size());
    const auto items = static_cast<std::int64_t>(form.endItem - form.firstItem);
    for (std::size_t iteration = 1; iteration < repeat; ++iteration)
        for (std::size_t i = 0; i < length; ++i)
            m_placed[static_cast<std::size_t>(segment.sequence[first + iteration * length + i])].unrolled +=
                static_cast<std::int64_t>(iteration) * items;
    m_unrolled += items * form.repeat;
    m_nodeEnd.push_back(m_unrolled);
    if (repeat > 1) {
        m_lastLoopEnd = m_unrolled;
        m_furthest = std::max(m_furthest, 2 * items);
    }
    m_form.m_nodes.push_back(form);
}

void TimeCompiler::emitWaits(const Raw& raw, std::uint32_t segment, std::int64_t at, bool inLoop, TimeForm::Item& item)
{
    item.firstWait = static_cast<std::uint32_t>(m_form.m_waits.size());
    for (const Awaits& wait : raw.waits) {
        const Placed& there = m_placed[static_cast<std::size_t>(wait.target)];
        const bool sameSegment = wait.target >= m_segments[segment].firstRaw;
        m_form.m_segments[segment].alone &= sameSegment;
        const std::int64_t back = at - there.unrolled;
        const bool near = sameSegment && there.unrolled >= m_lastLoopEnd && (inLoop || back <= kFurthestBack);
        if (near)
            m_furthest = std::max(m_furthest, back);
        m_form.m_waits.push_back({near ? static_cast<std::int32_t>(back) : -registerOf(wait.target), wait.blocksHost});
    }
    item.waits = static_cast<std::uint16_t>(m_form.m_waits.size() - item.firstWait);
}

std::int32_t TimeCompiler::registerOf(std::int32_t target)
{
    const auto [known, fresh] = m_registers.emplace(target, static_cast<std::int32_t>(m_registers.size()) + 1);
    return known->second;
}

/// Ends that are waited for from afar: kept by their item, or after their loop.
void TimeCompiler::saveAfterLoops()
{
    std::vector<std::pair<std::uint32_t, TimeForm::Saved>> after;
    for (const auto& [target, reg] : m_registers) {
        const Placed& placed = m_placed[static_cast<std::size_t>(target)];
        TimeForm::Node& node = m_form.m_nodes[placed.node];
        if (node.repeat == 1) {
            m_form.m_items[m_itemOf[static_cast<std::size_t>(target)]].saveAs = reg;
            continue;
        }
        const auto back = static_cast<std::int32_t>(m_nodeEnd[placed.node] - placed.unrolled);
        const auto items = static_cast<std::int64_t>(node.endItem - node.firstItem);
        node.reach = std::max(node.reach, (back + items - 1) / items);
        m_furthest = std::max<std::int64_t>(m_furthest, back);
        after.push_back({placed.node, {back, reg}});
    }
    std::stable_sort(after.begin(), after.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (std::size_t i = 0; i < after.size(); ++i) {
        TimeForm::Node& node = m_form.m_nodes[after[i].first];
        if (i == 0 || after[i - 1].first != after[i].first)
            node.firstSaved = static_cast<std::uint32_t>(m_form.m_savedAfter.size());
        m_form.m_savedAfter.push_back(after[i].second);
        node.endSaved = static_cast<std::uint32_t>(m_form.m_savedAfter.size());
    }
}

std::uint32_t TimeCompiler::fused(const std::vector<std::uint32_t>& slots)
{
    const auto [known, fresh] = m_fusedIds.emplace(slots, static_cast<std::uint32_t>(m_form.m_fused.size()));
    if (fresh) {
        const auto first = static_cast<std::uint32_t>(m_form.m_fusedSlots.size());
        m_form.m_fusedSlots.insert(m_form.m_fusedSlots.end(), slots.begin(), slots.end());
        m_form.m_fused.push_back({first, static_cast<std::uint32_t>(m_form.m_fusedSlots.size())});
    }
    return known->second;
}

} // namespace shardwright
