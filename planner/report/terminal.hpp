#pragma once

// Where text for people goes, and what it may use there: colour, characters outside ASCII, how many columns.

#include <optional>
#include <string>
#include <string_view>

#include "core/enum_names.hpp"

namespace shardwright {

enum class ColourChoice : std::uint8_t { Auto, Always, Never };
template <> struct EnumNames<ColourChoice> {
    static constexpr std::array<std::pair<ColourChoice, std::string_view>, 3> table{
        {{ColourChoice::Auto, "auto"}, {ColourChoice::Always, "always"}, {ColourChoice::Never, "never"}}};
};

/// How a report is drawn. The default suits a file: no colour, ASCII, any width.
struct OutputStyle {
    bool colour = false;
    bool unicode = false;
    int width = 0; // columns; 0 = unlimited
};

/// What is known about the place that output goes to.
struct OutputFacts {
    bool isTerminal = false;
    int columns = 0;          // of the terminal; 0 = unknown
    bool noColour = false;    // $NO_COLOR is set and not empty (https://no-color.org)
    std::string terminalType; // $TERM
    std::string locale;       // the first of $LC_ALL, $LC_CTYPE, $LANG that is not empty
};

/// Colour on a terminal that can show it unless forbidden; `choice` Always and Never overrule all else. Characters
/// outside ASCII where the locale says UTF-8. Width is limited on a terminal only, so that files and pipes get it all.
OutputStyle chooseStyle(const OutputFacts& facts, ColourChoice choice);

/// The facts about standard output of this process.
OutputFacts standardOutputFacts();

/// Colours by what they mean; the last eleven tell parts of a stack apart.
enum class Ink : std::uint8_t {
    Plain,
    Strong,
    Faint,
    Good,
    Warning,
    Bad,
    Blue,
    LightBlue,
    Cyan,
    Green,
    Magenta,
    LightMagenta,
    Yellow,
    LightYellow,
    Red,
    Grey,
    White
};

/// `text` in `ink` where the style has colour, else as it is.
std::string paint(const OutputStyle& style, Ink ink, std::string_view text);

/// `unicode` where the style has it, else `ascii`.
std::string_view glyph(const OutputStyle& style, std::string_view unicode, std::string_view ascii);

} // namespace shardwright
