// 1-bit Adam under DeepSpeed's stage 0, carried out on rank threads.

#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "tests/executor/comm/thread_ranks.hpp"
#include "tests/executor/small_runs.hpp"
#include "tests/temporary_folder.hpp"

namespace shardwright {
namespace {

constexpr std::int64_t kWarmUpSteps = 10;

struct Tiny {
    int ranks = 4;
    int accumulation = 1;
    int hidden = 24;
    std::string strategy = "deepspeed-zero0";
    int sequences = 2; // of a micro-batch on a rank
    double clipping = 0;
};

ExecutablePlan planOf(const Tiny& tiny)
{
    const Json model{{"model_type", "llama"},
                     {"hidden_size", tiny.hidden},
                     {"intermediate_size", 44},
                     {"num_hidden_layers", 2},
                     {"num_attention_heads", 4},
                     {"num_key_value_heads", 2},
                     {"vocab_size", 61},
                     {"rms_norm_eps", 1e-5},
                     {"max_position_embeddings", 32},
                     {"tie_word_embeddings", false}};
    Json training{{"micro_batch", tiny.sequences},
                  {"gradient_accumulation", tiny.accumulation},
                  {"precision", {{"mixed", "no"}, {"load", "fp32"}}},
                  {"optimizer", "onebit-adam"}};
    training["gradient_clipping"] = tiny.clipping > 0 ? Json(tiny.clipping) : Json();
    return planOf(scenarioOf(tiny.strategy, model, 1, tiny.ranks, training));
}

RunSettings settingsOf(std::int64_t steps)
{
    RunSettings settings;
    settings.steps = steps;
    settings.executor.optimizer.learningRate = 3e-3;
    settings.executor.optimizer.warmUpSteps = kWarmUpSteps;
    return settings;
}

/// By tensor and element, the first moment on a rank.
using Momentum = std::vector<std::vector<float>>;

/// Gradients do not touch the momentum and parameters stay: what happens to the momentum is the exchange alone.
ExecutorOptions exchangeOnly()
{
    ExecutorOptions options;
    options.optimizer.beta1 = 1;
    options.optimizer.learningRate = 0;
    options.optimizer.warmUpSteps = 0;
    return options;
}

/// Sets each rank's momentum once, steps `steps` times and gives each rank's momentum after every step.
std::vector<std::vector<Momentum>> exchanged(const ExecutablePlan& plan, const std::vector<Momentum>& first, int steps)
{
    std::vector<std::vector<Momentum>> after(static_cast<std::size_t>(plan.ranks));
    const auto weights = seededWeights(plan.model, 1);
    const auto tokens = syntheticTokens(plan.model.architecture.vocab, 1);
    const std::vector<std::string> failures = runRanks(static_cast<int>(plan.ranks), {}, [&](Transport& transport) {
        const auto rank = static_cast<std::size_t>(transport.rank());
        RankExecutor executor(plan, exchangeOnly(), transport, *weights, *tokens);
        executor.initialise();
        Momentum momentum = first[rank];
        const auto eachMoment = [&](const std::function<void(float*, float*, std::int64_t)>& use) {
            for (const StatePiece& piece : executor.state().pieces)
                if (piece.quantity == Quantity::Moments && piece.moment == 0)
                    use(piece.values.as<float>(), momentum[static_cast<std::size_t>(piece.tensor)].data() + piece.first,
                        piece.count);
        };
        eachMoment([](float* buffer, float* mine, std::int64_t count) { std::copy_n(mine, count, buffer); });
        for (int step = 0; step < steps; ++step) {
            executor.step();
            eachMoment([](float* buffer, float* mine, std::int64_t count) { std::copy_n(buffer, count, mine); });
            after[rank].push_back(momentum);
        }
    });
    for (const std::string& failure : failures)
        EXPECT_EQ(failure, "");
    return after;
}

Momentum filledWith(const ExecutablePlan& plan, const std::function<float(std::int64_t)>& value)
{
    Momentum momentum;
    for (const NamedParameter& parameter : listParameters(plan.model)) {
        momentum.emplace_back();
        for (std::int64_t i = 0; i < parameter.numel; ++i)
            momentum.back().push_back(value(i));
    }
    return momentum;
}

std::size_t tensorOf(const ExecutablePlan& plan, std::int64_t numel)
{
    const std::vector<NamedParameter> parameters = listParameters(plan.model);
    for (std::size_t i = 0; i < parameters.size(); ++i)
        if (parameters[i].numel == numel)
            return i;
    throw std::logic_error("no tensor of that length");
}

/// compressed_allreduce once more, in double precision: values of all ranks in, what every rank gets out.
class Reference {
public:
    Reference(std::int64_t numel, std::int64_t ranks)
        : m_ranks(ranks), m_padded(roundUp(numel, ranks * std::lcm(ranks, std::int64_t{8}))),
          m_worker(static_cast<std::size_t>(ranks), std::vector<double>(static_cast<std::size_t>(m_padded))),
          m_server(static_cast<std::size_t>(m_padded))
    {
    }

