// What blocks keep, against formulas derived by hand from the modelling code and against published ones; and the
// properties that hold for every family under every setting. T tokens, H hidden, I ffn, V vocabulary, a query heads, s
// sequence length, b micro-batch.

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "tests/planner/activations/micro_step.hpp"

using namespace shardwright;

namespace {

constexpr std::size_t kFirstBlock = 1;

Training trainingOf(Attention attention = Attention::Flash, Checkpointing checkpointing = Checkpointing::None)
{
    Training training;
    training.sequenceLength = 512;
    training.microBatch = 2;
    training.attention = attention;
    training.checkpointing = checkpointing;
    return training;
}

/// A GPT-2 of plain shape with every dropout at 0.1, as arXiv 2205.05198 counts it.
Model gpt(double dropout = 0.1)
{
    const std::string p = std::to_string(dropout);
    return modelFromJson(parseJson(R"({"model_type": "gpt2", "n_embd": 256, "n_layer": 3, "n_head": 8,
        "n_positions": 512, "vocab_size": 1000, "attn_pdrop": )" +
                                       p + R"(, "resid_pdrop": )" + p + R"(, "embd_pdrop": )" + p + "}",
                                   "test"),
                         "gpt", "test");
}

const std::vector<std::string>& families()
{
    static const std::vector<std::string> ids{"llama-3-8b",
                                              "mistral-7b",
                                              "mixtral-8x7b",
                                              "qwen2.5-7b",
                                              "qwen3-8b",
                                              "qwen3-30b-a3b",
                                              "gemma-7b",
                                              "gemma-2-9b",
                                              "phi-2",
                                              "phi-3-mini",
                                              "gpt2",
                                              "gpt-neox-20b",
                                              "gpt-j-6b",
                                              "opt-125m",
                                              "falcon-7b",
                                              "falcon-40b",
                                              "bloom-560m",
                                              "deepseek-v3",
                                              "mpt-7b",
                                              "deepseek-v2-lite",
                                              "qwen1.5-moe-a2.7b",
                                              "megatron-gpt3-tiny"};
    return ids;
}

/// A model of any family, read once.
const Model& anyModel()
{
    static std::map<std::string, Model> read;
    const std::string id = *rc::gen::elementOf(families());
    const auto it = read.find(id);
    return it != read.end() ? it->second : read.emplace(id, readModel(id)).first->second;
}

Training anyTraining()
{
    Training training;
    training.sequenceLength = *rc::gen::inRange(1, 300);
    training.microBatch = *rc::gen::inRange(1, 5);
    training.attention = *rc::gen::element(Attention::Flash, Attention::Sdpa, Attention::Eager);
    training.loss = *rc::gen::element(LossKind::Default, LossKind::ShiftedCopy, LossKind::Compiled, LossKind::Fused);
    training.implementation =
        *rc::gen::element(Implementation::HuggingFace, Implementation::Torchtitan, Implementation::Torchtune,
                          Implementation::LlmFoundry, Implementation::Megatron);
    training.checkpointing = *rc::gen::element(Checkpointing::None, Checkpointing::Selective, Checkpointing::Full,
                                               Checkpointing::Partitioned, Checkpointing::Cpu);
    training.compile = *rc::gen::arbitrary<bool>();
    training.fusedNorm = *rc::gen::arbitrary<bool>();
    training.holdsLogits = *rc::gen::arbitrary<bool>();
    return training;
}

} // namespace

TEST(Activations, llamaBlockKeepsWhatItsModellingCodeSays)
{
    // modeling_llama.py, bf16, flash attention. Two norms of an fp32 copy (4 T H), the normalised input and the output
    // (2 T H each) and a reciprocal deviation (4 T); q and the attention output (2 T a d each), k and v (2 T a_kv d
    // each), the log-sum-exp (4 T a); gate, its silu, up and their product (2 T I each).
    const struct {
        const char* id;
        double hidden; // in T H, rounded
    } rows[] = {{"llama-2-7b", 45.5}, {"llama-3-8b", 49.0}, {"llama-3-70b", 48.5}, {"qwen2.5-7b", 62.9}};
    for (const auto& row : rows) {
        const Model model = readModel(row.id);
        const Architecture& a = model.architecture;
        const Training training = trainingOf();
        const std::int64_t tokens = training.tokensPerMicroBatch();
        const std::int64_t expected = 16 * tokens * a.hidden + 4 * tokens * a.headDim * (a.heads + a.kvHeads) +
                                      8 * tokens * a.ffn + 4 * tokens * a.heads + 2 * 4 * tokens;
        const MicroStep step(model, training);
        EXPECT_EQ(step.saved(kFirstBlock), expected) << row.id;
        EXPECT_NEAR(static_cast<double>(step.saved(kFirstBlock)) / static_cast<double>(tokens * a.hidden), row.hidden,
                    0.05)
            << row.id;

        Training fused = training;
        fused.fusedNorm = true; // each norm: input (2 T H) and output, no fp32 copy and no normalised input
        EXPECT_EQ(MicroStep(model, fused).saved(kFirstBlock), expected - 8 * tokens * a.hidden) << row.id;
    }
}

