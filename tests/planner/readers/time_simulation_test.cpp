#include "planner/readers/time_simulation.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace shardwright {
namespace {

/// Writes schedules together with the time of each operation.
class Timed {
public:
    Timed()
    {
        segment("initialisation");
        op(OpKind::Allocate, Stream::Compute, 0);
        m_builder.beginSegment("step");
        m_phase = Phase::Forward;
    }
    void segment(std::string_view name, std::int64_t repeat = 1) { m_builder.beginSegment(name, repeat); }
    OpId op(OpKind kind, Stream stream, double seconds, std::vector<OpId> waits = {}, double host = 0)
    {
        const OpId id = m_builder.op(kind, stream, m_phase);
        for (const OpId wait : waits)
            m_builder.wait(wait);
        m_times.seconds.push_back(seconds);
        m_times.hostSeconds.push_back(host);
        return id;
    }
    OpId compute(double seconds, std::vector<OpId> waits = {}, double host = 0)
    {
        return op(OpKind::Forward, Stream::Compute, seconds, std::move(waits), host);
    }
    OpId gather(double seconds, std::vector<OpId> waits = {})
    {
        return op(OpKind::AllGather, Stream::AllGather, seconds, std::move(waits));
    }
    void blockHost(OpId on) { m_builder.blockHost(on); }
    Schedule schedule() { return m_builder.finish(); }
    const OpTimes& times() const { return m_times; }
    Timeline simulated() { return simulate(schedule(), m_times); }

private:
    ScheduleBuilder m_builder{SizeTable{}};
    OpTimes m_times;
    Phase m_phase = Phase::Init;
};

TEST(TimeSimulation, OneStreamRunsOneAfterTheOther)
{
    Timed step;
    step.compute(2);
    step.op(OpKind::Recompute, Stream::Compute, 1);
    step.op(OpKind::Backward, Stream::Compute, 4);
    step.op(OpKind::OptimizerStep, Stream::Compute, 0.5);
    step.op(OpKind::Copy, Stream::Compute, 0.25);
    const Timeline timeline = step.simulated();
    EXPECT_DOUBLE_EQ(timeline.seconds, 7.75);
    EXPECT_DOUBLE_EQ(timeline.breakdown.compute, 6);
    EXPECT_DOUBLE_EQ(timeline.breakdown.recompute, 1);
    EXPECT_DOUBLE_EQ(timeline.breakdown.optimizer, 0.5);
    EXPECT_DOUBLE_EQ(timeline.breakdown.other, 0.25);
    EXPECT_DOUBLE_EQ(timeline.ops[1].start, 0);
    EXPECT_DOUBLE_EQ(timeline.ops[3].start, 3);
    EXPECT_DOUBLE_EQ(timeline.ops[5].end, 7.75);
}

TEST(TimeSimulation, CollectiveHidesBehindTheComputingBesideIt)
{
    Timed step;
    const OpId begin = step.compute(3);
    const OpId gather = step.gather(5, {begin}); // beside 2 s of computing, so 3 s show
    step.compute(2);
    step.compute(4, {gather});
    const Timeline timeline = step.simulated();
    EXPECT_DOUBLE_EQ(timeline.seconds, 3 + 5 + 4);
    EXPECT_DOUBLE_EQ(timeline.breakdown.compute, 9);
    EXPECT_DOUBLE_EQ(timeline.breakdown.exposedCommunication, 3);
    EXPECT_DOUBLE_EQ(timeline.hiddenCommunicationSeconds, 2);
}

TEST(TimeSimulation, WhatIsIssuedAheadOverlapsTheStepBefore)
{
    Timed step;
    const OpId gather = step.gather(1);
    const OpId half = step.compute(5, {gather});
    step.compute(5);
    step.op(OpKind::Release, Stream::Compute, 0);
    step.blockHost(half); // so the next step's gather runs beside the second half of this one
    const Timeline timeline = step.simulated();
    EXPECT_DOUBLE_EQ(timeline.seconds, 10);
    EXPECT_DOUBLE_EQ(timeline.hiddenCommunicationSeconds, 1);
    EXPECT_DOUBLE_EQ(timeline.breakdown.exposedCommunication, 0);
    EXPECT_DOUBLE_EQ(timeline.ops[static_cast<std::size_t>(gather)].start, -5);
}

TEST(TimeSimulation, CollectiveOnTheComputeStreamIsExposed)
{
    Timed step;
    step.compute(1);
    step.op(OpKind::AllReduce, Stream::Compute, 2);
    const Timeline timeline = step.simulated();
    EXPECT_DOUBLE_EQ(timeline.breakdown.exposedCommunication, 2);
    EXPECT_DOUBLE_EQ(timeline.hiddenCommunicationSeconds, 0);
}

/// Reduce, copy to the host, CPU step, copy back: each keeps compute waiting for its own time.
TEST(TimeSimulation, IdleTimeFollowsTheChainThatIsWaitedFor)
{
    Timed step;
    const OpId last = step.compute(10);
    const OpId reduced = step.op(OpKind::ReduceScatter, Stream::Reduce, 3, {last});
    const OpId down = step.op(OpKind::CopyToHost, Stream::DeviceToHost, 2, {reduced});
    const OpId stepped = step.op(OpKind::HostOptimizerStep, Stream::Host, 7, {down});
    const OpId up = step.op(OpKind::CopyToDevice, Stream::HostToDevice, 1, {stepped});
    const OpId read = step.op(OpKind::NvmeRead, Stream::Nvme, 0.5, {up});
    step.op(OpKind::Release, Stream::Compute, 0, {read});
    const Timeline timeline = step.simulated();
    EXPECT_DOUBLE_EQ(timeline.seconds, 23.5);
    EXPECT_DOUBLE_EQ(timeline.breakdown.compute, 10);
    EXPECT_DOUBLE_EQ(timeline.breakdown.exposedCommunication, 3);
    EXPECT_DOUBLE_EQ(timeline.breakdown.optimizer, 7);
    EXPECT_DOUBLE_EQ(timeline.breakdown.offload, 3.5);
    EXPECT_DOUBLE_EQ(timeline.hiddenCommunicationSeconds, 0);
}

TEST(TimeSimulation, HostThatIssuesSlowlySetsThePace)
{
    Timed step;
    for (int i = 0; i < 4; ++i)
        step.compute(0.5, {}, 2);
    const Timeline timeline = step.simulated();
    EXPECT_DOUBLE_EQ(timeline.seconds, 8);
    EXPECT_DOUBLE_EQ(timeline.breakdown.compute, 2);
    EXPECT_DOUBLE_EQ(timeline.breakdown.other, 6);
}

/// The host waits for the first operation, so the third is issued 1 s after its end although nothing else keeps it.
TEST(TimeSimulation, BlockedHostIssuesNothingElse)
{
    Timed step;
    const OpId gather = step.gather(5);
    step.compute(1, {}, 1);
    step.op(OpKind::Release, Stream::Compute, 0);
    step.blockHost(gather);
    step.compute(1, {}, 1);
    const Timeline timeline = step.simulated();
    // The gather of the next step is issued once the host is through with this one, at 6 s; it ends 5 s later.
    EXPECT_DOUBLE_EQ(timeline.seconds, 6);
    EXPECT_DOUBLE_EQ(timeline.breakdown.compute, 2);
    EXPECT_NEAR(timeline.breakdown.exposedCommunication + timeline.breakdown.other, 4, 1e-12);
    EXPECT_GE(timeline.breakdown.exposedCommunication, 3);
}

/// At most two gathers in flight: with the limit the third starts when the first unit's computing is over.
TEST(TimeSimulation, LimitOfGathersInFlight)
{
    const auto thirdGather = [](bool limited) {
        Timed step;
        const OpId begin = step.op(OpKind::Allocate, Stream::Compute, 0); // gathers wait for the step before
        const OpId first = step.gather(1, {begin});
        const OpId used = step.compute(4, {first});
        const OpId second = step.gather(1);
        step.compute(4, {second});
        const OpId third = step.gather(1);
        if (limited)
            step.blockHost(used);
        step.compute(4, {third});
        return step.simulated().ops[static_cast<std::size_t>(third)].start;
    };
    EXPECT_DOUBLE_EQ(thirdGather(false), 2);
    EXPECT_DOUBLE_EQ(thirdGather(true), 5);
}

TEST(TimeSimulation, StreamThatNothingWaitsForStillSetsThePace)
{
    Timed step;
    step.compute(1);
    step.op(OpKind::NvmeWrite, Stream::Nvme, 4);
    const Timeline timeline = step.simulated();
    EXPECT_DOUBLE_EQ(timeline.seconds, 4);
    EXPECT_DOUBLE_EQ(timeline.breakdown.offload, 3);
    EXPECT_DOUBLE_EQ(timeline.breakdown.total(), 4);
}

/// Whether the host waits for all streams at the end of each segment; otherwise streams may run away from each other.
bool joins(std::uint64_t seed)
{
    return seed % 2 == 0;
}

/// A schedule of random operations in three segments. `unrolled` writes the middle one out as often as it repeats.
Timed randomStep(std::uint64_t seed, std::int64_t repeat, bool unrolled)
{
    std::uint64_t state = seed * 2654435761u + 1;
    const auto random = [&state](std::uint64_t below) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (state >> 33) % below;
    };
    constexpr std::array<OpKind, 8> kinds{OpKind::Forward, OpKind::Backward,      OpKind::AllGather,
                                          OpKind::Copy,    OpKind::ReduceScatter, OpKind::CopyToHost,
                                          OpKind::Forward, OpKind::OptimizerStep};
    constexpr std::array<Stream, 8> streams{Stream::Compute, Stream::Compute,      Stream::AllGather, Stream::Compute,
                                            Stream::Reduce,  Stream::DeviceToHost, Stream::Compute,   Stream::Compute};
    Timed step;
    const auto write = [&](std::uint64_t ofSegment, std::uint64_t count) {
        state = seed + ofSegment;
        std::vector<OpId> written;
        for (std::uint64_t i = 0; i < count; ++i) {
            const std::size_t kind = random(kinds.size());
            std::vector<OpId> waits;
            if (!written.empty() && random(2) == 0)
                waits.push_back(written[random(written.size())]);
            const double seconds = static_cast<double>(random(1000)) / 64;
            const double host = static_cast<double>(random(200)) / 64;
            written.push_back(step.op(kinds[kind], streams[kind], seconds, waits, host));
            if (random(8) == 0 && written.size() > 1)
                step.blockHost(written[random(written.size() - 1)]);
        }
        if (!joins(seed))
            return;
        const OpId join = step.compute(1, written);
        step.op(OpKind::Release, Stream::Compute, 0);
        step.blockHost(join);
    };
    write(1, 6);
    if (unrolled) {
        for (std::int64_t i = 0; i < repeat; ++i)
            write(2, 9);
    } else {
        step.segment("micro-steps between", repeat);
        write(2, 9);
    }
    step.segment("optimizer step");
    write(3, 5);
    return step;
}

