// Every strategy on rank threads: it trains as one rank alone does, and holds and sends what its plan says.

#include <filesystem>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "planner/frameworks/rules.hpp"
#include "tests/executor/small_runs.hpp"
#include "tests/planner/execution/recording_input.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kSteps = 3;

// Sizes that few numbers of ranks divide.
constexpr const char* kLlama = R"({"model_type": "llama", "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 37, "vocab_size": 53,
    "max_position_embeddings": 64, "tie_word_embeddings": false})";
constexpr const char* kTiedLlama = R"({"model_type": "llama", "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 37, "vocab_size": 53,
    "max_position_embeddings": 64, "tie_word_embeddings": true})";

/// GPT-2 as its published config.json has it: every dropout at 0.1.
constexpr const char* kDropping = R"({"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "vocab_size": 53, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1})";

/// Embedding and head of 3 MiB each; three ranks divide them and not the matrices of the block.
constexpr const char* kLarge = R"({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 12600,
    "max_position_embeddings": 64, "tie_word_embeddings": false})";

RunSettings settings()
{
    RunSettings settings;
    settings.steps = kSteps;
    settings.executor.optimizer.learningRate = 1e-2; // far enough in three steps that what is wrong shows
    settings.executor.nvmeFolder = std::filesystem::temp_directory_path().string();
    return settings;
}

/// int8 weights, int4 gradients.
bool isLossy(const StrategyOptions& options)
{
    const auto* deepspeed = std::get_if<DeepSpeedOptions>(&options);
    return deepspeed != nullptr && (deepspeed->quantizedWeights || deepspeed->quantizedGradients);
}

bool isRefused(const StrategyOptions& options, const SmallRun& run)
{
    const Scenario scenario = scenarioOf(options, run);
    return !refusals({scenario.model, scenario.cluster, scenario.training, scenario.strategies.front()}).empty();
}

void expectTrained(const std::string& name, const StrategyOptions& options, const SmallRun& run,
                   const std::vector<double>& losses)
{
    if (isRefused(options, run))
        return;
    const ExecutablePlan plan = planOf(scenarioOf(options, run));
    const Measurement measured = runOnThreads(plan, settings());
    ASSERT_EQ(measured.losses.size(), losses.size());
    // Micro-steps' gradients are rounded to bf16 before they meet: one part in 256 of a gradient, less of a loss.
    const double tolerance = isLossy(options) ? 5e-2 : run.mixed ? 1e-2 : 1e-5;
    for (std::size_t step = 0; step < losses.size(); ++step)
        EXPECT_NEAR(measured.losses[step], losses[step], tolerance * losses[step]) << name << ", step " << step;
    expectAsPredicted(plan, measured, name);
}

void expectAllTrained(const SmallRun& run)
{
    constexpr std::int64_t kBuffer = 4000; // elements; buffers on NVMe that are not larger than the model
    const std::vector<double> losses = lossesAlone(run, settings());
    ASSERT_LT(losses.back(), losses.front());
    for (const auto& [name, options] : everyStrategy())
        expectTrained(name, options, run, losses);
    for (const auto& [name, options] : everyDeepSpeed())
        expectTrained(name, fittedToTwo(options, kBuffer), run, losses);
    DdpOptions buckets;
    buckets.bucketCap = Bytes(3000); // several, across layers
    expectTrained("ddp, small buckets", buckets, run, losses);
    buckets.gradientAsBucketView = true;
    expectTrained("ddp, small buckets, views", buckets, run, losses);
}

} // namespace

