#pragma once

#include <chrono>

namespace shardwright {

/// What every measured time is taken with.
using Clock = std::chrono::steady_clock;

inline double secondsSince(Clock::time_point begin)
{
    return std::chrono::duration<double>(Clock::now() - begin).count();
}

} // namespace shardwright
