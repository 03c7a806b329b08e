#include "planner/cli/rows.hpp"

#include "core/json_cursor.hpp"
#include "planner/report/number_format.hpp"
#include "planner/report/result_json.hpp"
#include "planner/report/table.hpp"

namespace shardwright::cli {

namespace {

enum class Reader : std::uint8_t { Person, Program };

std::string cellText(const Json& value, Reader reader)
{
    if (value.is_null())
        return {};
    if (value.is_string())
        return value.get<std::string>();
    if (reader == Reader::Person && value.is_number_integer())
        return grouped(value.get<std::int64_t>());
    return value.dump();
}

Table tableOf(const std::vector<Json>& rows, Reader reader)
{
    std::vector<Column> columns;
    for (const auto& item : rows.front().items())
        columns.push_back({item.key(), "", item.value().is_string() ? Align::Left : Align::Right, 0, 0});
    Table table(std::move(columns));
    for (const Json& row : rows) {
        std::vector<Cell> cells;
        for (const auto& item : row.items())
            cells.emplace_back(cellText(item.value(), reader));
        table.addRow(std::move(cells));
    }
    return table;
}

} // namespace

void writeRows(const std::vector<Json>& rows, const OutputOptions& output, const std::string& before)
{
    const bool none = rows.empty();
    switch (output.format()) {
    case Format::Text: output.write(before + (none ? "" : tableOf(rows, Reader::Person).text(output.style()))); break;
    case Format::Json: output.write(jsonText(Json(rows)) + '\n'); break;
    case Format::Csv: output.write(none ? "" : tableOf(rows, Reader::Program).csv()); break;
    }
}

} // namespace shardwright::cli
