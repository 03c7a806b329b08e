#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/cli/long_run.hpp"
#include "core/cli/streams.hpp"
#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/line_reader.hpp"
#include "planner/cli/output.hpp"
#include "planner/cli/planning.hpp"
#include "planner/recommendation.hpp"
#include "planner/report/result_json.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardplan batch scenarios.jsonl
  shardplan batch scenarios.jsonl --no-suggestions
  shardplan batch - < scenarios.jsonl

Reads JSON Lines: one scenario a line, in the format of scenarios/*.json. Writes one result a line as soon as it is
known, with "line", the number of the line it answers. A line that is wrong gives
  {"line": n, "error": {"findings": [{"file", "place", "what", "expected"}]}}
and the run goes on; the exit code is then 1.
Ctrl-C ends after the current line, with exit code 130. Empty lines are skipped.)";

struct Options {
    std::string file;
    bool noSuggestions = false;
};

std::string progressText(std::int64_t done, std::int64_t failed)
{
    return fmt::format("{} done, {} failed", done, failed);
}

Json errorLine(std::int64_t number, const std::vector<Finding>& findings)
{
    Json list = Json::array();
    for (const Finding& finding : findings)
        list.push_back(
            {{"file", finding.file}, {"place", finding.place}, {"what", finding.what}, {"expected", finding.expected}});
    return {{"line", number}, {"error", {{"findings", list}}}};
}

Json resultLine(std::int64_t number, const std::string& text, const std::string& file, const PlanDetail& detail)
{
    const Json json = parseJson(text, file);
    Scenario scenario = scenarioFromJson(json, file);
    if (!json.contains("name"))
        scenario.name = fmt::format("line {}", number);
    const std::vector<Plan> plans = plansOf(scenario, detail);
    Json line{{"line", number}};
    line.update(resultToJson(scenario, plans, recommendation(scenario, plans)));
    return line;
}

class Batch {
public:
    Batch(const Options& options, std::string name) : m_name(std::move(name))
    {
        m_detail.curve = false;
        m_detail.suggest = !options.noSuggestions;
    }

    bool failed() const { return m_failed > 0; }

    void run(LineReader& reader)
    {
        std::string text;
        for (;;) {
            const LineReader::Outcome outcome = reader.next(text);
            if (outcome == LineReader::Outcome::End || outcome == LineReader::Outcome::Stopped)
                break;
            ++m_number;
            if (outcome == LineReader::Outcome::TooLong)
                fail({{place(), "", "is longer than 64 MiB", "one scenario a line"}});
            else if (text.find_first_not_of(" \t\r") != std::string::npos)
                answer(text);
            m_progress.show(progressText(m_done, m_failed));
        }
        m_progress.finish(progressText(m_done, m_failed));
    }

private:
    std::string place() const { return fmt::format("{}:{}", m_name, m_number); }

    void answer(const std::string& text)
    {
        Json line;
        try {
            line = resultLine(m_number, text, place(), m_detail);
        } catch (const InputError& error) {
            fail(error.findings());
            return;
        } catch (const NumberTooLarge& error) {
            fail({{place(), "", fmt::format("its numbers leave 64 bits ({})", error.what()), "smaller numbers"}});
            return;
        }
        printOut(jsonText(line, -1) + '\n');
        ++m_done;
    }

    void fail(const std::vector<Finding>& findings)
    {
        printOut(jsonText(errorLine(m_number, findings), -1) + '\n');
        ++m_failed;
    }

    std::string m_name;
    PlanDetail m_detail;
    ProgressLine m_progress{kProgressPause};
    std::int64_t m_number = 0;
    std::int64_t m_done = 0;
    std::int64_t m_failed = 0;
};

ExitCode batch(const Options& options)
{
    const StopOnSignal stopOnSignal;
    LineReader reader(options.file, stopRequested);
    Batch run(options, options.file == "-" ? "standard input" : options.file);
    run.run(reader);
    if (stopRequested)
        return ExitCode::Interrupted;
    return run.failed() ? ExitCode::No : ExitCode::Done;
}

} // namespace

Command addBatch(CLI::App& root, Findings&)
{
    auto options = std::make_shared<Options>();
    CLI::App* app = root.add_subcommand("batch", "Many scenarios: one a line in, one result a line out");
    app->footer(kHelp);
    app->add_option("file", options->file, "JSON Lines, or - for standard input")->type_name("FILE")->required();
    app->add_flag("--no-suggestions", options->noSuggestions, "do not look for what would make a plan fit: faster");
    return {app, [options] { return batch(*options); }};
}

} // namespace shardwright::cli
