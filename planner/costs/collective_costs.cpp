#include "planner/costs/collective_costs.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace shardwright {

namespace {

constexpr double kGiga = 1e9;

// Latencies of NCCL's model in seconds, for LL, LL128 and Simple. vendor: NCCL src/graph/tuning.cc (baseLat, hwLat).
constexpr std::array<double, 3> kRingBase{6.6e-6, 14.0e-6, 8.4e-6};
constexpr std::array<double, 3> kTreeBase{6.8e-6, 14.0e-6, 8.4e-6};
constexpr std::array<double, 3> kNvlinkRingHop{0.6e-6, 1.9e-6, 3.4e-6};
constexpr std::array<double, 3> kNvlinkTreeHop{0.6e-6, 1.25e-6, 4.0e-6};
constexpr std::array<double, 3> kPcieRingHop{1.0e-6, 2.5e-6, 5.7e-6};
constexpr std::array<double, 3> kPcieTreeHop{1.0e-6, 1.9e-6, 4.0e-6};
constexpr std::array<double, 3> kNetworkRingHop{2.7e-6, 4.0e-6, 14.0e-6};
constexpr std::array<double, 3> kNetworkTreeHop{5.0e-6, 8.5e-6, 14.0e-6};
constexpr double kNvlsBase = 25e-6;
constexpr double kNvlsTreeNetworkHop = 20.9e-6;
constexpr double kNetworkPost = 1e-6; // per message, Intel hosts (AMD 2 us)

// Shares of the wire that a protocol leaves for data. vendor: NCCL src/graph/tuning.cc.
constexpr double kLl128Share = 0.92;
constexpr double kLl128ShareOneGpuPerNode = 0.7;
constexpr double kLl128TreeShareOneNode = 7.0 / 9.0;
constexpr double kLl128TreeShare = 0.915;
constexpr double kLlRingShare = 0.5;
constexpr double kLlTreeShare = 1.0 / 3.8;
constexpr double kTreeShare = 0.92;
constexpr double kLlNetworkHopFactor = 1.8; // hops within a node are slower under LL when there are several nodes

// What a collective costs before the first byte moves, beyond NCCL's model: its kernel on every rank and their
// rendezvous. measured: 32 KiB all-reduces over 8 GPUs take 43.8 us (A100), 39.8 us (H200) and 47.8 us (B200) where the
// model has 15; the median difference (github.com/stas00/ml-engineering, network/README.md).
constexpr double kStart = 29e-6;
// Filling the pipeline of chunks, beyond NCCL's model, per NVLink hop under Simple. measured: 8x A100 all-reduce of
// 64 to 256 MiB takes 100 us (14 hops) longer than latency and asymptotic bandwidth say (same source).
constexpr double kSimpleFill = 7e-6;
// The same for the whole of an NVLS all-reduce. measured: 8x H200 and 8x B200, 16 to 256 MiB (same source).
constexpr double kNvlsFillHopper = 33e-6;
constexpr double kNvlsFillBlackwell = 100e-6;

/// What a generation of GPUs reaches over NVLink.
struct Generation {
    int computeCapability;
    double ringShare;  // bus bandwidth of large rings / nominal bandwidth of one direction
    double nvlsShare;  // bytes through a GPU's port under NVLS / nominal; 0: the switch cannot reduce
    double nvlsFill;   // seconds
    double llLimit[3]; // GB/s of the LL protocol on 1, 2 and more nodes; vendor: tuning.cc (llMaxBws)
};

// ringShare, measured at 8 to 16 GiB: A100 235 of 300 GB/s, H200 367 of 450, B200 682 of 900 (same source as kStart);
// V100: 4x V100 at Jean Zay 124 of 150 (github.com/bigscience-workshop/bigscience, experiments/bandwidth).
// nvlsShare: all-reduce over n GPUs puts S + S/n on each port; 5 to 8 H200 reach 305 GB/s there and 6 to 8 B200 541
// (same source), at any n.
constexpr Generation kGenerations[] = {
    {100, 0.758, 0.601, kNvlsFillBlackwell, {282, 90, 70}},
    {90, 0.815, 0.678, kNvlsFillHopper, {141, 45, 35}},
    {80, 0.783, 0, 0, {87.7, 22.5, 19}},
    {0, 0.827, 0, 0, {39, 39, 20.4}},
};

const Generation& generationOf(int computeCapability)
{
    for (const Generation& generation : kGenerations)
        if (computeCapability >= generation.computeCapability)
            return generation;
    return kGenerations[3];
}

// Share of the nominal bandwidth of a node's cards that rings reach. measured: EFA 381.8 of 400 GB/s (4 nodes of B200,
// same source as kStart); InfiniBand 96, 91 and 86 of 100 GB/s, the median (8x A100 nodes with four HDR cards:
// github.com/NVIDIA/nccl-tests issues 119 and 100, github.com/NVIDIA/nccl issue 1048); RoCE as InfiniBand.
// assumed: TCP over Ethernet.
double networkShare(LinkKind kind)
{
    switch (kind) {
    case LinkKind::Efa: return 0.955;
    case LinkKind::InfiniBand:
    case LinkKind::RoCE: return 0.91;
    default: return 0.8;
    }
}

std::array<double, 3> scaled(const std::array<double, 3>& values, double factor)
{
    return {values[0] * factor, values[1] * factor, values[2] * factor};
}

} // namespace

