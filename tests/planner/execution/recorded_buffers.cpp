#include "tests/planner/execution/recorded_buffers.hpp"

#include <algorithm>

namespace shardwright {

RecordedBuffers::RecordedBuffers(const Schedule& schedule, const Model& model, Optimizer optimizer, std::int64_t ranks)
    : m_schedule(schedule), m_parameters(listParameters(model)), m_optimizer(optimizer), m_ranks(ranks),
      m_contentOf(schedule.contentOf)
{
    std::int64_t next = 0;
    for (const NamedParameter& parameter : m_parameters) {
        m_firstElement.push_back(next);
        next += parameter.numel;
    }
    m_elements = static_cast<std::size_t>(next);
}

int RecordedBuffers::moments() const
{
    return m_optimizer == Optimizer::Sgd ? 0 : m_optimizer == Optimizer::SgdMomentum ? 1 : 2;
}

const BufferClass& RecordedBuffers::classOf(BufferId buffer) const
{
    return m_schedule.sizes.buffers[static_cast<std::size_t>(m_schedule.buffers[static_cast<std::size_t>(buffer)])];
}

std::string RecordedBuffers::nameOf(BufferId buffer) const
{
    return fmt::format("buffer {} ({})", buffer, classOf(buffer).spec->name);
}

const Content* RecordedBuffers::contentOf(BufferId buffer) const
{
    const ContentId id = contentIdOf(buffer);
    return id < 0 ? nullptr : &contentAt(id);
}

std::vector<std::int64_t> RecordedBuffers::members(GroupId group, std::int64_t rank) const
{
    std::vector<std::int64_t> ranks;
    for (std::int64_t i = 0; i < groupAt(group).ranks; ++i)
        ranks.push_back(groupAt(group).firstRank(rank) + i * groupAt(group).stride);
    return ranks;
}

std::int64_t RecordedBuffers::placeIn(const Content& content, std::int64_t rank) const
{
    return content.group < 0 ? 0 : groupAt(content.group).placeOf(rank);
}

Bytes RecordedBuffers::encodedBytes(const Content& content, std::int64_t elements) const
{
    const auto scales = [&](std::int64_t block) {
        return shardwright::bytesOf(ceilDivide(elements, block), DType::Fp32);
    };
    switch (content.codec) {
    case Codec::None: return shardwright::bytesOf(elements, content.dtype);
    case Codec::Int8Blockwise: return shardwright::bytesOf(elements, DType::Int8) + scales(content.block);
    case Codec::Int4Blockwise: return Bytes(ceilDivide(elements, 2)) + scales(content.block);
    case Codec::Sign: return Bytes(ceilDivide(elements, 8)) + shardwright::bytesOf(1, DType::Fp32);
    case Codec::Bits: return Bytes(ceilDivide(elements, 8));
    }
    return {};
}

Bytes RecordedBuffers::bytesOf(const Content& content) const
{
    const std::int64_t copies = content.quantity == Quantity::Moments ? moments() : 1;
    const std::int64_t elements = elementsOf(content.layout) * copies;
    if (content.codec == Codec::None)
        return encodedBytes(content, elements);
    std::int64_t stretches = content.layout.allParts ? content.layout.parts : 1; // encoded one by one
    if (content.layout.cut == Cut::Swizzled)
        stretches *= content.layout.multiple;
    return encodedBytes(content, elements / stretches) * (stretches * content.versions);
}

void RecordedBuffers::make(BufferId buffer)
{
    Buffer made;
    if (const Content* content = contentOf(buffer))
        made.ofRank.assign(static_cast<std::size_t>(m_ranks),
                           Values(static_cast<std::size_t>(elementsOf(content->layout)), kVoid));
    m_live.emplace(buffer, std::move(made));
}

void RecordedBuffers::hold(BufferId buffer, ContentId content)
{
    m_contentOf[static_cast<std::size_t>(buffer)] = content;
    const auto elements = static_cast<std::size_t>(elementsOf(contentAt(content).layout));
    for (Values& values : at(buffer).ofRank)
        values.resize(std::max(elements, values.size()), kVoid);
}

void RecordedBuffers::rename(BufferId from, BufferId to)
{
    m_live.emplace(to, std::move(m_live.at(from)));
    m_live.erase(from);
}

std::set<BufferId> RecordedBuffers::liveIds() const
{
    std::set<BufferId> ids;
    for (const auto& [id, buffer] : m_live)
        ids.insert(id);
    return ids;
}

Elements RecordedBuffers::elementsIn(const Layout& layout, std::int64_t part) const
{
    Elements elements;
    for (const Extent& extent : extentsOf(layout, m_parameters, part))
        for (std::int64_t i = 0; i < extent.count; ++i)
            elements.push_back(
                {firstElement(extent.tensor) + extent.first + i, static_cast<std::size_t>(extent.at + i)});
    return elements;
}

const Elements& RecordedBuffers::elementsOn(BufferId buffer, std::int64_t rank)
{
    const Content& content = *contentOf(buffer);
    const auto key = std::make_pair(contentIdOf(buffer), placeIn(content, rank));
    const auto known = m_elementsOn.find(key);
    if (known != m_elementsOn.end())
        return known->second;
    return m_elementsOn.emplace(key, elementsIn(content.layout, key.second)).first->second;
}

Values RecordedBuffers::spread(BufferId buffer, std::int64_t rank)
{
    Values values(m_elements, kVoid);
    const Values& from = valuesOf(buffer, rank);
    for (const auto& [element, at] : elementsOn(buffer, rank))
        values[static_cast<std::size_t>(element)] = from[at];
    return values;
}

std::vector<bool> RecordedBuffers::heldBy(BufferId buffer, std::int64_t rank)
{
    std::vector<bool> held(m_elements, false);
    for (const auto& [element, at] : elementsOn(buffer, rank))
        held[static_cast<std::size_t>(element)] = true;
    return held;
}

std::int64_t RecordedBuffers::wholeAt(std::int32_t tensor, BufferId buffer, std::int64_t rank) const
{
    const Content& content = *contentOf(buffer);
    std::int64_t first = -1;
    std::int64_t next = 0;
    for (const Extent& extent : extentsOf(content.layout, m_parameters, placeIn(content, rank))) {
        if (extent.tensor != tensor)
            continue;
        if (next == 0)
            first = extent.at;
        if (extent.first != next || extent.at != first + next)
            return -1;
        next += extent.count;
    }
    return next == m_parameters[static_cast<std::size_t>(tensor)].numel ? first : -1;
}

} // namespace shardwright
