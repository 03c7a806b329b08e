#include "planner/readers/host_link.hpp"

#include <algorithm>
#include <map>
#include <utility>

namespace shardwright {

namespace {

class HostLinkReader {
public:
    HostLinkReader(const Schedule& schedule, const std::vector<NamedParameter>& parameters, std::int64_t ranks)
        : m_schedule(schedule), m_parameters(parameters), m_content(schedule.contentOf),
          m_bytes(static_cast<std::size_t>(ranks))
    {
    }

    std::vector<HostLinkBytes> run()
    {
        for (std::size_t i = 0; i < m_schedule.segments.size(); ++i) {
            const Segment& segment = m_schedule.segments[i];
            for (std::uint32_t id = segment.firstOp; id < segment.endOp; ++id)
                operation(m_schedule.ops[id], i == 0 ? 0 : segment.repeat); // the initialisation is part of no step
        }
        return std::move(m_bytes);
    }

private:
    void operation(const Op& op, std::int64_t times)
    {
        std::uint32_t event = 0;
        for (std::uint32_t i = 0; i < op.actionCount; ++i) {
            const Action& action = m_schedule.actions[op.firstAction + i];
            for (; event < action.eventsBefore; ++event)
                forget(m_schedule.events[op.firstEvent + event]);
            for (std::size_t write = 0; write < action.writes; ++write) {
                const BufferId to = operand(action, action.reads + write);
                if (action.verb == Verb::Hold)
                    m_content[static_cast<std::size_t>(to)] = action.content;
                else if ((action.verb == Verb::Move || action.verb == Verb::Add) && times > 0)
                    moveInto(action, write, to, times);
            }
        }
        for (; event < op.eventCount; ++event)
            forget(m_schedule.events[op.firstEvent + event]);
    }

    /// A buffer that is made anew holds what it was made for.
    void forget(const BufferEvent& event)
    {
        const auto buffer = static_cast<std::size_t>(event.buffer);
        if (event.change == BufferChange::Allocate)
            m_content[buffer] = m_schedule.contentOf[buffer];
    }

    void moveInto(const Action& action, std::size_t write, BufferId to, std::int64_t times)
    {
        if (contentOf(to) < 0) { // a tensor of the layers, whole
            const Bytes bytes = classOf(to).bytes;
            count(operand(action, write), to, [&](std::size_t) { return bytes * times; });
            return;
        }
        for (std::size_t read = 0; read < action.reads; ++read) {
            const BufferId from = operand(action, read);
            if (contentOf(from) < 0)
                continue;
            // What is cast on its way goes over in the dtype it arrives in.
            const DType dtype = content(to).dtype;
            count(from, to, [&](std::size_t rank) { return bytesOf(elements(from, to)[rank], dtype) * times; });
        }
    }

    template <typename BytesOf> void count(BufferId from, BufferId to, BytesOf bytesOfRank)
    {
        const bool up = onHost(from) && classOf(to).spec->place == Place::Gpu;
        const bool down = classOf(from).spec->place == Place::Gpu && onHost(to);
        for (std::size_t rank = 0; (up || down) && rank < m_bytes.size(); ++rank)
            (up ? m_bytes[rank].toDevice : m_bytes[rank].toHost) += bytesOfRank(rank);
    }

    /// That both hold, by rank. Equal partitions go over as they are, padding included.
    const std::vector<std::int64_t>& elements(BufferId from, BufferId to)
    {
        const auto key = std::pair(contentOf(from), contentOf(to));
        const auto known = m_shared.find(key);
        if (known != m_shared.end())
            return known->second;
        const Content& source = content(from);
        const Content& target = content(to);
        std::vector<std::int64_t> shared(m_bytes.size(), 0);
        const bool alike = source.layout == target.layout && source.group == target.group;
        const std::int64_t all = alike ? elementsOf(source.layout, m_parameters) : 0;
        for (std::size_t rank = 0; rank < shared.size(); ++rank)
            shared[rank] = alike ? all : common(extents(source, rank), extents(target, rank));
        return m_shared.emplace(key, std::move(shared)).first->second;
    }

    std::vector<Extent> extents(const Content& content, std::size_t rank) const
    {
        const std::int64_t part = content.group < 0 || content.layout.parts == 1
                                      ? 0
                                      : m_schedule.sizes.groups[static_cast<std::size_t>(content.group)].placeOf(
                                            static_cast<std::int64_t>(rank));
        return extentsOf(content.layout, m_parameters, part);
    }

    static std::int64_t common(const std::vector<Extent>& one, const std::vector<Extent>& other)
    {
        std::map<std::int32_t, std::vector<Extent>> byTensor;
        for (const Extent& extent : other)
            byTensor[extent.tensor].push_back(extent);
        std::int64_t sum = 0;
        for (const Extent& extent : one)
            for (const Extent& beside : byTensor[extent.tensor]) {
                const std::int64_t first = std::max(extent.first, beside.first);
                const std::int64_t end = std::min(extent.first + extent.count, beside.first + beside.count);
                sum += std::max<std::int64_t>(0, end - first);
            }
        return sum;
    }

    bool onHost(BufferId buffer) const
    {
        const Place place = classOf(buffer).spec->place;
        return place == Place::HostPinned || place == Place::HostPageable;
    }
    BufferId operand(const Action& action, std::size_t index) const
    {
        return m_schedule.operands[action.firstOperand + index];
    }
    ContentId contentOf(BufferId buffer) const { return m_content[static_cast<std::size_t>(buffer)]; }
    const Content& content(BufferId buffer) const
    {
        return m_schedule.contents[static_cast<std::size_t>(contentOf(buffer))];
    }
    const BufferClass& classOf(BufferId buffer) const
    {
        return m_schedule.sizes.buffers[static_cast<std::size_t>(m_schedule.buffers[static_cast<std::size_t>(buffer)])];
    }

    const Schedule& m_schedule;
    const std::vector<NamedParameter>& m_parameters;
    std::vector<ContentId> m_content; // by buffer, as it is now
    std::map<std::pair<ContentId, ContentId>, std::vector<std::int64_t>> m_shared;
    std::vector<HostLinkBytes> m_bytes;
};

} // namespace

std::vector<HostLinkBytes> hostLinkByRank(const Schedule& schedule, const std::vector<NamedParameter>& parameters,
                                          std::int64_t ranks)
{
    return HostLinkReader(schedule, parameters, ranks).run();
}

} // namespace shardwright
