#pragma once

// Exact search by branch and bound over a tree of partial assignments, on many threads.
//
// A subtree is left out only when a floor under the scores of all its candidates shows that none of them can get among
// the wanted ones. Work is done in rounds of a fixed number of subtrees; within a round every subtree sees what was
// found in earlier rounds and in itself, never what another thread finds meanwhile. So what is found, and every count,
// is the same whatever the number of threads.

#include <atomic>
#include <functional>
#include <memory>
#include <optional>

#include "planner/search/archive.hpp"

namespace shardwright::search {

/// One thread's view of a problem. What it answers must not depend on what it was asked before.
class Explorer {
public:
    virtual ~Explorer() = default;

    /// Whether the path is a whole candidate.
    virtual bool complete(const Path& path) const = 0;

    /// Values of the axis that follows the path; there may be none.
    virtual std::size_t choices(const Path& path) = 0;

    /// Figures that no candidate below the path falls short of; nothing when none of them is possible, which the
    /// explorer has then noted.
    virtual std::optional<Score> floor(const Path& path) = 0;

    /// The score of a candidate; nothing when it is not possible, or when `archive` does not admit it anyway.
    virtual std::optional<Score> evaluate(const Path& path, const Archive& archive) = 0;
};

struct Counts {
    std::int64_t evaluated = 0; // candidates whose turn came
    std::int64_t beaten = 0;    // candidates in subtrees whose floor was not admitted
};

struct Options {
    // The tree is cut into at least so many subtrees, where it has them: enough to keep many threads busy and to let
    // promising ones come first, few enough to lie in memory.
    std::size_t subtrees = 4096;
    bool everything = false; // nothing is left out: every candidate is evaluated
    bool anyWillDo = false;  // ends with the first that are found, the most promising places first: not the best, and
                             // what is left is not counted
    const std::atomic<bool>* stop = nullptr; // set to true: ends soon, with what was found so far
    // Called now and then on the calling thread: subtrees done, subtrees in all, the best so far.
    std::function<void(std::size_t, std::size_t, const Archive&)> progress;
};

struct Outcome {
    Archive archive;
    Counts counts;
    bool proven = true; // false: it was stopped before the end
};

/// One thread per explorer, the calling one among them.
Outcome explore(const std::vector<std::unique_ptr<Explorer>>& explorers, const Wanted& wanted,
                const Options& options = {});

/// Candidates below a path.
std::int64_t candidatesBelow(Explorer& explorer, const Path& path);

} // namespace shardwright::search
