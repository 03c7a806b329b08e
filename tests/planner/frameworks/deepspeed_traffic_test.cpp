// What travels, in units of Psi and in bytes.

#include <algorithm>

#include <gtest/gtest.h>

#include "tests/planner/frameworks/deepspeed_support.hpp"

namespace shardwright::deepspeed_test {
namespace {

double sentOf(const Traffic& traffic, OpKind op, std::string_view group)
{
    double bytes = 0;
    for (const CollectiveTraffic& collective : traffic.collectives)
        if (collective.op == op && collective.group == group)
            bytes += collective.payloadBytes.asDouble();
    return bytes;
}

// All-reduce (2) of the gradients and all-gather (1) of the parameters; the paper counts a reduce-scatter (1).
TEST(DeepSpeedTraffic, Zero1And2AllReduceByDefault)
{
    Question question;
    for (const std::int64_t steps : {1, 2, 5}) {
        question.training.gradientAccumulation = steps;
        question.options().stage = 1;
        EXPECT_DOUBLE_EQ(question.traffic().psi, 3);
        EXPECT_DOUBLE_EQ(question.rules()->textbookPsi(), 2);
        question.options().stage = 2;
        EXPECT_DOUBLE_EQ(question.traffic().psi, 2.0 * static_cast<double>(steps) + 1);
        EXPECT_DOUBLE_EQ(question.rules()->textbookPsi(), static_cast<double>(steps) + 1);
        EXPECT_FALSE(question.rules()->psiDifference().empty());
    }
}

TEST(DeepSpeedTraffic, Zero2WithoutMultiRankBucketsReducesToOwners)
{
    Question question;
    question.options().stage = 2;
    question.options().useMultiRankBucketAllreduce = false;
    EXPECT_DOUBLE_EQ(question.traffic().psi, 2);
    EXPECT_DOUBLE_EQ(sentOf(question.traffic(), OpKind::Reduce, "world"), 2.0 * kTinyParameters);
    EXPECT_DOUBLE_EQ(sentOf(question.traffic(), OpKind::AllReduce, "world"), 0);
    question.options().contiguousGradients = false; // there is no bucket in one piece to cut up
    EXPECT_DOUBLE_EQ(question.traffic().psi, 3);
}

// 8 ranks own 906 elements each. Backward fills a bucket of 4,000 with the head, the final norm and the second block
// (3,616 .. 7,248: the end of rank 3's part and ranks 4 to 7), then with the first block and the embedding (the rest:
// ranks 0 to 3). Over the whole model every rank passes on all but its own part.
TEST(DeepSpeedTraffic, ABucketIsReducedOnceForEachOfItsOwners)
{
    Question question;
    question.options().stage = 2;
    question.options().useMultiRankBucketAllreduce = false;
    const Traffic traffic = question.traffic();
    const auto reduced = std::find_if(traffic.collectives.begin(), traffic.collectives.end(),
                                      [](const CollectiveTraffic& each) { return each.op == OpKind::Reduce; });
    ASSERT_NE(reduced, traffic.collectives.end());
    EXPECT_EQ(reduced->count, 5 + 4);
    EXPECT_NEAR(reduced->sentBytesPerGpu.asDouble(), 2.0 * (kTinyParameters - 906), 9); // each call rounds to bytes
}

// allreduce_and_copy brings the device to rest before each call: with a stream of its own the host waits, each time,
// for what the bucket has sent so far.
TEST(DeepSpeedTraffic, TheHostWaitsBetweenTheOwnersOfABucket)
{
    Question question;
    question.options().stage = 2;
    question.options().useMultiRankBucketAllreduce = false;
    for (const bool overlap : {false, true}) {
        question.options().overlapComm = overlap;
        const Schedule schedule = question.rules()->emit();
        OpId before = -1;
        std::int64_t owners = 0;
        for (std::size_t i = 0; i < schedule.ops.size(); ++i) {
            const Op& op = schedule.ops[i];
            if (op.kind != OpKind::Reduce)
                continue;
            ++owners;
            EXPECT_EQ(op.waitCount, overlap ? 1u : 0u);
            if (overlap) {
                const Wait& wait = schedule.waits[op.firstWait];
                EXPECT_TRUE(wait.blocksHost);
                EXPECT_GE(wait.op, before);
                EXPECT_EQ(schedule.ops[static_cast<std::size_t>(wait.op)].stream, Stream::Reduce);
            }
            before = static_cast<OpId>(i);
        }
        EXPECT_EQ(owners, 9);
    }
}

// buffered_reduce_fallback synchronizes the device as well: without a bucket the host waits before every reduction.
TEST(DeepSpeedTraffic, TheHostWaitsForReductionsThatComeFromNoBucket)
{
    Question question;
    question.options().stage = 2;
    question.options().overlapComm = true;
    for (const bool contiguous : {true, false}) {
        question.options().contiguousGradients = contiguous;
        const Schedule schedule = question.rules()->emit();
        std::int64_t reductions = 0;
        std::int64_t blocked = 0;
        for (const Op& op : schedule.ops) {
            reductions += op.kind == OpKind::AllReduce ? 1 : 0;
            bool blocks = false;
            for (std::uint32_t i = 0; i < op.waitCount && op.phase == Phase::Backward; ++i)
                blocks |= schedule.waits[op.firstWait + i].blocksHost;
            blocked += blocks ? 1 : 0;
        }
        EXPECT_EQ(reductions, 2);
        EXPECT_EQ(blocked, contiguous ? 1 : 3); // the synchronize() at the end of backward is in both
    }
}

// Communication in fp32 doubles the bytes, not the elements.
TEST(DeepSpeedTraffic, CommunicationDtypeChangesBytesOnly)
{
    Question question;
    question.options().stage = 2;
    const double narrow = sentOf(question.traffic(), OpKind::AllReduce, "world");
    question.options().communicationDtype = DType::Fp32;
    EXPECT_DOUBLE_EQ(sentOf(question.traffic(), OpKind::AllReduce, "world"), 2 * narrow);
    EXPECT_DOUBLE_EQ(question.traffic().psi, 3);
}

// Nothing is reused and nothing prefetched: two gathers and one scatter of every parameter.
TEST(DeepSpeedTraffic, Zero3SendsThreePerMicroStep)
{
    Question question;
    question.options().maxReuseDistance = 0;
    question.options().prefetchBucketSize = 0;
    EXPECT_DOUBLE_EQ(question.traffic().psi, 3);
    EXPECT_DOUBLE_EQ(question.rules()->textbookPsi(), 3);
    question.training.gradientAccumulation = 4;
    EXPECT_DOUBLE_EQ(question.traffic().psi, 12);
    question.training.checkpointing = Checkpointing::Full;
    question.training.gradientAccumulation = 1;
    // recomputation gathers the blocks' 2 x 2,592 elements a third time
    EXPECT_DOUBLE_EQ(question.traffic().psi, 3 + 5184.0 / kTinyParameters);
}

// A model smaller than the reuse distance is gathered once.
TEST(DeepSpeedTraffic, SmallModelsAreGatheredOnce)
{
    Question question;
    EXPECT_DOUBLE_EQ(question.traffic().psi, 2);
}

// ZeRO++ (arXiv 2306.10209): int8 gathers and int4 scatters, 2 x 0.5 + 0.25 of 16-bit volume, plus their scales.
TEST(DeepSpeedTraffic, ZeroPlusPlusIsAQuarterAboveOne)
{
    Question question;
    question.model = readModel("llama-2-7b");
    question.cluster.nodes = 2;
    question.options() = DeepSpeedOptions{};
    question.options().maxReuseDistance = 0;
    question.options().prefetchBucketSize = 0;
    question.options().quantizedWeights = true;
    EXPECT_NEAR(question.traffic().psi, 2, 0.01);
    question.options().quantizedGradients = true;
    EXPECT_DOUBLE_EQ(question.rules()->textbookPsi(), 1.25);
    // the second hop carries an eighth of the first: 0.25 (1 + 1/8) as implemented
    EXPECT_NEAR(question.traffic().psi, 1 + 0.25 * (1 + 1.0 / 8), 0.01);
    // between nodes: the gathers, and the second hop only
    EXPECT_NEAR(question.traffic().psiInterNode, 1 + 0.25 / 8, 0.01);
    // hpZ: backward gathers stay inside the node: half of the gathers are left between nodes
    question.options().hpzPartitionSize = 8;
    EXPECT_NEAR(question.traffic().psiInterNode, 0.5 + 0.25 / 8, 0.01);
    EXPECT_GT(sentOf(question.traffic(), OpKind::AllGather, "secondary"), 0);
}

// hpZ: the secondary shard serves backward and all later micro-steps; one gather of the model between nodes per step.
TEST(DeepSpeedTraffic, HpzGathersBetweenNodesOncePerStep)
{
    Question question;
    question.cluster.nodes = 2;
    question.options().maxReuseDistance = 0;
    question.options().prefetchBucketSize = 0;
    question.options().hpzPartitionSize = 8;
    question.training.gradientAccumulation = 4;
    EXPECT_DOUBLE_EQ(sentOf(question.traffic(), OpKind::AllGather, "world"), 2.0 * kTinyParameters);
    EXPECT_DOUBLE_EQ(sentOf(question.traffic(), OpKind::AllGather, "secondary"), 7 * 2.0 * kTinyParameters);
}

TEST(DeepSpeedTraffic, MicsAllReducesShardsAtTheBoundaryOnly)
{
    Question question;
    question.cluster.nodes = 2;
    question.options().micsShardSize = 8;
    question.options().maxReuseDistance = 0;
    question.options().prefetchBucketSize = 0;
    question.training.gradientAccumulation = 3;
    const Traffic traffic = question.traffic();
    EXPECT_DOUBLE_EQ(sentOf(traffic, OpKind::AllReduce, "replicate"), 2.0 * kTinyParameters / 8);
    EXPECT_DOUBLE_EQ(sentOf(traffic, OpKind::ReduceScatter, "shard"), 3 * 2.0 * kTinyParameters);
    EXPECT_DOUBLE_EQ(traffic.psiInterNode, 2.0 / 8);
    EXPECT_EQ(question.rules()->modelStates().total(), Bytes(16 * kTinyParameters / 8));
}

// After its warm-up 1-bit Adam sends one bit an element twice, instead of 16 bits twice.
TEST(DeepSpeedTraffic, OneBitAdamSendsSigns)
{
    Question question;
    question.options().stage = 0;
    question.training.precision.mixed = DType::Fp16;
    EXPECT_DOUBLE_EQ(question.traffic().psi, 2);
    question.training.optimizer = Optimizer::OneBitAdam;
    // Signs, padded to whole bytes of each of 8 ranks, and a scale for each of them.
    const double oneHop = static_cast<double>(roundUp(kTinyParameters, 8 * 8)) / 8 + 4 * 8;
    EXPECT_DOUBLE_EQ(question.traffic().psi, 2 * oneHop / 2 / kTinyParameters);
}

// Which of its steps is planned is said; 0/1 Adam's local steps, which send nothing, besides.
TEST(DeepSpeedTraffic, OneBitOptimizersSayWhichStepIsPlanned)
{
    Question question;
    question.options().stage = 0;
    question.training.precision.mixed = DType::Fp16;
    const auto says = [&](const char* word) {
        const std::vector<Note> notes = question.rules()->assumptions();
        return std::count_if(notes.begin(), notes.end(),
                             [&](const Note& note) { return note.text.find(word) != std::string::npos; });
    };
    EXPECT_EQ(says("freeze_step"), 0);
    for (const Optimizer optimizer : {Optimizer::OneBitAdam, Optimizer::OneBitLamb, Optimizer::ZeroOneAdam}) {
        question.training.optimizer = optimizer;
        EXPECT_EQ(says("freeze_step"), 1);
        EXPECT_EQ(says("local_step_clipper"), optimizer == Optimizer::ZeroOneAdam ? 1 : 0);
    }
    question.cluster.gpusPerNode = 1;
    EXPECT_EQ(says("freeze_step"), 0) << "one rank compresses nothing";
}

TEST(DeepSpeedTraffic, OneRankSendsNothing)
{
    Question question;
    question.cluster.gpusPerNode = 1;
    for (const int stage : {0, 1, 2, 3}) {
        question.options().stage = stage;
        EXPECT_DOUBLE_EQ(question.traffic().psi, 0);
        EXPECT_EQ(question.traffic().sentBytesPerGpu, Bytes(0));
    }
}

// S3 partition_grads: 2 bytes down and up in every micro-step, 4 down at the boundary; 2 up after the step.
TEST(DeepSpeedTraffic, Zero3OffloadOverPcie)
{
    Question question;
    question.training.gradientAccumulation = 3;
    question.options().offloadOptimizer = OffloadDevice::Cpu;
    const Traffic traffic = question.traffic();
    EXPECT_EQ(traffic.deviceToHostBytes, Bytes(3 * 2 * 906 + 4 * 906));
    EXPECT_EQ(traffic.hostToDeviceBytes, Bytes(3 * 2 * 906 + 2 * 906));
}

// Each gather of an offloaded parameter copies its shard up first: here the model once in a step.
TEST(DeepSpeedTraffic, OffloadedParametersAreCopiedUpForEveryGather)
{
    Question question;
    question.options().offloadParam = OffloadDevice::Cpu;
    EXPECT_EQ(question.traffic().hostToDeviceBytes, Bytes(2 * 906));
    EXPECT_EQ(question.traffic().deviceToHostBytes, Bytes(2 * 906)); // updated shards
}

} // namespace
} // namespace shardwright::deepspeed_test
