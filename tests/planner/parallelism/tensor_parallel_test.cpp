// Tensor and sequence parallelism: what blocks keep, against the formulas of arXiv 2205.05198; what ranks exchange,
// against its count of collectives; what a rank holds of the model.

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/plan_builder.hpp"
#include "planner/readers/traffic_sum.hpp"
#include "tests/planner/activations/micro_step.hpp"
#include "tests/planner/frameworks/small_input.hpp"

using namespace shardwright;

namespace {

constexpr std::int64_t kHidden = 256;
constexpr std::int64_t kHeads = 8;
constexpr std::int64_t kBlocks = 4;
constexpr std::int64_t kSequence = 512;
constexpr std::int64_t kMicroBatch = 2;
constexpr std::int64_t kTokens = kSequence * kMicroBatch;

/// A GPT as the paper counts it: every dropout at 0.1, tables of tokens and positions.
Model gpt(bool tied = true)
{
    return modelFromJson(parseJson(R"({"model_type": "generic-decoder", "hidden_size": 256, "num_hidden_layers": 4,
        "num_attention_heads": 8, "intermediate_size": 1024, "vocab_size": 4096, "max_position_embeddings": 512,
        "norm": "layer", "mlp": "plain", "bias": true, "fused_qkv": true, "learned_positions": true, "dropout": 0.1,
        "tie_word_embeddings": )" + std::string(tied ? "true}" : "false}"),
                                   "test"),
                         "gpt", "test");
}

struct Job {
    Model model = gpt();
    Cluster cluster;
    Training training;
    Strategy strategy{"job", MegatronOptions{}, {}};

    explicit Job(std::int64_t tensor, bool sequenceParallel, int gpusPerNode = 8, int nodes = 1)
    {
        cluster.gpusPerNode = gpusPerNode;
        cluster.nodes = nodes;
        cluster.gpu.memory.value = 1e12;
        cluster.hostMemory.value = 1e13;
        strategy.parallelism.tensor = tensor;
        strategy.parallelism.sequenceParallel = sequenceParallel;
        training.sequenceLength = kSequence;
        training.microBatch = kMicroBatch;
        training.attention = Attention::Eager;
        training.implementation = Implementation::Megatron;
        training.optimizer = Optimizer::Adam;
    }
    PlanInput input() const { return {model, cluster, training, strategy}; }
    MegatronOptions& options() { return std::get<MegatronOptions>(strategy.options); }
    Schedule schedule() const
    {
        const std::vector<ModelSlice> slices = sliceModel(input());
        return makeRules(inputOf(input(), slices.front()))->emit();
    }
    ModelStates states() const
    {
        const std::vector<ModelSlice> slices = sliceModel(input());
        return makeRules(inputOf(input(), slices.front()))->modelStates();
    }
    MicroStep microStep() const
    {
        const std::vector<ModelSlice> slices = sliceModel(input());
        const PlanInput local = inputOf(input(), slices.front());
        return MicroStep(local.model, training, {false, localShape(local)});
    }
};

std::int64_t countOf(const Traffic& traffic, OpKind kind, const std::string& payload)
{
    for (const CollectiveTraffic& one : traffic.collectives)
        if (one.op == kind && one.payload == payload && one.group == "tensor")
            return one.count;
    return 0;
}

Bytes bytesOfPayload(const Traffic& traffic, OpKind kind, const std::string& payload)
{
    for (const CollectiveTraffic& one : traffic.collectives)
        if (one.op == kind && one.payload == payload && one.group == "tensor")
            return one.payloadBytes;
    return Bytes(0);
}

} // namespace

