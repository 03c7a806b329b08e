#include "planner/report/table.hpp"

#include <algorithm>
#include <cassert>

#include "core/plain_text.hpp"
#include "planner/report/text_width.hpp"

namespace shardwright {

namespace {

constexpr std::size_t kGap = 2; // columns of space between two columns

std::string trimmedRight(std::string line)
{
    line.erase(line.find_last_not_of(' ') + 1);
    return line;
}

std::string shown(const Cell& cell)
{
    return cell.drawn ? cell.text : withoutControls(cell.text);
}

} // namespace

/// Which columns are shown, and how wide.
struct Table::Layout {
    std::vector<std::size_t> shown;
    std::vector<std::size_t> dropped;
    std::vector<int> widths; // of every column

    int total() const
    {
        int sum = shown.empty() ? 0 : static_cast<int>(kGap * (shown.size() - 1));
        for (const std::size_t column : shown)
            sum += widths[column];
        return sum;
    }
};

Cell Cell::drawing(std::string text)
{
    Cell cell(std::move(text));
    cell.drawn = true;
    return cell;
}

void Table::addRow(std::vector<Cell> cells)
{
    assert(cells.size() == m_columns.size());
    m_rows.push_back(std::move(cells));
}

Table::Layout Table::layOut(const OutputStyle& style) const
{
    Layout layout;
    for (std::size_t column = 0; column < m_columns.size(); ++column) {
        int width = std::max(displayWidth(m_columns[column].title), displayWidth(m_columns[column].unit));
        for (const auto& row : m_rows)
            width = std::max(width, displayWidth(shown(row[column])));
        layout.widths.push_back(width);
        layout.shown.push_back(column);
    }
    if (style.width <= 0)
        return layout;

    // Narrows the column that has most to give, one step at a time.
    const auto shrink = [&] {
        const auto spare = [&](std::size_t column) {
            const int least = m_columns[column].shrinkTo;
            return least > 0 ? layout.widths[column] - least : 0;
        };
        while (layout.total() > style.width) {
            const auto widest =
                std::max_element(layout.shown.begin(), layout.shown.end(),
                                 [&](std::size_t left, std::size_t right) { return spare(left) < spare(right); });
            if (widest == layout.shown.end() || spare(*widest) <= 0)
                return;
            --layout.widths[*widest];
        }
    };
    const std::vector<int> natural = layout.widths;
    for (shrink(); layout.total() > style.width; shrink()) {
        const auto victim =
            std::max_element(layout.shown.begin(), layout.shown.end(), [&](std::size_t left, std::size_t right) {
                return m_columns[left].dropOrder < m_columns[right].dropOrder;
            });
        if (victim == layout.shown.end() || m_columns[*victim].dropOrder == 0)
            break;
        layout.dropped.push_back(*victim);
        layout.shown.erase(victim);
        layout.widths = natural;
    }
    std::sort(layout.dropped.begin(), layout.dropped.end());
    return layout;
}

std::string Table::rowText(const Layout& layout, const OutputStyle& style, const std::vector<Cell>& cells) const
{
    std::vector<std::vector<std::string>> linesOf(m_columns.size());
    std::size_t height = 1;
    for (const std::size_t column : layout.shown) {
        linesOf[column] = m_columns[column].wraps ? wrapWords(shown(cells[column]), layout.widths[column])
                                                  : std::vector<std::string>{shown(cells[column])};
        height = std::max(height, linesOf[column].size());
    }
    const std::string_view cut = glyph(style, "…", "~");
    std::string text;
    for (std::size_t i = 0; i < height; ++i) {
        std::string line;
        for (const std::size_t column : layout.shown) {
            const int width = layout.widths[column];
            const std::string content =
                i < linesOf[column].size() ? truncateToWidth(linesOf[column][i], width, cut) : std::string();
            const auto space = static_cast<std::size_t>(width - displayWidth(content));
            const bool right = m_columns[column].align == Align::Right;
            line.append(column == layout.shown.front() ? 0 : kGap, ' ');
            line.append(right ? space : 0, ' ');
            line += paint(style, cells[column].ink, content);
            line.append(right ? 0 : space, ' ');
        }
        text += trimmedRight(std::move(line)) + '\n';
    }
    return text;
}

std::string Table::text(const OutputStyle& style) const
{
    const Layout layout = layOut(style);
    std::vector<Cell> titles;
    std::vector<Cell> units;
    bool anyUnit = false;
    for (const Column& column : m_columns) {
        titles.emplace_back(column.title, Ink::Strong);
        units.emplace_back(column.unit, Ink::Faint);
        anyUnit = anyUnit || !column.unit.empty();
    }
    std::string text = rowText(layout, style, titles);
    if (anyUnit)
        text += rowText(layout, style, units);
    for (const auto& row : m_rows)
        text += rowText(layout, style, row);
    if (!layout.dropped.empty()) {
        std::string note = "no room for:";
        for (const std::size_t column : layout.dropped)
            note += (column == layout.dropped.front() ? " " : ", ") + m_columns[column].title;
        for (const std::string& line : wrapWords(note, style.width))
            text += paint(style, Ink::Faint, line) + '\n';
    }
    return text;
}

std::string csvField(const std::string& text)
{
    if (text.find_first_of(",\"\r\n") == std::string::npos)
        return text;
    std::string quoted = "\"";
    for (const char c : text) {
        if (c == '"')
            quoted += '"';
        quoted += c;
    }
    return quoted + '"';
}

std::string Table::csv() const
{
    std::string text;
    const auto addLine = [&](auto&& fieldOf) {
        for (std::size_t column = 0; column < m_columns.size(); ++column) {
            if (column > 0)
                text += ',';
            text += csvField(fieldOf(column));
        }
        text += '\n';
    };
    addLine([&](std::size_t column) {
        const Column& head = m_columns[column];
        return head.unit.empty() ? head.title : head.title + " [" + head.unit + "]";
    });
    for (const auto& row : m_rows)
        addLine([&](std::size_t column) { return row[column].drawn ? std::string() : row[column].text; });
    return text;
}

} // namespace shardwright
