// The report can say no: every kind of figure, off by the least that counts.

#include "core/json_cursor.hpp"
#include "core/validation.hpp"

#include <algorithm>
#include <cstdio>
#include <fstream>

#include <gtest/gtest.h>
#include <unistd.h>

namespace shardwright {
namespace {

ExecutablePlan plan()
{
    ExecutablePlan result;
    result.ranks = 2;
    result.ranksPerNode = 2;
    result.prediction = parseJson(R"({
      "states": {"parameters_bytes": 100, "master_parameters_bytes": 0, "optimizer_states_bytes": 200},
      "gpu": {"held_bytes": 300, "peak_allocated_bytes": 1000, "by_category": {"parameters": 100}},
      "host": {"pinned_bytes_per_rank": 0, "pageable_bytes_per_rank": 0},
      "nvme": {"bytes_per_node": 0, "read_bytes_per_step": 0, "write_bytes_per_step": 0},
      "traffic": {"host_to_device_bytes": 0, "device_to_host_bytes": 0,
                  "collectives": [{"op": "all-reduce", "group": "world", "payload": "gradients", "count": 2,
                                   "bytes": 14, "sent_bytes_per_gpu": 13}]},
      "step": {"seconds": 1.0}})",
                                  "prediction");
    return result;
}

Measurement measurement()
{
    RankMeasurement rank;
    MeasuredPlace device;
    device.place = Place::Gpu;
    device.peak = Bytes(1000);
    device.atPeak[0] = Bytes(100);
    device.held = Bytes(300);
    device.heldByCategory[static_cast<std::size_t>(Category::Parameters)] = Bytes(100);
    device.heldByCategory[static_cast<std::size_t>(Category::OptimizerStates)] = Bytes(200);
    rank.places.push_back(device);
    rank.collectives.push_back({OpKind::AllReduce, "world", "gradients", 2, 2, Bytes(14), Bytes(14)});
    Measurement result;
    result.ranks = {rank, rank};
    result.ranks[1].rank = 1;
    result.secondsPerStep = 1;
    result.steps = 2;
    return result;
}

bool within(const Measurement& measured, bool timeCounts = true)
{
    return validate(plan(), measured, timeCounts).within();
}

TEST(Validation, WhatIsAsPlannedIsWithin)
{
    EXPECT_TRUE(within(measurement())) << tableOf(validate(plan(), measurement(), true));
}

TEST(Validation, EveryFigureCanBeOut)
{
    Measurement held = measurement();
    for (RankMeasurement& rank : held.ranks)
        rank.places[0].held += Bytes(1);
    EXPECT_FALSE(within(held));
    Measurement peak = measurement();
    peak.ranks[1].places[0].peak = Bytes(1011); // of either rank
    EXPECT_FALSE(within(peak));
    peak.ranks[1].places[0].peak = Bytes(1009);
    EXPECT_TRUE(within(peak));
    Measurement calls = measurement();
    calls.ranks[0].collectives[0].count = 3;
    EXPECT_FALSE(within(calls));
    Measurement more = measurement();
    more.ranks[0].collectives.push_back({OpKind::Broadcast, "world", "parameters", 2, 1, Bytes(4), Bytes(4)});
    EXPECT_FALSE(within(more));
    Measurement files = measurement();
    files.ranks[0].nvmeFiles = Bytes(1);
    EXPECT_FALSE(within(files));
    Measurement slow = measurement();
    slow.secondsPerStep = 1.2;
    EXPECT_FALSE(within(slow));
    EXPECT_TRUE(within(slow, false));
}

/// Whatever the figures: the step that was measured is none that the plan describes.
TEST(Validation, ARunThatEndsBeforeItsSteadyStateIsNotJudged)
{
    Measurement begun = measurement();
    begun.firstSteadyStep = 3;
    const ValidationReport report = validate(plan(), begun, true);
    EXPECT_FALSE(report.within());
    EXPECT_EQ(report.notJudged.rfind("needs 3 steps", 0), 0U) << report.notJudged;
    EXPECT_NE(tableOf(report).find("not judged: needs 3 steps"), std::string::npos);
    EXPECT_EQ(tableOf(report).find("ok"), std::string::npos);
    EXPECT_EQ(toJson(report)["within"], false);
    EXPECT_TRUE(toJson(report)["rows"][0]["within"].is_null());
    begun.ranks[0].places[0].held += Bytes(1);
    EXPECT_EQ(tableOf(validate(plan(), begun, true)).find("OUT"), std::string::npos);
    begun.firstSteadyStep = 2;
    EXPECT_NE(tableOf(validate(plan(), begun, true)).find("OUT"), std::string::npos);
}

