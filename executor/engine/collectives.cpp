#include "executor/engine/collectives.hpp"

#include <stdexcept>

#include <fmt/format.h>

#include "executor/elements.hpp"

namespace shardwright {

namespace {

/// What an action without operands of its own for a pair works on.
BufferId at(std::span<const BufferId> buffers, std::size_t i)
{
    return i < buffers.size() ? buffers[i] : -1;
}

} // namespace

Collectives::Collectives(const ExecutablePlan& plan, Buffers& buffers, Recorder& recorder, Transport& transport)
    : m_schedule(plan.schedule), m_buffers(buffers), m_recorder(recorder), m_parameters(listParameters(plan.model))
{
    for (const Group& group : m_schedule.sizes.groups)
        m_communicators.push_back(transport.communicator(group));
}

void Collectives::run(const Op& op, const Action& action, std::span<const BufferId> reads,
                      std::span<const BufferId> writes)
{
    Communicator& group = of(action.group);
    switch (action.verb) {
    case Verb::AllGather:
        for (std::size_t i = 0; i < writes.size(); ++i)
            allGather(op, group, at(reads, i), writes[i]);
        break;
    case Verb::ReduceScatter:
        if (action.content >= 0) {
            reduceScatterContent(op, group, action.content, writes);
            break;
        }
        for (std::size_t i = 0; i < writes.size(); ++i)
            reduceScatter(op, group, reads[i], writes[i]);
        break;
    case Verb::AllReduce:
        if (action.content >= 0)
            allReduceContent(op, group, action.content, writes);
        else
            for (const BufferId buffer : writes)
                allReduce(op, group, buffer);
        break;
    case Verb::ReduceTo: reduceTo(op, group, action.content, writes); break;
    case Verb::Broadcast:
        for (const BufferId buffer : writes) {
            const Bytes bytes = m_buffers.shape(buffer).bytes;
            group.broadcast(m_buffers.data(buffer), bytes.count(), 0);
            record(op, group, bytes);
        }
        break;
    case Verb::AllToAll:
        for (std::size_t i = 0; i < writes.size(); ++i) {
            const Bytes bytes = m_buffers.shape(reads[i]).bytes;
            const Held* held = m_buffers.held(writes[i]);
            const bool alike = held == nullptr || held->content.versions == 1 ||
                               held->content.versions == static_cast<std::int64_t>(group.size());
            if (!alike || reads[i] == writes[i] || bytes != m_buffers.shape(writes[i]).bytes ||
                bytes.count() % group.size() != 0)
                throw std::logic_error(fmt::format("all-to-all of \"{}\" ({} B) into \"{}\" ({} B) over {} ranks",
                                                   m_buffers.nameOf(reads[i]), bytes.count(),
                                                   m_buffers.nameOf(writes[i]),
                                                   m_buffers.shape(writes[i]).bytes.count(), group.size()));
            group.allToAll(m_buffers.data(reads[i]), m_buffers.data(writes[i]), bytes.count() / group.size());
            record(op, group, bytes);
        }
        break;
    default: throw std::logic_error("not a collective");
    }
    for (const BufferId buffer : writes)
        m_buffers.touch(buffer);
}

void Collectives::record(const Op& op, const Communicator& group, Bytes payload)
{
    if (group.size() > 1 && payload > Bytes(0))
        m_recorder.collective(op, payload, group.lastSent());
}

std::int64_t Collectives::filled(BufferId buffer) const
{
    const Held& held = *m_buffers.held(buffer);
    return held.content.layout.tensors.empty() ? held.elements : held.filled; // scales lie in nothing but room
}

Bytes Collectives::filledBytes(BufferId buffer) const
{
    const bool encoded = m_buffers.held(buffer)->content.codec != Codec::None;
    return encoded ? m_buffers.shape(buffer).bytes : bytesOf(filled(buffer), m_buffers.shape(buffer).dtype);
}

bool Collectives::isPartOf(BufferId part, BufferId all, const Communicator& group) const
{
    const Content& one = m_buffers.held(part)->content;
    const Content& whole = m_buffers.held(all)->content;
    Layout gathered = one.layout;
    gathered.allParts = true;
    gathered.room = whole.layout.room;
    return gathered == whole.layout && one.dtype == whole.dtype && one.codec == whole.codec &&
           filled(part) * group.size() == filled(all);
}

void Collectives::allGather(const Op& op, Communicator& group, BufferId part, BufferId all)
{
    if (part >= 0 && part != all && !isPartOf(part, all, group)) {
        gatherTensors(op, group, part, all);
        return;
    }
    std::byte* to = m_buffers.data(all);
    const Bytes bytes = filledBytes(all);
    const std::int64_t each = bytes.count() / group.size();
    if (part >= 0 && part != all && m_buffers.shape(part).bytes < Bytes(each))
        throw std::logic_error(fmt::format("\"{}\" ({} B) is no {}th part of \"{}\" ({} B)", m_buffers.nameOf(part),
                                           m_buffers.shape(part).bytes.count(), group.size(), m_buffers.nameOf(all),
                                           bytes.count()));
    const std::byte* own = part < 0 || part == all ? to + group.rank() * each : m_buffers.data(part);
    group.allGather(own, to, each);
    record(op, group, bytes);
}

void Collectives::gatherTensors(const Op& op, Communicator& group, BufferId part, BufferId all)
{
    Content sent = m_buffers.held(part)->content;
    sent.layout.tensors = m_buffers.held(all)->content.layout.tensors;
    sent.layout.room = 0;
    if (sent.codec != Codec::None || m_buffers.held(all)->content.codec != Codec::None)
        throw std::logic_error(fmt::format("some tensors of \"{}\" are gathered encoded", m_buffers.nameOf(part)));
    if (sent.layout.parts != group.size())
        throw std::logic_error(fmt::format("\"{}\" is cut into {} parts, not into the {} of the group",
                                           m_buffers.nameOf(part), sent.layout.parts, group.size()));
    const auto pack = [&](const Held& from, const Held& to, const std::byte* read, std::byte* write, DType readType,
                          DType writeType) {
        for (const Run& run : common(from, to))
            convertElements(read + bytesOf(run.from, readType).count(), readType,
                            write + bytesOf(run.to, writeType).count(), writeType, run.count);
    };
    const Held own = heldBy(sent, m_parameters, group.rank(), 1);
    const Bytes bytes = bytesOf(own.elements, sent.dtype);
    const auto each = static_cast<std::size_t>(bytes.count());
    m_scratch.assign(each * static_cast<std::size_t>(group.size()), std::byte{0});
    std::byte* mine = m_scratch.data() + each * static_cast<std::size_t>(group.rank());
    pack(*m_buffers.held(part), own, m_buffers.data(part), mine, sent.dtype, sent.dtype);
    group.allGather(mine, m_scratch.data(), bytes.count());
    record(op, group, bytes * group.size());
    sent.layout.allParts = true;
    pack(heldBy(sent, m_parameters, 0, 1), *m_buffers.held(all), m_scratch.data(), m_buffers.data(all), sent.dtype,
         m_buffers.shape(all).dtype);
}

void Collectives::reduceScatter(const Op& op, Communicator& group, BufferId all, BufferId part)
{
    const TensorView whole = m_buffers.view(all);
    const std::int64_t elements = filled(all) / group.size();
    const bool alone = group.size() == 1 && filled(part) == filled(all) && m_buffers.view(part).dtype == whole.dtype;
    if (part != all && !alone && !isPartOf(part, all, group))
        throw std::logic_error(fmt::format("\"{}\" ({} {}) is not one of {} parts of \"{}\" ({} {})",
                                           m_buffers.nameOf(part), filled(part),
                                           shardwright::nameOf(m_buffers.shape(part).dtype), group.size(),
                                           m_buffers.nameOf(all), filled(all), shardwright::nameOf(whole.dtype)));
    std::byte* own = part == all ? whole.as<std::byte>() + bytesOf(elements, whole.dtype).count() * group.rank()
                                 : m_buffers.data(part);
    group.reduceScatter(whole.data, own, elements, whole.dtype);
    scaleElements(own, whole.dtype, elements, 1.0 / group.size());
    record(op, group, bytesOf(filled(all), whole.dtype));
}

void Collectives::allReduce(const Op& op, Communicator& group, BufferId buffer)
{
    const TensorView view = m_buffers.view(buffer);
    const std::int64_t elements = filled(buffer);
    group.allReduce(view.data, elements, view.dtype);
    scaleElements(view.data, view.dtype, elements, 1.0 / group.size());
    record(op, group, bytesOf(elements, view.dtype));
}

const std::vector<Run>& Collectives::runsOfPart(ContentId content, std::int64_t part, BufferId buffer)
{
    const auto key = std::tuple(content, part, m_buffers.shape(buffer).held);
    const auto known = m_partRuns.find(key);
    if (known != m_partRuns.end())
        return known->second;
    const Held* target = m_buffers.held(buffer);
    if (target == nullptr)
        throw std::logic_error(fmt::format("\"{}\" has no content", m_buffers.nameOf(buffer)));
    const Held source = heldBy(m_schedule.contents[static_cast<std::size_t>(content)], m_parameters, part, 1);
    return m_partRuns.emplace(key, common(source, *target)).first->second;
}

std::int64_t Collectives::flatten(ContentId content, std::int64_t part, std::span<const BufferId> writes, DType dtype)
{
    std::int64_t elements = 0;
    for (const BufferId buffer : writes)
        elements += elementsOf(runsOfPart(content, part, buffer));
    m_scratch.resize(static_cast<std::size_t>(bytesOf(elements, dtype).count()));
    std::int64_t at = 0;
    for (const BufferId buffer : writes) {
        const TensorView view = m_buffers.view(buffer);
        for (const Run& run : runsOfPart(content, part, buffer)) {
            convertElements(view.as<std::byte>() + bytesOf(run.to, view.dtype).count(), view.dtype,
                            m_scratch.data() + bytesOf(at, dtype).count(), dtype, run.count);
            at += run.count;
        }
    }
    return elements;
}

void Collectives::unflatten(ContentId content, std::int64_t part, std::span<const BufferId> writes, DType dtype)
{
    std::int64_t at = 0;
    for (const BufferId buffer : writes) {
        const TensorView view = m_buffers.view(buffer);
        for (const Run& run : runsOfPart(content, part, buffer)) {
            convertElements(m_scratch.data() + bytesOf(at, dtype).count(), dtype,
                            view.as<std::byte>() + bytesOf(run.to, view.dtype).count(), view.dtype, run.count);
            at += run.count;
        }
    }
}

void Collectives::allReduceContent(const Op& op, Communicator& group, ContentId content,
                                   std::span<const BufferId> writes)
{
    const Content& wanted = m_schedule.contents[static_cast<std::size_t>(content)];
    const std::int64_t part = wanted.group < 0 ? 0 : of(wanted.group).rank();
    const std::int64_t elements = flatten(content, part, writes, wanted.dtype);
    group.allReduce(m_scratch.data(), elements, wanted.dtype);
    scaleElements(m_scratch.data(), wanted.dtype, elements, 1.0 / group.size());
    unflatten(content, part, writes, wanted.dtype);
    record(op, group, bytesOf(elements, wanted.dtype));
}

void Collectives::reduceScatterContent(const Op& op, Communicator& group, ContentId content,
                                       std::span<const BufferId> writes)
{
    const Content& wanted = m_schedule.contents[static_cast<std::size_t>(content)];
    const DType dtype = wanted.dtype;
    const std::int64_t each = elementsOf(wanted.layout, m_parameters);
    m_scratch.assign(static_cast<std::size_t>(bytesOf(each * group.size(), dtype).count()), std::byte{0});
    const auto partAt = [&](std::int64_t part) { return m_scratch.data() + bytesOf(each * part, dtype).count(); };
    for (const BufferId buffer : writes) {
        const TensorView view = m_buffers.view(buffer);
        for (int part = 0; part < group.size(); ++part)
            for (const Run& run : runsOfPart(content, part, buffer))
                convertElements(view.as<std::byte>() + bytesOf(run.to, view.dtype).count(), view.dtype,
                                partAt(part) + bytesOf(run.from, dtype).count(), dtype, run.count);
    }
    std::byte* own = partAt(group.rank());
    group.reduceScatter(m_scratch.data(), own, each, dtype);
    scaleElements(own, dtype, each, 1.0 / group.size());
    record(op, group, bytesOf(each * group.size(), dtype));
    for (const BufferId buffer : writes) {
        const TensorView view = m_buffers.view(buffer);
        for (const Run& run : runsOfPart(content, group.rank(), buffer))
            convertElements(own + bytesOf(run.from, dtype).count(), dtype,
                            view.as<std::byte>() + bytesOf(run.to, view.dtype).count(), view.dtype, run.count);
    }
}

void Collectives::reduceTo(const Op& op, Communicator& group, ContentId content, std::span<const BufferId> writes)
{
    const Content& wanted = m_schedule.contents[static_cast<std::size_t>(content)];
    const bool toAll = op.firstPart < 0;
    for (int root = toAll ? 0 : op.firstPart; root < (toAll ? group.size() : op.endPart); ++root) {
        const std::int64_t elements = flatten(content, root, writes, wanted.dtype);
        if (elements == 0)
            continue;
        group.reduce(m_scratch.data(), elements, wanted.dtype, root);
        record(op, group, bytesOf(elements, wanted.dtype));
        if (root != group.rank())
            continue;
        scaleElements(m_scratch.data(), wanted.dtype, elements, 1.0 / group.size());
        unflatten(content, root, writes, wanted.dtype);
    }
}

} // namespace shardwright