TEST(Activations, gptBlockKeepsWhatThePaperCounts)
{
    // arXiv 2205.05198 eq. 1: s b h (34 + 5 a s / h) with dropout; 2 s b h of it are the two dropout masks, 5 a s^2 b
    // softmax, its mask and its output. The paper leaves out layer-norm statistics: two norms of 8 bytes a token.
    const Model model = gpt();
    Training training = trainingOf(Attention::Eager);
    training.implementation = Implementation::Megatron;
    const std::int64_t tokens = training.tokensPerMicroBatch();
    const std::int64_t linear = 34 * tokens * 256 + 2 * 8 * tokens;
    EXPECT_EQ(MicroStep(model, training).saved(kFirstBlock), linear + 5 * 8 * tokens * training.sequenceLength);

    training.checkpointing = Checkpointing::Selective; // sec. 5: the attention core is recomputed
    EXPECT_EQ(MicroStep(model, training).saved(kFirstBlock), linear);

    training.checkpointing = Checkpointing::None;
    training.attention = Attention::Flash; // a log-sum-exp of 4 bytes a head instead
    EXPECT_EQ(MicroStep(model, training).saved(kFirstBlock), linear + 4 * 8 * tokens);
    EXPECT_EQ(MicroStep(gpt(0), training).saved(kFirstBlock), linear - 2 * tokens * 256 + 4 * 8 * tokens);
}

/// Megatron-LM checkpoints its core attention by itself: what that reads is kept anyway, and nothing besides.
TEST(Activations, selectiveRecomputationKeepsNothingThatBackwardDoesNotRead)
{
    for (const char* family : {"llama-3-8b", "mixtral-8x7b", "gpt2"})
        for (const bool fusedNorm : {false, true})
            for (const Attention attention : {Attention::Flash, Attention::Eager}) {
                Training training = trainingOf(attention);
                training.implementation = Implementation::Megatron;
                training.fusedNorm = fusedNorm;
                const MicroStep none(readModel(family), training);
                training.checkpointing = Checkpointing::Selective;
                const MicroStep selective(readModel(family), training);
                EXPECT_LT(selective.saved(kFirstBlock), none.saved(kFirstBlock)) << family << ' ' << fusedNorm;
                EXPECT_EQ(selective.saved(kFirstBlock) + selective.recomputed(kFirstBlock), none.saved(kFirstBlock))
                    << family << ' ' << fusedNorm;
            }
}

TEST(Activations, huggingFaceGeluKeepsThreeMoreOperands)
{
    // NewGELUActivation: 0.5 x, tanh and 1 + tanh beside the input and the output; I = 4 H.
    Training training = trainingOf();
    const Model model = gpt(0);
    const std::int64_t composed = MicroStep(model, training).saved(kFirstBlock);
    training.implementation = Implementation::Megatron;
    EXPECT_EQ(composed - MicroStep(model, training).saved(kFirstBlock),
              3 * 2 * 4 * 256 * training.tokensPerMicroBatch());
}

TEST(Activations, compiledLlamaBlockKeepsWhatMatrixProductsRead)
{
    // torch.compile (backend aot_eager_decomp_partition) of LlamaDecoderLayer keeps: the input, the residual and both
    // norms' outputs (2 T H each), two reciprocal deviations, q, k, v, the attention output and its log-sum-exp, gate,
    // up and their product. The fp32 copies, normalised inputs and the activated gate of the eager block are gone.
    const Model model = readModel("llama-3-8b");
    const Architecture& a = model.architecture;
    Training training = trainingOf();
    training.compile = true;
    const std::int64_t tokens = training.tokensPerMicroBatch();
    EXPECT_EQ(MicroStep(model, training).saved(kFirstBlock), 8 * tokens * a.hidden + 2 * 4 * tokens +
                                                                 4 * tokens * a.headDim * (a.heads + a.kvHeads) +
                                                                 4 * tokens * a.heads + 6 * tokens * a.ffn);
}

