#pragma once

// What every program of Shardwright is: commands that end with an exit code, and one way to say what went wrong.

#include <functional>

namespace CLI {
class App;
}

namespace shardwright::cli {

enum class ExitCode : int {
    Done = 0,
    No = 1,           // the answer is no: nothing fits, a line of a batch failed, something is out of tolerance
    BadInput = 2,     // findings were printed
    Environment = 3,  // the machine lacks something, or a rank failed
    Interrupted = 130 // 128 + SIGINT, as shells report it
};

struct Command {
    CLI::App* app = nullptr;
    std::function<ExitCode()> run;
};

/// Runs `body` as the whole program, with prepared streams: what it throws is told on standard error, and becomes an
/// exit code for main. Never throws.
int runProgram(const char* name, const std::function<ExitCode()>& body);

} // namespace shardwright::cli
