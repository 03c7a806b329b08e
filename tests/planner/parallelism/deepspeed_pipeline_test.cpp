// DeepSpeed's ZeRO-1 under tensor and pipeline parallelism, as Megatron-DeepSpeed runs it.

#include <algorithm>

#include <gtest/gtest.h>

#include "core/catalogue.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "core/scenario_file.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/parallelism/pipeline_time.hpp"
#include "planner/plan_builder.hpp"
#include "planner/readers/closed_form.hpp"
#include "planner/readers/memory_replay.hpp"
#include "planner/readers/traffic_sum.hpp"

using namespace shardwright;

namespace {

struct Job {
    Model model = modelFromJson(parseJson(R"({"model_type": "generic-decoder", "hidden_size": 256,
        "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1024, "vocab_size": 4096,
        "max_position_embeddings": 512, "norm": "layer", "mlp": "plain", "bias": true, "fused_qkv": true,
        "learned_positions": true})",
                                          "test"),
                                "gpt", "test");
    Cluster cluster;
    Training training;
    Strategy strategy{"job", DeepSpeedOptions{}, {}};

    Job(std::int64_t tensor, std::int64_t pipeline, int stage = 1)
    {
        cluster.gpusPerNode = 8;
        cluster.nodes = 2;
        cluster.gpu.memory.value = 1e12;
        cluster.hostMemory.value = 1e13;
        strategy.parallelism.tensor = tensor;
        strategy.parallelism.pipeline = pipeline;
        std::get<DeepSpeedOptions>(strategy.options).stage = stage;
        training.sequenceLength = 512;
        training.gradientAccumulation = 9;
        training.precision.mixed = DType::Fp16;
        training.implementation = Implementation::Megatron;
    }
    PlanInput input() const { return {model, cluster, training, strategy}; }
};

} // namespace

TEST(DeepSpeedPipeline, everyStageIsConsistentAndClosedFormAgreesWithReplay)
{
    for (const int stage : {0, 1}) {
        const Job job(2, 4, stage);
        ASSERT_TRUE(refusals(job.input()).empty());
        for (const ModelSlice& slice : sliceModel(job.input())) {
            const PlanInput input = inputOf(job.input(), slice);
            const Schedule schedule = makeRules(input)->emit();
            const MemoryReplay replay = replayMemory(schedule, false); // throws where a buffer is freed twice
            const Traffic traffic = sumTraffic(schedule, input.model.parameters(), 8);
            ClosedForm form(input);
            const ClosedFormResult closed = form.evaluate(input);
            EXPECT_EQ(closed.peakAllocated, replay.gpu.bytes) << stage << slice.stage;
            EXPECT_EQ(closed.sentBytesPerGpu, traffic.sentBytesPerGpu) << stage << slice.stage;
            EXPECT_EQ(closed.interNodeBytesPerNode, traffic.interNodeBytesPerNode) << stage << slice.stage;
        }
    }
}

TEST(DeepSpeedPipeline, earlierStagesHoldMoreMicroBatches)
{
    // 1F1B: p - s micro-batches in flight; blocks keep all of theirs here.
    const Job job(1, 4);
    const std::vector<ModelSlice> slices = sliceModel(job.input());
    ASSERT_EQ(slices.size(), 3U); // first, the two in the middle, last
    EXPECT_EQ(slices[1].alike.size(), 2U);
    std::vector<Bytes> activations;
    for (const ModelSlice& slice : slices) {
        const MemoryReplay replay = replayMemory(makeRules(inputOf(job.input(), slice))->emit(), false);
        activations.push_back(replay.gpuByCategory[static_cast<std::size_t>(Category::Activations)]);
    }
    EXPECT_GT(activations[0], activations[1]);
    EXPECT_GT(activations[1], activations[2]);
}

TEST(DeepSpeedPipeline, whatItsEnginesCannotDoIsRefusedByName)
{
    const auto reasons = [](Job job) { return refusals(job.input()); };
    EXPECT_EQ(reasons(Job(1, 4, 2)).size(), 1U); // ZeRO-2
    EXPECT_EQ(reasons(Job(2, 1, 3)).size(), 1U); // ZeRO-3
    EXPECT_TRUE(reasons(Job(2, 1, 2)).empty());
    Job gpipe(1, 4);
    gpipe.strategy.parallelism.schedule = PipelineSchedule::GPipe;
    EXPECT_EQ(reasons(gpipe).size(), 1U);
    Job overlap(1, 4);
    std::get<DeepSpeedOptions>(overlap.strategy.options).overlapComm = true;
    EXPECT_EQ(reasons(overlap).size(), 1U);
    Job ddp(1, 4);
    ddp.strategy.options = DdpOptions{};
    EXPECT_EQ(reasons(ddp).size(), 1U);
}

TEST(DeepSpeedPipeline, unevenModelsAreCutByParameters)
{
    // Seventy blocks of 12 h^2 elements on twelve stages, with an embedding as large as one and a half blocks at either
    // end: five blocks on the outer stages, six on the others (BLOOM-176B's own layout).
    Job job(1, 4);
    job.model = modelFromJson(parseJson(R"({"model_type": "bloom", "n_embed": 14336, "n_layer": 70, "n_head": 112,
        "vocab_size": 250880})",
                                        "test"),
                              "bloom", "test");
    job.strategy.parallelism.pipeline = 12;
    const std::vector<std::int64_t> blocks = blocksOfChunks(job.input());
    EXPECT_EQ(blocks, (std::vector<std::int64_t>{5, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 5}));
}

/// Of BLOOM's 70 blocks over 12 stages the first and the last have five and the ten between six; the last has the head
/// over 250,880 words besides and most to do. The step's seconds are told of it: what is left of the step is its
/// bubble. The first stage, which is done last, waits for slower ones besides.
TEST(DeepSpeedPipeline, theBreakdownIsOfAStageThatOthersWaitFor)
{
    const Scenario scenario = readScenario(homeFolder() + "/scenarios/bloom-176b-3d-384xa100.json");
    const PlanInput input{scenario.model, scenario.cluster, scenario.training, scenario.strategies.front()};
    const std::vector<ModelSlice> slices = sliceModel(input);
    const auto timeline = pipelineTimeline(input, slices, emitStages(input, slices));
    ASSERT_TRUE(timeline);
    std::vector<double> busy = timeline->rest;
    for (const PlayedAction& played : timeline->actions)
        busy[static_cast<std::size_t>(played.stage)] += played.end - played.start;
    EXPECT_GT(busy[1], 1.1 * busy[0]);
    EXPECT_GT(busy[11], busy[1]);

    PlanDetail detail;
    detail.suggest = false;
    const StepTime step = buildPlan(scenario, scenario.strategies.front(), detail).step.value();
    const double rounding = 1e-9 * step.seconds;
    EXPECT_NEAR(step.seconds, timeline->seconds, rounding);
    EXPECT_NEAR(step.seconds - step.breakdown.bubble, *std::max_element(busy.begin(), busy.end()), rounding);
}