TEST(TensorParallel, blockKeepsWhatThePaperCounts)
{
    // arXiv 2205.05198 table 2, per layer: s b h (10 + 24/t + 5 a s / (h t)) with tensor parallelism, s b h / t (34 +
    // 5 a s / h) with sequence parallelism too, without the 5 a s / h when the attention core is recomputed, 2 s b h
    // when all is. It leaves out layer-norm statistics: two norms of 8 bytes a token.
    for (const std::int64_t t : {1, 2, 4, 8}) {
        const std::int64_t square = 5 * kHeads * kTokens * kSequence / t;
        const std::int64_t norms = 2 * 8 * kTokens;
        Job job(t, false);
        EXPECT_EQ(job.microStep().saved(1), 10 * kTokens * kHidden + 24 * kTokens * kHidden / t + square + norms) << t;
        job.training.checkpointing = Checkpointing::Selective;
        EXPECT_EQ(job.microStep().saved(1), 10 * kTokens * kHidden + 24 * kTokens * kHidden / t + norms) << t;
        job.training.checkpointing = Checkpointing::Full;
        EXPECT_EQ(job.microStep().saved(1), 2 * kTokens * kHidden) << t;

        Job split(t, true);
        EXPECT_EQ(split.microStep().saved(1), 34 * kTokens * kHidden / t + square + norms / t) << t;
        split.training.checkpointing = Checkpointing::Selective;
        EXPECT_EQ(split.microStep().saved(1), 34 * kTokens * kHidden / t + norms / t) << t;
        split.training.checkpointing = Checkpointing::Full;
        EXPECT_EQ(split.microStep().saved(1), 2 * kTokens * kHidden / t) << t;
    }
}

TEST(TensorParallel, partitionedCheckpointsAreSplitAndGatheredAgain)
{
    Job job(4, false);
    job.training.checkpointing = Checkpointing::Partitioned;
    EXPECT_EQ(job.microStep().saved(1), 2 * kTokens * kHidden / 4);
    const Traffic traffic = sumTraffic(job.schedule(), job.model.parameters(), 8);
    EXPECT_EQ(countOf(traffic, OpKind::AllGather, "checkpointed inputs"), kBlocks);
}

TEST(TensorParallel, ranksExchangeWhatThePaperCounts)
{
    // Without sequence parallelism: an all-reduce behind attention and behind the MLP, forward and backward (arXiv
    // 1909.08053 sec. 3), one for the embedding and one for the gradient of the head's input.
    Job job(8, false);
    Traffic traffic = sumTraffic(job.schedule(), job.model.parameters(), 8);
    EXPECT_EQ(countOf(traffic, OpKind::AllReduce, "hidden states"), 4 * kBlocks + 2);
    EXPECT_EQ(bytesOfPayload(traffic, OpKind::AllReduce, "hidden states"),
              Bytes((4 * kBlocks + 2) * 2 * kTokens * kHidden));
    EXPECT_EQ(countOf(traffic, OpKind::AllReduce, "statistics of the loss"), 3);
    EXPECT_EQ(traffic.psi, 0); // one replica: nothing of parameters or gradients travels

    // Full recomputation repeats the two of the forward; recomputing the attention core repeats none.
    job.training.checkpointing = Checkpointing::Full;
    traffic = sumTraffic(job.schedule(), job.model.parameters(), 8);
    EXPECT_EQ(countOf(traffic, OpKind::AllReduce, "hidden states"), 6 * kBlocks + 2);
    job.training.checkpointing = Checkpointing::Selective;
    traffic = sumTraffic(job.schedule(), job.model.parameters(), 8);
    EXPECT_EQ(countOf(traffic, OpKind::AllReduce, "hidden states"), 4 * kBlocks + 2);

    // arXiv 2205.05198 sec. 4.2.2: an all-gather and a reduce-scatter in place of each, and in backward a second
    // all-gather of the kept, split input of every column-parallel matrix. The head gathers twice and scatters once;
    // the embedding, with learned positions, is summed by an all-reduce and its gradient gathered.
    Job split(8, true);
    traffic = sumTraffic(split.schedule(), split.model.parameters(), 8);
    EXPECT_EQ(countOf(traffic, OpKind::AllGather, "hidden states"), 6 * kBlocks + 2 + 1);
    EXPECT_EQ(countOf(traffic, OpKind::ReduceScatter, "hidden states"), 4 * kBlocks + 1);
    EXPECT_EQ(countOf(traffic, OpKind::AllReduce, "hidden states"), 1);
    split.training.checkpointing = Checkpointing::Full;
    traffic = sumTraffic(split.schedule(), split.model.parameters(), 8);
    EXPECT_EQ(countOf(traffic, OpKind::AllGather, "hidden states"), 8 * kBlocks + 2 + 1);
    EXPECT_EQ(countOf(traffic, OpKind::ReduceScatter, "hidden states"), 6 * kBlocks + 1);
}

