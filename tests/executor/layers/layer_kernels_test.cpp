// The kernels, run as the planner's programs say: loss against plain loops in double precision, gradients against
// finite differences of those.

#include <cmath>
#include <random>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "executor/elements.hpp"
#include "tests/executor/layers/program_player.hpp"

using namespace shardwright;

namespace {

Model modelOf(const char* config)
{
    return modelFromJson(parseJson(config, "test"), "tiny", "test");
}

// head_dim is not hidden / heads, nothing is a multiple of a vector's width.
Model tinyLlama()
{
    return modelOf(R"({"model_type": "llama", "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 27, "vocab_size": 37, "rms_norm_eps": 1e-5,
        "rope_theta": 500, "max_position_embeddings": 256})");
}

Model tinyQwen()
{
    return modelOf(R"({"model_type": "qwen2", "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3,
        "num_key_value_heads": 1, "intermediate_size": 70, "vocab_size": 130, "tie_word_embeddings": true})");
}

Model tinyGpt()
{
    return modelOf(R"({"model_type": "gpt2", "n_embd": 21, "n_layer": 2, "n_head": 3, "n_positions": 150,
        "vocab_size": 67, "attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0})");
}

/// As transformers has it by default: every dropout at 0.1. Here more, so that little of it shows.
Model tinyGptDropping()
{
    return modelOf(R"({"model_type": "gpt2", "n_embd": 21, "n_layer": 2, "n_head": 3, "n_positions": 150,
        "vocab_size": 67, "attn_pdrop": 0.3, "resid_pdrop": 0.2, "embd_pdrop": 0.4})");
}

/// Fewer tokens than a block of queries, and more.
Model tinyMistral(int window)
{
    return modelOf((R"({"model_type": "mistral", "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 27, "vocab_size": 37, "attention_dropout": 0.25,
        "sliding_window": )" +
                    std::to_string(window) + "}")
                       .c_str());
}

/// The second of its blocks has a window.
Model tinyQwenWindowed()
{
    return modelOf(R"({"model_type": "qwen2", "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
        "num_key_value_heads": 1, "intermediate_size": 30, "vocab_size": 50, "use_sliding_window": true,
        "sliding_window": 3, "max_window_layers": 1})");
}

Model tinyQwen3()
{
    return modelOf(R"({"model_type": "qwen3", "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 10, "intermediate_size": 30, "vocab_size": 50})");
}

Training trainingOf(std::int64_t length, std::int64_t sequences, DType dtype = DType::Fp32)
{
    Training training;
    training.implementation = Implementation::Shardrun;
    training.sequenceLength = length;
    training.microBatch = sequences;
    training.precision.mixed = std::nullopt;
    training.precision.load = dtype;
    return training;
}

Weights randomWeights(const Model& model, unsigned seed)
{
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, 0.3f);
    Weights weights;
    for (const NamedParameter& parameter : listParameters(model)) {
        std::vector<double>& values = weights[parameter.name];
        const bool norm =
            parameter.name.find("norm") != std::string::npos || parameter.name.find("ln_") != std::string::npos;
        for (std::int64_t i = 0; i < parameter.numel; ++i)
            values.push_back(static_cast<double>(normal(random) + (norm ? 1.0f : 0.0f)));
    }
    return weights;
}

Batch randomBatch(const Model& model, const Training& training, unsigned seed)
{
    std::mt19937 random(seed);
    std::uniform_int_distribution<std::int64_t> token(0, model.architecture.vocab - 1);
    Batch batch{training.microBatch, training.sequenceLength, {}, {}, seed, 1000};
    for (std::int64_t i = 0; i < training.tokensPerMicroBatch(); ++i) {
        batch.tokens.push_back(token(random));
        batch.labels.push_back(token(random));
    }
    return batch;
}

