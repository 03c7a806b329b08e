#pragma once

// Which operation of a schedule surely has ended before which other begins, whatever each costs.

#include <array>
#include <vector>

#include "core/schedule.hpp"

namespace shardwright {

/// Follows from three rules: operations of a stream run in the order of issue; an operation begins after what it waits
/// for; and the host issues nothing while it is blocked.
class HappensBefore {
public:
    explicit HappensBefore(const Schedule& schedule);

    /// `earlier` has ended when `later` begins.
    bool operator()(OpId earlier, OpId later) const;

private:
    using Clock = std::array<OpId, kStreamCount>; // by stream: the last operation known to have ended

    const Schedule* m_schedule;
    std::vector<Clock> m_starts; // by operation
};

} // namespace shardwright
