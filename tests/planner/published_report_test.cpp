#include <algorithm>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "planner/published/published_report.hpp"
#include "tests/paths.hpp"

namespace shardwright {
namespace {

FigureComparison figureOf(const std::string& scenario, MeasuredKind kind, double published,
                          std::optional<double> predicted, FigureOutcome outcome)
{
    FigureComparison figure;
    figure.scenario = scenario;
    figure.strategy = "mine";
    figure.source = "somebody's table";
    figure.kind = kind;
    figure.published = published;
    figure.predicted = predicted;
    if (outcome == FigureOutcome::Predicted)
        figure.error = (*predicted - published) / published;
    figure.outcome = outcome;
    return figure;
}

std::vector<FigureComparison> someFigures()
{
    const double gib = 1024.0 * 1024 * 1024;
    FigureComparison objected =
        figureOf("wrong", MeasuredKind::GpuAllocated, 2 * gib, 8 * gib, FigureOutcome::Predicted);
    objected.objections = {"2.00 GiB are less than the states"};
    return {figureOf("close", MeasuredKind::GpuReserved, 10 * gib, 10.2 * gib, FigureOutcome::Predicted),
            figureOf("ran", MeasuredKind::Fits, 0, 9 * gib, FigureOutcome::ToldRight),
            figureOf("timed", MeasuredKind::StepSeconds, 1.5, std::nullopt, FigureOutcome::NotPredicted), objected};
}

TEST(PublishedReport, showsWhatTellsSomethingAndCountsTheRest)
{
    const std::string text = publishedText(someFigures(), {}, false);
    EXPECT_NE(text.find("10.00"), std::string::npos) << text;
    EXPECT_NE(text.find("10.20"), std::string::npos) << text;
    EXPECT_NE(text.find("+2.0 %"), std::string::npos) << text;
    EXPECT_NE(text.find("wrong, mine, gpu-allocated: cannot be right\n    2.00 GiB are less than the states"),
              std::string::npos)
        << text;
    EXPECT_NE(text.find("1 told right whether they fit, 1 that are not predicted yet"), std::string::npos) << text;
    EXPECT_EQ(text.find("timed"), std::string::npos) << text;
    EXPECT_NE(publishedText(someFigures(), {}, true).find("timed"), std::string::npos);
}

TEST(PublishedReport, jsonKeepsBaseUnitsAndSources)
{
    const Json json = publishedToJson(someFigures());
    EXPECT_EQ(json["schema"], kPublishedSchema);
    ASSERT_EQ(json["figures"].size(), 4U);
    EXPECT_DOUBLE_EQ(json["figures"][0]["published"], 10.0 * 1024 * 1024 * 1024);
    EXPECT_EQ(json["figures"][0]["source"], "somebody's table");
    EXPECT_TRUE(json["figures"][1]["published"].is_null());
    EXPECT_EQ(json["figures"][1]["outcome"], "told-right");
    EXPECT_TRUE(json["figures"][2]["predicted"].is_null());
    EXPECT_EQ(json["all"]["compared"], 1); // the wrong figure does not count
    EXPECT_EQ(json["all"]["cannot_be_right"], 1);
}

TEST(PublishedReport, tablesNameRepositoryAndPath)
{
    auto figures = someFigures();
    figures[0].source = "github.com/pytorch/ao/blob/main/docs/training.md (table 1)";
    const std::string text = publishedText(figures, {}, false);
    EXPECT_NE(text.find("pytorch/ao docs/training.md (table 1)"), std::string::npos) << text;
    EXPECT_EQ(publishedToJson(figures)["figures"][0]["source"], figures[0].source);
}

TEST(PublishedReport, everyFieldOfTheJsonIsDocumented)
{
    const std::string readme = readTextFile(inSource("planner/README.md"));
    const std::string section = readme.substr(readme.find("`shardwright-published/1`"));
    const Json json = publishedToJson(someFigures());
    for (const Json& object : {json, json["figures"][0], json["all"]})
        for (const auto& item : object.items())
            EXPECT_NE(section.find(item.key()), std::string::npos) << item.key();
}

TEST(PublishedReport, csvHasOneLinePerFigure)
{
    const std::string csv = publishedTable(someFigures()).csv();
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 5) << csv;
    EXPECT_NE(csv.find("cannot be right"), std::string::npos);
}

} // namespace
} // namespace shardwright
