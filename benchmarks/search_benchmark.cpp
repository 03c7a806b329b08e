// What searches cost: a candidate's memory, traffic and time where its structure is known, and whole searches.
//   build/bin/shardwright_benchmarks --benchmark_filter=search

#include <benchmark/benchmark.h>

#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "planner/search/inverse.hpp"
#include "planner/search/memory_check.hpp"
#include "planner/search/search.hpp"
#include "planner/search/simulated_clock.hpp"

namespace shardwright::search {
namespace {

Scenario scenarioOf(const char* model, const char* cluster, int nodes)
{
    Scenario scenario;
    scenario.model = readModel(model);
    scenario.cluster = readCluster(cluster);
    scenario.cluster.nodes = nodes;
    scenario.training.sequenceLength = 2048;
    return scenario;
}

void searchJudgesOneCandidate(benchmark::State& state)
{
    constexpr Framework kFrameworks[] = {Framework::Fsdp1, Framework::Fsdp2, Framework::DeepSpeed};
    const Scenario scenario = scenarioOf("llama-2-7b", "dgx-a100-80gb", 4);
    const Space space = defaultSpace(scenario, Objective::StepTime, 4096);
    const Candidates candidates(scenario, space);
    Assignment so;
    so.gpus = scenario.cluster.gpus();
    so.framework = kFrameworks[state.range(0)];
    so.sharding = Sharding::Parameters;
    state.SetLabel(candidates.strategyName(so));
    Structures structures;
    const auto clock = simulatedClock();
    Candidate candidate = candidates.start();
    std::int64_t turn = 0;
    for (auto _ : state) {
        so.microBatch = std::int64_t{1} << (++turn % 4);
        candidates.apply(so, candidate);
        const PlanInput input{scenario.model, candidate.cluster, candidate.training, candidate.strategy};
        const std::vector<Part>& parts = structures.partsOf(input, so);
        benchmark::DoNotOptimize(checkMemory(parts));
        benchmark::DoNotOptimize(clock->seconds(input, parts, structures, [](double) { return true; }));
    }
    state.SetItemsProcessed(state.iterations());
}
BENCHMARK(searchJudgesOneCandidate)->DenseRange(0, 2);

void searchWhole(benchmark::State& state, const Scenario& scenario, const Space& space, std::size_t top = 10,
                 Objective objective = Objective::StepTime)
{
    const Candidates candidates(scenario, space);
    Request request;
    request.threads = static_cast<int>(state.range(0));
    request.top = top;
    request.objective = objective;
    for (auto _ : state) {
        const Result result = search(candidates, request, simulatedClock);
        state.counters["candidates"] = static_cast<double>(result.declared);
        state.counters["judged"] = static_cast<double>(result.counts.evaluated);
    }
}

void searchDataParallel(benchmark::State& state)
{
    const Scenario scenario = scenarioOf("llama-2-13b", "ethernet-a100-80gb", 4);
    searchWhole(state, scenario, defaultSpace(scenario, Objective::StepTime, 1024));
}
BENCHMARK(searchDataParallel)->Arg(1)->Arg(2)->Unit(benchmark::kMillisecond)->UseRealTime();

/// A 530B model under Megatron-LM on 2,520 A100: the optimum, or the ten best.
void searchMegatron530B(benchmark::State& state)
{
    Scenario scenario = scenarioOf("gpt-175b", "dgx-a100-80gb", 315);
    scenario.model = modelFromJson({{"model_type", "gpt2"},
                                    {"n_embd", 20480},
                                    {"n_layer", 105},
                                    {"n_head", 128},
                                    {"n_positions", 2048},
                                    {"n_inner", 81920},
                                    {"vocab_size", 51200}},
                                   "530b", "benchmark");
    scenario.training.implementation = Implementation::Megatron;
    searchWhole(state, scenario, defaultSpace(scenario, Objective::StepTime, 2520),
                static_cast<std::size_t>(state.range(1)));
}
BENCHMARK(searchMegatron530B)
    ->ArgsProduct({{1, 2}, {1, 10}})
    ->ArgNames({"threads", "top"})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

/// Llama-2-70B over every whole number of nodes up to 64 and all data-parallel ways, as `--objective cost` asks: more
/// than ten million candidates.
void searchTenMillion(benchmark::State& state)
{
    const Scenario scenario = scenarioOf("llama-2-70b", "dgx-a100-80gb", 64);
    Space space = defaultSpace(scenario, Objective::Cost, 15120);
    space.shardGroup = {kWholeGroup, kNodeGroup, 2, 4, 16, 24, 32, 48, 64, 96, 128};
    space.checkpointEvery = {1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 40};
    searchWhole(state, scenario, space, 10, Objective::Cost);
}
BENCHMARK(searchTenMillion)->Arg(1)->Arg(2)->Unit(benchmark::kMillisecond)->UseRealTime();

/// The largest model of a family on 4 nodes: 160 depths at 10 widths.
void searchLargestModel(benchmark::State& state)
{
    const Scenario scenario = scenarioOf("llama-2-13b", "ethernet-a100-80gb", 4);
    Request request;
    request.threads = static_cast<int>(state.range(0));
    request.top = 1;
    request.objective = Objective::LargestModel;
    const Space space = defaultSpace(scenario, Objective::LargestModel);
    for (auto _ : state)
        state.counters["parameters"] =
            static_cast<double>(solveInverse(scenario, space, request, simulatedClock).scenario.model.parameters());
}
BENCHMARK(searchLargestModel)->Arg(1)->Arg(2)->Unit(benchmark::kMillisecond)->UseRealTime();

} // namespace
} // namespace shardwright::search
