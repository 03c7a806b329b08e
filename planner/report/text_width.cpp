#include "planner/report/text_width.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

namespace shardwright {

namespace {

using Range = std::pair<std::uint32_t, std::uint32_t>;

// Unicode 15 general categories Mn, Me and Cf, as far as they occur in names: marks, joiners, variation selectors.
constexpr std::array<Range, 5> kZeroWidth{
    {{0x0300, 0x036f}, {0x200b, 0x200f}, {0x20d0, 0x20ff}, {0xfe00, 0xfe0f}, {0xfeff, 0xfeff}}};

// Unicode 15 EastAsianWidth.txt, classes W and F, joined to blocks.
constexpr std::array<Range, 13> kWide{{{0x1100, 0x115f},
                                       {0x2e80, 0x303e},
                                       {0x3041, 0x33ff},
                                       {0x3400, 0x4dbf},
                                       {0x4e00, 0x9fff},
                                       {0xa000, 0xa4cf},
                                       {0xac00, 0xd7a3},
                                       {0xf900, 0xfaff},
                                       {0xfe30, 0xfe6f},
                                       {0xff00, 0xff60},
                                       {0xffe0, 0xffe6},
                                       {0x1f300, 0x1faff},
                                       {0x20000, 0x3fffd}}};

template <std::size_t n> bool isIn(const std::array<Range, n>& ranges, std::uint32_t codePoint)
{
    return std::any_of(ranges.begin(), ranges.end(),
                       [&](const Range& range) { return codePoint >= range.first && codePoint <= range.second; });
}

/// One step through a text: a character, or a whole colour sequence.
struct Piece {
    std::string_view bytes;
    int width = 0;
    bool isColour = false;
};

std::uint8_t byteAt(std::string_view text, std::size_t position)
{
    return position < text.size() ? static_cast<std::uint8_t>(text[position]) : 0;
}

/// Length of the colour sequence ESC [ digits ; ... m that `text` begins with, or 0.
std::size_t colourSequenceLength(std::string_view text)
{
    if (text.substr(0, 2) != "\x1b[")
        return 0;
    const std::size_t end = text.find_first_not_of("0123456789;", 2);
    return end != std::string_view::npos && text[end] == 'm' ? end + 1 : 0;
}

Piece firstPiece(std::string_view text)
{
    if (const std::size_t length = colourSequenceLength(text); length > 0)
        return {text.substr(0, length), 0, true};
    const std::uint32_t lead = byteAt(text, 0);
    std::size_t length = 1;
    std::uint32_t codePoint = lead;
    if (lead >= 0xc2 && lead <= 0xdf) {
        length = 2;
        codePoint = lead & 0x1fU;
    } else if (lead >= 0xe0 && lead <= 0xef) {
        length = 3;
        codePoint = lead & 0x0fU;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
        length = 4;
        codePoint = lead & 0x07U;
    }
    for (std::size_t i = 1; i < length; ++i) {
        const std::uint32_t next = byteAt(text, i);
        if ((next & 0xc0U) != 0x80U)
            return {text.substr(0, 1), 1, false}; // not UTF-8
        codePoint = (codePoint << 6U) | (next & 0x3fU);
    }
    int width = 1;
    if (isIn(kZeroWidth, codePoint))
        width = 0;
    else if (isIn(kWide, codePoint))
        width = 2;
    return {text.substr(0, length), width, false};
}

} // namespace

int displayWidth(std::string_view text)
{
    int width = 0;
    while (!text.empty()) {
        const Piece piece = firstPiece(text);
        width += piece.width;
        text.remove_prefix(piece.bytes.size());
    }
    return width;
}

std::string truncateToWidth(std::string_view text, int width, std::string_view mark)
{
    if (displayWidth(text) <= width)
        return std::string(text);
    const int room = std::max(0, width - displayWidth(mark));
    std::string kept;
    int used = 0;
    bool coloured = false;
    while (!text.empty()) {
        const Piece piece = firstPiece(text);
        if (used + piece.width > room)
            break;
        used += piece.width;
        coloured = coloured || piece.isColour;
        kept += piece.bytes;
        text.remove_prefix(piece.bytes.size());
    }
    if (displayWidth(mark) <= width)
        kept += mark;
    if (coloured)
        kept += "\x1b[0m";
    return kept;
}

std::string padRight(std::string_view text, int width)
{
    std::string padded(text);
    padded.append(static_cast<std::size_t>(std::max(0, width - displayWidth(text))), ' ');
    return padded;
}

std::string padLeft(std::string_view text, int width)
{
    std::string padded(static_cast<std::size_t>(std::max(0, width - displayWidth(text))), ' ');
    padded += text;
    return padded;
}

std::vector<std::string> wrapWords(std::string_view text, int width)
{
    std::vector<std::string> lines;
    std::string line;
    std::size_t position = 0;
    while (position < text.size()) {
        const std::size_t end = std::min(text.find(' ', position), text.size());
        std::string_view word = text.substr(position, end - position);
        position = end + 1;
        if (word.empty())
            continue;
        while (width > 1 && displayWidth(word) > width) {
            if (!line.empty())
                lines.push_back(std::exchange(line, {}));
            lines.push_back(truncateToWidth(word, width, ""));
            word.remove_prefix(lines.back().size());
        }
        if (!line.empty() && width > 0 && displayWidth(line) + 1 + displayWidth(word) > width) {
            lines.push_back(std::exchange(line, {}));
        }
        if (!line.empty() && !word.empty())
            line += ' ';
        line += word;
    }
    if (!line.empty())
        lines.push_back(std::move(line));
    return lines;
}

} // namespace shardwright