CollectiveCosts::CollectiveCosts(const Cluster& cluster) : m_gpusPerNode(std::max(1, cluster.gpusPerNode))
{
    const Link& intra = cluster.intraNode;
    const Link& inter = cluster.interNode;
    if (intra.kind == LinkKind::SharedMemory) {
        m_sharedMemory = intra.bandwidth.value;
        m_sharedMemoryLatency = intra.latency.value;
    }
    const Generation& generation = generationOf(cluster.gpu.computeCapability);
    const bool nvlink = intra.kind == LinkKind::NvLink || intra.kind == LinkKind::NvSwitch;

    // Over PCIe a cluster's figure is what peers reach already; more than one copy over the slot gets is not possible.
    m_bus = nvlink ? intra.bandwidth.value * generation.ringShare
                   : std::min(intra.bandwidth.value, cluster.pcieBandwidth.value);
    // A cluster's latency is that of a ring's hop under the Simple protocol; the others keep NCCL's proportions.
    const std::array<double, 3>& ringHop = nvlink ? kNvlinkRingHop : kPcieRingHop;
    const double intraFactor = intra.kind == LinkKind::None ? 1 : intra.latency.value / ringHop[2];
    m_ringHop = scaled(ringHop, intraFactor);
    m_treeHop = scaled(nvlink ? kNvlinkTreeHop : kPcieTreeHop, intraFactor);
    if (nvlink) {
        m_ringHop[2] += kSimpleFill;
        m_treeHop[2] += kSimpleFill;
    }
    m_ll128 = nvlink && cluster.gpu.computeCapability >= 70;
    if (intra.kind == LinkKind::NvSwitch && generation.nvlsShare > 0) {
        m_nvlsPortRate = intra.bandwidth.value * generation.nvlsShare;
        m_nvlsFill = generation.nvlsFill;
    }
    for (std::size_t i = 0; i < m_lowLatencyLimits.size(); ++i)
        m_lowLatencyLimits[i] = generation.llLimit[i] * kGiga;

    if (inter.kind == LinkKind::None)
        return;
    m_nodeNetwork = inter.bandwidth.value * networkShare(inter.kind);
    const double cards = inter.perNode > 0 ? inter.perNode : m_gpusPerNode;
    m_gpuNetwork = m_nodeNetwork / cards * std::ceil(cards / m_gpusPerNode);
    // LL and LL128 need stores to arrive in order, which EFA does not promise: its plugin leaves Simple only
    // (github.com/aws/aws-ofi-nccl).
    m_lowLatencyBetweenNodes = inter.kind != LinkKind::Efa;
    const double interFactor = inter.latency.value / kNetworkRingHop[2];
    m_ringNetworkHop = scaled(kNetworkRingHop, interFactor);
    m_treeNetworkHop = scaled(kNetworkTreeHop, interFactor);
    m_nvlsTreeNetworkHop = kNvlsTreeNetworkHop * interFactor;
}

