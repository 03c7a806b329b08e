#include "executor/engine/recorder.hpp"

#include <algorithm>

#include <sys/resource.h>

#include "executor/engine/arena.hpp"

namespace shardwright {

void Recorder::beginStep(bool first)
{
    m_current = {};
    m_first = first;
    m_inStep = true;
}

void Recorder::endStep(const Arena& arena)
{
    for (const auto& [place, name] : EnumNames<Place>::table)
        m_current.places[static_cast<std::size_t>(place)] = arena.measured(place);
    m_last = std::move(m_current);
    m_current = {};
    m_hasLast = true;
    m_inStep = false;
}

void Recorder::beginOperation()
{
    m_began = Clock::now();
}

void Recorder::endOperation(OpId op, const Arena& arena)
{
    if (!m_inStep)
        return;
    const double took = secondsSince(m_began);
    const Op& done = m_schedule.ops[static_cast<std::size_t>(op)];
    if (!m_first) {
        MeasuredOperation& sum = m_operations[{done.kind, done.phase}];
        sum.op = done.kind;
        sum.phase = done.phase;
        ++sum.count;
        sum.seconds += took;
    }
    m_current.curve.push_back({op, done.phase, done.layer, arena.operationPeak(), arena.operationCategories()});
}

void Recorder::collective(const Op& op, Bytes payload, Bytes sent)
{
    if (!m_inStep)
        return;
    const Group& group = m_schedule.sizes.groups[static_cast<std::size_t>(op.group)];
    const std::string_view name =
        op.payload < 0 ? "" : m_schedule.sizes.payloads[static_cast<std::size_t>(op.payload)].name;
    auto known =
        std::find_if(m_current.collectives.begin(), m_current.collectives.end(), [&](const MeasuredCollective& each) {
            return each.op == op.kind && each.group == group.name && each.payload == name;
        });
    if (known == m_current.collectives.end()) {
        m_current.collectives.push_back({op.kind, std::string(group.name), std::string(name), group.ranks, 0, {}, {}});
        known = m_current.collectives.end() - 1;
    }
    ++known->count;
    known->payloadBytes += payload;
    known->sentBytes += sent;
}

void Recorder::moved(Place from, Place to, Bytes bytes)
{
    const auto onHost = [](Place place) { return place == Place::HostPinned || place == Place::HostPageable; };
    if (from == Place::Nvme)
        m_current.nvmeRead += bytes;
    if (to == Place::Nvme)
        m_current.nvmeWritten += bytes;
    if (onHost(from) && to == Place::Gpu)
        m_current.hostToDevice += bytes;
    if (from == Place::Gpu && onHost(to))
        m_current.deviceToHost += bytes;
}

void Recorder::scalar(Bytes bytes)
{
    ++m_current.scalarMessages;
    m_current.scalarBytes += bytes;
}

void Recorder::fill(RankMeasurement& measurement, const Arena& arena) const
{
    const Step& step = m_hasLast ? m_last : m_current;
    for (const auto& [place, name] : EnumNames<Place>::table) {
        const MeasuredPlace measured = m_hasLast ? step.places[static_cast<std::size_t>(place)] : arena.measured(place);
        if (measured.peak > Bytes(0) || place == Place::Gpu)
            measurement.places.push_back(measured);
    }
    measurement.collectives = step.collectives;
    measurement.curve = step.curve;
    measurement.hostToDevice = step.hostToDevice;
    measurement.deviceToHost = step.deviceToHost;
    measurement.nvmeRead = step.nvmeRead;
    measurement.nvmeWritten = step.nvmeWritten;
    measurement.scalarMessages = step.scalarMessages;
    measurement.scalarBytes = step.scalarBytes;
    for (const auto& [key, operation] : m_operations)
        measurement.operations.push_back(operation);
    rusage usage{};
    if (::getrusage(RUSAGE_SELF, &usage) == 0)
        measurement.residentSetSize = Bytes(usage.ru_maxrss * std::int64_t{1024}); // Linux: kilobytes
}

} // namespace shardwright
