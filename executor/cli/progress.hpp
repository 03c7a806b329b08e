#pragma once

// What a run shows while it goes on, and how it is stopped.

#include <atomic>
#include <string>

#include "executor/run/run_plan.hpp"

namespace shardwright::cli {

/// Set by Ctrl-C and termination while a StopOnSignal lives; the second Ctrl-C ends the program at once.
extern std::atomic<bool> stopRequested;

class StopOnSignal {
public:
    StopOnSignal();
};

/// A line on a terminal's standard error that is written over; a line a step elsewhere is too much, so nothing.
class Progress {
public:
    Progress();
    void show(const StepDone& done) const;
    void finish() const;

private:
    bool m_shown;
};

} // namespace shardwright::cli
