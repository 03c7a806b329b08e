#include "tests/planner/execution/recorded_transfers.hpp"

#include <algorithm>
#include <utility>

namespace shardwright {

bool RecordedTransfers::act(const Action& action, const Op& op, const std::vector<BufferId>& reads,
                            const std::vector<BufferId>& writes)
{
    switch (action.verb) {
    case Verb::Move: transfer(reads, writes, false); return true;
    case Verb::Add: transfer(reads, writes, true); return true;
    case Verb::AllGather:
        for (std::size_t i = 0; i < writes.size(); ++i)
            allGather(action, reads.empty() ? writes[i] : reads[i], writes[i]);
        return true;
    case Verb::ReduceScatter:
        if (action.content >= 0)
            countContent(action.content);
        for (std::size_t i = 0; i < writes.size(); ++i)
            action.content >= 0 ? reduceScatterWithin(action, writes[i]) : reduceScatter(action, reads[i], writes[i]);
        return true;
    case Verb::AllToAll:
        for (std::size_t i = 0; i < writes.size(); ++i)
            allToAll(action, reads[i], writes[i]);
        return true;
    case Verb::AllReduce: allReduce(action, writes); return true;
    case Verb::ReduceTo:
        for (const BufferId write : writes)
            reduceTo(action, op, write);
        return true;
    case Verb::Broadcast:
        for (const BufferId write : writes)
            broadcast(action, write);
        return true;
    default: return false;
    }
}

Bytes RecordedTransfers::takeMoved()
{
    return std::exchange(m_moved, Bytes(0));
}

void RecordedTransfers::transfer(const std::vector<BufferId>& reads, const std::vector<BufferId>& writes, bool adds)
{
    bool anything = false;
    for (const BufferId write : writes)
        for (const BufferId read : reads) {
            const Content* from = m_buffers.contentOf(read);
            const Content* to = m_buffers.contentOf(write);
            if (from == nullptr || to == nullptr) {
                anything = anything || from == to; // tensors of layers
                m_moved += m_buffers.classOf(write).bytes;
                continue;
            }
            if (from->quantity != to->quantity)
                m_problems.add("{} becomes {}", m_buffers.nameOf(read), m_buffers.nameOf(write));
            std::int64_t onFirst = 0;
            for (std::int64_t rank = 0; rank < m_buffers.ranks(); ++rank) {
                const Values values = m_buffers.spread(read, rank);
                const std::vector<bool> held = m_buffers.heldBy(read, rank);
                Values& into = m_buffers.valuesOf(write, rank);
                for (const auto& [element, at] : m_buffers.elementsOn(write, rank)) {
                    const auto index = static_cast<std::size_t>(element);
                    if (!held[index])
                        continue;
                    into[at] = adds ? into[at] + values[index] : values[index];
                    anything = true;
                    onFirst += rank == 0 ? 1 : 0;
                }
            }
            countLink(read, write, onFirst);
        }
    if (!anything)
        m_problems.add("nothing is moved to {}", writes.empty() ? "nothing" : m_buffers.nameOf(writes[0]));
}

/// Payloads count what goes over a link: the whole buffer where both stand alike, else `elements`, which both hold.
void RecordedTransfers::countLink(BufferId read, BufferId write, std::int64_t elements)
{
    if (m_buffers.classOf(read).spec->place == m_buffers.classOf(write).spec->place)
        return;
    const Content& to = *m_buffers.contentOf(write);
    const bool alike = m_buffers.contentOf(read)->layout == to.layout;
    m_moved += alike ? m_buffers.bytesOf(to) : m_buffers.encodedBytes(to, elements);
}

bool RecordedTransfers::partsBelong(const Content& content, GroupId group)
{
    if (content.group == group && content.layout.parts == m_buffers.groupAt(group).ranks)
        return true;
    m_problems.add("{} parts of group {} in a collective over the {} ranks of group {}", content.layout.parts,
                   content.group, m_buffers.groupAt(group).ranks, group);
    return false;
}

void RecordedTransfers::allGather(const Action& action, BufferId read, BufferId write)
{
    const Content& part = *m_buffers.contentOf(read);
    const Content& all = *m_buffers.contentOf(write);
    if (!partsBelong(part, action.group) || part.dtype != all.dtype || part.codec != all.codec)
        m_problems.add("{} is gathered to {}", m_buffers.nameOf(read), m_buffers.nameOf(write));
    Layout layout = part.layout;
    layout.tensors = all.layout.tensors;
    layout.allParts = false;
    layout.room = 0;
    const std::int64_t length = m_buffers.elementsOf(layout);
    if (all.layout.allParts && all.layout.room == 0 && length * layout.parts != m_buffers.elementsOf(all.layout))
        m_problems.add("parts of {} do not make up {}", m_buffers.nameOf(read), m_buffers.nameOf(write));
    m_moved += m_buffers.encodedBytes(all, length) * layout.parts;
    std::vector<Values> before;
    for (std::int64_t rank = 0; rank < m_buffers.ranks(); ++rank)
        before.push_back(m_buffers.spread(read, rank));
    for (std::int64_t rank = 0; rank < m_buffers.ranks(); ++rank) {
        Values gathered(m_buffers.elements(), kVoid);
        const std::vector<std::int64_t> ranks = m_buffers.members(action.group, rank);
        for (std::size_t place = 0; place < ranks.size(); ++place)
            for (const auto& [element, at] : m_buffers.elementsIn(layout, static_cast<std::int64_t>(place)))
                gathered[static_cast<std::size_t>(element)] =
                    before[static_cast<std::size_t>(ranks[place])][static_cast<std::size_t>(element)];
        for (const auto& [element, at] : m_buffers.elementsOn(write, rank))
            m_buffers.valuesOf(write, rank)[at] = gathered[static_cast<std::size_t>(element)];
    }
}

/// By rank and element: the mean over the ranks of the group that the rank is in.
std::vector<Values> RecordedTransfers::means(BufferId buffer, GroupId group)
{
    std::vector<Values> each;
    for (std::int64_t rank = 0; rank < m_buffers.ranks(); ++rank)
        each.push_back(m_buffers.spread(buffer, rank));
    const auto size = static_cast<double>(m_buffers.groupAt(group).ranks);
    std::vector<Values> result;
    for (std::int64_t rank = 0; rank < m_buffers.ranks(); ++rank) {
        Values mean(m_buffers.elements(), 0);
        for (const std::int64_t other : m_buffers.members(group, rank))
            for (std::size_t i = 0; i < mean.size(); ++i)
                mean[i] += each[static_cast<std::size_t>(other)][i] / size;
        result.push_back(std::move(mean));
    }
    return result;
}

void RecordedTransfers::reduceScatter(const Action& action, BufferId read, BufferId write)
{
    const Content& all = *m_buffers.contentOf(read);
    if (!partsBelong(all, action.group) || !all.layout.allParts)
        m_problems.add("{} is reduced and scattered, but does not hold all parts", m_buffers.nameOf(read));
    Layout layout = all.layout;
    layout.allParts = false;
    layout.room = 0;
    const Content& part = *m_buffers.contentOf(write);
    if (read != write && (part.dtype != all.dtype || part.group != all.group))
        m_problems.add("{} is no part of {}", m_buffers.nameOf(write), m_buffers.nameOf(read));
    m_moved += m_buffers.encodedBytes(all, m_buffers.elementsOf(layout) * layout.parts);
    const std::vector<Values> mean = means(read, action.group);
    for (std::int64_t rank = 0; rank < m_buffers.ranks(); ++rank) {
        Values own(m_buffers.elements(), kVoid);
        for (const auto& [element, at] : m_buffers.elementsIn(layout, m_buffers.placeIn(all, rank)))
            own[static_cast<std::size_t>(element)] =
                mean[static_cast<std::size_t>(rank)][static_cast<std::size_t>(element)];
        for (const auto& [element, at] : m_buffers.elementsOn(write, rank))
            m_buffers.valuesOf(write, rank)[at] = own[static_cast<std::size_t>(element)];
    }
}

void RecordedTransfers::countContent(ContentId content)
{
    const Content& part = m_buffers.contentAt(content);
    m_moved += m_buffers.encodedBytes(part, m_buffers.elementsOf(part.layout) * part.layout.parts);
}

void RecordedTransfers::reduceScatterWithin(const Action& action, BufferId write)
{
    const Content& owners = m_buffers.contentAt(action.content);
    if (!partsBelong(owners, action.group) || owners.layout.allParts)
        m_problems.add("{} is reduced and scattered by what is no part", m_buffers.nameOf(write));
    if (owners.dtype != m_buffers.contentOf(write)->dtype)
        m_problems.add("{} is reduced in another dtype", m_buffers.nameOf(write));
    const std::vector<Values> mean = means(write, action.group);
    for (std::int64_t rank = 0; rank < m_buffers.ranks(); ++rank) {
        std::vector<std::int64_t> owner(m_buffers.elements(), -1);
        for (std::int64_t place = 0; place < owners.layout.parts; ++place)
            for (const auto& [element, at] : m_buffers.elementsIn(owners.layout, place))
                owner[static_cast<std::size_t>(element)] = place;
        for (const auto& [element, at] : m_buffers.elementsOn(write, rank)) {
            const auto index = static_cast<std::size_t>(element);
            if (owner[index] >= 0)
                m_buffers.valuesOf(write, rank)[at] = owner[index] == m_buffers.placeIn(owners, rank)
                                                          ? mean[static_cast<std::size_t>(rank)][index]
                                                          : kVoid;
        }
    }
}

bool RecordedTransfers::fits(BufferId read, std::int64_t sender, BufferId write, std::int64_t receiver,
                             std::int64_t place)
{
    const auto sorted = [](Elements elements) {
        std::sort(elements.begin(), elements.end(),
                  [](const ElementAt& left, const ElementAt& right) { return left.at < right.at; });
        return elements;
    };
    const auto length = static_cast<std::size_t>(m_buffers.elementsOf(m_buffers.contentOf(write)->layout));
    const std::size_t first = length * static_cast<std::size_t>(place);
    Elements sent;
    for (const auto& [element, at] : m_buffers.elementsOn(read, sender))
        if (at >= first && at < first + length)
            sent.push_back({element, at - first});
    sent = sorted(std::move(sent));
    const Elements wanted = sorted(m_buffers.elementsOn(write, receiver));
    return std::equal(sent.begin(), sent.end(), wanted.begin(), wanted.end(),
                      [](const ElementAt& left, const ElementAt& right) {
                          return left.element == right.element && left.at == right.at;
                      });
}

void RecordedTransfers::allToAll(const Action& action, BufferId read, BufferId write)
{
    const Content& from = *m_buffers.contentOf(read);
    const Content& to = *m_buffers.contentOf(write);
    const std::int64_t size = m_buffers.groupAt(action.group).ranks;
    if (from.codec != to.codec || from.block != to.block || from.dtype != to.dtype || from.versions != 1 ||
        to.versions != size || from.quantity != to.quantity || m_buffers.bytesOf(from) != m_buffers.bytesOf(to))
        m_problems.add("{} does not become {} by an exchange", m_buffers.nameOf(read), m_buffers.nameOf(write));
    m_moved += m_buffers.bytesOf(from);
    const std::vector<Values> mean = means(read, action.group);
    for (std::int64_t rank = 0; rank < m_buffers.ranks(); ++rank) {
        for (const std::int64_t sender : m_buffers.members(action.group, rank))
            if (!fits(read, sender, write, rank, m_buffers.groupAt(action.group).placeOf(rank)))
                m_problems.add("rank {} sends rank {} other elements than {} holds", sender, rank,
                               m_buffers.nameOf(write));
        for (const auto& [element, at] : m_buffers.elementsOn(write, rank))
            m_buffers.valuesOf(write, rank)[at] =
                mean[static_cast<std::size_t>(rank)][static_cast<std::size_t>(element)];
    }
}

void RecordedTransfers::allReduce(const Action& action, const std::vector<BufferId>& writes)
{
    const auto wantedOn = [&](std::int64_t rank) {
        std::vector<bool> wanted(m_buffers.elements(), action.content < 0);
        if (action.content < 0)
            return wanted;
        const Content& content = m_buffers.contentAt(action.content);
        for (const auto& [element, at] : m_buffers.elementsIn(content.layout, m_buffers.placeIn(content, rank)))
            wanted[static_cast<std::size_t>(element)] = true;
        return wanted;
    };
    std::int64_t onFirst = 0;
    for (const BufferId write : writes) {
        const std::vector<Values> mean = means(write, action.group);
        for (std::int64_t rank = 0; rank < m_buffers.ranks(); ++rank) {
            const std::vector<bool> wanted = wantedOn(rank);
            for (const auto& [element, at] : m_buffers.elementsOn(write, rank))
                if (wanted[static_cast<std::size_t>(element)]) {
                    m_buffers.valuesOf(write, rank)[at] =
                        mean[static_cast<std::size_t>(rank)][static_cast<std::size_t>(element)];
                    onFirst += rank == 0 ? 1 : 0;
                }
        }
        if (action.content < 0)
            m_moved += m_buffers.bytesOf(*m_buffers.contentOf(write));
    }
    if (action.content >= 0)
        m_moved += m_buffers.encodedBytes(m_buffers.contentAt(action.content), onFirst);
}

void RecordedTransfers::reduceTo(const Action& action, const Op& op, BufferId write)
{
    const Content& owners = m_buffers.contentAt(action.content);
    partsBelong(owners, action.group);
    const std::int64_t first = op.firstPart < 0 ? 0 : op.firstPart;
    const std::int64_t end = op.firstPart < 0 ? owners.layout.parts : op.endPart;
    std::vector<std::int64_t> owner(m_buffers.elements(), -1); // of what goes
    for (std::int64_t place = first; place < end; ++place)
        for (const auto& [element, at] : m_buffers.elementsIn(owners.layout, place))
            owner[static_cast<std::size_t>(element)] = place;
    const std::vector<Values> mean = means(write, action.group);
    std::int64_t elements = 0;
    for (std::int64_t rank = 0; rank < m_buffers.ranks(); ++rank)
        for (const auto& [element, at] : m_buffers.elementsOn(write, rank)) {
            const auto index = static_cast<std::size_t>(element);
            if (owner[index] < 0)
                continue;
            m_buffers.valuesOf(write, rank)[at] =
                owner[index] == m_buffers.placeIn(owners, rank) ? mean[static_cast<std::size_t>(rank)][index] : kVoid;
            elements += rank == 0 ? 1 : 0;
        }
    m_moved += m_buffers.encodedBytes(owners, elements);
}

void RecordedTransfers::broadcast(const Action& action, BufferId write)
{
    for (std::int64_t rank = 0; rank < m_buffers.ranks(); ++rank)
        m_buffers.valuesOf(write, rank) = m_buffers.valuesOf(write, m_buffers.members(action.group, rank).front());
    m_moved += m_buffers.bytesOf(*m_buffers.contentOf(write));
}

} // namespace shardwright
