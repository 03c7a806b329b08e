#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <set>

#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"

namespace shardwright {
namespace {

struct Read {
    Strategy strategy;
    std::vector<Finding> findings;
};

Read readStrategy(const std::string& text, int gpusPerNode = 8)
{
    const Json json = parseJson(text, "s.json");
    Findings findings("s.json");
    Strategy strategy = strategyFromJson(JsonCursor(json, findings), gpusPerNode);
    return {strategy, findings.all()};
}

TEST(StrategyNames, AreUniqueAndCarryTheirFramework)
{
    const auto names = strategyNames();
    EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), names.size());
    for (const std::string& name : names) {
        const auto strategy = strategyByName(name, 8);
        ASSERT_TRUE(strategy) << name;
        EXPECT_EQ(strategy->name, name);
        EXPECT_EQ(name.substr(0, name.find('-')), frameworkOf(*strategy)) << name;
    }
    EXPECT_FALSE(strategyByName("fsdp3-full-shard", 8));
}

TEST(StrategyNames, TakeModelParallelismBehindThem)
{
    const auto split = [](const char* name) { return strategyByName(name, 8)->parallelism; };
    const Parallelism wide = split("megatron-distributed-optimizer-tp8sp-pp4v2-cp2u-ep8-etp1");
    EXPECT_EQ(wide.tensor, 8);
    EXPECT_TRUE(wide.sequenceParallel);
    EXPECT_EQ(wide.pipeline, 4);
    EXPECT_EQ(wide.schedule, PipelineSchedule::Interleaved);
    EXPECT_EQ(wide.virtualStages, 2);
    EXPECT_EQ(wide.context, 2);
    EXPECT_EQ(wide.exchange, ContextExchange::Ulysses);
    EXPECT_EQ(wide.expert, 8);
    EXPECT_EQ(wide.expertTensor, 1);
    EXPECT_EQ(split("fsdp2-full-shard-tp4").tensor, 4);
    EXPECT_FALSE(split("fsdp2-full-shard-tp4").sequenceParallel);
    EXPECT_EQ(split("fsdp2-full-shard-cp2ag").exchange, ContextExchange::AllGather);
    EXPECT_FALSE(std::get<MegatronOptions>(strategyByName("megatron-tp2", 8)->options).distributedOptimizer);
    EXPECT_TRUE(std::get<MegatronOptions>(strategyByName("megatron-distributed-optimizer-tp2", 8)->options)
                    .distributedOptimizer);
    for (const char* wrong :
         {"megatron-tp", "megatron-tp0", "megatron-tp-2", "megatron-pp2-tp2", "megatron-tp2-tp2", "megatron-tp2sp-",
          "megatron-", "tp2", "megatron-tp99999999999999999999", "megatron-pp2v", "fsdp2-full-shard-full"})
        EXPECT_FALSE(strategyByName(wrong, 8)) << wrong;
}

