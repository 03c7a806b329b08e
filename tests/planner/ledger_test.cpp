#include <algorithm>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "planner/published/ledger_report.hpp"
#include "planner/published/statistics.hpp"
#include "tests/golden.hpp"
#include "tests/paths.hpp"

namespace shardwright {
namespace {

constexpr double kOneGiB = 1024.0 * 1024 * 1024;

LedgerRow rowOf(const std::string& source, MeasuredKind kind, double published, std::optional<double> predicted,
                FigureOutcome outcome)
{
    LedgerRow row;
    row.source = source;
    row.figure.scenario = "seven-billion";
    row.figure.strategy = "mine";
    row.figure.source = "somebody's table";
    row.figure.kind = kind;
    row.figure.published = published;
    row.figure.predicted = predicted;
    row.figure.outcome = outcome;
    if (outcome == FigureOutcome::Predicted)
        row.figure.error = (*predicted - published) / published;
    if (outcome == FigureOutcome::NotPossible)
        row.figure.note = "the framework forbids it";
    return row;
}

/// Step times of 10 s predicted as 9, 10.5, 14 and 8 s, the last of them disputed; one refused; memory of 10 GiB
/// predicted as 11; one run told to fit, one told not to.
Ledger smallLedger()
{
    const auto timed = [](double predicted) {
        return rowOf("megatron-2205-05198", MeasuredKind::StepSeconds, 10, predicted, FigureOutcome::Predicted);
    };
    LedgerRow disputed = timed(8);
    disputed.figure.objections = {"the source prints two times"};
    return ledgerOf({timed(9), timed(10.5), timed(14), disputed,
                     rowOf("megatron-2205-05198", MeasuredKind::StepSeconds, 10, {}, FigureOutcome::NotPossible),
                     rowOf("offload", MeasuredKind::GpuReserved, 10 * kOneGiB, 11 * kOneGiB, FigureOutcome::Predicted),
                     rowOf("offload", MeasuredKind::Fits, 0, 11 * kOneGiB, FigureOutcome::ToldRight),
                     rowOf("offload", MeasuredKind::OutOfMemory, 0, 11 * kOneGiB, FigureOutcome::ToldWrong)});
}

TEST(Statistics, quantilesLieOnTheLineBetweenTheirNeighbours)
{
    EXPECT_DOUBLE_EQ(quantileOf({4, 1, 3, 2}, 0), 1);
    EXPECT_DOUBLE_EQ(quantileOf({4, 1, 3, 2}, 1), 4);
    EXPECT_DOUBLE_EQ(quantileOf({4, 1, 3, 2}, 0.5), 2.5);
    EXPECT_DOUBLE_EQ(quantileOf({0, 10}, 0.05), 0.5);
    EXPECT_DOUBLE_EQ(medianOf({7}), 7);
    EXPECT_DOUBLE_EQ(medianOf({3, 9, 5}), 5);
}

TEST(Ledger, statisticsByHand)
{
    const Ledger ledger = smallLedger();
    ASSERT_EQ(ledger.sources.size(), 2U);
    const ErrorStatistics& time = ledger.sources[0].time; // errors -0.1, +0.05, +0.4
    EXPECT_EQ(time.figures, 5);
    EXPECT_EQ(time.compared, 3);
    EXPECT_EQ(time.refused, 1);
    EXPECT_EQ(time.cannotBeRight, 1);
    EXPECT_DOUBLE_EQ(time.median.value(), 0.1);
    EXPECT_NEAR(time.mean.value(), 0.55 / 3, 1e-12);
    EXPECT_DOUBLE_EQ(time.worst.value(), 0.4);
    EXPECT_NEAR(time.bias.value(), 0.35 / 3, 1e-12);
    EXPECT_EQ(ledger.sources[0].memory.figures, 0);
    EXPECT_FALSE(ledger.sources[0].memory.median.has_value());
    EXPECT_NEAR(ledger.sources[1].memory.median.value(), 0.1, 1e-12);
    EXPECT_EQ(ledger.sources[1].verdicts, 2);
    EXPECT_EQ(ledger.sources[1].verdictsRight, 1);
    EXPECT_EQ(ledger.all.time.compared, 3);
    EXPECT_EQ(ledger.all.memory.compared, 1);
}

TEST(Ledger, peersStandBesideTheFiguresThatTheyClaim)
{
    const auto files = ledgerFiles();
    for (const PeerClaim& claim : peerClaims()) {
        EXPECT_TRUE(std::any_of(files.begin(), files.end(), [&](const std::string& file) {
            return ledgerSourceName(file) == claim.source;
        })) << claim.source;
        EXPECT_FALSE(claim.origin.empty());
    }
    EXPECT_EQ(smallLedger().sources[0].peers.size(), 2U); // Calculon's time and memory
    EXPECT_TRUE(smallLedger().sources[1].peers.empty());
}

TEST(Ledger, textIsTheGoldenOne)
{
    testing::expectGolden("planner/golden/ledger/ledger.txt", ledgerText(smallLedger(), {}, true));
}

TEST(Ledger, everyFieldOfTheJsonIsDocumented)
{
    const std::string readme = readTextFile(inSource("planner/README.md"));
    const std::string section = readme.substr(readme.find("`shardwright-ledger/1`"));
    const Json json = ledgerToJson(smallLedger(), true);
    EXPECT_EQ(json["schema"], kLedgerSchema);
    const Json& source = json["sources"][0];
    for (const Json& object : {json, source, source["time"], source["peers"][0]})
        for (const auto& item : object.items())
            EXPECT_NE(section.find(item.key()), std::string::npos) << item.key();
    for (const char* key : {"file", "setting"}) {
        EXPECT_TRUE(json["rows"][0].contains(key));
        EXPECT_NE(section.find(std::string("`") + key + "`"), std::string::npos);
    }
    EXPECT_EQ(json["rows"].size(), 8U);
    EXPECT_FALSE(ledgerToJson(smallLedger(), false).contains("rows"));
    EXPECT_DOUBLE_EQ(source["time"]["median_error"], 0.1);
    EXPECT_TRUE(source["memory"]["median_error"].is_null());
}

TEST(Ledger, csvTellsTheSameFigures)
{
    const std::string csv = ledgerCsv(smallLedger(), false);
    EXPECT_NE(csv.find("\nmegatron-2205-05198,time,5,3,1,0,1,0.1,"), std::string::npos) << csv;
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 5) << csv; // a source each, memory and time of all, the head
}

TEST(Ledger, isTheSameEveryTime)
{
    std::vector<std::string> files;
    for (const std::string& file : ledgerFiles())
        if (ledgerSourceName(file) == "torchao-training" || ledgerSourceName(file) == "chenyaofo-gist-deepspeed")
            files.push_back(file);
    ASSERT_EQ(files.size(), 2U);
    const auto first = predictLedger(files);
    const auto second = predictLedger(files);
    ASSERT_TRUE(first && second);
    EXPECT_EQ(ledgerToJson(*first, true), ledgerToJson(*second, true));
    EXPECT_EQ(first->sources.size(), 2U);
    EXPECT_EQ(first->rows.front().source, "chenyaofo-gist-deepspeed");
    EXPECT_GT(first->all.memory.compared, 0);
}

TEST(Ledger, endsWithoutAnAnswerWhenToldTo)
{
    std::int64_t total = 0;
    EXPECT_FALSE(predictLedger(ledgerFiles(), [&](std::int64_t, std::int64_t all) {
        total = all;
        return false;
    }));
    EXPECT_GT(total, 700);
}

} // namespace
} // namespace shardwright
