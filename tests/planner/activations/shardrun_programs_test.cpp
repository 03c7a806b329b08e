// What shardrun's layers keep, counted by hand from the operands of their kernels; which models and settings it
// refuses. T tokens, H hidden, I ffn, V vocabulary, a query heads, k key heads, d head size; bf16.

#include <cmath>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/layer_refusals.hpp"
#include "core/model_file.hpp"
#include "tests/planner/activations/micro_step.hpp"

using namespace shardwright;

namespace {

constexpr std::size_t kFirstBlock = 1;
constexpr std::int64_t T = 3 * 50;
constexpr std::int64_t V = 97;
constexpr std::int64_t I = 70;

Training trainingOf(Checkpointing checkpointing = Checkpointing::None)
{
    Training training;
    training.implementation = Implementation::Shardrun;
    training.sequenceLength = 50;
    training.microBatch = 3;
    training.checkpointing = checkpointing;
    return training;
}

Model modelOf(const std::string& config)
{
    return modelFromJson(parseJson(config, "test"), "tiny", "test");
}

// H 24, a 4, k 2, d 10
Model tinyLlama(const std::string& more = "")
{
    return modelOf(R"({"model_type": "llama", "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 10, "intermediate_size": 70, "vocab_size": 97)" +
                   more + "}");
}

// H 24, a 4
Model tinyGpt(const std::string& more = R"(, "attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0)")
{
    return modelOf(R"({"model_type": "gpt2", "n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 70, "n_positions": 64,
        "vocab_size": 97)" +
                   more + "}");
}

constexpr std::int64_t H = 24, a = 4, k = 2, d = 10;

void expectPlaysOut(const MicroStep& step)
{
    EXPECT_TRUE(step.consistent);
    EXPECT_EQ(step.left, std::vector<std::string>{});
}

} // namespace

TEST(ShardrunPrograms, llamaBlockKeepsTheOperandsOfItsBackward)
{
    const Model model = tinyLlama();
    // Both norms: input, output (2 T H each) and a statistic (4 T); q and the attention output, k and v; log-sum-exp;
    // gate, up and their product.
    const std::int64_t all =
        4 * 2 * T * H + 2 * 4 * T + 2 * 2 * T * a * d + 2 * 2 * T * k * d + 4 * T * a + 3 * 2 * T * I;
    const MicroStep none(model, trainingOf());
    EXPECT_EQ(none.saved(kFirstBlock), all);
    expectPlaysOut(none);

    // Without both norms' outputs and statistics and the product, which are made again.
    const MicroStep selective(model, trainingOf(Checkpointing::Selective));
    const std::int64_t recomputed = 2 * 2 * T * H + 2 * 4 * T + 2 * T * I;
    EXPECT_EQ(selective.saved(kFirstBlock), all - recomputed);
    EXPECT_EQ(selective.recomputed(kFirstBlock), recomputed);
    expectPlaysOut(selective);

    const MicroStep full(model, trainingOf(Checkpointing::Full));
    EXPECT_EQ(full.saved(kFirstBlock), 2 * T * H);
    EXPECT_EQ(full.recomputed(kFirstBlock), all - 2 * T * H);
    expectPlaysOut(full);

    const MicroStep cpu(model, trainingOf(Checkpointing::Cpu));
    EXPECT_EQ(cpu.saved(kFirstBlock), 0);
    EXPECT_EQ(cpu.hostAtLoss, 3 * 2 * T * H);
    expectPlaysOut(cpu);
}

TEST(ShardrunPrograms, gptBlockKeepsTheOperandsOfItsBackward)
{
    const Model model = tinyGpt();
    // Both norms: input, output and two statistics; query, key and value together; the attention output and its
    // log-sum-exp; what goes into GELU and what comes out.
    const std::int64_t all = 4 * 2 * T * H + 2 * 8 * T + 3 * 2 * T * H + 2 * T * H + 4 * T * a + 2 * 2 * T * I;
    EXPECT_EQ(MicroStep(model, trainingOf()).saved(kFirstBlock), all);
    const MicroStep selective(model, trainingOf(Checkpointing::Selective));
    EXPECT_EQ(selective.saved(kFirstBlock), all - (2 * 2 * T * H + 2 * 8 * T + 2 * T * I));
    expectPlaysOut(selective);
    EXPECT_EQ(MicroStep(model, trainingOf(Checkpointing::Full)).saved(kFirstBlock), 2 * T * H);
}

