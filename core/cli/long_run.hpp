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

/// What changes faster is no longer read.
inline constexpr std::chrono::milliseconds kProgressPause(100);

/// A line on a terminal's standard error that is written over. Nothing elsewhere: a line a step would be too much.
class ProgressLine {
public:
    /// Between two texts lies `pause` at least; those that come sooner are not shown.
    explicit ProgressLine(std::chrono::milliseconds pause = {});
    /// Ends the line where the run ended without saying so.
    ~ProgressLine();
    ProgressLine(const ProgressLine&) = delete;
    ProgressLine& operator=(const ProgressLine&) = delete;

    void show(const std::string& text);

    /// Keeps what stands there and ends the line.
    void finish();
    /// The same with a last text, whatever the time.
    void finish(const std::string& text);
    /// Takes the line away.
    void clear();

private:
    void draw(const std::string& text);

    bool m_terminal;
    bool m_stands = false;
    std::chrono::milliseconds m_pause;
    std::chrono::steady_clock::time_point m_last;
};

} // namespace shardwright::cli
