#pragma once

// When steps, or repetitions within one, have come to move all clocks alike: what both forms of the time simulation
// extrapolate by.

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "core/schedule.hpp"

namespace shardwright {

constexpr std::size_t kHostClock = kStreamCount; // index of the host's clock beside the streams'
constexpr std::size_t kClocks = kStreamCount + 1;
using Clocks = std::array<double, kClocks>; // when each is free, in seconds

constexpr std::size_t kMostSteps = 64;       // after which steps that still change are taken as they are
constexpr std::size_t kMostRepetitions = 64; // likewise
constexpr std::size_t kMostAlternating = 8;  // steps that may differ and repeat together
constexpr double kSamePeriod = 1e-11;        // of the period: two periods are one, rounding apart
constexpr double kSameState = 1e-13;         // of the time passed: two states of the clocks are one, rounding apart
constexpr std::int64_t kWorthSkipping = 4;   // repetitions below which nothing can be left out

inline Clocks difference(const Clocks& after, const Clocks& before)
{
    Clocks result{};
    for (std::size_t i = 0; i < kClocks; ++i)
        result[i] = after[i] - before[i];
    return result;
}

inline bool same(const Clocks& a, const Clocks& b, double tolerance)
{
    for (std::size_t i = 0; i < kClocks; ++i)
        if (std::abs(a[i] - b[i]) > tolerance)
            return false;
    return true;
}

/// Whether the streams in `used` are as far ahead of the host as before. Those that are behind it count as level:
/// nothing starts before the host issues it. Then all that comes after happens as it did after `before`.
inline bool asFarAhead(const Clocks& before, const Clocks& after, const std::array<bool, kClocks>& used,
                       double tolerance)
{
    for (std::size_t clock = 0; clock < kStreamCount; ++clock) {
        const double was = std::max(0.0, before[clock] - before[kHostClock]);
        const double is = std::max(0.0, after[clock] - after[kHostClock]);
        if (used[clock] && std::abs(is - was) > tolerance)
            return false;
    }
    return true;
}

/// Whether every clock in use, and the host's, moved by the same time: then all later times do so too, for clocks
/// follow a homogeneous map.
inline bool uniform(const Clocks& advance, const std::array<bool, kClocks>& used)
{
    const double period = advance[kHostClock];
    for (std::size_t clock = 0; clock < kStreamCount; ++clock)
        if (used[clock] && std::abs(advance[clock] - period) > kSamePeriod * period)
            return false;
    return true;
}

/// How many of the last steps can stand for those to come; 0: none yet. Steps whose clocks differ count once so many
/// together moved all clocks like as many before them: the clock that moves most then always will. More than one where
/// the host's waits make steps alternate. `reached`: clocks at the beginning and after each step; `used`: streams that
/// the step runs on.
inline std::size_t stepsTogether(const std::vector<Clocks>& reached, const std::array<bool, kClocks>& used)
{
    const std::size_t last = reached.size() - 1;
    if (uniform(difference(reached[last], reached[last - 1]), used))
        return 1;
    for (std::size_t steps = 1; steps <= kMostAlternating && 2 * steps <= last; ++steps) {
        const Clocks now = difference(reached[last], reached[last - steps]);
        const Clocks before = difference(reached[last - steps], reached[last - 2 * steps]);
        if (same(now, before, kSamePeriod * *std::max_element(now.begin(), now.end())))
            return steps;
    }
    return 0;
}

/// Whether every stream in `used` moved by the compute stream's time, and the others and the host by no more.
inline bool inStep(const Clocks& advance, const std::array<bool, kClocks>& used)
{
    const double period = advance[static_cast<std::size_t>(Stream::Compute)];
    for (std::size_t clock = 0; clock < kClocks; ++clock) {
        const double behind = period - advance[clock];
        if (behind < -kSamePeriod * period || (used[clock] && clock != kHostClock && behind > kSamePeriod * period))
            return false;
    }
    return used[static_cast<std::size_t>(Stream::Compute)];
}

/// How many of the last repetitions of a segment that runs on the streams `used` can stand for those to come; 0: none
/// yet. `reached`: clocks at the beginning and after each repetition.
///
/// Once two in a row (or as many as alternate) move every stream in use by the same time, and the others and the host
/// by no more, all later ones do: clocks follow a monotone, convex, homogeneous map, so clocks that fall behind and
/// made no difference between two repetitions never will. Streams that nothing ties together run away from each other
/// instead, each at its own pace. `alone`: the segment surely waits for nothing outside it.
inline std::size_t repetitionsTogether(const std::vector<Clocks>& reached, const std::array<bool, kClocks>& used,
                                       bool alone)
{
    const std::size_t last = reached.size() - 1;
    if (alone && uniform(difference(reached[last], reached[last - 1]), used))
        return 1;
    for (std::size_t together = 1; together <= kMostAlternating && 2 * together <= last; ++together) {
        const Clocks now = difference(reached[last], reached[last - together]);
        const Clocks before = difference(reached[last - together], reached[last - 2 * together]);
        if (same(now, before, kSamePeriod * now[static_cast<std::size_t>(Stream::Compute)]) && inStep(now, used))
            return together;
    }
    return last >= kMostRepetitions ? kMostAlternating : 0;
}

} // namespace shardwright
