#include <fmt/format.h>
#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "planner/configs/deepspeed_json.hpp"
#include "planner/configs/hjson.hpp"

namespace shardwright {
namespace {

std::string problemsOf(const std::string& text, const DeepSpeedContext& context = {})
{
    try {
        readDeepSpeedJson(text, "ds.json", context);
    } catch (const InputError& error) {
        return error.what();
    }
    return "";
}

const DeepSpeedOptions& optionsOf(const ImportedConfig& config)
{
    return std::get<DeepSpeedOptions>(config.run.strategy.options);
}

std::string noteOn(const ImportedConfig& config, const std::string& setting)
{
    for (const ConfigNote& note : config.notes)
        if (note.setting == setting)
            return std::string(nameOf(note.kind)) + ": " + note.text;
    return "";
}

TEST(DeepSpeedJson, ReadsAFileWithCommentsAndTrailingCommas)
{
    const ImportedConfig config = readDeepSpeedJson(R"({
        # Hjson comment
        "train_micro_batch_size_per_gpu": 2, // per GPU
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": true},
        /* "fp16": {"enabled": true}, */
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.9, 0.95]}},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"},},
        "url": "http://not-a-comment # either",
    })",
                                                    "ds.json");
    EXPECT_EQ(config.run.training.microBatch, 2);
    EXPECT_EQ(config.run.training.gradientAccumulation, 4);
    EXPECT_EQ(config.run.training.gradientClipping, 0.5);
    EXPECT_EQ(config.run.training.mixedPrecision, MixedPrecisionMode::Bf16);
    EXPECT_EQ(config.run.training.optimizer, Optimizer::AdamW);
    EXPECT_EQ(optionsOf(config).stage, 3);
    EXPECT_EQ(optionsOf(config).offloadOptimizer, OffloadDevice::Cpu);
    EXPECT_EQ(config.run.strategy.name, "deepspeed-zero3-offload-optimizer-cpu");
    EXPECT_EQ(config.run.carriedDeepSpeed["url"], "http://not-a-comment # either");
    EXPECT_NE(noteOn(config, "/url").find("ignored: DeepSpeed reads no such key"), std::string::npos);
}

TEST(DeepSpeedJson, TellsEverythingThatIsWrongAtOnce)
{
    const std::string problems = problemsOf(R"({
        "train_micro_batch_size_per_gpu": 0,
        "bf16": {"enabled": true}, "fp16": {"enabled": true, "los_scale": 0},
        "prescale_gradients": true,
        "optimizer": {"type": "OneBitAdam", "params": {"max_grad_norm": 1.0}},
        "zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}, "overlap_com": true}
    })");
    for (const char* expected :
         {"/train_micro_batch_size_per_gpu: is 0", "/fp16/enabled: is true beside bf16",
          "/fp16/los_scale: is not a known key; expected \"loss_scale\" perhaps", "/prescale_gradients",
          "/optimizer/params/max_grad_norm", "/optimizer/type: onebit-adam", "/zero_optimization/offload_param/device",
          "/zero_optimization/overlap_com: is not a known key; expected \"overlap_comm\" perhaps"})
        EXPECT_NE(problems.find(expected), std::string::npos) << expected << " in\n" << problems;
}

// runtime/config.py _set_batch_related_parameters: any two give the third.
TEST(DeepSpeedJson, DividesBatchesAsDeepSpeedDoes)
{
    DeepSpeedContext world;
    world.world = 8;
    const ImportedConfig two =
        readDeepSpeedJson(R"({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2})", "ds.json", world);
    EXPECT_EQ(two.run.training.gradientAccumulation, 4); // 64 / 2 / 8
    const ImportedConfig one = readDeepSpeedJson(R"({"train_batch_size": 64})", "ds.json", world);
    EXPECT_EQ(one.run.training.microBatch, 8);
    EXPECT_EQ(one.run.training.gradientAccumulation, 1);
    const ImportedConfig three = readDeepSpeedJson(
        R"({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2})",
        "ds.json");
    EXPECT_EQ(three.run.launch.processes, 16); // 64 / (2 * 2)

    EXPECT_NE(problemsOf(R"({"train_batch_size": 60, "train_micro_batch_size_per_gpu": 2})", world)
                  .find("60 is not micro batch 2 * accumulation ? * 8 GPUs; expected a multiple of 16"),
              std::string::npos);
    EXPECT_NE(problemsOf(R"({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2,
                             "gradient_accumulation_steps": 2})",
                         world)
                  .find("expected 32"),
              std::string::npos);
    EXPECT_NE(problemsOf("{}").find("neither this nor train_batch_size"), std::string::npos);
}

