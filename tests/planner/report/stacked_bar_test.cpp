#include <numeric>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "planner/report/stacked_bar.hpp"
#include "planner/report/text_width.hpp"

namespace shardwright {
namespace {

const std::vector<Part> kParts{{'a', Ink::Blue}, {'b', Ink::Red}, {'c', Ink::Green}};

BarScale scaleOf(double capacity)
{
    BarScale scale;
    scale.capacity = capacity;
    scale.cells = 12;
    scale.capacityCell = 9;
    return scale;
}

TEST(StackedBar, DrawsEachPartToScaleWithAMarkAtTheCapacity)
{
    // 9 cells for 90: one cell is 10.
    EXPECT_EQ(stackedBar({}, kParts, {30, 20, 10}, scaleOf(90)), "aaabbc   |   ");
    EXPECT_EQ(stackedBar({}, kParts, {30, 20, 60}, scaleOf(90)), "aaabbcccc|cc ");
    EXPECT_EQ(stackedBar({}, kParts, {30, 20, 500}, scaleOf(90)), "aaabbcccc|cc>");
    EXPECT_EQ(stackedBar({}, kParts, {0, 0, 0}, scaleOf(90)), "         |   ");
}

TEST(StackedBar, ColourReplacesLetters)
{
    const std::string bar = stackedBar({true, true, 0}, kParts, {30, 20, 10}, scaleOf(90));
    EXPECT_EQ(bar.find('a'), std::string::npos);
    EXPECT_NE(bar.find("\x1b[34m███\x1b[0m"), std::string::npos) << bar;
    EXPECT_EQ(displayWidth(bar), 13);
}

RC_GTEST_PROP(StackedBar, FillsTheWholeToHalfACellWhateverTheParts, ())
{
    const auto values = *rc::gen::container<std::vector<int>>(3, rc::gen::inRange(0, 40));
    const std::vector<double> parts(values.begin(), values.end());
    const std::string bar = stackedBar({}, kParts, parts, scaleOf(90));
    RC_ASSERT(displayWidth(bar) == 13);
    const auto filled =
        static_cast<double>(std::count_if(bar.begin(), bar.end(), [](char c) { return c >= 'a' && c <= 'c'; }));
    const double whole = std::accumulate(parts.begin(), parts.end(), 0.0);
    RC_ASSERT(std::abs(filled - whole / 10) <= 0.5);
}

TEST(StackedChart, DrawsStacksUpwardsWithMarksAndCapacity)
{
    Chart chart;
    chart.parts = kParts;
    chart.columns = {{10, 0, 0}, {10, 20, 0}, {10, 20, 10}, {10, 0, 0}};
    chart.marks = {{0, "up"}, {2, "down"}};
    chart.capacity = 45; // above the curve by an eighth: drawn
    chart.unit = 10;
    chart.unitName = "tens";
    chart.height = 9; // of 45: one cell is 5
    EXPECT_EQ(stackedChart({}, chart), "     4.50 |---- capacity\n"
                                       "     4.00 |  c\n"
                                       "     3.50 |  c\n"
                                       "     3.00 | bb\n"
                                       "     2.50 | bb\n"
                                       "     2.00 | bb\n"
                                       "     1.50 | bb\n"
                                       "     1.00 |aaaa\n"
                                       "     0.50 |aaaa\n"
                                       "     tens +----\n"
                                       "           |u|d\n");
}

TEST(StackedChart, JoinsColumnsWithoutLosingThePeak)
{
    Chart chart;
    chart.parts = kParts;
    chart.columns.assign(1000, {1, 0, 0});
    chart.columns[617] = {1, 9, 0};
    chart.width = 10;
    chart.height = 10;
    const std::string text = stackedChart({}, chart);
    EXPECT_NE(text.find("    10.00 |      b\n"), std::string::npos) << text; // 617 of 1000 is in the seventh tenth
}

} // namespace
} // namespace shardwright