TEST(StrategyNames, TakeWhatASearchWritesBehindThem)
{
    const auto deepSpeed = [](const char* name) {
        return std::get<DeepSpeedOptions>(strategyByName(name, 8)->options);
    };
    const DeepSpeedOptions all = deepSpeed("deepspeed-zero3-qwz-hpz-qgz-offload-cpu");
    EXPECT_EQ(all.stage, 3);
    EXPECT_TRUE(all.quantizedWeights && all.quantizedGradients);
    EXPECT_EQ(all.hpzPartitionSize, 8);
    EXPECT_EQ(all.offloadParam, OffloadDevice::Cpu);
    EXPECT_EQ(deepSpeed("deepspeed-zero3-qwz-hpz-qgz"), deepSpeed("deepspeed-zeropp"));
    EXPECT_EQ(deepSpeed("deepspeed-mics-4-qwz").micsShardSize, 4);
    EXPECT_EQ(deepSpeed("deepspeed-zero0-offload-optimizer-cpu").offloadOptimizer, OffloadDevice::Cpu);
    const Strategy fsdp1 = *strategyByName("fsdp1-hybrid-shard-zero2-4-offload", 8);
    EXPECT_EQ(std::get<Fsdp1Options>(fsdp1.options).sharding, ShardingStrategy::HybridShardZero2);
    EXPECT_EQ(std::get<Fsdp1Options>(fsdp1.options).shardGroup, 4);
    EXPECT_TRUE(std::get<Fsdp1Options>(fsdp1.options).offloadParams);
    const Strategy fsdp2 = *strategyByName("fsdp2-shard-grad-op-offload-tp2", 8);
    EXPECT_TRUE(std::get<Fsdp2Options>(fsdp2.options).offloadParams);
    EXPECT_EQ(fsdp2.parallelism.tensor, 2);
    EXPECT_TRUE(strategyByName("fsdp2-hybrid-shard-8", 8));
    EXPECT_TRUE(strategyByName("fsdp2-hybrid-shard-4", 0)); // nodes of four GPUs there may be
    EXPECT_TRUE(strategyByName("deepspeed-mics-4-qwz", 0));
    for (const char* wrong :
         {"ddp-offload", "ddp-8", "fsdp1-full-shard-8", "fsdp1-full-shard-offload-offload", "fsdp2-hybrid-shard-4",
          "fsdp2-hybrid-shard-8-tp2", "deepspeed-zero2-qwz", "deepspeed-zero2-offload-cpu", "deepspeed-zero3-qgz-qwz",
          "deepspeed-zeropp-qwz", "deepspeed-mics-0", "deepspeed-mics-", "deepspeed-zero3-offload-cpu-qwz",
          "megatron-offload", "native-zero3-offload"})
        EXPECT_FALSE(strategyByName(wrong, 8)) << wrong;
}

TEST(StrategyNames, HybridOnesFollowTheNode)
{
    EXPECT_EQ(std::get<DeepSpeedOptions>(strategyByName("deepspeed-zeropp", 4)->options).hpzPartitionSize, 4);
    EXPECT_EQ(std::get<DeepSpeedOptions>(strategyByName("deepspeed-mics", 16)->options).micsShardSize, 16);
    EXPECT_EQ(std::get<Fsdp2Options>(strategyByName("fsdp2-hybrid-shard", 8)->options).replicate, 0);
    EXPECT_FALSE(std::get<Fsdp2Options>(strategyByName("fsdp2-hybrid-shard-zero2", 8)->options).reshardAfterForward);
    EXPECT_EQ(std::get<Fsdp1Options>(strategyByName("fsdp1-hybrid-shard", 8)->options).shardGroup, 0);
}

TEST(StrategyFile, ReadsDeepSpeedUnderItsOwnNames)
{
    const Read read = readStrategy(R"({"name": "mine", "framework": "deepspeed",
        "zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": 5e7, "max_reuse_distance": 0,
            "overlap_comm": false, "mics_shard_size": -1,
            "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme", "pin_memory": false, "buffer_count": 6}},
        "aio": {"queue_depth": 32}, "data_types": {"grad_accum_dtype": "fp32"}})");
    ASSERT_TRUE(read.findings.empty()) << read.findings[0].text();
    const auto& options = std::get<DeepSpeedOptions>(read.strategy.options);
    EXPECT_EQ(options.stage, 3);
    EXPECT_EQ(options.prefetchBucketSize, 50000000);
    EXPECT_EQ(options.maxReuseDistance, 0);
    EXPECT_EQ(options.overlapComm, false);
    EXPECT_EQ(options.micsShardSize, 0);
    EXPECT_EQ(options.offloadOptimizer, OffloadDevice::Nvme);
    EXPECT_EQ(options.nvmePath, "/nvme");
    EXPECT_FALSE(options.pinMemory);
    EXPECT_EQ(options.optimizerBufferCount, 6);
    EXPECT_EQ(options.aio.queueDepth, 32);
    EXPECT_EQ(options.gradAccumDtype, DType::Fp32);
}

