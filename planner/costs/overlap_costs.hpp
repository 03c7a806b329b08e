#pragma once

// What collectives cost the computing beside them.

#include "core/cluster.hpp"
#include "core/schedule.hpp"

namespace shardwright {

/// Seconds of a step's operations, summed.
struct StepLoad {
    double computeStream = 0; // everything on the compute stream
    double kernels = 0;       // of it, what is no collective
    double collectives = 0;   // on other streams, those that NCCL runs as kernels over all its channels

    void add(const Op& op, double seconds);
};

/// Channels that NCCL opens among the GPUs of a node: as many multiprocessors its kernels hold.
int ncclChannels(LinkKind link);

/// By how many seconds a step of `seconds` is longer in truth, because kernels have fewer multiprocessors while
/// collectives run. Collectives that are waited for slow nothing; where they take longer than the computing beside
/// them, they set the pace and the slower computing is hidden behind them.
double lostBesideCollectives(const Cluster& cluster, const StepLoad& load, double seconds);

} // namespace shardwright
