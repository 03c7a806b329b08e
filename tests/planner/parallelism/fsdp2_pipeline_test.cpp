// Pipelines of fully sharded stages, as torchtitan runs them with torch.distributed.pipelining.

#include <gtest/gtest.h>

#include "core/catalogue.hpp"
#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/plan_builder.hpp"
#include "planner/readers/closed_form.hpp"
#include "planner/readers/memory_replay.hpp"
#include "planner/readers/traffic_sum.hpp"

using namespace shardwright;

namespace {

struct Job {
    Model model = modelFromJson(parseJson(R"({"model_type": "generic-decoder", "hidden_size": 256,
        "num_hidden_layers": 14, "num_attention_heads": 8, "intermediate_size": 1024, "vocab_size": 4096,
        "max_position_embeddings": 512})",
                                          "test"),
                                "gpt", "test");
    Cluster cluster;
    Training training;
    Strategy strategy{"job", Fsdp2Options{}, {}};

    explicit Job(PipelineSchedule schedule, std::int64_t microBatches = 8, std::int64_t tensor = 1)
    {
        cluster.gpusPerNode = 8;
        cluster.nodes = 2;
        cluster.gpu.memory.value = 1e12;
        cluster.hostMemory.value = 1e13;
        strategy.parallelism.tensor = tensor;
        strategy.parallelism.sequenceParallel = tensor > 1;
        strategy.parallelism.pipeline = 4;
        strategy.parallelism.schedule = schedule;
        strategy.parallelism.virtualStages = schedule == PipelineSchedule::Interleaved ? 2 : 1;
        options().reshardAfterForward = false;
        training.sequenceLength = 512;
        training.gradientAccumulation = microBatches;
        training.implementation = Implementation::Torchtitan;
    }
    Fsdp2Options& options() { return std::get<Fsdp2Options>(strategy.options); }
    PlanInput input() const { return {model, cluster, training, strategy}; }
};

constexpr PipelineSchedule kSchedules[] = {PipelineSchedule::GPipe, PipelineSchedule::OneForwardOneBackward,
                                           PipelineSchedule::Interleaved};

/// Most bytes of a category that are live at once on the first stage.
Bytes mostOf(const Job& job, Category category)
{
    const std::vector<ModelSlice> slices = sliceModel(job.input());
    const MemoryReplay replay = replayMemory(makeRules(inputOf(job.input(), slices.front()))->emit(), true);
    Bytes most;
    for (const CurvePoint& point : replay.curve)
        most = std::max(most, point.byCategory[static_cast<std::size_t>(category)]);
    return most;
}

/// How many whole tensors of the model a stage's collectives of a kind carry in a step.
double passesOf(const Job& job, OpKind kind)
{
    double passes = 0;
    for (const ModelSlice& slice : sliceModel(job.input())) {
        const PlanInput input = inputOf(job.input(), slice);
        const Traffic traffic = sumTraffic(makeRules(input)->emit(), input.model.parameters(), 8);
        double bytes = 0;
        for (const CollectiveTraffic& each : traffic.collectives)
            if (each.op == kind)
                bytes += each.payloadBytes.asDouble();
        passes = std::max(passes, bytes / bytesOf(input.model.parameters(), DType::Bf16).asDouble());
    }
    return passes;
}

} // namespace

TEST(Fsdp2Pipeline, everyStageIsConsistentAndClosedFormAgreesWithReplay)
{
    for (const PipelineSchedule schedule : kSchedules)
        for (const std::int64_t microBatches : {4, 20})
            for (const bool reshard : {false, true})
                for (const bool replicated : {false, true}) {
                    Job job(schedule, microBatches, 2);
                    job.options().reshardAfterForward = reshard;
                    job.options().replicate = replicated ? 2 : 1;
                    job.training.checkpointing = reshard ? Checkpointing::Full : Checkpointing::Selective;
                    ASSERT_TRUE(refusals(job.input()).empty());
                    for (const ModelSlice& slice : sliceModel(job.input())) {
                        const PlanInput input = inputOf(job.input(), slice);
                        const Schedule emitted = makeRules(input)->emit();
                        const MemoryReplay replay = replayMemory(emitted, false); // throws on a double free
                        const Traffic traffic = sumTraffic(emitted, input.model.parameters(), 8);
                        ClosedForm form(input);
                        const ClosedFormResult closed = form.evaluate(input);
                        EXPECT_EQ(closed.peakAllocated, replay.gpu.bytes) << nameOf(schedule) << slice.stage;
                        EXPECT_EQ(closed.sentBytesPerGpu, traffic.sentBytesPerGpu) << nameOf(schedule) << slice.stage;
                    }
                }
}

TEST(Fsdp2Pipeline, gpipeHoldsEveryMicroBatchAnd1f1bAsManyAsStages)
{
    const auto activations = [](PipelineSchedule schedule, std::int64_t microBatches) {
        return mostOf(Job(schedule, microBatches), Category::Activations).asDouble();
    };
    using P = PipelineSchedule;
    EXPECT_NEAR(activations(P::GPipe, 16) / activations(P::GPipe, 8), 2, 0.05);
    EXPECT_EQ(activations(P::OneForwardOneBackward, 16), activations(P::OneForwardOneBackward, 8));
    // Four stages: the first holds four of the eight that GPipe does.
    EXPECT_NEAR(activations(P::GPipe, 8) / activations(P::OneForwardOneBackward, 8), 2, 0.05);
    // Interleaved, the first stage holds one block and two in its chunks and has 7 and 4 micro-batches of them in
    // flight: (2 - 1) x 4 + 2 x 3 + 1 = 11 in rounds of four. Its 15 blocks stand against 4 x 3.
    EXPECT_NEAR(activations(P::Interleaved, 8) / activations(P::OneForwardOneBackward, 8), 15.0 / 12, 0.05);
}