/// GPT-2's modules have weights and biases: buckets between their sizes take the ones and not the others, smaller ones
/// than biases none at all, and a bucket of 40 one vector of a LayerNorm, then the other.
TEST(Strategies, BucketsThatPartAModulesGradients)
{
    struct Variant {
        const char* name;
        void (*change)(DeepSpeedOptions&);
    };
    constexpr Variant kVariants[] = {
        {"", [](DeepSpeedOptions&) {}},
        {", overlap", [](DeepSpeedOptions& o) { o.overlapComm = true; }},
        {", no overlap", [](DeepSpeedOptions& o) { o.overlapComm = false; }},
        {", all-reduce", [](DeepSpeedOptions& o) { o.reduceScatter = false; }},
        {", no bucket", [](DeepSpeedOptions& o) { o.contiguousGradients = false; }},
        {", offload", [](DeepSpeedOptions& o) { o.offloadOptimizer = OffloadDevice::Cpu; }},
        {", fp32 accumulation", [](DeepSpeedOptions& o) { o.gradAccumDtype = DType::Fp32; }},
    };
    // Elements; vectors have 24, 72 or 96, matrices 576 to 2304.
    constexpr std::int64_t kBuckets[] = {10, 40, 600, 1800};
    std::size_t turn = 0;
    const std::vector<std::pair<int, int>> machines{{1, 1}, {1, 2}, {1, 3}, {2, 2}, {1, 7}, {2, 4}};
    for (const auto& [nodes, ranks] : machines) {
        for (const bool mixed : {false, true}) {
            if (mixed && nodes * ranks != 3 && nodes * ranks != 4)
                continue;
            const SmallRun run{kDropping, nodes, ranks, 2, mixed ? std::optional(DType::Bf16) : std::nullopt};
            const std::vector<double> losses = lossesAlone(run, settings());
            ++turn; // every variant meets every bucket
            for (const int stage : {1, 2, 3})
                for (const Variant& variant : kVariants) {
                    DeepSpeedOptions options;
                    options.stage = stage;
                    options.reduceBucketSize = kBuckets[turn++ % std::size(kBuckets)];
                    options.paramPersistenceThreshold = 10;
                    options.maxReuseDistance = 200;
                    variant.change(options);
                    ASSERT_FALSE(isRefused(options, run)) << stage << variant.name;
                    expectTrained(fmt::format("stage {}, bucket {}{}, {} ranks{}", stage, options.reduceBucketSize,
                                              variant.name, nodes * ranks, mixed ? ", bf16" : ""),
                                  options, run, losses);
                }
        }
    }
}

/// On up to three ranks shards of embedding and head are large enough to be swapped. 450,000 elements hold none of the
/// sub-groups of one rank, the embedding's of two and of three.
TEST(Strategies, ParametersOnNvmeInHostMemoryAndOnTheGpu)
{
    for (const int ranks : {1, 2, 3}) {
        const SmallRun run{kLarge, 1, ranks, 2};
        const std::vector<double> losses = lossesAlone(run, settings());
        for (const std::int64_t maxInCpu : {0, 450000, 1000000000})
            for (const OffloadDevice optimizer : {OffloadDevice::None, OffloadDevice::Cpu, OffloadDevice::Nvme})
                for (const double ratio : {1.0, 0.4}) {
                    DeepSpeedOptions options;
                    options.stage = 3;
                    options.offloadParam = OffloadDevice::Nvme;
                    options.offloadOptimizer = optimizer;
                    options.offloadRatio = ratio;
                    options.maxInCpu = maxInCpu;
                    options.subGroupSize = 260000;
                    options.paramBufferSize = 1000000;
                    options.paramPersistenceThreshold = 100; // norms
                    if (ratio < 1 && optimizer != OffloadDevice::Cpu)
                        continue;
                    ASSERT_FALSE(isRefused(options, run));
                    expectTrained(fmt::format("{} ranks, max_in_cpu {}, optimizer {}, ratio {}", ranks, maxInCpu,
                                              nameOf(optimizer), ratio),
                                  options, run, losses);
                }
    }
}

TEST(Strategies, OneRank)
{
    expectAllTrained({kLlama, 1, 1, 2});
}

TEST(Strategies, ThreeRanksDivideNothing)
{
    expectAllTrained({kLlama, 1, 3, 1});
    expectAllTrained({kTiedLlama, 1, 3, 3});
}

TEST(Strategies, TwoNodesOfTwo)
{
    expectAllTrained({kLlama, 2, 2, 3});
    SmallRun run{kTiedLlama, 2, 2, 2};
    run.checkpointing = Checkpointing::Full;
    expectAllTrained(run);
}

/// What is dropped depends on the sequence, not on who has it; recomputation drops the same.
TEST(Strategies, DropoutIsTheSameUnderAllOfThem)
{
    expectAllTrained({kDropping, 1, 3, 2});
    SmallRun run{kDropping, 2, 2, 1};
    run.checkpointing = Checkpointing::Full;
    expectAllTrained(run);
}

TEST(Strategies, TwoNodesOfFour)
{
    expectAllTrained({kLlama, 2, 4, 2});
}

TEST(Strategies, Bf16WithFp32MasterWeights)
{
    expectAllTrained({kLlama, 1, 3, 2, DType::Bf16});
    SmallRun run{kTiedLlama, 2, 2, 1, DType::Bf16};
    run.checkpointing = Checkpointing::Full;
    expectAllTrained(run);
}

} // namespace shardwright
