// scenarios/published/vtrain-single-node.jsonl is kept out of the statistics as a sum of profiled kernels, not a
// measured step. What shows it is held here, so that the claim can be checked again.

#include <array>
#include <filesystem>
#include <map>
#include <string>
#include <tuple>

#include <gtest/gtest.h>

#include "planner/published/published_files.hpp"

namespace shardwright {
namespace {

constexpr double kRounded = 1e-6; // the file prints nanoseconds, the rows here microseconds

struct Setting {
    std::int64_t hidden = 0, data = 0, tensor = 0, pipeline = 0, microBatch = 0, accumulation = 0;
    auto key() const { return std::tie(hidden, data, tensor, pipeline, microBatch, accumulation); }
    bool operator<(const Setting& other) const { return key() < other.key(); }
};

/// Seconds by setting and layers.
using Steps = std::map<Setting, std::map<std::int64_t, double>>;

Steps singleNodeSteps()
{
    Steps steps;
    for (const std::string& file : publishedFiles()) {
        if (std::filesystem::path(file).filename() != "vtrain-single-node.jsonl")
            continue;
        for (const Scenario& scenario : readPublishedFile(file)) {
            const Parallelism& parallelism = scenario.strategies.front().parallelism;
            const PublishedFigure& figure = scenario.published.front();
            EXPECT_FALSE(figure.disputed.empty()) << scenario.name;
            Setting setting;
            setting.hidden = scenario.model.architecture.hidden;
            setting.tensor = parallelism.tensor;
            setting.pipeline = parallelism.pipeline;
            setting.data = scenario.cluster.gpus() / (setting.tensor * setting.pipeline);
            setting.microBatch = scenario.training.microBatch;
            setting.accumulation = scenario.training.gradientAccumulation;
            steps[setting][scenario.model.architecture.layers] = figure.value;
        }
    }
    return steps;
}

// Four depths on one straight line, to the last digit, wherever no gradients are reduced: no machine is that even.
TEST(PublishedVtrainSingleNode, DepthsLieOnStraightLines)
{
    int lines = 0;
    for (const auto& [setting, seconds] : singleNodeSteps()) {
        if (setting.data > 1)
            continue;
        ASSERT_EQ(seconds.size(), 4U);
        const double perLayer = (seconds.at(24) - seconds.at(12)) / 12;
        EXPECT_NEAR(seconds.at(16), seconds.at(12) + 4 * perLayer, 2 * kRounded);
        EXPECT_NEAR(seconds.at(20), seconds.at(12) + 8 * perLayer, 2 * kRounded);
        ++lines;
    }
    EXPECT_GE(lines, 40);
}

// From four to eight data-parallel ranks a step takes longer by what the repository's table of all-reduces
// (trace/a100/AR_GPU4_1M_1024M_LUT and AR_GPU8_1M_1024M_LUT, second column of times) says of the gradients, 487, 583
// and 679 MiB, whatever the micro-batch.
TEST(PublishedVtrainSingleNode, DataParallelRanksCostWhatTheTableOfAllReducesSays)
{
    struct Row {
        std::int64_t layers;
        double four, eight; // seconds
    };
    constexpr std::array<Row, 3> kTable{
        {{12, 3549300e-9, 3987900e-9}, {16, 4257500e-9, 4752200e-9}, {20, 4887800e-9, 5488400e-9}}};
    const Steps steps = singleNodeSteps();
    for (const std::int64_t microBatch : {1, 2})
        for (const Row& row : kTable) {
            const double longer = steps.at({1024, 8, 1, 1, microBatch, 8}).at(row.layers) -
                                  steps.at({1024, 4, 1, 1, microBatch, 8}).at(row.layers);
            EXPECT_NEAR(longer, row.eight - row.four, kRounded) << row.layers << " layers, micro-batch " << microBatch;
        }
}

} // namespace
} // namespace shardwright
