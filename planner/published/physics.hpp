#pragma once

// Whether a published figure can be right at all: bounds from physics that no software can pass, each with the reason
// in words. A bound errs on the side of the figure: what is not certain is not held against it.

#include <optional>
#include <string>
#include <vector>

#include "core/plan.hpp"
#include "core/scenario.hpp"
#include "planner/published/collective_passes.hpp"

namespace shardwright {

/// Floating-point operations of one optimizer step over all GPUs, of which `replicas` take micro-batches of their own.
struct FlopBounds {
    double least = 0; // what every correct implementation computes: causal attention computes half of its scores
    double most = 0;  // as generously as sources count: the whole score matrix, and recomputation of all
};
FlopBounds stepWork(const Model& model, const Training& training, std::int64_t replicas);

/// The GPU's peak for the dtype of the run's matrix products, FLOP/s; nothing where the cluster does not say.
std::optional<double> peakFlops(const Gpu& gpu, const Precision& precision);

/// A time that no step can beat, whatever it overlaps, and the link that sets it.
struct TransferBound {
    double seconds = 0;
    std::string link; // "the network between nodes: 120 GB per node at 50 GB/s"
};
TransferBound slowestTransfer(const Plan& plan, const Cluster& cluster);

/// Why the figure cannot be right under the scenario's settings; empty: nothing speaks against it.
std::vector<std::string> objections(const Scenario& scenario, const PublishedFigure& figure, const Plan& plan);

/// Why collectives cannot have been as fast as the figure says; nothing where they can.
std::optional<std::string> passObjection(const Cluster& cluster, const PublishedFigure& figure,
                                         const CollectivePass& pass);

} // namespace shardwright