    std::vector<double> exchange(const std::vector<std::vector<float>>& values)
    {
        std::vector<double> mean(static_cast<std::size_t>(m_padded));
        for (std::size_t rank = 0; rank < values.size(); ++rank) {
            std::vector<double>& error = m_worker[rank];
            for (std::size_t i = 0; i < values[rank].size(); ++i)
                error[i] += values[rank][i];
            const std::vector<double> said = signsOf(error, 0, m_padded);
            for (std::size_t i = 0; i < mean.size(); ++i)
                mean[i] += said[i] / static_cast<double>(m_ranks);
        }
        for (std::size_t i = 0; i < mean.size(); ++i)
            m_server[i] += mean[i];
        std::vector<double> result;
        for (std::int64_t part = 0; part < m_ranks; ++part) {
            const std::vector<double> said = signsOf(m_server, part * m_padded / m_ranks, m_padded / m_ranks);
            result.insert(result.end(), said.begin(), said.end());
        }
        result.resize(values.front().size());
        return result;
    }

private:
    /// What the signs of values [first, first + count) say, which is taken from them.
    static std::vector<double> signsOf(std::vector<double>& values, std::int64_t first, std::int64_t count)
    {
        double squares = 0;
        for (std::int64_t i = first; i < first + count; ++i)
            squares += values[static_cast<std::size_t>(i)] * values[static_cast<std::size_t>(i)];
        const double scale = std::sqrt(squares / static_cast<double>(count));
        std::vector<double> said;
        for (std::int64_t i = first; i < first + count; ++i) {
            double& value = values[static_cast<std::size_t>(i)];
            said.push_back(value >= 0 ? scale : -scale);
            value -= said.back();
        }
        return said;
    }

