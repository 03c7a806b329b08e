// What step times cost: the compiled form of a candidate, and whole simulations.
//   build/bin/shardwright_benchmarks --benchmark_filter=Step

#include <benchmark/benchmark.h>

#include "benchmarks/setting.hpp"
#include "planner/costs/op_costs.hpp"
#include "planner/readers/closed_form.hpp"
#include "planner/readers/time_simulation.hpp"
#include "planner/step_form.hpp"

namespace shardwright {
namespace {

/// One candidate after another with other sequence lengths: time alone, rules resized.
void stepFormOfOneCandidate(benchmark::State& state)
{
    Setting candidate = setting("llama-2-7b", "dgx-a100-80gb", 4, kStrategies[state.range(0)]);
    candidate.training.gradientAccumulation = state.range(1);
    state.SetLabel(candidate.strategy.name);
    const auto rules = makeRules(candidate.input());
    StepForm form(*rules);
    std::int64_t sequence = 0;
    for (auto _ : state) {
        candidate.training.sequenceLength = 1024 + ++sequence % 4096;
        rules->resize(candidate.input());
        benchmark::DoNotOptimize(form.seconds(candidate.input(), *rules));
    }
    state.SetItemsProcessed(state.iterations());
}
BENCHMARK(stepFormOfOneCandidate)->ArgsProduct({{0, 1, 2, 3, 4, 5}, {1, 16}});

/// Memory, traffic and time: what a search pays for each candidate.
void stepFormAndClosedForm(benchmark::State& state)
{
    Setting candidate = setting("llama-2-7b", "dgx-a100-80gb", 4, kStrategies[state.range(0)]);
    state.SetLabel(candidate.strategy.name);
    const auto rules = makeRules(candidate.input());
    StepForm form(*rules);
    ClosedForm closed(candidate.input());
    std::int64_t sequence = 0;
    for (auto _ : state) {
        candidate.training.sequenceLength = 1024 + ++sequence % 4096;
        benchmark::DoNotOptimize(closed.evaluate(candidate.input()));
        benchmark::DoNotOptimize(form.seconds(candidate.input(), closed.rules()));
    }
    state.SetItemsProcessed(state.iterations());
}
BENCHMARK(stepFormAndClosedForm)->DenseRange(0, 5);

/// The parts of stepFormOfOneCandidate.
void stepCostsOfOneCandidate(benchmark::State& state)
{
    const Setting candidate = setting("llama-2-7b", "dgx-a100-80gb", 4, kStrategies[state.range(0)]);
    state.SetLabel(candidate.strategy.name);
    const auto rules = makeRules(candidate.input());
    for (auto _ : state)
        benchmark::DoNotOptimize(OpCosts(candidate.input(), *rules->activations(), rules->sizes()));
}
BENCHMARK(stepCostsOfOneCandidate)->Arg(2);

void compileStepForm(benchmark::State& state)
{
    const Setting candidate = setting("llama-2-7b", "dgx-a100-80gb", 4, kStrategies[state.range(0)]);
    state.SetLabel(candidate.strategy.name);
    const auto rules = makeRules(candidate.input());
    for (auto _ : state)
        benchmark::DoNotOptimize(StepForm(*rules));
}
BENCHMARK(compileStepForm)->DenseRange(0, 5)->Unit(benchmark::kMicrosecond);

/// A 96-layer model (GPT-3 175B) on 1,024 GPUs, with its costs and without: every operation simulated.
void simulatedStepOf96Layers(benchmark::State& state)
{
    const Setting candidate = setting("gpt-175b", "dgx-h100", 128, kStrategies[state.range(0)]);
    state.SetLabel(candidate.strategy.name);
    const PlanInput input = candidate.input(); // costs refer to it
    const auto rules = makeRules(input);
    const Schedule schedule = rules->emit();
    const OpCosts costs(input, *rules->activations(), schedule.sizes);
    for (auto _ : state)
        benchmark::DoNotOptimize(simulate(schedule, opTimes(schedule, costs)));
    state.counters["operations"] = static_cast<double>(schedule.ops.size());
    state.SetItemsProcessed(state.iterations());
}
BENCHMARK(simulatedStepOf96Layers)->DenseRange(0, 5)->Unit(benchmark::kMicrosecond);

/// The same from the beginning: rules, schedule, costs, and the step's seconds.
void wholeStepOf96Layers(benchmark::State& state)
{
    const Setting candidate = setting("gpt-175b", "dgx-h100", 128, kStrategies[state.range(0)]);
    const PlanInput input = candidate.input();
    state.SetLabel(candidate.strategy.name);
    for (auto _ : state) {
        const auto rules = makeRules(input);
        const Schedule schedule = rules->emit();
        const OpCosts costs(input, *rules->activations(), schedule.sizes);
        benchmark::DoNotOptimize(simulatedSeconds(schedule, opTimes(schedule, costs)));
    }
    state.SetItemsProcessed(state.iterations());
}
BENCHMARK(wholeStepOf96Layers)->DenseRange(0, 5)->Unit(benchmark::kMicrosecond);

} // namespace
} // namespace shardwright
