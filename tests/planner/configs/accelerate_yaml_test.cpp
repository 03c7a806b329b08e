#include <gtest/gtest.h>

#include "planner/configs/accelerate_yaml.hpp"

namespace shardwright {
namespace {

ImportedConfig readText(const std::string& text, const std::string& deepSpeed = "")
{
    return readAccelerateYaml(text, "a.yaml", {}, [&](const std::string&) { return deepSpeed; });
}

std::string problemsOf(const std::string& text, const std::string& deepSpeed = "")
{
    try {
        readText(text, deepSpeed);
    } catch (const InputError& error) {
        return error.what();
    }
    return "";
}

std::string noteOn(const ImportedConfig& config, const std::string& setting)
{
    for (const ConfigNote& note : config.notes)
        if (note.setting == setting)
            return std::string(nameOf(note.kind)) + ": " + note.text;
    return "";
}

TEST(AccelerateYaml, ReadsFsdp1WithTheLaunchersDefaults)
{
    const ImportedConfig config = readText("distributed_type: FSDP\n"
                                           "mixed_precision: bf16\n"
                                           "num_machines: 2\n"
                                           "num_processes: 16\n"
                                           "fsdp_config:\n"
                                           "  fsdp_sharding_strategy: 4\n"
                                           "  offload_params: 'false'\n"
                                           "  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n"
                                           "  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer,OtherLayer\n"
                                           "  fsdp_made_up: 3\n");
    const auto& options = std::get<Fsdp1Options>(config.run.strategy.options);
    EXPECT_EQ(options.sharding, ShardingStrategy::HybridShard);
    EXPECT_EQ(options.backwardPrefetch, BackwardPrefetch::None); // unset: no prefetch
    EXPECT_TRUE(options.useOrigParams);
    EXPECT_FALSE(options.offloadParams);
    EXPECT_EQ(config.run.wrapClasses, (std::vector<std::string>{"LlamaDecoderLayer", "OtherLayer"}));
    EXPECT_EQ(config.run.launch, (LaunchSettings{2, 16}));
    EXPECT_EQ(config.run.training.mixedPrecision, MixedPrecisionMode::Bf16);
    EXPECT_NE(noteOn(config, "/fsdp_config/fsdp_made_up").find("ignored"), std::string::npos);
    EXPECT_EQ(config.run.strategy.name, "fsdp1-hybrid-shard");
}

// What `accelerate config` writes for version 1, and what its launcher then runs: FULL_SHARD.
TEST(AccelerateYaml, TellsThatReshardAfterForwardDoesNothingUnderVersion1)
{
    const ImportedConfig config = readText("distributed_type: FSDP\nnum_processes: 8\nfsdp_config:\n"
                                           "  fsdp_reshard_after_forward: SHARD_GRAD_OP\n"
                                           "  fsdp_backward_prefetch_policy: BACKWARD_PRE\n");
    const auto& options = std::get<Fsdp1Options>(config.run.strategy.options);
    EXPECT_EQ(options.sharding, ShardingStrategy::FullShard);
    EXPECT_EQ(options.backwardPrefetch, BackwardPrefetch::None);
    EXPECT_NE(noteOn(config, "/fsdp_config/fsdp_reshard_after_forward").find("FULL_SHARD here"), std::string::npos);
    EXPECT_NE(noteOn(config, "/fsdp_config/fsdp_backward_prefetch_policy").find("read by nothing"), std::string::npos);
}

TEST(AccelerateYaml, ReadsHybridShardingOfVersion2FromTheParallelismConfig)
{
    const std::string head = "distributed_type: FSDP\nnum_processes: 16\nnum_machines: 2\nfsdp_config:\n"
                             "  fsdp_version: 2\n  fsdp_reshard_after_forward: false\n"
                             "  fsdp_activation_checkpointing: true\n";
    const ImportedConfig config = readText(head + "parallelism_config:\n"
                                                  "  parallelism_config_dp_replicate_size: 2\n"
                                                  "  parallelism_config_dp_shard_size: 8\n");
    const auto& options = std::get<Fsdp2Options>(config.run.strategy.options);
    EXPECT_EQ(options.replicate, 2);
    EXPECT_FALSE(options.reshardAfterForward);
    EXPECT_TRUE(options.checkpointChildren);
    EXPECT_EQ(config.run.training.checkpointing, Checkpointing::Full);
    EXPECT_EQ(config.run.strategy.name, "fsdp2-hybrid-shard-zero2");
    EXPECT_NE(problemsOf(head + "parallelism_config:\n  parallelism_config_dp_replicate_size: 4\n"
                                "  parallelism_config_dp_shard_size: 8\n")
                  .find("line 9, column 3 (parallelism_config): sizes multiply to 32; expected num_processes, 16"),
              std::string::npos);
}

TEST(AccelerateYaml, TellsEverythingThatIsWrongWithLineAndColumn)
{
    const std::string problems = problemsOf("distributed_type: FSDP\n"
                                            "mixed_precision: no\n"
                                            "num_proceses: 8\n"
                                            "num_processes: 9\n"
                                            "num_machines: 2\n"
                                            "fsdp_config:\n"
                                            "  fsdp_sharding_strategy: FULL\n"
                                            "  fsdp_min_num_params: 1e8\n"
                                            "  fsdp_sync_module_states: false\n");
    for (const char* expected :
         {"a.yaml: line 2, column 18 (mixed_precision): no without quotes is false to YAML",
          "line 3, column 15 (num_proceses): is not a known key; expected \"num_processes\" perhaps",
          "line 4, column 16 (num_processes): 9 processes do not divide among 2 machines",
          "line 7, column 27 (fsdp_config.fsdp_sharding_strategy): is \"FULL\"; expected FULL_SHARD, SHARD_GRAD_OP",
          "line 8, column 24 (fsdp_config.fsdp_min_num_params): is \"1e8\"",
          "line 9, column 28 (fsdp_config.fsdp_sync_module_states)"})
        EXPECT_NE(problems.find(expected), std::string::npos) << expected << " in\n" << problems;
}

TEST(AccelerateYaml, ReadsThePluginStyleOfDeepSpeed)
{
    const ImportedConfig config = readText("distributed_type: DEEPSPEED\nmixed_precision: fp16\nnum_processes: 8\n"
                                           "deepspeed_config:\n  zero_stage: 3\n  offload_optimizer_device: cpu\n"
                                           "  offload_param_device: nvme\n  offload_param_nvme_path: /fast\n"
                                           "  gradient_accumulation_steps: 4\n  gradient_clipping: 0.0\n");
    const auto& options = std::get<DeepSpeedOptions>(config.run.strategy.options);
    EXPECT_EQ(options.stage, 3);
    EXPECT_EQ(options.offloadOptimizer, OffloadDevice::Cpu);
    EXPECT_EQ(options.paramNvmePath, "/fast");
    EXPECT_EQ(config.run.training.gradientAccumulation, 4);
    EXPECT_EQ(config.run.training.gradientClipping, 1.0); // 0 is falsy to the plugin, and DeepSpeed's default is 1.0
    EXPECT_NE(noteOn(config, "/deepspeed_config/gradient_clipping").find("dropped"), std::string::npos);
    EXPECT_NE(noteOn(config, "/deepspeed_config/offload_param_nvme_path").find("\"none\""), std::string::npos);
}

TEST(AccelerateYaml, FileStyleTakesTheDeepSpeedFileAndNothingBesideIt)
{
    const std::string deepSpeed = R"({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8,
        "bf16": {"enabled": true}, "zero_optimization": {"stage": 2}})";
    const std::string yaml = "distributed_type: DEEPSPEED\nnum_processes: 8\ndeepspeed_config:\n"
                             "  deepspeed_config_file: ds.json\n";
    const ImportedConfig config = readText(yaml, deepSpeed);
    EXPECT_EQ(config.format, ConfigFormat::AccelerateDeepSpeed);
    EXPECT_EQ(std::get<DeepSpeedOptions>(config.run.strategy.options).stage, 2);
    EXPECT_EQ(config.run.training.gradientAccumulation, 1); // Accelerate adds 1 before DeepSpeed could divide
    EXPECT_EQ(config.run.launch.processes, 8);

    const std::string problems = problemsOf(yaml + "  zero_stage: 2\nmixed_precision: 'no'\n", deepSpeed);
    EXPECT_NE(problems.find("(deepspeed_config.zero_stage): stands beside deepspeed_config_file"), std::string::npos);
    EXPECT_NE(problems.find("(mixed_precision): stands beside deepspeed_config_file"), std::string::npos);
    EXPECT_NE(problemsOf(yaml, R"({"train_batch_size": 64})").find("ds.json: /: \"zero_optimization\" is missing"),
              std::string::npos);
}

TEST(AccelerateYaml, AnUnknownLaunchIsRefused)
{
    EXPECT_NE(problemsOf("distributed_type: MEGATRON_LM\nnum_processes: 8\n").find("FSDP, DEEPSPEED, MULTI_GPU or"),
              std::string::npos);
    EXPECT_NE(problemsOf("num_processes: 8\n").find("\"distributed_type\" is missing"), std::string::npos);
    EXPECT_NE(problemsOf("distributed_type: NO\n").find("NO without quotes"), std::string::npos);
    EXPECT_NE(problemsOf("distributed_type: MULTI_GPU\nnum_processes: 1\n").find("at least 2"), std::string::npos);
}

} // namespace
} // namespace shardwright
