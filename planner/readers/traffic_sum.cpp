#include "planner/readers/traffic_sum.hpp"

#include <algorithm>

namespace shardwright {

namespace {

/// Gathers and scatters an operation is worth: how Ψ counts.
int passes(OpKind kind)
{
    return kind == OpKind::AllReduce ? 2 : 1;
}

bool wholeTensor(OpKind kind)
{
    return kind == OpKind::Broadcast || kind == OpKind::Reduce;
}

} // namespace

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
            const Bytes sent =
                wholeTensor(op.kind) ? bytes : share(bytes, group.ranks - 1, group.ranks) * passes(op.kind);
            known->sentBytesPerGpu += sent;
            traffic.sentBytesPerGpu += sent;

            const double native = static_cast<double>(bitsOf(payload.native)) / 8.0;
            const double psi = bytes.asDouble() / native * passes(op.kind) / static_cast<double>(parameters);
            traffic.psi += psi;
            if (group.nodes <= 1) {
                traffic.intraNodeBytesPerGpu += sent;
                continue;
            }
            // The ranks of the group that live on one node share its links; groups beside it on the same node send too.
            const std::int64_t onNode = std::max<std::int64_t>(1, group.ranks / group.nodes);
            const std::int64_t groupsBeside = std::max<std::int64_t>(1, gpusPerNode / onNode);
            const Bytes perGroup = share(bytes, group.nodes - 1, group.nodes) * passes(op.kind);
            const Bytes perGpu = share(perGroup, 1, onNode);
            traffic.psiInterNode += psi;
            traffic.interNodeBytesPerGpu += perGpu;
            traffic.intraNodeBytesPerGpu += std::max(Bytes(0), sent - perGpu);
            traffic.interNodeBytesPerNode += perGroup * groupsBeside;
            traffic.interNodeRingBytesPerNode +=
                share(bytes, group.ranks - 1, group.ranks) * passes(op.kind) * groupsBeside;
        }
    }
    return traffic;
}

} // namespace shardwright
