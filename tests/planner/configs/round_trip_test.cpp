#include <fstream>
#include <sstream>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/cluster_file.hpp"
#include "core/deepspeed_options.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "planner/configs/configs.hpp"
#include "tests/paths.hpp"

namespace shardwright {
namespace {

Model twoBlockModel()
{
    Model model;
    model.id = "two-block";
    model.architecture.hidden = 64;
    LayerType block;
    block.className = "LlamaDecoderLayer";
    model.layerTypes = {block};
    model.layers = {0, 0};
    return model;
}

Scenario scenarioOn(int nodes, int gpusPerNode)
{
    Scenario scenario;
    scenario.name = "round-trip";
    scenario.model = twoBlockModel();
    scenario.cluster.id = "cluster";
    scenario.cluster.nodes = nodes;
    scenario.cluster.gpusPerNode = gpusPerNode;
    return scenario;
}

ImportedConfig importBack(const ConfigExport& exported)
{
    ImportContext context;
    context.readFile = [&](const std::string&) { return exported.files.back().text; };
    return importConfig(exported.files.front().text, exported.files.front().name, context);
}

bool hasKind(const ConfigExport& exported, NoteKind kind, const std::string& setting)
{
    for (const ConfigNote& note : exported.notes)
        if (note.kind == kind && note.setting == setting)
            return true;
    return false;
}

std::int64_t positive(std::int64_t limit)
{
    return *rc::gen::inRange<std::int64_t>(1, limit);
}

bool flip()
{
    return *rc::gen::arbitrary<bool>();
}

Training someTraining()
{
    Training training;
    training.microBatch = positive(64);
    training.gradientAccumulation = positive(64);
    const int clipping = *rc::gen::inRange(0, 20);
    training.gradientClipping = clipping == 0 ? std::nullopt : std::optional<double>(clipping / 8.0);
    training.precision.mixed = *rc::gen::element<std::optional<DType>>(DType::Bf16, DType::Fp16, std::nullopt);
    return training;
}

DeepSpeedOptions someDeepSpeed()
{
    DeepSpeedOptions options;
    options.stage = *rc::gen::inRange(0, 4);
    const auto device = *rc::gen::element(OffloadDevice::None, OffloadDevice::Cpu, OffloadDevice::Nvme);
    if (options.stage == 3) {
        options.offloadOptimizer = device;
        options.offloadParam = *rc::gen::element(OffloadDevice::None, OffloadDevice::Cpu, OffloadDevice::Nvme);
        options.quantizedWeights = flip();
        options.hpzPartitionSize = options.offloadParam != OffloadDevice::Nvme && flip() ? 8 : 1;
        options.offloadRatio = flip() ? 0.5 : 1.0;
        options.zero3Init = flip();
        options.subGroupSize = positive(2000000000);
        options.prefetchBucketSize = positive(2000000000);
        options.maxReuseDistance = positive(2000000000);
    } else if (options.stage > 0 && device == OffloadDevice::Cpu) {
        options.offloadOptimizer = device;
    }
    options.nvmePath = options.offloadOptimizer == OffloadDevice::Nvme ? "/nvme 0/it's" : options.nvmePath;
    options.pinMemory = flip();
    options.paramPinMemory = flip();
    options.overlapComm = flip();
    options.reduceBucketSize = positive(2000000000);
    options.gather16bitWeightsOnModelSave = flip();
    return options;
}

Fsdp1Options someFsdp1()
{
    Fsdp1Options options;
    options.sharding = EnumNames<ShardingStrategy>::table[*rc::gen::inRange<std::size_t>(0, 5)].first;
    options.offloadParams = flip();
    options.backwardPrefetch = EnumNames<BackwardPrefetch>::table[*rc::gen::inRange<std::size_t>(0, 3)].first;
    options.forwardPrefetch = flip();
    options.wrap = EnumNames<WrapPolicy>::table[*rc::gen::inRange<std::size_t>(0, 3)].first;
    if (options.wrap == WrapPolicy::Size)
        options.minNumParams = positive(1000000000);
    options.useOrigParams = flip();
    options.cpuRamEfficientLoading = flip();
    options.syncModuleStates = options.cpuRamEfficientLoading || flip();
    return options;
}

Fsdp2Options someFsdp2()
{
    Fsdp2Options options;
    options.reshardAfterForward = flip();
    options.replicate = *rc::gen::element<std::int64_t>(1, 2, 4);
    options.offloadParams = flip();
    options.wrap = EnumNames<WrapPolicy>::table[*rc::gen::inRange<std::size_t>(0, 3)].first;
    if (options.wrap == WrapPolicy::Size)
        options.minNumParams = positive(1000000000);
    options.cpuRamEfficientLoading = flip();
    return options;
}

/// What a configuration says once more after it was imported.
void checkStable(const ImportedConfig& imported, const ConfigExport& exported)
{
    const ConfigExport again = writeConfig(imported.run, imported.format);
    RC_ASSERT(again.files.size() == exported.files.size());
    for (std::size_t i = 0; i < again.files.size(); ++i)
        RC_ASSERT(again.files[i].text == exported.files[i].text);
}

RC_GTEST_PROP(ConfigRoundTrip, DeepSpeedJsonGivesBackOptionsAndTraining, ())
{
    Scenario scenario = scenarioOn(static_cast<int>(positive(5)), 8);
    scenario.training = someTraining();
    scenario.training.optimizer =
        *rc::gen::element(Optimizer::AdamW, Optimizer::Adam, Optimizer::Sgd, Optimizer::SgdMomentum, Optimizer::Lion);
    scenario.training.checkpointing =
        *rc::gen::element(Checkpointing::None, Checkpointing::Partitioned, Checkpointing::Cpu);
    DeepSpeedOptions options = someDeepSpeed();
    options.zero3Init = true; // the JSON alone cannot say it
    const ConfigExport exported = exportConfig(scenario, {"x", options}, ConfigFormat::DeepSpeed);
    const ImportedConfig imported = importBack(exported);
    RC_ASSERT(imported.run.strategy.options == StrategyOptions(options));
    RC_ASSERT(imported.run.launch.processes == scenario.cluster.gpus());
    TrainingSettings said = imported.run.training;
    if (!said.checkpointing) // the file is silent about none
        said.checkpointing = Checkpointing::None;
    RC_ASSERT(said == settingsOf(scenario.training));
    RC_ASSERT(exported.files.front().text.find("\"auto\"") == std::string::npos);
    checkStable(imported, exported);
}

RC_GTEST_PROP(ConfigRoundTrip, AccelerateWithADeepSpeedFileGivesBackOptions, ())
{
    Scenario scenario = scenarioOn(2, 8);
    scenario.training = someTraining();
    const DeepSpeedOptions options = someDeepSpeed();
    const ConfigExport exported = exportConfig(scenario, {"x", options}, ConfigFormat::AccelerateDeepSpeed);
    const ImportedConfig imported = importBack(exported);
    RC_ASSERT(imported.format == ConfigFormat::AccelerateDeepSpeed);
    RC_ASSERT(imported.run.strategy.options == StrategyOptions(options));
    RC_ASSERT(imported.run.training.microBatch == scenario.training.microBatch);
    RC_ASSERT(imported.run.training.mixedPrecision == mixedPrecisionMode(scenario.training.precision));
    RC_ASSERT(imported.run.launch == (LaunchSettings{2, 16}));
    checkStable(imported, exported);
}

RC_GTEST_PROP(ConfigRoundTrip, AccelerateFsdpGivesBackOptions, ())
{
    Scenario scenario = scenarioOn(2, 8);
    scenario.training = someTraining();
    scenario.training.checkpointing = *rc::gen::element(Checkpointing::None, Checkpointing::Full);
    StrategyOptions options = someFsdp1();
    ConfigFormat format = ConfigFormat::AccelerateFsdp1;
    if (flip()) {
        Fsdp2Options second = someFsdp2();
        second.checkpointChildren = scenario.training.checkpointing == Checkpointing::Full;
        options = second;
        format = ConfigFormat::AccelerateFsdp2;
    }
    const ConfigExport exported = exportConfig(scenario, {"x", options}, format);
    const ImportedConfig imported = importBack(exported);
    RC_ASSERT(imported.format == format);
    RC_ASSERT(imported.run.strategy.options == options);
    RC_ASSERT(imported.run.training.mixedPrecision == mixedPrecisionMode(scenario.training.precision));
    RC_ASSERT(imported.run.training.checkpointing.value_or(Checkpointing::None) == scenario.training.checkpointing);
    checkStable(imported, exported);
}

// Each setting that the YAML has no key for is told, and telling is not done where nothing differs.
TEST(ConfigExport, TellsWhatTheYamlCannotSay)
{
    const Scenario scenario = scenarioOn(2, 8);
    Fsdp1Options plain;
    const ConfigExport silent = exportConfig(scenario, {"x", plain}, ConfigFormat::AccelerateFsdp1);
    EXPECT_FALSE(hasKind(silent, NoteKind::InScript, "limit_all_gathers"));
    EXPECT_FALSE(hasKind(silent, NoteKind::InScript, "mixed_precision_policy"));

    Fsdp1Options first;
    first.limitAllGathers = false;
    first.reduceDtype = DType::Fp32;
    first.noSync = false;
    first.upcastTrainable = false;
    first.sharding = ShardingStrategy::HybridShard;
    first.shardGroup = 4;
    const ConfigExport loud = exportConfig(scenario, {"x", first}, ConfigFormat::AccelerateFsdp1);
    EXPECT_TRUE(hasKind(loud, NoteKind::InScript, "limit_all_gathers"));
    EXPECT_TRUE(hasKind(loud, NoteKind::InScript, "mixed_precision_policy"));
    EXPECT_TRUE(hasKind(loud, NoteKind::InScript, "no_sync"));
    EXPECT_TRUE(hasKind(loud, NoteKind::NotSayable, "upcast"));
    EXPECT_TRUE(hasKind(loud, NoteKind::NotSayable, "shard group"));

    Fsdp2Options second;
    second.offloadParams = true;
    second.pinMemory = false;
    second.reshardGroup = 4;
    second.forwardPrefetch = true;
    second.separateHeadUnit = false;
    const ConfigExport fsdp2 = exportConfig(scenario, {"x", second}, ConfigFormat::AccelerateFsdp2);
    EXPECT_TRUE(hasKind(fsdp2, NoteKind::InScript, "pin_memory"));
    EXPECT_TRUE(hasKind(fsdp2, NoteKind::InScript, "forward_prefetch"));
    EXPECT_TRUE(hasKind(fsdp2, NoteKind::NotSayable, "reshard_after_forward"));
    EXPECT_TRUE(hasKind(fsdp2, NoteKind::NotSayable, "head unit"));

    DeepSpeedOptions zero;
    zero.reduceBucketSize = 1000;
    const ConfigExport plugin = exportConfig(scenario, {"x", zero}, ConfigFormat::AccelerateDeepSpeedPlugin);
    EXPECT_TRUE(hasKind(plugin, NoteKind::NotSayable, "/zero_optimization/reduce_bucket_size"));
}

TEST(ConfigExport, RefusesWhatCannotRun)
{
    const Scenario scenario = scenarioOn(2, 8);
    const auto refuses = [&](const StrategyOptions& options, ConfigFormat format) {
        try {
            exportConfig(scenario, {"x", options}, format);
        } catch (const InputError&) {
            return true;
        }
        return false;
    };
    Fsdp2Options noShard;
    noShard.noShard = true;
    EXPECT_TRUE(refuses(noShard, ConfigFormat::AccelerateFsdp2));
    EXPECT_TRUE(refuses(NativeOptions{}, ConfigFormat::DeepSpeed));
    EXPECT_TRUE(refuses(DdpOptions{}, ConfigFormat::AccelerateFsdp1));
    DeepSpeedOptions nvme;
    nvme.offloadParam = OffloadDevice::Nvme;
    EXPECT_TRUE(refuses(nvme, ConfigFormat::AccelerateDeepSpeedPlugin));
    EXPECT_FALSE(refuses(nvme, ConfigFormat::AccelerateDeepSpeed));
    nvme.stage = 2;
    EXPECT_TRUE(refuses(nvme, ConfigFormat::DeepSpeed));
}

TEST(ConfigExport, OneNodeGroupsOfVersion2NeedNoMesh)
{
    Fsdp2Options hybrid;
    hybrid.replicate = 0; // one replica per node
    const ConfigExport one = exportConfig(scenarioOn(1, 8), {"x", hybrid}, ConfigFormat::AccelerateFsdp2);
    EXPECT_EQ(one.files.front().text.find("parallelism_config"), std::string::npos);
    const ImportedConfig two = importBack(exportConfig(scenarioOn(4, 8), {"x", hybrid}, ConfigFormat::AccelerateFsdp2));
    EXPECT_EQ(std::get<Fsdp2Options>(two.run.strategy.options).replicate, 4);
}

void expectGolden(const std::string& name, const std::string& text)
{
    const std::string path = inSource("tests/planner/golden/configs/" + std::string(name));
    std::ifstream stream(path, std::ios::binary);
    std::ostringstream golden;
    golden << stream.rdbuf();
    EXPECT_EQ(text, golden.str()) << path;
}

Scenario realScenario()
{
    Scenario scenario = scenarioOn(1, 8);
    scenario.model = readModel("llama-2-7b");
    scenario.cluster = readCluster("dgx-h100");
    return scenario;
}

TEST(ConfigExport, UlyssesIsTheParallelismThatADeepSpeedJsonSays)
{
    const Scenario scenario = realScenario();
    Strategy strategy{"mine", DeepSpeedOptions{}};
    strategy.parallelism.context = 4;
    strategy.parallelism.exchange = ContextExchange::Ulysses;
    for (const ConfigFormat format : {ConfigFormat::DeepSpeed, ConfigFormat::AccelerateDeepSpeed}) {
        const ConfigExport exported = exportConfig(scenario, strategy, format);
        EXPECT_TRUE(hasKind(exported, NoteKind::InScript, "sequence_parallel_size"));
        const Json json = parseJson(exported.files.back().text, "ds_config.json");
        EXPECT_EQ(json["sequence_parallel_size"], 4);
        EXPECT_EQ(json["train_batch_size"], 2); // two of four ranks each see different sequences
        EXPECT_EQ(importBack(exported).run.strategy.parallelism, strategy.parallelism) << nameOf(format);
    }
    EXPECT_THROW(exportConfig(scenario, strategy, ConfigFormat::AccelerateDeepSpeedPlugin), InputError);
    strategy.parallelism.context = 3; // no divisor of 32 heads
    EXPECT_THROW(exportConfig(scenario, strategy, ConfigFormat::DeepSpeed), InputError);
    strategy.parallelism.context = 4;
    strategy.parallelism.exchange = ContextExchange::Ring;
    EXPECT_THROW(exportConfig(scenario, strategy, ConfigFormat::DeepSpeed), InputError);

    // Another framework has nothing like it, which a conversion says.
    strategy.parallelism.exchange = ContextExchange::Ulysses;
    const ImportedConfig imported = importBack(exportConfig(scenario, strategy, ConfigFormat::DeepSpeed));
    const Conversion toFsdp = convertConfig(imported, ConfigFormat::AccelerateFsdp2, scenario.model);
    EXPECT_TRUE(std::any_of(toFsdp.noEquivalent.begin(), toFsdp.noEquivalent.end(),
                            [](const ConversionItem& item) { return item.setting == "sequence_parallel_size"; }));
    const Conversion same = convertConfig(imported, ConfigFormat::AccelerateDeepSpeed, scenario.model);
    EXPECT_EQ(importBack(same.result).run.strategy.parallelism, strategy.parallelism);
}

TEST(ConfigExport, CheckpointsOfSeveralBlocksAreCountedInADeepSpeedJson)
{
    Scenario scenario = realScenario(); // 32 blocks
    scenario.training.checkpointing = Checkpointing::Full;
    scenario.training.checkpointSegment = 5;
    DeepSpeedOptions zero2;
    zero2.stage = 2;
    const ConfigExport exported = exportConfig(scenario, {"mine", zero2}, ConfigFormat::DeepSpeed);
    EXPECT_TRUE(hasKind(exported, NoteKind::InScript, "activation checkpointing"));
    const Json json = parseJson(exported.files.front().text, "ds_config.json");
    EXPECT_EQ(json["activation_checkpointing"]["number_checkpoints"], 7);
    // Which blocks they span is the script's to say: it follows only where the training checkpoints at all.
    const ImportedConfig imported = importBack(exported);
    EXPECT_EQ(scenarioOf(imported, scenario.model, scenario.cluster).training.checkpointSegment, 1);
    Training base;
    base.checkpointing = Checkpointing::Full;
    EXPECT_EQ(scenarioOf(imported, scenario.model, scenario.cluster, base).training.checkpointSegment, 5);
}

TEST(ConfigExport, CheckpointsOfSeveralBlocksAreTheScriptsWhereAFileWouldCheckpointEach)
{
    Scenario scenario = realScenario();
    scenario.training.checkpointing = Checkpointing::Full;
    const auto exported = [&](const StrategyOptions& options, ConfigFormat format) {
        return exportConfig(scenario, {"mine", options}, format);
    };
    const auto says = [](const ConfigExport& config, const std::string& line) {
        return config.files.front().text.find(line) != std::string::npos;
    };
    const std::string on = "fsdp_activation_checkpointing: true";
    EXPECT_TRUE(says(exported(Fsdp1Options{}, ConfigFormat::AccelerateFsdp1), on));
    scenario.training.checkpointSegment = 5;
    for (const auto& config : {exported(Fsdp1Options{}, ConfigFormat::AccelerateFsdp1),
                               exported(Fsdp2Options{}, ConfigFormat::AccelerateFsdp2)}) {
        EXPECT_FALSE(says(config, on));
        const auto notes = std::count_if(config.notes.begin(), config.notes.end(), [](const ConfigNote& note) {
            return note.kind == NoteKind::InScript && note.setting == "activation checkpointing";
        });
        EXPECT_EQ(notes, 1); // not the one of gradient_checkpointing_enable() too
    }
}

TEST(ConfigGolden, FilesAreWrittenByteForByte)
{
    const Scenario scenario = scenarioOn(2, 8);
    Fsdp2Options hybrid;
    hybrid.replicate = 0;
    expectGolden("fsdp2-hybrid-shard.yaml",
                 exportConfig(scenario, {"x", hybrid}, ConfigFormat::AccelerateFsdp2).files.front().text);
    expectGolden("fsdp1-full-shard.yaml",
                 exportConfig(scenario, {"x", Fsdp1Options{}}, ConfigFormat::AccelerateFsdp1).files.front().text);
    DeepSpeedOptions infinity;
    infinity.offloadOptimizer = infinity.offloadParam = OffloadDevice::Nvme;
    const ConfigExport nvme = exportConfig(scenario, {"x", infinity}, ConfigFormat::DeepSpeed);
    expectGolden("deepspeed-zero3-offload-nvme.json", nvme.files.front().text);
    EXPECT_EQ(nvme.launchCommand,
              "deepspeed --hostfile hostfile --num_nodes 2 --num_gpus 8 train.py --deepspeed ds_config.json");
}

TEST(ConfigExport, TheLaunchCommandIsOneForAShell)
{
    const Scenario scenario = scenarioOn(1, 8);
    const ConfigExport zero =
        exportConfig(scenario, {"x", DeepSpeedOptions{}}, ConfigFormat::DeepSpeed, {"my runs/it's", "train 2.py"});
    EXPECT_EQ(zero.launchCommand,
              R"(deepspeed --num_gpus 8 'train 2.py' --deepspeed 'my runs/it'\''s/ds_config.json')");
    const ConfigExport fsdp =
        exportConfig(scenario, {"x", Fsdp1Options{}}, ConfigFormat::AccelerateFsdp1, {"$HOME", "train.py"});
    EXPECT_EQ(fsdp.launchCommand, "accelerate launch --config_file '$HOME/accelerate_config.yaml' train.py");
}

TEST(ConfigImport, MoreNodesThanAnIntHoldsAreRefusedAndNeverCutShort)
{
    const Scenario scenario = scenarioOn(1, 8);
    const std::int64_t nodes = (std::int64_t{1} << 32) + 2; // its lower 32 bits are 2
    for (const std::string& launch : {fmt::format("num_processes: {}\nnum_machines: {}\n", nodes, nodes),
                                      fmt::format("num_processes: {}\nnum_machines: 1\n", nodes * 8)}) {
        const ImportedConfig config =
            importConfig("distributed_type: MULTI_GPU\nmixed_precision: bf16\n" + launch, "many.yaml");
        EXPECT_THROW(scenarioOf(config, scenario.model, scenario.cluster), InputError) << launch;
    }
}

// Accelerate's concept guide "FSDP vs DeepSpeed": the pairs of its tables.
TEST(Convert, FollowsTheMappingBothWays)
{
    const auto fromFsdp = [](const std::string& sharding) {
        const ImportedConfig source = importConfig("distributed_type: FSDP\nmixed_precision: bf16\nnum_processes: 16\n"
                                                   "num_machines: 2\nfsdp_config:\n  fsdp_sharding_strategy: " +
                                                       sharding + "\n  fsdp_offload_params: true\n",
                                                   "a.yaml");
        return importConfig(convertConfig(source, ConfigFormat::DeepSpeed).result.files.front().text, "ds.json");
    };
    const auto full = std::get<DeepSpeedOptions>(fromFsdp("FULL_SHARD").run.strategy.options);
    EXPECT_EQ(full.stage, 3);
    EXPECT_EQ(full.offloadParam, OffloadDevice::Cpu);
    const auto grad = std::get<DeepSpeedOptions>(fromFsdp("SHARD_GRAD_OP").run.strategy.options);
    EXPECT_EQ(grad.stage, 2);
    EXPECT_EQ(grad.offloadOptimizer, OffloadDevice::Cpu);
    EXPECT_EQ(std::get<DeepSpeedOptions>(fromFsdp("NO_SHARD").run.strategy.options).stage, 0);
    EXPECT_EQ(std::get<DeepSpeedOptions>(fromFsdp("HYBRID_SHARD").run.strategy.options).hpzPartitionSize, 8);

    const ImportedConfig zero = importConfig(R"({"train_batch_size": 32, "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1, "bf16": {"enabled": true}, "scheduler": {"type": "WarmupLR"},
        "zero_optimization": {"stage": 3, "sub_group_size": 5, "offload_optimizer": {"device": "cpu"}}})",
                                             "ds.json");
    const Conversion back = convertConfig(zero, ConfigFormat::AccelerateFsdp1, twoBlockModel());
    const ImportedConfig fsdp = importConfig(back.result.files.front().text, "a.yaml");
    const auto& options = std::get<Fsdp1Options>(fsdp.run.strategy.options);
    EXPECT_EQ(options.sharding, ShardingStrategy::FullShard);
    EXPECT_TRUE(options.offloadParams);
    EXPECT_EQ(options.backwardPrefetch, BackwardPrefetch::Pre);
    EXPECT_EQ(fsdp.run.wrapClasses, std::vector<std::string>{"LlamaDecoderLayer"});
    EXPECT_EQ(fsdp.run.launch.processes, 16);
    const auto lists = [](const std::vector<ConversionItem>& items, const std::string& setting) {
        for (const ConversionItem& item : items)
            if (item.setting == setting)
                return true;
        return false;
    };
    EXPECT_TRUE(lists(back.kept, "mixed precision"));
    EXPECT_TRUE(lists(back.translated, "offload_optimizer, offload_param"));
    EXPECT_TRUE(lists(back.noEquivalent, "sub_group_size"));
    EXPECT_TRUE(lists(back.noEquivalent, "scheduler"));
}