/// Some elements of every tensor: gradient against (loss(w + h) - loss(w - h)) / 2h.
void expectGradients(const Model& model, const Weights& weights, const Batch& batch, const Played& played, double scale)
{
    constexpr double kStep = 1e-5;
    constexpr int kSamples = 5;
    std::mt19937 random(3);
    for (const auto& [name, values] : weights) {
        const auto found = played.gradients.find(name);
        ASSERT_NE(found, played.gradients.end()) << name;
        ASSERT_EQ(found->second.size(), values.size()) << name;
        double largest = 0;
        for (const double gradient : found->second)
            largest = std::max(largest, std::abs(gradient));
        EXPECT_GT(largest, 0) << name;
        for (int sample = 0; sample < kSamples; ++sample) {
            const std::size_t i = std::uniform_int_distribution<std::size_t>(0, values.size() - 1)(random);
            Weights moved = weights;
            moved[name][i] = values[i] + kStep;
            const double above = referenceLoss(model, moved, batch);
            moved[name][i] = values[i] - kStep;
            const double below = referenceLoss(model, moved, batch);
            const double expected = (above - below) / (2 * kStep) * scale;
            EXPECT_NEAR(found->second[i], expected, 1e-4 * std::abs(expected) + 2e-5 * largest + 1e-9)
                << name << "[" << i << "]";
        }
    }
}

} // namespace

class WholeModel : public testing::TestWithParam<std::tuple<const char*, std::int64_t, std::int64_t>> {
public:
    static Model model(const std::string& which)
    {
        return which == "llama"            ? tinyLlama()
               : which == "qwen2"          ? tinyQwen()
               : which == "gpt2"           ? tinyGpt()
               : which == "gpt2 dropping"  ? tinyGptDropping()
               : which == "qwen3"          ? tinyQwen3()
               : which == "qwen2 windowed" ? tinyQwenWindowed()
                                           : tinyMistral(which == "short window" ? 4 : 130);
    }
};

// 140 tokens: several blocks of queries and of keys.
INSTANTIATE_TEST_SUITE_P(LayerKernels, WholeModel,
                         testing::Values(std::tuple{"llama", 5, 3}, std::tuple{"llama", 140, 1},
                                         std::tuple{"qwen2", 7, 2}, std::tuple{"gpt2", 6, 2},
                                         std::tuple{"gpt2", 140, 1}, std::tuple{"gpt2 dropping", 6, 2},
                                         std::tuple{"gpt2 dropping", 140, 1}, std::tuple{"qwen2 windowed", 9, 2},
                                         std::tuple{"qwen3", 7, 2}, std::tuple{"short window", 150, 1},
                                         std::tuple{"long window", 150, 1}));

TEST_P(WholeModel, lossAndGradientsAreThoseOfPlainLoops)
{
    const auto& [which, length, sequences] = GetParam();
    const Model model = WholeModel::model(which);
    const Training training = trainingOf(length, sequences);
    const Weights weights = randomWeights(model, 1);
    const Batch batch = randomBatch(model, training, 2);
    const Played played = play(model, training, weights, batch);
    EXPECT_EQ(played.wrongSizes, std::vector<std::string>{});
    EXPECT_NEAR(played.loss, referenceLoss(model, weights, batch), 2e-6 * played.loss);
    expectGradients(model, weights, batch, played, 1);
}

TEST(LayerKernels, lossAndGradientsAreSharedAmongMicroSteps)
{
    const Model model = tinyLlama();
    Training training = trainingOf(9, 2);
    training.gradientAccumulation = 4;
    const Weights weights = randomWeights(model, 1);
    const Batch batch = randomBatch(model, training, 2);
    const Played played = play(model, training, weights, batch);
    EXPECT_NEAR(played.loss * 4, referenceLoss(model, weights, batch), 1e-5);
    expectGradients(model, weights, batch, played, 0.25);
}

TEST(LayerKernels, recomputationChangesNoBit)
{
    for (const Model& model : {tinyLlama(), tinyGpt(), tinyGptDropping(), tinyMistral(9), tinyQwen3()}) {
        Training training = trainingOf(70, 2);
        const Weights weights = randomWeights(model, 4);
        const Batch batch = randomBatch(model, training, 5);
        const Played kept = play(model, training, weights, batch);
        for (const Checkpointing mode : {Checkpointing::Selective, Checkpointing::Full, Checkpointing::Cpu}) {
            training.checkpointing = mode;
            const Played again = play(model, training, weights, batch);
            EXPECT_EQ(again.wrongSizes, std::vector<std::string>{}) << nameOf(mode);
            EXPECT_EQ(again.loss, kept.loss) << nameOf(mode);
            EXPECT_EQ(again.gradients, kept.gradients) << nameOf(mode);
        }
    }
}

