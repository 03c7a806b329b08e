#include <sstream>

#include <gtest/gtest.h>

#include "planner/report/explain_report.hpp"
#include "planner/report/text_width.hpp"
#include "tests/golden.hpp"
#include "tests/planner/report/sample_plans.hpp"

namespace shardwright {
namespace {

using namespace testing;

TEST(ExplainText, ReadsAsAPersonSawIt)
{
    expectGolden("planner/golden/report/explain_wide.txt", explainText(sampleScenario(), sampleFittingPlan(), {}));
    expectGolden("planner/golden/report/explain_80.txt",
                 explainText(sampleScenario(), sampleFittingPlan(), {false, true, 80}));
}

TEST(ExplainText, StaysWithinTheTerminal)
{
    for (const int width : {80, 100, 140}) {
        std::istringstream lines(explainText(sampleScenario(), sampleFittingPlan(), {true, true, width}));
        std::string line;
        while (std::getline(lines, line))
            EXPECT_LE(displayWidth(line), width) << line;
    }
}

TEST(ExplainText, OfAnImpossiblePlanGivesReasonsAndNoFigures)
{
    const std::string text = explainText(sampleScenario(), sampleImpossiblePlan(), {});
    EXPECT_NE(text.find("not possible"), std::string::npos);
    EXPECT_NE(text.find("gradient scaler"), std::string::npos);
    EXPECT_EQ(text.find("Memory of one GPU"), std::string::npos);
}

TEST(ExplainText, ANegativeHeadroomShows)
{
    EXPECT_NE(explainGpuMemory(sampleScenario(), sampleTooLargePlan(), {}).find("-20.00"), std::string::npos);
}

TEST(ExplainText, LeavesOutSectionsThatHaveNothing)
{
    const std::string text = explainText(sampleScenario(), sampleTooLargePlan(), {});
    EXPECT_EQ(text.find("NVMe\n"), std::string::npos);
    EXPECT_EQ(text.find("Host memory"), std::string::npos);
    EXPECT_EQ(text.find("Assumed"), std::string::npos);
}

} // namespace
} // namespace shardwright
