// A training step of ten million parameters (Llama type, hidden 256, MLP 688, 7 blocks, vocabulary 8192) over 1,024
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
    scenario.model = modelFromJson(parseJson(R"({"model_type": "llama", "hidden_size": 256, "intermediate_size": 688,
        "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 8192,
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
BENCHMARK_CAPTURE(step, oneRank, 1, 1, "ddp", "fp32")->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, oneRankInBf16, 1, 1, "ddp", "bf16")->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, oneRankTwoThreads, 1, 2, "ddp", "fp32")->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, twoRanks, 2, 1, "ddp", "fp32")->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, twoRanksSharded, 2, 1, "fsdp2-full-shard", "fp32")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

} // namespace
} // namespace shardwright
