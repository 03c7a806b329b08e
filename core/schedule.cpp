#include "core/schedule.hpp"

#include <algorithm>
#include <cassert>

namespace shardwright {

void SizeTable::clear()
{
    buffers.clear();
    payloads.clear();
    groups.clear();
}

BufferClassId SizeTable::addBuffer(const BufferSpec& spec, Bytes bytes, int layerType)
{
    buffers.push_back({&spec, bytes, layerType});
    return static_cast<BufferClassId>(buffers.size()) - 1;
}

PayloadId SizeTable::addPayload(const Payload& payload)
{
    payloads.push_back(payload);
    return static_cast<PayloadId>(payloads.size()) - 1;
}

GroupId SizeTable::addGroup(const Group& group)
{
    groups.push_back(group);
    return static_cast<GroupId>(groups.size()) - 1;
}

void ScheduleBuilder::beginSegment(std::string_view name, std::int64_t repeat)
{
    const auto next = static_cast<std::uint32_t>(m_schedule.ops.size());
    if (!m_schedule.segments.empty())
        m_schedule.segments.back().endOp = next;
    m_schedule.segments.push_back({name, next, next, repeat});
}

OpId ScheduleBuilder::op(OpKind kind, Stream stream, Phase phase, std::int32_t layer, std::int16_t stage)
{
    assert(!m_schedule.segments.empty());
    Op op;
    op.kind = kind;
    op.stream = stream;
    op.phase = phase;
    op.layer = layer;
    op.stage = stage;
    op.firstEvent = static_cast<std::uint32_t>(m_schedule.events.size());
    op.firstWait = static_cast<std::uint32_t>(m_schedule.waits.size());
    op.firstAction = static_cast<std::uint32_t>(m_schedule.actions.size());
    m_schedule.ops.push_back(op);
    return lastOp();
}

BufferId ScheduleBuilder::allocate(BufferClassId bufferClass, ContentId content)
{
    const auto buffer = static_cast<BufferId>(m_schedule.buffers.size());
    m_schedule.buffers.push_back(bufferClass);
    if (m_records)
        m_schedule.contentOf.push_back(content);
    change(buffer, BufferChange::Allocate);
    return buffer;
}

void ScheduleBuilder::free(BufferId buffer)
{
    change(buffer, BufferChange::Free);
}

void ScheduleBuilder::freeDeferred(BufferId buffer)
{
    change(buffer, BufferChange::FreeDeferred);
}

void ScheduleBuilder::reclaim(BufferId buffer)
{
    change(buffer, BufferChange::Reclaim);
}

void ScheduleBuilder::change(BufferId buffer, BufferChange change)
{
    m_schedule.events.push_back({buffer, change});
    ++m_schedule.ops.back().eventCount;
}

void ScheduleBuilder::send(PayloadId payload, GroupId group, std::int32_t count)
{
    Op& op = m_schedule.ops.back();
    op.payload = payload;
    op.group = group;
    op.payloadCount = count;
}

void ScheduleBuilder::wait(OpId op)
{
    addWait(op, false);
}

void ScheduleBuilder::blockHost(OpId op)
{
    addWait(op, true);
}

void ScheduleBuilder::addWait(OpId op, bool blocksHost)
{
    assert(op < lastOp());
    if (op < 0)
        return;
    m_schedule.waits.push_back({op, blocksHost});
    ++m_schedule.ops.back().waitCount;
}

void ScheduleBuilder::cover(std::size_t part)
{
    Op& op = m_schedule.ops.back();
    if (op.firstPart < 0)
        op.firstPart = static_cast<std::int16_t>(part);
    op.endPart = static_cast<std::int16_t>(part + 1);
}

ContentId ScheduleBuilder::content(const Content& content)
{
    if (!m_records)
        return -1;
    const auto known = std::find(m_schedule.contents.begin(), m_schedule.contents.end(), content);
    if (known != m_schedule.contents.end())
        return static_cast<ContentId>(known - m_schedule.contents.begin());
    m_schedule.contents.push_back(content);
    return static_cast<ContentId>(m_schedule.contents.size()) - 1;
}

void ScheduleBuilder::hold(BufferId buffer, ContentId content)
{
    if (!m_records || buffer < 0)
        return;
    ContentId& known = m_schedule.contentOf[static_cast<std::size_t>(buffer)];
    if (known < 0) {
        known = content;
        return;
    }
    Action action;
    action.verb = Verb::Hold;
    action.content = content;
    act(action, {}, {buffer});
}

void ScheduleBuilder::act(const Action& action, const std::vector<BufferId>& reads, const std::vector<BufferId>& writes)
{
    if (!m_records)
        return;
    Op& op = m_schedule.ops.back();
    Action recorded = action;
    recorded.firstOperand = static_cast<std::uint32_t>(m_schedule.operands.size());
    recorded.reads = recorded.writes = 0;
    recorded.eventsBefore = op.eventCount;
    for (const BufferId buffer : reads)
        if (buffer >= 0) {
            m_schedule.operands.push_back(buffer);
            ++recorded.reads;
        }
    for (const BufferId buffer : writes)
        if (buffer >= 0) {
            m_schedule.operands.push_back(buffer);
            ++recorded.writes;
        }
    m_schedule.actions.push_back(recorded);
    ++op.actionCount;
}

Schedule ScheduleBuilder::finish()
{
    if (!m_schedule.segments.empty())
        m_schedule.segments.back().endOp = static_cast<std::uint32_t>(m_schedule.ops.size());
    return std::move(m_schedule);
}

} // namespace shardwright
