#pragma once

// What commands that take a while have in common: Ctrl-C ends them in order, and a terminal sees how far they are.

#include <atomic>
#include <chrono>
#include <string>

namespace shardwright::cli {

/// Set by Ctrl-C and termination while a StopOnSignal lives.
extern std::atomic<bool> stopRequested;

/// Lets Ctrl-C and termination end the run at the next good moment. The second Ctrl-C ends it at once.
class StopOnSignal {
public:
    StopOnSignal();
};

/// A line on a terminal's standard error that is written over, at most ten times a second. Nothing elsewhere.
class Progress {
public:
    Progress();

    void show(const std::string& text);

    /// The last text, whatever the time, and ends the line.
    void finish(const std::string& text) const;

private:
    bool m_shown;
    std::chrono::steady_clock::time_point m_last;
};

} // namespace shardwright::cli