// What Hugging Face would have filled stays "auto" in a DeepSpeed file; an FSDP file has no such word, so that the
// launch command asks.
TEST(Convert, DecidesNothingThatTheSourceLeavesOpen)
{
    const ImportedConfig open = importConfig(R"({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
        "bf16": {"enabled": "auto"}, "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": 0.1}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}}, "zero_optimization": {"stage": 3}})",
                                             "ds.json");
    const Json same = Json::parse(convertConfig(open, ConfigFormat::DeepSpeed).result.files.front().text);
    EXPECT_EQ(same["optimizer"], Json::parse(R"({"type": "AdamW", "params": {"lr": "auto", "weight_decay": 0.1}})"));
    EXPECT_EQ(same["scheduler"], Json::parse(R"({"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}})"));
    EXPECT_EQ(same["bf16"]["enabled"], "auto");

    const ConfigExport fsdp = convertConfig(open, ConfigFormat::AccelerateFsdp2, twoBlockModel()).result;
    EXPECT_EQ(fsdp.files.front().text.find("mixed_precision"), std::string::npos);
    EXPECT_NE(fsdp.launchCommand.find("--mixed_precision $MIXED_PRECISION"), std::string::npos);
}

// Hugging Face's Trainer compares TrainingArguments with the file and stops on a difference.
TEST(Convert, TellsEveryTrainingArgumentThatTheFileFixes)
{
    const ImportedConfig fixed = importConfig(R"({"train_batch_size": 16, "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1, "gradient_clipping": 0.5, "fp16": {"enabled": true},
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-5}}, "zero_optimization": {"stage": 2}})",
                                              "ds.json");
    std::string told;
    for (const ConfigNote& note : convertConfig(fixed, ConfigFormat::DeepSpeed).result.notes)
        if (note.setting == "TrainingArguments")
            told = note.text;
    for (const char* argument : {"--per_device_train_batch_size 2", "--gradient_accumulation_steps 1",
                                 "--max_grad_norm 0.5", "--fp16 True", "--learning_rate 3e-05"})
        EXPECT_NE(told.find(argument), std::string::npos) << argument << " in " << told;
}

RC_GTEST_PROP(Convert, WithinDeepSpeedChangesNothing, ())
{
    Scenario scenario = scenarioOn(2, 8);
    scenario.training = someTraining();
    DeepSpeedOptions options = someDeepSpeed();
    options.zero3Init = true;
    const ConfigExport exported = exportConfig(scenario, {"x", options}, ConfigFormat::DeepSpeed);
    const ImportedConfig imported = importBack(exported);
    const Conversion conversion = convertConfig(imported, ConfigFormat::AccelerateDeepSpeed);
    const ImportedConfig again = importBack(conversion.result);
    RC_ASSERT(again.run.strategy.options == imported.run.strategy.options);
    RC_ASSERT(conversion.translated.empty());
    RC_ASSERT(conversion.noEquivalent.empty());
}

} // namespace
} // namespace shardwright
