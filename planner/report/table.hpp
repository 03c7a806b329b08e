#pragma once

// A table for people (aligned columns, a row of units) and for programs (CSV).

#include <string>
#include <vector>

#include "planner/report/terminal.hpp"

namespace shardwright {

enum class Align : std::uint8_t { Left, Right };

struct Column {
    std::string title;
    std::string unit;           // shown under the title, and in brackets after it in CSV
    Align align = Align::Right; // numbers to the right, words to the left
    int shrinkTo = 0;           // may be narrowed to so many columns where the terminal is narrow; 0 = never
    int dropOrder = 0;          // where that is not enough, columns go from the highest order down; 0 = never
    bool wraps = false;         // narrowed cells are continued on the next line; otherwise they are cut
};

struct Cell {
    std::string text;
    Ink ink = Ink::Plain;
    bool drawn = false; // text comes with its own colours (a bar); CSV leaves drawn columns empty

    Cell() = default;
    Cell(std::string cellText, Ink cellInk = Ink::Plain) // NOLINT(google-explicit-constructor): rows read better
        : text(std::move(cellText)), ink(cellInk)
    {
    }
    Cell(const char* cellText) : text(cellText) {} // NOLINT(google-explicit-constructor)
    static Cell drawing(std::string text);
};

class Table {
public:
    explicit Table(std::vector<Column> columns) : m_columns(std::move(columns)) {}

    /// A row; it has as many cells as there are columns.
    void addRow(std::vector<Cell> cells);
    bool empty() const { return m_rows.empty(); }

    /// The table, every line ended. Columns that had no room are named in a last line.
    std::string text(const OutputStyle& style) const;

    /// RFC 4180, with "\n" line ends and one header line.
    std::string csv() const;

private:
    struct Layout;
    Layout layOut(const OutputStyle& style) const;
    std::string rowText(const Layout& layout, const OutputStyle& style, const std::vector<Cell>& cells) const;

    std::vector<Column> m_columns;
    std::vector<std::vector<Cell>> m_rows;
};

/// One field of a CSV line, quoted where it must be.
std::string csvField(const std::string& text);

} // namespace shardwright
