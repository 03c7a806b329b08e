#include "planner/report/stacked_bar.hpp"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "planner/report/text_width.hpp"

namespace shardwright {

namespace {

constexpr std::size_t kNoPart = std::numeric_limits<std::size_t>::max();

/// Part that stands in each of `cells` cells of `cellSize` units, kNoPart beyond the stack.
std::vector<std::size_t> stackCells(const std::vector<double>& values, double cellSize, int cells)
{
    std::vector<std::size_t> result(static_cast<std::size_t>(cells), kNoPart);
    double reached = 0;
    std::size_t filled = 0;
    for (std::size_t part = 0; part < values.size(); ++part) {
        reached += values[part];
        const double end = std::min(std::round(reached / cellSize), static_cast<double>(cells));
        while (static_cast<double>(filled) < end)
            result[filled++] = part;
    }
    return result;
}

/// Draws equal neighbours with one colour sequence.
class CellWriter {
public:
    CellWriter(const OutputStyle& style, const std::vector<Part>& parts) : m_style(style), m_parts(parts) {}

    void add(std::size_t part)
    {
        if (part != m_part)
            flush();
        m_part = part;
        ++m_count;
    }
    void addText(Ink ink, std::string_view text)
    {
        flush();
        m_text += paint(m_style, ink, text);
    }
    std::string finish()
    {
        flush();
        return std::move(m_text);
    }

private:
    void flush()
    {
        std::string run;
        for (; m_count > 0; --m_count) {
            if (m_part == kNoPart)
                run += ' ';
            else if (m_style.colour && m_style.unicode)
                run += "█";
            else
                run += m_parts[m_part].letter;
        }
        m_text += m_part == kNoPart ? run : paint(m_style, m_parts[m_part].ink, run);
    }

    const OutputStyle& m_style;
    const std::vector<Part>& m_parts;
    std::string m_text;
    std::size_t m_part = kNoPart;
    int m_count = 0;
};

double sumOf(const std::vector<double>& values)
{
    return std::accumulate(values.begin(), values.end(), 0.0);
}

/// Columns joined to at most `width` groups, each shown as its highest member.
struct Grouped {
    std::vector<const std::vector<double>*> stacks;
    std::vector<std::size_t> firstColumn;
};

Grouped groupColumns(const Chart& chart)
{
    Grouped grouped;
    const std::size_t count = chart.columns.size();
    const std::size_t groups = std::min(count, static_cast<std::size_t>(chart.width));
    for (std::size_t group = 0; group < groups; ++group) {
        const std::size_t first = count * group / groups;
        const std::size_t end = count * (group + 1) / groups;
        const std::vector<double>* highest = &chart.columns[first];
        for (std::size_t column = first + 1; column < end; ++column)
            if (sumOf(chart.columns[column]) > sumOf(*highest))
                highest = &chart.columns[column];
        grouped.stacks.push_back(highest);
        grouped.firstColumn.push_back(first);
    }
    return grouped;
}

/// "|forward   |backward" under the columns, each label cut to its stretch.
std::string markLine(const OutputStyle& style, const Chart& chart, const Grouped& grouped)
{
    const auto groupOf = [&](std::size_t column) {
        const auto after = std::upper_bound(grouped.firstColumn.begin(), grouped.firstColumn.end(), column);
        return static_cast<int>(after - grouped.firstColumn.begin()) - 1;
    };
    std::string line;
    for (std::size_t i = 0; i < chart.marks.size(); ++i) {
        const int start = groupOf(chart.marks[i].column);
        const int end =
            i + 1 < chart.marks.size() ? groupOf(chart.marks[i + 1].column) : static_cast<int>(grouped.stacks.size());
        if (end <= start)
            continue; // too short to be seen
        line = padRight(line, start);
        line += truncateToWidth(std::string(glyph(style, "│", "|")) + chart.marks[i].label, end - start, "");
    }
    return line;
}

} // namespace

std::string stackedBar(const OutputStyle& style, const std::vector<Part>& parts, const std::vector<double>& values,
                       const BarScale& scale)
{
    assert(parts.size() == values.size());
    const double cellSize = scale.capacity / scale.capacityCell;
    const bool known = scale.capacity > 0;
    std::vector<std::size_t> cells(static_cast<std::size_t>(scale.cells), kNoPart);
    if (known)
        cells = stackCells(values, cellSize, scale.cells);
    const bool beyond = known && sumOf(values) > cellSize * (scale.cells + 0.5);
    CellWriter writer(style, parts);
    for (int cell = 0; cell < scale.cells; ++cell) {
        if (cell == scale.capacityCell)
            writer.addText(Ink::Strong, glyph(style, "┃", "|"));
        if (beyond && cell + 1 == scale.cells)
            writer.addText(Ink::Bad, ">");
        else
            writer.add(cells[static_cast<std::size_t>(cell)]);
    }
    return writer.finish();
}

std::string stackedChart(const OutputStyle& style, const Chart& chart)
{
    double highest = 0;
    for (const auto& column : chart.columns)
        highest = std::max(highest, sumOf(column));
    if (highest <= 0)
        return {};
    constexpr double kNear = 1.25; // the capacity line is worth its room up to a quarter above the curve
    const bool showCapacity = chart.capacity > 0 && chart.capacity <= highest * kNear;
    const double top = showCapacity ? std::max(highest, chart.capacity) : highest;
    const double cellSize = top / chart.height;
    const Grouped grouped = groupColumns(chart);

    std::vector<std::vector<std::size_t>> cells;
    cells.reserve(grouped.stacks.size());
    for (const auto* stack : grouped.stacks)
        cells.push_back(stackCells(*stack, cellSize, chart.height));

    const int capacityRow = showCapacity ? static_cast<int>(std::lround(chart.capacity / cellSize)) - 1 : -1;
    std::string text;
    for (int row = chart.height - 1; row >= 0; --row) {
        CellWriter writer(style, chart.parts);
        writer.addText(Ink::Plain, fmt::format("{:>9.2f} ", cellSize * (row + 1) / chart.unit));
        writer.addText(Ink::Plain, glyph(style, "┤", "|"));
        for (const auto& column : cells) {
            const std::size_t part = column[static_cast<std::size_t>(row)];
            if (row == capacityRow && part == kNoPart)
                writer.addText(Ink::Bad, glyph(style, "─", "-"));
            else
                writer.add(part);
        }
        if (row == capacityRow)
            writer.addText(Ink::Bad, " capacity");
        std::string line = writer.finish();
        line.erase(line.find_last_not_of(' ') + 1);
        text += line + '\n';
    }
    text += fmt::format("{:>9} ", chart.unitName);
    text += glyph(style, "└", "+");
    for (std::size_t i = 0; i < grouped.stacks.size(); ++i)
        text += glyph(style, "─", "-");
    text += '\n';
    if (!chart.marks.empty())
        text += std::string(11, ' ') + markLine(style, chart, grouped) + '\n';
    return text;
}

} // namespace shardwright