TEST(StrategyFile, TellsEveryMistakeOfDeepSpeedAtOnce)
{
    const Read read = readStrategy(R"({"name": "mine", "framework": "deepspeed", "zero_optimisation": {},
        "zero_optimization": {"stage": 4, "prefetch_bucket_size": 1, "stage3_prefetch_bucket_size": 2,
            "offload_optimizer": {"device": "disk"}, "reduce_bucket_size": "auto", "cpu_offload_param": true,
            "elastic_checkpoint": true},
        "bf16": {"enabled": true}})");
    std::set<std::string> places;
    for (const Finding& finding : read.findings)
        places.insert(finding.place);
    EXPECT_EQ(places, (std::set<std::string>{
                          "/zero_optimisation", "/zero_optimization/stage", "/zero_optimization/prefetch_bucket_size",
                          "/zero_optimization/offload_optimizer/device", "/zero_optimization/reduce_bucket_size",
                          "/zero_optimization/elastic_checkpoint", "/bf16", "/zero_optimization/cpu_offload_param"}));
}

TEST(StrategyFile, ReshardAfterForwardIsABoolOrANumberOfRanks)
{
    const auto options = [](const std::string& value) {
        return std::get<Fsdp2Options>(
            readStrategy(R"({"name": "x", "framework": "fsdp2", "reshard_after_forward": )" + value + "}")
                .strategy.options);
    };
    EXPECT_FALSE(options("false").reshardAfterForward);
    EXPECT_EQ(options("false").reshardGroup, 0);
    EXPECT_TRUE(options("4").reshardAfterForward);
    EXPECT_EQ(options("4").reshardGroup, 4);
}

TEST(StrategyFile, NamesTheNearestPredefinedStrategy)
{
    const Read read = readStrategy(R"("fsdp2-fullshard")");
    ASSERT_EQ(read.findings.size(), 1U);
    EXPECT_EQ(read.findings[0].expected, "\"fsdp2-full-shard\" perhaps");
}

TEST(StrategyFile, OffersEachKnownKeyOnce)
{
    const Read read = readStrategy(R"({"name": "a", "framework": "fsdp1", "quux": 1})");
    ASSERT_EQ(read.findings.size(), 1U);
    EXPECT_EQ(read.findings[0].place, "/quux");
    EXPECT_EQ(read.findings[0].expected.find("name"), read.findings[0].expected.rfind("name,"));
}

TEST(StrategyFile, RejectsADtypeThatNothingTravelsIn)
{
    const Read read = readStrategy(R"({"name": "x", "framework": "fsdp1", "reduce_dtype": "nf4"})");
    ASSERT_EQ(read.findings.size(), 1U);
    EXPECT_EQ(read.findings[0].text(),
              "s.json: /reduce_dtype: \"nf4\" is not possible here; expected fp32, bf16 or fp16");
}

template <typename E> E anyOf()
{
    std::vector<E> values;
    for (const auto& entry : EnumNames<E>::table)
        values.push_back(entry.first);
    return *rc::gen::elementOf(values);
}

bool anyBool()
{
    return *rc::gen::arbitrary<bool>();
}

std::int64_t anySize()
{
    return *rc::gen::inRange<std::int64_t>(1, INT64_MAX);
}

std::optional<DType> anyWireType()
{
    return *rc::gen::element<std::optional<DType>>(DType::Fp32, DType::Bf16, DType::Fp16, std::nullopt);
}

DdpOptions anyDdp()
{
    return {Bytes(*rc::gen::inRange<std::int64_t>(1, std::int64_t{1} << 40)), anyBool()};
}

Fsdp1Options anyFsdp1()
{
    Fsdp1Options options;
    options.sharding = anyOf<ShardingStrategy>();
    options.shardGroup = anySize();
    options.offloadParams = anyBool();
    options.backwardPrefetch = anyOf<BackwardPrefetch>();
    options.forwardPrefetch = anyBool();
    options.limitAllGathers = anyBool();
    options.wrap = anyOf<WrapPolicy>();
    options.minNumParams = anySize();
    options.useOrigParams = anyBool();
    options.syncModuleStates = anyBool();
    options.cpuRamEfficientLoading = anyBool();
    options.paramDtype = anyWireType();
    options.reduceDtype = anyWireType();
    options.bufferDtype = anyWireType();
    options.noSync = anyBool();
    options.upcastTrainable = anyBool();
    return options;
}