TEST(TensorParallel, torchtitanGathersInFloat8WhatItsLinearLayersTakeInFloat8)
{
    // torchtitan docs/float8.md: gathered inputs of both column-parallel parts of a block, and the gradients of both
    // row-parallel outputs on the way back, in one byte an element; what is reduced and what the head gathers is not.
    Job job(8, true);
    job.model = modelFromJson(parseJson(R"({"model_type": "generic-decoder", "hidden_size": 256,
        "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 1024, "vocab_size": 4096,
        "max_position_embeddings": 512})",
                                        "test"),
                              "llama", "test");
    job.strategy.options = Fsdp2Options{};
    job.training.implementation = Implementation::Torchtitan;
    job.training.attention = Attention::Sdpa;
    job.training.precision.fp8 = true;
    const Traffic traffic = sumTraffic(job.schedule(), job.model.parameters(), 8);
    EXPECT_EQ(countOf(traffic, OpKind::AllGather, "hidden states in float8"), 4 * kBlocks);
    EXPECT_EQ(bytesOfPayload(traffic, OpKind::AllGather, "hidden states in float8"),
              Bytes(4 * kBlocks * kTokens * kHidden));
    job.training.precision.fp8Scaling = Float8Scaling::Rowwise; // gathers what it is given, in bf16
    const Traffic byRow = sumTraffic(job.schedule(), job.model.parameters(), 8);
    EXPECT_EQ(countOf(byRow, OpKind::AllGather, "hidden states in float8"), 0);
    job.training.precision = {};
    const Traffic plain = sumTraffic(job.schedule(), job.model.parameters(), 8);
    EXPECT_EQ(countOf(plain, OpKind::AllGather, "hidden states"),
              4 * kBlocks + countOf(traffic, OpKind::AllGather, "hidden states"));
    EXPECT_EQ(bytesOfPayload(plain, OpKind::ReduceScatter, "hidden states"),
              bytesOfPayload(traffic, OpKind::ReduceScatter, "hidden states"));
    EXPECT_EQ(bytesOfPayload(byRow, OpKind::AllGather, "hidden states"),
              bytesOfPayload(plain, OpKind::AllGather, "hidden states"));
}

TEST(TensorParallel, rankHoldsItsPartOfEveryMatrix)
{
    // One block of h = 256, ffn = 4 h: 12 h^2 in matrices, split; biases 3 h + 4 h split, 2 h whole; norms 4 h whole.
    for (const std::int64_t t : {1, 2, 4, 8}) {
        const Job job(t, true);
        const ModelSlice slice = sliceModel(job.input()).front();
        EXPECT_EQ(slice.model.layer(1).numel(), (12 * kHidden * kHidden + 7 * kHidden) / t + 6 * kHidden) << t;
        // 4096 tokens are a multiple of 128 t already; positions stay whole.
        EXPECT_EQ(slice.model.layer(0).numel(), 4096 / t * kHidden + 512 * kHidden) << t;
    }
    Job odd(8, false);
    odd.model.architecture.vocab = 4095; // padded to a multiple of 128 x 8
    for (LayerType& type : odd.model.layerTypes)
        for (ParameterSpec& parameter : type.parameters)
            if (parameter.role == ParameterRole::Embedding) {
                parameter.shape[0] = 4095;
                parameter.numel = 4095 * kHidden;
            }
    EXPECT_EQ(sliceModel(odd.input()).front().model.architecture.vocab, 4096 / 8);
}

TEST(MegatronNotes, whatUserBuffersLeaveOutIsSaid)
{
    const auto named = [](Job& job) {
        const std::vector<ModelSlice> slices = sliceModel(job.input());
        const std::vector<Note> notes = makeRules(inputOf(job.input(), slices.front()))->excluded();
        return std::any_of(notes.begin(), notes.end(),
                           [](const Note& note) { return note.text.find("tp_comm_overlap") != std::string::npos; });
    };
    Job job(2, true);
    EXPECT_FALSE(named(job));
    job.options().tpCommOverlap = true;
    EXPECT_TRUE(named(job));
}

