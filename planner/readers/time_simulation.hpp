#pragma once

// Reader: when every operation of a schedule starts and ends.
//
// The host issues operations in the schedule's order, each taking hostSeconds; an operation starts when the host has
// issued it, its stream is free and everything it waits for has ended. Where the host itself waits (Wait::blocksHost),
// nothing later is issued before.

#include <vector>

#include "core/plan.hpp"
#include "core/schedule.hpp"

namespace shardwright {

/// Seconds since the compute stream ended the step before. What is issued ahead of it starts below zero.
struct Interval {
    double start = 0;
    double end = 0;
};

/// Cost of every operation, by OpId.
struct OpTimes {
    std::vector<double> seconds;     // busy time on its stream
    std::vector<double> hostSeconds; // to issue it
};

struct Timeline {
    // By OpId, of one occurrence: that of the last repetition of its segment. Initialisation has none (both 0).
    std::vector<Interval> ops;
    double seconds = 0; // of the steady step, from the end of one to the end of the next
    StepBreakdown breakdown;
    double hiddenCommunicationSeconds = 0;
};

/// The schedule as one thread carries it out: operation after operation in the order of issue.
Schedule inOrderOfIssue(Schedule schedule);

/// Never more than a step takes, without simulating it: each stream, and the host, must do its own work.
double busiest(const Schedule& schedule, const OpTimes& times);

/// Simulates one step in steady state: step after step, each on the clocks that the one before left, until one moves
/// them like the one before. Repeated segments likewise; the rest of their repetitions is extrapolated.
///
/// Breakdown: the compute stream's busy time by kind of operation; where it is idle, the operations that it is waiting
/// for, each for the time that it ran meanwhile, and the host where it is still issuing.
Timeline simulate(const Schedule& schedule, const OpTimes& times);

/// Timeline::seconds alone, at a fifth of the price.
double simulatedSeconds(const Schedule& schedule, const OpTimes& times);

/// Timeline::ops and Timeline::seconds alone, the rest zero, at little more than the seconds' price.
Timeline simulatedEnds(const Schedule& schedule, const OpTimes& times);

} // namespace shardwright
