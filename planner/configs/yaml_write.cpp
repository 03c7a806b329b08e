#include <charconv>
#include <cmath>

#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "planner/configs/yaml.hpp"
#include "planner/configs/yaml_scalar.hpp"

namespace shardwright {

namespace {

bool isOneOf(const std::string& text, std::initializer_list<std::string_view> words)
{
    for (const std::string_view word : words)
        if (text == word)
            return true;
    return false;
}

// The resolver of PyYAML (resolver.py): YAML 1.1 integers; a leading 0 means octal.
std::optional<std::int64_t> integerOf(const std::string& text)
{
    std::string digits;
    for (const char c : text)
        if (c != '_')
            digits += c;
    const bool negative = !digits.empty() && digits[0] == '-';
    if (!digits.empty() && (digits[0] == '-' || digits[0] == '+'))
        digits.erase(0, 1);
    if (digits.empty() || text[0] == '_')
        return std::nullopt;
    int base = 10;
    if (digits.size() > 2 && digits[0] == '0' && (digits[1] == 'x' || digits[1] == 'b')) {
        base = digits[1] == 'x' ? 16 : 2;
        digits.erase(0, 2);
    } else if (digits.size() > 1 && digits[0] == '0') {
        base = 8;
    }
    std::int64_t value = 0;
    const char* end = digits.data() + digits.size();
    const auto [stop, problem] = std::from_chars(digits.data(), end, value, base);
    if (problem != std::errc() || stop != end || digits[0] == '-')
        return std::nullopt;
    return negative ? -value : value;
}

std::optional<double> floatOf(const std::string& text)
{
    // A point is required, and an exponent needs its sign: "1e8" and "1.0e8" are texts to PyYAML.
    bool point = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (c == '.') {
            if (point)
                return std::nullopt;
            point = true;
        } else if (c == 'e' || c == 'E') {
            if (!point || i + 1 >= text.size() || (text[i + 1] != '+' && text[i + 1] != '-'))
                return std::nullopt;
        } else if ((c < '0' || c > '9') && c != '+' && c != '-') {
            return std::nullopt;
        }
    }
    if (!point || text.size() < 2)
        return std::nullopt;
    const char* begin = text.data() + (text[0] == '+' ? 1 : 0);
    const char* end = text.data() + text.size();
    double value = 0;
    const auto [stop, problem] = std::from_chars(begin, end, value);
    if (problem != std::errc() || stop != end || !std::isfinite(value))
        return std::nullopt;
    return value;
}

bool isPlainSafe(const std::string& text)
{
    if (text.empty() || !yamlScalar(text).is_string())
        return false;
    const auto plain = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
               c == '/' || c == '-' || c == ',';
    };
    for (const char c : text)
        if (!plain(c))
            return false;
    const char first = text[0];
    // A leading digit or sign could still be a date or a sexagesimal number; "=" and "<<" are not plain anyway.
    return (first >= 'a' && first <= 'z') || (first >= 'A' && first <= 'Z') || first == '/' || first == '_';
}

std::string quoted(const std::string& text)
{
    if (isPlainSafe(text))
        return text;
    for (const char c : text)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
            return Json(text).dump(); // double quotes with escapes: JSON's are YAML's
    std::string result = "'";
    for (const char c : text)
        result += c == '\'' ? "''" : std::string(1, c);
    return result + "'";
}

std::string scalarText(const Json& value)
{
    if (value.is_string())
        return quoted(value.get<std::string>());
    if (value.is_number_float()) {
        const std::string text = value.dump();
        if (text.find('.') == std::string::npos) // "1e-08" would be a text to PyYAML
            return text.substr(0, text.find('e')) + ".0" + text.substr(text.find('e'));
        return text;
    }
    return value.dump();
}

void write(const Json& value, int indent, std::string& out)
{
    const std::string margin(static_cast<std::size_t>(indent), ' ');
    for (const auto& item : value.items()) {
        const std::string head = value.is_object() ? quoted(item.key()) + ":" : "-";
        const Json& member = item.value();
        if (member.is_structured() && !member.empty()) {
            out += margin + head + "\n";
            write(member, indent + 2, out);
        } else {
            out += margin + head + " " + scalarText(member) + "\n"; // an empty list or map dumps as [] or {}
        }
    }
}

} // namespace

Json yamlScalar(const std::string& text)
{
    if (text.empty() || isOneOf(text, {"~", "null", "Null", "NULL"}))
        return nullptr;
    if (isOneOf(text, {"yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"}))
        return true;
    if (isOneOf(text, {"no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"}))
        return false;
    if (const auto integer = integerOf(text))
        return *integer;
    if (const auto number = floatOf(text))
        return *number;
    return text;
}

std::string writeYaml(const Json& object)
{
    std::string text;
    write(object, 0, text);
    return text;
}

} // namespace shardwright