CollectiveCosts::Shape CollectiveCosts::shapeOf(const Group& group) const
{
    Shape shape;
    shape.ranks = static_cast<double>(group.ranks);
    shape.nodes = static_cast<double>(std::clamp<std::int64_t>(group.nodes, 1, group.ranks));
    shape.onNode = std::max(1.0, std::floor(shape.ranks / shape.nodes));
    shape.bus = shape.onNode > 1 ? m_bus : std::numeric_limits<double>::infinity();
    if (shape.nodes > 1) {
        const double groupsBeside = std::max(1.0, std::floor(m_gpusPerNode / shape.onNode));
        shape.network = std::min(m_nodeNetwork / groupsBeside, m_gpuNetwork * shape.onNode);
        shape.bus = std::min(shape.bus, shape.network);
    }
    return shape;
}

/// Between the ranks of one host: the measured bus bandwidth (nccl-tests' factors, doc/PERFORMANCE.md) and latency.
double CollectiveCosts::sharedMemory(OpKind kind, double bytes, double ranks) const
{
    const double once =
        kind == OpKind::Broadcast || kind == OpKind::Reduce || kind == OpKind::Send || kind == OpKind::Receive
            ? 1
            : (ranks - 1) / ranks;
    return m_sharedMemoryLatency + bytes * once * (kind == OpKind::AllReduce ? 2 : 1) / m_sharedMemory;
}

/// `slice`: bytes that every rank passes on in one step. All hops in a row fill the ring; then every step takes as long
/// as the slowest link needs for a slice, and a link between nodes, which holds no more than the chunks of one round
/// trip, never less than its latency.
double CollectiveCosts::ring(double steps, double interSteps, double slice, const Shape& shape) const
{
    const bool manyNodes = shape.nodes > 1;
    double best = std::numeric_limits<double>::infinity();
    for (std::size_t p = manyNodes && !m_lowLatencyBetweenNodes ? 2 : 0; p < kProtocols; ++p) {
        double bandwidth = shape.bus;
        if (p == 0)
            bandwidth = std::min(bandwidth * kLlRingShare, lowLatencyLimit(shape.nodes));
        else if (p == 1 && !m_ll128)
            continue;
        else if (p == 1)
            bandwidth *= manyNodes && shape.onNode < 2 ? kLl128ShareOneGpuPerNode : kLl128Share;
        const double hop = m_ringHop[p] * (p == 0 && manyNodes ? kLlNetworkHopFactor : 1);
        const double fill = (steps - interSteps) * hop + interSteps * m_ringNetworkHop[p];
        const double pace = std::max(slice / bandwidth, manyNodes ? m_ringNetworkHop[p] : 0);
        best = std::min(best, kRingBase[p] + fill + steps * pace);
    }
    return kStart + best;
}

