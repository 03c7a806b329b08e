#pragma once

// Stacks drawn in text: a bar on one line, and a chart of stacks side by side. Without colour each part is drawn with
// its letter; with colour as a block.

#include <cstddef>
#include <string>
#include <vector>

#include "planner/report/terminal.hpp"

namespace shardwright {

/// How one part of a stack looks everywhere.
struct Part {
    char letter = '?';
    Ink ink = Ink::Plain;
};

struct BarScale {
    double capacity = 0;   // where the mark stands, in the unit of the values
    int cells = 24;        // up to the right end
    int capacityCell = 18; // cells before the mark: what lies beyond shows by how much a plan does not fit
};

/// A stack of `values` (parts[i] drawn values[i] long) over a capacity mark; what does not even fit the bar ends in
/// '>'. Always scale.cells + 1 wide. Segment ends are rounded, not lengths, so the whole is right to half a cell.
std::string stackedBar(const OutputStyle& style, const std::vector<Part>& parts, const std::vector<double>& values,
                       const BarScale& scale);

/// A chart of many stacks: columns[x][i] is the value of parts[i]. More columns than `width` are drawn together, each
/// group as its highest stack. `marks` names stretches of the x axis by their first column.
struct ChartMark {
    std::size_t column = 0;
    std::string label;
};
struct Chart {
    std::vector<Part> parts;
    std::vector<std::vector<double>> columns;
    std::vector<ChartMark> marks;
    double capacity = 0;  // drawn as a line when it lies within the chart; 0 = none
    double unit = 1;      // values are divided by it for the labels of the y axis
    std::string unitName; // "GiB"
    int width = 72;       // cells of the drawing itself
    int height = 12;      // cells
};
std::string stackedChart(const OutputStyle& style, const Chart& chart);

} // namespace shardwright
