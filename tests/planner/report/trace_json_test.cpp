#include "planner/report/trace_json.hpp"

#include <map>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "tests/golden.hpp"
#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright {
namespace {

/// A rank of the small model, every operation one millisecond long and issued in no time.
struct TracedSmall {
    SmallInput small;
    Schedule schedule;
    Timeline timeline;
    MemoryReplay memory;

    explicit TracedSmall(StrategyOptions options, std::int64_t accumulation = 1) : small(std::move(options), 2, 1)
    {
        small.training.gradientAccumulation = accumulation;
        schedule = small.schedule();
        OpTimes times;
        for (const Op& op : schedule.ops) {
            const bool free = op.kind == OpKind::Allocate || op.kind == OpKind::Release || op.phase == Phase::Init;
            times.seconds.push_back(free ? 0 : 1e-3);
            times.hostSeconds.push_back(0);
        }
        timeline = simulate(schedule, times);
        memory = replayMemory(schedule, true);
    }
    std::string text() const
    {
        return traceJson("small", "test", {{{"rank", &small.model, &schedule, &timeline, &memory}}, nullptr, {}});
    }
};

TEST(TraceJson, Golden)
{
    testing::expectGolden("planner/golden/report/trace.json", TracedSmall(NativeOptions{}).text());
}

TEST(TraceJson, EveryOperationThatTakesTimeIsOneSliceOfItsStream)
{
    for (const auto& [name, options] : everyStrategy()) {
        const TracedSmall traced(options, 5);
        const Json trace = Json::parse(traced.text());
        std::size_t expected = 0;
        for (std::size_t i = 0; i < traced.schedule.ops.size(); ++i)
            expected += traced.timeline.ops[i].end > traced.timeline.ops[i].start ? 1 : 0;
        std::size_t slices = 0;
        std::map<int, std::string> tracks;
        std::map<int, double> ends;
        for (const Json& event : trace["traceEvents"]) {
            if (event["ph"] == "M" && event["name"] == "thread_name")
                tracks[event["tid"].get<int>()] = event["args"]["name"].get<std::string>();
            if (event["ph"] != "X")
                continue;
            const int track = event["tid"].get<int>();
            const double start = event["ts"].get<double>();
            EXPECT_GE(start, 0);
            if (const auto before = ends.find(track); before != ends.end() && track != 0) {
                EXPECT_GE(start, before->second - 1e-6) << name << ' ' << event.dump();
            }
            ends[track] = start + event["dur"].get<double>();
            slices += track == 0 ? 0 : 1;
        }
        EXPECT_EQ(slices, expected) << name;
        for (const auto& [track, end] : ends)
            EXPECT_TRUE(tracks.count(track)) << name << ' ' << track;
    }
}

/// What the counters show at their highest is the peak that plans state.
TEST(TraceJson, CountersReachThePeak)
{
    const TracedSmall traced(Fsdp2Options{}, 2);
    std::int64_t highest = 0;
    double time = 0;
    const Json trace = Json::parse(traced.text());
    for (const Json& event : trace["traceEvents"]) {
        if (event["ph"] != "C")
            continue;
        EXPECT_GE(event["ts"].get<double>(), time);
        time = event["ts"].get<double>();
        std::int64_t total = 0;
        for (const auto& [category, bytes] : event["args"].items())
            total += bytes.get<std::int64_t>();
        highest = std::max(highest, total);
    }
    EXPECT_EQ(highest, traced.memory.gpu.bytes.count());
}

/// Two stages, two micro-batches of 1 s forward and 2 s backward, GPipe, transfers of half a second, on the second
/// stage 3 s more: forwards at 0, 1 and 1.5, 2.5; the second's backwards from 3.5 to 7.5, the first's a transfer behind
/// each.
TEST(TraceJson, APipelineShowsAllStagesTogether)
{
    const PipelineShape shape{PipelineSchedule::GPipe, 2, 1, 2};
    const std::vector<StageSeconds> stages{{{1}, {2}, 0}, {{1}, {2}, 3}};
    const PipelineTimeline timeline{playPipeline(shape, stages, 0.5), {0, 3}, 10.5};
    const Json trace = Json::parse(traceJson("small", "test", {{}, &timeline, 10.5}));
    EXPECT_EQ(trace["otherData"]["planned_step_seconds"], 10.5);
    std::map<std::string, std::pair<double, double>> slices;
    for (const Json& event : trace["traceEvents"])
        if (event["ph"] == "X")
            slices[event["tid"].dump() + " " + event["name"].get<std::string>()] = {
                event["ts"].get<double>() / 1e6, (event["ts"].get<double>() + event["dur"].get<double>()) / 1e6};
    using Span = std::pair<double, double>;
    EXPECT_EQ(slices, (std::map<std::string, Span>{{"0 forward 1", {0, 1}},
                                                   {"0 forward 2", {1, 2}},
                                                   {"1 forward 1", {1.5, 2.5}},
                                                   {"1 forward 2", {2.5, 3.5}},
                                                   {"1 backward 1", {3.5, 5.5}},
                                                   {"1 backward 2", {5.5, 7.5}},
                                                   {"1 gradients, optimizer", {7.5, 10.5}},
                                                   {"0 backward 1", {6, 8}},
                                                   {"0 backward 2", {8, 10}}}));
}

} // namespace
} // namespace shardwright