RC_GTEST_PROP(TimeSimulationProperty, ExtrapolatedRepetitionsAreWhatWritingThemOutGives, ())
{
    const auto seed = *rc::gen::inRange<std::uint64_t>(0, 1'000'000);
    const auto repeat = *rc::gen::inRange<std::int64_t>(1, 60);
    const Timeline loop = randomStep(seed, repeat, false).simulated();
    const Timeline flat = randomStep(seed, repeat, true).simulated();
    RC_ASSERT(std::abs(loop.seconds - flat.seconds) <= 1e-9 * flat.seconds);
    RC_ASSERT(std::abs(loop.breakdown.total() - loop.seconds) <= 1e-9 * loop.seconds);
    RC_ASSERT(std::abs(flat.breakdown.total() - flat.seconds) <= 1e-9 * flat.seconds);
    if (!joins(seed))
        return; // what is waited for, and what gathers meet, changes as streams run away from each other
    const auto alike = [&](double a, double b) { return std::abs(a - b) <= 1e-9 * flat.seconds; };
    RC_ASSERT(alike(loop.breakdown.compute, flat.breakdown.compute));
    RC_ASSERT(alike(loop.breakdown.exposedCommunication, flat.breakdown.exposedCommunication));
    RC_ASSERT(alike(loop.breakdown.offload, flat.breakdown.offload));
    RC_ASSERT(alike(loop.hiddenCommunicationSeconds, flat.hiddenCommunicationSeconds));
}

