#include "planner/readers/time_simulation.hpp"

#include <algorithm>
#include <cmath>

#include "planner/readers/steady_state.hpp"

namespace shardwright {

namespace {

constexpr std::size_t kCompute = static_cast<std::size_t>(Stream::Compute);
constexpr std::int32_t kTheHost = -1;    // what an operation started after: the host's issuing it
constexpr std::int32_t kUnrecorded = -2; // or something before the record begins

double& partOf(StepBreakdown& breakdown, OpKind kind)
{
    if (isCollective(kind))
        return breakdown.exposedCommunication;
    switch (kind) {
    case OpKind::Forward:
    case OpKind::Backward:
    case OpKind::LossForward:
    case OpKind::LossBackward: return breakdown.compute;
    case OpKind::Recompute: return breakdown.recompute;
    case OpKind::OptimizerStep:
    case OpKind::HostOptimizerStep: return breakdown.optimizer;
    case OpKind::CopyToDevice:
    case OpKind::CopyToHost:
    case OpKind::NvmeRead:
    case OpKind::NvmeWrite: return breakdown.offload;
    default: return breakdown.other;
    }
}

/// An operation as it ran.
struct Record {
    double start;
    double end;
    OpId op;
    std::int32_t after;   // record of what it started after, or kTheHost, or kUnrecorded
    std::int32_t blocked; // record of what the host last had to wait for before issuing it, or kUnrecorded
};

/// A stretch between two ends on the compute stream that stands for `times` alike.
struct Window {
    double start;
    double end;
    std::size_t firstRecord; // of the operations issued in it
    std::size_t endRecord;
    double times;
};

struct Busy {
    double start;
    double end;
    double before; // busy seconds of the window before it
};

/// Runs steps one after the other. Clocks say when each stream and the host are free. Where repetitions are left out,
/// time stands still: only differences of clocks matter, and the seconds are counted beside.
class Simulation {
public:
    Simulation(const Schedule& schedule, const OpTimes& times)
        : m_schedule(schedule), m_times(times), m_ends(schedule.ops.size(), 0)
    {
    }

    Timeline run()
    {
        const std::size_t steps = stepsThatRepeat().steps;
        // The record takes in the step before too: what it leaves running is waited for in the next.
        m_recording = true;
        m_recordOf.assign(m_schedule.ops.size(), kUnrecorded);
        m_intervals.resize(m_schedule.ops.size());
        m_records.reserve((steps + 1) * m_schedule.ops.size());
        step();
        return recordSteps(steps);
    }

    double seconds() { return stepsThatRepeat().seconds; }

    Timeline ends()
    {
        m_intervals.resize(m_schedule.ops.size());
        Timeline timeline;
        timeline.seconds = stepsThatRepeat().seconds;
        timeline.ops = intervalsSince(m_stepStart);
        return timeline;
    }

private:
    struct Binding {
        double time;
        std::int32_t after;
    };

    struct Steady {
        std::size_t steps; // that repeat together
        double seconds;    // of each
    };

    /// Runs steps until the last ones repeat those before them.
    Steady stepsThatRepeat()
    {
        std::vector<Clocks> reached{m_clocks}; // after each step, seconds left out included
        double skipped = 0;
        while (reached.size() <= kMostSteps) {
            step();
            skipped += m_skipped;
            reached.push_back(m_clocks);
            for (double& clock : reached.back())
                clock += skipped;
            if (const std::size_t steps = stepsTogether(reached, m_stepUses); steps > 0)
                return {steps, meanOfLast(steps, reached)};
        }
        return {kMostAlternating, meanOfLast(kMostAlternating, reached)};
    }

    static double meanOfLast(std::size_t steps, const std::vector<Clocks>& reached)
    {
        const Clocks advance = difference(reached.back(), reached[reached.size() - 1 - steps]);
        return *std::max_element(advance.begin(), advance.end()) / static_cast<double>(steps);
    }

    void step()
    {
        m_skipped = 0;
        m_stepStart = m_clocks[kCompute];
        for (const Segment& segment : m_schedule.segments) {
            if (segment.firstOp == segment.endOp || m_schedule.ops[segment.firstOp].phase == Phase::Init)
                continue;
            repeat(segment);
        }
    }

    void repeat(const Segment& segment)
    {
        const bool worthIt = segment.repeat >= kWorthSkipping;
        std::vector<Clocks> reached{m_clocks};
        std::vector<std::size_t> records{m_records.size()};
        bool skips = false;
        for (std::int64_t left = segment.repeat; left > 0; --left) {
            m_used = {};
            for (std::uint32_t op = segment.firstOp; op < segment.endOp; ++op)
                issue(static_cast<OpId>(op));
            for (std::size_t stream = 0; stream < kStreamCount; ++stream)
                m_stepUses[stream] |= m_used[stream];
            if (left < 3 || skips || !worthIt)
                continue;
            reached.push_back(m_clocks);
            records.push_back(m_records.size());
            const std::size_t together = repetitionsTogether(reached, m_used, false);
            if (together == 0)
                continue;
            skips = true;
            const auto each = static_cast<std::int64_t>(together);
            const std::int64_t rounds = (left - 2) / each; // the last repetition is carried out
            const std::size_t from = reached.size() - 1 - together;
            skip(segment, reached[from], records[from], static_cast<double>(rounds));
            left -= rounds * each;
        }
    }