/// Masks are drawn anew in backward: dropout of 0.1 everywhere, transformers' default, keeps what none keeps.
TEST(ShardrunPrograms, dropoutKeepsNothing)
{
    for (const Checkpointing mode : {Checkpointing::None, Checkpointing::Selective, Checkpointing::Full}) {
        const MicroStep dropping(tinyGpt(""), trainingOf(mode));
        EXPECT_EQ(dropping.saved(kFirstBlock), MicroStep(tinyGpt(), trainingOf(mode)).saved(kFirstBlock));
        expectPlaysOut(dropping);
    }
}

TEST(ShardrunPrograms, lossTakesAStatisticARowAndItsGradientTheLogitsPlace)
{
    for (const Model& model : {tinyLlama(), tinyGpt()}) {
        const MicroStep step(model, trainingOf());
        EXPECT_EQ(step.lossForward, 2 * T * V + 4 * T);
        EXPECT_EQ(step.lossBackward, 2 * T * V); // makes nothing; the statistics go
        expectPlaysOut(step);
    }
}

TEST(ShardrunPrograms, everyStepThatComputesNamesItsKernel)
{
    for (const Model& model : {tinyLlama(), tinyGpt(), tinyGpt(""), tinyLlama(R"(, "tie_word_embeddings": true)")})
        for (const Checkpointing mode :
             {Checkpointing::None, Checkpointing::Selective, Checkpointing::Full, Checkpointing::Cpu}) {
            const Training training = trainingOf(mode);
            const ActivationModel activations(model, training, DType::Bf16);
            for (int layer = 0; layer < static_cast<int>(model.layers.size()); ++layer)
                for (const ProgramPass* pass :
                     {&activations.program(layer).forwardPass(), &activations.program(layer).recomputePass(),
                      &activations.program(layer).backwardPass()})
                    for (const ProgramStage& stage : *pass)
                        for (const StepWork& work : stage.work)
                            EXPECT_NE(work.kernel, Kernel::None) << layer;
        }
}

TEST(LayerRefusals, tellEverythingThatShardrunCannotTrain)
{
    EXPECT_EQ(layerRefusals(tinyLlama(), trainingOf()), std::vector<std::string>{});
    EXPECT_EQ(layerRefusals(tinyGpt(), trainingOf()), std::vector<std::string>{});

    const auto refused = [](const Model& model, const Training& training, const char* word) {
        const std::vector<std::string> reasons = layerRefusals(model, training);
        return reasons.size() == 1 && reasons[0].find(word) != std::string::npos;
    };
    EXPECT_TRUE(refused(tinyLlama(R"(, "hidden_act": "gelu")"), trainingOf(), "hidden_act gelu"));
    EXPECT_TRUE(refused(tinyLlama(R"(, "rope_scaling": {"rope_type": "longrope", "factor": 8})"), trainingOf(),
                        "rope_scaling longrope"));
    EXPECT_TRUE(refused(tinyLlama(R"(, "partial_rotary_factor": 0.5)"), trainingOf(), "partial_rotary_factor 0.5"));
    EXPECT_TRUE(refused(readModel("gemma-7b"), trainingOf(), "gemma"));
    EXPECT_GE(layerRefusals(readModel("mixtral-8x7b"), trainingOf()).size(), 2U); // its layers, and its experts

    Training training = trainingOf();
    training.sequenceLength = 65;
    EXPECT_TRUE(refused(tinyGpt(), training, "64 learned positions"));
    training = trainingOf();
    training.lora = Lora{};
    EXPECT_TRUE(refused(tinyLlama(), training, "lora"));
    training = trainingOf();
    training.precision.mixed = DType::Fp16;
    EXPECT_TRUE(refused(tinyLlama(), training, "fp16"));
    training = trainingOf();
    training.attention = Attention::Eager;
    training.compile = true;
    EXPECT_EQ(layerRefusals(tinyLlama(), training).size(), 2U);
    training = trainingOf();
    training.checkpointing = Checkpointing::Full;
    training.checkpointSegment = 2;
    EXPECT_TRUE(refused(tinyLlama(), training, "checkpoint_segment"));
    training = trainingOf();
    training.launchBlocking = true;
    EXPECT_TRUE(refused(tinyLlama(), training, "launch_blocking"));
    training = trainingOf();
    training.hostThreads = 1;
    EXPECT_TRUE(refused(tinyLlama(), training, "host_threads"));
}

