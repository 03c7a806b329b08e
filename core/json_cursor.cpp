#include "core/json_cursor.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>

#include <fmt/format.h>

namespace shardwright {

namespace {

constexpr std::size_t kMaximumFileBytes = std::size_t{64} << 20;

std::string lineAndColumn(const std::string& text, std::size_t offset)
{
    offset = std::min(offset, text.size());
    const auto end = text.begin() + static_cast<std::ptrdiff_t>(offset);
    const auto line = 1 + std::count(text.begin(), end, '\n');
    const std::size_t lineStart = offset == 0 ? std::string::npos : text.rfind('\n', offset - 1);
    const std::size_t column = lineStart == std::string::npos ? offset + 1 : offset - lineStart;
    return fmt::format("line {}, column {}", line, column);
}

std::string shorten(const std::string& text, std::size_t longest = 60)
{
    return text.size() <= longest ? text : text.substr(0, longest) + "...";
}

/// nlohmann's "[json.exception.parse_error.101] parse error at line 1, column 3: syntax error ..." without its name and
/// without its place, which we tell ourselves.
std::string syntaxProblem(std::string text)
{
    if (const std::size_t end = text.find("] "); text.front() == '[' && end != std::string::npos)
        text.erase(0, end + 2);
    constexpr std::string_view kPlace = "parse error at ";
    if (const std::size_t end = text.find(": "); text.rfind(kPlace, 0) == 0 && end != std::string::npos)
        text.erase(0, end + 2);
    constexpr std::size_t kLongest = 200; // it quotes what it read last, which may be a text of any length
    return shorten(text, kLongest);
}

std::string describe(const Json& value)
{
    if (value.is_object())
        return "an object";
    if (value.is_array())
        return "a list";
    return shorten(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

std::string escaped(const std::string& key)
{
    std::string text;
    for (const char c : key) {
        if (c == '~')
            text += "~0";
        else if (c == '/')
            text += "~1";
        else
            text += c;
    }
    return text;
}

/// SAX handler that only looks for what the DOM parser would swallow: duplicate keys and deep nesting.
class StructureCheck : public nlohmann::json_sax<Json> {
public:
    explicit StructureCheck(int maximumDepth) : m_maximumDepth(maximumDepth) {}

    bool null() override { return passed(); }
    bool boolean(bool) override { return passed(); }
    bool number_integer(number_integer_t) override { return passed(); }
    bool number_unsigned(number_unsigned_t) override { return passed(); }
    bool number_float(number_float_t, const string_t&) override { return passed(); }
    bool string(string_t&) override { return passed(); }
    bool binary(binary_t&) override { return passed(); }
    bool start_object(std::size_t) override { return enter(/*isArray=*/false); }
    bool end_object() override { return leave(); }
    bool start_array(std::size_t) override { return enter(/*isArray=*/true); }
    bool end_array() override { return leave(); }
    bool key(string_t& key) override
    {
        m_levels.back().key = key;
        if (m_levels.back().keys.insert(key).second)
            return true;
        problem = fmt::format("the key \"{}\" stands twice in one object", shorten(key));
        expected = "each key once";
        place = pointer();
        return false;
    }
    bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override
    {
        errorPosition = position;
        problem = "not valid JSON: " + syntaxProblem(error.what());
        return false;
    }

    std::string problem;
    std::string expected;
    std::string place;
    std::optional<std::size_t> errorPosition;

private:
    struct Level {
        bool isArray = false;
        std::size_t index = 0; // of the element that is read, in an array
        std::string key;       // of the member that is read, in an object
        std::set<std::string> keys;
    };

    bool enter(bool isArray)
    {
        if (m_levels.size() < static_cast<std::size_t>(m_maximumDepth)) {
            m_levels.push_back({isArray, 0, {}, {}});
            return true;
        }
        problem = fmt::format("nested more than {} levels deep", m_maximumDepth);
        place = pointer();
        return false;
    }
    bool leave()
    {
        m_levels.pop_back();
        return passed();
    }
    bool passed()
    {
        if (!m_levels.empty() && m_levels.back().isArray)
            ++m_levels.back().index;
        return true;
    }
    std::string pointer() const
    {
        std::string text;
        for (const Level& level : m_levels)
            text += '/' + (level.isArray ? std::to_string(level.index) : escaped(level.key));
        constexpr std::size_t kLongest = 120;
        return shorten(text, kLongest);
    }

    int m_maximumDepth;
    std::vector<Level> m_levels;
};

} // namespace

Json parseJson(const std::string& text, const std::string& file, const JsonSyntax& syntax)
{
    StructureCheck check(syntax.maximumDepth);
    const bool sound =
        Json::sax_parse(text, &check, nlohmann::detail::input_format_t::json, /*strict=*/true, syntax.comments);
    if (!sound) {
        std::string place = check.place;
        if (check.errorPosition)
            place = lineAndColumn(text, *check.errorPosition == 0 ? 0 : *check.errorPosition - 1);
        throw InputError(file, place, check.problem, check.expected);
    }
    return Json::parse(text, nullptr, /*allow_exceptions=*/true, syntax.comments);
}

std::string readTextFile(const std::string& path)
{
    std::ifstream stream(path, std::ios::binary);
    if (!stream)
        throw InputError(path, "", "cannot be opened for reading", "the path of a readable file");
    std::string text;
    std::string chunk(1 << 16, '\0');
    while (stream.read(chunk.data(), static_cast<std::streamsize>(chunk.size())) || stream.gcount() > 0) {
        text.append(chunk, 0, static_cast<std::size_t>(stream.gcount()));
        if (text.size() > kMaximumFileBytes)
            throw InputError(path, "", "is larger than 64 MiB", "a configuration file");
    }
    if (stream.bad())
        throw InputError(path, "", "cannot be read", "the path of a readable file");
    return text;
}

void JsonCursor::complain(const std::string& what, const std::string& expected) const
{
    m_findings->add(m_pointer.empty() ? "/" : m_pointer, what, expected);
}

bool JsonCursor::expectObject() const
{
    if (m_value->is_object())
        return true;
    complain("is " + describe(*m_value), "an object { ... }");
    return false;
}

bool JsonCursor::expectArray() const
{
    if (m_value->is_array())
        return true;
    complain("is " + describe(*m_value), "a list [ ... ]");
    return false;
}

void JsonCursor::rejectUnknownKeys(const std::vector<std::string>& known) const
{
    if (!m_value->is_object())
        return;
    for (const auto& item : m_value->items()) {
        if (std::find(known.begin(), known.end(), item.key()) != known.end())
            continue;
        const std::string nearest = nearestWord(item.key(), known);
        std::string expected;
        if (!nearest.empty()) {
            expected = "\"" + nearest + "\" perhaps";
        } else {
            expected = "one of ";
            for (std::size_t i = 0; i < known.size(); ++i)
                expected += (i > 0 ? ", " : "") + known[i];
        }
        m_findings->add(m_pointer + "/" + escaped(shorten(item.key())), "is not a known key", expected);
    }
}

bool JsonCursor::has(const std::string& key) const
{
    return find(key).has_value();
}

std::optional<JsonCursor> JsonCursor::find(const std::string& key) const
{
    if (!m_value->is_object())
        return std::nullopt;
    const auto it = m_value->find(key);
    if (it == m_value->end() || it->is_null())
        return std::nullopt;
    return JsonCursor(*it, *m_findings, m_pointer + "/" + escaped(key));
}

std::optional<JsonCursor> JsonCursor::require(const std::string& key, const std::string& meaning) const
{
    auto member = find(key);
    if (!member && m_value->is_object())
        m_findings->add(m_pointer.empty() ? "/" : m_pointer, "\"" + key + "\" is missing", meaning);
    return member;
}

std::vector<JsonCursor> JsonCursor::elements() const
{
    std::vector<JsonCursor> cursors;
    if (!m_value->is_array())
        return cursors;
    cursors.reserve(m_value->size());
    for (std::size_t i = 0; i < m_value->size(); ++i)
        cursors.emplace_back((*m_value)[i], *m_findings, m_pointer + "/" + std::to_string(i));
    return cursors;
}

std::optional<std::int64_t> JsonCursor::asInteger(std::int64_t minimum, std::int64_t maximum) const
{
    const auto range = [&] {
        if (maximum == std::numeric_limits<std::int64_t>::max())
            return fmt::format("a whole number of at least {}", minimum);
        return fmt::format("a whole number from {} to {}", minimum, maximum);
    };
    std::int64_t value = 0;
    if (m_value->is_number_unsigned()) {
        const auto number = m_value->get<std::uint64_t>();
        if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
            complain("is " + describe(*m_value) + ", past 2^63", range());
            return std::nullopt;
        }
        value = static_cast<std::int64_t>(number);
    } else if (m_value->is_number_integer()) {
        value = m_value->get<std::int64_t>();
    } else if (m_value->is_number_float()) {
        const double number = m_value->get<double>();
        constexpr double kLargestExact = 9007199254740992.0; // 2^53: above it a double no longer names one integer
        if (!(std::abs(number) <= kLargestExact) || number != std::floor(number)) {
            complain("is " + describe(*m_value), range());
            return std::nullopt;
        }
        value = static_cast<std::int64_t>(number);
    } else {
        complain("is " + describe(*m_value), range());
        return std::nullopt;
    }
    if (value < minimum || value > maximum) {
        complain("is " + describe(*m_value), range());
        return std::nullopt;
    }
    return value;
}

std::optional<double> JsonCursor::asNumber(double minimum, double maximum) const
{
    const double value = m_value->is_number() ? m_value->get<double>() : std::numeric_limits<double>::quiet_NaN();
    if (!(value >= minimum && value <= maximum)) {
        complain("is " + describe(*m_value), fmt::format("a number from {} to {}", minimum, maximum));
        return std::nullopt;
    }
    return value;
}

std::optional<bool> JsonCursor::asBool() const
{
    if (m_value->is_boolean())
        return m_value->get<bool>();
    complain("is " + describe(*m_value), "true or false");
    return std::nullopt;
}

std::optional<std::string> JsonCursor::asString() const
{
    if (m_value->is_string())
        return m_value->get<std::string>();
    complain("is " + describe(*m_value), "a text in quotes");
    return std::nullopt;
}

void JsonCursor::read(const std::string& key, std::int64_t& target, std::int64_t minimum, std::int64_t maximum) const
{
    if (const auto member = find(key))
        if (const auto value = member->asInteger(minimum, maximum))
            target = *value;
}

void JsonCursor::read(const std::string& key, int& target, int minimum, int maximum) const
{
    if (const auto member = find(key))
        if (const auto value = member->asInteger(minimum, maximum))
            target = static_cast<int>(*value);
}

void JsonCursor::read(const std::string& key, double& target, double minimum, double maximum) const
{
    if (const auto member = find(key))
        if (const auto value = member->asNumber(minimum, maximum))
            target = *value;
}

void JsonCursor::read(const std::string& key, bool& target) const
{
    if (const auto member = find(key))
        if (const auto value = member->asBool())
            target = *value;
}

void JsonCursor::read(const std::string& key, std::string& target) const
{
    if (const auto member = find(key))
        if (const auto value = member->asString())
            target = *value;
}

} // namespace shardwright
