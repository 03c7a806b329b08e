#pragma once

// Runs the real shardplan as a process.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/json.hpp"
#include "tests/paths.hpp"
#include "tests/temporary_folder.hpp"

namespace shardwright::testing {

struct Ran {
    int exitCode = -1; // 128 + n when signal n ended it
    std::string out;
    std::string err;
};

struct RunOptions {
    std::string input;                              // on standard input
    std::string folder = inSource("");              // working folder
    std::map<std::string, std::string> environment; // over the test's own
    std::string outputTo;                           // standard output goes to this file; Ran::out stays empty
    bool closedPipe = false;                        // nobody reads standard output
    std::int64_t largestFile = 0;                   // bytes (RLIMIT_FSIZE); 0: no limit
};

Ran shardplan(const std::vector<std::string>& arguments, const RunOptions& options = {});

/// The output of a run that must succeed, as JSON.
Json shardplanJson(const std::vector<std::string>& arguments, const RunOptions& options = {});

std::vector<std::string> lines(const std::string& text);

inline const std::string kScenario7b = "scenarios/llama-2-7b-8xa100.json";

} // namespace shardwright::testing
