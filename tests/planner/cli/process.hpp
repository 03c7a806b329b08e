#pragma once

// Runs the real shardplan as a process.

#include <map>
#include <string>
#include <vector>

#include "core/json_cursor.hpp"
#include "tests/paths.hpp"

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
};

Ran shardplan(const std::vector<std::string>& arguments, const RunOptions& options = {});

/// The output of a run that must succeed, as JSON.
Json shardplanJson(const std::vector<std::string>& arguments, const RunOptions& options = {});

/// A fresh folder, removed with all that is in it.
class TemporaryFolder {
public:
    TemporaryFolder();
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder();

    const std::string& path() const { return m_path; }
    std::string file(const std::string& name) const { return m_path + "/" + name; }
    std::string write(const std::string& name, const std::string& text) const;
    std::string read(const std::string& name) const;
    std::vector<std::string> names() const; // sorted

private:
    std::string m_path;
};

std::vector<std::string> lines(const std::string& text);

inline const std::string kScenario7b = "scenarios/llama-2-7b-8xa100.json";

} // namespace shardwright::testing
