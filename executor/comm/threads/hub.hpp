#pragma once

// What ranks that are threads of one process share: whether the run goes on, and where each of them stands.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "executor/comm/transport.hpp"

namespace shardwright {

/// Where one thread sleeps until another one has changed something for it.
class Bell {
public:
    void ring();

private:
    friend class Hub;
    std::mutex m_mutex;
    std::condition_variable m_changed;
};

/// What a call is, so that ranks which do different things find out.
struct Call {
    const char* name = ""; // a literal
    std::int64_t bytes = 0;
    DType dtype = DType::Int8;
    int root = 0;
    bool operator==(const Call& other) const;
};

/// What one rank shows to the others of a group. Written by its own thread unless said otherwise.
struct Member {
    Bell bell;
    std::atomic<std::int64_t> calls{0}; // collectives begun
    Call call;                          // the last one; read by others between two barriers
    const std::byte* shown = nullptr;   // likewise: memory they may read
    std::atomic<bool> reading{false};   // memory of others

    // Point to point. A sender sets `post` to the receiver's place; the receiver sets it to kTaking and then kNothing.
    static constexpr int kNothing = -1;
    static constexpr int kTaking = -2;
    std::atomic<int> post{kNothing};
    const std::byte* data = nullptr;
    std::int64_t bytes = 0;
};

/// What the ranks of one group share.
struct SharedGroup {
    SharedGroup(std::string groupName, std::vector<int> globalRanks);

    std::string name;
    std::vector<int> ranks; // of the transport, by place in the group
    std::vector<Member> members;
    std::atomic<std::int64_t> arrivals{0}; // at barriers, of all members since the beginning
    std::vector<double> scalars;           // of Transport::sum
};

class Hub {
public:
    Hub(int ranks, std::chrono::milliseconds timeLimit)
        : m_ranks(ranks), m_timeLimit(timeLimit), m_waiting(static_cast<std::size_t>(ranks))
    {
    }

    int ranks() const { return m_ranks; }

    /// The group of a rank's `count`-th communicator of that shape; the same object for all its ranks.
    std::shared_ptr<SharedGroup> group(const Group& group, int rank, int count);

    /// The first cause stays.
    void abort(const std::string& cause) noexcept;
    bool aborted() const { return m_aborted.load(); }
    [[noreturn]] void throwCause();

    /// Whether a rank sleeps in wait() at this moment: it is not the one that stands still.
    bool waits(int rank) const { return m_waiting[static_cast<std::size_t>(rank)].load(); }

    /// Returns once `ready`; TransportError when the run was aborted, or after the time limit, which aborts it:
    /// `late` then tells who has not come.
    void wait(int rank, Bell& bell, const std::function<bool()>& ready, const std::function<std::string()>& late);

private:
    std::string timeLimitText() const;

    int m_ranks;
    std::chrono::milliseconds m_timeLimit;
    std::vector<std::atomic<bool>> m_waiting; // by rank
    std::atomic<bool> m_aborted{false};
    std::mutex m_mutex; // of what follows
    std::string m_cause;
    std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t, int>, std::shared_ptr<SharedGroup>> m_groups;
};

} // namespace shardwright