    /// Leaves out `times` repetitions like those since `from`.
    void skip(const Segment& segment, const Clocks& from, std::size_t firstRecord, double times)
    {
        const Clocks advance = difference(m_clocks, from);
        const double period = advance[kCompute];
        if (m_recording)
            m_windows.push_back({from[kCompute], m_clocks[kCompute], firstRecord, m_records.size(), times});
        for (std::size_t clock = 0; clock < kClocks; ++clock)
            m_clocks[clock] -= times * (period - advance[clock]);
        for (std::uint32_t op = 0; op < segment.firstOp; ++op)
            m_ends[op] -= times * period;
        m_skipped += times * period;
    }

    void issue(OpId id)
    {
        const auto index = static_cast<std::size_t>(id);
        const Op& op = m_schedule.ops[index];
        const auto stream = static_cast<std::size_t>(op.stream);
        double& host = m_clocks[kHostClock];
        const Wait* waits = m_schedule.waits.data() + op.firstWait;
        for (std::uint32_t i = 0; i < op.waitCount; ++i)
            if (waits[i].blocksHost && m_ends[static_cast<std::size_t>(waits[i].op)] > host) {
                host = m_ends[static_cast<std::size_t>(waits[i].op)];
                m_blocked = recordOf(waits[i].op);
            }
        host += m_times.hostSeconds[index];
        Binding binding{host, kTheHost};
        if (m_clocks[stream] >= binding.time)
            binding = {m_clocks[stream], m_last[stream]};
        for (std::uint32_t i = 0; i < op.waitCount; ++i)
            if (const auto awaited = static_cast<std::size_t>(waits[i].op);
                !waits[i].blocksHost && m_ends[awaited] > binding.time)
                binding = {m_ends[awaited], recordOf(waits[i].op)};
        const double end = binding.time + m_times.seconds[index];
        m_ends[index] = end;
        m_clocks[stream] = end;
        m_used[stream] = true;
        if (!m_intervals.empty())
            m_intervals[index] = {binding.time + m_skipped, end + m_skipped};
        if (!m_recording)
            return;
        m_recordOf[index] = static_cast<std::int32_t>(m_records.size());
        m_last[stream] = m_recordOf[index];
        m_records.push_back({binding.time, end, id, binding.after, m_blocked});
    }

    std::int32_t recordOf(OpId op) const
    {
        return m_recording ? m_recordOf[static_cast<std::size_t>(op)] : kUnrecorded;
    }

    /// Of every operation, as it last ran.
    std::vector<Interval> intervalsSince(double start)
    {
        for (const Segment& segment : m_schedule.segments)
            for (std::uint32_t op = segment.firstOp; op < segment.endOp; ++op)
                if (m_schedule.ops[segment.firstOp].phase != Phase::Init) {
                    m_intervals[op].start -= start;
                    m_intervals[op].end -= start;
                }
        return std::move(m_intervals);
    }

    Timeline recordSteps(std::size_t steps)
    {
        m_windows.clear();
        const double each = 1.0 / static_cast<double>(steps);
        const Clocks begin = m_clocks;
        const std::size_t firstRecord = m_records.size();
        double skipped = 0;
        for (std::size_t i = 0; i < steps; ++i) {
            step();
            skipped += m_skipped;
        }
        m_windows.push_back({begin[kCompute], m_clocks[kCompute], firstRecord, m_records.size(), 1});

        Timeline timeline;
        timeline.ops = intervalsSince(m_stepStart);
        for (Window& window : m_windows) {
            window.times *= each;
            addBreakdown(window, timeline.breakdown);
            timeline.hiddenCommunicationSeconds += window.times * hiddenCommunication(window);
        }
        const Clocks advance = difference(m_clocks, begin);
        const auto slowest = std::max_element(advance.begin(), advance.end());
        timeline.seconds = (*slowest + skipped) * each;
        addWhatLagsBehind(static_cast<std::size_t>(slowest - advance.begin()), (*slowest - advance[kCompute]) * each,
                          timeline.breakdown);
        return timeline;
    }

    /// A stream that takes longer than compute and that nothing waits for: it still sets the pace.
    void addWhatLagsBehind(std::size_t clock, double seconds, StepBreakdown& breakdown) const
    {
        const bool known = clock != kHostClock && m_last[clock] >= 0;
        double& part =
            known ? partOf(breakdown, kindOf(m_records[static_cast<std::size_t>(m_last[clock])])) : breakdown.other;
        part += seconds;
    }

    OpKind kindOf(const Record& record) const { return m_schedule.ops[static_cast<std::size_t>(record.op)].kind; }
    bool onCompute(const Record& record) const
    {
        return m_schedule.ops[static_cast<std::size_t>(record.op)].stream == Stream::Compute;
    }