Fsdp2Options anyFsdp2()
{
    Fsdp2Options options;
    options.reshardAfterForward = anyBool();
    if (options.reshardAfterForward && anyBool())
        options.reshardGroup = anySize();
    options.replicate = *rc::gen::inRange<std::int64_t>(0, 1000000);
    options.noShard = anyBool();
    options.offloadParams = anyBool();
    options.pinMemory = anyBool();
    options.forwardPrefetch = anyBool();
    options.wrap = anyOf<WrapPolicy>();
    options.minNumParams = anySize();
    options.separateHeadUnit = anyBool();
    options.cpuRamEfficientLoading = anyBool();
    options.paramDtype = anyWireType();
    options.reduceDtype = anyWireType();
    options.noSync = anyBool();
    options.upcastTrainable = anyBool();
    options.keepLastBlock = anyBool();
    options.checkpointChildren = anyBool();
    return options;
}

/// What a strategy adds to DeepSpeed's own keys, and a sample of those; their own reader's tests vary them all.
DeepSpeedOptions anyDeepSpeed()
{
    DeepSpeedOptions options;
    options.stage = *rc::gen::inRange(0, 4);
    options.offloadOptimizer = anyOf<OffloadDevice>();
    options.offloadParam = anyOf<OffloadDevice>();
    options.pinMemory = anyBool();
    options.paramPinMemory = anyBool();
    options.overlapComm = *rc::gen::element<std::optional<bool>>(true, false, std::nullopt);
    options.reduceBucketSize = anySize();
    options.maxReuseDistance = anySize();
    options.quantizedWeights = anyBool();
    options.hpzPartitionSize = anySize();
    options.micsShardSize = *rc::gen::inRange<std::int64_t>(0, 1000);
    options.gather16bitWeightsOnModelSave = anyBool();
    options.gradAccumDtype = anyWireType();
    options.communicationDtype = anyWireType();
    options.bf16MasterWeightsAndGrads = anyBool();
    options.zero3Init = anyBool();
    return options;
}

StrategyOptions anyOptions()
{
    switch (*rc::gen::inRange(0, 6)) {
    case 0: return anyDdp();
    case 1: return anyFsdp1();
    case 2: return anyFsdp2();
    case 3: return anyDeepSpeed();
    case 4: return MegatronOptions{anyBool(), anyBool(), anyBool(), anyBool(), anySize() + 1, anyBool()};
    default: return NativeOptions{*rc::gen::inRange(0, 4), anyBool(), anyBool()};
    }
}

Parallelism anyParallelism()
{
    Parallelism parallelism;
    parallelism.tensor = *rc::gen::inRange<std::int64_t>(1, 65);
    parallelism.sequenceParallel = anyBool();
    parallelism.pipeline = *rc::gen::inRange<std::int64_t>(1, 65);
    parallelism.schedule = anyOf<PipelineSchedule>();
    parallelism.virtualStages = *rc::gen::inRange<std::int64_t>(1, 9);
    parallelism.context = *rc::gen::inRange<std::int64_t>(1, 17);
    parallelism.exchange = anyOf<ContextExchange>();
    parallelism.expert = *rc::gen::inRange<std::int64_t>(1, 65);
    parallelism.expertImbalance = 1 + *rc::gen::inRange(0, 8) / 4.0;
    return parallelism;
}

RC_GTEST_PROP(StrategyFile, SurvivesWritingAndReading, ())
{
    const Strategy written{"mine", anyOptions(), anyParallelism()};
    const Read read = readStrategy(toJson(written).dump());
    RC_ASSERT(read.findings.empty());
    RC_ASSERT(read.strategy == written);
}

TEST(StrategyFile, PredefinedOnesSurviveWritingAndReading)
{
    for (const std::string& name : strategyNames()) {
        const Strategy written = *strategyByName(name, 8);
        const Read read = readStrategy(toJson(written).dump());
        EXPECT_TRUE(read.findings.empty()) << name;
        EXPECT_EQ(read.strategy, written) << name;
    }
}

} // namespace
} // namespace shardwright
