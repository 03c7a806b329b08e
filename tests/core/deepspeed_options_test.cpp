#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/deepspeed_options.hpp"
#include "core/json_cursor.hpp"

namespace shardwright {
namespace {

struct Reading {
    DeepSpeedOptions options = deepSpeedFileDefaults();
    DeepSpeedExtras extras;
    std::vector<Finding> findings;
};

Reading readText(const std::string& text)
{
    Reading reading;
    const Json json = parseJson(text, "ds.json");
    Findings findings("ds.json");
    readDeepSpeedOptions(JsonCursor(json, findings), reading.options, reading.extras);
    reading.findings = findings.all();
    return reading;
}

bool mentions(const std::vector<Finding>& findings, const std::string& place, const std::string& text)
{
    for (const Finding& finding : findings)
        if (finding.place == place && finding.text().find(text) != std::string::npos)
            return true;
    return false;
}

TEST(DeepSpeedOptions, AnEmptyObjectGivesDeepSpeedsDefaults)
{
    const Reading reading = readText(R"({"zero_optimization": {}})");
    EXPECT_TRUE(reading.findings.empty());
    EXPECT_EQ(reading.options.stage, 0); // config.py: stage: ZeroStageEnum = 0
    EXPECT_FALSE(overlapsCommunication(reading.options));
    EXPECT_FALSE(reading.options.gather16bitWeightsOnModelSave);
}

TEST(DeepSpeedOptions, Stage3KeysAreTakenWithAndWithoutPrefix)
{
    const Reading reading = readText(R"({"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": 7,
                                        "max_live_parameters": 11}})");
    EXPECT_TRUE(reading.findings.empty());
    EXPECT_EQ(reading.options.prefetchBucketSize, 7);
    EXPECT_EQ(reading.options.maxLiveParameters, 11);
    EXPECT_TRUE(overlapsCommunication(reading.options));

    const Reading both = readText(R"({"zero_optimization": {"stage3_prefetch_bucket_size": 7,
                                     "prefetch_bucket_size": 8}})");
    EXPECT_TRUE(mentions(both.findings, "/zero_optimization/prefetch_bucket_size", "says the same"));
}

TEST(DeepSpeedOptions, UnknownKeysAreFoundWithTheNearestKnownOne)
{
    const Reading reading = readText(R"({"zero_optimization": {"stage": 2, "reduce_bucket_sise": 5,
                                        "offload_optimizer": {"device": "cpu", "pinmemory": true}}})");
    EXPECT_TRUE(mentions(reading.findings, "/zero_optimization/reduce_bucket_sise", "\"reduce_bucket_size\" perhaps"));
    EXPECT_TRUE(mentions(reading.findings, "/zero_optimization/offload_optimizer/pinmemory", "\"pin_memory\" perhaps"));
}

TEST(DeepSpeedOptions, AutoKeepsTheDefaultAndIsNamed)
{
    const Reading reading = readText(R"({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}})");
    EXPECT_TRUE(reading.findings.empty());
    EXPECT_EQ(reading.options.reduceBucketSize, 500000000);
    EXPECT_EQ(reading.extras.automatic, std::vector<std::string>{"/zero_optimization/reduce_bucket_size"});
}

TEST(DeepSpeedOptions, DeprecatedKeysAreRewritten)
{
    const Reading reading = readText(R"({"zero_optimization": {"stage": 3, "cpu_offload": true,
        "cpu_offload_param": false, "stage3_gather_fp16_weights_on_model_save": true}})");
    EXPECT_TRUE(reading.findings.empty());
    EXPECT_EQ(reading.options.offloadOptimizer, OffloadDevice::Cpu);
    EXPECT_EQ(reading.options.offloadParam, OffloadDevice::None);
    EXPECT_TRUE(reading.options.gather16bitWeightsOnModelSave);
    EXPECT_EQ(reading.extras.rewritten.size(), 3U);

    EXPECT_EQ(readText(R"({"zero_optimization": true})").options.stage, 1);
    const Reading both = readText(R"({"zero_optimization": {"cpu_offload": true, "offload_optimizer": {}}})");
    EXPECT_TRUE(mentions(both.findings, "/zero_optimization/cpu_offload", "one of the two"));
}

TEST(DeepSpeedOptions, KeysWithoutAnOptionAreCarriedInTheirPlaces)
{
    const Reading reading = readText(R"({"zero_optimization": {"stage": 3, "zero_quantized_nontrainable_weights": true,
        "offload_optimizer": {"device": "cpu", "fast_init": true}}, "aio": {"use_gds": false}})");
    EXPECT_TRUE(reading.findings.empty());
    EXPECT_EQ(reading.extras.carried, Json::parse(R"({"zero_optimization": {"zero_quantized_nontrainable_weights": true,
        "offload_optimizer": {"fast_init": true}}, "aio": {"use_gds": false}})"));
}

