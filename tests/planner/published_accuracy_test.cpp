// How well published figures are met: guards against getting worse, at what is reached. The whole table:
// `shardplan ledger`.

#include <algorithm>
#include <cmath>
#include <filesystem>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"
#include "planner/published/baseline.hpp"
#include "planner/published/published_files.hpp"

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

// No source may get worse than scenarios/ledger/baseline.json, and none may be without a line there.
//
// torchtitan-h200: one of its two rows is on the edge of a jump of the allocator. Allocated is 37.9 GiB at all of them,
// but reserved at sequence lengths 7936, 8064, 8192 and 8320 went 40.8, 45.3, 45.8, 42.9 GiB (published at 8192: 47.0)
// with the activation rules that gave 2.5 %; with those held to transformers' own tensors it falls on the other side,
// at 42.3.
void expectNoWorseThanCommitted(const Ledger& ledger)
{
    const Baseline baseline = baselineFromJson(parseJson(readTextFile(baselineFile()), baselineFile()), baselineFile());
    const auto worse = worseThan(baseline, ledger);
    EXPECT_TRUE(worse.empty()) << fmt::format("{}", fmt::join(worse, "\n"))
                               << "\nbuild/bin/tools/update_ledger --loosen commits it where it is meant";
    for (const LedgerSource& source : ledger.sources)
        EXPECT_TRUE(std::any_of(baseline.begin(), baseline.end(),
                                [&](const BaselineSource& committed) { return committed.name == source.name; }))
            << source.name << ": build/bin/tools/update_ledger";
}

// The bands are committed too: they span nine tenths of what they were learnt from, and more where that was little.
// Fewer than four fifths within them means that the models have moved since.
void expectBandsHoldWhatWasMeasured(const Ledger& ledger)
{
    int within = 0;
    int all = 0;
    for (const LedgerRow& row : ledger.rows) {
        if (quantityOf(row.figure.kind) != LedgerQuantity::Time || !row.figure.counts())
            continue;
        const StepBand& band = stepBand(row.setting);
        const double ratio = row.figure.published / *row.figure.predicted;
        within += ratio >= band.low && ratio <= band.high ? 1 : 0;
        ++all;
    }
    ASSERT_GT(all, 500);
    EXPECT_GE(within, all * 4 / 5) << "build/bin/tools/update_ledger learns them anew";
}

// One test, for the whole ledger is predicted for it.
TEST(PublishedAccuracy, isNoWorseThanCommittedAndWithinItsBands)
{
    const Ledger ledger = predictLedger(ledgerFiles()).value();
    expectNoWorseThanCommitted(ledger);
    expectBandsHoldWhatWasMeasured(ledger);
}

// The row beside the one on the jump stays as strictly held as before.
TEST(PublishedRuns, theH200RowOffTheJumpStaysWithinThreePercent)
{
    int rows = 0;
    for (const FigureComparison& figure : comparisonOf("torchtitan-h200")) {
        if (figure.scenario != "llama-3-8b-32xh200-float8" || figure.kind == MeasuredKind::StepSeconds || !figure.error)
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
