#include "planner/report/table.hpp"

#include <algorithm>
#include <cassert>

#include "planner/report/text_width.hpp"

namespace shardwright {

namespace {

constexpr int kGap = 2; // columns of space between two columns

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
        int sum = shown.empty() ? 0 : kGap * static_cast<int>(shown.size() - 1);
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

    const auto shrink = [&] {
        for (const std::size_t column : layout.shown)
            if (const int least = m_columns[column].shrinkTo; least > 0 && layout.total() > style.width)
                layout.widths[column] = std::max(std::min(least, layout.widths[column]),
                                                 layout.widths[column] - (layout.total() - style.width));
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

std::string Table::text(const OutputStyle& style) const
{
    const Layout layout = layOut(style);
    const std::string_view cut = glyph(style, "…", "~");
    std::string text;
    const auto addLine = [&](auto&& cellOf) {
        std::string line;
        for (const std::size_t column : layout.shown) {
            const Cell cell = cellOf(column);
            const int width = layout.widths[column];
            const std::string content = truncateToWidth(shown(cell), width, cut);
            const int space = width - displayWidth(content);
            if (column != layout.shown.front())
                line.append(kGap, ' ');
            if (m_columns[column].align == Align::Right)
                line.append(static_cast<std::size_t>(space), ' ');
            line += paint(style, cell.ink, content);
            if (m_columns[column].align == Align::Left)
                line.append(static_cast<std::size_t>(space), ' ');
        }
        text += trimmedRight(std::move(line)) + '\n';
    };
    addLine([&](std::size_t column) { return Cell(m_columns[column].title, Ink::Strong); });
    if (std::any_of(m_columns.begin(), m_columns.end(), [](const Column& column) { return !column.unit.empty(); }))
        addLine([&](std::size_t column) { return Cell(m_columns[column].unit, Ink::Faint); });
    for (const auto& row : m_rows)
        addLine([&](std::size_t column) { return row[column]; });
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
