#pragma once

// This machine as a cluster file that the planner takes: what a rank thread's kernels reach, one by one.

#include <functional>
#include <string>

#include "core/cluster.hpp"

namespace shardwright {

struct CalibrationOptions {
    int ranks = 1;          // rank threads that work at the same time and share what they share
    int threads = 1;        // computing threads of each
    std::string nvmeFolder; // measured too where it is given
    double seconds = 0.4;   // of repeating, a figure
};

/// Runs the executor's own kernels on all ranks at once; of each, the median over repetitions and ranks. `progress` is
/// told what is measured now; it may throw to cancel.
Cluster calibrate(const CalibrationOptions& options, const std::function<void(const std::string&)>& progress = {});

} // namespace shardwright
