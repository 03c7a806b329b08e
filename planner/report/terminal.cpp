#include "planner/report/terminal.hpp"

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include <sys/ioctl.h>
#include <unistd.h>

namespace shardwright {

namespace {

std::string environment(const char* name)
{
    const char* value = std::getenv(name);
    return value == nullptr ? std::string() : std::string(value);
}

bool saysUtf8(std::string locale)
{
    std::transform(locale.begin(), locale.end(), locale.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return locale.find("utf-8") != std::string::npos || locale.find("utf8") != std::string::npos;
}

/// Select Graphic Rendition parameters (ECMA-48, 8.3.117).
std::string_view sgr(Ink ink)
{
    switch (ink) {
    case Ink::Plain: return "";
    case Ink::Strong: return "1";
    case Ink::Faint: return "2";
    case Ink::Good: return "32";
    case Ink::Warning: return "33";
    case Ink::Bad: return "1;31";
    case Ink::Blue: return "34";
    case Ink::LightBlue: return "94";
    case Ink::Cyan: return "36";
    case Ink::Green: return "32";
    case Ink::Magenta: return "35";
    case Ink::LightMagenta: return "95";
    case Ink::Yellow: return "33";
    case Ink::LightYellow: return "93";
    case Ink::Red: return "31";
    case Ink::Grey: return "90";
    case Ink::White: return "37";
    }
    return "";
}

} // namespace

OutputStyle chooseStyle(const OutputFacts& facts, ColourChoice choice)
{
    OutputStyle style;
    switch (choice) {
    case ColourChoice::Always: style.colour = true; break;
    case ColourChoice::Never: style.colour = false; break;
    case ColourChoice::Auto:
        style.colour =
            facts.isTerminal && !facts.noColour && !facts.terminalType.empty() && facts.terminalType != "dumb";
        break;
    }
    style.unicode = saysUtf8(facts.locale);
    style.width = facts.isTerminal ? facts.columns : 0;
    return style;
}

OutputFacts standardOutputFacts()
{
    OutputFacts facts;
    facts.isTerminal = isatty(STDOUT_FILENO) == 1;
    winsize size{};
    if (facts.isTerminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0)
        facts.columns = size.ws_col;
    facts.noColour = !environment("NO_COLOR").empty();
    facts.terminalType = environment("TERM");
    for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"})
        if (facts.locale.empty())
            facts.locale = environment(name);
    return facts;
}

std::string paint(const OutputStyle& style, Ink ink, std::string_view text)
{
    const std::string_view code = sgr(ink);
    if (!style.colour || code.empty() || text.empty())
        return std::string(text);
    std::string painted = "\x1b[";
    painted += code;
    painted += 'm';
    painted += text;
    painted += "\x1b[0m";
    return painted;
}

std::string_view glyph(const OutputStyle& style, std::string_view unicode, std::string_view ascii)
{
    return style.unicode ? unicode : ascii;
}

} // namespace shardwright
