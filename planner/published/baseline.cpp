#include "planner/published/baseline.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include <fmt/format.h>

#include "core/catalogue.hpp"
#include "core/json_cursor.hpp"

namespace shardwright {

namespace {

constexpr const char* kSchema = "shardwright-ledger-baseline/1";

constexpr double kLargestError = 1e9;

double roundedUp(double share)
{
    constexpr double kStep = 1e4;
    return std::ceil(share * kStep) / kStep;
}

std::optional<BaselineErrors> errorsOf(const ErrorStatistics& statistics)
{
    if (!statistics.median)
        return std::nullopt;
    return BaselineErrors{statistics.compared, roundedUp(*statistics.median), roundedUp(*statistics.worst)};
}

Json toJson(const BaselineErrors& errors)
{
    return {{"compared", errors.compared}, {"median_error", errors.median}, {"worst_error", errors.worst}};
}

BaselineErrors errorsFromJson(const JsonCursor& cursor)
{
    BaselineErrors errors;
    if (!cursor.expectObject())
        return errors;
    cursor.rejectUnknownKeys({"compared", "median_error", "worst_error"});
    cursor.read("compared", errors.compared, 1);
    cursor.read("median_error", errors.median, 0, kLargestError);
    cursor.read("worst_error", errors.worst, 0, kLargestError);
    return errors;
}

BaselineSource sourceFromJson(const JsonCursor& cursor)
{
    BaselineSource source;
    if (!cursor.expectObject())
        return source;
    cursor.rejectUnknownKeys({"source", "memory", "time", "verdicts_right"});
    if (cursor.require("source", "the name of a file of scenarios/published/"))
        cursor.read("source", source.name);
    if (const auto memory = cursor.find("memory"))
        source.memory = errorsFromJson(*memory);
    if (const auto time = cursor.find("time"))
        source.time = errorsFromJson(*time);
    cursor.read("verdicts_right", source.verdictsRight, 0);
    return source;
}

void compareErrors(const std::string& what, const std::optional<BaselineErrors>& committed, const ErrorStatistics& now,
                   std::vector<std::string>& worse)
{
    if (!committed)
        return;
    if (now.compared < committed->compared)
        worse.push_back(fmt::format("{}: {} figures compared, {} committed", what, now.compared, committed->compared));
    if (now.median && *now.median > committed->median)
        worse.push_back(fmt::format("{}: median error {:.2f} %, {:.2f} % committed", what, *now.median * 100,
                                    committed->median * 100));
    if (now.worst && *now.worst > committed->worst)
        worse.push_back(fmt::format("{}: worst error {:.2f} %, {:.2f} % committed", what, *now.worst * 100,
                                    committed->worst * 100));
}

} // namespace

Baseline baselineOf(const Ledger& ledger)
{
    Baseline baseline;
    for (const LedgerSource& source : ledger.sources)
        baseline.push_back({source.name, errorsOf(source.memory), errorsOf(source.time), source.verdictsRight});
    return baseline;
}

Json toJson(const Baseline& baseline)
{
    Json json{{"schema", kSchema}, {"sources", Json::array()}};
    for (const BaselineSource& source : baseline) {
        Json entry{{"source", source.name}};
        if (source.memory)
            entry["memory"] = toJson(*source.memory);
        if (source.time)
            entry["time"] = toJson(*source.time);
        if (source.verdictsRight > 0)
            entry["verdicts_right"] = source.verdictsRight;
        json["sources"].push_back(std::move(entry));
    }
    return json;
}

Baseline baselineFromJson(const Json& json, const std::string& file)
{
    Findings findings(file);
    const JsonCursor root(json, findings);
    Baseline baseline;
    if (root.expectObject()) {
        root.rejectUnknownKeys({"schema", "sources"});
        const std::string schema = std::string("\"") + kSchema + "\"";
        if (const auto found = root.require("schema", schema); found && found->json() != kSchema)
            found->complain("is another format", schema);
        if (const auto sources = root.require("sources", "a list"); sources && sources->expectArray())
            for (const JsonCursor& element : sources->elements())
                baseline.push_back(sourceFromJson(element));
    }
    findings.throwIfAny();
    return baseline;
}

std::string baselineFile()
{
    return (std::filesystem::path(homeFolder()) / "scenarios" / "ledger" / "baseline.json").string();
}

std::vector<std::string> worseThan(const Baseline& baseline, const Ledger& ledger)
{
    std::vector<std::string> worse;
    for (const BaselineSource& committed : baseline) {
        const auto now = std::find_if(ledger.sources.begin(), ledger.sources.end(),
                                      [&](const LedgerSource& source) { return source.name == committed.name; });
        if (now == ledger.sources.end()) {
            worse.push_back(committed.name + ": is gone");
            continue;
        }
        compareErrors(committed.name + ", memory", committed.memory, now->memory, worse);
        compareErrors(committed.name + ", step time", committed.time, now->time, worse);
        if (now->verdictsRight < committed.verdictsRight)
            worse.push_back(fmt::format("{}: {} verdicts right, {} committed", committed.name, now->verdictsRight,
                                        committed.verdictsRight));
    }
    return worse;
}

} // namespace shardwright
