// Schedules that DeepSpeed's rules record for shardrun, played in numbers.

#include <algorithm>
#include <functional>
#include <tuple>

#include <gtest/gtest.h>

#include "planner/activations/activation_model.hpp"
#include "planner/readers/host_link.hpp"
#include "planner/readers/traffic_sum.hpp"
#include "tests/planner/execution/recorded_schedule.hpp"
#include "tests/planner/execution/recording_input.hpp"

namespace shardwright {

namespace {

DeepSpeedOptions fitted(const StrategyOptions& options)
{
    constexpr std::int64_t kBuffer = 200; // elements
    return fittedToTwo(options, kBuffer);
}

/// Its embedding and its head are 1 MiB in 16 bit each, so that a rank's shard of either goes to NVMe: whole in bf16,
/// one of two in fp32.
Model swappableLlama()
{
    LlamaShape shape;
    shape.hidden = 32;
    shape.headDim = 16;
    shape.ffn = 32;
    shape.vocab = 16384;
    return llamaOf(shape);
}

std::vector<std::string> reasonsOf(const DeepSpeedOptions& options, const Conditions& run = {2, 2, 1, {}})
{
    return refusals(recordingInput(options, run).input());
}

} // namespace

class DeepSpeedRecording : public testing::TestWithParam<std::pair<std::string, StrategyOptions>> {};

TEST_P(DeepSpeedRecording, TrainsEveryElementFromTheMeanOverAllRanks)
{
    const auto& [name, options] = GetParam();
    for (const auto& [nodes, gpus] : std::vector<std::pair<int, int>>{{1, 1}, {1, 2}, {1, 3}, {2, 2}, {2, 4}})
        for (const std::int64_t accumulation : {1, 2, 4})
            for (const bool mixed : {false, true})
                expectSound(
                    name, fitted(options),
                    {nodes, gpus, accumulation, mixed ? std::optional(DType::Bf16) : std::nullopt, accumulation == 2});
}

INSTANTIATE_TEST_SUITE_P(All, DeepSpeedRecording, testing::ValuesIn(everyDeepSpeed()), [](const auto& instance) {
    std::string name = instance.param.first;
    for (char& letter : name)
        if (std::isalnum(static_cast<unsigned char>(letter)) == 0)
            letter = '_';
    return name;
});

TEST(DeepSpeedRecordings, BucketsMayHoldOneTensorOrAllOfThem)
{
    for (const auto& [name, options] : everyDeepSpeed())
        for (const std::int64_t bucket : {40, 10000}) {
            DeepSpeedOptions sized = fitted(options);
            sized.reduceBucketSize = bucket;
            sized.paramPersistenceThreshold = bucket;
            expectSound(name, sized, {2, 2, 2, DType::Bf16, true});
        }
}

/// 150 elements take any tensor but not all of a module; 50 and 10 some biases (6 to 24) and no weights (36 to 144),
/// 4 nothing.
TEST(DeepSpeedRecordings, ABucketMayBeEmptiedWithinAModule)
{
    for (const auto& [name, options] : everyDeepSpeed())
        for (const std::int64_t bucket : {150, 50, 10, 4}) {
            DeepSpeedOptions sized = fitted(options);
            sized.reduceBucketSize = bucket;
            SmallInput input = recordingInput(sized, {1, 3, 2, {}});
            input.model = smallGpt2();
            if (refusals(input.input()).empty()) {
                EXPECT_EQ(textOf(recordingProblems(input.input())), "") << name << ", bucket " << bucket;
            }
        }
}

/// The payloads of copies over PCIe are what the first rank's buffers hold; ranks whose parts are shorter move less.
TEST(DeepSpeedRecordings, CopiesOverTheHostLinkMoveWhatTheFirstRankHolds)
{
    for (const auto& [name, options] : everyDeepSpeed())
        for (const auto& [nodes, gpus] : std::vector<std::pair<int, int>>{{1, 1}, {1, 3}, {2, 2}}) {
            const SmallInput input =
                recordingInput(fitted(options), {nodes, gpus, 2, DType::Bf16, false, Checkpointing::Cpu});
            if (!refusals(input.input()).empty())
                continue;
            const Schedule schedule = input.rules()->emitToRun();
            const Traffic traffic = sumTraffic(schedule, input.model.parameters(), gpus);
            const std::vector<HostLinkBytes> links =
                hostLinkByRank(schedule, listParameters(input.model), nodes * gpus);
            EXPECT_GT(links[0].toHost, Bytes(0)) << name; // the activations'
            EXPECT_EQ(links[0].toDevice, traffic.hostToDeviceBytes) << name << " on " << nodes * gpus;
            EXPECT_EQ(links[0].toHost, traffic.deviceToHostBytes) << name << " on " << nodes * gpus;
            if (std::get<DeepSpeedOptions>(options).stage < 3)
                continue; // every rank keeps other gradients of a bucket
            for (const HostLinkBytes& link : links) {
                EXPECT_LE(link.toDevice, links[0].toDevice) << name;
                EXPECT_LE(link.toHost, links[0].toHost) << name;
            }
        }
}

TEST(DeepSpeedRecordings, CheckpointingGathersAgainWhatItRecomputes)
{
    for (const Checkpointing checkpointing : {Checkpointing::Selective, Checkpointing::Full, Checkpointing::Cpu})
        for (const auto& [name, options] : everyDeepSpeed())
            expectSound(name, fitted(options), {2, 2, 2, DType::Bf16, false, checkpointing});
}

TEST(DeepSpeedRecordings, OptimizersKeepTheMomentsThatTheyNeed)
{
    for (const Optimizer optimizer : {Optimizer::Adam, Optimizer::SgdMomentum, Optimizer::Sgd})
        for (const auto& [name, options] : everyDeepSpeed())
            expectSound(name, fitted(options), {1, 3, 2, std::nullopt, true, Checkpointing::None, optimizer});
}

TEST(DeepSpeedRecordings, StatesGoThroughSwapBuffersWhereSubGroupsAreLarge)
{
    DeepSpeedOptions options;
    options.stage = 3;
    options.offloadOptimizer = options.offloadParam = OffloadDevice::Nvme;
    options.maxInCpu = 0;
    options.reduceBucketSize = 300000;
    options.paramBufferSize = 300000;
    for (const bool pipelined : {false, true}) {
        options.pipelineRead = options.pipelineWrite = pipelined;
        options.optimizerBufferCount = pipelined ? 8 : 4;
        SmallInput input = recordingInput(options, {1, 2, 2, DType::Bf16});
        input.model = swappableLlama();
        std::get<DeepSpeedOptions>(input.strategy.options).subGroupSize = 262144;
        ASSERT_EQ(textOf(refusals(input.input())), "");
        EXPECT_EQ(textOf(recordingProblems(input.input())), "") << (pipelined ? "pipelined" : "one by one");
    }
}

/// On NVMe are shards of 1 MiB and more of sub-groups that max_in_cpu does not hold, wherever the states are.
TEST(DeepSpeedRecordings, ParametersMayBeInHostMemoryOnNvmeAndOnTheGpu)
{
    for (const std::int64_t maxInCpu : {0, 530000})
        for (const OffloadDevice optimizer : {OffloadDevice::None, OffloadDevice::Nvme}) {
            DeepSpeedOptions options;
            options.stage = 3;
            options.offloadParam = OffloadDevice::Nvme;
            options.offloadOptimizer = optimizer;
            options.maxInCpu = maxInCpu;
            options.optimizerBufferCount = 4;
            options.reduceBucketSize = 300000;
            options.paramBufferSize = 300000;
            options.paramPersistenceThreshold = 40; // norms
            SmallInput input = recordingInput(options, {1, 1, 1, DType::Bf16});
            input.model = swappableLlama();
            std::get<DeepSpeedOptions>(input.strategy.options).subGroupSize = 524288;
            ASSERT_EQ(textOf(refusals(input.input())), "");
            EXPECT_EQ(textOf(recordingProblems(input.input())), "")
                << "max_in_cpu " << maxInCpu << ", optimizer " << nameOf(optimizer);
        }
}

/// While 1-bit Adam warms up it is all-reduced like any other: the stand-in in its place makes a whole step.
TEST(DeepSpeedRecordings, WarmUpStandsInForTheStep)
{
    for (const int gpus : {1, 2, 3})
        for (const std::int64_t accumulation : {1, 3}) {
            DeepSpeedOptions options;
            options.stage = 0;
            options.reduceBucketSize = 150;
            Conditions run{1, gpus, accumulation, {}};
            run.optimizer = Optimizer::OneBitAdam;
            const SmallInput input = recordingInput(options, run);
            const auto rules = input.rules();
            EXPECT_EQ(rules->emit().segments.size() + 1, rules->emitToRun().segments.size());
            Schedule schedule = rules->emitToRun();
            Segment& standIn = schedule.segments[schedule.segments.size() - 2];
            ASSERT_EQ(standIn.repeat, 0);
            standIn.repeat = 1;
            schedule.segments.pop_back();
            EXPECT_EQ(textOf(problemsOf(
                          {schedule, input.model, input.training, gpus, rules->activations()->classes().size()})),
                      "")
                << gpus << " ranks, accumulation " << accumulation;
        }
}

TEST(DeepSpeedRecordings, WhatIsNotSaidIsRefusedByName)
{
    DeepSpeedOptions ratio;
    ratio.offloadOptimizer = OffloadDevice::Nvme;
    ratio.offloadRatio = 0.5;
    EXPECT_EQ(textOf(reasonsOf(ratio)),
              "\n  shardrun offloads part of the optimizer to host memory only: offload_optimizer.ratio 1");
    DeepSpeedOptions compressed;
    compressed.stage = 0;
    Conditions run{1, 2, 1, {}};
    run.optimizer = Optimizer::OneBitLamb;
    EXPECT_EQ(textOf(reasonsOf(compressed, run)), "\n  shardrun does not step onebit-lamb under DeepSpeed");
}

DeepSpeedOptions quantisedGradients()
{
    DeepSpeedOptions options;
    options.stage = 3;
    options.quantizedGradients = true;
    options.reduceBucketSize = 600;
    options.prefetchBucketSize = 100;
    options.paramPersistenceThreshold = 10;
    options.maxReuseDistance = 200;
    return options;
}

TEST(DeepSpeedRecordings, QuantisedGradientsReachTheirOwnersInTwoHopsWhateverElseZeroPlusPlusDoes)
{
    // Some sizes divide by twice the ranks, as qgZ needs it, and some do not; ranks that do not divide a tensor's
    // longest side, and more of them than it has elements.
    for (const auto& [nodes, gpus, ffn] :
         std::vector<std::tuple<int, int, int>>{{2, 1, 11}, {2, 2, 11}, {3, 2, 12}, {2, 4, 12}, {4, 2, 16}, {4, 4, 4}})
        for (const std::int64_t accumulation : {1, 3})
            for (const auto& change : std::vector<std::function<void(DeepSpeedOptions&)>>{
                     [](DeepSpeedOptions&) {}, [](DeepSpeedOptions& o) { o.contiguousGradients = false; },
                     [](DeepSpeedOptions& o) { o.communicationDtype = DType::Fp32; },
                     [](DeepSpeedOptions& o) { o.overlapComm = false; },
                     [](DeepSpeedOptions& o) { o.quantizedWeights = true; },
                     [](DeepSpeedOptions& o) {
                         o.quantizedWeights = true;
                         o.hpzPartitionSize = 2;
                     },
                     [](DeepSpeedOptions& o) {
                         o.hpzPartitionSize = 2;
                         o.offloadParam = OffloadDevice::Cpu;
                     },
                     [](DeepSpeedOptions& o) {
                         o.quantizedWeights = true;
                         o.hpzPartitionSize = 2;
                         o.offloadOptimizer = o.offloadParam = OffloadDevice::Cpu;
                         o.paramPinMemory = true;
                     },
                     [](DeepSpeedOptions& o) { o.offloadOptimizer = OffloadDevice::Cpu; }}) {
                const Conditions run{nodes, gpus, accumulation, DType::Bf16};
                DeepSpeedOptions options = quantisedGradients();
                change(options);
                SmallInput input = recordingInput(options, run);
                LlamaShape shape;
                shape.ffn = ffn;
                shape.vocab = 7;
                input.model = llamaOf(shape);
                if (!options.contiguousGradients && !refusals(input.input()).empty())
                    continue;
                ASSERT_EQ(textOf(refusals(input.input())), "");
                EXPECT_EQ(textOf(recordingProblems(input.input())), "")
                    << nodes << " x " << gpus << " ranks, accumulation " << accumulation;
                const Schedule schedule = input.rules()->emit();
                for (const OpKind kind : {OpKind::AllToAll, OpKind::ReduceScatter}) // both ways are there
                    EXPECT_TRUE(std::any_of(schedule.ops.begin(), schedule.ops.end(),
                                            [kind](const Op& op) { return op.kind == kind; }));
            }
}

/// That the play of a schedule tells a wrong one from a right one.
TEST(DeepSpeedRecordings, NoActionCanBeLeftOutUnnoticed)
{
    for (const std::string wanted : {"deepspeed 1 overlap", "deepspeed 2", "deepspeed 2 offload",
                                     "deepspeed 2 to owners", "deepspeed 3", "deepspeed 3 hpz", "deepspeed 3 mics"})
        for (const auto& [name, options] : everyDeepSpeed())
            if (name == wanted)
                expectEveryActionCounts(name, recordingInput(fitted(options), {2, 2, 2, DType::Bf16, true}));
}

} // namespace shardwright
