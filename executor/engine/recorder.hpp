#pragma once

// What one rank measures while it runs.

#include <array>
#include <map>
#include <tuple>
#include <vector>

#include "core/measurement.hpp"
#include "executor/clock.hpp"

namespace shardwright {

class Arena;

class Recorder {
public:
    explicit Recorder(const Schedule& schedule) : m_schedule(schedule) {}

    /// `first`: the first step, whose times do not count (lazy buffers, cold caches).
    void beginStep(bool first);
    void endStep(const Arena& arena);

    void beginOperation();
    void endOperation(OpId op, const Arena& arena);

    /// `op` handed a tensor of `payload` bytes to its group.
    void collective(const Op& op, Bytes payload, Bytes sent);
    void moved(Place from, Place to, Bytes bytes);
    void scalar(Bytes bytes);

    /// Of the last whole step; of the one under way where there was none.
    void fill(RankMeasurement& measurement, const Arena& arena) const;

private:
    struct Step {
        std::vector<MeasuredCollective> collectives;
        std::vector<CurvePoint> curve;
        std::array<MeasuredPlace, EnumNames<Place>::table.size()> places;
        Bytes hostToDevice, deviceToHost, nvmeRead, nvmeWritten;
        std::int64_t scalarMessages = 0;
        Bytes scalarBytes;
    };

    const Schedule& m_schedule;
    Step m_current;
    Step m_last;
    bool m_hasLast = false;
    bool m_first = true;
    bool m_inStep = false; // the initialisation counts in nothing but memory
    Clock::time_point m_began;
    std::map<std::tuple<OpKind, Phase>, MeasuredOperation> m_operations;
};

} // namespace shardwright