TEST(LayerKernels, moreThreadsGiveTheSameResults)
{
    const Model model = tinyLlama();
    const Training training = trainingOf(200, 3);
    const Weights weights = randomWeights(model, 6);
    const Batch batch = randomBatch(model, training, 7);
    const Played one = play(model, training, weights, batch, 1);
    const Played three = play(model, training, weights, batch, 3);
    EXPECT_NEAR(three.loss, one.loss, 1e-6 * one.loss);
    for (const auto& [name, gradient] : one.gradients)
        for (std::size_t i = 0; i < gradient.size(); ++i)
            ASSERT_NEAR(three.gradients.at(name)[i], gradient[i], 1e-5 * (std::abs(gradient[i]) + 0.01)) << name;
}

TEST(LayerKernels, dropoutIsOfTheSequenceNotOfItsPlaceInTheBatch)
{
    const Model model = tinyGptDropping();
    const Weights weights = randomWeights(model, 1);
    const Batch both = randomBatch(model, trainingOf(30, 2), 2);
    Batch second{1, 30, {both.tokens.begin() + 30, both.tokens.end()}, {both.labels.begin() + 30, both.labels.end()}};
    Batch first{
        1, 30, {both.tokens.begin(), both.tokens.begin() + 30}, {both.labels.begin(), both.labels.begin() + 30}};
    first.seed = second.seed = both.seed;
    first.firstSequence = both.firstSequence;
    second.firstSequence = both.firstSequence + 1;
    const auto lossOf = [&](const Batch& batch) {
        return play(model, trainingOf(30, batch.sequences), weights, batch).loss;
    };
    EXPECT_NEAR(lossOf(both), (lossOf(first) + lossOf(second)) / 2, 1e-6);
    const double before = lossOf(first);
    first.firstSequence += 1; // later in the run
    EXPECT_GT(std::abs(lossOf(first) - before), 1e-3);
}

namespace {

/// Length of the difference.
double distance(const std::vector<double>& left, const std::vector<double>& right)
{
    double squares = 0;
    for (std::size_t i = 0; i < left.size(); ++i)
        squares += (left[i] - right[i]) * (left[i] - right[i]);
    return std::sqrt(squares);
}

} // namespace

/// Rounding the weights to bf16, once, moves the gradients by so much. Activations and their gradients are rounded some
/// twenty times a block: with errors that do not know of each other, less than sqrt(2 x 2 x 20) times that.
TEST(LayerKernels, bf16ErrsAsOftenAsItRounds)
{
    constexpr double kRoundings = 9;
    for (const Model& model : {tinyLlama(), tinyGpt()})
        for (const DType gradientType : {DType::Bf16, DType::Fp32}) {
            const Training training = trainingOf(70, 2);
            const Weights weights = randomWeights(model, 8);
            Weights rounded = weights;
            for (auto& [name, values] : rounded)
                for (double& value : values)
                    value = static_cast<double>(floatOfBf16(bf16Of(static_cast<float>(value))));
            const Batch batch = randomBatch(model, training, 9);
            const Played before = play(model, training, weights, batch);
            const Played exact = play(model, training, rounded, batch);
            const Played bf16 = play(model, trainingOf(70, 2, DType::Bf16), weights, batch, 2, gradientType);
            EXPECT_EQ(bf16.wrongSizes, std::vector<std::string>{});
            EXPECT_NEAR(bf16.loss, exact.loss, 0.01 * exact.loss);
            EXPECT_NE(bf16.loss, exact.loss);
            for (const auto& [name, gradient] : exact.gradients)
                EXPECT_LT(distance(bf16.gradients.at(name), gradient),
                          kRoundings * distance(before.gradients.at(name), gradient))
                    << name;
        }
}

TEST(LayerKernels, refusesOperandsOfAnotherSize)
{
    const Model model = tinyGpt();
    const Training training = trainingOf(4, 1);
    const Weights weights = randomWeights(model, 1);
    Batch batch = randomBatch(model, training, 1);
    const auto narrow = trainingOf(3, 1);
    EXPECT_THROW(play(model, narrow, weights, batch), std::logic_error);
}
