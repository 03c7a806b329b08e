#include "core/plain_text.hpp"

#include <cstdint>

namespace shardwright {

namespace {

bool isControl(char c)
{
    return static_cast<std::uint8_t>(c) < 0x20 || c == '\x7f';
}

} // namespace

std::string withoutControls(std::string_view text)
{
    std::string clean(text);
    for (char& c : clean)
        if (isControl(c))
            c = '?';
    return clean;
}

std::string withoutControlsButLines(std::string_view text)
{
    std::string clean(text);
    for (char& c : clean)
        if (isControl(c) && c != '\n')
            c = '?';
    return clean;
}

} // namespace shardwright
