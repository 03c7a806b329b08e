// A training step of ten million parameters (Llama type, hidden 384, MLP 1024, 6 blocks) over 1,024
// tokens, carried out: one rank with one or two threads of computing, and two ranks with one each.

#include <benchmark/benchmark.h>

#include "benchmarks/setting.hpp"
#include "core/json_cursor.hpp"
#include "executor/comm/transports.hpp"
#include "executor/run/run_plan.hpp"
#include "planner/executable_plan.hpp"

namespace shardwright {
namespace {

constexpr std::int64_t kTokens = 1024;

ExecutablePlan planOf(int ranks, const char* strategy, const char* dtype)
{
    const std::string file = SHARDWRIGHT_SOURCE_DIR "/scenarios/tiny-llama-4-ranks.json";
    Scenario scenario = readScenario(file);
    scenario.model = modelFromJson(parseJson(R"({"model_type": "llama", "hidden_size": 384, "intermediate_size": 1024,
        "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 256,
        "max_position_embeddings": 256})",
                                             "benchmark"),
                                   "ten-million", "benchmark");
    scenario.training.sequenceLength = 256;
    scenario.training.microBatch = kTokens / 256 / ranks;
    scenario.training.gradientAccumulation = 1;
    scenario.training.precision.mixed = std::nullopt;
    scenario.training.precision.load = *valueOf<DType>(dtype);
    scenario.cluster.nodes = 1;
    scenario.cluster.gpusPerNode = ranks;
    return executablePlan(scenario, *strategyByName(strategy, ranks));
}

/// A step as the run itself measures it: the median of all but the first.
void step(benchmark::State& state, int ranks, int threads, const char* strategy, const char* dtype)
{
    const ExecutablePlan plan = planOf(ranks, strategy, dtype);
    RunSettings settings;
    settings.steps = 6;
    settings.executor.threads = threads;
    for (auto _ : state)
        state.SetIterationTime(runPlan(plan, settings, makeThreadTransports(ranks)).secondsPerStep);
    state.counters["tokens/s"] = benchmark::Counter(
        static_cast<double>(kTokens), benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}
/// In turns: two ranks of one thread, and one rank of two. "of one rank" is the first's time by the second's.
void twoRanksBesideTwoThreads(benchmark::State& state, const char* strategy)
{
    const ExecutablePlan two = planOf(2, strategy, "fp32");
    const ExecutablePlan one = planOf(1, strategy, "fp32");
    RunSettings settings;
    settings.steps = 6;
    double ranks = 0;
    double threads = 0;
    for (auto _ : state) {
        settings.executor.threads = 1;
        const double took = runPlan(two, settings, makeThreadTransports(2)).secondsPerStep;
        ranks += took;
        state.SetIterationTime(took);
        settings.executor.threads = 2;
        threads += runPlan(one, settings, makeThreadTransports(1)).secondsPerStep;
    }
    state.counters["of one rank"] = ranks / threads;
}
BENCHMARK_CAPTURE(twoRanksBesideTwoThreads, ddp, "ddp")->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(3);
BENCHMARK_CAPTURE(twoRanksBesideTwoThreads, fullShard, "fsdp2-full-shard")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(3);

BENCHMARK_CAPTURE(step, oneRank, 1, 1, "ddp", "fp32")->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, oneRankInBf16, 1, 1, "ddp", "bf16")->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, oneRankTwoThreads, 1, 2, "ddp", "fp32")->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, twoRanks, 2, 1, "ddp", "fp32")->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, twoRanksSharded, 2, 1, "fsdp2-full-shard", "fp32")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

} // namespace
} // namespace shardwright
