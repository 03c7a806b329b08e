#include "planner/published/ledger_report.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "core/plain_text.hpp"
#include "planner/published/published_report.hpp"
#include "planner/report/number_format.hpp"
#include "planner/report/text_width.hpp"

namespace shardwright {

namespace {

std::string percent(const std::optional<double>& share)
{
    return share ? fmt::format("{:.1f} %", *share * 100) : "-";
}

std::string signedPercent(const std::optional<double>& share)
{
    return share ? fmt::format("{:+.1f} %", *share * 100) : "-";
}

std::string count(std::int64_t number)
{
    return number > 0 ? std::to_string(number) : "-";
}

const ErrorStatistics& statisticsOf(const LedgerSource& source, LedgerQuantity quantity)
{
    return quantity == LedgerQuantity::Memory ? source.memory : source.time;
}

/// "Calculon: mean 3.65 %, worst 8.87 %".
std::string claimText(const PeerClaim& claim)
{
    std::string text = claim.peer + ":";
    if (claim.mean)
        text += fmt::format(" mean {:.2f} %", *claim.mean * 100);
    if (claim.worst)
        text += fmt::format("{} worst {:.2f} %", claim.mean ? "," : "", *claim.worst * 100);
    return text;
}

std::string claimsText(const LedgerSource& source, LedgerQuantity quantity)
{
    std::string text;
    for (const PeerClaim& claim : source.peers)
        if (claim.quantity == quantity)
            text += (text.empty() ? "" : "; ") + claimText(claim);
    return text;
}

void addRow(Table& table, const LedgerSource& source, LedgerQuantity quantity, Ink ink)
{
    const ErrorStatistics& errors = statisticsOf(source, quantity);
    std::vector<Cell> cells{Cell(source.name, ink),          Cell(count(errors.figures)),
                            Cell(count(errors.compared)),    Cell(percent(errors.median), ink),
                            Cell(percent(errors.mean)),      Cell(percent(errors.worst)),
                            Cell(signedPercent(errors.bias))};
    if (quantity == LedgerQuantity::Memory)
        cells.emplace_back(source.verdicts > 0 ? fmt::format("{} of {}", source.verdictsRight, source.verdicts) : "-",
                           source.verdictsRight < source.verdicts ? Ink::Bad : Ink::Plain);
    cells.emplace_back(claimsText(source, quantity));
    table.addRow(std::move(cells));
}

bool hasAny(const LedgerSource& source, LedgerQuantity quantity)
{
    return statisticsOf(source, quantity).figures > 0 || (quantity == LedgerQuantity::Memory && source.verdicts > 0);
}

std::string paragraph(const std::string& text, const OutputStyle& style, int indent)
{
    std::string result;
    const int width = style.width > 0 ? std::max(20, style.width - indent) : 0;
    for (const std::string& line : wrapWords(withoutControls(text), width))
        result += std::string(static_cast<std::size_t>(indent), ' ') + line + '\n';
    return result;
}

/// Why figures are not planned, with how many each.
std::string refusals(const Ledger& ledger, const OutputStyle& style)
{
    std::vector<std::pair<std::string, std::int64_t>> reasons;
    for (const LedgerRow& row : ledger.rows) {
        if (row.figure.outcome != FigureOutcome::NotPossible)
            continue;
        const auto known = std::find_if(reasons.begin(), reasons.end(),
                                        [&](const auto& entry) { return entry.first == row.figure.note; });
        if (known == reasons.end())
            reasons.emplace_back(row.figure.note, 1);
        else
            ++known->second;
    }
    std::string text;
    for (const auto& [reason, figures] : reasons)
        text += paragraph(fmt::format("{} not possible: {}", figures, reason), style, 4);
    return text.empty() ? text : "\nfigures that cannot be planned\n" + text;
}

std::string origins(const Ledger& ledger, const OutputStyle& style)
{
    std::string text;
    for (const LedgerSource& source : ledger.sources)
        for (const PeerClaim& claim : source.peers)
            text += paragraph(fmt::format("{} ({} of {}): {}", claim.peer,
                                          claim.quantity == LedgerQuantity::Memory ? "memory" : "step time",
                                          source.name, claim.origin),
                              style, 4);
    return text.empty() ? text : "\npeers' figures, as they publish them\n" + text;
}

Json orNull(const std::optional<double>& value)
{
    return value ? Json(*value) : Json(nullptr);
}

Json statisticsJson(const ErrorStatistics& errors)
{
    return {{"figures", errors.figures},
            {"compared", errors.compared},
            {"not_possible", errors.refused},
            {"not_predicted", errors.notPredicted},
            {"cannot_be_right", errors.cannotBeRight},
            {"median_error", orNull(errors.median)},
            {"mean_error", orNull(errors.mean)},
            {"worst_error", orNull(errors.worst)},
            {"bias", orNull(errors.bias)}};
}

std::string quantityName(LedgerQuantity quantity)
{
    return quantity == LedgerQuantity::Memory ? "memory" : "time";
}

Json sourceJson(const LedgerSource& source)
{
    Json peers = Json::array();
    for (const PeerClaim& claim : source.peers)
        peers.push_back({{"peer", claim.peer},
                         {"quantity", quantityName(claim.quantity)},
                         {"mean_error", orNull(claim.mean)},
                         {"worst_error", orNull(claim.worst)},
                         {"origin", claim.origin}});
    return {
        {"source", source.name},       {"memory", statisticsJson(source.memory)}, {"time", statisticsJson(source.time)},
        {"verdicts", source.verdicts}, {"verdicts_right", source.verdictsRight},  {"peers", std::move(peers)}};
}

std::vector<FigureComparison> figuresOf(const Ledger& ledger)
{
    std::vector<FigureComparison> figures;
    for (const LedgerRow& row : ledger.rows) {
        const LedgerQuantity quantity = quantityOf(row.figure.kind);
        if (quantity != LedgerQuantity::Memory && quantity != LedgerQuantity::Time)
            continue;
        figures.push_back(row.figure);
        figures.back().source = row.source;
    }
    return figures;
}

} // namespace

Table ledgerTable(const Ledger& ledger, LedgerQuantity quantity)
{
    std::vector<Column> columns{{quantity == LedgerQuantity::Memory ? "memory" : "step time", "", Align::Left, 0, 0},
                                {"figures", "", Align::Right, 0, 3},
                                {"compared", "", Align::Right, 0, 0},
                                {"median", "", Align::Right, 0, 0},
                                {"mean", "", Align::Right, 0, 0},
                                {"worst", "", Align::Right, 0, 0},
                                {"bias", "", Align::Right, 0, 0}};
    if (quantity == LedgerQuantity::Memory)
        columns.push_back({"told to fit or not", "", Align::Right, 0, 2});
    columns.push_back({"peers on the same figures", "", Align::Left, 0, 1});
    Table table(std::move(columns));
    for (const LedgerSource& source : ledger.sources)
        if (hasAny(source, quantity))
            addRow(table, source, quantity, Ink::Plain);
    if (ledger.sources.size() > 1)
        addRow(table, ledger.all, quantity, Ink::Strong);
    return table;
}

Table ledgerRowTable(const Ledger& ledger)
{
    return publishedTable(figuresOf(ledger));
}

std::string ledgerText(const Ledger& ledger, const OutputStyle& style, bool rows)
{
    std::string text;
    if (rows)
        text += ledgerRowTable(ledger).text(style) + '\n';
    const bool memory = std::any_of(ledger.sources.begin(), ledger.sources.end(),
                                    [](const LedgerSource& source) { return hasAny(source, LedgerQuantity::Memory); });
    if (memory)
        text += ledgerTable(ledger, LedgerQuantity::Memory).text(style);
    const bool time = std::any_of(ledger.sources.begin(), ledger.sources.end(),
                                  [](const LedgerSource& source) { return hasAny(source, LedgerQuantity::Time); });
    if (time)
        text += (memory ? "\n" : "") + ledgerTable(ledger, LedgerQuantity::Time).text(style);
    text += '\n' + paragraph("Errors are (predicted - published) / published: the median, mean and largest of their "
                             "sizes, and the mean with sign. Figures that cannot be right are not compared: "
                             "`shardplan compare --published FILE` says why.",
                             style, 0);
    return text + refusals(ledger, style) + origins(ledger, style);
}

Json ledgerToJson(const Ledger& ledger, bool rows)
{
    Json json{{"schema", kLedgerSchema}, {"sources", Json::array()}, {"all", sourceJson(ledger.all)}};
    for (const LedgerSource& source : ledger.sources)
        json["sources"].push_back(sourceJson(source));
    if (rows) {
        json["rows"] = Json::array();
        for (const LedgerRow& row : ledger.rows) {
            Json entry = figureToJson(row.figure);
            entry["file"] = row.source;
            entry["setting"] = nameOf(row.setting);
            json["rows"].push_back(std::move(entry));
        }
    }
    return json;
}

std::string ledgerCsv(const Ledger& ledger, bool rows)
{
    if (rows)
        return ledgerRowTable(ledger).csv();
    std::string text = "source,quantity,figures,compared,not_possible,not_predicted,cannot_be_right,median_error,"
                       "mean_error,worst_error,bias\n";
    const auto number = [](const std::optional<double>& value) { return value ? fmt::format("{}", *value) : ""; };
    const auto addLines = [&](const LedgerSource& source) {
        for (const LedgerQuantity quantity : {LedgerQuantity::Memory, LedgerQuantity::Time}) {
            const ErrorStatistics& errors = statisticsOf(source, quantity);
            if (errors.figures > 0)
                text += fmt::format("{},{},{},{},{},{},{},{},{},{},{}\n", csvField(source.name), quantityName(quantity),
                                    errors.figures, errors.compared, errors.refused, errors.notPredicted,
                                    errors.cannotBeRight, number(errors.median), number(errors.mean),
                                    number(errors.worst), number(errors.bias));
        }
    };
    for (const LedgerSource& source : ledger.sources)
        addLines(source);
    addLines(ledger.all);
    return text;
}

} // namespace shardwright