TEST(DeepSpeedJson, FillsAutomaticSizesAsHuggingFaceDoes)
{
    const std::string text = R"({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto"}})";
    DeepSpeedContext model;
    model.hiddenSize = 4096;
    const ImportedConfig config = readDeepSpeedJson(text, "ds.json", model);
    EXPECT_EQ(optionsOf(config).reduceBucketSize, 16777216);       // 4096^2
    EXPECT_EQ(optionsOf(config).prefetchBucketSize, 15099494);     // int(0.9 * 4096^2) = int(15099494.4)
    EXPECT_EQ(optionsOf(config).paramPersistenceThreshold, 40960); // 10 * 4096
    EXPECT_FALSE(config.run.training.microBatch);
    EXPECT_FALSE(config.run.training.gradientClipping);
    EXPECT_FALSE(config.run.training.mixedPrecision);

    const ImportedConfig blind = readDeepSpeedJson(text, "ds.json");
    EXPECT_EQ(optionsOf(blind).reduceBucketSize, 500000000);
    EXPECT_NE(noteOn(blind, "/zero_optimization/reduce_bucket_size").find("without a model"), std::string::npos);
}

// stage_1_and_2.py asserts postscale_gradients only where partition_gradients, which is stage 2.
TEST(DeepSpeedJson, PrescalesBelowStage2)
{
    const auto text = [](int stage) {
        return fmt::format(
            R"({{"train_batch_size": 8, "prescale_gradients": true, "zero_optimization": {{"stage": {}}}}})", stage);
    };
    EXPECT_EQ(optionsOf(readDeepSpeedJson(text(1), "ds.json")).stage, 1);
    EXPECT_NE(problemsOf(text(2)).find("/prescale_gradients"), std::string::npos);
    EXPECT_NE(problemsOf(text(3)).find("/prescale_gradients"), std::string::npos);
}

TEST(DeepSpeedJson, SaysWhatTheAbsentClippingMeans)
{
    const ImportedConfig config = readDeepSpeedJson(R"({"train_batch_size": 8})", "ds.json");
    EXPECT_EQ(config.run.training.gradientClipping, 1.0);
    EXPECT_NE(noteOn(config, "/gradient_clipping").find("0.19.3"), std::string::npos);
}

TEST(DeepSpeedJson, AdamMeansAdamWUnlessToldOtherwise)
{
    const auto optimizer = [](const std::string& block) {
        return readDeepSpeedJson(R"({"train_batch_size": 8, "optimizer": )" + block + "}", "ds.json")
            .run.training.optimizer;
    };
    EXPECT_EQ(optimizer(R"({"type": "Adam"})"), Optimizer::AdamW);
    EXPECT_EQ(optimizer(R"({"type": "Adam", "params": {"adam_w_mode": false}})"), Optimizer::Adam);
    EXPECT_EQ(optimizer(R"({"type": "SGD", "params": {"momentum": 0.9}})"), Optimizer::SgdMomentum);
    EXPECT_EQ(optimizer(R"({"type": "SGD"})"), Optimizer::Sgd);
    EXPECT_EQ(optimizer(R"({"type": "Muon"})"), std::nullopt);
}

TEST(DeepSpeedJson, NamesKeysThatLaterReleasesRefuse)
{
    const ImportedConfig config = readDeepSpeedJson(R"({"train_batch_size": 8, "elasticity": {"enabled": false},
                              "zero_optimization": {"stage": 3, "mics_shard_size": 8}})",
                                                    "ds.json");
    EXPECT_EQ(optionsOf(config).micsShardSize, 8);
    EXPECT_NE(noteOn(config, "/elasticity").find("0.19.8 and later refuse"), std::string::npos);
    EXPECT_NE(noteOn(config, "/zero_optimization/mics_shard_size").find("0.19.7"), std::string::npos);
}

TEST(HjsonComments, KeepEveryOtherByteInItsPlace)
{
    const std::string text = "{\"a\": \"x # y // z\", # gone\n \"b\": [1, 2, ], /* two\nlines */ }";
    const std::string bare = withoutHjsonComments(text);
    EXPECT_EQ(bare.size(), text.size());
    EXPECT_EQ(std::count(bare.begin(), bare.end(), '\n'), 2);
    EXPECT_EQ(Json::parse(bare), Json::parse(R"({"a": "x # y // z", "b": [1, 2]})"));
}

} // namespace
} // namespace shardwright
