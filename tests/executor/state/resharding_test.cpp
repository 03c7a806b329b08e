// A checkpoint of any number of ranks under any strategy becomes the state of any other, bit by bit.

#include <algorithm>
#include <deque>
#include <filesystem>
#include <map>
#include <random>

#include <gtest/gtest.h>

#include "core/plan_file.hpp"
#include "executor/engine/rank_executor.hpp"
#include "executor/run/run_plan.hpp"
#include "executor/state/checkpoint.hpp"
#include "executor/state/safetensors.hpp"
#include "tests/executor/comm/thread_ranks.hpp"
#include "tests/paths.hpp"
#include "tests/temporary_folder.hpp"

namespace shardwright {

namespace {

namespace fs = std::filesystem;

class Resharding : public testing::Test {
protected:
    void SetUp() override
    {
        for (const auto& entry : fs::directory_iterator(inSource("scenarios/validation")))
            if (const std::string path = entry.path().string();
                path.size() > 10 && path.substr(path.size() - 10) == ".plan.json") {
                ExecutablePlan plan = readPlanFile(path);
                // In 16 bits what is resharded is rounded; the ones on NVMe are of a larger model.
                if (!plan.training.precision.mixed && plan.training.precision.load == DType::Fp32 &&
                    plan.model.parameters() < 200000)
                    m_plans[plan.modelConfig].push_back(std::move(plan));
            }
    }

    ExecutorOptions options() const
    {
        ExecutorOptions options;
        options.nvmeFolder = m_folder.path();
        return options;
    }

    /// Trains two steps and saves.
    std::string trained(const ExecutablePlan& plan)
    {
        RunSettings settings;
        settings.steps = 2;
        settings.executor = options();
        settings.checkpoints = fresh("trained");
        runPlan(plan, settings, makeThreadTransports(static_cast<int>(plan.ranks)));
        return checkpointFolder(settings.checkpoints);
    }

    /// Loads what `from` holds and saves it as it then is.
    std::string passedThrough(const ExecutablePlan& plan, const std::string& from)
    {
        const std::string to = fresh("passed");
        const auto weights = seededWeights(plan.model, 99); // others than those that were trained
        const auto batches = syntheticTokens(plan.model.architecture.vocab, 1);
        const auto ends = runRanks(static_cast<int>(plan.ranks), {}, [&](Transport& transport) {
            RankExecutor executor(plan, options(), transport, *weights, *batches);
            executor.initialise();
            TrainingState state = executor.state();
            loadCheckpoint(from, plan.model, state);
            executor.restore(state);
            saveCheckpoint(to, plan.model, plan.modelConfig, executor.state(), transport);
        });
        for (const std::string& end : ends)
            EXPECT_EQ(end, "") << plan.file;
        return to;
    }

    /// Every tensor's bytes, whole, by name.
    std::map<std::string, std::string> contentsOf(const std::string& folder)
    {
        const std::string full = fresh("full");
        convertCheckpoint(folder, full, CheckpointKind::Full, 0);
        std::map<std::string, std::string> contents;
        for (const char* name : {"/model.safetensors", "/optimizer.safetensors"}) {
            const SafetensorsFile file(full + name);
            for (const StoredTensor& tensor : file.header().tensors) {
                std::string bytes(static_cast<std::size_t>(tensor.end - tensor.begin), '\0');
                file.readRaw(tensor, 0, tensor.elements(), bytes.data());
                contents[tensor.name] = std::move(bytes);
            }
        }
        return contents;
    }

    std::string fresh(const std::string& name) { return m_folder.file(name + std::to_string(m_made++)); }

    TemporaryFolder m_folder;
    int m_made = 0;
    std::map<std::string, std::deque<ExecutablePlan>> m_plans; // by model; plans hold views of themselves
};

TEST_F(Resharding, RandomPairsOfRanksAndStrategiesKeepEveryBit)
{
    constexpr int kPairs = 12; // of each model
    std::mt19937 random(7);
    int pairs = 0;
    for (auto& [model, plans] : m_plans) {
        ASSERT_GT(plans.size(), 5U);
        for (int pair = 0; pair < kPairs; ++pair) {
            const ExecutablePlan& from = plans[random() % plans.size()];
            const ExecutablePlan& to = plans[random() % plans.size()];
            SCOPED_TRACE(from.file + " -> " + to.file);
            const std::string saved = trained(from);
            const std::string passed = passedThrough(to, saved);
            EXPECT_EQ(readManifest(passed).step, 2);
            EXPECT_EQ(readManifest(passed).files.size(), static_cast<std::size_t>(to.ranks));
            const auto expected = contentsOf(saved);
            const auto got = contentsOf(passed);
            EXPECT_GT(expected.size(), 30U); // parameters and two moments of each
            EXPECT_TRUE(expected == got);
            ++pairs;
        }
    }
    EXPECT_EQ(pairs, 2 * kPairs);
}

} // namespace

} // namespace shardwright
