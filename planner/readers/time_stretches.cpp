#include "planner/readers/time_stretches.hpp"

#include <algorithm>

namespace shardwright {

namespace {

constexpr std::uint32_t kShortest = 12;  // items below which running them is as fast as looking them up
constexpr std::uint32_t kLongest = 60;   // what a stretch waits for within itself must not be in a register
constexpr std::size_t kFewestStates = 4; // of the clocks, that a segment or stretch is known from: more than it has
constexpr std::size_t kMostStates = 32;  // in a step

} // namespace

TimeStretches::TimeStretches(TimeForm& form, const std::vector<std::uint32_t>& layerStarts)
    : m_form(form), m_layerStarts(layerStarts), m_stretchOf(form.m_items.size(), -1), m_asked(form.m_items.size())
{
}

void TimeStretches::find()
{
    for (const TimeForm::SegmentForm& segment : m_form.m_segments) {
        const bool blocks = blocksHost(segment);
        for (std::uint32_t node = segment.firstNode; node < segment.endNode; ++node)
            cut(m_form.m_nodes[node], blocks);
    }
    for (TimeForm::SegmentForm& segment : m_form.m_segments) {
        m_form.m_apart &= segment.alone;
        findOutputs(segment);
        nameSegment(segment);
    }
    setOutputs();
    makeMemos();
    std::size_t longest = kStreamCount;
    for (const TimeForm::StretchKind& kind : m_form.m_stretchKinds)
        longest = std::max(longest, kind.program.firstEnd);
    m_form.m_state.assign(longest, 0);
}

/// Into the passes of layers where those are long enough.
void TimeStretches::cut(TimeForm::Node& node, bool blocksHost)
{
    node.firstStretch = node.endStretch = static_cast<std::uint32_t>(m_form.m_stretches.size());
    if (node.endItem - node.firstItem < kShortest)
        return;
    auto start = std::upper_bound(m_layerStarts.begin(), m_layerStarts.end(), node.firstItem);
    for (std::uint32_t first = node.firstItem; first < node.endItem;) {
        std::uint32_t end = node.endItem;
        for (; start != m_layerStarts.end() && *start < node.endItem; ++start)
            if (*start >= first + kShortest) {
                end = *start;
                break;
            }
        end = std::min(end, first + kLongest);
        addStretch(first, end, blocksHost);
        first = end;
    }
    node.endStretch = static_cast<std::uint32_t>(m_form.m_stretches.size());
}

void TimeStretches::addStretch(std::uint32_t first, std::uint32_t end, bool blocksHost)
{
    TimeForm::Stretch stretch;
    stretch.firstItem = first;
    stretch.endItem = end;
    stretch.firstInput = static_cast<std::uint32_t>(m_form.m_inputs.size());
    Signature signature{blocksHost ? 1 : 0};
    std::vector<std::int32_t> inputs;
    for (std::uint32_t i = first; i < end; ++i) {
        const TimeForm::Item& item = m_form.m_items[i];
        m_stretchOf[i] = static_cast<std::int64_t>(m_form.m_stretches.size());
        signature.insert(signature.end(), {item.fused, item.stream, item.waits});
        for (std::uint32_t w = item.firstWait; w < item.firstWait + item.waits; ++w) {
            const TimeForm::Awaited& wait = m_form.m_waits[w];
            const auto within = static_cast<std::int32_t>(i - first);
            signature.push_back(wait.blocksHost ? 1 : 0);
            if (wait.back > 0 && wait.back <= within) {
                signature.push_back(wait.back);
                continue;
            }
            const std::int32_t input = wait.back > 0 ? wait.back - within : wait.back;
            const auto known = std::find(inputs.begin(), inputs.end(), input);
            signature.push_back(-1 - (known - inputs.begin()));
            if (known == inputs.end())
                inputs.push_back(input);
        }
    }
    m_form.m_inputs.insert(m_form.m_inputs.end(), inputs.begin(), inputs.end());
    const auto [known, isNew] = m_kinds.emplace(signature, static_cast<std::uint32_t>(m_form.m_stretchKinds.size()));
    stretch.kind = known->second;
    m_form.m_stretches.push_back(stretch);
    if (!isNew)
        return;
    TimeForm::StretchKind kind;
    setProgram(stretch, inputs, blocksHost, kind);
    m_form.m_stretchKinds.push_back(std::move(kind));
}

/// Work left on a stream counts for a host that runs ahead (TimeForm::SegmentKind::ahead): only of segments that block
/// it, streams are drains.
void TimeStretches::setProgram(const TimeForm::Stretch& stretch, const std::vector<std::int32_t>& inputs,
                               bool blocksHost, TimeForm::StretchKind& kind) const
{
    std::array<bool, kStreamCount> used{};
    std::array<bool, kStreamCount> awaited{};
    const auto itemAt = [&](std::uint32_t i) -> const TimeForm::Item& { return m_form.m_items[stretch.firstItem + i]; };
    const std::uint32_t items = stretch.endItem - stretch.firstItem;
    const auto eachWait = [&](std::uint32_t i, const auto& visit) {
        const TimeForm::Item& item = itemAt(i);
        for (std::uint32_t w = item.firstWait; w < item.firstWait + item.waits; ++w) {
            const TimeForm::Awaited& wait = m_form.m_waits[w];
            const bool within = wait.back > 0 && wait.back <= static_cast<std::int32_t>(i);
            visit(wait, within ? i - static_cast<std::uint32_t>(wait.back) : items);
        }
    };
    for (std::uint32_t i = 0; i < items; ++i) {
        used[itemAt(i).stream] = true;
        eachWait(i, [&](const TimeForm::Awaited&, std::uint32_t target) {
            if (target < items)
                awaited[itemAt(target).stream] = true;
        });
    }
    std::array<std::uint16_t, kStreamCount> previous{}; // value that says when each stream is free
    for (std::size_t stream = 0; stream < kStreamCount; ++stream) {
        const auto id = static_cast<std::uint8_t>(stream);
        if (used[stream] && blocksHost && !awaited[stream])
            kind.drains.push_back(id);
        else if (used[stream]) {
            kind.streams.push_back(id);
            previous[stream] = static_cast<std::uint16_t>(kind.streams.size());
        }
    }
    kind.inputs = inputs.size();
    kind.program.firstEnd = 1 + kind.streams.size() + inputs.size();
    std::array<std::uint16_t, kStreamCount> last{};
    for (std::uint32_t i = 0; i < items; ++i) {
        const TimeForm::Item& item = itemAt(i);
        StretchProgram::Step step;
        step.fused = item.fused;
        step.previous = previous[item.stream];
        eachWait(i, [&](const TimeForm::Awaited& wait, std::uint32_t target) {
            const std::int32_t back = wait.back > 0 ? wait.back - static_cast<std::int32_t>(i) : wait.back;
            const std::size_t value =
                target < items
                    ? kind.program.firstEnd + target
                    : 1 + kind.streams.size() +
                          static_cast<std::size_t>(std::find(inputs.begin(), inputs.end(), back) - inputs.begin());
            std::uint16_t& place = wait.blocksHost ? step.hostAwaited : step.awaited;
            if (place == StretchProgram::kNothing) {
                place = static_cast<std::uint16_t>(value);
                return;
            }
            kind.program.further.push_back({static_cast<std::uint16_t>(value), wait.blocksHost});
            ++step.further;
        });
        kind.program.steps.push_back(step);
        previous[item.stream] = static_cast<std::uint16_t>(kind.program.firstEnd + i);
        last[item.stream] = static_cast<std::uint16_t>(i);
        if (!kind.drains.empty()) {
            const auto drain = std::find(kind.drains.begin(), kind.drains.end(), item.stream);
            kind.drainOf.push_back(
                static_cast<std::int8_t>(drain == kind.drains.end() ? -1 : drain - kind.drains.begin()));
        }
    }
    for (const std::uint8_t stream : kind.streams)
        kind.lastSteps.push_back(last[stream]);
    for (const std::uint8_t stream : kind.drains)
        kind.lastSteps.push_back(last[stream]);
}

bool TimeStretches::blocksHost(const TimeForm::SegmentForm& segment) const
{
    for (std::uint32_t n = segment.firstNode; n < segment.endNode; ++n)
        for (std::uint32_t i = m_form.m_nodes[n].firstItem; i < m_form.m_nodes[n].endItem; ++i)
            for (std::uint32_t w = m_form.m_items[i].firstWait;
                 w < m_form.m_items[i].firstWait + m_form.m_items[i].waits; ++w)
                if (m_form.m_waits[w].blocksHost)
                    return true;
    return false;
}

/// Goes through the segment as it runs: whose ends are looked back at from where.
void TimeStretches::findOutputs(const TimeForm::SegmentForm& segment)
{
    struct Ran {
        std::uint32_t item;
        std::int64_t turn; // of its stretch
    };
    std::vector<Ran> ran;
    std::int64_t turn = 0;
    for (std::uint32_t n = segment.firstNode; n < segment.endNode; ++n) {
        const TimeForm::Node& node = m_form.m_nodes[n];
        for (std::int64_t repetition = 0; repetition < node.repeat; ++repetition)
            for (std::uint32_t i = node.firstItem; i < node.endItem; ++i) {
                const bool begins = i == node.firstItem || m_stretchOf[i] != m_stretchOf[i - 1];
                turn += begins ? 1 : 0;
                const TimeForm::Item& item = m_form.m_items[i];
                m_asked[i] = m_asked[i] || item.saveAs >= 0;
                for (std::uint32_t w = item.firstWait; w < item.firstWait + item.waits; ++w)
                    if (const std::int32_t back = m_form.m_waits[w].back; back > 0) {
                        const Ran& there = ran[ran.size() - static_cast<std::size_t>(back)];
                        if (there.turn != turn)
                            m_asked[there.item] = true;
                    }
                ran.push_back({i, turn});
            }
        for (std::uint32_t s = node.firstSaved; s < node.endSaved; ++s)
            m_asked[ran[ran.size() - static_cast<std::size_t>(m_form.m_savedAfter[s].back)].item] = true;
    }
}

void TimeStretches::setOutputs()
{
    for (TimeForm::Stretch& stretch : m_form.m_stretches) {
        stretch.firstOutput = static_cast<std::uint32_t>(m_form.m_outputs.size());
        for (std::uint32_t i = stretch.firstItem; i < stretch.endItem; ++i)
            if (m_asked[i])
                m_form.m_outputs.push_back(i - stretch.firstItem);
        stretch.endOutput = static_cast<std::uint32_t>(m_form.m_outputs.size());
    }
}

/// As many states as a kind is met in a segment, and some more for the segments' beginnings.
void TimeStretches::makeMemos()
{
    std::vector<std::size_t> most(m_form.m_stretchKinds.size(), 0);
    for (const TimeForm::SegmentForm& segment : m_form.m_segments) {
        std::vector<std::size_t> met(most.size(), 0);
        for (std::uint32_t n = segment.firstNode; n < segment.endNode; ++n) {
            const TimeForm::Node& node = m_form.m_nodes[n];
            for (std::uint32_t s = node.firstStretch; s < node.endStretch; ++s)
                met[m_form.m_stretches[s].kind] += static_cast<std::size_t>(node.repeat);
        }
        for (std::size_t kind = 0; kind < most.size(); ++kind)
            most[kind] = std::max(most[kind], met[kind]);
    }
    for (const TimeForm::Stretch& stretch : m_form.m_stretches) {
        TimeForm::StretchKind& kind = m_form.m_stretchKinds[stretch.kind];
        const std::size_t states = std::min(most[stretch.kind] + kFewestStates, kMostStates);
        const std::size_t items = kind.program.steps.size();
        kind.memo = StretchMemo(kind.program.firstEnd, items + 2 + (kind.drains.empty() ? 0 : items), states);
    }
}

void TimeStretches::nameSegment(TimeForm::SegmentForm& segment)
{
    Signature signature;
    std::map<std::int32_t, std::int64_t> registers; // numbered as they occur
    const auto named = [&](std::int32_t reg) {
        return registers.emplace(reg, static_cast<std::int64_t>(registers.size())).first->second;
    };
    for (std::uint32_t n = segment.firstNode; n < segment.endNode; ++n) {
        const TimeForm::Node& node = m_form.m_nodes[n];
        signature.insert(signature.end(), {node.repeat, node.reach, node.endItem - node.firstItem});
        for (std::uint32_t i = node.firstItem; i < node.endItem; ++i) {
            const TimeForm::Item& item = m_form.m_items[i];
            signature.insert(signature.end(),
                             {item.fused, item.stream, item.waits, item.saveAs < 0 ? -1 : named(item.saveAs)});
            for (std::uint32_t w = item.firstWait; w < item.firstWait + item.waits; ++w) {
                const TimeForm::Awaited& wait = m_form.m_waits[w];
                signature.push_back(wait.blocksHost ? 1 : 0);
                signature.push_back(wait.back > 0 ? wait.back : -1 - named(-wait.back));
            }
        }
        for (std::uint32_t s = node.firstSaved; s < node.endSaved; ++s)
            signature.insert(signature.end(), {m_form.m_savedAfter[s].back, named(m_form.m_savedAfter[s].reg)});
    }
    const auto [known, isNew] =
        m_segmentKinds.emplace(signature, static_cast<std::uint32_t>(m_form.m_segmentKinds.size()));
    segment.kind = known->second;
    if (!isNew)
        return;
    TimeForm::SegmentKind kind;
    kind.blocksHost = blocksHost(segment);
    for (std::size_t stream = 0; stream < kStreamCount; ++stream)
        if (segment.used[stream])
            kind.streams.push_back(static_cast<std::uint8_t>(stream));
    kind.memo = StretchMemo(kind.streams.size(), kind.streams.size() + 1, kFewestStates);
    kind.ahead = StretchMemo(kind.streams.size(), kind.streams.size() + 2, kFewestStates);
    m_form.m_segmentKinds.push_back(std::move(kind));
}

} // namespace shardwright
