#pragma once

// This process in MPI's world: messages that are waited for with a time limit, and beside them, on a communicator of
// their own, the words with which ranks end one another's waiting or find out who is missing.

#include <atomic>
#include <chrono>
#include <cstdio>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <mpi.h>

#include "executor/comm/transports.hpp"

namespace shardwright {

class MpiWorld {
public:
    explicit MpiWorld(const TransportOptions& options);
    /// Ends MPI; the whole job where another rank does not come to the end.
    ~MpiWorld();
    MpiWorld(const MpiWorld&) = delete;
    MpiWorld& operator=(const MpiWorld&) = delete;

    int rank() const { return m_rank; }
    int ranks() const { return m_ranks; }
    MPI_Comm messages() const { return m_messages; }

    /// Until all have ended. `what` tells what is waited for: "all-gather of group world". TransportError as for
    /// Communicator; receives are cancelled then.
    void wait(std::vector<MPI_Request>& requests, const std::string& what);
    /// Reads the words that have come; TransportError when the run is to end.
    void listen();
    void abort(const std::string& cause) noexcept;

private:
    using Clock = std::chrono::steady_clock;
    struct Word { // on its way to another rank
        std::string text;
        MPI_Request request = MPI_REQUEST_NULL;
    };

    void endAll();
    void say(int rank, const std::string& text);
    void sayToOthers(const std::string& text);
    void announce();
    void hear();
    std::chrono::milliseconds rollCall() const;
    std::chrono::milliseconds turn() const;
    std::vector<int> missing();
    bool ended(std::vector<MPI_Request>& requests, Clock::time_point deadline);
    void cancel(std::vector<MPI_Request>& requests);

    int m_rank = 0;
    int m_ranks = 1;
    std::chrono::milliseconds m_timeLimit;
    MPI_Comm m_messages = MPI_COMM_NULL;
    MPI_Comm m_words = MPI_COMM_NULL;
    std::atomic<std::thread::id> m_owner; // made the last call
    std::deque<Word> m_outgoing;
    std::vector<bool> m_present; // answers to the last roll call
    bool m_announced = false;    // all know that the run is to end
    bool m_heard = false;        // from another rank
    bool m_lost = false;         // a rank does not answer
    std::atomic<bool> m_ending{false};
    std::mutex m_mutex; // of m_cause
    std::string m_cause;
};

} // namespace shardwright