TEST(Numerics, areReadAsTransformersWritesThem)
{
    EXPECT_EQ(tinyLlama().architecture.numerics.ropeTheta, 10000);
    EXPECT_EQ(tinyLlama().architecture.numerics.normEpsilon, 1e-6);
    EXPECT_EQ(tinyGpt().architecture.numerics.normEpsilon, 1e-5);
    EXPECT_EQ(tinyLlama(R"(, "rope_theta": 500000.0, "rms_norm_eps": 1e-05)").architecture.numerics.ropeTheta, 500000);
    // transformers 5
    const Model later = tinyLlama(R"(, "rope_parameters": {"rope_theta": 250.0, "rope_type": "default"})");
    EXPECT_EQ(later.architecture.numerics.ropeTheta, 250);
    EXPECT_EQ(later.architecture.numerics.others, std::vector<std::string>{});
}

TEST(Numerics, ropeScalingIsReadInBothSpellings)
{
    // Llama 3.1's config.json, as published and as transformers 5 writes it; the oldest spelling says "type".
    const std::string values = R"("factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192)";
    for (const std::string& config :
         {R"(, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", )" + values + "}",
          R"(, "rope_theta": 500000.0, "rope_scaling": {"type": "llama3", )" + values + "}",
          R"(, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", )" + values + "}"}) {
        const Numerics n = tinyLlama(config).architecture.numerics;
        EXPECT_EQ(n.ropeTheta, 500000);
        EXPECT_EQ(n.rope.kind, RopeKind::Llama3);
        EXPECT_EQ(n.rope.factor, 8);
        EXPECT_EQ(n.rope.lowFrequency, 1);
        EXPECT_EQ(n.rope.highFrequency, 4);
        EXPECT_EQ(n.rope.originalPositions, 8192);
        EXPECT_EQ(n.others, std::vector<std::string>{});
    }
    // Qwen2.5's long contexts (its README): the context length is the model's own.
    const Numerics yarn = tinyLlama(R"(, "max_position_embeddings": 32768,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"})")
                              .architecture.numerics;
    EXPECT_EQ(yarn.rope.kind, RopeKind::Yarn);
    EXPECT_NEAR(yarn.rope.attentionFactor, 0.1 * std::log(4.0) + 1, 1e-12); // arXiv 2309.00071 eq. 22
    EXPECT_EQ(yarn.rope.originalPositions, 32768);
    EXPECT_THROW(tinyLlama(R"(, "rope_scaling": {"type": "linear"})"), InputError);
    EXPECT_THROW(tinyLlama(R"(, "max_position_embeddings": 64, "rope_scaling": {"type": "llama3", "factor": 2,
        "low_freq_factor": 4, "high_freq_factor": 1})"),
                 InputError);
}

TEST(Numerics, windowsAreOfTheBlocksThatHaveThem)
{
    const auto windows = [](const std::string& type, const std::string& more) {
        const Numerics n = modelOf(R"({"model_type": ")" + type + R"(", "hidden_size": 24, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 70, "vocab_size": 97)" +
                                   more + "}")
                               .architecture.numerics;
        return std::vector<std::int64_t>{n.windowOf(0), n.windowOf(1), n.windowOf(2)};
    };
    using Windows = std::vector<std::int64_t>;
    EXPECT_EQ(windows("mistral", ""), (Windows{4096, 4096, 4096})); // the default of MistralConfig
    EXPECT_EQ(windows("mistral", R"(, "sliding_window": null)"), (Windows{0, 0, 0}));
    EXPECT_EQ(windows("llama", R"(, "sliding_window": 8)"), (Windows{0, 0, 0})); // LlamaConfig has none
    EXPECT_EQ(windows("qwen2", R"(, "sliding_window": 8, "max_window_layers": 1)"), (Windows{0, 0, 0}));
    const std::string asked = R"(, "use_sliding_window": true, "sliding_window": 8)";
    EXPECT_EQ(windows("qwen2", asked + R"(, "max_window_layers": 1)"), (Windows{0, 8, 8}));
    EXPECT_EQ(windows("qwen2", asked), (Windows{0, 0, 0})); // 28 blocks go before
    EXPECT_EQ(windows("qwen2", asked + R"(, "max_window_layers": 1,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"])"),
              (Windows{8, 0, 0}));
    EXPECT_THROW(windows("qwen2", asked + R"(, "layer_types": ["full_attention"])"), InputError);
}
