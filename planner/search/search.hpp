#pragma once

// Searching a declared space of strategies for a scenario.

#include "core/plan.hpp"
#include "planner/search/candidates.hpp"
#include "planner/search/clock.hpp"
#include "planner/search/engine.hpp"
#include "planner/search/tally.hpp"

namespace shardwright::search {

struct Request {
    /// What a candidate has to pass. Time: it is planned and timed. Plan: it is planned, and any that fits will do.
    /// Floor: its tensors and the overheads fit, and any will do.
    enum class Judge : std::uint8_t { Time, Plan, Floor };

    Objective objective = Objective::TokensPerSecond;
    std::size_t top = 10;
    bool front = false;    // instead: all that no other candidate equals or beats in memory and time
    bool judgeAll = false; // every candidate is judged, so that the tally is complete
    Judge judge = Judge::Time;
    int threads = 1;
    const std::atomic<bool>* stop = nullptr;
    std::function<void(std::size_t, std::size_t)> progress; // parts done, parts in all
};

/// A candidate that was found, with its whole plan.
struct Answer {
    Assignment assignment;
    Candidate candidate;
    Plan plan;
};

struct Result {
    std::int64_t declared = 0; // candidates of the space
    Counts counts;
    Tally rejected; // of those that were judged
    bool proven = true;
    std::vector<Answer> answers;    // the best, where they were timed
    std::vector<Assignment> passed; // some that pass, where any would do
};

/// The objective must be none of the inverse ones, or `judge` another than Time.
Result search(const Candidates& candidates, const Request& request, const MakeClock& makeClock);

} // namespace shardwright::search
