// How well published memory figures are met: guards against getting worse, at what is reached. The whole table:
// `shardplan compare --published`.

#include <algorithm>
#include <cmath>
#include <filesystem>

#include <gtest/gtest.h>

#include <ostream>

#include "planner/published/comparison.hpp"
#include "planner/published/published_files.hpp"
#include "planner/published/published_report.hpp"

namespace shardwright {
namespace {

std::vector<FigureComparison> comparisonOf(const std::string& stem)
{
    std::vector<FigureComparison> figures;
    for (const std::string& file : publishedFiles()) {
        if (std::filesystem::path(file).filename().string().rfind(stem, 0) != 0)
            continue;
        for (const Scenario& scenario : readPublishedFile(file)) {
            const auto rows = comparePublished(scenario);
            figures.insert(figures.end(), rows.begin(), rows.end());
        }
    }
    return figures;
}

struct Limit {
    const char* file;
    double median;
    double worst;
};

void PrintTo(const Limit& limit, std::ostream* out)
{
    *out << limit.file;
}

class PublishedAccuracy : public testing::TestWithParam<Limit> {};

TEST_P(PublishedAccuracy, staysWhereItIs)
{
    const auto figures = comparisonOf(GetParam().file);
    const SourceSummary summary = summariseAll(figures);
    ASSERT_GT(summary.compared, 0);
    EXPECT_LE(summary.medianError.value_or(1), GetParam().median) << publishedText(figures, {}, true);
    EXPECT_LE(summary.worstError.value_or(1), GetParam().worst) << publishedText(figures, {}, true);
}

// torchtitan-h200: one of its two rows is on the edge of a jump of the allocator. Allocated is 37.9 GiB at all of them,
// but reserved at sequence lengths 7936, 8064, 8192 and 8320 went 40.8, 45.3, 45.8, 42.9 GiB (published at 8192: 47.0)
// with the activation rules that gave 2.5 %; with those held to transformers' own tensors it falls on the other side,
// at 42.3.
INSTANTIATE_TEST_SUITE_P(Sources, PublishedAccuracy,
                         testing::Values(Limit{"torchtitan-2024-12", 0.01, 0.05}, Limit{"torchtitan-h200", 0.06, 0.10},
                                         Limit{"torchao-training", 0.04, 0.07}, Limit{"chenyaofo-gist", 0.025, 0.125},
                                         Limit{"deepspeed-4527", 0.06, 0.06}, Limit{"peft-docs", 0.36, 0.6}));

// The row beside the one on the jump stays as strictly held as before.
TEST(PublishedRuns, theH200RowOffTheJumpStaysWithinThreePercent)
{
    int rows = 0;
    for (const FigureComparison& figure : comparisonOf("torchtitan-h200")) {
        if (figure.scenario != "llama-3-8b-32xh200-float8" || !figure.error)
            continue;
        ++rows;
        EXPECT_LE(std::abs(*figure.error), 0.03);
    }
    EXPECT_EQ(rows, 1);
}

TEST(PublishedRuns, everyMosaicRunIsToldToFit)
{
    const SourceSummary summary = summariseAll(comparisonOf("mosaic-"));
    EXPECT_EQ(summary.verdicts, 223);
    EXPECT_EQ(summary.verdictsRight, summary.verdicts);
    EXPECT_EQ(summary.objected, 0); // no printed throughput is beyond the GPUs or the links
}

TEST(PublishedRuns, figuresThatContradictThemselvesAreSaidTo)
{
    const auto figures = comparisonOf("chenyaofo-gist");
    EXPECT_EQ(std::count_if(figures.begin(), figures.end(),
                            [](const FigureComparison& figure) { return !figure.objections.empty(); }),
              6);
    const auto guide = comparisonOf("llama-2-13b-8xa100-cpu-offload");
    for (const FigureComparison& figure : guide)
        if (figure.kind == MeasuredKind::HostUsed) {
            EXPECT_FALSE(figure.objections.empty()) << figure.strategy;
        }
}

} // namespace
} // namespace shardwright
