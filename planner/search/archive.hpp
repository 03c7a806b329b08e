#pragma once

// The best candidates found so far, and what they rule out.

#include <vector>

#include "planner/search/path.hpp"

namespace shardwright::search {

/// Two figures of which less is better. A ranking compares `first`, then `second`; a front weighs neither.
struct Score {
    double first = 0;
    double second = 0;
    auto operator<=>(const Score&) const = default;
};

/// A candidate and its score.
struct Found {
    Score score;
    Path path;
};

/// Which candidates are wanted: the `most` best in the order of their scores, or all that no other one equals or beats
/// in both figures.
struct Wanted {
    enum class Kind : std::uint8_t { Ranking, Front };
    Kind kind = Kind::Ranking;
    std::size_t most = 10;
};

/// What it holds depends on what was inserted, not on the order: ties are broken by the path.
class Archive {
public:
    explicit Archive(const Wanted& wanted) : m_wanted(wanted) {}

    /// Whether a candidate below `path` with no figure below those of `floor` could still get in. False is certain.
    bool admits(const Score& floor, const Path& path) const;

    void insert(const Found& found);

    /// In order: of a ranking by score, of a front by its first figure.
    const std::vector<Found>& found() const { return m_found; }

private:
    void insertInFront(const Found& found);

    Wanted m_wanted;
    std::vector<Found> m_found;
};

} // namespace shardwright::search
