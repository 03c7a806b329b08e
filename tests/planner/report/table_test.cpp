#include <gtest/gtest.h>

#include "planner/report/number_format.hpp"
#include "planner/report/table.hpp"
#include "planner/report/terminal.hpp"
#include "planner/report/text_width.hpp"

namespace shardwright {
namespace {

Table smallTable()
{
    Table table({{"name", "", Align::Left, 4, 0},
                 {"memory", "GiB", Align::Right, 0, 0},
                 {"Ψ", "", Align::Right, 0, 1},
                 {"note", "", Align::Left, 0, 2}});
    table.addRow({"ddp", "90.00", "2.00", "replicas"});
    table.addRow({"fully-sharded", "7.25", "3.00", "a, \"b\""});
    return table;
}

TEST(Table, AlignsWordsLeftAndNumbersRight)
{
    EXPECT_EQ(smallTable().text({}), "name           memory     Ψ  note\n"
                                     "                  GiB\n"
                                     "ddp             90.00  2.00  replicas\n"
                                     "fully-sharded    7.25  3.00  a, \"b\"\n");
}

TEST(Table, CutsThenDropsColumnsWhereTheTerminalIsNarrow)
{
    // Natural width 37 = 13+6+4+8 and three gaps; 30 is reached by cutting names to 6.
    EXPECT_EQ(smallTable().text({false, true, 30}), "name    memory     Ψ  note\n"
                                                    "           GiB\n"
                                                    "ddp      90.00  2.00  replicas\n"
                                                    "fully…    7.25  3.00  a, \"b\"\n");
    // 16: without the last two columns 21 = 13+6 and a gap remain, so names are cut to 8.
    EXPECT_EQ(smallTable().text({false, false, 16}), "name      memory\n"
                                                     "             GiB\n"
                                                     "ddp        90.00\n"
                                                     "fully-s~    7.25\n"
                                                     "no room for: Ψ,\n"
                                                     "note\n");
}

TEST(Table, ContinuesCellsThatWrap)
{
    Table table({{"n", "", Align::Right, 0, 0}, {"why", "", Align::Left, 5, 0, true}});
    table.addRow({"1", "because it is so"});
    table.addRow({"2", "x"});
    EXPECT_EQ(table.text({false, false, 11}), "n  why\n"
                                              "1  because\n"
                                              "   it is so\n"
                                              "2  x\n");
}

TEST(Table, CsvQuotesWhatMustBeQuoted)
{
    EXPECT_EQ(smallTable().csv(), "name,memory [GiB],Ψ,note\n"
                                  "ddp,90.00,2.00,replicas\n"
                                  "fully-sharded,7.25,3.00,\"a, \"\"b\"\"\"\n");
    EXPECT_EQ(csvField("two\nlines"), "\"two\nlines\"");
}

TEST(Table, ColourDoesNotMoveColumns)
{
    Table table({{"a", "", Align::Left, 0, 0}, {"b", "", Align::Right, 0, 0}});
    table.addRow({Cell("x", Ink::Good), Cell("1", Ink::Bad)});
    table.addRow({"long", "22"});
    std::string coloured = table.text({true, true, 0});
    for (std::size_t escape = coloured.find('\x1b'); escape != std::string::npos; escape = coloured.find('\x1b'))
        coloured.erase(escape, coloured.find('m', escape) - escape + 1);
    EXPECT_EQ(coloured, table.text({false, true, 0}));
}

TEST(Table, ANameCannotSteerTheTerminal)
{
    Table table({{"name", "", Align::Left, 0, 0}});
    table.addRow({"evil\x1b[2J\nname"});
    EXPECT_EQ(table.text({}), "name\nevil?[2J?name\n");
}

TEST(TextWidth, CountsColumnsNotBytes)
{
    EXPECT_EQ(displayWidth("Ψ"), 1);
    EXPECT_EQ(displayWidth("e\xcc\x81"), 1);            // e and a combining acute accent
    EXPECT_EQ(displayWidth("\xe6\xa8\xa1"), 2);         // a wide ideograph
    EXPECT_EQ(displayWidth("\x1b[1;31mred\x1b[0m"), 3); // colour takes no room
    EXPECT_EQ(displayWidth("\xff\xc3"), 2);             // not UTF-8: a column per byte
    EXPECT_EQ(truncateToWidth("\xe6\xa8\xa1\xe6\xa8\xa1", 3, "~"), "\xe6\xa8\xa1~");
    EXPECT_EQ(truncateToWidth("abc", 3, "~"), "abc");
}

TEST(TextWidth, WrapsAtWords)
{
    EXPECT_EQ(wrapWords("one two  three", 7), (std::vector<std::string>{"one two", "three"}));
    EXPECT_EQ(wrapWords("an incomprehensible it is", 8),
              (std::vector<std::string>{"an", "incompre", "hensible", "it is"}));
    EXPECT_EQ(wrapWords("", 5), std::vector<std::string>{});
}

TEST(NumberFormat, SmallIsNotZeroAndUnitsDiffer)
{
    EXPECT_EQ(gibibytes(1_GiB), "1.00");
    EXPECT_EQ(gigabytes(1_GiB), "1.07");
    EXPECT_EQ(gibibytes(1_B), "<0.01");
    EXPECT_EQ(gibibytes(0_B), "0");
    EXPECT_EQ(hundredths(0.005), "0.01");
    EXPECT_EQ(percentOf(1_GiB, 0_B), "-");
    EXPECT_EQ(percentOf(3_GiB, 2_GiB), "150 %");
    EXPECT_EQ(grouped(6738415616), "6,738,415,616");
    EXPECT_EQ(grouped(-1234), "-1,234");
    EXPECT_EQ(grouped(100), "100");
    EXPECT_EQ(spokenCount(6738415616), "6.74 billion");
    EXPECT_EQ(spokenCount(176247271424), "176.2 billion");
}

TEST(OutputStyle, ColourNeedsATerminalUnlessAskedFor)
{
    OutputFacts facts;
    facts.isTerminal = true;
    facts.columns = 132;
    facts.terminalType = "xterm-256color";
    facts.locale = "en_GB.utf8";
    EXPECT_TRUE(chooseStyle(facts, ColourChoice::Auto).colour);
    EXPECT_TRUE(chooseStyle(facts, ColourChoice::Auto).unicode);
    EXPECT_EQ(chooseStyle(facts, ColourChoice::Auto).width, 132);
    EXPECT_FALSE(chooseStyle(facts, ColourChoice::Never).colour);

    facts.noColour = true;
    EXPECT_FALSE(chooseStyle(facts, ColourChoice::Auto).colour);
    EXPECT_TRUE(chooseStyle(facts, ColourChoice::Always).colour);

    OutputFacts pipe = facts;
    pipe.noColour = false;
    pipe.isTerminal = false;
    pipe.locale = "C";
    EXPECT_FALSE(chooseStyle(pipe, ColourChoice::Auto).colour);
    EXPECT_FALSE(chooseStyle(pipe, ColourChoice::Auto).unicode);
    EXPECT_EQ(chooseStyle(pipe, ColourChoice::Auto).width, 0);
}

} // namespace
} // namespace shardwright
