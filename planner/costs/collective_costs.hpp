#pragma once

// Seconds of collectives by NCCL's own model of latency and bandwidth (src/graph/tuning.cc): ring, tree and NVLS, the
// fastest of the algorithms and protocols that NCCL would choose among.

#include "core/cluster.hpp"
#include "core/schedule.hpp"

namespace shardwright {

class CollectiveCosts {
public:
    explicit CollectiveCosts(const Cluster& cluster);

    /// Seconds of one collective (isCollective) over `group`. `bytes`: the whole tensor as nccl-tests counts it
    /// (Payload). A group of one rank costs nothing. Groups alike on the same node run at the same time and share its
    /// network cards.
    double seconds(OpKind kind, Bytes bytes, const Group& group) const;

private:
    const Cluster* m_cluster;
};

} // namespace shardwright
