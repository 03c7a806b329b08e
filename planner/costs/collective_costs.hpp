#pragma once

// Seconds of collectives by NCCL's own model of latency and bandwidth (src/graph/tuning.cc): ring, tree and NVLS, the
// fastest of the algorithms and protocols that NCCL would choose among.

#include <array>

#include "core/cluster.hpp"
#include "core/schedule.hpp"

namespace shardwright {

/// Precomputed from a cluster; asking costs some tens of nanoseconds.
class CollectiveCosts {
public:
    explicit CollectiveCosts(const Cluster& cluster);

    /// Seconds of one collective (isCollective) over `group`. `bytes`: the whole tensor as nccl-tests counts it
    /// (Payload). A group of one rank costs nothing. Groups alike on the same node run at the same time and share its
    /// network cards.
    double seconds(OpKind kind, Bytes bytes, const Group& group) const;

private:
    static constexpr std::size_t kProtocols = 3; // LL, LL128, Simple
    using PerProtocol = std::array<double, kProtocols>;

    /// A group as the links see it.
    struct Shape {
        double ranks = 1;
        double nodes = 1;
        double onNode = 1;  // ranks of the group on one node
        double network = 0; // bytes/s that the group gets out of a node
        double bus = 0;     // bytes/s around a ring: the slowest link
    };

    Shape shapeOf(const Group& group) const;
    double sharedMemory(OpKind kind, double bytes, double ranks) const;
    double ring(double steps, double interSteps, double slice, const Shape& shape) const;
    double tree(double bytes, const Shape& shape) const;
    double nvls(double bytes, const Shape& shape) const;
    double chain(double bytes, const Shape& shape) const;
    double allToAll(double bytes, const Shape& shape) const;
    double pointToPoint(double bytes, const Shape& shape) const;
    double lowLatencyLimit(double nodes) const { return m_lowLatencyLimits[nodes > 2 ? 2 : (nodes > 1 ? 1 : 0)]; }

    double m_gpusPerNode = 1;
    double m_sharedMemory = 0; // bytes/s of bus bandwidth between threads; 0 = GPUs
    double m_sharedMemoryLatency = 0;
    double m_bus = 0;          // bytes/s per GPU and direction that rings reach within a node
    double m_nodeNetwork = 0;  // bytes/s per node and direction that rings reach between nodes
    double m_gpuNetwork = 0;   // bytes/s that the cards beside one GPU carry
    double m_nvlsPortRate = 0; // bytes/s per GPU through the switch's reductions; 0 = it has none
    double m_nvlsFill = 0;     // seconds
    bool m_ll128 = false;
    bool m_lowLatencyBetweenNodes = true;
    PerProtocol m_ringHop{}; // seconds of one hop within a node
    PerProtocol m_treeHop{};
    PerProtocol m_ringNetworkHop{}; // between nodes
    PerProtocol m_treeNetworkHop{};
    double m_nvlsTreeNetworkHop = 0;
    std::array<double, 3> m_lowLatencyLimits{}; // bytes/s of the LL protocol on 1, 2 and more nodes
};

} // namespace shardwright
