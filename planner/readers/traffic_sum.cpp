#include "planner/readers/traffic_sum.hpp"

#include <algorithm>

namespace shardwright {

namespace {

/// Gathers and scatters an operation is worth: how Ψ counts.
int passes(OpKind kind)
{
    return kind == OpKind::AllReduce ? 2 : 1;
}

} // namespace

PayloadTraffic trafficOf(OpKind kind, Bytes payload, const Group& group, int gpusPerNode)
{
    PayloadTraffic traffic;
    if (group.ranks <= 1 || kind == OpKind::Receive) // what arrives was counted where it was sent
        return traffic;
    const Bytes ring = share(payload, group.ranks - 1, group.ranks) * passes(kind);
    traffic.sent = kind == OpKind::Send ? payload : ring;
    traffic.intraNode = traffic.sent;
    if (group.nodes <= 1)
        return traffic;
    // The ranks of the group that live on one node share its links; groups beside it on the same node send too.
    const std::int64_t onNode = std::max<std::int64_t>(1, group.ranks / group.nodes);
    const std::int64_t groupsBeside = std::max<std::int64_t>(1, gpusPerNode / onNode);
    if (kind == OpKind::Send) { // to one other node, from every GPU at once
        traffic.interNode = payload;
        traffic.intraNode = Bytes(0);
        traffic.interNodePerNode = traffic.ringPerNode = payload * gpusPerNode;
        return traffic;
    }
    const Bytes perGroup = share(payload, group.nodes - 1, group.nodes) * passes(kind);
    traffic.interNode = share(perGroup, 1, onNode);
    traffic.intraNode = std::max(Bytes(0), traffic.sent - traffic.interNode);
    traffic.interNodePerNode = perGroup * groupsBeside;
    traffic.ringPerNode = ring * groupsBeside;
    return traffic;
}

double psiOf(OpKind kind, const Payload& payload, std::int64_t parameters)
{
    if (!payload.countsInPsi)
        return 0;
    const double elements = payload.bytes.asDouble() / (static_cast<double>(bitsOf(payload.native)) / 8.0);
    return elements * passes(kind) / static_cast<double>(parameters);
}

Traffic sumTraffic(const Schedule& schedule, std::int64_t parameters, int gpusPerNode)
{
    Traffic traffic;
    for (const Segment& segment : schedule.segments) {
        if (segment.firstOp < segment.endOp && schedule.ops[segment.firstOp].phase == Phase::Init)
            continue;
        for (std::uint32_t i = segment.firstOp; i < segment.endOp; ++i) {
            const Op& op = schedule.ops[i];
            if (op.payload < 0)
                continue;
            const Payload& payload = schedule.sizes.payloads[static_cast<std::size_t>(op.payload)];
            const std::int64_t count = checkedMultiply(segment.repeat, op.payloadCount);
            const Bytes bytes = payload.bytes * count;
            if (op.kind == OpKind::CopyToDevice)
                traffic.hostToDeviceBytes += bytes;
            else if (op.kind == OpKind::CopyToHost)
                traffic.deviceToHostBytes += bytes;
            if (!isCollective(op.kind) || op.group < 0)
                continue;
            const Group& group = schedule.sizes.groups[static_cast<std::size_t>(op.group)];
            if (group.ranks <= 1 || payload.bytes == Bytes(0))
                continue;
            auto known =
                std::find_if(traffic.collectives.begin(), traffic.collectives.end(), [&](const CollectiveTraffic& c) {
                    return c.op == op.kind && c.group == group.name && c.payload == payload.name;
                });
            if (known == traffic.collectives.end()) {
                CollectiveTraffic fresh;
                fresh.op = op.kind;
                fresh.group = group.name;
                fresh.payload = payload.name;
                fresh.ranks = group.ranks;
                fresh.nodes = group.nodes;
                traffic.collectives.push_back(fresh);
                known = traffic.collectives.end() - 1;
            }
            known->count += count;
            known->payloadBytes += bytes;
            const PayloadTraffic each = trafficOf(op.kind, payload.bytes, group, gpusPerNode);
            const Bytes sent = each.sent * count;
            known->sentBytesPerGpu += sent;
            traffic.sentBytesPerGpu += sent;

            const double psi = psiOf(op.kind, payload, parameters) * static_cast<double>(count);
            traffic.psi += psi;
            traffic.intraNodeBytesPerGpu += each.intraNode * count;
            if (group.nodes <= 1)
                continue;
            traffic.psiInterNode += psi;
            traffic.interNodeBytesPerGpu += each.interNode * count;
            traffic.interNodeBytesPerNode += each.interNodePerNode * count;
            traffic.interNodeRingBytesPerNode += each.ringPerNode * count;
        }
    }
    return traffic;
}

} // namespace shardwright