TEST(DeepSpeedOptions, AioMayHoldKeysThatDeepSpeedDoesNotRead)
{
    // thread_count stands in DeepSpeed's documentation and in no code of 0.19.6
    const Reading reading = readText(R"({"aio": {"thread_count": 4, "queue_depth": 16}})");
    EXPECT_TRUE(reading.findings.empty());
    EXPECT_EQ(reading.options.aio.queueDepth, 16);
    EXPECT_EQ(reading.options.aio.threads, 1);
    EXPECT_EQ(reading.extras.ignored, std::vector<std::string>{"/aio/thread_count"});
}

TEST(DeepSpeedOptions, NvmeNeedsAPath)
{
    const Reading reading = readText(R"({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}})");
    EXPECT_TRUE(mentions(reading.findings, "/zero_optimization/offload_param", "nvme_path"));
}

std::string problemPlaces(const DeepSpeedOptions& options, std::optional<Optimizer> optimizer = std::nullopt)
{
    std::string places;
    for (const SettingProblem& problem : findDeepSpeedProblems(options, optimizer))
        places += problem.place + " ";
    return places;
}

TEST(DeepSpeedRules, NameWhatDeepSpeedRefusesOrDrops)
{
    DeepSpeedOptions options;
    EXPECT_EQ(problemPlaces(options, Optimizer::AdamW), "");
    EXPECT_EQ(problemPlaces(options, Optimizer::OneBitAdam), "/optimizer/type ");

    options.stage = 2;
    options.offloadParam = OffloadDevice::Cpu;
    options.offloadOptimizer = OffloadDevice::Nvme;
    options.quantizedWeights = true;
    EXPECT_EQ(problemPlaces(options), "/zero_optimization/offload_param/device "
                                      "/zero_optimization/offload_optimizer/device "
                                      "/zero_optimization/zero_quantized_weights ");

    options = {};
    options.stage = 0;
    EXPECT_EQ(problemPlaces(options, Optimizer::OneBitAdam), "");
    options.bf16OptimizerStates = true;
    EXPECT_EQ(problemPlaces(options), "/bf16/bf16_optimizer_states ");
}

RC_GTEST_PROP(DeepSpeedOptionsRoundTrip, WhatIsWrittenReadsBackEqual, ())
{
    DeepSpeedOptions options;
    const auto size = [] { return *rc::gen::inRange<std::int64_t>(1, 2000000000); };
    const auto flip = [] { return *rc::gen::arbitrary<bool>(); };
    const auto device = [] { return *rc::gen::element(OffloadDevice::None, OffloadDevice::Cpu, OffloadDevice::Nvme); };
    options.stage = *rc::gen::inRange(0, 4);
    options.offloadOptimizer = device();
    options.offloadParam = device();
    options.nvmePath = flip() ? "/nvme0" : options.nvmePath;
    options.paramNvmePath = flip() ? "/nvme1" : options.paramNvmePath;
    options.offloadRatio = static_cast<double>(*rc::gen::inRange(0, 11)) / 10.0;
    options.pinMemory = flip();
    options.paramPinMemory = flip();
    options.pipelineRead = flip();
    options.pipelineWrite = flip();
    options.optimizerBufferCount = size();
    options.paramBufferCount = size();
    options.paramBufferSize = size();
    options.maxInCpu = size();
    options.aio = {size(), size(), size(), flip(), flip()};
    options.reduceBucketSize = size();
    options.allgatherBucketSize = size();
    options.overlapComm = flip();
    options.contiguousGradients = flip();
    options.reduceScatter = flip();
    options.useMultiRankBucketAllreduce = flip();
    options.roundRobinGradients = flip();
    options.subGroupSize = size();
    options.prefetchBucketSize = size();
    options.paramPersistenceThreshold = size();
    options.modelPersistenceThreshold = size();
    options.maxLiveParameters = size();
    options.maxReuseDistance = size();
    options.gather16bitWeightsOnModelSave = flip();
    options.quantizedWeights = flip();
    options.quantizedGradients = flip();
    options.hpzPartitionSize = size();
    options.micsShardSize = flip() ? size() : 0;
    options.micsHierarchicalGather = flip();
    options.gradAccumDtype = flip() ? std::optional(DType::Fp32) : std::nullopt;
    options.communicationDtype = flip() ? std::optional(DType::Bf16) : std::nullopt;
    options.bf16MasterWeightsAndGrads = flip();
    options.bf16OptimizerStates = flip();

    Findings findings("ds.json");
    const Json json = deepSpeedOptionsJson(options);
    DeepSpeedOptions readBack = deepSpeedFileDefaults();
    DeepSpeedExtras extras;
    readDeepSpeedOptions(JsonCursor(json, findings), readBack, extras);
    RC_ASSERT(findings.empty());
    RC_ASSERT(extras.carried.empty());
    RC_ASSERT(readBack == options);
    RC_ASSERT(deepSpeedOptionsJson(readBack) == json);
}

} // namespace
} // namespace shardwright