/// The recurrence carried out step by step, nothing skipped: the period of many steps.
double periodOf(const Schedule& schedule, const OpTimes& times, int steps)
{
    std::vector<double> ends(schedule.ops.size(), 0);
    std::array<double, kStreamCount> free{};
    double host = 0;
    double halfway = 0;
    const auto furthest = [&] { return std::max(host, *std::max_element(free.begin(), free.end())); };
    for (int i = 0; i < 2 * steps; ++i) {
        if (i == steps)
            halfway = furthest();
        for (std::size_t s = 1; s < schedule.segments.size(); ++s)
            for (std::int64_t r = 0; r < schedule.segments[s].repeat; ++r)
                for (std::uint32_t o = schedule.segments[s].firstOp; o < schedule.segments[s].endOp; ++o) {
                    const Op& op = schedule.ops[o];
                    double start = free[static_cast<std::size_t>(op.stream)];
                    for (std::uint32_t w = 0; w < op.waitCount; ++w) {
                        const Wait& wait = schedule.waits[op.firstWait + w];
                        double& clock = wait.blocksHost ? host : start;
                        clock = std::max(clock, ends[static_cast<std::size_t>(wait.op)]);
                    }
                    host += times.hostSeconds[o];
                    ends[o] = std::max(start, host) + times.seconds[o];
                    free[static_cast<std::size_t>(op.stream)] = ends[o];
                }
    }
    return (furthest() - halfway) / steps;
}

RC_GTEST_PROP(TimeSimulationProperty, TheStepIsTheMeanOfManySteps, ())
{
    const auto seed = *rc::gen::inRange<std::uint64_t>(0, 1'000'000);
    Timed step = randomStep(seed, *rc::gen::inRange<std::int64_t>(1, 9), false);
    const Schedule schedule = step.schedule();
    const double seconds = simulate(schedule, step.times()).seconds;
    // Clocks that took some steps to fall in line move the mean of 200 by no more than a step in 200.
    RC_ASSERT(std::abs(seconds - periodOf(schedule, step.times(), 200)) <= 5e-3 * seconds);
}

} // namespace
} // namespace shardwright
