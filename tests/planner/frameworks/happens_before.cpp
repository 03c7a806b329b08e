#include "tests/planner/frameworks/happens_before.hpp"

#include <algorithm>

namespace shardwright {

HappensBefore::HappensBefore(const Schedule& schedule) : m_schedule(&schedule)
{
    Clock nothing;
    nothing.fill(-1);
    Clock host = nothing;
    std::array<Clock, kStreamCount> streams; // what has ended when the stream's last operation has
    streams.fill(nothing);
    std::vector<Clock> ends;
    const auto join = [](Clock& into, const Clock& other) {
        for (std::size_t i = 0; i < into.size(); ++i)
            into[i] = std::max(into[i], other[i]);
    };
    for (const Op& op : schedule.ops) {
        Clock clock = streams[static_cast<std::size_t>(op.stream)];
        for (std::uint32_t i = 0; i < op.waitCount; ++i) {
            const Wait& wait = schedule.waits[op.firstWait + i];
            if (wait.op < 0 || static_cast<std::size_t>(wait.op) >= ends.size())
                continue; // an error that the tests report
            join(wait.blocksHost ? host : clock, ends[static_cast<std::size_t>(wait.op)]);
        }
        join(clock, host);
        m_starts.push_back(clock);
        clock[static_cast<std::size_t>(op.stream)] = static_cast<OpId>(ends.size());
        streams[static_cast<std::size_t>(op.stream)] = clock;
        ends.push_back(clock);
    }
}

bool HappensBefore::operator()(OpId earlier, OpId later) const
{
    const Op& op = m_schedule->ops[static_cast<std::size_t>(earlier)];
    return m_starts[static_cast<std::size_t>(later)][static_cast<std::size_t>(op.stream)] >= earlier;
}

} // namespace shardwright
