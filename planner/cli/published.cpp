#include "planner/cli/published.hpp"

#include "core/json_cursor.hpp"
#include "planner/published/comparison.hpp"
#include "planner/published/published_files.hpp"
#include "planner/published/published_report.hpp"
#include "planner/report/result_json.hpp"

namespace shardwright::cli {

ExitCode comparePublishedFigures(const std::vector<std::string>& files, const std::vector<std::string>& flags,
                                 const OutputOptions& output)
{
    Findings findings("command line");
    for (const std::string& flag : flags)
        findings.add(flag, "changes the question that the published figures answer", "--published without it");
    findings.throwIfAny();
    std::vector<FigureComparison> figures;
    for (const std::string& file : files.empty() ? publishedFiles() : files)
        for (const Scenario& scenario : readPublishedFile(file))
            for (FigureComparison& figure : comparePublished(scenario))
                figures.push_back(std::move(figure));
    const bool everything = !files.empty();
    switch (output.format()) {
    case Format::Text: output.write(publishedText(figures, output.style(), everything)); break;
    case Format::Json: output.write(jsonText(publishedToJson(figures)) + '\n'); break;
    case Format::Csv: output.write(publishedTable(figures).csv()); break;
    }
    return ExitCode::Done;
}

} // namespace shardwright::cli