TEST(Fsdp2Pipeline, parametersAreGatheredAndGradientsReducedOnceAStepWithoutResharding)
{
    for (const PipelineSchedule schedule : kSchedules)
        for (const std::int64_t microBatches : {4, 12}) {
            const Job job(schedule, microBatches);
            EXPECT_NEAR(passesOf(job, OpKind::AllGather), 1, 0.01) << nameOf(schedule);
            EXPECT_NEAR(passesOf(job, OpKind::ReduceScatter), 1, 0.01) << nameOf(schedule);
        }
}

TEST(Fsdp2Pipeline, gpipeThatReshardsGathersForEveryForwardAndOnceForTheBackwards)
{
    Job job(PipelineSchedule::GPipe, 8);
    job.options().reshardAfterForward = true;
    // Final norm and head are never resharded; a stage without them gathers eight times and once more.
    EXPECT_NEAR(passesOf(job, OpKind::AllGather), 9, 0.1);
    EXPECT_NEAR(passesOf(job, OpKind::ReduceScatter), 1, 0.01);
}

TEST(Fsdp2Pipeline, receiveBuffersOfEveryMicroBatchStandFromTheStart)
{
    // A stage in the middle receives hidden states and gradients of 8 micro-batches: 2 x 8 x 512 x 256 x 2 bytes.
    const Job job(PipelineSchedule::OneForwardOneBackward);
    const std::vector<ModelSlice> slices = sliceModel(job.input());
    ASSERT_EQ(slices.size(), 3U);
    const auto receive = [&](const ModelSlice& slice) {
        const auto rules = makeRules(inputOf(job.input(), slice));
        for (const BufferClass& each : rules->sizes().buffers)
            if (each.spec->name.rfind("receive buffers", 0) == 0)
                return each.bytes;
        return Bytes(0);
    };
    EXPECT_EQ(receive(slices[1]), Bytes(2 * 8 * 512 * 256 * 2));
    EXPECT_EQ(receive(slices[0]), Bytes(8 * 512 * 256 * 2));
    EXPECT_EQ(receive(slices[2]), Bytes(8 * 512 * 256 * 2));
}

TEST(Fsdp2Pipeline, wholeGradientsStandUntilTheLastMicroBatch)
{
    // Unsharded gradients in the reduce dtype and gathered parameters of the stage, whatever the data ranks are.
    Job job(PipelineSchedule::OneForwardOneBackward);
    job.options().reduceDtype = DType::Fp32;
    const std::int64_t held = sliceModel(job.input()).front().model.parameters();
    EXPECT_GE(mostOf(job, Category::Gradients), bytesOf(held, DType::Fp32));
    EXPECT_GE(mostOf(job, Category::GatheredParameters), bytesOf(held, DType::Bf16));
}

TEST(Fsdp2Pipeline, bubblesFollowTheSchedule)
{
    const auto planOf = [](PipelineSchedule schedule, std::int64_t microBatches) {
        Job job(schedule, microBatches);
        job.cluster = readCluster("dgx-a100-80gb");
        job.cluster.nodes = 2;
        return buildPlan(job.input(), {});
    };
    using P = PipelineSchedule;
    const Plan gpipe = planOf(P::GPipe, 8);
    const Plan oneByOne = planOf(P::OneForwardOneBackward, 8);
    const Plan interleaved = planOf(P::Interleaved, 8);
    ASSERT_TRUE(gpipe.step && oneByOne.step && interleaved.step);
    // GPipe and 1F1B wait alike (arXiv 2104.04473 sec. 2.2.1); interleaving waits less.
    EXPECT_NEAR(gpipe.step->seconds / oneByOne.step->seconds, 1, 0.05);
    EXPECT_LT(interleaved.step->breakdown.bubble, oneByOne.step->breakdown.bubble);
    EXPECT_GT(gpipe.gpu.peakAllocated, oneByOne.gpu.peakAllocated);
    // More micro-batches: a smaller share of the step.
    const Plan more = planOf(P::OneForwardOneBackward, 32);
    EXPECT_LT(more.step->breakdown.bubble / more.step->seconds,
              oneByOne.step->breakdown.bubble / oneByOne.step->seconds);
}

TEST(Fsdp2Pipeline, whatTorchtitanDoesNotRunIsRefusedByName)
{
    const auto expectOneReason = [](Job job, std::string_view word) {
        const std::vector<std::string> reasons = refusals(job.input());
        ASSERT_EQ(reasons.size(), 1U) << word;
        EXPECT_NE(reasons.front().find(word), std::string::npos) << reasons.front();
    };
    const Job sound(PipelineSchedule::OneForwardOneBackward);
    EXPECT_TRUE(refusals(sound.input()).empty());
    Job job = sound;
    job.training.implementation = Implementation::HuggingFace;
    expectOneReason(job, "implementation torchtitan");
    job = sound;
    job.options().noSync = false;
    expectOneReason(job, "no_sync");
    job = sound;
    job.options().reshardGroup = 2;
    expectOneReason(job, "reshard_after_forward");
    job = sound;
    job.training.holdsLogits = true;
    expectOneReason(job, "holds_logits");
    job = sound;
    job.model.architecture.tiedEmbedding = true;
    expectOneReason(job, "tie");
    job = Job(PipelineSchedule::Interleaved);
    job.options().separateHeadUnit = false;
    expectOneReason(job, "separate_head_unit");
}
