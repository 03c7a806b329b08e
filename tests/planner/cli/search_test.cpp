// `shardplan search` as people run it.

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "tests/planner/cli/process.hpp"

namespace shardwright {

namespace {

using testing::kScenario7b;
using testing::Ran;
using testing::shardplan;
using testing::shardplanJson;

TEST(SearchCommandTest, TheAnswerDoesNotDependOnTheThreads)
{
    const std::vector<std::string> question{"search", kScenario7b, "--gradient-accumulation", "4", "--format", "json"};
    const auto with = [&](const char* threads) {
        std::vector<std::string> arguments = question;
        arguments.insert(arguments.end(), {"--threads", threads});
        return shardplan(arguments).out;
    };
    const std::string one = with("1");
    EXPECT_FALSE(one.empty());
    EXPECT_EQ(with("3"), one);
}

/// The best saved as a scenario is planned by compare with the very figures that search showed.
TEST(SearchCommandTest, CompareSaysTheSameOfTheBest)
{
    const TemporaryFolder folder;
    const std::string best = folder.file("best.json");
    const Json found = shardplanJson({"search", kScenario7b, "--format", "json", "--save-best", best});
    ASSERT_TRUE(found["proven"]);
    ASSERT_EQ(found["answers"].size(), 10u);
    const Json& plan = found["answers"][0]["plan"];
    const Json compared = shardplanJson({"compare", best, "--format", "json"})["plans"][0];
    EXPECT_EQ(compared["step"], plan["step"]);
    EXPECT_EQ(compared["gpu"], plan["gpu"]);
    EXPECT_EQ(compared["strategy"], plan["strategy"]);
    for (const Json& answer : found["answers"])
        EXPECT_GE(answer["plan"]["step"]["seconds"], plan["step"]["seconds"]);
}

/// On the front each needs less memory than the next faster one, and none is beaten in both.
TEST(SearchCommandTest, AFrontTradesMemoryForTime)
{
    const Json answers =
        shardplanJson({"search", kScenario7b, "--pareto", "memory,time", "--format", "json"})["answers"];
    ASSERT_GT(answers.size(), 1u);
    for (std::size_t i = 1; i < answers.size(); ++i) {
        EXPECT_GT(answers[i]["plan"]["gpu"]["peak_used_bytes"], answers[i - 1]["plan"]["gpu"]["peak_used_bytes"]);
        EXPECT_LT(answers[i]["plan"]["step"]["seconds"], answers[i - 1]["plan"]["step"]["seconds"]);
    }
}

TEST(SearchCommandTest, EveryRejectedCandidateHasAReason)
{
    const Json json = shardplanJson({"search", kScenario7b, "--explain-rejected", "--top", "1000", "--format", "json"});
    std::int64_t rejected = 0;
    for (const Json& reason : json["rejected"])
        rejected += reason["candidates"].get<std::int64_t>();
    EXPECT_EQ(json["candidates"]["declared"], rejected + std::int64_t(json["answers"].size()));
    EXPECT_EQ(json["candidates"]["ruled_out_by_bound"], 0);
}

TEST(SearchCommandTest, APrintedSpaceSearchesTheSame)
{
    const TemporaryFolder folder;
    const Ran printed = shardplan({"search", kScenario7b, "--print-space"});
    EXPECT_EQ(printed.exitCode, 0);
    const std::string space = folder.write("space.json", printed.out);
    const std::string declared = shardplan({"search", kScenario7b, "--space", space, "--format", "json"}).out;
    EXPECT_EQ(declared, shardplan({"search", kScenario7b, "--format", "json"}).out);
}

TEST(SearchCommandTest, NothingThatFitsIsNo)
{
    const TemporaryFolder folder;
    const std::string space = folder.write("space.json", R"({"schema": "shardwright-space/1", "frameworks": ["ddp"]})");
    const Ran none = shardplan({"search", "--model", "llama-2-70b", "--cluster", "dgx-a100-80gb", "--space", space});
    EXPECT_EQ(none.exitCode, 1);
    EXPECT_NE(none.out.find("nothing in the declared space fits"), std::string::npos) << none.out;
}

TEST(SearchCommandTest, WrongFlagsAreToldAtOnce)
{
    const Ran wrong = shardplan({"search", kScenario7b, "--objective", "fastest", "--pareto", "money"});
    EXPECT_EQ(wrong.exitCode, 2);
    EXPECT_NE(wrong.err.find("--objective"), std::string::npos) << wrong.err;
    EXPECT_NE(wrong.err.find("--pareto"), std::string::npos) << wrong.err;
}

TEST(SearchCommandTest, CsvHasALinePerAnswer)
{
    const Ran csv = shardplan({"search", kScenario7b, "--top", "3", "--format", "csv"});
    EXPECT_EQ(testing::lines(csv.out).size(), 4u) << csv.out;
}

TEST(SearchCommandTest, TheLongestSequenceIsAnswered)
{
    const Json json = shardplanJson({"search", kScenario7b, "--objective", "longest-sequence", "--format", "json"});
    EXPECT_TRUE(json["proven"]);
    EXPECT_GT(json["value"], 8192);
    EXPECT_FALSE(json["at_end_of_range"]);
    EXPECT_FALSE(json["answers"].empty());
}

} // namespace

} // namespace shardwright
