#pragma once

// The commands of shardrun. Each addX() declares the command's options on `root` and gives what runs it; one file per
// command.

#include <functional>

#include "core/diagnostics.hpp"

namespace CLI {
class App;
}

namespace shardwright::cli {

/// The same for every program of Shardwright.
enum class ExitCode : int {
    Done = 0,
    No = 1,          // out of tolerance under --strict, out of memory under --memory-limit
    BadInput = 2,    // findings were printed
    Environment = 3, // the machine lacks something, or a rank failed
    Interrupted = 130
};

struct Command {
    CLI::App* app = nullptr;
    std::function<ExitCode()> run;
};

Command addRun(CLI::App& root);
Command addCalibrate(CLI::App& root);
Command addValidateAll(CLI::App& root);
Command addConvertCheckpoint(CLI::App& root);

} // namespace shardwright::cli
