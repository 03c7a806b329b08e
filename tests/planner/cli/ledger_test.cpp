#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "tests/planner/cli/process.hpp"

namespace shardwright::testing {

namespace {

TEST(CliLedger, TellsTheSameInEveryFormat)
{
    const Json json = shardplanJson({"ledger", "--source", "torchao-training", "--json"});
    EXPECT_EQ(json, shardplanJson({"ledger", "--source", "torchao-training", "--format", "json"}));
    ASSERT_EQ(json["sources"].size(), 1U);
    EXPECT_EQ(json["sources"][0]["source"], "torchao-training");
    EXPECT_EQ(json["sources"][0]["memory"], json["all"]["memory"]);
    const Json rows = shardplanJson({"ledger", "--source", "torchao-training", "--json", "--rows"});
    EXPECT_EQ(rows["rows"].size(), 9U); // memory of six runs, time of the three on H100
    const Ran csv = shardplan({"ledger", "--source", "torchao-training", "--rows", "--format", "csv"});
    EXPECT_EQ(lines(csv.out).size(), 10U);
    const Ran text = shardplan({"ledger", "--source", "torchao-training"});
    EXPECT_EQ(text.exitCode, 0);
    EXPECT_EQ(text.err, ""); // no progress where nobody looks
    EXPECT_NE(text.out.find("\ntorchao-training  "), std::string::npos) << text.out;
}

TEST(CliLedger, NamesTheNearestSource)
{
    const Ran ran = shardplan({"ledger", "--source", "torchao-trainin", "--source", "bloom-a100", "--source", "x"});
    EXPECT_EQ(ran.exitCode, 2);
    EXPECT_NE(ran.err.find("\"torchao-training\" perhaps"), std::string::npos) << ran.err;
    EXPECT_NE(ran.err.find("\"x\" is not a source"), std::string::npos) << ran.err;
    EXPECT_EQ(ran.err.find("bloom-a100\" is"), std::string::npos) << ran.err;
}

} // namespace

} // namespace shardwright::testing