    std::int64_t m_ranks;
    std::int64_t m_padded;
    std::vector<std::vector<double>> m_worker;
    std::vector<double> m_server;
};

TEST(OneBitAdam, TwoRanksByHand)
{
    const ExecutablePlan plan = planOf({.ranks = 2, .hidden = 32});
    const std::size_t norm = tensorOf(plan, 32); // two parts of 16
    const auto half = [](std::int64_t i) { return i < 16; };
    // Rank 0 says 5 everywhere and keeps -4 and 2; rank 1 says -3. The mean is 1 in both parts.
    const auto after = exchanged(plan,
                                 {filledWith(plan, [&](std::int64_t i) { return half(i) ? 1.0F : 7.0F; }),
                                  filledWith(plan, [](std::int64_t) { return -3.0F; })},
                                 2);
    for (std::size_t rank = 0; rank < 2; ++rank)
        for (std::int64_t i = 0; i < 32; ++i) {
            const auto at = static_cast<std::size_t>(i);
            EXPECT_EQ(after[rank][0][norm][at], 1);
            // Then rank 0 has 1 - 4 and 1 + 2 to say, rank 1 has 1.
            EXPECT_EQ(after[rank][1][norm][at], half(i) ? -1 : 2) << i;
        }
}

TEST(OneBitAdam, FourRanksByHand)
{
    const ExecutablePlan plan = planOf({.ranks = 4, .hidden = 32});
    const std::size_t norm = tensorOf(plan, 32); // four parts of 8
    const Momentum ones = filledWith(plan, [](std::int64_t) { return 1.0F; });
    const Momentum mixed = filledWith(plan, [](std::int64_t i) { return i % 8 < 4 ? 1.0F : -1.0F; });
    // Nothing is left over on the ranks. The servers average to 1 and 1/2 and say sqrt((4 + 4/4) / 8) for both; what is
    // left over makes 1 and 1/2 of it the next time, and the time after.
    const auto after = exchanged(plan, {mixed, ones, ones, ones}, 3);
    for (const std::vector<Momentum>& rank : after)
        for (const Momentum& momentum : rank)
            for (const float value : momentum[norm])
                EXPECT_NEAR(value, std::sqrt(5.0 / 8), 1e-6);
}

TEST(OneBitAdam, AnyNumberOfRanksExchangesWhatTheReferenceDoes)
{
    for (const int ranks : {2, 3, 5, 8}) {
        const ExecutablePlan plan = planOf({.ranks = ranks});
        std::mt19937 random(static_cast<unsigned>(ranks));
        std::normal_distribution<float> normal;
        std::vector<Momentum> first;
        for (int rank = 0; rank < ranks; ++rank)
            first.push_back(filledWith(plan, [&](std::int64_t) { return normal(random); }));
        constexpr int kSteps = 3;
        const auto after = exchanged(plan, first, kSteps);
        const std::vector<NamedParameter> parameters = listParameters(plan.model);
        for (std::size_t tensor = 0; tensor < parameters.size(); ++tensor) {
            Reference reference(parameters[tensor].numel, ranks);
            std::vector<std::vector<float>> values;
            for (const Momentum& momentum : first)
                values.push_back(momentum[tensor]);
            for (int step = 0; step < kSteps; ++step) {
                const std::vector<double> expected = reference.exchange(values);
                std::int64_t wrong = 0;
                for (std::size_t rank = 0; rank < after.size(); ++rank)
                    for (std::size_t i = 0; i < expected.size(); ++i) {
                        const float value = after[rank][static_cast<std::size_t>(step)][tensor][i];
                        wrong += std::abs(value - expected[i]) > 1e-4 * std::abs(expected[i]) ? 1 : 0;
                        values[rank][i] = value;
                    }
                EXPECT_EQ(wrong, 0) << parameters[tensor].name << ", " << ranks << " ranks, step " << step;
            }
        }
    }
}

/// All ranks' sequences on one rank, never compressed.
std::vector<double> uncompressedLosses(Tiny tiny, std::int64_t steps)
{
    tiny.sequences *= tiny.ranks * tiny.accumulation;
    tiny.ranks = tiny.accumulation = 1;
    RunSettings settings = settingsOf(steps);
    settings.executor.optimizer.warmUpSteps = steps;
    return runOnThreads(planOf(tiny), settings).losses;
}

/// The exchange itself is held to the reference above; here that what trains with it learns as Adam does. A frozen
/// variance takes longer steps where gradients grow smaller, so losses may well be lower.
TEST(OneBitAdam, LossesFallNoSlowerThanUncompressedAdams)
{
    constexpr std::int64_t kSteps = 40;
    constexpr double kDocumented = 0.05; // executor/README.md
    for (const Tiny& tiny : {Tiny{.ranks = 2}, Tiny{.ranks = 3, .accumulation = 2}, Tiny{.ranks = 4}, Tiny{.ranks = 7},
                             Tiny{.ranks = 8}}) {
        const std::vector<double> adam = uncompressedLosses(tiny, kSteps);
        const ExecutablePlan plan = planOf(tiny);
        const Measurement measured = runOnThreads(plan, settingsOf(kSteps));
        for (std::size_t step = 0; step < adam.size(); ++step) {
            if (step <= kWarmUpSteps) {
                EXPECT_NEAR(measured.losses[step], adam[step], 1e-5 * adam[step]) << tiny.ranks << ", step " << step;
            }
            EXPECT_LT(measured.losses[step], adam[step] * (1 + kDocumented)) << tiny.ranks << ", step " << step;
        }
        EXPECT_LT(measured.losses.back(), measured.losses[kWarmUpSteps] * 0.9) << tiny.ranks << " ranks";
        expectAsPredicted(plan, measured, std::to_string(tiny.ranks) + " ranks");
    }
}

TEST(OneBitAdam, OneRankFreezesTheVarianceAndSendsNothing)
{
    const ExecutablePlan plan = planOf({.ranks = 1, .clipping = 1});
    const Measurement measured = runOnThreads(plan, settingsOf(20));
    EXPECT_TRUE(measured.ranks.front().collectives.empty());
    EXPECT_LT(measured.losses.back(), measured.losses.front());
    expectAsPredicted(plan, measured, "one rank");
}

/// Losses of the steps behind the first `before` under `first`, resumed from there under `second`.
std::vector<double> resumed(const Tiny& first, std::int64_t before, const Tiny& second, std::int64_t behind)
{
    const TemporaryFolder folder;
    RunSettings saving = settingsOf(before);
    saving.checkpoints = folder.path();
    runOnThreads(planOf(first), saving);
    RunSettings going = settingsOf(behind);
    going.resume = saving.checkpoints;
    return runOnThreads(planOf(second), going).losses;
}

TEST(OneBitAdam, ResumesBitByBitInEitherPhase)
{
    const Tiny tiny{.ranks = 3};
    const std::vector<double> whole = runOnThreads(planOf(tiny), settingsOf(18)).losses;
    for (const std::int64_t before : {kWarmUpSteps - 4, kWarmUpSteps, kWarmUpSteps + 4})
        EXPECT_EQ(resumed(tiny, before, tiny, 18 - before), std::vector<double>(whole.begin() + before, whole.end()))
            << "after " << before;
}

TEST(OneBitAdam, OtherRanksGoOnWithoutTheErrorsOfTheOnesBefore)
{
    const Tiny three{.ranks = 3, .sequences = 2};
    const Tiny two{.ranks = 2, .sequences = 3};
    const std::vector<double> whole = runOnThreads(planOf(three), settingsOf(20)).losses;
    const std::vector<double> rest = resumed(three, 14, two, 6);
    EXPECT_NEAR(rest.front(), whole[14], 1e-5 * whole[14]); // the same weights
    for (std::size_t step = 0; step < rest.size(); ++step)
        EXPECT_NEAR(rest[step], whole[14 + step], 0.05 * whole[14 + step]);
}

} // namespace
} // namespace shardwright