/// The plan is the first rank's, and other ranks of another stretch are told, not taken for it.
TEST(Validation, WhatGoesOverTheHostLinkIsTheFirstRanks)
{
    Measurement other = measurement();
    other.ranks[1].deviceToHost = Bytes(8);
    EXPECT_TRUE(within(other));
    EXPECT_NE(tableOf(validate(plan(), other, true)).find("rank 1; the plan is that of rank 0"), std::string::npos);
    std::swap(other.ranks[0], other.ranks[1]);
    EXPECT_TRUE(within(other)); // in whatever order they were measured
    Measurement first = measurement();
    first.ranks[0].hostToDevice = Bytes(8);
    EXPECT_FALSE(within(first));
}

/// A plan that says what each rank moves holds each to its own: rank 0 moves 8 bytes, the ranks from 1 on 6.
TEST(Validation, EveryRankIsHeldToWhatThePlanSaysOfIt)
{
    ExecutablePlan each = plan();
    Json& traffic = each.prediction["traffic"];
    traffic["device_to_host_bytes"] = 8;
    traffic["host_link_by_rank"] =
        Json::array({{{"from_rank", 0}, {"host_to_device_bytes", 0}, {"device_to_host_bytes", 8}},
                     {{"from_rank", 1}, {"host_to_device_bytes", 0}, {"device_to_host_bytes", 6}}});
    Measurement moved = measurement();
    moved.ranks.push_back(moved.ranks[1]);
    moved.ranks[2].rank = 2;
    moved.ranks[0].deviceToHost = Bytes(8);
    moved.ranks[1].deviceToHost = moved.ranks[2].deviceToHost = Bytes(6);
    EXPECT_TRUE(validate(each, moved, true).within()) << tableOf(validate(each, moved, true));
    moved.ranks[2].deviceToHost = Bytes(8);
    EXPECT_FALSE(validate(each, moved, true).within());
    moved.ranks[2].deviceToHost = Bytes(6);
    moved.ranks[1].hostToDevice = Bytes(1);
    EXPECT_FALSE(validate(each, moved, true).within());
}

/// 13 planned, 14 measured: two calls of two ways around are rounded by less than four bytes, and what was measured is
/// what the row says.
TEST(Validation, SentBytesPartByLessThanAByteACallAndWay)
{
    const ValidationReport report = validate(plan(), measurement(), true);
    const auto row = std::find_if(report.rows.begin(), report.rows.end(), [](const ValidationRow& each) {
        return each.quantity.find("sent") != std::string::npos;
    });
    ASSERT_NE(row, report.rows.end());
    EXPECT_EQ(row->predicted, 13);
    EXPECT_EQ(row->measured, 14);
    EXPECT_TRUE(row->within());
    Measurement off = measurement();
    for (RankMeasurement& rank : off.ranks)
        rank.collectives[0].sentBytes = Bytes(17);
    EXPECT_FALSE(within(off));
}

TEST(Measurements, AreReadAsTheyWereWritten)
{
    Measurement written = measurement();
    written.scenario = "by hand";
    written.losses = {2.5, 2.25};
    written.stepSeconds = {1, 1};
    written.firstSteadyStep = 12;
    const std::string path = testing::TempDir() + "measurement-" + std::to_string(::getpid()) + ".json";
    std::ofstream(path) << toJson(written).dump();
    EXPECT_EQ(toJson(readMeasurement(path)), toJson(written));
    std::ofstream(path) << R"({"kind": "shardwright-measurement", "version": 99})";
    EXPECT_THROW(readMeasurement(path), InputError);
    std::remove(path.c_str());
}

} // namespace
} // namespace shardwright
