#include <sstream>

#include <gtest/gtest.h>

#include "planner/report/compare_report.hpp"
#include "planner/report/text_width.hpp"
#include "tests/golden.hpp"
#include "tests/planner/report/sample_plans.hpp"

namespace shardwright {
namespace {

using namespace testing;

const Recommendation kRecommendation{"deepspeed-zero3-offload-nvme", "It is the only one that fits."};

TEST(CompareText, ReadsAsAPersonSawIt)
{
    expectGolden("planner/golden/report/compare_ascii.txt",
                 compareText(sampleScenario(), samplePlans(), kRecommendation, {}));
    expectGolden("planner/golden/report/compare_colour.txt",
                 compareText(sampleScenario(), samplePlans(), kRecommendation, {true, true, 160}));
}

TEST(CompareText, StaysWithinTheTerminal)
{
    for (const int width : {70, 80, 100, 120, 200}) {
        std::istringstream lines(compareText(sampleScenario(), samplePlans(), kRecommendation, {true, true, width}));
        std::string line;
        while (std::getline(lines, line))
            EXPECT_LE(displayWidth(line), width) << line;
    }
}

TEST(CompareText, SaysThatNothingFitsOnlyWhenNothingDoes)
{
    const std::string none = compareText(sampleScenario(), {sampleTooLargePlan()}, std::nullopt, {});
    EXPECT_NE(none.find("recommended: nothing, no plan fits"), std::string::npos);
    EXPECT_EQ(compareText(sampleScenario(), samplePlans(), std::nullopt, {}).find("recommended"), std::string::npos);
}

TEST(CompareTable, LeavesOutWhatNoPlanUses)
{
    const std::string text = compareTable({sampleTooLargePlan()}, std::nullopt, {}).text({});
    EXPECT_EQ(text.find("NVMe"), std::string::npos);
    EXPECT_EQ(text.find("host"), std::string::npos);
    EXPECT_NE(text.find("between nodes"), std::string::npos);
}

} // namespace
} // namespace shardwright
