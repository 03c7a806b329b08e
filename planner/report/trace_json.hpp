#pragma once

// A simulated step as a Chrome trace, for chrome://tracing and ui.perfetto.dev ("Trace Event Format",
// docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU): a process for each rank drawn, a track for
// each stream, and the rank's GPU memory by category as counters; of a pipeline a process with all its stages.

#include <optional>
#include <string>
#include <vector>

#include "core/schedule.hpp"
#include "planner/parallelism/pipeline_time.hpp"
#include "planner/plan_input.hpp"
#include "planner/readers/memory_replay.hpp"
#include "planner/readers/time_simulation.hpp"

namespace shardwright {

/// The step of one rank.
struct TracedRank {
    std::string name; // "rank", "pipeline stage 1 of 4"
    const Model* model = nullptr;
    const Schedule* schedule = nullptr;
    const Timeline* timeline = nullptr;
    const MemoryReplay* memory = nullptr; // with its curve
};

/// The step of the whole job.
struct TracedJob {
    std::vector<TracedRank> ranks;
    const PipelineTimeline* pipeline = nullptr; // nothing without a pipeline
    std::optional<double> plannedSeconds; // the plan's step, with what collectives take from the computing beside them
};

/// JSON text, one event a line. Times in microseconds from when the first operation starts. Of repeated segments the
/// last repetition is drawn, as the timeline has it; a track of segments says how often each runs.
std::string traceJson(const std::string& scenario, const std::string& strategy, const TracedJob& job);

} // namespace shardwright
