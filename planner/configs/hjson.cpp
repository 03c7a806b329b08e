#include "planner/configs/hjson.hpp"

#include <algorithm>

namespace shardwright {

std::string withoutHjsonComments(const std::string& text)
{
    std::string result = text;
    std::size_t lastComma = std::string::npos; // a comma with nothing but space after it so far
    const auto blank = [&](std::size_t from, std::size_t to) {
        for (std::size_t i = from; i < to; ++i)
            if (result[i] != '\n')
                result[i] = ' ';
    };
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (c == '"') {
            for (++i; i < text.size() && text[i] != '"'; ++i)
                if (text[i] == '\\')
                    ++i;
            lastComma = std::string::npos;
        } else if (c == '#' || text.compare(i, 2, "//") == 0) {
            const std::size_t end = std::min(text.find('\n', i), text.size());
            blank(i, end);
            i = end - 1;
        } else if (text.compare(i, 2, "/*") == 0) {
            const std::size_t close = text.find("*/", i + 2);
            if (close == std::string::npos)
                return result; // the JSON parser will point at it
            blank(i, close + 2);
            i = close + 1;
        } else if (c == ',') {
            lastComma = i;
        } else if (c == '}' || c == ']') {
            if (lastComma != std::string::npos)
                result[lastComma] = ' ';
            lastComma = std::string::npos;
        } else if (c != ' ' && c != '\t' && c != '\r' && c != '\n') {
            lastComma = std::string::npos;
        }
    }
    return result;
}

} // namespace shardwright
