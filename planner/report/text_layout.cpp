#include "planner/report/text_layout.hpp"

#include <algorithm>

#include "core/plain_text.hpp"
#include "planner/report/text_width.hpp"

namespace shardwright {

namespace {

std::string wrapped(const OutputStyle& style, const std::string& text, const std::string& first,
                    const std::string& next)
{
    constexpr int kLeast = 20; // below it wrapping hurts more than an overlong line
    const int room = style.width > 0 ? std::max(kLeast, style.width - displayWidth(first)) : 0;
    std::string result;
    for (const std::string& line : wrapWords(withoutControls(text), room))
        result += (result.empty() ? first : next) + line + '\n';
    return result;
}

} // namespace

std::string section(const OutputStyle& style, const std::string& title, const std::string& body)
{
    return body.empty() ? std::string() : '\n' + paint(style, Ink::Strong, title) + '\n' + body;
}

std::string paragraph(const OutputStyle& style, const std::string& text)
{
    return wrapped(style, text, "", "");
}

std::string bullet(const OutputStyle& style, const std::string& text)
{
    return wrapped(style, text, "  - ", "    ");
}

} // namespace shardwright