/// Up and down again: half the bus bandwidth.
double CollectiveCosts::tree(double bytes, const Shape& shape) const
{
    const bool manyNodes = shape.nodes > 1;
    const double levels = std::floor(std::log2(shape.nodes));
    double best = std::numeric_limits<double>::infinity();
    for (std::size_t p = manyNodes && !m_lowLatencyBetweenNodes ? 2 : 0; p < kProtocols; ++p) {
        double bandwidth = shape.bus * kTreeShare;
        if (p == 0)
            bandwidth = std::min(bandwidth * kLlTreeShare, lowLatencyLimit(shape.nodes));
        else if (p == 1 && !m_ll128)
            continue;
        else if (p == 1)
            bandwidth *= manyNodes ? kLl128TreeShare : kLl128TreeShareOneNode;
        const double hop = m_treeHop[p] * (p == 0 && manyNodes ? kLlNetworkHopFactor : 1);
        const double latency = kTreeBase[p] + 2 * ((shape.onNode - 1) * hop + levels * m_treeNetworkHop[p]);
        best = std::min(best, latency + bytes / (bandwidth / 2));
    }
    return kStart + best;
}

/// The switch reduces: a port carries the tensor once and this rank's share of it once more. Between nodes a tree.
double CollectiveCosts::nvls(double bytes, const Shape& shape) const
{
    double seconds = bytes * (1 + 1 / shape.onNode) / m_nvlsPortRate;
    double latency = kNvlsBase + m_nvlsFill;
    if (shape.nodes > 1) {
        seconds = std::max(seconds, bytes / (shape.network / 2));
        latency += 2 * std::floor(std::log2(shape.nodes)) * m_nvlsTreeNetworkHop;
    }
    return kStart + latency + seconds;
}

/// Broadcast and reduce: the whole tensor through every rank in turn, in chunks.
double CollectiveCosts::chain(double bytes, const Shape& shape) const
{
    const double hops = (shape.ranks - shape.nodes) * m_ringHop[2] + (shape.nodes - 1) * m_ringNetworkHop[2];
    return kStart + kRingBase[2] + hops + bytes / shape.bus;
}

/// Every rank of a node sends at the same time: within the node over its own link, out of it over a share of the cards.
double CollectiveCosts::allToAll(double bytes, const Shape& shape) const
{
    const double perPeer = bytes / shape.ranks;
    double wire = shape.onNode > 1 ? perPeer * (shape.onNode - 1) / m_bus : 0;
    double latency = kStart + kRingBase[2] + m_ringHop[2];
    if (shape.nodes > 1) {
        const double outside = shape.ranks - shape.onNode;
        wire = std::max(wire, perPeer * outside * shape.onNode / shape.network);
        latency += m_ringNetworkHop[2] + outside * kNetworkPost;
    }
    return latency + wire;
}

/// The pair that sets the pace is the one on two nodes, if any is.
double CollectiveCosts::pointToPoint(double bytes, const Shape& shape) const
{
    if (shape.nodes <= 1)
        return kStart + m_ringHop[2] + bytes / m_bus;
    return kStart + m_ringNetworkHop[2] + bytes / std::min(shape.network, m_gpuNetwork);
}

double CollectiveCosts::seconds(OpKind kind, Bytes bytes, const Group& group) const
{
    if (group.ranks <= 1 || bytes <= Bytes(0))
        return 0;
    const double size = bytes.asDouble();
    if (m_sharedMemory > 0)
        return sharedMemory(kind, size, static_cast<double>(group.ranks));
    const Shape shape = shapeOf(group);
    switch (kind) {
    case OpKind::AllGather:
    case OpKind::ReduceScatter: return ring(shape.ranks - 1, shape.nodes - 1, size / shape.ranks, shape);
    case OpKind::AllReduce: {
        double best = ring(2 * (shape.ranks - 1), 2 * (shape.nodes - 1), size / shape.ranks, shape);
        best = std::min(best, tree(size, shape));
        if (m_nvlsPortRate > 0 && shape.onNode > 1)
            best = std::min(best, nvls(size, shape));
        return best;
    }
    case OpKind::Reduce:
    case OpKind::Broadcast: return chain(size, shape);
    case OpKind::AllToAll: return allToAll(size, shape);
    case OpKind::Send:
    case OpKind::Receive: return pointToPoint(size, shape);
    default: return 0;
    }
}

} // namespace shardwright
