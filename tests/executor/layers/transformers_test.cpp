// The kernels against transformers' own modelling code and torch's autograd, by fixtures that
// tests/conformance/layers_against_transformers.py wrote.

#include <cmath>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/layer_refusals.hpp"
#include "core/model_file.hpp"
#include "tests/executor/layers/program_player.hpp"
#include "tests/paths.hpp"

using namespace shardwright;

namespace {

/// weight() of the script.
std::vector<double> weightOf(const NamedParameter& parameter)
{
    std::uint32_t start = 2166136261U;
    for (const char letter : parameter.name)
        start = (start ^ static_cast<unsigned char>(letter)) * 16777619U;
    const bool norm = parameter.name.ends_with("weight") && (parameter.name.find("norm") != std::string::npos ||
                                                             parameter.name.find("ln_") != std::string::npos);
    std::vector<double> values;
    for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(parameter.numel); ++i)
        values.push_back((i * 2654435761U + start) / 4294967296.0 * 0.6 - 0.3 + (norm ? 1 : 0));
    return values;
}

} // namespace

class Transformers : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(LayerKernels, Transformers,
                         testing::Values("llama", "qwen2", "gpt2", "llama3-rope", "linear-rope", "dynamic-rope",
                                         "yarn-rope", "mistral-window", "qwen2-window", "qwen3"));

TEST_P(Transformers, giveTheSameLossAndGradients)
{
    const std::string file = inSource("tests/executor/layers/golden/" + std::string(GetParam()) + ".json");
    const Json golden = parseJson(readTextFile(file), file);
    const Model model = modelFromJson(golden["config"], GetParam(), file);
    Training training;
    training.implementation = Implementation::Shardrun;
    training.precision.mixed = std::nullopt;
    training.sequenceLength = golden["length"];
    training.microBatch = golden["sequences"];
    ASSERT_EQ(layerRefusals(model, training), std::vector<std::string>{});

    Weights weights;
    for (const NamedParameter& parameter : listParameters(model))
        weights[parameter.name] = weightOf(parameter);
    const Batch batch{training.microBatch, training.sequenceLength, golden["tokens"], golden["labels"]};
    const Played played = play(model, training, weights, batch);
    const double loss = golden["loss"];
    EXPECT_NEAR(played.loss, loss, 1e-6 * loss);
    EXPECT_EQ(played.gradients.size(), golden["gradients"].size());
    for (const auto& [name, expected] : golden["gradients"].items()) {
        ASSERT_TRUE(played.gradients.count(name)) << name;
        const std::vector<double>& gradient = played.gradients.at(name);
        const double length = expected["length"];
        double squares = 0;
        for (const double element : gradient)
            squares += element * element;
        EXPECT_NEAR(std::sqrt(squares), length, 1e-5 * length) << name;
        for (std::size_t i = 0; i < expected["at"].size(); ++i)
            EXPECT_NEAR(gradient.at(expected["at"][i]), expected["elements"][i].get<double>(), 1e-5 * length)
                << name << "[" << expected["at"][i] << "]";
    }
}
