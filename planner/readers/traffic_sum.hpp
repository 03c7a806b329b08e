#pragma once

// Reader: what a schedule sends, by collective, group and link tier, in bytes and in units of Ψ.

#include "core/plan.hpp"
#include "core/schedule.hpp"

namespace shardwright {

/// What one collective over one payload sends.
struct PayloadTraffic {
    Bytes sent;             // per rank, the mean of the group
    Bytes intraNode;        // of that, within the node
    Bytes interNode;        // per rank, between nodes
    Bytes interNodePerNode; // least that must leave a node
    Bytes ringPerNode;      // what a flat ring puts on the node's links
};

PayloadTraffic trafficOf(OpKind kind, Bytes payload, const Group& group, int gpusPerNode);

/// Units of Ψ of one collective over one payload.
double psiOf(OpKind kind, const Payload& payload, std::int64_t parameters);

/// Sums one optimizer step. `parameters`: the model's, the unit of Ψ. Textbook figures are not filled in.
///
/// Bytes that a rank sends for a tensor of S bytes over n ranks: S (n-1)/n for all-gather, reduce-scatter and
/// all-to-all, twice that for all-reduce (nccl-tests, doc/PERFORMANCE.md); for broadcast and reduce, which pass the
/// whole tensor along a chain, S on every rank but the one at its end: S (n-1)/n on average. Between nodes a group over
/// k nodes must move at least S (k-1)/k per node for a gather or scatter, twice that for an all-reduce: the part of the
/// tensor that is not on the node yet. A flat ring puts S (n-1)/n on the node's links instead.
Traffic sumTraffic(const Schedule& schedule, std::int64_t parameters, int gpusPerNode);

} // namespace shardwright