TEST(Activations, lossStandsAtTenAndTwelveBytesALogit)
{
    // loss_utils.ForCausalLMLoss: logits 2 T V, their float() 4 T V, the log-softmax 4 T V; in backward the log-softmax
    // and two gradients of 4 T V each. A caller that holds the logits has their 2 T V on top.
    const Model model = gpt();
    Training training = trainingOf();
    const std::int64_t logits = training.tokensPerMicroBatch() * 1000;
    EXPECT_EQ(MicroStep(model, training).lossForward, 10 * logits);
    EXPECT_EQ(MicroStep(model, training).lossBackward, 12 * logits);
    training.holdsLogits = true;
    EXPECT_EQ(MicroStep(model, training).lossBackward, 14 * logits);
    // Before 4.46 the held logits are fp32: 4 T V held beside log-softmax and two gradients.
    training.loss = LossKind::ShiftedCopy;
    EXPECT_EQ(MicroStep(model, training).lossBackward, 16 * logits);
}

TEST(Activations, fullCheckpointingKeepsOneInputABlock)
{
    const Model model = readModel("llama-2-7b");
    const Training training = trainingOf(Attention::Flash, Checkpointing::Full);
    const MicroStep step(model, training);
    for (std::size_t block = 1; block <= 32; ++block)
        EXPECT_EQ(step.saved(block), 2 * training.tokensPerMicroBatch() * 4096) << block;
}

TEST(Activations, cpuCheckpointingMovesInputsToTheHost)
{
    const Model model = readModel("llama-2-7b");
    const Training training = trainingOf(Attention::Flash, Checkpointing::Cpu);
    const MicroStep step(model, training);
    EXPECT_EQ(step.hostAtLoss, 32 * 2 * training.tokensPerMicroBatch() * 4096);
    for (std::size_t block = 1; block <= 32; ++block)
        EXPECT_EQ(step.saved(block), 0) << block;
    EXPECT_TRUE(step.left.empty());
}

RC_GTEST_PROP(ActivationsProperty, EveryTensorMadeIsFreed, ())
{
    const Model& model = anyModel();
    const Training training = anyTraining();
    const MicroStep step(model, training);
    RC_ASSERT(step.consistent);
    // Only what the caller holds on to survives the micro-step.
    if (training.holdsLogits && training.loss != LossKind::Fused)
        RC_ASSERT(step.left.size() == 1U);
    else
        RC_ASSERT(step.left.empty());
}

RC_GTEST_PROP(ActivationsProperty, RecomputationMakesWhatWasDropped, ())
{
    const Model& model = anyModel();
    Training training = anyTraining();
    training.checkpointing = Checkpointing::None;
    const MicroStep keeping(model, training);
    training.checkpointing = Checkpointing::Full;
    const MicroStep dropping(model, training);
    const std::int64_t input = 2 * training.tokensPerMicroBatch() * model.architecture.hidden;
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        if (model.layer(layer).kind != LayerKind::Block)
            continue;
        RC_ASSERT(dropping.saved(layer) == input);
        RC_ASSERT(dropping.recomputed(layer) == keeping.saved(layer) - (keeping.keepsInput(layer) ? input : 0));
    }
}

TEST(Activations, ComposerMeasuresTwoCrossEntropiesOfTheLogitsThatItHolds)
{
    const Model model = gpt();
    Training training = trainingOf();
    training.holdsLogits = true;
    EXPECT_TRUE(ActivationModel(model, training, DType::Bf16).metrics().forwardPass().empty());
    training.implementation = Implementation::LlmFoundry;
    const ActivationModel activations(model, training, DType::Bf16);
    SizeTable sizes;
    activations.defineSizes(sizes, training);
    const LayerProgram& metrics = activations.metrics();
    ASSERT_FALSE(metrics.forwardPass().empty());
    std::int64_t made = 0;
    for (const ProgramStage& stage : metrics.forwardPass())
        for (const SlotEvent& event : stage.events)
            if (event.makes)
                made += sizes.buffers[static_cast<std::size_t>(metrics.classOf(event.slot))].bytes.count();
    const std::int64_t tokens = 1024;
    EXPECT_EQ(made, 2 * (4 + 4) * tokens * 1000); // each casts the logits to fp32 and makes their log-softmax
}

RC_GTEST_PROP(ActivationsProperty, CheckpointingNeverRaisesThePeakBeyondOneInput, ())
{
    const Model& model = anyModel();
    Training training = anyTraining();
    training.checkpointing = Checkpointing::None;
    const std::int64_t keeping = MicroStep(model, training).peak;
    training.checkpointing = Checkpointing::Full;
    const std::int64_t input = 2 * training.tokensPerMicroBatch() * model.architecture.hidden;
    // A block that does not read its input in backward keeps it when it is checkpointed.
    RC_ASSERT(MicroStep(model, training).peak <= keeping + input * model.architecture.layers);
}