TEST(MegatronStates, bytesAParameterAreThoseOfItsDocumentation)
{
    // docs of Megatron-Core, distributed optimizer: bf16 parameters with fp32 gradients 18 and 6 + 12/d bytes a
    // parameter; fp16 throughout 20 and 4 + 16/d, four of them fp32 gradients during the step; fp32 16 and 8 + 8/d.
    const auto perParameter = [](Job& job) {
        const ModelSlice slice = sliceModel(job.input()).front();
        return job.states().total().asDouble() / static_cast<double>(slice.model.parameters());
    };
    constexpr double kPadding = 0.02; // buckets are padded
    Job job(1, false, 4);
    job.training.precision = {DType::Bf16, DType::Fp32, false};
    EXPECT_NEAR(perParameter(job), 6 + 12.0 / 4, kPadding);
    job.options() = {.distributedOptimizer = false, .overlapParamGather = false};
    EXPECT_NEAR(perParameter(job), 18, kPadding);

    job.training.precision = {DType::Fp16, DType::Fp32, false};
    job.options().fp32GradAccumulation = false;
    EXPECT_NEAR(perParameter(job), 20 - 4, kPadding);
    const ModelSlice slice = sliceModel(job.input()).front();
    Bytes main;
    for (const BufferClass& one : job.schedule().sizes.buffers)
        if (one.spec->name == "fp32 gradients of the step")
            main += one.bytes;
    EXPECT_EQ(main, bytesOf(slice.model.parameters(), DType::Fp32));

    job.training.precision = {std::nullopt, DType::Fp32, false};
    EXPECT_NEAR(perParameter(job), 16, kPadding);
    job.options() = {};
    EXPECT_NEAR(perParameter(job), 8 + 8.0 / 4, kPadding);
}

TEST(MegatronTraffic, dataParallelRanksReduceOnceAStepWhateverTheAccumulation)
{
    Job job(2, true, 8);
    job.training.gradientAccumulation = 5;
    const ModelSlice slice = sliceModel(job.input()).front();
    const Traffic traffic = sumTraffic(job.schedule(), slice.model.parameters(), 8);
    EXPECT_NEAR(traffic.psi, 2, 0.01); // reduce-scatter and all-gather of this rank's part
    for (const CollectiveTraffic& one : traffic.collectives)
        if (one.group == "data") {
            EXPECT_EQ(one.ranks, 4);
        }
}

TEST(MegatronRefusals, sayWhatMegatronWants)
{
    Job job(8, false);
    job.strategy.parallelism.tensor = 3;
    EXPECT_FALSE(refusals(job.input()).empty()); // 8 GPUs, 8 heads, 1024 columns
    job.strategy.parallelism.tensor = 1;
    EXPECT_TRUE(refusals(job.input()).empty());
    job.options().distributedOptimizer = false;
    EXPECT_EQ(refusals(job.input()).size(), 1U); // overlap_param_gather is still on
    Job deep(1, false);
    deep.strategy.parallelism.pipeline = 8;
    const std::vector<std::string> reasons = refusals(deep.input()); // 4 blocks
    EXPECT_EQ(reasons.size(), 2U);
}

TEST(MegatronStates, precisionAwareOptimizerKeepsItsOwnDtypes)
{
    // bf16 parameters and gradients 2 + 2; what fp32 master weights have beyond the parameters 2, moments 2 + 2, over
    // the data-parallel ranks.
    Job job(1, false, 4);
    job.training.precision = {DType::Bf16, DType::Fp32, false};
    MegatronOptions& options = job.options();
    options.precisionAwareOptimizer = true;
    options.fp32GradAccumulation = false;
    options.mainGradsDtype = options.expAvgDtype = options.expAvgSqDtype = DType::Bf16;
    ASSERT_EQ(refusals(job.input()), std::vector<std::string>{});
    const ModelSlice slice = sliceModel(job.input()).front();
    const auto perParameter = [&] {
        return job.states().total().asDouble() / static_cast<double>(slice.model.parameters());
    };
    EXPECT_NEAR(perParameter(), 4 + 6.0 / 4, 0.02);
    options.expAvgSqDtype = DType::Fp32;
    EXPECT_NEAR(perParameter(), 4 + 8.0 / 4, 0.02);
    options.fp32GradAccumulation = true;
    EXPECT_EQ(refusals(job.input()).size(), 1U);
    options.precisionAwareOptimizer = false;
    EXPECT_EQ(refusals(job.input()).size(), 1U);
}
