#pragma once

// Reader: live bytes over a schedule, by category and place; the peak and what stands in it.

#include <array>
#include <vector>

#include "core/plan.hpp"
#include "core/schedule.hpp"

namespace shardwright {

/// Live bytes of one place at its highest, and the moment.
struct PlacePeak {
    Bytes bytes;
    OpId op = -1;
    std::vector<std::int32_t> liveCounts; // by buffer class; those of other places mean nothing
};

struct MemoryReplay {
    PlacePeak gpu; // over the step, in steady state
    CategoryBytes gpuByCategory{};
    Bytes gpuHeld;                // after the last operation
    Bytes gpuHeldBeforeFirstStep; // after the last micro-step, before lazily made states exist
    Bytes gpuPeakBeforeFirstStep; // over the micro-steps, before lazily made states exist
    Bytes gpuInitPeak;
    PlacePeak hostPinned;
    PlacePeak hostPageable;
    PlacePeak nvme;
    std::vector<CurvePoint> curve; // GPU, one point an operation that changed anything; empty unless asked for
};

/// Replays the whole schedule: initialisation, then every segment once (their repetitions are alike).
/// Throws std::logic_error when the schedule frees what is not live: a bug in a framework's rules.
MemoryReplay replayMemory(const Schedule& schedule, bool withCurve);

/// The buffers live at a peak, largest total first.
std::vector<LiveItem> liveItems(const SizeTable& sizes, const std::vector<std::int32_t>& liveCounts, Place place);

} // namespace shardwright
