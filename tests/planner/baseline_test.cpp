#include <cmath>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"
#include "planner/published/baseline.hpp"
#include "planner/published/residual_bands.hpp"

namespace shardwright {
namespace {

LedgerRow rowOf(const std::string& source, MeasuredKind kind, double error, const StepSetting& setting = {})
{
    LedgerRow row;
    row.source = source;
    row.setting = setting;
    row.figure.kind = kind;
    row.figure.published = 10;
    row.figure.predicted = 10 * (1 + error);
    row.figure.error = error;
    row.figure.outcome = FigureOutcome::Predicted;
    return row;
}

LedgerRow timeRow(const std::string& source, double error)
{
    return rowOf(source, MeasuredKind::StepSeconds, error);
}

TEST(Baseline, isMetByTheLedgerItWasTakenFrom)
{
    const Ledger ledger = ledgerOf({timeRow("a", 0.123456), timeRow("a", -0.3), rowOf("b", MeasuredKind::GpuUsed, 0)});
    const Baseline baseline = baselineOf(ledger);
    EXPECT_TRUE(worseThan(baseline, ledger).empty());
    EXPECT_DOUBLE_EQ(baseline[0].time->median, 0.2118); // (0.123456 + 0.3) / 2, rounded up
    EXPECT_DOUBLE_EQ(baseline[0].time->worst, 0.3);
    EXPECT_FALSE(baseline[0].memory.has_value());
    const Baseline read = baselineFromJson(toJson(baseline), "baseline.json");
    EXPECT_EQ(toJson(read), toJson(baseline));
}

TEST(Baseline, tellsEverythingThatIsWorse)
{
    const Baseline baseline =
        baselineOf(ledgerOf({timeRow("a", 0.1), timeRow("a", 0.1), timeRow("a", 0.2), timeRow("gone", 0.1)}));
    const auto worse = worseThan(baseline, ledgerOf({timeRow("a", 0.05), timeRow("a", 0.25), timeRow("new", 0.9)}));
    const std::vector<std::string> expected{"a, step time: 2 figures compared, 3 committed",
                                            "a, step time: median error 15.00 %, 10.00 % committed",
                                            "a, step time: worst error 25.00 %, 20.00 % committed", "gone: is gone"};
    EXPECT_EQ(worse, expected);
}

TEST(Baseline, whatIsNotOneIsAnError)
{
    EXPECT_THROW(baselineFromJson(Json::parse(R"({"schema": "x", "sources": []})"), "f"), InputError);
    EXPECT_THROW(baselineFromJson(Json::parse(R"({"schema": "shardwright-ledger-baseline/1", "sources":
                 [{"source": "a", "time": {"compared": 1, "median": 0.1}}]})"),
                                  "f"),
                 InputError);
}

// Measured over predicted of a prediction that is e too long is 1 / (1 + e).
TEST(ResidualBands, spanTheQuantilesAndThePrediction)
{
    std::vector<LedgerRow> rows;
    for (int i = 0; i <= 100; ++i) // measured between 1.1 and 1.2 of what is predicted
        rows.push_back(timeRow("a", 1 / (1.1 + 0.001 * i) - 1));
    const StepBand own = learnStepBands(rows)[indexOf({})];
    EXPECT_EQ(own.origin, BandOrigin::Own);
    EXPECT_EQ(own.rows, 101);
    EXPECT_DOUBLE_EQ(own.low, 1); // the prediction belongs to it
    EXPECT_NEAR(own.high, 1.195, 1e-9);
}

TEST(ResidualBands, widenWhereLittleOrNothingWasMeasured)
{
    const StepSetting offloaded{StepFamily::DeepSpeed, false, true, false};
    const StepSetting many{StepFamily::PyTorch, true, false, false};
    std::vector<LedgerRow> rows(50, rowOf("a", MeasuredKind::StepSeconds, 0.25)); // measured 0.8 of it
    rows.push_back(rowOf("b", MeasuredKind::StepSeconds, -0.2, many));            // 1.25 of it, once
    std::vector<LedgerRow> withMemory = rows;
    withMemory.push_back(rowOf("a", MeasuredKind::GpuUsed, 5)); // memory is not time
    const auto bands = learnStepBands(withMemory);
    EXPECT_NEAR(bands[indexOf({})].low, 0.8, 1e-12);
    const StepBand& once = bands[indexOf(many)]; // one run: what similar settings show belongs to its band too
    EXPECT_EQ(once.rows, 1);
    EXPECT_NEAR(once.low, 0.8, 1e-12);
    EXPECT_NEAR(once.high, 1.25, 1e-12);
    const StepBand& similar = bands[indexOf({StepFamily::DeepSpeed, false, false, false})];
    EXPECT_EQ(similar.origin, BandOrigin::Similar);
    EXPECT_NEAR(similar.low, std::pow(0.8, 1.5), 1e-12);
    const StepBand& none = bands[indexOf(offloaded)];
    EXPECT_EQ(none.origin, BandOrigin::All);
    EXPECT_LT(none.low, similar.low);
    EXPECT_EQ(learnStepBands({})[0].origin, BandOrigin::Assumed);
    for (std::size_t i = 0; i < kStepSettings; ++i) {
        EXPECT_LE(bands[i].low, 1);
        EXPECT_GE(bands[i].high, 1);
    }
}

TEST(ResidualBands, sourceIsWrittenRoundedOutwards)
{
    std::array<StepBand, kStepSettings> bands;
    bands[1] = {0.91239, 1.1001, 360, BandOrigin::Own};
    EXPECT_NE(stepBandSource(bands).find("\n    {0.912, 1.101, 360, BandOrigin::Own}, // pytorch, one node, model "
                                         "parallel\n"),
              std::string::npos)
        << stepBandSource(bands);
}

} // namespace
} // namespace shardwright
