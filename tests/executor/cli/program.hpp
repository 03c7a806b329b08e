#pragma once

// Runs the real shardrun as a process, alone or under mpirun, in surroundings that are broken on purpose.

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include <sys/types.h>

#include "tests/planner/cli/process.hpp"

namespace shardwright::testing {

struct Surroundings {
    int mpiRanks = 0;              // under mpirun; 0: without
    std::string outputTo{};        // standard output goes to this file
    bool closedOutput = false;     // the program begins without standard output
    bool closedError = false;      // or standard error
    std::int64_t largestFile = 0;  // bytes (RLIMIT_FSIZE); 0: no limit
    std::int64_t addressSpace = 0; // bytes (RLIMIT_AS); 0: no limit
    std::string mount{};           // over this folder lies, for the program, a file system of its own:
    std::int64_t mountBytes = 1 << 20;
    bool mountReadOnly = false;
};

class Program {
public:
    explicit Program(const std::vector<std::string>& arguments, const Surroundings& surroundings = {});
    /// Ends what still runs.
    ~Program();
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    void signal(int number) const;
    /// Whether it has ended, or does within `limit`.
    bool ends(std::chrono::milliseconds limit);

    // Once it has ended.
    int exitCode() const; // 128 + n when signal n ended it
    bool endedBySignal(int number) const;
    /// This machine does not let a test mount file systems.
    bool couldNotMount() const;

    std::string out() const { return m_folder.read("out"); }
    std::string err() const { return m_folder.read("err"); }

    /// The process of an MPI rank, once there is one; -1 where none comes.
    pid_t rank(int number) const;

private:
    TemporaryFolder m_folder; // of its output
    pid_t m_process = -1;
    int m_status = 0;
    bool m_ended = false;
};

/// A program that is to end by itself within ten seconds: how it did.
Ran shardrun(const std::vector<std::string>& arguments, const Surroundings& surroundings = {});

void pause(std::chrono::milliseconds time);

/// Whether `condition` comes true within ten seconds.
template <typename Condition> bool comesTrue(const Condition& condition)
{
    for (int look = 0; look < 10000; ++look) {
        if (condition())
            return true;
        pause(std::chrono::milliseconds(1));
    }
    return false;
}
/// scenarios/validation/NAME.plan.json
std::string shippedPlan(const std::string& name);

} // namespace shardwright::testing
