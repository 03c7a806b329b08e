// The executor beside Hugging Face transformers: checkpoints, losses and gradients that the real library wrote
// (golden/make_transformers_golden.py).

#include <cmath>
#include <map>

#include <gtest/gtest.h>

#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "core/scenario_file.hpp"
#include "executor/comm/transports.hpp"
#include "executor/engine/rank_executor.hpp"
#include "planner/executable_plan.hpp"
#include "tests/paths.hpp"

namespace shardwright {
namespace {

/// The fixture's token ids: of each sequence one more than is read, the last label.
class FixtureBatches final : public BatchSource {
public:
    explicit FixtureBatches(const Json& tokens) : m_tokens(tokens.get<std::vector<std::vector<std::int64_t>>>()) {}
    std::int64_t length() const { return static_cast<std::int64_t>(m_tokens.front().size()) - 1; }
    std::int64_t sequences() const { return static_cast<std::int64_t>(m_tokens.size()); }
    void read(std::int64_t index, std::int64_t length, std::int64_t* tokens, std::int64_t* labels) const override
    {
        const std::vector<std::int64_t>& row = m_tokens.at(static_cast<std::size_t>(index));
        std::copy_n(row.begin(), length, tokens);
        std::copy_n(row.begin() + 1, length, labels);
    }

private:
    std::vector<std::vector<std::int64_t>> m_tokens;
};

/// Whole parameters of the only rank, in fp32.
std::map<std::int32_t, std::vector<float>> parametersOf(RankExecutor& executor)
{
    std::map<std::int32_t, std::vector<float>> values;
    const TrainingState state = executor.state();
    for (const StatePiece& piece : state.pieces)
        if (piece.quantity == Quantity::Parameters) {
            std::vector<float>& tensor = values[piece.tensor];
            tensor.resize(std::max(tensor.size(), static_cast<std::size_t>(piece.first + piece.count)));
            std::copy_n(piece.values.as<float>(), piece.count, tensor.begin() + piece.first);
        }
    return values;
}

class TransformersGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(TransformersGolden, SameLossAndGradients)
{
    const std::string folder = inSource("tests/executor/golden/" + std::string(GetParam()));
    const Json expected = parseJson(readTextFile(folder + "/expected.json"), "expected.json");
    const FixtureBatches batches(expected.at("tokens"));

    Scenario scenario;
    scenario.name = "golden " + GetParam();
    scenario.model = readModel(folder);
    scenario.modelConfig = readTextFile(folder + "/config.json");
    scenario.cluster = readCluster("host-4-threads");
    scenario.cluster.gpusPerNode = 1;
    scenario.training.sequenceLength = batches.length();
    scenario.training.microBatch = batches.sequences();
    scenario.training.precision.mixed.reset();
    scenario.training.implementation = Implementation::Shardrun;
    scenario.training.optimizer = Optimizer::Sgd;
    scenario.training.gradientClipping.reset();
    const ExecutablePlan plan = executablePlan(scenario, *strategyByName("ddp", 1));

    const auto transports = makeThreadTransports(1);
    const auto weights = safetensorsWeights(plan.model, folder);
    ExecutorOptions options;
    options.optimizer.learningRate = 1; // so that a step takes the gradient itself off
    options.optimizer.weightDecay = 0;
    RankExecutor executor(plan, options, *transports.front(), *weights, batches);
    executor.initialise();
    const auto before = parametersOf(executor);
    EXPECT_NEAR(executor.step(), expected.at("loss").get<double>(), 1e-4);
    const auto after = parametersOf(executor);

    const std::vector<NamedParameter> parameters = listParameters(plan.model);
    ASSERT_EQ(before.size(), parameters.size());
    std::size_t compared = 0;
    for (const auto& [name, norm] : expected.at("gradient_norms").items())
        for (std::size_t i = 0; i < parameters.size(); ++i)
            if (parameters[i].name == name) {
                const auto& first = before.at(static_cast<std::int32_t>(i));
                const auto& second = after.at(static_cast<std::int32_t>(i));
                double squares = 0;
                for (std::size_t e = 0; e < first.size(); ++e)
                    squares += std::pow(static_cast<double>(first[e]) - second[e], 2);
                EXPECT_NEAR(std::sqrt(squares), norm.get<double>(), 1e-4 * (1 + norm.get<double>())) << name;
                ++compared;
            }
    EXPECT_EQ(compared, parameters.size());
}

INSTANTIATE_TEST_SUITE_P(Families, TransformersGolden, ::testing::Values("llama", "gpt2", "qwen2", "llama3", "mistral"),
                         [](const auto& test) { return test.param; });

} // namespace
} // namespace shardwright
