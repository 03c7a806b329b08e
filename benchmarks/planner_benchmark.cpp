// What the planner costs: one candidate by the closed form, a whole schedule with its replays, a whole plan.
//   build/bin/shardwright_benchmarks

#include <benchmark/benchmark.h>

#include "benchmarks/setting.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/plan_builder.hpp"
#include "planner/readers/caching_allocator.hpp"
#include "planner/readers/closed_form.hpp"
#include "planner/readers/memory_replay.hpp"
#include "planner/readers/traffic_sum.hpp"

namespace shardwright {
namespace {

/// One candidate after another with other sequence lengths, ranks alike: what a search pays for each.
void closedFormOfOneCandidate(benchmark::State& state)
{
    Setting candidate = setting("llama-2-7b", "dgx-a100-80gb", 4, kStrategies[state.range(0)]);
    state.SetLabel(candidate.strategy.name);
    ClosedForm form(candidate.input());
    std::int64_t sequence = 0;
    for (auto _ : state) {
        candidate.training.sequenceLength = 1024 + ++sequence % 4096;
        benchmark::DoNotOptimize(form.evaluate(candidate.input()));
    }
    state.SetItemsProcessed(state.iterations());
}
BENCHMARK(closedFormOfOneCandidate)->DenseRange(0, 5);

/// Rules, schedule, memory replay and traffic of Llama-3.1-405B on 1,024 GPUs.
void scheduleAndReplayOf405B(benchmark::State& state)
{
    const Setting candidate = setting("llama-3.1-405b", "dgx-h100", 128, kStrategies[state.range(0)]);
    state.SetLabel(candidate.strategy.name);
    for (auto _ : state) {
        const auto rules = makeRules(candidate.input());
        const Schedule schedule = rules->emit();
        benchmark::DoNotOptimize(replayMemory(schedule, false));
        benchmark::DoNotOptimize(sumTraffic(schedule, candidate.model.parameters(), 8));
        state.counters["operations"] = static_cast<double>(schedule.ops.size());
        state.counters["events"] = static_cast<double>(schedule.events.size());
    }
}
BENCHMARK(scheduleAndReplayOf405B)->DenseRange(0, 5)->Unit(benchmark::kMicrosecond);

void allocatorReplayOf405B(benchmark::State& state)
{
    const Setting candidate = setting("llama-3.1-405b", "dgx-h100", 128, "fsdp2-full-shard");
    const Schedule schedule = makeRules(candidate.input())->emit();
    for (auto _ : state)
        benchmark::DoNotOptimize(replayAllocator(schedule, Bytes(std::int64_t{1} << 60)));
}
BENCHMARK(allocatorReplayOf405B)->Unit(benchmark::kMicrosecond);

/// All predefined strategies of the README's main job, suggestions included.
void plansOfTheMainJob(benchmark::State& state)
{
    const Scenario scenario = readScenario(SHARDWRIGHT_SOURCE_DIR "/scenarios/llama-2-7b-8xa100.json");
    for (auto _ : state)
        benchmark::DoNotOptimize(buildPlans(scenario));
}
BENCHMARK(plansOfTheMainJob)->Unit(benchmark::kMillisecond);

} // namespace
} // namespace shardwright