    void addBreakdown(const Window& window, StepBreakdown& breakdown) const
    {
        double free = window.start;
        for (std::size_t i = window.firstRecord; i < window.endRecord; ++i) {
            const Record& record = m_records[i];
            if (!onCompute(record))
                continue;
            addWaiting(record, free, window.times, breakdown);
            partOf(breakdown, kindOf(record)) += window.times * (record.end - record.start);
            free = record.end;
        }
    }

    /// From the operation's start back to when the stream was free: who let whom start, and what ran meanwhile.
    void addWaiting(const Record& waiting, double free, double times, StepBreakdown& breakdown) const
    {
        const Record* current = &waiting;
        double at = waiting.start;
        const auto charge = [&](double& part, double from) {
            const double until = std::max(free, std::min(from, at));
            part += times * (at - until);
            at = until;
        };
        while (at > free) {
            std::int32_t cause = current->after;
            if (cause == kTheHost) {
                cause = current->blocked;
                const bool waited = cause >= 0;
                charge(breakdown.other, waited ? m_records[static_cast<std::size_t>(cause)].end : free);
            }
            if (cause < 0) {
                charge(partOf(breakdown, kindOf(*current)), free);
                break;
            }
            current = &m_records[static_cast<std::size_t>(cause)];
            charge(partOf(breakdown, kindOf(*current)), current->start);
        }
    }

    /// Steady state repeats itself window by window, so what ran ahead of the window or behind it met the same
    /// computing as within.
    double hiddenCommunication(const Window& window) const
    {
        std::vector<Busy> busy; // of the compute stream, in order
        double total = 0;
        for (std::size_t i = window.firstRecord; i < window.endRecord; ++i) {
            const Record& record = m_records[i];
            if (!onCompute(record) || record.end <= record.start)
                continue;
            busy.push_back({record.start, record.end, total});
            total += record.end - record.start;
        }
        const double length = window.end - window.start;
        if (length <= 0)
            return 0;
        const auto busyUntil = [&](double time) {
            const double turns = std::floor((time - window.start) / length);
            const double at = time - turns * length;
            const auto after =
                std::upper_bound(busy.begin(), busy.end(), at, [](double t, const Busy& b) { return t < b.start; });
            const double within =
                after == busy.begin() ? 0 : (after - 1)->before + std::min(at, (after - 1)->end) - (after - 1)->start;
            return turns * total + within;
        };
        double hidden = 0;
        for (std::size_t i = window.firstRecord; i < window.endRecord; ++i) {
            const Record& record = m_records[i];
            if (isCollective(kindOf(record)) && !onCompute(record))
                hidden += busyUntil(record.end) - busyUntil(record.start);
        }
        return hidden;
    }

    const Schedule& m_schedule;
    const OpTimes& m_times;
    Clocks m_clocks{};
    std::vector<double> m_ends;         // by OpId, of the last time it ran
    std::array<bool, kClocks> m_used{}; // streams, by the repetition at hand
    std::array<bool, kClocks> m_stepUses{};
    double m_skipped = 0; // seconds of this step left out so far
    double m_stepStart = 0;
    std::vector<Interval> m_intervals; // by OpId; empty while nobody asks for them

    bool m_recording = false;
    std::vector<Record> m_records;        // in the order of issuing
    std::vector<std::int32_t> m_recordOf; // by OpId
    std::array<std::int32_t, kStreamCount> m_last = filled();
    std::int32_t m_blocked = kUnrecorded;
    std::vector<Window> m_windows;

    static constexpr std::array<std::int32_t, kStreamCount> filled()
    {
        std::array<std::int32_t, kStreamCount> none{};
        for (std::int32_t& one : none)
            one = kUnrecorded;
        return none;
    }
};

} // namespace

Schedule inOrderOfIssue(Schedule schedule)
{
    for (Op& op : schedule.ops)
        op.stream = Stream::Compute;
    return schedule;
}

double busiest(const Schedule& schedule, const OpTimes& times)
{
    Clocks busy{};
    for (const Segment& segment : schedule.segments) {
        if (segment.firstOp == segment.endOp || schedule.ops[segment.firstOp].phase == Phase::Init)
            continue;
        Clocks once{};
        for (std::uint32_t op = segment.firstOp; op < segment.endOp; ++op) {
            once[static_cast<std::size_t>(schedule.ops[op].stream)] += times.seconds[op];
            once[kHostClock] += times.hostSeconds[op];
        }
        for (std::size_t clock = 0; clock < kClocks; ++clock)
            busy[clock] += once[clock] * static_cast<double>(segment.repeat);
    }
    constexpr double kRounding = 1e-9; // by which sums of the same times may differ
    return *std::max_element(busy.begin(), busy.end()) * (1 - kRounding);
}

Timeline simulate(const Schedule& schedule, const OpTimes& times)
{
    return Simulation(schedule, times).run();
}

double simulatedSeconds(const Schedule& schedule, const OpTimes& times)
{
    return Simulation(schedule, times).seconds();
}

Timeline simulatedEnds(const Schedule& schedule, const OpTimes& times)
{
    return Simulation(schedule, times).ends();
}

} // namespace shardwright
